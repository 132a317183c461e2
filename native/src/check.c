/* The invariants of the engine's structs, written once. Debug builds only: see check.h. Calls no other file. */
#include "tls.h"

#ifdef BP_DEBUG

#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

/* To be used where `found` names the function that asks. */
#define HOLDS(condition) ((condition) ? (void)0 : bp__check_failed(#condition, BP_HERE, found))

static _Thread_local const struct bp_thread *current;

/**
 * bp__check_failed() - End the process because an invariant is broken
 * @condition: What does not hold
 * @stated: Where the condition is written
 * @found: Where it was found broken
 *
 * Thread: any
 */
void bp__check_failed(const char *condition, struct check_place stated, struct check_place found) {
    fprintf(stderr, "engine: invariant broken: %s (%s:%d), found by %s (%s:%d)\n", condition, stated.file, stated.line,
            found.function, found.file, found.line);
    abort();
}

/**
 * bp__check_enter() - Note which of the engine's threads this is
 * @t: Thread; NULL when it leaves the engine
 *
 * Thread: own
 */
void bp__check_enter(const struct bp_thread *t) { current = t; }

/**
 * bp__check_own() - Check that the caller is the thread, its ready list and its pool of pipes
 * @t: Thread
 * @found: Who asks
 *
 * Thread: own
 */
void bp__check_own(const struct bp_thread *t, struct check_place found) {
    HOLDS(current == t);
    HOLDS((t->ready == NULL) == (t->ready_count == 0));
    HOLDS((t->ready == NULL) == (t->ready_tail == &t->ready));
    HOLDS(*t->ready_tail == NULL);
    HOLDS(t->pooled <= PIPE_POOL);
    HOLDS(t->pooled <= atomic_load(&t->pipes_open));
    HOLDS(atomic_load(&t->pipes_open) <= PIPE_MAX);
    HOLDS(t->turn_bytes >= SCRATCH_BYTES && (t->turn_bytes <= TURN_BYTES || t->turn_bytes == DRAIN_BYTES));
}

/**
 * check_leg() - Check one leg of a splice that has not ended
 * @s: Splice
 * @id: Leg
 * @found: Who asks
 *
 * Thread: own
 */
static void check_leg(const bp_splice *s, enum leg_id id, struct check_place found) {
    const struct leg *leg = &s->leg[id];
    HOLDS(leg->id == id);
    HOLDS(leg->fd >= 0);
    HOLDS(leg->tls || (leg->splices_in && leg->splices_out));
    HOLDS(leg->tls || !leg->truncated);
    HOLDS(!leg->registered || leg->watched);
    HOLDS(!(leg->watched & ~(uint32_t)(EPOLLIN | EPOLLOUT | EPOLLET)));
}

/**
 * check_direction() - Check one direction of a splice that has not ended
 * @s: Splice
 * @id: The direction's source
 * @found: Who asks
 *
 * Thread: own
 */
static void check_direction(const bp_splice *s, enum leg_id id, struct check_place found) {
    const struct direction *d = &s->direction[id];
    const struct leg *from = &s->leg[id], *to = &s->leg[1 - id];
    bool live = atomic_load(&s->reason) == BP_LIVE;
    uint64_t bytes = atomic_load(&d->bytes), in_flight = d->in_pipe + d->in_tls + d->stash_bytes;
    /* No byte is lost, delivered twice, or in two places. A leg that failed may take some with it. */
    HOLDS(!(d->in_pipe && (d->in_tls || d->stash_bytes)));
    HOLDS(!live || d->taken == bytes + in_flight);
    HOLDS(bytes + in_flight <= d->taken);
    HOLDS((d->in_tls != 0) == (to->tls && to->tls->batch));
    HOLDS((d->stash != NULL) == (d->stash_bytes != 0));
    HOLDS(!d->stash || d->stash_at + d->stash_bytes <= SCRATCH_BYTES);
    /* A pipe is open exactly while the direction streams, and both legs are then splice(2)'s to use. */
    HOLDS((d->pipe[0] >= 0) == d->streaming);
    HOLDS((d->pipe[1] >= 0) == d->streaming);
    HOLDS(!d->in_pipe || d->streaming);
    HOLDS(!d->streaming || (from->splices_in && to->splices_out && !d->no_splice));
    /* The end comes behind the last byte, and the destination is told once. */
    HOLDS(!d->eof || !in_flight);
    HOLDS(!d->shut || (d->eof && !d->streaming && !d->notify_waits));
    HOLDS(!d->notify_waits || (d->eof && to->tls));
    HOLDS(!d->read_wants_write || from->tls);
    HOLDS(!d->write_wants_read || to->tls);
}

