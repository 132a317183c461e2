/* One connection between its first bytes and its splice: a client, or a satellite that is being connected to. Nothing here
 * waits, and only the joiner's thread calls it.
 *
 *   BEGINS ──▶ CONNECTS ──▶ SHAKES ──▶ OPEN ──▶ JOINS ──▶ RELEASED
 *      └─────────────────────────────▲   └──────────────────▲
 * An open stream is read as far as the caller allows, and its bytes are news for the caller. While it may not be read, only
 * its end is waited for: a peer that hangs up is found, whatever lies unread before that.
 */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define TELL_SENT_BYTES (32u << 10) /* the caller is told after so many: half of what may be under way */

/**
 * bp__stream_make() - Make a stream that asks for its beginning
 * @j: Joiner
 * @fd: Borrows
 * @tls: Takes on success; or NULL
 * @deadline_ms: For the connection; 0: it is connected
 * @ret_stream: Receives the stream on success
 *
 * Return: 0, or -ENOMEM
 * Thread: any
 */
int bp__stream_make(bp_joiner *j, int fd, bp_tls *tls, uint32_t deadline_ms, bp_stream **ret_stream) {
    bp_stream *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->joiner = j;
    s->fd = fd;
    s->tls = tls;
    s->deadline_ms = deadline_ms;
    s->asks = ASKS_BEGIN;
    pthread_mutex_lock(&j->lock);
    TAILQ_INSERT_TAIL(&j->all, s, all_link);
    pthread_mutex_unlock(&j->lock);
    *ret_stream = s;
    return 0;
}

/**
 * bp__stream_ask() - Note what the thread is to do for a stream
 * @s: Stream
 * @what: Of enum stream_request; nothing happens if the stream is released
 *
 * Thread: any, with the lock
 */
void bp__stream_ask(bp_stream *s, unsigned what) {
    if (s->published)
        return;
    s->asks |= what;
    if (!s->asked)
        TAILQ_INSERT_TAIL(&s->joiner->asked, s, asked_link);
    s->asked = true;
}

/**
 * bp__stream_watch() - Let epoll report when a stream can go on
 * @s: Stream
 * @wanted: Events, as in epoll_ctl(2); 0: none at all
 *
 * Return: 0, or a negative errno
 * Thread: own
 */
int bp__stream_watch(bp_stream *s, uint32_t wanted) {
    struct epoll_event event = {.events = wanted, .data.ptr = s};
    int operation = !wanted ? EPOLL_CTL_DEL : s->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (wanted ? s->registered && s->watched == wanted : !s->registered)
        return 0;
    if (epoll_ctl(s->joiner->epoll_fd, operation, s->fd, &event) < 0)
        return -errno;
    s->registered = wanted != 0;
    s->watched = wanted;
    return 0;
}

/**
 * bp__stream_note() - Have the caller, or the stream's lane, told something at the end of this turn
 * @s: Stream
 * @flags: Of enum bp_news_flag
 *
 * Thread: own
 */
void bp__stream_note(bp_stream *s, unsigned flags) {
    s->fresh.flags |= flags;
    if (s->in_lane) {
        if (!s->due)
            TAILQ_INSERT_TAIL(&s->joiner->due, s, due_link);
        s->due = true;
        return;
    }
    if (s->changed)
        return;
    s->changed = true;
    TAILQ_INSERT_TAIL(&s->joiner->changed, s, changed_link);
}

/**
 * bp__stream_time() - Set when a stream's dial or join has to be over
 * @s: Stream without a deadline
 * @deadline_ms: Milliseconds from now
 *
 * Thread: own
 */
void bp__stream_time(bp_stream *s, uint64_t deadline_ms) {
    BP_ASSERT(!s->timed);
    s->deadline_ms = s->joiner->now_ms + deadline_ms;
    s->timed = true;
    TAILQ_INSERT_TAIL(&s->joiner->timed, s, timed_link);
}

/**
 * bp__stream_untime() - Forget a stream's deadline, if it has one
 * @s: Stream
 *
 * Thread: own
 */
void bp__stream_untime(bp_stream *s) {
    if (s->timed)
        TAILQ_REMOVE(&s->joiner->timed, s, timed_link);
    s->timed = false;
}

/**
 * bp__stream_again() - Have a stream run in the next turn, since epoll may not report what it has
 * @s: Stream
 *
 * Thread: own
 */
void bp__stream_again(bp_stream *s) {
    if (s->again)
        return;
    s->again = true;
    TAILQ_INSERT_TAIL(&s->joiner->again, s, again_link);
}

