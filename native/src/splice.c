/* One splice: two legs, two directions, and what each event means.
 *
 * How it ends (each row tested):
 *   source sends FIN          -> the rest is delivered, then FIN to the destination; the other direction goes on
 *   both directions ended     -> close both, CLOSED (or *_TRUNCATED if a TLS peer sent no close_notify)
 *   RST or error on one leg   -> what was received from it is delivered, then RST to the other; FIN instead of RST if
 *                                that one's peer has not acknowledged everything, since RST would destroy bytes under
 *                                way; *_RESET, *_TIMEOUT (a silent peer: keepalive and TCP_USER_TIMEOUT, see engine.c)
 *   close_notify              -> as FIN; to a leg whose TLS is the kernel's, FIN waits until TCP has all records
 *   records without data      -> over a rate *_TLS_FLOOD, which is RST to both (tls_meter.c)
 *   KeyUpdate for the kernel  -> *_TLS_ERROR, as a record that does not decrypt
 *   TLS FIN, no close_notify  -> as FIN, but nothing can go back: bytes that still come for it end both, *_TRUNCATED
 *   no memory for a moment    -> that direction is quiet until the next tick; none to keep what was read: NO_MEMORY
 *   one ended, other silent   -> RST to both after half_closed_timeout
 *   nothing for idle_timeout  -> RST to both
 *   abort, engine close       -> RST to both
 *   give back                 -> what was read is delivered, nothing more is read, both sockets stay open: GIVEN_BACK
 * When both peers have sent FIN, nothing is left unread. So a plain close(2) never sends RST, which would destroy bytes.
 */
#include "check.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define DISCARD_READS 64 /* of SCRATCH_BYTES: more than a socket's default receive buffer holds */

/**
 * watch() - Tell epoll which events of a leg to report, if that changes
 * @t: Thread
 * @leg: Leg; the events carry a pointer to it
 * @wanted: Events, as in epoll_ctl(2)
 * @keep: false: report none at all
 *
 * Return: 0, or a negative errno
 * Thread: own
 */
static int watch(struct bp_thread *t, struct leg *leg, uint32_t wanted, bool keep) {
    struct epoll_event event = {.events = wanted, .data.ptr = leg};
    BP_ASSERT(leg->fd >= 0);
    BP_ASSERT(!keep || wanted);
    if (!keep) {
        if (leg->registered)
            (void)epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, leg->fd, NULL);
        leg->registered = false;
        return 0;
    }
    if (leg->registered && leg->watched == wanted)
        return 0;
    if (epoll_ctl(t->epoll_fd, leg->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, leg->fd, &event) < 0)
        return -errno;
    leg->registered = true;
    leg->watched = wanted;
    return 0;
}

/**
 * update_interest() - Let epoll report what both directions wait for
 * @t: Thread
 * @s: Splice
 *
 * Return: 0, or a negative errno
 * Thread: own
 */
static int update_interest(struct bp_thread *t, bp_splice *s) {
    for (int id = CLIENT; id <= SATELLITE; id++) {
        const struct direction *out = &s->direction[id], *in = &s->direction[1 - id]; /* from, and to, this leg */
        uint32_t wanted = 0;
        if (!out->eof && !out->starved && !s->giving_back && !bp__direction_in_flight(out))
            wanted |= out->read_wants_write ? EPOLLOUT : EPOLLIN;
        if (!in->starved && bp__direction_in_flight(in))
            wanted |= in->write_wants_read ? EPOLLIN : EPOLLOUT;
        if (in->notify_waits && !in->starved)
            wanted |= EPOLLOUT;
        /* EPOLLHUP and EPOLLERR are reported whether wanted or not (epoll_ctl(2)), and a FIN from both sides is a hang-up.
         * While nothing can be done about it, it is reported once (by edge): otherwise the thread would spin. */
        if (!wanted)
            wanted = EPOLLET;
        /* A leg that has ended in both directions would report EPOLLHUP for ever. */
        int r = watch(t, &s->leg[id], wanted, !(out->eof && in->shut));
        if (r < 0)
            return r;
    }
    return 0;
}

/**
 * end_broken() - End a splice because a leg failed
 * @t: Thread
 * @s: Splice, whose reason bp__fail() has set
 *
 * What was received from the broken leg is delivered first: its socket keeps that after RST, and nothing can follow it. A
 * leg that still lives could send for ever, so DRAIN_BYTES limits it. Nothing is delivered of a leg that floods the engine,
 * or if there is no memory to keep it.
 *
 * Thread: own
 */
