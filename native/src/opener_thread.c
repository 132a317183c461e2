/* One thread of the opener: its epoll loop, its mailbox, the handshakes' turns.
 *
 * An opening is on exactly one list: the mailbox, those that wait for their sockets, those that wait for a handshake's turn,
 * those that are over, or the opener's, which is the caller's. An opening that the caller wants aborted is also on the list
 * of aborts. While it is there it is not published, so that the caller cannot free it.
 */
#include "opener.h"
#include "stream.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 64 /* of one turn: a step of a handshake takes up to some 0.4 ms */
#define BURST_NS 10000000u /* a limit of handshakes holds over this time: a thread may wake late by as much */
#define NS_A_S 1000000000u
#define NS_A_MS 1000000u
#define LONGEST_WAIT_MS 1000 /* for a handshake's turn: the limit may change meanwhile */

/**
 * take_turn() - Take a handshake's turn, if there is one
 * @opener: Opener
 *
 * Return: 0 if it was taken, or the nanoseconds until the next one
 * Thread: any
 */
static uint64_t take_turn(bp_opener *opener) {
    uint32_t per_s = atomic_load(&opener->handshakes_per_s);
    if (!per_s)
        return 0;
    uint64_t now_ns = bp__now_ns(), next_ns = atomic_load(&opener->next_handshake_ns), from_ns;
    do {
        if (next_ns > now_ns)
            return next_ns - now_ns;
        from_ns = next_ns + BURST_NS > now_ns ? next_ns : now_ns - BURST_NS;
    } while (!atomic_compare_exchange_weak(&opener->next_handshake_ns, &next_ns, from_ns + NS_A_S / per_s));
    return 0;
}

/**
 * watch() - Let epoll report when an opening can go on
 * @t: Thread
 * @o: Opening
 * @wanted: Events, as in epoll_ctl(2); 0: none at all
 *
 * Return: 0, or a negative errno
 * Thread: own
 */
static int watch(struct opener_thread *t, bp_opening *o, uint32_t wanted) {
    struct epoll_event event = {.events = wanted, .data.ptr = o};
    int operation = !wanted ? EPOLL_CTL_DEL : o->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (wanted ? o->registered && o->watched == wanted : !o->registered)
        return 0;
    if (epoll_ctl(t->epoll_fd, operation, o->fd, &event) < 0)
        return -errno;
    o->registered = wanted != 0;
    o->watched = wanted;
    return 0;
}

/**
 * move_to() - Move an opening to another list
 * @o: Opening
 * @list: The list, whose last it becomes
 *
 * Thread: own, or with the lock if one of the lists is guarded by it
 */
static void move_to(bp_opening *o, struct opening_list *list) {
    TAILQ_REMOVE(o->list, o, link);
    TAILQ_INSERT_TAIL(list, o, link);
    o->list = list;
}

/**
 * retire() - Take an opening off its list, since it is over; publish() gives it to the caller
 * @t: Thread
 * @o: Opening
 * @result: As in struct bp_opened, unless the opening is over already
 *
 * Thread: own
 */
static void retire(struct opener_thread *t, bp_opening *o, ssize_t result) {
    if (!o->over)
        o->result = result;
    o->over = true;
    (void)watch(t, o, 0);
    move_to(o, &t->retired);
}

/**
 * go_on() - Run an opening, and put it where it belongs then
 * @t: Thread
 * @o: Opening on the list of those that wait for their sockets
 *
 * Thread: own
 */
static void go_on(struct opener_thread *t, bp_opening *o) {
    BP_ASSERT(o->thread == t && o->list == &t->waiting);
    enum opening_next next = bp__opening_run(o, t->scratch, t->opener->first_bytes);
    if (next == OPENING_TURN && TAILQ_EMPTY(&t->delayed) && take_turn(t->opener) == 0) {
        o->may_shake = true;
        next = bp__opening_run(o, t->scratch, t->opener->first_bytes);
    }
    int r = next == OPENING_OVER ? 0
                                 : watch(t, o,
                                         next == OPENING_TURN     ? 0
                                         : next == OPENING_WRITES ? EPOLLOUT
                                                                  : EPOLLIN);
    if (next == OPENING_OVER || r < 0)
        retire(t, o, r);
    else if (next == OPENING_TURN)
        move_to(o, &t->delayed);
}

/**
 * run_delayed() - Let those shake hands whose turn has come
 * @t: Thread
 *
 * Return: milliseconds until the next turn, at least 1; -1 if none waits for one
 * Thread: own
 */
