/* The pump: one direction of a splice, by copy or by splice(2).
 *
 * Copy first: recv and send through the thread's scratch buffer win for small messages. A direction that fills several
 * reads in a row is a stream and goes through a pipe, if both ends are plain or the kernel does their TLS; it goes back
 * when it falls quiet.
 * Only a return of 0 is EOF. A short splice is not: the pipe may have been full. No SPLICE_F_MORE: it corks the last
 * part of a message for up to 200 ms (tcp(7), MSG_MORE).
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SPLICE_BYTES (1u << 20)
#define TELLS 16 /* how often an end is told as soon as the destination is writable; then once a tick */

bool bp__direction_in_flight(const struct direction *d) { return d->in_pipe || d->stash_bytes; }

static int truncated_reason(enum leg_id leg) { return leg == CLIENT ? BP_CLIENT_TRUNCATED : BP_SATELLITE_TRUNCATED; }

void bp__fail(bp_splice *s, enum leg_id leg, int why) {
    static const int reset[2] = {BP_CLIENT_RESET, BP_SATELLITE_RESET};
    static const int timeout[2] = {BP_CLIENT_TIMEOUT, BP_SATELLITE_TIMEOUT};
    static const int tls[2] = {BP_CLIENT_TLS_ERROR, BP_SATELLITE_TLS_ERROR};
    int reason = reset[leg];
    static const int flood[2] = {BP_CLIENT_TLS_FLOOD, BP_SATELLITE_TLS_FLOOD};
    if (why == BP_TLS_CONTROL_FLOOD || why == BP_TLS_HANDSHAKE_FLOOD)
        reason = flood[leg];
    else if (why == BP_TLS_ERROR || why == BP_TLS_TRUNCATED || why == -EBADMSG)
        reason = tls[leg]; /* EBADMSG: the kernel could not decrypt */
    else if (why == -ETIMEDOUT || why == -EHOSTUNREACH || why == -ENETUNREACH)
        reason = timeout[leg];
    else if (why == -ENOMEM)
        reason = BP_NO_MEMORY;
    /* OpenSSL writes no more on a connection whose reading side was cut, and a peer that is gone answers with RST: both
     * are the cut's doing. */
    if (s->leg[leg].truncated && (reason == tls[leg] || reason == reset[leg]))
        reason = truncated_reason(leg);
    s->broken = leg;
    atomic_store(&s->error, why > BP_TLS_WANT_READ ? -why : 0);
    atomic_store(&s->reason, reason);
}

/* The kernel is short of memory for the moment; nothing is wrong with the peer (tcp(7), splice(2)). */
static bool starves(ssize_t result) { return result == -ENOBUFS || result == -ENOMEM; }

static void note_truncation(bp_splice *s, struct leg *leg) {
    leg->truncated = true;
    if (!s->truncated)
        s->truncated = truncated_reason((enum leg_id)leg->id);
}

/* Reads from a leg: > 0, 0 at EOF, -EAGAIN, or another failure. more: whether the leg may have more that epoll, which is
 * level-triggered, does not tell of; a short read has emptied the socket. */
static ssize_t leg_read(bp_splice *s, struct direction *d, struct leg *leg, char *buffer, bool *ret_more) {
    ssize_t got;
    if (!leg->tls) {
        do
            got = recv(leg->fd, buffer, SCRATCH_BYTES, MSG_DONTWAIT);
        while (got < 0 && errno == EINTR);
        *ret_more = got == SCRATCH_BYTES;
        return got < 0 ? -errno : got;
    }
    d->read_wants_write = false;
    got = bp_tls_read(leg->tls, buffer, SCRATCH_BYTES);
    *ret_more = got != BP_TLS_WANT_READ && bp__tls_has_pending(leg->tls);
    if (got == BP_TLS_TRUNCATED) {
        note_truncation(s, leg);
        return 0;
    }
    if (got == BP_TLS_WANT_WRITE)
        d->read_wants_write = true;
    return got == BP_TLS_WANT_READ || got == BP_TLS_WANT_WRITE ? -EAGAIN : got;
}

