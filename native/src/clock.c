/* The clock of the whole engine: CLOCK_MONOTONIC (clock_gettime(2)). Others where it is said. */
#include "internal.h"

#include <time.h>

/**
 * bp__now_ns() - Read the clock
 *
 * Return: nanoseconds since some point in the past
 * Thread: any
 */
uint64_t bp__now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/**
 * bp__now_ms() - Read the clock
 *
 * Return: milliseconds since the same point
 * Thread: any
 */
uint64_t bp__now_ms(void) { return bp__now_ns() / 1000000u; }

/**
 * bp__boot_us() - Read the clock that does not stand still while the machine is suspended, CLOCK_BOOTTIME
 *
 * Return: microseconds
 * Thread: any
 */
int64_t bp__boot_us(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/**
 * bp__wall_us() - Read the time of day, CLOCK_REALTIME
 *
 * Return: microseconds since the epoch
 * Thread: any
 */
int64_t bp__wall_us(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}