static int run_delayed(struct opener_thread *t) {
    bp_opening *o;
    uint64_t wait_ns = 0;
    for (unsigned count = 0; count < EVENTS && (o = TAILQ_FIRST(&t->delayed)); count++) {
        wait_ns = take_turn(t->opener);
        if (wait_ns)
            break;
        o->may_shake = true;
        move_to(o, &t->waiting);
        go_on(t, o);
    }
    if (TAILQ_EMPTY(&t->delayed))
        return -1;
    uint64_t wait_ms = wait_ns / NS_A_MS + 1;
    return wait_ms < LONGEST_WAIT_MS ? (int)wait_ms : LONGEST_WAIT_MS;
}

/**
 * begin_some() - Begin the openings of the mailbox
 * @t: Thread
 *
 * Thread: own
 */
static void begin_some(struct opener_thread *t) {
    struct opening_list begun = TAILQ_HEAD_INITIALIZER(begun);
    bp_opening *o;
    pthread_mutex_lock(&t->opener->lock);
    while ((o = TAILQ_FIRST(&t->mailbox))) {
        move_to(o, &begun);
        o->begun = true;
    }
    pthread_mutex_unlock(&t->opener->lock);
    while ((o = TAILQ_FIRST(&begun))) {
        move_to(o, &t->waiting);
        int r = bp__socket_prepare(o->fd);
        if (r < 0)
            retire(t, o, r);
        else
            go_on(t, o);
    }
}

/**
 * next_abort() - Take the next opening that is to be aborted
 * @t: Thread
 *
 * Return: the opening, or NULL
 * Thread: own
 */
static bp_opening *next_abort(struct opener_thread *t) {
    pthread_mutex_lock(&t->opener->lock);
    bp_opening *o = TAILQ_FIRST(&t->aborts);
    if (o) {
        TAILQ_REMOVE(&t->aborts, o, abort_link);
        o->aborting = false;
    }
    pthread_mutex_unlock(&t->opener->lock);
    return o;
}

/**
 * take_requests() - Do what the caller asks: openings to begin, to abort
 * @t: Thread, whose wake_fd is written to after each of them
 *
 * Thread: own
 */
static void take_requests(struct opener_thread *t) {
    uint64_t ignored;
    ssize_t got = read(t->wake_fd, &ignored, sizeof ignored);
    (void)got;
    begin_some(t);
    for (bp_opening *o; (o = next_abort(t));) {
        if (!o->begun)
            begin_some(t);
        if (!o->over)
            retire(t, o, -ECANCELED);
    }
}

/**
 * publish() - Give the openings that are over to the caller
 * @t: Thread
 *
 * Thread: own
 */
static void publish(struct opener_thread *t) {
    bp_opener *opener = t->opener;
    bp_opening *o, *next;
    bp_joiner *waiting = NULL; /* there is one joiner for all */
    bool some = false;
    if (TAILQ_EMPTY(&t->retired))
        return;
    pthread_mutex_lock(&opener->lock);
    for (o = TAILQ_FIRST(&t->retired); o; o = next) {
        next = TAILQ_NEXT(o, link);
        if (o->aborting) /* that list has it still: the request wakes this thread again */
            continue;
        BP_ASSERT(o->over && !o->registered && !o->published);
        bp_joiner *joiner = o->step == BP_OPENING_DONE && o->result == 0 && !o->aborted ? o->joiner : NULL;
        if (joiner && bp__lane_take(o)) {
            move_to(o, &opener->laned);
            waiting = joiner;
        } else {
            move_to(o, &opener->over);
            some = true;
        }
        o->published = true;
        t->open--;
    }
    pthread_mutex_unlock(&opener->lock);
    if (waiting)
        bp_joiner_wake(waiting);
    if (some)
        bp__wake(opener->event_fd);
}

/**
 * end_all() - Abort all openings of a thread, because the opener closes
 * @t: Thread
 *
 * Thread: own
 */
static void end_all(struct opener_thread *t) {
    bp_opening *o;
    do { /* again if an opening was to be aborted meanwhile */
        take_requests(t);
        while ((o = TAILQ_FIRST(&t->waiting)) || (o = TAILQ_FIRST(&t->delayed)))
            retire(t, o, -ECANCELED);
        publish(t);
    } while (!TAILQ_EMPTY(&t->retired));
}

/**
 * bp__opener_main() - The body of a thread
 * @argument: Its struct opener_thread
 *
 * Return: NULL, when the opener closes
 * Thread: own
 */
void *bp__opener_main(void *argument) {
    struct opener_thread *t = argument;
    struct epoll_event events[EVENTS];
    int timeout_ms = -1;
    while (!atomic_load(&t->stop)) {
        int count = epoll_wait(t->epoll_fd, events, EVENTS, timeout_ms);
        bool woken = false;
        (void)bp__turn_begin(&t->turns);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr)
                go_on(t, events[i].data.ptr);
            else
                woken = true;
        }
        if (woken)
            take_requests(t);
        timeout_ms = run_delayed(t);
        publish(t);
        bp__turn_end(&t->turns);
    }
    end_all(t);
    return NULL;
}
