/* How long a thread polls, without a clock: `rule LIMIT_US GAP_US...` prints for each gap between two events whether the
 * thread slept, and how long it will poll the next time, in microseconds. A poll takes a microsecond. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

#define POLL_NS 1000u

static uint64_t now_ns, event_ns;
static bool slept;

uint64_t bp__now_ns(void) { return now_ns; }

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout_ms) {
    (void)fd, (void)events, (void)most;
    if (timeout_ms == 0) {
        now_ns += POLL_NS;
        return now_ns >= event_ns;
    }
    slept = true;
    now_ns = now_ns > event_ns ? now_ns : event_ns;
    return 1;
}

int main(int argc, char **argv) {
    static bp_engine engine;
    static struct bp_thread thread = {.engine = &engine};
    struct epoll_event event;
    engine.options.busy_poll_us = argc > 1 ? (uint32_t)atoi(argv[1]) : 0;
    for (int i = 2; i < argc; i++) {
        event_ns = now_ns + (uint64_t)atoi(argv[i]) * 1000u;
        slept = false;
        if (bp__wait_for_events(&thread, &event, 1, 1000) != 1)
            return 1;
        printf("%s %llu\n", slept ? "slept" : "polled", (unsigned long long)thread.poll_ns / 1000u);
    }
    return 0;
}
