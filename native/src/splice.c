/* One splice: two legs, two directions, and what each event means.
 *
 * How it ends (each row tested):
 *   source sends FIN          -> the rest is delivered, then FIN to the destination; the other direction goes on
 *   both directions ended     -> close both, CLOSED (or *_TRUNCATED if a TLS peer gave no close_notify)
 *   RST or error on one leg   -> what it said before goes to the other, then RST; behind bytes that the other's peer
 *                                has not acknowledged yet, FIN, since a RST would destroy them; *_RESET, *_TIMEOUT
 *                                (a silent peer is an error too: keepalive and TCP_USER_TIMEOUT, set in engine.c)
 *   close_notify              -> as FIN; to a leg whose TLS is the kernel's FIN waits until its records are with TCP
 *   records without data      -> over a rate *_TLS_FLOOD, which is RST to both (tls_meter.c)
 *   KeyUpdate for the kernel  -> *_TLS_ERROR, as a record that does not decrypt
 *   TLS FIN, no close_notify  -> as FIN, but the way back is dead: what still comes for it ends both, *_TRUNCATED
 *   no memory for a moment    -> that direction is quiet until the next tick; none to keep what was read: NO_MEMORY
 *   one ended, other silent   -> RST both after half_closed_timeout
 *   nothing for idle_timeout  -> RST both
 *   abort, engine close       -> RST both
 *   give back                 -> what was read is delivered, nothing more is read, both sockets are kept: GIVEN_BACK
 * When both have sent FIN nothing is left unread, so the plain close never destroys anything by sending RST.
 */
#include "internal.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define DISCARD_READS 64 /* of SCRATCH_BYTES: more than a socket's default receive buffer holds */

/* An epoll pointer is the leg; its splice is found from the leg's place in it. */
static int watch(struct bp_thread *t, struct leg *leg, uint32_t wanted, bool keep) {
    struct epoll_event event = {.events = wanted, .data.ptr = leg};
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
        /* EPOLLHUP and EPOLLERR are reported whether wanted or not (epoll_ctl(2)), and the peer's FIN behind ours is a
         * hang-up: while nothing can be done about it, by edge, or the thread would spin until something can. */
        if (!wanted)
            wanted = EPOLLET;
        /* A leg that is done both ways would report EPOLLHUP for ever. */
        int r = watch(t, &s->leg[id], wanted, !(out->eof && in->shut));
        if (r < 0)
            return r;
    }
    return 0;
}

/* A leg has failed: hands its last words to the other leg, then ends. A dead leg's receive queue outlives the RST, and is
 * all that there is of it. One that lives would go on and on: for one that floods us, or with no memory for what is said,
 * there are no last words, for others they are bounded. */
static void end_broken(struct bp_thread *t, bp_splice *s) {
    int reason = atomic_load(&s->reason), error = atomic_load(&s->error), broken = s->broken;
    if (reason != BP_NO_MEMORY && reason != BP_CLIENT_TLS_FLOOD && reason != BP_SATELLITE_TLS_FLOOD) {
        size_t turn_bytes = t->turn_bytes;
        t->turn_bytes = LAST_WORDS_BYTES;
        (void)bp__pump(t, s, (enum leg_id)broken);
        t->turn_bytes = turn_bytes;
    }
    s->broken = broken; /* the first failure is the one to report */
    bp__splice_end(t, s, (enum bp_reason)reason, error);
}

void bp__splice_run(struct bp_thread *t, bp_splice *s, unsigned directions) {
    bool more = false;
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
}

