/* How long a thread polls for events before it sleeps.
 *
 * A thread that sleeps must be woken up, which costs up to 100 us on a virtual machine. A thread that polls finds the next
 * event at once, and takes its core from everybody else meanwhile. So it polls only if events come soon after it fell
 * asleep: the rule is that of the kernel's governor haltpoll (drivers/cpuidle/governors/haltpoll.c). The time grows if the
 * thread slept, and all of the wait was shorter than the limit. It shrinks if the wait was longer.
 */
#include "internal.h"

#include <sys/epoll.h>

#define GROW 2u /* haltpoll's guest_halt_poll_grow, and its other parameters */
#define SHRINK 2u
#define FIRST_NS 50000u

/**
 * adjust() - Choose how long the thread polls the next time
 * @t: Thread, which polled, and then slept
 * @waited_ns: How long both took
 * @most_ns: The longest time that it may poll
 *
 * Thread: own
 */
static void adjust(struct bp_thread *t, uint64_t waited_ns, uint64_t most_ns) {
    if (waited_ns > most_ns) {
        t->poll_ns /= SHRINK;
        return;
    }
    t->poll_ns = t->poll_ns * GROW < FIRST_NS ? FIRST_NS : t->poll_ns * GROW;
    if (t->poll_ns > most_ns)
        t->poll_ns = most_ns;
}

/**
 * bp__wait_for_events() - epoll_wait(2), after some polling if the options want that
 * @t: Thread
 * @events: Receives them
 * @most: How many fit
 * @timeout_ms: As in epoll_wait(2)
 *
 * Return: as epoll_wait(2)
 * Thread: own
 */
int bp__wait_for_events(struct bp_thread *t, struct epoll_event *events, int most, int timeout_ms) {
    uint64_t most_ns = t->engine->options.busy_poll_us * 1000ull;
    if (!most_ns || timeout_ms == 0)
        return epoll_wait(t->epoll_fd, events, most, timeout_ms);
    uint64_t began_ns = bp__now_ns();
    do {
        int count = epoll_wait(t->epoll_fd, events, most, 0);
        if (count)
            return count;
    } while (bp__now_ns() - began_ns < t->poll_ns);
    int count = epoll_wait(t->epoll_fd, events, most, timeout_ms);
    adjust(t, bp__now_ns() - began_ns, most_ns);
    return count;
}
