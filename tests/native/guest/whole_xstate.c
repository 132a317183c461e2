/*
 * Preloaded into User-mode Linux, so that it runs on processors whose register state is larger than its buffer.
 *
 * User-mode Linux 6.1 sets its processes' registers with PTRACE_SETREGSET and a buffer of 2,696 bytes. Linux takes the whole
 * XSAVE area or none of it (EFAULT: xstateregs_set() in arch/x86/kernel/fpu/regset.c), and with AMX that area has 11,008
 * bytes. So the bytes beyond the buffer are read first and set again as they were. The standard format of XSAVE has each
 * component at a fixed offset (Intel SDM, volume 1, section 13.4), so a prefix of the area means the same in both.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif
#define XSTATE_BYTES_MAX (64 << 10)

typedef long ptrace_fn(enum __ptrace_request request, pid_t pid, void *address, void *data);

long ptrace(enum __ptrace_request request, ...) {
    static char area[XSTATE_BYTES_MAX]; /* one thread of User-mode Linux traces */
    ptrace_fn *next = (ptrace_fn *)dlsym(RTLD_NEXT, "ptrace");
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (next == NULL) {
        errno = ENOSYS;
        return -1;
    }
    if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE) {
        const struct iovec *part = data;
        struct iovec whole = {.iov_base = area, .iov_len = sizeof area};
        if (next(PTRACE_GETREGSET, pid, address, &whole) < 0)
            return -1;
        if (whole.iov_len > part->iov_len) {
            memcpy(area, part->iov_base, part->iov_len);
            return next(request, pid, address, &whole);
        }
    }
    return next(request, pid, address, data);
}