void bp__splice_event(struct bp_thread *t, bp_splice *s, enum leg_id id, uint32_t events) {
    if (atomic_load_explicit(&s->reason, memory_order_relaxed) != BP_LIVE)
        return;
    const struct direction *out = &s->direction[id], *in = &s->direction[1 - id]; /* from, and to, this leg */
    bool reads = !out->eof && !s->giving_back && !bp__direction_in_flight(out);
    /* A broken leg that nobody reads now would be reported again and again: end it here. One that is read reports its
     * error by the read, behind the last bytes. */
    if ((events & EPOLLERR) && !reads) {
        int error = 0;
        socklen_t bytes = sizeof error;
        (void)getsockopt(s->leg[id].fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
        bp__fail(s, id, error ? -error : -ECONNRESET);
        end_broken(t, s);
        return;
    }
    if (s->ready) /* both directions go on in this turn or the next: twice in one would be more than a share */
        return;
    /* A system call that an event does not ask for is a third of the price of a small message. */
    unsigned directions = 0;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        directions |= FROM(id) | (in->write_wants_read ? FROM(1 - id) : 0);
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        directions |= FROM(1 - id) | (out->read_wants_write ? FROM(id) : 0);
    bp__splice_run(t, s, directions);
}

void bp__splice_adopt(struct bp_thread *t, bp_splice *s) {
    s->next = t->splices;
    s->previous = NULL;
    if (t->splices)
        t->splices->previous = s;
    t->splices = s;
    atomic_store(&s->last_activity_ms, t->now_ms);
    bp__ready(t, s);
}

static bool unacknowledged(int fd) {
    int bytes = 0;
    return ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0;
}

/* A close with unread bytes would send RST. */
static void discard(int fd) {
    for (int i = 0; i < DISCARD_READS; i++)
        if (recv(fd, NULL, SCRATCH_BYTES, MSG_DONTWAIT | MSG_TRUNC) <= 0)
            return;
}

static void close_leg(struct leg *leg, bool reset, bool heed_unacknowledged) {
    static const struct linger rst = {.l_onoff = 1, .l_linger = 0};
    if (reset && heed_unacknowledged && unacknowledged(leg->fd)) {
        (void)shutdown(leg->fd, SHUT_WR);
        discard(leg->fd);
    } else if (reset)
        (void)setsockopt(leg->fd, SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
    bp_tls_free(leg->tls);
    leg->tls = NULL;
    (void)close(leg->fd);
    leg->fd = -1;
}

void bp__splice_end(struct bp_thread *t, bp_splice *s, enum bp_reason reason, int error) {
    bool clean = reason == BP_CLOSED || reason == BP_CLIENT_TRUNCATED || reason == BP_SATELLITE_TRUNCATED;
    for (int id = CLIENT; id <= SATELLITE; id++) {
        struct direction *d = &s->direction[id];
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
    atomic_store(&s->error, error);
    atomic_store(&s->reason, (int)reason);
    atomic_fetch_sub(&t->live, 1);
    /* One on the ready list, or with an event still in this batch, is handed out later: see thread.c. */
}

void bp__splice_tick(struct bp_thread *t, bp_splice *s) {
    const struct bp_options *options = &t->engine->options;
    uint64_t last_ms = atomic_load_explicit(&s->last_activity_ms, memory_order_relaxed);
    if (s->direction[CLIENT].starved || s->direction[SATELLITE].starved) {
        s->direction[CLIENT].starved = s->direction[SATELLITE].starved = false;
        bp__splice_run(t, s, BOTH);
        if (atomic_load_explicit(&s->reason, memory_order_relaxed) != BP_LIVE)
            return;
    }
    bool half = s->direction[CLIENT].shut != s->direction[SATELLITE].shut;
    uint64_t quiet_since_ms = half && s->half_closed_ms > last_ms ? s->half_closed_ms : last_ms;
    if (half && options->half_closed_timeout_s &&
        t->now_ms - quiet_since_ms >= options->half_closed_timeout_s * 1000ull)
        bp__splice_end(t, s, BP_HALF_CLOSED_TIMEOUT, 0);
    else if (options->idle_timeout_s && t->now_ms - last_ms >= options->idle_timeout_s * 1000ull)
        bp__splice_end(t, s, BP_IDLE_TIMEOUT, 0);
}
