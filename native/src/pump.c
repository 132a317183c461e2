/* The pump: one direction of a splice, by copy or by splice(2).
 *
 * Copy first: recv and send through the thread's scratch buffer are cheapest for small messages. A direction that fills
 * several reads in a row is a stream and goes through a pipe, if both legs are plain or the kernel does their TLS. When it
 * falls quiet, it copies again.
 * Only a return of 0 is EOF. A short splice is not: the pipe may have been full. No SPLICE_F_MORE: it delays the last part
 * of a message for up to 200 ms (tcp(7), MSG_MORE).
 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SPLICE_BYTES (1u << 20)
#define END_TRIES 16 /* how often the end is sent as soon as the destination is writable; then once a tick */

/**
 * bp__direction_in_flight() - Whether something was read and is not delivered
 * @d: Direction
 *
 * Return: whether bytes are in its pipe, in records of its destination, or in its stash
 * Thread: own
 */
bool bp__direction_in_flight(const struct direction *d) { return d->in_pipe || d->in_tls || d->stash_bytes; }

/**
 * failed() - bp__fail(), for a return
 * @s: Splice
 * @leg: The leg
 * @why: A negative errno, or of enum bp_tls_result
 *
 * Return: PUMP_FAILED
 * Thread: own
 */
static enum pump_result failed(bp_splice *s, enum leg_id leg, int why) {
    bp__fail(s, leg, why);
    return PUMP_FAILED;
}

/**
 * starves() - Whether a result means that the kernel is short of memory for the moment (tcp(7), splice(2))
 * @result: A negative errno, or anything else
 *
 * Return: whether it does; nothing is wrong with the peer then
 * Thread: any
 */
static bool starves(ssize_t result) { return result == -ENOBUFS || result == -ENOMEM; }

/**
 * leg_read() - Read from a leg without waiting
 * @s: Splice
 * @d: The direction that the leg is the source of
 * @leg: Leg
 * @buffer: Receives up to SCRATCH_BYTES
 * @ret_more: Receives whether the leg may have more that epoll, which is level-triggered, does not report; after a short
 *            read the socket is empty
 *
 * Return: number of bytes, 0 at EOF, -EAGAIN, or the leg's failure
 * Thread: own
 */
static ssize_t leg_read(bp_splice *s, struct direction *d, struct leg *leg, char *buffer, bool *ret_more) {
    ssize_t got;
    BP_ASSERT(!bp__direction_in_flight(d) && !d->eof && !d->streaming);
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
        bp__note_truncation(s, leg);
        return 0;
    }
    if (got == BP_TLS_WANT_WRITE)
        d->read_wants_write = true;
    return got == BP_TLS_WANT_READ || got == BP_TLS_WANT_WRITE ? -EAGAIN : got;
}

/**
 * leg_write() - Write to a leg without waiting
 * @t: Thread
 * @d: The direction that the leg is the destination of
 * @leg: Leg
 * @data: Bytes
 * @bytes: How many, at least 1
 *
 * Return: number of bytes that the leg has taken, of which d->in_tls are not delivered yet; -EAGAIN, or the leg's failure
 * Thread: own
 */
static ssize_t leg_write(struct bp_thread *t, struct direction *d, struct leg *leg, const char *data, size_t bytes) {
    ssize_t put;
    BP_ASSERT(bytes > 0 && !d->shut && !d->in_tls);
    if (leg->truncated)
        return BP_TLS_TRUNCATED;
    if (!leg->tls) {
        do
            put = send(leg->fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (put < 0 && errno == EINTR);
        return put < 0 ? -errno : put;
    }
    d->write_wants_read = false;
    put = bp__tls_write_records(leg->tls, data, bytes, &t->batch);
    d->in_tls = bp__tls_unsent(leg->tls);
    if (put == BP_TLS_WANT_READ)
        d->write_wants_read = true;
    return put == BP_TLS_WANT_READ || put == BP_TLS_WANT_WRITE ? -EAGAIN : put;
}

/**
 * count() - Add to a counter, without a locked instruction
 * @counter: Written by this thread alone
 * @bytes: How much
 *
 * Thread: own
 */
static void count(_Atomic uint64_t *counter, size_t bytes) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + bytes, memory_order_relaxed);
}