/**
 * drop_out() - Forget what waits for the peer, since nothing can be written
 * @s: Stream
 *
 * Thread: own
 */
static void drop_out(bp_stream *s) {
    s->mute = true;
    atomic_fetch_add(&s->sent_bytes, s->out.bytes);
    bp__buffer_drop(&s->out, s->out.bytes);
}

/**
 * bp__stream_break() - Note that a read or a write has failed; the stream stays until the caller lets go of it
 * @s: Stream
 * @why: Of enum bp_tls_result, or a negative errno
 *
 * A peer that floods is not read any more, and can be written to.
 *
 * Thread: own
 */
void bp__stream_break(bp_stream *s, ssize_t why) {
    BP_ASSERT(why < 0);
    s->deaf = true;
    s->broken = s->fresh.result = why;
    if (why != BP_TLS_CONTROL_FLOOD && why != BP_TLS_HANDSHAKE_FLOOD)
        drop_out(s);
    bp__stream_note(s, BP_NEWS_BROKEN);
}

/**
 * bp__stream_release() - Let go of a stream's socket
 * @s: Stream that is not released
 * @failure: What has failed
 * @result: How, as in struct bp_news
 *
 * Thread: own
 */
void bp__stream_release(bp_stream *s, enum bp_stream_failure failure, ssize_t result) {
    BP_ASSERT(s->state != STREAM_RELEASED);
    (void)bp__stream_watch(s, 0);
    bp__stream_untime(s);
    if (s->again)
        TAILQ_REMOVE(&s->joiner->again, s, again_link);
    s->again = false;
    s->state = STREAM_RELEASED;
    s->fresh.failure = failure;
    s->fresh.result = result;
    bp__stream_note(s, BP_NEWS_RELEASED);
}

/**
 * bp__stream_read() - Read into the thread's buffer what has come
 * @s: Stream
 * @most_bytes: How much, at least 1
 *
 * Return: number of bytes, 0 at the end, -EAGAIN if nothing has come, or another failure
 * Thread: own
 */
ssize_t bp__stream_read(bp_stream *s, size_t most_bytes) {
    ssize_t got;
    if (most_bytes > STREAM_SCRATCH_BYTES)
        most_bytes = STREAM_SCRATCH_BYTES;
    if (s->tls)
        got = bp_tls_read(s->tls, s->joiner->scratch, most_bytes);
    else if ((got = recv(s->fd, s->joiner->scratch, most_bytes, 0)) < 0)
        got = -errno;
    if (got > 0)
        s->read_bytes += (size_t)got;
    /* BP_TLS_WANT_WRITE on a read is rare: an answer to KeyUpdate that does not fit. The next write flushes it. */
    return got == BP_TLS_WANT_READ || got == BP_TLS_WANT_WRITE || got == -EINTR ? -EAGAIN : got;
}

/**
 * bp__stream_send() - Send what waits, as far as the socket takes it
 * @s: Stream
 *
 * Return: 0 if nothing waits any more, -EAGAIN if something does, or another failure
 * Thread: own
 */
ssize_t bp__stream_send(bp_stream *s) {
    s->write_wants_read = false;
    while (s->out.bytes) {
        const char *data = s->out.data + s->out.at;
        ssize_t put;
        if (s->tls)
            put = bp_tls_write(s->tls, data, s->out.bytes);
        else if ((put = send(s->fd, data, s->out.bytes, MSG_NOSIGNAL)) < 0)
            put = -errno;
        if (put == -EINTR)
            continue;
        if (put <= 0) {
            s->write_wants_read = put == BP_TLS_WANT_READ;
            return s->write_wants_read || put == BP_TLS_WANT_WRITE || put == 0 ? -EAGAIN : put;
        }
        atomic_fetch_add(&s->sent_bytes, (size_t)put);
        bp__buffer_drop(&s->out, (size_t)put);
    }
    return 0;
}

/**
 * wants_input() - Whether an open stream may be read
 * @s: Stream
 *
 * Return: whether it may
 * Thread: own
 */
static bool wants_input(const bp_stream *s) {
    return !s->deaf && s->read_bytes < s->allowed_bytes && (s->in_lane || !atomic_load(&s->joiner->paused));
}

/**
 * read_some() - Read what has come, for the caller
 * @s: Stream that may be read
 *
 * Thread: own
 */
