/* Pipes, lent to directions that stream. Bounded; a pipe with data left is closed, never reused. */
#include "internal.h"

#include <fcntl.h>
#include <unistd.h>

bool bp__pipe_get(struct bp_thread *thread, int pipe[2]) {
    if (thread->pooled) {
        thread->pooled--;
        pipe[0] = thread->pool[thread->pooled][0];
        pipe[1] = thread->pool[thread->pooled][1];
        return true;
    }
    unsigned wanted = thread->engine->options.pipes;
    unsigned most = wanted && wanted < PIPE_MAX ? wanted : PIPE_MAX;
    if (atomic_load_explicit(&thread->pipes_open, memory_order_relaxed) >= most ||
        pipe2(pipe, O_NONBLOCK | O_CLOEXEC) < 0) {
        pipe[0] = pipe[1] = -1;
    } else if (fcntl(pipe[1], F_GETPIPE_SZ) < PIPE_MIN_BYTES) {
        (void)close(pipe[0]);
        (void)close(pipe[1]);
        pipe[0] = pipe[1] = -1;
    } else {
        atomic_fetch_add_explicit(&thread->pipes_open, 1, memory_order_relaxed);
        return true;
    }
    atomic_fetch_add_explicit(&thread->pipe_fallbacks, 1, memory_order_relaxed);
    return false;
}

static void drop(struct bp_thread *thread, const int pipe[2]) {
    (void)close(pipe[0]);
    (void)close(pipe[1]);
    atomic_fetch_sub_explicit(&thread->pipes_open, 1, memory_order_relaxed);
}

void bp__pipe_put(struct bp_thread *thread, int pipe[2], size_t in_pipe) {
    if (pipe[0] < 0)
        return;
    if (in_pipe || thread->pooled == PIPE_POOL) {
        drop(thread, pipe);
    } else {
        thread->pool[thread->pooled][0] = pipe[0];
        thread->pool[thread->pooled][1] = pipe[1];
        thread->pooled++;
    }
    pipe[0] = pipe[1] = -1;
}

void bp__pipe_drop_all(struct bp_thread *thread) {
    while (thread->pooled) {
        thread->pooled--;
        drop(thread, thread->pool[thread->pooled]);
    }
}
