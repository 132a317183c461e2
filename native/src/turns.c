/* The turns of a thread: how many there were, how long they took, and when the present one began.
 *
 * A turn is what a thread does between two waits. Its thread alone writes these counters, and any thread may read them: a
 * turn that never ends shows that the thread is stuck.
 */
#include "internal.h"

#include <errno.h>
#include <time.h>

/**
 * raise_to() - Raise a counter to a value if it is lower
 * @counter: Written by this thread alone
 * @value: Value
 *
 * Thread: own
 */
static void raise_to(_Atomic uint64_t *counter, uint64_t value) {
    if (value > atomic_load_explicit(counter, memory_order_relaxed))
        atomic_store_explicit(counter, value, memory_order_relaxed);
}

/**
 * add() - Add to a counter, without a locked instruction
 * @counter: Written by this thread alone
 * @value: Value
 *
 * Thread: own
 */
static void add(_Atomic uint64_t *counter, uint64_t value) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + value, memory_order_relaxed);
}

/**
 * bp__turn_begin() - Begin a turn
 * @turns: The thread's
 *
 * Return: the clock, in nanoseconds
 * Thread: own
 */
uint64_t bp__turn_begin(struct turns *turns) {
    uint64_t now_ns = bp__now_ns();
    atomic_store_explicit(&turns->began_ns, now_ns, memory_order_relaxed);
    return now_ns;
}

/**
 * bp__turn_end() - Count the turn and its time
 * @turns: The thread's
 *
 * Thread: own
 */
void bp__turn_end(struct turns *turns) {
    uint64_t took_ns = bp__now_ns() - atomic_load_explicit(&turns->began_ns, memory_order_relaxed);
    add(&turns->count, 1);
    add(&turns->long_count, took_ns > LONG_TURN_NS);
    raise_to(&turns->longest_ns, took_ns);
    atomic_store_explicit(&turns->began_ns, 0, memory_order_relaxed);
}

/**
 * bp__turns_read() - Read the turns of a thread
 * @turns: The thread's
 *
 * Return: the counters
 * Thread: any
 */
struct bp_turns bp__turns_read(const struct turns *turns) {
    uint64_t began_ns = atomic_load_explicit(&turns->began_ns, memory_order_relaxed), now_ns = bp__now_ns();
    return (struct bp_turns){
        .turns = atomic_load_explicit(&turns->count, memory_order_relaxed),
        .long_turns = atomic_load_explicit(&turns->long_count, memory_order_relaxed),
        .longest_ns = atomic_load_explicit(&turns->longest_ns, memory_order_relaxed),
        .running_ns = began_ns && now_ns > began_ns ? now_ns - began_ns : 0,
    };
}

/**
 * bp__thread_cpu_ns() - Read the CPU time that a thread has used
 * @thread: Thread that was not joined
 * @ret_ns: Receives nanoseconds
 *
 * Return: 0, or a negative errno
 * Thread: any
 */
int bp__thread_cpu_ns(pthread_t thread, uint64_t *ret_ns) {
    clockid_t clock;
    struct timespec used;
    int r = pthread_getcpuclockid(thread, &clock);
    if (r)
        return -r;
    if (clock_gettime(clock, &used) < 0)
        return -errno;
    *ret_ns = (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
    return 0;
}