static void end_broken(struct bp_thread *t, bp_splice *s) {
    int reason = atomic_load(&s->reason), error = atomic_load(&s->error), broken = s->broken;
    BP_ASSERT(reason != BP_LIVE && broken != NO_LEG);
    if (reason != BP_NO_MEMORY && reason != BP_CLIENT_TLS_FLOOD && reason != BP_SATELLITE_TLS_FLOOD) {
        size_t turn_bytes = t->turn_bytes;
        t->turn_bytes = DRAIN_BYTES;
        (void)bp__pump(t, s, (enum leg_id)broken);
        t->turn_bytes = turn_bytes;
    }
    s->broken = broken; /* the first failure is the one to report */
    bp__splice_end(t, s, (enum bp_reason)reason, error);
}

/**
 * bp__splice_run() - Pump directions, then do what follows: end the splice, wait for events, or go on in a turn to come
 * @t: Thread
 * @s: Live splice
 * @directions: FROM(CLIENT), FROM(SATELLITE) or BOTH
 *
 * Thread: own
 */
void bp__splice_run(struct bp_thread *t, bp_splice *s, unsigned directions) {
    bool more = false;
    BP_CHECK_SPLICE(t, s);
    BP_ASSERT(atomic_load(&s->reason) == BP_LIVE);
    BP_ASSERT(!(directions & ~BOTH));
    for (int id = CLIENT; id <= SATELLITE; id++) {
        if (!(directions & FROM(id)))
            continue;
        enum pump_result r = bp__pump(t, s, (enum leg_id)id);
        if (r == PUMP_FAILED) {
            end_broken(t, s);
            return;
        }
        more |= r == PUMP_MORE;
    }
    if (s->direction[CLIENT].shut && s->direction[SATELLITE].shut) {
        bp__splice_end(t, s, s->truncated ? (enum bp_reason)s->truncated : BP_CLOSED, 0);
        return;
    }
    if (s->giving_back && !bp__direction_in_flight(&s->direction[CLIENT]) &&
        !bp__direction_in_flight(&s->direction[SATELLITE])) {
        bp__splice_end(t, s, BP_GIVEN_BACK, 0);
        return;
    }
    int r = update_interest(t, s);
    if (r < 0) {
        bp__splice_end(t, s, BP_NO_MEMORY, -r);
        return;
    }
    if (more)
        bp__ready(t, s);
    BP_CHECK_WAITS(t, s);
}

/**
 * bp__splice_event() - Serve an event of a leg
 * @t: Thread
 * @s: Splice; nothing happens if it has ended
 * @id: Leg
 * @events: What epoll_wait(2) reported
 *
 * Thread: own
 */
