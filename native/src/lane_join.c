/* The last look at what was told to the admission, and the step by which a client counts as its satellite's.
 *
 * To shut a gate, or to replace the tokens, takes the admission's lock. A client that was committed before is on the joiner's list
 * by then, and a client that comes later does not pass the look. So a caller that empties the list after that knows of all.
 */
#include "admission.h"
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/**
 * make_join() - Make what each side gets before the splice
 * @l: Lane
 * @words: What the client gets first; empty then
 *
 * Return: the join; or NULL without memory
 * Thread: own
 */
static struct join *make_join(struct lane *l, struct buffer *words) {
    const struct bp_greeting *g = &l->greeting;
    bool owed = g->settings_sent && !g->acked;
    const char *kept = l->kept.data + l->kept.at;
    size_t until = owed ? g->framed : l->kept.bytes;
    struct join *join = calloc(1, sizeof *join);
    if (!join)
        return NULL;
    BP_ASSERT(l->opening_bytes <= until);
    join->client = l->client;
    join->satellite = l->half;
    join->ack_owed = owed;
    join->deadline_ms = l->client->joiner->admits.join_ms;
    if (bp__buffer_add(&join->to_satellite, kept + l->opening_bytes, until - l->opening_bytes) < 0 ||
        bp__buffer_add(&join->frames, kept + until, l->kept.bytes - until) < 0) {
        bp__join_free(join);
        return NULL;
    }
    bp__buffer_move(&join->to_client, words);
    return join;
}

/**
 * commit() - Take the last look, and count the client as its satellite's in the same step
 * @l: Lane, whose facts are complete
 *
 * Return: whether it was; false: the caller of the joiner is asked
 * Thread: own
 */
static bool commit(struct lane *l) {
    bp_stream *client = l->client;
    bp_joiner *j = client->joiner;
    bp_admission *admission = j->admits.admission;
    pthread_mutex_lock(&admission->lock);
    bool holds = bp__admission_holds(admission, &l->entry, bp__boot_us(), bp__wall_us());
    if (holds) {
        l->facts.generation = admission->grants.generation; /* the token holds by this table, whichever it entered by */
        pthread_mutex_lock(&j->lock);
        client->joining = l->half->joining = true;
        client->committed = true;
        TAILQ_INSERT_TAIL(&j->committed, client, committed_link);
        pthread_mutex_unlock(&j->lock);
    }
    pthread_mutex_unlock(&admission->lock);
    return holds;
}

/**
 * bp__lane_join() - Take the last look, and prepare the join
 * @l: Lane; both sides are open
 * @words: What the client gets first; empty then
 *
 * Return: 0, and the client's `to_join` is the join, and its entry has ended; -ESTALE if the look has failed; or -ENOMEM
 * Thread: own
 */
int bp__lane_join(struct lane *l, struct buffer *words) {
    bp_stream *client = l->client;
    struct bp_lane_facts *facts = &l->facts;
    struct join *join = make_join(l, words);
    if (!join)
        return -ENOMEM;
    facts->why = BP_ENTERED;
    facts->mark = bp_greeting_mark(&l->greeting);
    facts->gate = l->entry.number;
    facts->seat = l->entry.seat;
    facts->payer = l->entry.payer;
    memcpy(facts->digest, l->entry.digest, sizeof facts->digest);
    facts->read_bytes = client->read_bytes;
    facts->sent_bytes = atomic_load(&client->sent_bytes);
    if (!commit(l)) {
        bp__join_free(join);
        return -ESTALE;
    }
    bp_admission_leave(client->joiner->admits.admission, &l->entry, false);
    l->entered = false;
    client->to_join = join;
    return 0;
}
