/* The engine as its callers see it: threads start and end, splices come in, counters and sockets go out. */
#include "check.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_THREADS 256

/**
 * thread_start() - Start a thread of the engine
 * @engine: Engine
 * @index: Thread, from 0
 *
 * Return: 0, or a negative errno; bp_engine_free() closes what was opened
 * Thread: one
 */
static int thread_start(bp_engine *engine, unsigned index) {
    struct bp_thread *t = &engine->threads[index];
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    BP_ASSERT(index < engine->thread_count && !t->started);
    t->engine = engine;
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    t->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (t->epoll_fd < 0 || t->wake_fd < 0)
        return -errno;
    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->wake_fd, &event) < 0)
        return -errno;
    t->now_ms = bp__now_ms();
    t->turn_bytes = TURN_BYTES;
    t->ready_tail = &t->ready;
    int r = bp__thread_start(&t->thread, bp__thread_main, t, "bp-engine", index);
    if (r < 0)
        return r;
    t->started = true;
    while (sem_wait(&t->settled) < 0 && errno == EINTR) {
    }
    return 0;
}

int bp_engine_new(const struct bp_options *options, bp_engine **ret_engine) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned count = options->threads ? options->threads : cores > 0 ? (unsigned)cores : 1;
    if (count > MAX_THREADS)
        count = MAX_THREADS;
    bp_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return -ENOMEM;
    engine->options = *options;
    engine->ended_tail = &engine->ended;
    pthread_mutex_init(&engine->lock, NULL);
    engine->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    engine->threads = calloc(count, sizeof *engine->threads);
    int r = engine->event_fd < 0 ? -errno : engine->threads ? 0 : -ENOMEM;
    for (unsigned i = 0; i < count && engine->threads; i++) {
        engine->threads[i].epoll_fd = engine->threads[i].wake_fd = -1;
        pthread_mutex_init(&engine->threads[i].lock, NULL);
        (void)sem_init(&engine->threads[i].settled, 0, 0);
        engine->thread_count = i + 1;
    }
    for (unsigned i = 0; i < engine->thread_count && r == 0; i++)
        r = thread_start(engine, i);
    if (r < 0) {
        bp_engine_free(engine);
        return r;
    }
    BP_ASSERT(engine->thread_count == count && count >= 1);
    *ret_engine = engine;
    return 0;
}

int bp_engine_event_fd(const bp_engine *engine) { return engine->event_fd; }

/**
 * leg_of() - Make one leg of a splice
 * @engine: Engine, whose options say what of the kernel's TLS may be spliced
 * @id: Which leg
 * @fd: Socket
 * @tls: TLS on it, or NULL
 *
 * Return: the leg, not registered with epoll
 * Thread: any
 */
static struct leg leg_of(const bp_engine *engine, enum leg_id id, int fd, bp_tls *tls) {
    int kernel = tls ? bp_tls_ktls(tls) & engine->options.ktls : 0;
    return (struct leg){
        .fd = fd,
        .tls = tls,
        .id = (uint8_t)id,
        .splices_in = !tls || (kernel & BP_KTLS_RX),
        .splices_out = !tls || (kernel & BP_KTLS_TX),
    };
}

/**
 * least_busy() - Choose the thread for a new splice
 * @engine: Engine
 *
 * Return: the thread that has the fewest live splices
 * Thread: any
 */
static struct bp_thread *least_busy(const bp_engine *engine) {
    struct bp_thread *t = &engine->threads[0];
    for (unsigned i = 1; i < engine->thread_count; i++)
        if (atomic_load(&engine->threads[i].live) < atomic_load(&t->live))
            t = &engine->threads[i];
    return t;
}

int bp_engine_splice(bp_engine *engine, int client_fd, bp_tls *client_tls, int satellite_fd, bp_tls *satellite_tls,
                     bp_splice **ret_splice) {
    int r = bp__socket_prepare(client_fd);
    if (r == 0)
        r = bp__socket_prepare(satellite_fd);
    if (r < 0)
        return r;
    bp__socket_limit_unsent(client_fd, engine->options.unsent_bytes);
    BP_ASSERT(client_fd != satellite_fd && (!client_tls || client_tls != satellite_tls));
    bp_splice *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->leg[CLIENT] = leg_of(engine, CLIENT, client_fd, client_tls);
    s->leg[SATELLITE] = leg_of(engine, SATELLITE, satellite_fd, satellite_tls);
    s->broken = NO_LEG;
    s->with_tls = client_tls || satellite_tls;
    for (int id = CLIENT; id <= SATELLITE; id++)
        s->direction[id].pipe[0] = s->direction[id].pipe[1] = -1;
    atomic_store(&s->last_activity_ms, bp__now_ms());
    struct bp_thread *t = least_busy(engine);
    pthread_mutex_lock(&engine->lock);
    if (engine->closed) {
        pthread_mutex_unlock(&engine->lock);
        free(s);
        return -ESHUTDOWN;
    }
    s->thread = t;
    atomic_fetch_add(&t->live, 1);
    pthread_mutex_lock(&t->lock);
    s->next = t->mailbox;
    t->mailbox = s;
    pthread_mutex_unlock(&t->lock);
    pthread_mutex_unlock(&engine->lock);
    *ret_splice = s;
    bp__wake(t->wake_fd);
    return 0;
}