void bp__splice_event(struct bp_thread *t, bp_splice *s, enum leg_id id, uint32_t events) {
    if (atomic_load_explicit(&s->reason, memory_order_relaxed) != BP_LIVE)
        return;
    BP_CHECK_SPLICE(t, s);
    const struct direction *out = &s->direction[id], *in = &s->direction[1 - id]; /* from, and to, this leg */
    bool reads = !out->eof && !s->giving_back && !bp__direction_in_flight(out);
    /* epoll would report a broken leg again and again while nothing reads it: end the splice here. If the leg is read, the
     * read returns the error, after the last bytes. */
    if ((events & EPOLLERR) && !reads) {
        int error = 0;
        socklen_t bytes = sizeof error;
        (void)getsockopt(s->leg[id].fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
        bp__fail(s, id, error ? -error : -ECONNRESET);
        end_broken(t, s);
        return;
    }
    if (s->ready) /* both directions go on in this turn or the next: twice in one turn would be more than a share */
        return;
    /* Only the system calls that the event asks for: a needless one is a third of the price of a small message. */
    unsigned directions = 0;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        directions |= FROM(id) | (in->write_wants_read ? FROM(1 - id) : 0);
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        directions |= FROM(1 - id) | (out->read_wants_write ? FROM(id) : 0);
    bp__splice_run(t, s, directions);
}

/**
 * bp__splice_adopt() - Put a splice on the thread's list; it runs in this turn or the next
 * @t: Thread
 * @s: Splice from the mailbox
 *
 * Thread: own
 */
void bp__splice_adopt(struct bp_thread *t, bp_splice *s) {
    BP_ASSERT(s->thread == t);
    s->next = t->splices;
    s->previous = NULL;
    if (t->splices)
        t->splices->previous = s;
    t->splices = s;
    atomic_store(&s->last_activity_ms, t->now_ms);
    bp__ready(t, s);
    BP_CHECK_SPLICE(t, s);
}

/**
 * unacknowledged() - Whether the peer has not acknowledged everything that was sent
 * @fd: Borrows
 *
 * Return: whether TCP still has bytes for it (tcp(7), SIOCOUTQ)
 * Thread: own
 */
static bool unacknowledged(int fd) {
    int bytes = 0;
    return ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0;
}

/**
 * discard() - Read a socket empty, because a close with unread bytes would send RST
 * @fd: Borrows
 *
 * Thread: own
 */
static void discard(int fd) {
    for (int i = 0; i < DISCARD_READS; i++)
        if (recv(fd, NULL, SCRATCH_BYTES, MSG_DONTWAIT | MSG_TRUNC) <= 0)
            return;
}

/**
 * close_leg() - Free a leg's TLS and close its socket
 * @leg: Leg
 * @reset: Whether the peer gets RST
 * @spare_unacknowledged: But FIN if it has not acknowledged everything
 *
 * Thread: own
 */
static void close_leg(struct leg *leg, bool reset, bool spare_unacknowledged) {
    static const struct linger rst = {.l_onoff = 1, .l_linger = 0};
    BP_ASSERT(leg->fd >= 0 && !leg->registered);
    if (reset && spare_unacknowledged && unacknowledged(leg->fd)) {
        (void)shutdown(leg->fd, SHUT_WR);
        discard(leg->fd);
    } else if (reset)
        (void)setsockopt(leg->fd, SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
    bp_tls_free(leg->tls);
    leg->tls = NULL;
    (void)close(leg->fd);
    leg->fd = -1;
}

/**
 * bp__splice_end() - End a splice: close its legs unless they are given back, and take it off the thread's list
 * @t: Thread
 * @s: Splice that has not ended; the caller retires it (thread.c), since events and the ready list may still refer to it
 * @reason: Why
 * @error: errno behind it, or 0
 *
 * Thread: own
 */
void bp__splice_end(struct bp_thread *t, bp_splice *s, enum bp_reason reason, int error) {
    bool clean = reason == BP_CLOSED || reason == BP_CLIENT_TRUNCATED || reason == BP_SATELLITE_TRUNCATED;
    BP_CHECK_SPLICE(t, s);
    BP_ASSERT(reason > BP_LIVE && reason < BP_REASONS && error >= 0);
    for (int id = CLIENT; id <= SATELLITE; id++) {
        struct direction *d = &s->direction[id];
        BP_ASSERT((reason != BP_CLOSED && reason != BP_GIVEN_BACK) || !bp__direction_in_flight(d));
        bp__pipe_put(t, d->pipe, d->in_pipe);
        free(d->stash);
        d->stash = NULL;
        watch(t, &s->leg[id], 0, false);
        if (reason == BP_GIVEN_BACK)
            continue;
        close_leg(&s->leg[id], !clean, s->broken == 1 - id);
    }
    if (s->previous)
        s->previous->next = s->next;
    else
        t->splices = s->next;
    if (s->next)
        s->next->previous = s->previous;
    BP_ASSERT(atomic_load(&t->live) > 0);
    atomic_store(&s->error, error);
    atomic_store(&s->reason, (int)reason);
    atomic_fetch_sub(&t->live, 1);
}

/**
 * bp__splice_tick() - Let starved directions try again, and end the splice if it is over a timeout
 * @t: Thread
 * @s: Live splice
 *
 * Thread: own
 */
void bp__splice_tick(struct bp_thread *t, bp_splice *s) {
    const struct bp_options *options = &t->engine->options;
    uint64_t last_ms = atomic_load_explicit(&s->last_activity_ms, memory_order_relaxed);
    BP_CHECK_SPLICE(t, s);
    if (s->direction[CLIENT].starved || s->direction[SATELLITE].starved) {
        s->direction[CLIENT].starved = s->direction[SATELLITE].starved = false;
        bp__splice_run(t, s, BOTH);
        if (atomic_load_explicit(&s->reason, memory_order_relaxed) != BP_LIVE)
            return;
    }
    bool half = s->direction[CLIENT].shut != s->direction[SATELLITE].shut;
    uint64_t quiet_since_ms = half && s->half_closed_ms > last_ms ? s->half_closed_ms : last_ms;
    BP_ASSERT(quiet_since_ms <= t->now_ms);
    if (half && options->half_closed_timeout_s &&
        t->now_ms - quiet_since_ms >= options->half_closed_timeout_s * 1000ull)
        bp__splice_end(t, s, BP_HALF_CLOSED_TIMEOUT, 0);
    else if (options->idle_timeout_s && t->now_ms - last_ms >= options->idle_timeout_s * 1000ull)
        bp__splice_end(t, s, BP_IDLE_TIMEOUT, 0);
}
