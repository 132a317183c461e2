/* The joiner's thread: its epoll loop, what callers ask, and what it tells them.
 *
 * A caller's request is noted in the stream, which goes on the list of those that ask. What is to be told is gathered in the
 * stream for the length of a turn and published at its end. So a stream that was released is the caller's only once no event
 * of the turn can refer to it any more.
 */
#include "stream.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 64
#define ASKED_A_TURN 256
#define AGAIN_A_TURN 64
#define DEADLINE_TICK_MS 50 /* granularity of the deadlines */

struct asked { /* what was asked of one stream */
    unsigned asks;
    struct buffer to_say;
    uint64_t to_allow_bytes;
    struct join *to_join;
};

/**
 * run() - Go on with a stream
 * @s: Stream
 * @events: What epoll has reported, or 0
 *
 * Thread: own
 */
static void run(bp_stream *s, uint32_t events) {
    if (s->state == STREAM_JOINS)
        bp__join_run(s->join ? s->join : s->client->join);
    else
        bp__stream_run(s, events);
}

/**
 * stop() - End what a stream does
 * @s: Stream; nothing happens if it is released already
 * @why: A negative errno
 *
 * Thread: own
 */
static void stop(bp_stream *s, int why) {
    if (s->in_lane && !s->is_half) {
        bp__lane_stop(s->lane, why);
        return;
    }
    switch (s->state) {
    case STREAM_JOINS:
        bp__join_fail(s->join ? s->join : s->client->join, why == -ETIME ? BP_STREAM_LATE : BP_STREAM_STOPPED, why);
        return;
    case STREAM_CONNECTS:
        bp__stream_release(s, BP_STREAM_CONNECT, why);
        return;
    case STREAM_SHAKES:
        bp__stream_release(s, BP_STREAM_HANDSHAKE, why);
        return;
    case STREAM_RELEASED:
        return;
    default:
        bp__stream_release(s, BP_STREAM_FINE, 0);
    }
}

/**
 * take_asked() - Take what is asked of a stream, and take the stream off the list
 * @s: Stream
 *
 * Return: what is asked
 * Thread: own
 */
static struct asked take_asked(bp_stream *s) {
    bp_joiner *j = s->joiner;
    pthread_mutex_lock(&j->lock);
    struct asked found = {.asks = s->asks, .to_allow_bytes = s->to_allow_bytes, .to_join = s->to_join};
    bp__buffer_move(&found.to_say, &s->to_say);
    if (s->asked)
        TAILQ_REMOVE(&j->asked, s, asked_link);
    s->asked = false;
    s->asks = 0;
    s->to_join = NULL;
    pthread_mutex_unlock(&j->lock);
    return found;
}

/**
 * say() - Put words behind those that wait for a peer
 * @s: Stream
 * @words: The words, which are dropped if nothing can be written
 *
 * Thread: own
 */
static void say(bp_stream *s, struct buffer *words) {
    if (s->mute || s->state == STREAM_RELEASED)
        atomic_fetch_add(&s->sent_bytes, words->bytes);
    else if (bp__buffer_add(&s->out, words->data + words->at, words->bytes) < 0)
        bp__stream_break(s, -ENOMEM);
    bp__buffer_drop(words, words->bytes);
}

/**
 * serve() - Do what is asked of a stream
 * @s: Stream
 *
 * Thread: own
 */
static void serve(bp_stream *s) {
    struct asked asked = take_asked(s);
    if (asked.asks & ASKS_BEGIN)
        bp__stream_begin(s);
    if (asked.asks & ASKS_LANE)
        bp__lane_begin(s);
    if ((asked.asks & ASKS_UP) && s->in_lane)
        bp__lane_stop(s->lane, -ECANCELED);
    if (asked.asks & ASKS_SAY)
        say(s, &asked.to_say);
    if (asked.asks & ASKS_ALLOW)
        s->allowed_bytes = asked.to_allow_bytes;
    if (asked.asks & ASKS_JOIN) {
        serve(asked.to_join->satellite); /* what was said to it before */
        bp__join_begin(asked.to_join);
    } else if (asked.asks & (ASKS_SAY | ASKS_ALLOW | ASKS_BEGIN))
        run(s, 0);
    if (asked.asks & ASKS_RELEASE)
        stop(s, -ECANCELED);
}

/**
 * read_again() - Read the streams that were not read while the caller had paused all
 * @j: Joiner
 *
 * Thread: own
 */
static void read_again(bp_joiner *j) {
    bp_stream *s;
    if (!atomic_exchange(&j->resumed, false))
        return;
    pthread_mutex_lock(&j->lock);
    TAILQ_FOREACH(s, &j->all, all_link) if (s->state == STREAM_OPEN) bp__stream_again(s);
    pthread_mutex_unlock(&j->lock);
}

/**
 * take_requests() - Do what callers ask
 * @j: Joiner
 *
 * Thread: own
 */
static void take_requests(bp_joiner *j) {
    uint64_t ignored;
    ssize_t got = read(j->wake_fd, &ignored, sizeof ignored);
    (void)got;
    read_again(j);
    if (atomic_exchange(&j->look, false))
        bp__lanes_look(j);
    for (unsigned count = 0;; count++) {
        pthread_mutex_lock(&j->lock);
        bp_stream *s = TAILQ_FIRST(&j->asked);
        pthread_mutex_unlock(&j->lock);
        if (!s)
            return;
        if (count == ASKED_A_TURN) {
            bp__wake(j->wake_fd);
            return;
        }
        serve(s);
    }
}

