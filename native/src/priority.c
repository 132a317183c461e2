/* How soon the kernel runs an engine thread that has something to do, beside whatever else wants its core.
 *
 * A slice (sched(7), EEVDF) of 0.1 ms needs no privilege: a thread that asks for short turns is run before those that ask
 * for long ones, as long as it stays below its fair share of the core. SCHED_RR runs it before all of them, also above its
 * share, and starves them if it never waits. So a thread that is busy for most of two windows leaves SCHED_RR, until it has
 * been calm for a while.
 *
 * The kernel forgets at each sleep what a thread has not used of its share, and not what it has used too much. So after a burst
 * of the engine's a thread of the same weight that only computes runs for as long as the burst took, whatever the slices. Threads
 * that can wait therefore give way: the engine then owes them little.
 *
 * A kernel without slices (before 6.12) accepts sched_setattr(2) and ignores the slice, so it is read back.
 */
#include "check.h"

#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLICE_NS 100000u /* the least that the kernel grants */
#define REALTIME_PRIORITY 1 /* the lowest of SCHED_RR: still before every thread without it */
#define GIVE_WAY_NICE 10 /* a weight of 110 beside 1024 (sched(7)) */
#define WINDOW_NS 100000000u /* over which a thread's share of its core is measured */
#define BUSY_PERCENT 60u
#define BUSY_WINDOWS 2u /* this many windows in a row over BUSY_PERCENT end SCHED_RR */
#define CALM_PERCENT 30u
#define CALM_WINDOWS 20u /* this many in a row under CALM_PERCENT let it begin again */

/* struct sched_attr of sched_setattr(2), first version: Debian 12's libc has none */
struct attributes {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

/**
 * set_slice() - Let the calling thread run under SCHED_OTHER with short slices
 *
 * Return: 0; -EOPNOTSUPP if the kernel has no slices; or another negative errno
 * Thread: any
 */
static int set_slice(void) {
    struct attributes wanted = {.size = sizeof wanted}, set = {0};
    if (syscall(SYS_sched_getattr, 0, &wanted, sizeof wanted, 0) < 0)
        return -errno;
    wanted.policy = SCHED_OTHER;
    wanted.priority = 0;
    wanted.runtime_ns = SLICE_NS;
    if (syscall(SYS_sched_setattr, 0, &wanted, 0) < 0 || syscall(SYS_sched_getattr, 0, &set, sizeof set, 0) < 0)
        return -errno;
    return set.policy == SCHED_OTHER && set.runtime_ns == SLICE_NS ? 0 : -EOPNOTSUPP;
}

int bp_thread_give_way(void) {
    struct attributes wanted = {.size = sizeof wanted};
    if (syscall(SYS_sched_getattr, 0, &wanted, sizeof wanted, 0) < 0)
        return -errno;
    if (wanted.policy != SCHED_OTHER || wanted.nice >= GIVE_WAY_NICE)
        return 0;
    wanted.nice = GIVE_WAY_NICE;
    wanted.runtime_ns = 0; /* the system's slice, also if that changes */
    return syscall(SYS_sched_setattr, 0, &wanted, 0) < 0 ? -errno : 0;
}

/**
 * set_realtime() - Let the calling thread run under SCHED_RR
 *
 * Return: 0, or a negative errno: -EPERM without RLIMIT_RTPRIO, or if a filter of system calls forbids it
 * Thread: any
 */
static int set_realtime(void) {
    struct sched_param param = {.sched_priority = REALTIME_PRIORITY};
    return sched_setscheduler(0, SCHED_RR, &param) < 0 ? -errno : 0;
}

/**
 * leave_realtime() - Let the calling thread run under SCHED_OTHER
 *
 * Return: 0, or a negative errno
 * Thread: any
 */
static int leave_realtime(void) {
    struct sched_param param = {.sched_priority = 0};
    return sched_setscheduler(0, SCHED_OTHER, &param) < 0 ? -errno : 0;
}

/**
 * used_ns() - The CPU time of the calling thread
 *
 * Return: nanoseconds
 * Thread: any
 */
static uint64_t used_ns(void) {
    struct timespec used = {0};
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

/**
 * bp__priority_apply() - Give the calling thread a priority, or the best below it that the kernel grants
 * @wanted: Priority
 * @ret_error: Receives the errno of what was refused, or 0
 *
 * Return: the priority that holds
 * Thread: any
 */
enum bp_priority bp__priority_apply(enum bp_priority wanted, int *ret_error) {
    int r = 0;
    *ret_error = 0;
    if (wanted == BP_PRIORITY_REALTIME) {
        r = set_realtime();
        if (r == 0)
            return BP_PRIORITY_REALTIME;
        *ret_error = -r;
    }
    if (wanted != BP_PRIORITY_NORMAL) {
        r = set_slice();
        if (r == 0)
            return BP_PRIORITY_SLICE;
        *ret_error = *ret_error ? *ret_error : -r;
    }
    return BP_PRIORITY_NORMAL;
}

/**
 * bp__priority_begin() - Give a thread of the engine the priority of the options
 * @t: Thread
 *
 * Thread: own
 */
void bp__priority_begin(struct bp_thread *t) {
    int error = 0;
    enum bp_priority held = bp__priority_apply(t->engine->options.priority, &error);
    atomic_store(&t->priority, (int)held);
    atomic_store(&t->priority_error, error);
    t->share.watched = held == BP_PRIORITY_REALTIME;
    t->share.began_ns = bp__now_ns();
    t->share.used_ns = used_ns();
}

/**
 * bp__priority_window() - Look at the thread's share of its core, and leave SCHED_RR or return to it
 * @t: Thread
 *
 * Does nothing until a window has passed, or if the thread never had SCHED_RR.
 *
 * Thread: own
 */
void bp__priority_window(struct bp_thread *t) {
    struct share *share = &t->share;
    uint64_t now_ns = bp__now_ns(), passed_ns = now_ns - share->began_ns;
    if (!share->watched || passed_ns < WINDOW_NS)
        return;
    uint64_t used = used_ns(), percent = (used - share->used_ns) * 100u / passed_ns;
    BP_ASSERT(used >= share->used_ns);
    uint64_t windows = passed_ns / WINDOW_NS; /* the thread may have waited for many */
    share->began_ns = now_ns;
    share->used_ns = used;
    share->busy = percent > BUSY_PERCENT ? share->busy + 1 : 0;
    share->calm = percent < CALM_PERCENT ? share->calm + windows : 0;
    int error = 0;
    if (atomic_load(&t->priority) == BP_PRIORITY_REALTIME) {
        if (share->busy >= BUSY_WINDOWS && leave_realtime() == 0)
            atomic_store(&t->priority, (int)bp__priority_apply(BP_PRIORITY_SLICE, &error));
    } else if (share->calm >= CALM_WINDOWS) {
        atomic_store(&t->priority, (int)bp__priority_apply(BP_PRIORITY_REALTIME, &error));
    }
}