static void read_some(bp_stream *s) {
    uint64_t most_bytes = s->allowed_bytes - s->read_bytes;
    ssize_t got = bp__stream_read(s, most_bytes < STREAM_SCRATCH_BYTES ? (size_t)most_bytes : STREAM_SCRATCH_BYTES);
    if (got > 0 && bp__buffer_add(&s->fresh.data, s->joiner->scratch, (size_t)got) < 0)
        got = -ENOMEM;
    if (got > 0) {
        bp__stream_note(s, BP_NEWS_DATA);
        if (s->tls && bp__tls_has_pending(s->tls) && wants_input(s))
            bp__stream_again(s);
    } else if (got == 0) {
        s->deaf = true;
        bp__stream_note(s, BP_NEWS_END);
    } else if (got != -EAGAIN)
        bp__stream_break(s, got);
}

/**
 * update_interest() - Let epoll report what an open stream waits for
 * @s: Stream
 *
 * Thread: own
 */
static void update_interest(bp_stream *s) {
    uint32_t wanted = 0;
    if (wants_input(s))
        wanted |= EPOLLIN;
    else if (!s->deaf && !s->hung_up)
        wanted |= EPOLLRDHUP;
    if (s->out.bytes)
        wanted |= s->write_wants_read ? EPOLLIN : EPOLLOUT;
    int r = bp__stream_watch(s, wanted);
    if (r < 0 && !s->broken)
        bp__stream_break(s, r);
}

/**
 * run_open() - Send and read, as far as both go
 * @s: Open stream
 * @events: What epoll has reported, or 0
 *
 * Thread: own
 */
static void run_open(bp_stream *s, uint32_t events) {
    ssize_t r = bp__stream_send(s);
    if (r < 0 && r != -EAGAIN)
        bp__stream_break(s, r);
    if (atomic_load(&s->sent_bytes) - s->told_bytes >= TELL_SENT_BYTES) {
        s->told_bytes = atomic_load(&s->sent_bytes);
        bp__stream_note(s, BP_NEWS_SENT);
    }
    if (wants_input(s))
        read_some(s);
    else if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) && !s->deaf && !s->hung_up) {
        s->hung_up = true;
        bp__stream_note(s, BP_NEWS_HUNG_UP);
    }
    update_interest(s);
}

/**
 * connected() - Go on with a satellite that is connected
 * @s: Stream
 *
 * Thread: own
 */
static void connected(bp_stream *s) {
    bp__stream_untime(s);
    s->state = STREAM_OPEN;
    bp__stream_note(s, BP_NEWS_CONNECTED);
    run_open(s, 0);
}

/**
 * shake() - Go on with the handshake of a satellite's TLS
 * @s: Stream
 *
 * Thread: own
 */
static void shake(bp_stream *s) {
    int r = bp_tls_handshake(s->tls);
    if (r == 0) {
        connected(s);
        return;
    }
    bool waits = r == BP_TLS_WANT_READ || r == BP_TLS_WANT_WRITE;
    if (waits)
        r = bp__stream_watch(s, r == BP_TLS_WANT_READ ? EPOLLIN : EPOLLOUT);
    if (r < 0)
        bp__stream_release(s, BP_STREAM_HANDSHAKE, r);
}

/**
 * bp__stream_begin() - Begin with a stream that the caller has made
 * @s: Stream
 *
 * Thread: own
 */
void bp__stream_begin(bp_stream *s) {
    BP_ASSERT(s->state == STREAM_BEGINS);
    bool connects = s->deadline_ms != 0;
    uint64_t deadline_ms = s->deadline_ms;
    s->state = connects ? STREAM_CONNECTS : STREAM_OPEN;
    if (!connects)
        return;
    bp__stream_time(s, deadline_ms);
    int r = bp__socket_prepare(s->fd);
    if (r == 0)
        r = bp__stream_watch(s, EPOLLOUT);
    if (r < 0)
        bp__stream_release(s, BP_STREAM_CONNECT, r);
}

/**
 * bp__stream_run() - Go on with a stream that does not join
 * @s: Stream
 * @events: What epoll has reported, or 0
 *
 * Thread: own
 */
void bp__stream_run(bp_stream *s, uint32_t events) {
    int error = 0;
    socklen_t bytes = sizeof error;
    switch (s->state) {
    case STREAM_CONNECTS:
        if (!events)
            return;
        if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &bytes) < 0)
            error = errno;
        if (error)
            bp__stream_release(s, BP_STREAM_CONNECT, -error);
        else if (s->tls) {
            s->state = STREAM_SHAKES;
            shake(s);
        } else
            connected(s);
        return;
    case STREAM_SHAKES:
        shake(s);
        return;
    case STREAM_OPEN:
        run_open(s, events);
        return;
    default:
        BP_ASSERT(s->state == STREAM_RELEASED);
    }
}
