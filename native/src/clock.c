/* The clock of the whole engine: CLOCK_MONOTONIC (clock_gettime(2)). */
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
