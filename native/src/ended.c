/* The ended list: splices go from the engine's threads to the caller through it, and eventfd(2) tells who waits. */
#include "internal.h"

#include <unistd.h>

void bp__wake(int fd) {
    uint64_t one = 1;
    ssize_t put = write(fd, &one, sizeof one);
    (void)put; /* EAGAIN: the counter is far from empty, so the reader is awake */
}

void bp__engine_ended(bp_engine *engine, bp_splice *s) {
    s->next = NULL;
    pthread_mutex_lock(&engine->lock);
    *engine->ended_tail = s;
    engine->ended_tail = &s->next;
    pthread_mutex_unlock(&engine->lock);
    bp__wake(engine->event_fd);
}

bp_splice *bp_engine_take_ended(bp_engine *engine) {
    uint64_t ignored;
    ssize_t got = read(engine->event_fd, &ignored, sizeof ignored);
    (void)got;
    pthread_mutex_lock(&engine->lock);
    bp_splice *s = engine->ended;
    if (s) {
        engine->ended = s->next;
        if (!engine->ended)
            engine->ended_tail = &engine->ended;
    }
    pthread_mutex_unlock(&engine->lock);
    return s;
}