/**
 * delivered() - Count bytes that the destination has taken
 * @t: Thread
 * @s: Splice
 * @d: Direction
 * @bytes: How many
 * @spliced: By splice(2), not by copy
 *
 * Thread: own
 */
static void delivered(struct bp_thread *t, bp_splice *s, struct direction *d, size_t bytes, bool spliced) {
    if (!bytes)
        return;
    if (d == &s->direction[SATELLITE] && !atomic_load_explicit(&d->bytes, memory_order_relaxed))
        atomic_store_explicit(&s->first_down_ms, t->now_ms, memory_order_relaxed);
    count(&d->bytes, bytes);
    atomic_store_explicit(&s->last_activity_ms, t->now_ms, memory_order_relaxed);
    count(spliced ? &t->spliced_bytes : &t->copied_bytes, bytes);
    if (spliced)
        count(&s->spliced_bytes, bytes);
    BP_DEBUG_ONLY(BP_ASSERT(atomic_load(&d->bytes) <= d->taken));
}

/**
 * write_or_stash() - Write bytes to the destination, and keep in the stash what it does not take
 * @t: Thread
 * @s: Splice
 * @d: Direction, with nothing in flight
 * @to: Destination
 * @data: Bytes
 * @bytes: How many, at most SCRATCH_BYTES
 *
 * Return: 0, or the failure of the destination; -ENOMEM: the rest could not be kept
 * Thread: own
 */