/**
 * check_links() - Check a splice's place in the lists of its thread
 * @t: Thread
 * @s: Splice
 * @found: Who asks
 *
 * Thread: own
 */
static void check_links(const struct bp_thread *t, const bp_splice *s, struct check_place found) {
    HOLDS(s->thread == t);
    HOLDS(s->previous ? s->previous->next == s : t->splices == s);
    HOLDS(!s->next || s->next->previous == s);
    HOLDS(!s->ready || s->ready_next || t->ready_tail == &s->ready_next);
}

/**
 * bp__check_splice() - Check a splice that is on its thread's list
 * @t: Thread
 * @s: Splice
 * @found: Who asks
 *
 * Thread: own
 */
void bp__check_splice(const struct bp_thread *t, const bp_splice *s, struct check_place found) {
    bool half_closed = s->direction[CLIENT].shut || s->direction[SATELLITE].shut;
    bp__check_own(t, found);
    check_links(t, s, found);
    for (int id = CLIENT; id <= SATELLITE; id++) {
        check_leg(s, (enum leg_id)id, found);
        check_direction(s, (enum leg_id)id, found);
    }
    HOLDS(s->broken == NO_LEG || s->broken == CLIENT || s->broken == SATELLITE);
    HOLDS((s->broken == NO_LEG) == (atomic_load(&s->reason) == BP_LIVE));
    HOLDS(s->truncated == 0 || s->truncated == BP_CLIENT_TRUNCATED || s->truncated == BP_SATELLITE_TRUNCATED);
    HOLDS((s->truncated != 0) == (s->leg[CLIENT].truncated || s->leg[SATELLITE].truncated));
    HOLDS(s->with_tls == (s->leg[CLIENT].tls || s->leg[SATELLITE].tls));
    HOLDS(!s->giving_back || (atomic_load(&s->give_back) && !s->with_tls));
    HOLDS(half_closed == (s->half_closed_ms != 0));
    HOLDS(s->half_closed_ms <= t->now_ms);
    HOLDS(atomic_load(&s->last_activity_ms) <= t->now_ms);
    HOLDS(atomic_load(&s->spliced_bytes) <=
          atomic_load(&s->direction[CLIENT].bytes) + atomic_load(&s->direction[SATELLITE].bytes));
}

/**
 * bp__check_waits() - Check that something will go on with each direction of a live splice
 * @t: Thread
 * @s: Splice
 * @found: Who asks
 *
 * Thread: own
 */
void bp__check_waits(const struct bp_thread *t, const bp_splice *s, struct check_place found) {
    bp__check_splice(t, s, found);
    HOLDS(atomic_load(&s->reason) == BP_LIVE);
    HOLDS(!s->direction[CLIENT].shut || !s->direction[SATELLITE].shut);
    for (int id = CLIENT; id <= SATELLITE; id++) {
        const struct direction *d = &s->direction[id];
        const struct leg *from = &s->leg[id], *to = &s->leg[1 - id];
        bool in_flight = d->in_pipe || d->in_tls || d->stash_bytes;
        if (d->shut || d->starved || s->ready)
            continue;
        HOLDS(!in_flight || (to->registered && (to->watched & (d->write_wants_read ? EPOLLIN : EPOLLOUT))));
        HOLDS(!d->notify_waits || (to->registered && (to->watched & EPOLLOUT)));
        HOLDS(in_flight || d->eof || s->giving_back ||
              (from->registered && (from->watched & (d->read_wants_write ? EPOLLOUT : EPOLLIN))));
        HOLDS(!d->eof || d->notify_waits);
    }
}

