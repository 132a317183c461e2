/* The joiner as its callers see it: connections come in after their first bytes, bytes and words go out and in, and two of
 * them are joined.
 *
 * A stream belongs to the joiner's thread from its first request until it is published as released. The lock guards only
 * what both sides write; no system call on a connection is made while it is held.
 */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/**
 * thread_start() - Start the joiner's thread
 * @j: Joiner
 *
 * Return: 0, or a negative errno; bp_joiner_free() closes what was opened
 * Thread: one
 */
static int thread_start(bp_joiner *j) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    j->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    j->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    j->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (j->event_fd < 0 || j->epoll_fd < 0 || j->wake_fd < 0 ||
        epoll_ctl(j->epoll_fd, EPOLL_CTL_ADD, j->wake_fd, &event) < 0)
        return -errno;
    int r = bp__thread_start(&j->thread, bp__joiner_main, j, "bp-joiner", 0);
    j->started = r == 0;
    return r;
}

int bp_joiner_new(bp_joiner **ret_joiner) {
    bp_joiner *j = calloc(1, sizeof *j);
    if (!j)
        return -ENOMEM;
    j->event_fd = j->epoll_fd = j->wake_fd = -1;
    j->now_ms = bp__now_ms();
    pthread_mutex_init(&j->lock, NULL);
    TAILQ_INIT(&j->all);
    TAILQ_INIT(&j->asked);
    TAILQ_INIT(&j->told);
    TAILQ_INIT(&j->timed);
    TAILQ_INIT(&j->again);
    TAILQ_INIT(&j->changed);
    TAILQ_INIT(&j->committed);
    TAILQ_INIT(&j->due);
    TAILQ_INIT(&j->lanes);
    TAILQ_INIT(&j->silent);
    bp_lookup_init(&j->lookup);
    int r = thread_start(j);
    if (r < 0) {
        bp_joiner_free(j);
        return r;
    }
    *ret_joiner = j;
    return 0;
}

int bp_joiner_event_fd(const bp_joiner *j) { return j->event_fd; }

int bp_joiner_turns(const bp_joiner *j, struct bp_turns *ret, uint64_t *ret_cpu_ns) {
    *ret = bp__turns_read(&j->turns);
    return bp__thread_cpu_ns(j->thread, ret_cpu_ns);
}

void bp_joiner_wake(bp_joiner *j) {
    pthread_mutex_lock(&j->lock);
    bool some = !TAILQ_EMPTY(&j->asked);
    pthread_mutex_unlock(&j->lock);
    if (some)
        bp__wake(j->wake_fd);
}

void bp_joiner_pause(bp_joiner *j, int paused) {
    atomic_store(&j->paused, paused != 0);
    if (paused)
        return;
    atomic_store(&j->resumed, true);
    bp__wake(j->wake_fd);
}

int bp_stream_open(bp_joiner *j, int fd, bp_tls *tls, bp_stream **ret_stream) {
    return bp__stream_make(j, fd, tls, 0, ret_stream);
}

int bp_stream_connect(bp_joiner *j, int fd, bp_tls *tls, uint32_t deadline_ms, bp_stream **ret_stream) {
    return deadline_ms ? bp__stream_make(j, fd, tls, deadline_ms, ret_stream) : -EINVAL;
}

void bp_stream_allow(bp_stream *s, uint64_t bytes) {
    pthread_mutex_lock(&s->joiner->lock);
    s->to_allow_bytes = bytes;
    bp__stream_ask(s, ASKS_ALLOW);
    pthread_mutex_unlock(&s->joiner->lock);
}

int bp_stream_say(bp_stream *s, const char *data, size_t bytes) {
    pthread_mutex_lock(&s->joiner->lock);
    int r = bp__buffer_add(&s->to_say, data, bytes);
    if (r == 0)
        bp__stream_ask(s, ASKS_SAY);
    pthread_mutex_unlock(&s->joiner->lock);
    return r;
}

uint64_t bp_stream_sent_bytes(const bp_stream *s) { return atomic_load(&s->sent_bytes); }

uint64_t bp_stream_read_bytes(const bp_stream *s) {
    BP_ASSERT(s->published);
    return s->read_bytes;
}

int bp_stream_join(bp_stream *client, bp_stream *satellite, const struct bp_join *wanted) {
    bp_joiner *j = client->joiner;
    struct join *join = calloc(1, sizeof *join);
    if (!join)
        return -ENOMEM;
    join->client = client;
    join->satellite = satellite;
    join->ack_owed = wanted->ack_owed != 0;
    join->deadline_ms = wanted->deadline_ms;
    if (bp__buffer_add(&join->to_client, wanted->to_client, wanted->to_client_bytes) < 0 ||
        bp__buffer_add(&join->to_satellite, wanted->to_satellite, wanted->to_satellite_bytes) < 0 ||
        bp__buffer_add(&join->frames, wanted->frames, wanted->frames_bytes) < 0) {
        bp__join_free(join);
        return -ENOMEM;
    }
    pthread_mutex_lock(&j->lock);
    BP_ASSERT(!client->joining && !satellite->joining && !client->published && !satellite->published);
    client->joining = satellite->joining = true;
    client->to_join = join;
    bp__stream_ask(client, ASKS_JOIN);
    pthread_mutex_unlock(&j->lock);
    return 0;
}

