/* One engine thread: its epoll loop, its mailbox, its ready list, its clock.
 *
 * A turn is what happens between two waits. While it lasts, no other connection of the thread is served. So each kind of
 * work has a limit per turn: EVENTS for events, READY_A_TURN for splices that have more to do, ENDS_A_TURN for ends, and
 * LOOP_BYTES for all bytes that move. Other threads can read when a turn began: a turn that never ends shows that the
 * thread is stuck.
 */
#include "check.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 256

/* Ended splices wait here until no event of the batch and no list can refer to them any more. */
struct retired {
    bp_splice *first;
};

/**
 * ended() - Whether a splice has ended
 * @s: Splice
 *
 * Return: whether its reason is set
 * Thread: own
 */
static bool ended(const bp_splice *s) { return atomic_load_explicit(&s->reason, memory_order_relaxed) != BP_LIVE; }

/**
 * retire() - Keep an ended splice until publish_retired()
 * @retired: Where to
 * @s: Splice, just ended
 *
 * Thread: own
 */
static void retire(struct retired *retired, bp_splice *s) {
    BP_ASSERT(ended(s));
    BP_ASSERT(s != retired->first);
    s->next = retired->first;
    retired->first = s;
}

/**
 * publish_retired() - Put retired splices on the ended list; the events of the turn are done
 * @t: Thread
 * @retired: Keeps those that the ready list still has; a turn to come takes them off it
 *
 * Thread: own
 */
static void publish_retired(struct bp_thread *t, struct retired *retired) {
    bp_splice **at = &retired->first;
    while (*at) {
        bp_splice *s = *at;
        if (s->ready) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        bp__engine_ended(t->engine, s);
    }
}

/**
 * adopt_mailbox() - Make the splices of the mailbox the thread's own
 * @t: Thread
 *
 * Thread: own
 */
static void adopt_mailbox(struct bp_thread *t) {
    pthread_mutex_lock(&t->lock);
    bp_splice *s = t->mailbox;
    t->mailbox = NULL;
    pthread_mutex_unlock(&t->lock);
    while (s) {
        bp_splice *next = s->next;
        bp__splice_adopt(t, s);
        s = next;
    }
}

/**
 * take_requests() - Do what other threads ask: splices to adopt, to abort, to give back
 * @t: Thread, whose wake_fd they write to after they have asked
 * @retired: Receives the splices that end
 *
 * Return: whether more ends are asked for than a turn takes
 * Thread: own
 */
static bool take_requests(struct bp_thread *t, struct retired *retired) {
    uint64_t ignored;
    unsigned ends = 0;
    ssize_t got = read(t->wake_fd, &ignored, sizeof ignored);
    (void)got;
    adopt_mailbox(t);
    if (!atomic_exchange(&t->requests, false))
        return false;
    bp_splice *s = t->splices;
    while (s && ends < ENDS_A_TURN) {
        bp_splice *next = s->next;
        if (atomic_load(&s->abort)) {
            bp__splice_end(t, s, BP_ABORTED, 0);
        } else if (atomic_load(&s->give_back) && !s->giving_back) {
            s->giving_back = true;
            bp__ready(t, s);
        }
        if (ended(s)) {
            retire(retired, s);
            ends++;
        }
        s = next;
    }
    if (s)
        atomic_store(&t->requests, true);
    return s != NULL;
}

/**
 * run_ready() - Run the first READY_A_TURN splices of the ready list
 * @t: Thread
 * @retired: Receives the splices that end
 *
 * Thread: own
 */
static void run_ready(struct bp_thread *t, struct retired *retired) {
    unsigned count = t->ready_count < READY_A_TURN ? t->ready_count : READY_A_TURN;
    for (; count; count--) {
        bp_splice *s = bp__ready_take(t);
        if (ended(s)) /* it is retired already, and can be published now */
            continue;
        bp__splice_run(t, s, BOTH);
        if (ended(s))
            retire(retired, s);
    }
}

/**
 * tick() - Find the splices that are over a timeout
 * @t: Thread
 * @retired: Receives the splices that end
 *
 * Return: whether more are over a timeout than a turn ends
 * Thread: own
 */
static bool tick(struct bp_thread *t, struct retired *retired) {
    unsigned ends = 0;
    bp_splice *s = t->splices;
    while (s && ends < ENDS_A_TURN) {
        bp_splice *next = s->next;
        bp__splice_tick(t, s);
        if (ended(s)) {
            retire(retired, s);
            ends++;
        }
        s = next;
    }
    return s != NULL;
}