/**
 * bp__check_thread() - Check the lists of a thread from end to end, and that each open pipe is somewhere
 * @t: Thread
 * @found: Who asks
 *
 * Thread: own
 */
void bp__check_thread(const struct bp_thread *t, struct check_place found) {
    uint64_t live = 0, pipes = t->pooled;
    unsigned ready = 0;
    bp__check_own(t, found);
    for (const bp_splice *s = t->splices; s; s = s->next) {
        HOLDS(atomic_load(&s->reason) == BP_LIVE);
        bp__check_splice(t, s, found);
        pipes += s->direction[CLIENT].pipe[0] >= 0 ? 1 : 0;
        pipes += s->direction[SATELLITE].pipe[0] >= 0 ? 1 : 0;
        live++;
    }
    for (const bp_splice *s = t->ready; s; s = s->ready_next) {
        HOLDS(s->ready && s->thread == t);
        ready++;
    }
    HOLDS(ready == t->ready_count);
    HOLDS(pipes == atomic_load(&t->pipes_open));
    HOLDS(live <= atomic_load(&t->live)); /* which counts those in the mailbox too */
}

/**
 * bp__check_ended() - Check that an ended splice holds nothing and is on no list of its thread
 * @s: Splice
 * @found: Who asks
 *
 * Thread: own, then one
 */
void bp__check_ended(const bp_splice *s, struct check_place found) {
    int reason = atomic_load(&s->reason);
    HOLDS(reason > BP_LIVE && reason < BP_REASONS);
    HOLDS(!s->ready);
    for (int id = CLIENT; id <= SATELLITE; id++) {
        const struct direction *d = &s->direction[id];
        HOLDS(d->pipe[0] < 0 && d->pipe[1] < 0 && !d->stash);
        HOLDS(!s->leg[id].tls && !s->leg[id].registered);
        HOLDS(s->leg[id].fd < 0 || reason == BP_GIVEN_BACK);
        HOLDS(reason != BP_CLOSED || d->shut);
        /* An end that loses nothing: all that was read was delivered. */
        HOLDS((reason != BP_CLOSED && reason != BP_GIVEN_BACK) || d->taken == atomic_load(&d->bytes));
    }
}

/**
 * bp__check_tls() - Check a TLS connection between two calls
 * @tls: Connection
 * @found: Who asks
 *
 * Thread: one
 */
void bp__check_tls(const bp_tls *tls, struct check_place found) {
    const struct tls_meter *meter = &tls->meter;
    HOLDS(tls->ssl != NULL);
    HOLDS(!(tls->kernel & ~(BP_KTLS_TX | BP_KTLS_RX)));
    HOLDS(!tls->kernel || meter->established);
    HOLDS(tls->read_failure <= 0);
    HOLDS(tls->read_failure != BP_TLS_WANT_READ && tls->read_failure != BP_TLS_WANT_WRITE);
    HOLDS(meter->flood == 0 || meter->flood == BP_TLS_CONTROL_FLOOD || meter->flood == BP_TLS_HANDSHAKE_FLOOD);
    HOLDS(tls->read_failure != BP_TLS_CONTROL_FLOOD || meter->flood == BP_TLS_CONTROL_FLOOD);
    HOLDS(tls->read_failure != BP_TLS_HANDSHAKE_FLOOD || meter->flood == BP_TLS_HANDSHAKE_FLOOD);
    HOLDS(!meter->key_update_due || meter->established);
    HOLDS(meter->batch_waits == (tls->batch != NULL));
    HOLDS(!tls->batch || (tls->batch->at < tls->batch->bytes && tls->batch->bytes <= BATCH_BYTES));
    HOLDS(!tls->batch || (tls->batch->count && tls->batch->count <= BATCH_RECORDS));
}

#endif
