/* The ready list of a thread: splices that can go on at once and wait for a turn, first come, first served. */
#include "check.h"

/**
 * bp__ready() - Put a splice at the end of the ready list, unless it is on it
 * @t: Thread
 * @s: One of its splices
 *
 * Thread: own
 */
void bp__ready(struct bp_thread *t, bp_splice *s) {
    BP_CHECK_OWN(t);
    BP_ASSERT(s->thread == t);
    if (s->ready)
        return;
    s->ready = true;
    s->ready_next = NULL;
    *t->ready_tail = s;
    t->ready_tail = &s->ready_next;
    t->ready_count++;
    BP_CHECK_OWN(t);
}

/**
 * bp__ready_take() - Take the first splice off the ready list
 * @t: Thread, whose list is not empty
 *
 * Return: the splice, which may have ended since it was put there
 * Thread: own
 */
bp_splice *bp__ready_take(struct bp_thread *t) {
    BP_CHECK_OWN(t);
    BP_ASSERT(t->ready && t->ready->ready);
    bp_splice *s = t->ready;
    t->ready = s->ready_next;
    if (!t->ready)
        t->ready_tail = &t->ready;
    t->ready_count--;
    s->ready = false;
    BP_CHECK_OWN(t);
    return s;
}