static ssize_t leg_write(struct direction *d, struct leg *leg, const char *data, size_t bytes) {
    ssize_t put;
    if (leg->truncated)
        return BP_TLS_TRUNCATED;
    if (!leg->tls) {
        do
            put = send(leg->fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (put < 0 && errno == EINTR);
        return put < 0 ? -errno : put;
    }
    d->write_wants_read = false;
    put = bp_tls_write(leg->tls, data, bytes);
    if (put == BP_TLS_WANT_READ)
        d->write_wants_read = true;
    return put == BP_TLS_WANT_READ || put == BP_TLS_WANT_WRITE ? -EAGAIN : put;
}

/* One thread writes, others only read: no locked instruction is needed. */
static void count(_Atomic uint64_t *counter, size_t bytes) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + bytes, memory_order_relaxed);
}

static void delivered(struct bp_thread *t, bp_splice *s, struct direction *d, size_t bytes, bool spliced) {
    count(&d->bytes, bytes);
    atomic_store_explicit(&s->last_activity_ms, t->now_ms, memory_order_relaxed);
    count(spliced ? &t->spliced_bytes : &t->copied_bytes, bytes);
    if (spliced)
        count(&s->spliced_bytes, bytes);
}

/* Writes all of data, or keeps the rest in the stash. 0, or a failure of the destination. */
static int write_or_stash(struct bp_thread *t, bp_splice *s, struct direction *d, struct leg *to, const char *data,
                          size_t bytes) {
    while (bytes) {
        ssize_t put = leg_write(d, to, data, bytes);
        d->starved = starves(put);
        if (put == -EAGAIN || d->starved)
            break;
        if (put < 0)
            return (int)put;
        delivered(t, s, d, (size_t)put, false);
        data += put;
        bytes -= (size_t)put;
    }
    if (!bytes)
        return 0;
    d->stash = malloc(bytes);
    if (!d->stash)
        return -ENOMEM;
    memcpy(d->stash, data, bytes);
    d->stash_at = 0;
    d->stash_bytes = bytes;
    return 0;
}