void bp_stream_release(bp_stream *s) {
    pthread_mutex_lock(&s->joiner->lock);
    bp__stream_ask(s, ASKS_RELEASE);
    pthread_mutex_unlock(&s->joiner->lock);
}

/**
 * next_told() - Take the first stream of which there is something to tell
 * @j: Joiner, whose event_fd is not readable any more if there is no further one
 *
 * Return: the stream, or NULL
 * Thread: one, with the lock
 */
static bp_stream *next_told(bp_joiner *j) {
    uint64_t ignored;
    bp_stream *s = TAILQ_FIRST(&j->told);
    if (s) {
        TAILQ_REMOVE(&j->told, s, told_link);
        s->told = false;
    }
    if (TAILQ_EMPTY(&j->told)) {
        ssize_t got = read(j->event_fd, &ignored, sizeof ignored);
        (void)got;
    }
    return s;
}

int bp_joiner_take(bp_joiner *j, struct bp_news *ret) {
    bp__buffer_drop(&j->given, j->given.bytes);
    pthread_mutex_lock(&j->lock);
    bp_stream *s = next_told(j);
    if (s) {
        if (!s->joining)
            bp__buffer_move(&j->given, &s->news.data);
        *ret = (struct bp_news){
            .stream = s,
            .flags = s->news.flags,
            .failure = s->news.failure,
            .result = s->news.result,
            .data = j->given.bytes ? j->given.data + j->given.at : NULL,
            .data_bytes = j->given.bytes,
            .words = s->words,
            .header = s->header,
        };
        if (s->published && s->out.bytes) {
            ret->unsent = s->out.data + s->out.at;
            ret->unsent_bytes = s->out.bytes;
        }
        s->news.flags = 0;
        if (s->committed) {
            ret->flags |= BP_NEWS_COMMITTED;
            TAILQ_REMOVE(&j->committed, s, committed_link);
            s->committed = false;
        }
    }
    pthread_mutex_unlock(&j->lock);
    return s != NULL;
}

bp_stream *bp_joiner_take_committed(bp_joiner *j) {
    pthread_mutex_lock(&j->lock);
    bp_stream *s = TAILQ_FIRST(&j->committed);
    if (s) {
        TAILQ_REMOVE(&j->committed, s, committed_link);
        s->committed = false;
    }
    pthread_mutex_unlock(&j->lock);
    return s;
}

int bp_joiner_admit(bp_joiner *j, const struct bp_lane_options *options) {
    size_t text_bytes = (size_t)options->limits->most[BP_LIMIT_HEADER_LIST_BYTES];
    j->admits = *options;
    j->fields = (struct bp_fields){.most = options->most_fields, .text_most = text_bytes};
    j->fields.sizes = calloc(2 * (size_t)options->most_fields, sizeof *j->fields.sizes);
    j->fields.text = malloc(text_bytes);
    return j->fields.sizes && j->fields.text ? 0 : -ENOMEM;
}

void bp_joiner_look(bp_joiner *j) {
    if (atomic_load(&j->lane_count) == 0)
        return;
    atomic_store(&j->look, true);
    bp__wake(j->wake_fd);
}

unsigned bp_joiner_lanes(const bp_joiner *j) { return atomic_load(&j->lane_count); }

const struct bp_lane_facts *bp_lane_facts(const bp_stream *client) { return &client->lane->facts; }

int bp_stream_take_fd(bp_stream *client) {
    BP_ASSERT(client->owns_fd);
    client->owns_fd = false;
    return client->fd;
}

bp_tls *bp_stream_take_tls(bp_stream *s) {
    bp_tls *tls = s->tls;
    BP_ASSERT(s->published);
    s->tls = NULL;
    return tls;
}

void bp_stream_free(bp_stream *s) {
    if (!s)
        return;
    bp_joiner *j = s->joiner;
    bp_stream *half = s->lane ? s->lane->half : NULL;
    pthread_mutex_lock(&j->lock);
    BP_ASSERT(s->published && (!half || half->published) && !s->is_half);
    if (s->asked)
        TAILQ_REMOVE(&j->asked, s, asked_link);
    if (s->told)
        TAILQ_REMOVE(&j->told, s, told_link);
    if (s->committed)
        TAILQ_REMOVE(&j->committed, s, committed_link);
    TAILQ_REMOVE(&j->all, s, all_link);
    if (half)
        TAILQ_REMOVE(&j->all, half, all_link);
    pthread_mutex_unlock(&j->lock);
    bp__stream_drop(s);
    if (half)
        bp__stream_drop(half);
}

void bp_joiner_free(bp_joiner *j) {
    if (!j)
        return;
    if (j->started) {
        atomic_store(&j->stop, true);
        bp__wake(j->wake_fd);
        (void)pthread_join(j->thread, NULL);
    }
    for (bp_stream *s; (s = TAILQ_FIRST(&j->all));) {
        TAILQ_REMOVE(&j->all, s, all_link);
        bp__stream_drop(s);
    }
    bp__buffer_drop(&j->given, j->given.bytes);
    bp_lookup_close(&j->lookup);
    free(j->fields.sizes);
    free(j->fields.text);
    int fds[] = {j->epoll_fd, j->wake_fd, j->event_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            (void)close(fds[i]);
    pthread_mutex_destroy(&j->lock);
    free(j);
}
