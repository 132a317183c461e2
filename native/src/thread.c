/* One engine thread: epoll, its mailbox, its ready list, its clock.
 *
 * A turn is what happens between two waits, and nobody on the thread is heard meanwhile. So all that may be much is done
 * some at a time: events by EVENTS, splices with more to do by READY_A_TURN, ends by ENDS_A_TURN, and all that moves by
 * LOOP_BYTES. When a turn began is there for others to read: a thread that never ends one is stuck.
 */
#include "internal.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 256

static bool ended(const bp_splice *s) { return atomic_load_explicit(&s->reason, memory_order_relaxed) != BP_LIVE; }

/* Ended splices wait here until no event of the batch and no list can name them any more. */
struct grave {
    bp_splice *first;
};

static void bury(struct grave *grave, bp_splice *s) {
    s->next = grave->first;
    grave->first = s;
}

static void hand_out(struct bp_thread *t, struct grave *grave) {
    bp_splice **at = &grave->first;
    while (*at) {
        bp_splice *s = *at;
        if (s->ready) { /* still on the ready list, which drops it at its next turn */
            at = &s->next;
            continue;
        }
        *at = s->next;
        bp__engine_ended(t->engine, s);
    }
}

/* What others ask of this thread: splices to adopt, and requests. They write to wake_fd, behind having asked. Returns
 * whether more ends are asked for than a turn takes. */
static bool take_mailbox(struct bp_thread *t, struct grave *grave) {
    uint64_t ignored;
    unsigned ends = 0;
    ssize_t got = read(t->wake_fd, &ignored, sizeof ignored);
    (void)got;
    pthread_mutex_lock(&t->lock);
    bp_splice *s = t->mailbox;
    t->mailbox = NULL;
    pthread_mutex_unlock(&t->lock);
    while (s) {
        bp_splice *next = s->next;
        bp__splice_adopt(t, s);
        s = next;
    }
    if (!atomic_exchange(&t->requests, false))
        return false;
    for (s = t->splices; s && ends < ENDS_A_TURN;) {
        bp_splice *next = s->next;
        if (atomic_load(&s->abort)) {
            bp__splice_end(t, s, BP_ABORTED, 0);
        } else if (atomic_load(&s->give_back) && !s->giving_back) {
            s->giving_back = true;
            bp__ready(t, s);
        }
        if (ended(s)) {
            bury(grave, s);
            ends++;
        }
        s = next;
    }
    if (s)
        atomic_store(&t->requests, true);
    return s != NULL;
}

static void run_ready(struct bp_thread *t, struct grave *grave) {
    unsigned count = t->ready_count < READY_A_TURN ? t->ready_count : READY_A_TURN;
    for (; count; count--) {
        bp_splice *s = bp__ready_take(t);
        if (ended(s)) /* and buried: handed out now */
            continue;
        bp__splice_run(t, s, BOTH);
        if (ended(s))
            bury(grave, s);
    }
}

/* Returns whether more have run out of time than a turn ends. */
static bool tick(struct bp_thread *t, struct grave *grave) {
    unsigned ends = 0;
    bp_splice *s = t->splices;
    while (s && ends < ENDS_A_TURN) {
        bp_splice *next = s->next;
        bp__splice_tick(t, s);
        if (ended(s)) {
            bury(grave, s);
            ends++;
        }
        s = next;
    }
    return s != NULL;
}

static void take_events(struct bp_thread *t, struct grave *grave, const struct epoll_event *events, int count,
                        bool *ret_woken) {
    for (int i = 0; i < count; i++) {
        struct leg *leg = events[i].data.ptr;
        if (!leg) {
            *ret_woken = true;
            continue;
        }
        struct leg *first = leg - leg->id;
        bp_splice *s = (bp_splice *)(void *)((char *)first - offsetof(bp_splice, leg));
        if (ended(s))
            continue;
        bp__splice_event(t, s, (enum leg_id)leg->id, events[i].events);
        if (ended(s))
            bury(grave, s);
    }
}

/* The thread alone writes what it tells of its turns. */
static void begin_turn(struct bp_thread *t, unsigned busy) {
    uint64_t now_ns = bp__now_ns();
    size_t share = LOOP_BYTES / (busy ? busy : 1);
    t->now_ms = now_ns / 1000000u;
    t->turn_bytes = share > TURN_BYTES ? TURN_BYTES : share < SCRATCH_BYTES ? SCRATCH_BYTES : share;
    atomic_store_explicit(&t->turn_began_ns, now_ns, memory_order_relaxed);
}

static void raise_to(_Atomic uint64_t *counter, uint64_t value) {
    if (value > atomic_load_explicit(counter, memory_order_relaxed))
        atomic_store_explicit(counter, value, memory_order_relaxed);
}

static void add(_Atomic uint64_t *counter, uint64_t value) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + value, memory_order_relaxed);
}

static void end_turn(struct bp_thread *t) {
    uint64_t took_ns = bp__now_ns() - atomic_load_explicit(&t->turn_began_ns, memory_order_relaxed);
    add(&t->turns, 1);
    add(&t->long_turns, took_ns > LONG_TURN_NS);
    raise_to(&t->longest_ns, took_ns);
    atomic_store_explicit(&t->turn_began_ns, 0, memory_order_relaxed);
}

void *bp__thread_main(void *argument) {
    struct bp_thread *t = argument;
    struct epoll_event events[EVENTS];
    struct grave grave = {NULL};
    uint64_t next_tick_ms = bp__now_ms() + TICK_MS;
    bool asked = false, late = false;
    while (!atomic_load(&t->stop)) {
        int timeout_ms = t->ready || asked || late ? 0 : t->splices ? TICK_MS : -1;
        int count = epoll_wait(t->epoll_fd, events, EVENTS, timeout_ms);
        unsigned ready = t->ready_count < READY_A_TURN ? t->ready_count : READY_A_TURN;
        bool woken = false;
        begin_turn(t, (count > 0 ? (unsigned)count : 0) + ready);
        take_events(t, &grave, events, count, &woken);
        if (woken || asked)
            asked = take_mailbox(t, &grave);
        run_ready(t, &grave);
        if (late || t->now_ms >= next_tick_ms) {
            next_tick_ms = t->now_ms + TICK_MS;
            late = tick(t, &grave);
        }
        hand_out(t, &grave);
        end_turn(t);
    }
    (void)take_mailbox(t, &grave);
    while (t->splices) {
        bp_splice *s = t->splices;
        bp__splice_end(t, s, BP_ENGINE_CLOSED, 0);
        bury(&grave, s);
    }
    while (t->ready)
        run_ready(t, &grave);
    hand_out(t, &grave);
    bp__pipe_drop_all(t);
    return NULL;
}