static int write_or_stash(struct bp_thread *t, bp_splice *s, struct direction *d, struct leg *to, const char *data,
                          size_t bytes) {
    BP_ASSERT(bytes <= SCRATCH_BYTES && !bp__direction_in_flight(d) && !d->stash);
    while (bytes) {
        ssize_t put = leg_write(t, d, to, data, bytes);
        d->starved = starves(put);
        if (put == -EAGAIN || d->starved)
            break;
        if (put < 0)
            return (int)put;
        BP_ASSERT((size_t)put <= bytes);
        delivered(t, s, d, (size_t)put - d->in_tls, false);
        data += put;
        bytes -= (size_t)put;
        if (d->in_tls)
            break;
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

/**
 * flush() - Deliver what is in flight
 * @t: Thread
 * @s: Splice
 * @d: Direction
 * @to: Destination
 *
 * Return: 0 if nothing is left, -EAGAIN if the destination is full, or its failure
 * Thread: own
 */
static int flush(struct bp_thread *t, bp_splice *s, struct direction *d, struct leg *to) {
    while (d->in_tls) {
        if (to->truncated)
            return BP_TLS_TRUNCATED;
        ssize_t put = bp__tls_flush(to->tls, &t->batch);
        if (put < 0)
            return put == BP_TLS_WANT_WRITE ? -EAGAIN : (int)put;
        BP_ASSERT((size_t)put <= d->in_tls);
        delivered(t, s, d, (size_t)put, false);
        d->in_tls -= (size_t)put;
    }
    while (d->stash_bytes) {
        ssize_t put = leg_write(t, d, to, d->stash + d->stash_at, d->stash_bytes);
        if (put < 0)
            return (int)put;
        BP_ASSERT((size_t)put <= d->stash_bytes);
        delivered(t, s, d, (size_t)put - d->in_tls, false);
        d->stash_at += (size_t)put;
        d->stash_bytes -= (size_t)put;
        if (!d->stash_bytes) {
            free(d->stash);
            d->stash = NULL;
        }
        if (d->in_tls)
            return -EAGAIN;
    }
    while (d->in_pipe) {
        BP_ASSERT(d->pipe[0] >= 0 && to->splices_out);
        if (to->truncated)
            return BP_TLS_TRUNCATED;
        ssize_t put = splice(d->pipe[0], NULL, to->fd, NULL, d->in_pipe, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        if (put == 0)
            return -EAGAIN; /* never seen for a pipe with data; wait rather than spin */
        BP_ASSERT((size_t)put <= d->in_pipe);
        if (to->tls)
            bp__tls_spliced(to->tls, (size_t)put);
        delivered(t, s, d, (size_t)put, true);
        d->in_pipe -= (size_t)put;
    }
    return 0;
}

/**
 * leave_stream() - Go back to copying, and give the pipe back
 * @t: Thread
 * @d: Direction, with an empty pipe or none
 *
 * Thread: own
 */
static void leave_stream(struct bp_thread *t, struct direction *d) {
    BP_ASSERT(!d->in_pipe);
    d->streaming = false;
    d->full_reads = d->small_reads = 0;
    bp__pipe_put(t, d->pipe, d->in_pipe);
}

/**
 * consider_stream() - After a copy: stream from now on if this and the reads before were full
 * @t: Thread
 * @d: Direction
 * @from: Source
 * @to: Destination
 * @got: Bytes that the copy read
 *
 * Thread: own
 */
static void consider_stream(struct bp_thread *t, struct direction *d, const struct leg *from, const struct leg *to,
                            size_t got) {
    enum bp_splice_mode mode = t->engine->options.splice;
    BP_ASSERT(!d->streaming);
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

/**
 * splice_in() - One read of the source into the empty pipe
 * @d: Direction that streams
 * @from: Source
 *
 * Return: number of bytes, 0 at EOF, -EAGAIN, -EINVAL or -ENOMEM to copy instead, or the source's failure
 * Thread: own
 */
static ssize_t splice_in(struct direction *d, const struct leg *from) {
    ssize_t got;
    BP_ASSERT(d->streaming && !d->in_pipe && !d->stash_bytes && !d->eof);
    do
        got = splice(from->fd, NULL, d->pipe[1], NULL, SPLICE_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    d->in_pipe = (size_t)got;
    d->small_reads = got >= SMALL_READ_BYTES ? 0 : (uint8_t)(d->small_reads + 1);
    BP_DEBUG_ONLY(d->taken += (size_t)got);
    return got;
}

/**
 * cost_of() - What a read has cost
 * @from: Source
 * @d: Direction
 * @got: Bytes that the read brought
 *
 * Return: the cost in bytes: more than @got if that was little, or came in small records
 * Thread: own
 */
static size_t cost_of(const struct leg *from, const struct direction *d, size_t got) {
    size_t cost = from->tls && !d->streaming ? bp__tls_cost(from->tls) : got;
    return cost > STEP_COST ? cost : STEP_COST;
}

/**
 * send_end() - Tell the destination that its source has ended
 * @t: Thread
 * @s: Splice
 * @d: Direction, with nothing in flight
 * @to: Destination
 *
 * Return: 0, -EAGAIN if close_notify waits for room, or the destination's failure
 * Thread: own
 */
static int send_end(struct bp_thread *t, bp_splice *s, struct direction *d, const struct leg *to) {
    BP_ASSERT(d->eof && !d->shut && !bp__direction_in_flight(d));
    int sent = to->tls ? bp_tls_shutdown(to->tls) : 0;
    d->notify_waits = sent == BP_TLS_WANT_WRITE;
    if (d->notify_waits) {
        /* The socket is writable, and still some records are queued: the kernel's TLS is about to pass them on. After
         * END_TRIES tries the next tick tries again. */
        d->starved = d->end_tries >= END_TRIES;
        d->end_tries += !d->starved;
        return -EAGAIN;
    }
    if (sent < 0)
        return sent;
    (void)shutdown(to->fd, SHUT_WR); /* an error here is the leg's own: its reads will return it */
    d->shut = true;
    s->half_closed_ms = t->now_ms;
    leave_stream(t, d);
    return 0;
}

/**
 * deliver() - Deliver what was read before, then the end of the source if it has ended
 * @t: Thread
 * @s: Splice
 * @id: The direction's source
 *
 * Return: PUMP_MORE if nothing is left to deliver and the source may have more
 * Thread: own
 */
static enum pump_result deliver(struct bp_thread *t, bp_splice *s, enum leg_id id) {
    struct leg *to = &s->leg[1 - id];
    struct direction *d = &s->direction[id];
    int flushed = flush(t, s, d, to);
    d->starved = starves(flushed);
    if (flushed == -EAGAIN || d->starved)
        return PUMP_BLOCKED;
    if (flushed < 0)
        return failed(s, (enum leg_id)(1 - id), flushed);
    if (!d->eof)
        return PUMP_MORE;
    if (s->broken == (int)id)
        return PUMP_BLOCKED; /* not an end: once its error was read, a broken socket reads as EOF */
    int sent = send_end(t, s, d, to);
    if (starves(sent))
        d->starved = true;
    if (sent == 0 || sent == -EAGAIN || d->starved)
        return PUMP_BLOCKED;
    return failed(s, (enum leg_id)(1 - id), sent);
}

/**
 * stream_once() - Read from the source into the pipe
 * @t: Thread
 * @s: Splice
 * @id: The source of a direction that streams
 * @cost: Is raised by what the read has cost, in bytes
 *
 * Return: PUMP_MORE if there is something to deliver, or the next read has to be a copy
 * Thread: own
 */
static enum pump_result stream_once(struct bp_thread *t, bp_splice *s, enum leg_id id, size_t *cost) {
    struct leg *from = &s->leg[id];
    struct direction *d = &s->direction[id];
    ssize_t got = splice_in(d, from);
    if (got == -EAGAIN) {
        if (t->engine->options.splice != BP_SPLICE_ALWAYS && d->small_reads)
            leave_stream(t, d);
        return PUMP_BLOCKED;
    }
    if (got == -EINVAL || got == -ENOMEM) {
        /* From a TLS socket EINVAL is a control record, which OpenSSL has to see (tls_sw.c, tls_sw_splice_read). */
        d->no_splice = got == -EINVAL && !from->tls;
        leave_stream(t, d);
        return PUMP_MORE;
    }
    d->starved = starves(got);
    if (d->starved)
        return PUMP_BLOCKED;
    if (got < 0)
        return failed(s, id, (int)got);
    if (got > 0)
        *cost += cost_of(from, d, (size_t)got);
    else if (from->tls)
        leave_stream(t, d); /* FIN, close_notify or a record without data: OpenSSL tells which */
    else
        d->eof = true;
    return PUMP_MORE;
}

/**
 * copy_once() - Read from the source into the scratch buffer and write that to the destination
 * @t: Thread
 * @s: Splice
 * @id: The source of a direction that does not stream
 * @cost: Is raised by what the read has cost, in bytes
 *
 * Return: PUMP_MORE if the source may have more that epoll does not report
 * Thread: own
 */
static enum pump_result copy_once(struct bp_thread *t, bp_splice *s, enum leg_id id, size_t *cost) {
    struct leg *from = &s->leg[id], *to = &s->leg[1 - id];
    struct direction *d = &s->direction[id];
    bool more = true;
    ssize_t got = leg_read(s, d, from, t->scratch, &more);
    if (got == -EAGAIN)
        return PUMP_BLOCKED;
    d->starved = starves(got);
    if (d->starved)
        return PUMP_BLOCKED;
    if (got < 0)
        return failed(s, id, (int)got);
    if (got == 0) {
        d->eof = true;
        return PUMP_MORE;
    }
    BP_ASSERT((size_t)got <= SCRATCH_BYTES);
    BP_DEBUG_ONLY(d->taken += (size_t)got);
    *cost += cost_of(from, d, (size_t)got);
    int written = write_or_stash(t, s, d, to, t->scratch, (size_t)got);
    if (written < 0)
        return failed(s, (enum leg_id)(1 - id), written);
    consider_stream(t, d, from, to, (size_t)got);
    return more || d->streaming ? PUMP_MORE : PUMP_BLOCKED;
}

/**
 * bp__pump() - Move what can be moved in one direction, up to the thread's turn_bytes
 * @t: Thread
 * @s: Splice; live, or broken to drain the leg that failed
 * @id: The direction's source
 *
 * Return: of enum pump_result
 * Thread: own
 */
enum pump_result bp__pump(struct bp_thread *t, bp_splice *s, enum leg_id id) {
    struct direction *d = &s->direction[id];
    size_t cost = 0;
    enum pump_result r;
    BP_CHECK_SPLICE(t, s);
    if (d->shut)
        return PUMP_BLOCKED;
    for (;;) {
        r = deliver(t, s, id);
        if (r != PUMP_MORE)
            break;
        if (d->streaming && d->small_reads >= QUIET_READS && t->engine->options.splice != BP_SPLICE_ALWAYS)
            leave_stream(t, d);
        if (s->giving_back) {
            r = PUMP_BLOCKED;
            break;
        }
        if (cost >= t->turn_bytes)
            break;
        r = d->streaming ? stream_once(t, s, id, &cost) : copy_once(t, s, id, &cost);
        if (r != PUMP_MORE)
            break;
    }
    BP_CHECK_SPLICE(t, s);
    return r;
}
