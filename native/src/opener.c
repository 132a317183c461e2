/* The opener: threads that bring accepted connections to their first bytes. They are not the engine's: a storm of handshakes
 * must not delay the bytes of connections that are spliced.
 *
 * An opening is the caller's until bp_opener_start(), then its thread's, and the caller's again once it is published. Only
 * the mailboxes, the aborts and the list of those that are over are for several threads; the opener's lock guards them.
 */
#include "opener.h"
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_THREADS 256

/**
 * thread_start() - Start a thread of the opener
 * @opener: Opener
 * @index: Thread, from 0
 *
 * Return: 0, or a negative errno; bp_opener_free() closes what was opened
 * Thread: one
 */
static int thread_start(bp_opener *opener, unsigned index) {
    struct opener_thread *t = &opener->threads[index];
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    t->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (t->epoll_fd < 0 || t->wake_fd < 0 || epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->wake_fd, &event) < 0)
        return -errno;
    int r = bp__thread_start(&t->thread, bp__opener_main, t, "bp-opener", index);
    if (r < 0)
        return r;
    t->started = true;
    return 0;
}

int bp_opener_new(unsigned threads, size_t first_bytes, bp_opener **ret_opener) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned count = threads ? threads : cores > 0 ? (unsigned)cores : 1;
    if (first_bytes < 1 || first_bytes > OPENING_SCRATCH_BYTES)
        return -EINVAL;
    if (count > MAX_THREADS)
        count = MAX_THREADS;
    bp_opener *opener = calloc(1, sizeof *opener);
    if (!opener)
        return -ENOMEM;
    opener->first_bytes = first_bytes;
    TAILQ_INIT(&opener->over);
    TAILQ_INIT(&opener->laned);
    pthread_mutex_init(&opener->lock, NULL);
    opener->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    opener->threads = calloc(count, sizeof *opener->threads);
    int r = opener->event_fd < 0 ? -errno : opener->threads ? 0 : -ENOMEM;
    for (unsigned i = 0; i < count && opener->threads; i++) {
        struct opener_thread *t = &opener->threads[i];
        t->opener = opener;
        t->epoll_fd = t->wake_fd = -1;
        TAILQ_INIT(&t->mailbox);
        TAILQ_INIT(&t->aborts);
        TAILQ_INIT(&t->waiting);
        TAILQ_INIT(&t->delayed);
        TAILQ_INIT(&t->retired);
        opener->thread_count = i + 1;
    }
    for (unsigned i = 0; i < opener->thread_count && r == 0; i++)
        r = thread_start(opener, i);
    if (r < 0) {
        bp_opener_free(opener);
        return r;
    }
    *ret_opener = opener;
    return 0;
}

int bp_opener_event_fd(const bp_opener *opener) { return opener->event_fd; }

unsigned bp_opener_threads(const bp_opener *opener) { return opener->thread_count; }

int bp_opener_turns(const bp_opener *opener, unsigned index, struct bp_turns *ret, uint64_t *ret_cpu_ns) {
    if (index >= opener->thread_count)
        return -EINVAL;
    *ret = bp__turns_read(&opener->threads[index].turns);
    return bp__thread_cpu_ns(opener->threads[index].thread, ret_cpu_ns);
}

void bp_opener_limit(bp_opener *opener, uint32_t handshakes_per_s) {
    atomic_store(&opener->handshakes_per_s, handshakes_per_s);
}

/**
 * start() - Begin with a socket
 * @opener: Opener
 * @o: Opening, of which the caller has set only what start() does not; or NULL
 * @fd: Socket
 * @ctx: As bp_opener_start() has it
 * @ret_opening: Receives the opening
 *
 * Return: 0, or -ENOMEM if there is no opening
 * Thread: one
 */
static int start(bp_opener *opener, bp_opening *o, int fd, bp_tls_ctx *ctx, bp_opening **ret_opening) {
    struct opener_thread *t = &opener->threads[0];
    if (!o)
        return -ENOMEM;
    for (unsigned i = 1; i < opener->thread_count; i++)
        if (atomic_load(&opener->threads[i].open) < atomic_load(&t->open))
            t = &opener->threads[i];
    o->fd = fd;
    o->ctx = ctx;
    o->step = ctx ? BP_OPENING_FIRST_BYTE : BP_OPENING_FLIGHT;
    o->thread = t;
    o->list = &t->mailbox;
    t->open++;
    pthread_mutex_lock(&opener->lock);
    TAILQ_INSERT_TAIL(&t->mailbox, o, link);
    pthread_mutex_unlock(&opener->lock);
    *ret_opening = o;
    bp__wake(t->wake_fd);
    return 0;
}

