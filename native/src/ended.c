/* The ended list: splices go from the engine's threads back to the caller. An eventfd(2) says that there are some. */
#include "check.h"

#include <unistd.h>

/**
 * bp__wake() - Make an eventfd readable, so that the thread that waits for it wakes
 * @event_fd: Borrows
 *
 * Thread: any
 */
void bp__wake(int event_fd) {
    uint64_t one = 1;
    ssize_t put = write(event_fd, &one, sizeof one);
    (void)put; /* EAGAIN: the counter is at its maximum, so the eventfd is readable already */
}

/**
 * bp__engine_ended() - Put a splice on the ended list
 * @engine: Engine
 * @s: Splice that has ended and that no list of its thread has
 *
 * Thread: own; from then on the splice is the caller's who takes it
 */
void bp__engine_ended(bp_engine *engine, bp_splice *s) {
    BP_CHECK_OWN(s->thread);
    BP_CHECK_ENDED(s);
    s->next = NULL;
    pthread_mutex_lock(&engine->lock);
    BP_ASSERT(*engine->ended_tail == NULL);
    BP_ASSERT((engine->ended == NULL) == (engine->ended_tail == &engine->ended));
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
        BP_CHECK_ENDED(s);
        engine->ended = s->next;
        if (!engine->ended)
            engine->ended_tail = &engine->ended;
    }
    BP_ASSERT(*engine->ended_tail == NULL);
    pthread_mutex_unlock(&engine->lock);
    return s;
}