/* Delivers what is in flight. 0 if nothing is left, -EAGAIN if the destination is full, or its failure. */
static int flush(struct bp_thread *t, bp_splice *s, struct direction *d, struct leg *to) {
    while (d->stash_bytes) {
        ssize_t put = leg_write(d, to, d->stash + d->stash_at, d->stash_bytes);
        if (put < 0)
            return (int)put;
        delivered(t, s, d, (size_t)put, false);
        d->stash_at += (size_t)put;
        d->stash_bytes -= (size_t)put;
        if (!d->stash_bytes) {
            free(d->stash);
            d->stash = NULL;
        }
    }
    while (d->in_pipe) {
        if (to->truncated)
            return BP_TLS_TRUNCATED;
        ssize_t put = splice(d->pipe[0], NULL, to->fd, NULL, d->in_pipe, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        if (put == 0)
            return -EAGAIN; /* never seen for a pipe with data; wait rather than spin */
        if (to->tls)
            bp__tls_spliced(to->tls, (size_t)put);
        delivered(t, s, d, (size_t)put, true);
        d->in_pipe -= (size_t)put;
    }
    return 0;
}

static void leave_stream(struct bp_thread *t, struct direction *d) {
    d->streaming = false;
    d->full_reads = d->small_reads = 0;
    bp__pipe_put(t, d->pipe, d->in_pipe);
}

static void consider_stream(struct bp_thread *t, struct direction *d, const struct leg *from, const struct leg *to,
                            size_t got) {
    enum bp_splice_mode mode = t->engine->options.splice;
    if (mode == BP_SPLICE_OFF || d->no_splice || !from->splices_in || !to->splices_out)
        return;
    if (from->tls && bp__tls_has_pending(from->tls))
        return; /* OpenSSL has a part of the stream, or its end, that the socket no longer has */
    size_t full = from->tls ? FULL_RECORD_BYTES : FULL_READ_BYTES;
    d->full_reads = got >= full ? (uint8_t)(d->full_reads + 1) : 0;
    if ((d->full_reads >= STREAM_READS || mode == BP_SPLICE_ALWAYS) && !bp__direction_in_flight(d)) {
        d->full_reads = 0;
        d->streaming = bp__pipe_get(t, d->pipe);
    }
}

/* One read into the empty pipe: > 0, 0 at EOF, -EAGAIN, -EINVAL or -ENOMEM to copy instead, or the source's failure. */
static ssize_t splice_in(struct direction *d, const struct leg *from) {
    ssize_t got;
    do
        got = splice(from->fd, NULL, d->pipe[1], NULL, SPLICE_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    d->in_pipe = (size_t)got;
    d->small_reads = got >= SMALL_READ_BYTES ? 0 : (uint8_t)(d->small_reads + 1);
    return got;
}

/* What a read has cost, in bytes: more than it brought if that was little, or came in small records. */
static size_t cost_of(const struct leg *from, const struct direction *d, size_t got) {
    size_t cost = from->tls && !d->streaming ? bp__tls_cost(from->tls) : got;
    return cost > STEP_COST ? cost : STEP_COST;
}

/* Tells the destination that its source has ended. 0, -EAGAIN if close_notify waits for room, or its failure. */
static int tell(struct bp_thread *t, bp_splice *s, struct direction *d, const struct leg *to) {
    int sent = to->tls ? bp_tls_shutdown(to->tls) : 0;
    d->notify_waits = sent == BP_TLS_WANT_WRITE;
    if (d->notify_waits) {
        /* Writable, and still not done: the kernel's TLS is about to pass on what it queued. Not to be asked for ever. */
        d->starved = d->tells >= TELLS;
        d->tells += !d->starved;
        return -EAGAIN;
    }
    if (sent < 0)
        return sent;
    (void)shutdown(to->fd, SHUT_WR); /* an error here is the leg's own: its reads will tell */
    d->shut = true;
    s->half_closed_ms = t->now_ms;
    leave_stream(t, d);
    return 0;
}

enum pump_result bp__pump(struct bp_thread *t, bp_splice *s, enum leg_id id) {
    struct leg *from = &s->leg[id], *to = &s->leg[1 - id];
    struct direction *d = &s->direction[id];
    size_t cost = 0;
    if (d->shut)
        return PUMP_BLOCKED;
    for (;;) {
        int flushed = flush(t, s, d, to);
        d->starved = starves(flushed);
        if (flushed == -EAGAIN || d->starved)
            return PUMP_BLOCKED;
        if (flushed < 0) {
            bp__fail(s, (enum leg_id)(1 - id), flushed);
            return PUMP_FAILED;
        }
        if (d->eof && s->broken == (int)id)
            return PUMP_BLOCKED; /* not an end: once its error was read, a broken socket reads as EOF */
        if (d->eof) {
            int told = tell(t, s, d, to);
            if (starves(told))
                d->starved = true;
            if (told == 0 || told == -EAGAIN || d->starved)
                return PUMP_BLOCKED;
            bp__fail(s, (enum leg_id)(1 - id), told);
            return PUMP_FAILED;
        }
        if (d->streaming && d->small_reads >= QUIET_READS && t->engine->options.splice != BP_SPLICE_ALWAYS)
            leave_stream(t, d);
        if (s->giving_back)
            return PUMP_BLOCKED;
        if (cost >= t->turn_bytes)
            return PUMP_MORE;
        bool more = true;
        ssize_t got = d->streaming ? splice_in(d, from) : leg_read(s, d, from, t->scratch, &more);
        if (got == -EAGAIN) {
            if (d->streaming && t->engine->options.splice != BP_SPLICE_ALWAYS && d->small_reads)
                leave_stream(t, d);
            return PUMP_BLOCKED;
        }
        if (d->streaming && (got == -EINVAL || got == -ENOMEM)) {
            /* From a TLS socket EINVAL is a control record, which OpenSSL has to see (tls_sw.c, tls_sw_splice_read). */
            d->no_splice = got == -EINVAL && !from->tls;
            leave_stream(t, d);
            continue;
        }
        d->starved = starves(got);
        if (d->starved)
            return PUMP_BLOCKED;
        if (got < 0) {
            bp__fail(s, id, (int)got);
            return PUMP_FAILED;
        }
        if (got == 0 && d->streaming && from->tls) {
            /* FIN, or a record without data: OpenSSL will tell which, close_notify is none of both. */
            leave_stream(t, d);
            continue;
        }
        if (got == 0) {
            d->eof = true;
            continue;
        }
        cost += cost_of(from, d, (size_t)got);
        if (d->streaming)
            continue;
        int written = write_or_stash(t, s, d, to, t->scratch, (size_t)got);
        if (written < 0) {
            bp__fail(s, (enum leg_id)(1 - id), written);
            return PUMP_FAILED;
        }
        consider_stream(t, d, from, to, (size_t)got);
        if (!more && !d->streaming)
            return PUMP_BLOCKED;
    }
}
