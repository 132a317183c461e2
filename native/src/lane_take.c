/* From the opener to the joiner: a client whose first bytes are there, and that may be admitted. */
#include "admission.h"
#include "opener.h"
#include "stream.h"

#include <stdlib.h>
#include <string.h>

/**
 * copy_tls() - Copy what TLS tells of a client
 * @tls: Its TLS
 * @facts: Receives it
 *
 * Thread: own
 */
static void copy_tls(const bp_tls *tls, struct bp_lane_facts *facts) {
    const char *version = bp_tls_version(tls);
    size_t bytes = strnlen(version, sizeof facts->tls_version - 1);
    facts->has_tls = true;
    memcpy(facts->tls_version, version, bytes);
    (void)bp_tls_server_name(tls, facts->server_name, sizeof facts->server_name);
    (void)bp_tls_alpn(tls, facts->alpn, sizeof facts->alpn);
}

/**
 * make_lane() - Make the lane of a client
 * @o: Opening
 * @j: Joiner
 *
 * Return: the lane; or NULL without memory
 * Thread: own
 */
static struct lane *make_lane(bp_opening *o, bp_joiner *j) {
    struct lane *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    bp_greeting_init(&l->greeting, j->admits.limits);
    bp__admission_announced(j->admits.admission, &l->greeting.streams, &l->greeting.window_bytes);
    l->rules = o->rules;
    l->facts.opening = o;
    if (o->tls)
        copy_tls(o->tls, &l->facts);
    return l;
}

/**
 * bp__lane_take() - Give a client to its joiner, if there is a gate through which it may go
 * @o: Opening of bp_opener_admit() that is done; the opener's lock is held
 *
 * Left to the caller are clients that have shown a certificate, and those in the clear at a port that wants TLS.
 *
 * Return: whether it was taken, with its socket, TLS and bytes
 * Thread: own
 */
bool bp__lane_take(bp_opening *o) {
    bp_joiner *j = o->joiner;
    bp_stream *client;
    if (o->ctx && (!o->tls || bp_tls_peer_certificate(o->tls, NULL, 0)))
        return false;
    if (!bp_admission_may_enter(j->admits.admission, bp__boot_us()))
        return false;
    struct lane *l = make_lane(o, j);
    if (!l)
        return false;
    if (bp__stream_make(j, o->fd, o->tls, 0, &client) < 0) {
        free(l);
        return false;
    }
    l->client = client;
    client->lane = l;
    client->owns_fd = true;
    client->fresh.data = (struct buffer){o->first, o->first_bytes, 0, o->first_bytes};
    client->read_bytes = o->first_bytes;
    o->stream = client;
    o->owns_fd = false;
    o->tls = NULL;
    o->first = NULL;
    j->lane_count++;
    pthread_mutex_lock(&j->lock);
    bp__stream_ask(client, ASKS_LANE);
    pthread_mutex_unlock(&j->lock);
    return true;
}

/**
 * bp__lane_abort() - Ask for a client; nothing happens if it is committed, or the caller's
 * @client: Its stream
 *
 * Thread: any
 */
void bp__lane_abort(bp_stream *client) {
    bp_joiner *j = client->joiner;
    pthread_mutex_lock(&j->lock);
    bp__stream_ask(client, ASKS_UP);
    pthread_mutex_unlock(&j->lock);
    bp__wake(j->wake_fd);
}
