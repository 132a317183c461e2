#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define USUAL_PIPE_BYTES 65536

static _Thread_local bool exempt;
static _Atomic unsigned calls, memory, allocations;
static _Atomic bool tiny_pipes;
static _Atomic unsigned long state = 1, mallocs, reads, whole_sends;

void faults_exempt_this_thread(void) { exempt = true; }

void faults_set(struct faults wanted, unsigned seed) {
    atomic_store(&calls, wanted.calls);
    atomic_store(&memory, wanted.memory);
    atomic_store(&tiny_pipes, wanted.tiny_pipes);
    atomic_store(&state, seed * 2654435761ul + 1);
}

void faults_set_malloc(unsigned per_mille) { atomic_store(&allocations, per_mille); }

unsigned long faults_of_malloc(void) { return atomic_load(&mallocs); }

unsigned long faults_reads(void) { return atomic_load(&reads); }

unsigned long faults_whole_sends(void) { return atomic_load(&whole_sends); }

static unsigned roll(void) {
    unsigned long next = atomic_fetch_add(&state, 0x9e3779b97f4a7c15ul);
    next = (next ^ (next >> 30)) * 0xbf58476d1ce4e5b9ul;
    return (unsigned)(next >> 33);
}

static bool hit(_Atomic unsigned *rate) { return !exempt && roll() % 1000 < atomic_load(rate); }

/* An errno to fail with, or 0; a call may be shortened instead. */
static int fault(size_t *bytes) {
    if (hit(&memory))
        return roll() % 2 ? ENOMEM : ENOBUFS;
    if (!hit(&calls))
        return 0;
    unsigned kind = roll() % 3;
    if (kind == 2 && *bytes > 1)
        *bytes = 1 + roll() % (*bytes - 1);
    return kind == 0 ? EINTR : kind == 1 ? EAGAIN : 0;
}

ssize_t __real_recv(int fd, void *buffer, size_t bytes, int flags);
ssize_t __wrap_recv(int fd, void *buffer, size_t bytes, int flags);
ssize_t __wrap_recv(int fd, void *buffer, size_t bytes, int flags) {
    errno = fault(&bytes);
    ssize_t got = errno ? -1 : __real_recv(fd, buffer, bytes, flags);
    if (!exempt && got > 0)
        atomic_fetch_add(&reads, 1);
    return got;
}

ssize_t __real_send(int fd, const void *data, size_t bytes, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t bytes, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t bytes, int flags) {
    size_t wanted = bytes;
    errno = fault(&bytes);
    ssize_t put = errno ? -1 : __real_send(fd, data, bytes, flags);
    if (!exempt && put == (ssize_t)wanted)
        atomic_fetch_add(&whole_sends, 1);
    return put;
}

ssize_t __real_splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t bytes, unsigned flags);
ssize_t __wrap_splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t bytes, unsigned flags);
ssize_t __wrap_splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t bytes, unsigned flags) {
    errno = fault(&bytes);
    return errno ? -1 : __real_splice(in, in_at, out, out_at, bytes, flags);
}

int __real_epoll_wait(int fd, struct epoll_event *events, int count, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int count, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int count, int timeout_ms) {
    if (hit(&calls)) {
        errno = EINTR;
        return -1;
    }
    return __real_epoll_wait(fd, events, count, timeout_ms);
}

int __real_pipe2(int pipe[2], int flags);
int __wrap_pipe2(int pipe[2], int flags);
int __wrap_pipe2(int pipe[2], int flags) {
    if (hit(&memory)) {
        errno = EMFILE;
        return -1;
    }
    int made = __real_pipe2(pipe, flags);
    if (made == 0 && atomic_load(&tiny_pipes))
        (void)fcntl(pipe[1], F_SETPIPE_SZ, PAGE_BYTES);
    return made;
}

int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    long argument = va_arg(arguments, long);
    va_end(arguments);
    if (command == F_GETPIPE_SZ && !exempt && atomic_load(&tiny_pipes))
        return USUAL_PIPE_BYTES;
    return __real_fcntl(fd, command, argument);
}

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes) {
    if (hit(&memory) || hit(&allocations)) {
        atomic_fetch_add(&mallocs, 1);
        errno = ENOMEM;
        return NULL;
    }
    return __real_malloc(bytes);
}