void bp_splice_free(bp_splice *s) {
    BP_CHECK_ENDED(s);
    for (int id = CLIENT; id <= SATELLITE; id++)
        if (s->leg[id].fd >= 0)
            (void)close(s->leg[id].fd);
    free(s);
}

void bp_splice_counters(const bp_splice *s, struct bp_counters *ret) {
    *ret = (struct bp_counters){
        .up_bytes = atomic_load_explicit(&s->direction[CLIENT].bytes, memory_order_relaxed),
        .down_bytes = atomic_load_explicit(&s->direction[SATELLITE].bytes, memory_order_relaxed),
        .spliced_bytes = atomic_load_explicit(&s->spliced_bytes, memory_order_relaxed),
        .last_activity_ms = atomic_load_explicit(&s->last_activity_ms, memory_order_relaxed),
        .first_down_ms = atomic_load_explicit(&s->first_down_ms, memory_order_relaxed),
        .reason = atomic_load(&s->reason),
        .error = atomic_load(&s->error),
    };
}

/**
 * request() - Tell the thread of a splice that `abort` or `give_back` of one of its splices was set
 * @s: Splice
 *
 * Thread: any
 */
static void request(const bp_splice *s) {
    BP_ASSERT(atomic_load(&s->abort) || atomic_load(&s->give_back));
    atomic_store(&s->thread->requests, true);
    bp__wake(s->thread->wake_fd);
}

void bp_splice_abort(bp_splice *s) {
    atomic_store(&s->abort, true);
    request(s);
}

int bp_splice_give_back(bp_splice *s) {
    if (s->with_tls)
        return -EOPNOTSUPP;
    atomic_store(&s->give_back, true);
    request(s);
    return 0;
}

int bp_splice_take_sockets(bp_splice *s, int *ret_client_fd, int *ret_satellite_fd) {
    if (atomic_load(&s->reason) != BP_GIVEN_BACK || s->leg[CLIENT].fd < 0)
        return -EINVAL;
    BP_CHECK_ENDED(s);
    *ret_client_fd = s->leg[CLIENT].fd;
    *ret_satellite_fd = s->leg[SATELLITE].fd;
    s->leg[CLIENT].fd = s->leg[SATELLITE].fd = -1;
    return 0;
}

void bp_engine_statistics(bp_engine *engine, struct bp_statistics *ret) {
    *ret = (struct bp_statistics){0};
    for (unsigned i = 0; i < engine->thread_count; i++) {
        struct bp_thread *t = &engine->threads[i];
        ret->live += atomic_load(&t->live);
        ret->pipes_open += atomic_load(&t->pipes_open);
        ret->pipe_fallbacks += atomic_load(&t->pipe_fallbacks);
        ret->spliced_bytes += atomic_load(&t->spliced_bytes);
        ret->copied_bytes += atomic_load(&t->copied_bytes);
    }
}

unsigned bp_engine_threads(const bp_engine *engine) { return engine->thread_count; }

int bp_engine_thread_cpu_ns(const bp_engine *engine, unsigned index, uint64_t *ret_ns) {
    if (index >= engine->thread_count || !engine->threads[index].started)
        return -EINVAL;
    return bp__thread_cpu_ns(engine->threads[index].thread, ret_ns);
}

int bp_engine_thread_priority(const bp_engine *engine, unsigned index, enum bp_priority *ret_priority, int *ret_error) {
    if (index >= engine->thread_count)
        return -EINVAL;
    *ret_priority = (enum bp_priority)atomic_load(&engine->threads[index].priority);
    *ret_error = atomic_load(&engine->threads[index].priority_error);
    return 0;
}

int bp_engine_thread_turns(const bp_engine *engine, unsigned index, struct bp_turns *ret) {
    if (index >= engine->thread_count)
        return -EINVAL;
    *ret = bp__turns_read(&engine->threads[index].turns);
    return 0;
}

void bp_engine_close(bp_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    engine->closed = true;
    pthread_mutex_unlock(&engine->lock);
    for (unsigned i = 0; i < engine->thread_count; i++) {
        struct bp_thread *t = &engine->threads[i];
        if (!t->started)
            continue;
        atomic_store(&t->stop, true);
        bp__wake(t->wake_fd);
        (void)pthread_join(t->thread, NULL);
        t->started = false;
        BP_ASSERT(!t->mailbox && !t->splices && !t->ready && !t->pooled);
        BP_ASSERT(atomic_load(&t->live) == 0);
    }
}

void bp_engine_free(bp_engine *engine) {
    if (!engine)
        return;
    bp_engine_close(engine);
    for (bp_splice *s = engine->ended; s;) {
        bp_splice *next = s->next;
        bp_splice_free(s);
        s = next;
    }
    for (unsigned i = 0; i < engine->thread_count; i++) {
        struct bp_thread *t = &engine->threads[i];
        if (t->epoll_fd >= 0)
            (void)close(t->epoll_fd);
        if (t->wake_fd >= 0)
            (void)close(t->wake_fd);
        pthread_mutex_destroy(&t->lock);
        (void)sem_destroy(&t->settled);
    }
    if (engine->event_fd >= 0)
        (void)close(engine->event_fd);
    pthread_mutex_destroy(&engine->lock);
    free(engine->threads);
    free(engine);
}