int bp_opener_start(bp_opener *opener, int fd, bp_tls_ctx *ctx, bp_opening **ret_opening) {
    return start(opener, calloc(1, sizeof(bp_opening)), fd, ctx, ret_opening);
}

int bp_opener_admit(bp_opener *opener, int fd, bp_tls_ctx *ctx, bp_joiner *joiner, const struct bp_request_rules *rules,
                    bp_opening **ret_opening) {
    bp_opening *o = calloc(1, sizeof *o);
    if (o) {
        o->owns_fd = true;
        o->joiner = joiner;
        o->rules = rules;
    }
    return start(opener, o, fd, ctx, ret_opening);
}

void bp_opening_abort(bp_opening *o) {
    struct opener_thread *t = o->thread;
    pthread_mutex_lock(&t->opener->lock);
    bool asked = !o->published && !o->aborting;
    if (asked) {
        TAILQ_INSERT_TAIL(&t->aborts, o, abort_link);
        o->aborting = o->aborted = true;
    }
    bp_stream *stream = o->stream;
    pthread_mutex_unlock(&t->opener->lock);
    if (asked)
        bp__wake(t->wake_fd);
    if (stream)
        bp__lane_abort(stream);
}

bp_opening *bp_opener_take(bp_opener *opener) {
    uint64_t ignored;
    ssize_t got = read(opener->event_fd, &ignored, sizeof ignored);
    (void)got;
    pthread_mutex_lock(&opener->lock);
    bp_opening *o = TAILQ_FIRST(&opener->over);
    if (o)
        TAILQ_REMOVE(&opener->over, o, link);
    pthread_mutex_unlock(&opener->lock);
    return o;
}

void bp_opening_read(const bp_opening *o, struct bp_opened *ret) {
    BP_ASSERT(o->over && o->published);
    *ret = (struct bp_opened){
        .step = o->step, .result = o->result, .tls = o->tls, .first = o->first, .first_bytes = o->first_bytes};
}

bp_tls *bp_opening_take_tls(bp_opening *o) {
    bp_tls *tls = o->tls;
    BP_ASSERT(o->over && o->published);
    o->tls = NULL;
    return tls;
}

int bp_opening_take_fd(bp_opening *o) {
    BP_ASSERT(o->over && o->published && o->owns_fd);
    o->owns_fd = false;
    return o->fd;
}

void bp_opener_forget(bp_opening *o) {
    bp_opener *opener = o->thread->opener;
    pthread_mutex_lock(&opener->lock);
    BP_ASSERT(o->list == &opener->laned);
    TAILQ_REMOVE(&opener->laned, o, link);
    pthread_mutex_unlock(&opener->lock);
    bp_opening_free(o);
}

void bp_opening_free(bp_opening *o) {
    if (!o)
        return;
    BP_ASSERT(o->over && o->published && !o->registered);
    bp_tls_free(o->tls);
    free(o->first);
    if (o->owns_fd)
        (void)close(o->fd);
    free(o);
}

/**
 * join_all() - Abort all openings and join the threads
 * @opener: Opener
 *
 * Thread: one
 */
static void join_all(bp_opener *opener) {
    for (unsigned i = 0; i < opener->thread_count; i++) {
        struct opener_thread *t = &opener->threads[i];
        if (!t->started)
            continue;
        atomic_store(&t->stop, true);
        bp__wake(t->wake_fd);
        (void)pthread_join(t->thread, NULL);
        t->started = false;
        BP_ASSERT(TAILQ_EMPTY(&t->mailbox) && TAILQ_EMPTY(&t->retired) && atomic_load(&t->open) == 0);
    }
}

void bp_opener_free(bp_opener *opener) {
    if (!opener)
        return;
    join_all(opener);
    struct opening_list *left[] = {&opener->over, &opener->laned};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        for (bp_opening *o; (o = TAILQ_FIRST(left[i]));) {
            TAILQ_REMOVE(left[i], o, link);
            bp_opening_free(o);
        }
    for (unsigned i = 0; i < opener->thread_count; i++) {
        struct opener_thread *t = &opener->threads[i];
        if (t->epoll_fd >= 0)
            (void)close(t->epoll_fd);
        if (t->wake_fd >= 0)
            (void)close(t->wake_fd);
    }
    if (opener->event_fd >= 0)
        (void)close(opener->event_fd);
    pthread_mutex_destroy(&opener->lock);
    free(opener->threads);
    free(opener);
}
