/* Pipes for directions that stream. Their number is bounded; a pipe with data left is closed, never used again. */
#include "check.h"

#include <fcntl.h>
#include <unistd.h>

/**
 * bp__pipe_get() - Get an empty pipe, from the pool or the kernel
 * @t: Thread
 * @pipe: Receives reading and writing end, non-blocking; -1 each if there is none
 *
 * Return: whether there is one; none if the thread has its share open, or the kernel refuses one of full size
 * Thread: own
 */
bool bp__pipe_get(struct bp_thread *t, int pipe[2]) {
    BP_CHECK_OWN(t);
    BP_ASSERT(pipe[0] < 0 && pipe[1] < 0);
    if (t->pooled) {
        t->pooled--;
        pipe[0] = t->pool[t->pooled][0];
        pipe[1] = t->pool[t->pooled][1];
        BP_ASSERT(pipe[0] >= 0 && pipe[1] >= 0);
        return true;
    }
    unsigned wanted = t->engine->options.pipes;
    unsigned most = wanted && wanted < PIPE_MAX ? wanted : PIPE_MAX;
    if (atomic_load_explicit(&t->pipes_open, memory_order_relaxed) >= most || pipe2(pipe, O_NONBLOCK | O_CLOEXEC) < 0) {
        pipe[0] = pipe[1] = -1;
    } else if (fcntl(pipe[1], F_GETPIPE_SZ) < PIPE_MIN_BYTES) {
        (void)close(pipe[0]);
        (void)close(pipe[1]);
        pipe[0] = pipe[1] = -1;
    } else {
        atomic_fetch_add_explicit(&t->pipes_open, 1, memory_order_relaxed);
        return true;
    }
    atomic_fetch_add_explicit(&t->pipe_fallbacks, 1, memory_order_relaxed);
    return false;
}

/**
 * drop() - Close a pipe
 * @t: Thread
 * @pipe: Both ends, which are closed
 *
 * Thread: own
 */
static void drop(struct bp_thread *t, const int pipe[2]) {
    BP_ASSERT(pipe[0] >= 0 && pipe[1] >= 0);
    BP_ASSERT(atomic_load(&t->pipes_open) > 0);
    (void)close(pipe[0]);
    (void)close(pipe[1]);
    atomic_fetch_sub_explicit(&t->pipes_open, 1, memory_order_relaxed);
}

/**
 * bp__pipe_put() - Give a pipe back: to the pool if it is empty and the pool has room, else to the kernel
 * @t: Thread
 * @pipe: Both ends, or -1 each; -1 each afterwards
 * @in_pipe: Bytes that are in it, and are lost
 *
 * Thread: own
 */
void bp__pipe_put(struct bp_thread *t, int pipe[2], size_t in_pipe) {
    BP_CHECK_OWN(t);
    BP_ASSERT((pipe[0] < 0) == (pipe[1] < 0));
    BP_ASSERT(pipe[0] >= 0 || !in_pipe);
    if (pipe[0] < 0)
        return;
    if (in_pipe || t->pooled == PIPE_POOL) {
        drop(t, pipe);
    } else {
        t->pool[t->pooled][0] = pipe[0];
        t->pool[t->pooled][1] = pipe[1];
        t->pooled++;
    }
    pipe[0] = pipe[1] = -1;
}

/**
 * bp__pipe_drop_all() - Close the pipes of the pool
 * @t: Thread that ends
 *
 * Thread: own
 */
void bp__pipe_drop_all(struct bp_thread *t) {
    BP_CHECK_OWN(t);
    while (t->pooled) {
        t->pooled--;
        drop(t, t->pool[t->pooled]);
    }
    BP_ASSERT(atomic_load(&t->pipes_open) == 0);
}