/**
 * run_again() - Go on with the streams that epoll may not report
 * @j: Joiner
 *
 * Thread: own
 */
static void run_again(bp_joiner *j) {
    bp_stream *s;
    for (unsigned count = 0; count < AGAIN_A_TURN && (s = TAILQ_FIRST(&j->again)); count++) {
        TAILQ_REMOVE(&j->again, s, again_link);
        s->again = false;
        run(s, 0);
    }
}

/**
 * end_late() - End the dials and joins that are over their deadline
 * @j: Joiner
 *
 * Thread: own
 */
static void end_late(bp_joiner *j) {
    bp_stream *next;
    if (j->now_ms < j->late_at_ms)
        return;
    j->late_at_ms = j->now_ms + DEADLINE_TICK_MS;
    for (bp_stream *s = TAILQ_FIRST(&j->timed); s; s = next) {
        next = TAILQ_NEXT(s, timed_link);
        if (s->deadline_ms <= j->now_ms)
            stop(s, -ETIME);
    }
}

/**
 * run_lanes() - Let the lanes look at what is new of their streams
 * @j: Joiner
 *
 * Thread: own
 */
static void run_lanes(bp_joiner *j) {
    for (bp_stream *s; (s = TAILQ_FIRST(&j->due));) {
        TAILQ_REMOVE(&j->due, s, due_link);
        s->due = false;
        bp__lane_run(s);
    }
}

/**
 * forget() - Let the caller have a stream that is released
 * @s: Stream, which is not looked at any more
 *
 * Thread: own, with the lock
 */
static void forget(bp_stream *s) {
    BP_ASSERT(!s->registered && !s->timed && !s->again && !s->to_join);
    if (s->asked)
        TAILQ_REMOVE(&s->joiner->asked, s, asked_link);
    s->asked = false;
    s->published = true;
}

/**
 * tell() - Put what is new of a stream with what the caller was not told yet
 * @s: Stream
 *
 * Return: 0, or -ENOMEM, and nothing is lost
 * Thread: own, with the lock
 */
static int tell(bp_stream *s) {
    struct news *fresh = &s->fresh, *news = &s->news;
    if (!news->data.bytes)
        bp__buffer_move(&news->data, &fresh->data);
    else if (bp__buffer_add(&news->data, fresh->data.data + fresh->data.at, fresh->data.bytes) < 0)
        return -ENOMEM;
    bp__buffer_drop(&fresh->data, fresh->data.bytes);
    if (fresh->flags & (BP_NEWS_BROKEN | BP_NEWS_RELEASED)) {
        news->failure = fresh->failure;
        news->result = fresh->result;
        snprintf(s->words, sizeof s->words, "%s", s->tls ? bp_tls_error(s->tls) : "");
    }
    if (fresh->flags & BP_NEWS_RELEASED)
        forget(s);
    news->flags |= fresh->flags;
    fresh->flags = 0;
    return 0;
}

/**
 * publish() - Tell the caller what has happened in this turn
 * @j: Joiner
 *
 * The two streams of a join are published together: nothing of theirs is left that `tell` could need memory for.
 *
 * Thread: own
 */
static void publish(bp_joiner *j) {
    bp_stream *s, *next;
    struct stream_list orphans = TAILQ_HEAD_INITIALIZER(orphans);
    if (TAILQ_EMPTY(&j->changed))
        return;
    pthread_mutex_lock(&j->lock);
    bool none = TAILQ_EMPTY(&j->told);
    for (s = TAILQ_FIRST(&j->changed); s; s = next) {
        next = TAILQ_NEXT(s, changed_link);
        if (tell(s) < 0) /* it stays on the list: again in the next turn */
            continue;
        TAILQ_REMOVE(&j->changed, s, changed_link);
        s->changed = false;
        if (s->orphan) {
            TAILQ_REMOVE(&j->all, s, all_link);
            TAILQ_INSERT_TAIL(&orphans, s, all_link);
        }
        if (s->is_half)
            continue;
        if (!s->told)
            TAILQ_INSERT_TAIL(&j->told, s, told_link);
        s->told = true;
    }
    if (none && !TAILQ_EMPTY(&j->told))
        bp__wake(j->event_fd);
    pthread_mutex_unlock(&j->lock);
    while ((s = TAILQ_FIRST(&orphans))) {
        TAILQ_REMOVE(&orphans, s, all_link);
        bp__stream_drop(s);
    }
}

/**
 * bp__joiner_main() - The body of the thread
 * @argument: Its bp_joiner
 *
 * Return: NULL, when the joiner closes
 * Thread: own
 */
void *bp__joiner_main(void *argument) {
    bp_joiner *j = argument;
    struct epoll_event events[EVENTS];
    while (!atomic_load(&j->stop)) {
        bool busy = !TAILQ_EMPTY(&j->again) || !TAILQ_EMPTY(&j->changed), woken = false;
        int count = epoll_wait(j->epoll_fd, events, EVENTS, busy ? 0 : TAILQ_EMPTY(&j->timed) ? -1 : DEADLINE_TICK_MS);
        j->now_ms = bp__turn_begin(&j->turns) / 1000000u;
        for (int i = 0; i < count; i++) {
            bp_stream *s = events[i].data.ptr;
            woken = woken || !s;
            if (s && s->state != STREAM_RELEASED)
                run(s, events[i].events);
        }
        if (woken)
            take_requests(j);
        run_again(j);
        end_late(j);
        run_lanes(j);
        publish(j);
        bp__turn_end(&j->turns);
    }
    return NULL;
}
