/* One engine thread: epoll, its mailbox, its ready list, its clock. */
#include "internal.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256

uint64_t bp__now_ms(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

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

/* What others ask of this thread: splices to adopt, and requests. They write to wake_fd, behind having asked. */
static void take_mailbox(struct bp_thread *t, struct grave *grave) {
    uint64_t ignored;
    ssize_t got = read(t->wake_fd, &ignored, sizeof ignored);
    (void)got;
    pthread_mutex_lock(&t->lock);
    bp_splice *s = t->mailbox;
    t->mailbox = NULL;
    pthread_mutex_unlock(&t->lock);
    while (s) {
        bp_splice *next = s->next;
        bp__splice_adopt(t, s);
        if (ended(s))
            bury(grave, s);
        s = next;
    }
    if (!atomic_exchange(&t->requests, false))
        return;
    for (s = t->splices; s;) {
        bp_splice *next = s->next;
        if (atomic_load(&s->abort)) {
            bp__splice_end(t, s, BP_ABORTED, 0);
        } else if (atomic_load(&s->give_back) && !s->giving_back) {
            s->giving_back = true;
            bp__splice_run(t, s, BOTH);
        }
        if (ended(s))
            bury(grave, s);
        s = next;
    }
}

static void run_ready(struct bp_thread *t, struct grave *grave) {
    bp_splice *s = t->ready;
    t->ready = NULL;
    while (s) {
        bp_splice *next = s->ready_next;
        s->ready = false;
        if (!ended(s)) {
            bp__splice_run(t, s, BOTH);
            if (ended(s))
                bury(grave, s);
        }
        s = next;
    }
}

static void tick(struct bp_thread *t, struct grave *grave) {
    for (bp_splice *s = t->splices; s;) {
        bp_splice *next = s->next;
        bp__splice_tick(t, s);
        if (ended(s))
            bury(grave, s);
        s = next;
    }
}

void *bp__thread_main(void *argument) {
    struct bp_thread *t = argument;
    struct epoll_event events[EVENTS];
    struct grave grave = {NULL};
    uint64_t next_tick_ms = bp__now_ms() + TICK_MS;
    while (!atomic_load(&t->stop)) {
        int timeout_ms = t->ready ? 0 : t->splices ? TICK_MS : -1;
        int count = epoll_wait(t->epoll_fd, events, EVENTS, timeout_ms);
        bool woken = false;
        t->now_ms = bp__now_ms();
        for (int i = 0; i < count; i++) {
            struct leg *leg = events[i].data.ptr;
            if (!leg) {
                woken = true;
                continue;
            }
            struct leg *first = leg - leg->id;
            bp_splice *s = (bp_splice *)(void *)((char *)first - offsetof(bp_splice, leg));
            if (ended(s))
                continue;
            bp__splice_event(t, s, (enum leg_id)leg->id, events[i].events);
            if (ended(s))
                bury(&grave, s);
        }
        run_ready(t, &grave);
        if (woken)
            take_mailbox(t, &grave);
        if (t->now_ms >= next_tick_ms) {
            next_tick_ms = t->now_ms + TICK_MS;
            tick(t, &grave);
        }
        hand_out(t, &grave);
    }
    take_mailbox(t, &grave);
    while (t->splices) {
        bp_splice *s = t->splices;
        bp__splice_end(t, s, BP_ENGINE_CLOSED, 0);
        bury(&grave, s);
    }
    run_ready(t, &grave);
    hand_out(t, &grave);
    bp__pipe_drop_all(t);
    return NULL;
}
