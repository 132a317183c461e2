/* The ready list of a thread: splices that can go on at once and wait for a turn, first come, first served. */
#include "internal.h"

void bp__ready(struct bp_thread *t, bp_splice *s) {
    if (s->ready)
        return;
    s->ready = true;
    s->ready_next = NULL;
    *t->ready_tail = s;
    t->ready_tail = &s->ready_next;
    t->ready_count++;
}

bp_splice *bp__ready_take(struct bp_thread *t) {
    bp_splice *s = t->ready;
    t->ready = s->ready_next;
    if (!t->ready)
        t->ready_tail = &t->ready;
    t->ready_count--;
    s->ready = false;
    return s;
}