/**
 * take_events() - Serve the splices that epoll has events for
 * @t: Thread
 * @retired: Receives the splices that end
 * @events: What epoll_wait(2) returned
 * @count: How many; below 0: none
 *
 * Return: whether the thread's wake_fd is among them
 * Thread: own
 */
static bool take_events(struct bp_thread *t, struct retired *retired, const struct epoll_event *events, int count) {
    bool woken = false;
    BP_ASSERT(count <= EVENTS);
    for (int i = 0; i < count; i++) {
        struct leg *leg = events[i].data.ptr;
        if (!leg) {
            woken = true;
            continue;
        }
        BP_ASSERT(leg->id == CLIENT || leg->id == SATELLITE);
        struct leg *first = leg - leg->id;
        bp_splice *s = (bp_splice *)(void *)((char *)first - offsetof(bp_splice, leg));
        BP_ASSERT(s->thread == t);
        if (ended(s))
            continue;
        bp__splice_event(t, s, (enum leg_id)leg->id, events[i].events);
        if (ended(s))
            retire(retired, s);
    }
    return woken;
}

/**
 * begin_turn() - Set the clock and the share of each direction
 * @t: Thread
 * @busy: How many events and ready splices the turn has
 *
 * Thread: own, which alone writes the counters of its turns
 */
static void begin_turn(struct bp_thread *t, unsigned busy) {
    BP_ASSERT(atomic_load(&t->turns.began_ns) == 0);
    uint64_t now_ns = bp__turn_begin(&t->turns);
    size_t share = LOOP_BYTES / (busy ? busy : 1);
    BP_ASSERT(now_ns / 1000000u >= t->now_ms);
    t->now_ms = now_ns / 1000000u;
    t->turn_bytes = share > TURN_BYTES ? TURN_BYTES : share < SCRATCH_BYTES ? SCRATCH_BYTES : share;
    BP_CHECK_OWN(t);
}

/**
 * end_turn() - Count the turn and its time
 * @t: Thread
 *
 * Thread: own
 */
static void end_turn(struct bp_thread *t) {
    bp__turn_end(&t->turns);
    BP_CHECK_THREAD(t);
}

/**
 * end_all() - End every splice, because the engine closes
 * @t: Thread
 * @retired: Splices that ended before
 *
 * Thread: own
 */
static void end_all(struct bp_thread *t, struct retired *retired) {
    (void)take_requests(t, retired);
    while (t->splices) {
        bp_splice *s = t->splices;
        bp__splice_end(t, s, BP_ENGINE_CLOSED, 0);
        retire(retired, s);
    }
    while (t->ready)
        run_ready(t, retired);
    publish_retired(t, retired);
    BP_ASSERT(!retired->first);
    bp__pipe_drop_all(t);
    free(t->batch);
    t->batch = NULL;
    BP_CHECK_THREAD(t);
}

/**
 * bp__thread_main() - The body of a thread of the engine
 * @argument: Its struct bp_thread
 *
 * Return: NULL, when the engine closes
 * Thread: own
 */
void *bp__thread_main(void *argument) {
    struct bp_thread *t = argument;
    struct epoll_event events[EVENTS];
    struct retired retired = {NULL};
    uint64_t next_tick_ms = bp__now_ms() + TICK_MS;
    bool asked = false, late = false;
    BP_CHECK_ENTER(t);
    bp__priority_begin(t);
    (void)sem_post(&t->settled);
    while (!atomic_load(&t->stop)) {
        int timeout_ms = t->ready || asked || late ? 0 : t->splices ? TICK_MS : -1;
        int count = bp__wait_for_events(t, events, EVENTS, timeout_ms);
        unsigned ready = t->ready_count < READY_A_TURN ? t->ready_count : READY_A_TURN;
        begin_turn(t, (count > 0 ? (unsigned)count : 0) + ready);
        bool woken = take_events(t, &retired, events, count);
        if (woken || asked)
            asked = take_requests(t, &retired);
        run_ready(t, &retired);
        if (late || t->now_ms >= next_tick_ms) {
            next_tick_ms = t->now_ms + TICK_MS;
            late = tick(t, &retired);
        }
        publish_retired(t, &retired);
        end_turn(t);
        bp__priority_window(t);
    }
    end_all(t, &retired);
    BP_CHECK_ENTER(NULL);
    return NULL;
}
