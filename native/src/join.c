/* Joins a client and a satellite: each side gets what the other has said so far, until nothing of it is left here. Then both
 * sockets can be spliced.
 *
 * If the client still owes an ACK of SETTINGS that the satellite never sent, both ways are relayed until that ACK has come
 * and was taken out. Only the client's bytes are read as frames. Nothing more is read of a side while the other one has
 * bytes of it to take, so that neither buffer grows.
 */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

/**
 * bp__join_free() - Free a join
 * @join: Join
 *
 * Thread: one
 */
void bp__join_free(struct join *join) {
    bp__buffer_drop(&join->to_client, join->to_client.bytes);
    bp__buffer_drop(&join->to_satellite, join->to_satellite.bytes);
    bp__buffer_drop(&join->frames, join->frames.bytes);
    free(join);
}

/**
 * end() - Let go of both streams
 * @join: Join, which is freed
 * @flags: Of enum bp_news_flag, for the client
 * @failure: What has failed
 * @result: How, as in struct bp_news
 *
 * Thread: own
 */
static void end(struct join *join, unsigned flags, enum bp_stream_failure failure, ssize_t result) {
    bp_stream *client = join->client, *satellite = join->satellite;
    memcpy(client->header, join->filter.header, sizeof client->header);
    client->join = NULL;
    satellite->client = NULL;
    bp__stream_release(satellite, BP_STREAM_FINE, 0);
    bp__stream_release(client, failure, result);
    bp__stream_note(client, flags);
    bp__join_free(join);
}

/**
 * bp__join_fail() - End a join because something has failed; the caller closes both sockets
 * @join: Join, which is freed
 * @failure: What has failed
 * @result: How, as in struct bp_news
 *
 * Thread: own
 */
void bp__join_fail(struct join *join, enum bp_stream_failure failure, ssize_t result) { end(join, 0, failure, result); }

/**
 * pass() - Put bytes of the client behind those for the satellite, without the ACK
 * @join: Join
 * @data: The bytes
 * @bytes: How many
 *
 * Return: as bp__ack_filter()
 * Thread: own
 */
static int pass(struct join *join, const char *data, size_t bytes) {
    struct buffer *out = &join->satellite->out;
    return join->ack_owed ? bp__ack_filter(&join->filter, data, bytes, out) : bp__buffer_add(out, data, bytes);
}

/**
 * take_unseen() - Take the bytes of a stream that were read and that the caller will not see
 * @s: Stream
 * @ret: Empty buffers that receive them, the older ones first
 *
 * Thread: own
 */
static void take_unseen(bp_stream *s, struct buffer ret[2]) {
    pthread_mutex_lock(&s->joiner->lock);
    BP_ASSERT(s->joining);
    bp__buffer_move(&ret[0], &s->news.data);
    pthread_mutex_unlock(&s->joiner->lock);
    bp__buffer_move(&ret[1], &s->fresh.data);
}

/**
 * fill() - Fill both buffers with what was said so far
 * @join: Join
 *
 * Return: as bp__ack_filter()
 * Thread: own
 */
static int fill(struct join *join) {
    struct buffer up[2] = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}}, down[2] = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}};
    const struct buffer *to_client = &join->to_client, *to_satellite = &join->to_satellite, *frames = &join->frames;
    take_unseen(join->client, up);
    take_unseen(join->satellite, down);
    int r = bp__buffer_add(&join->client->out, to_client->data + to_client->at, to_client->bytes);
    for (int i = 0; i < 2 && r == 0; i++)
        r = bp__buffer_add(&join->client->out, down[i].data + down[i].at, down[i].bytes);
    if (r == 0)
        r = bp__buffer_add(&join->satellite->out, to_satellite->data + to_satellite->at, to_satellite->bytes);
    if (r == 0)
        r = pass(join, frames->data + frames->at, frames->bytes);
    for (int i = 0; i < 2 && r == 0; i++)
        r = pass(join, up[i].data + up[i].at, up[i].bytes);
    for (int i = 0; i < 2; i++) {
        bp__buffer_drop(&up[i], up[i].bytes);
        bp__buffer_drop(&down[i], down[i].bytes);
    }
    return r;
}

/**
 * waits() - Whether the ACK has not come yet
 * @join: Join
 *
 * Return: whether it is owed, and has not
 * Thread: own
 */
static bool waits(const struct join *join) { return join->ack_owed && !join->filter.done; }

/**
 * relay() - Read one side for the other, if that one has taken everything, and send on
 * @join: Join that waits for the ACK
 * @from: The side that is read
 * @to: The other one
 *
 * Return: whether the join goes on; else it has failed, and is gone
 * Thread: own
 */
static bool relay(struct join *join, bp_stream *from, bp_stream *to) {
    bool up = from == join->client;
    if (to->out.bytes)
        return true;
    ssize_t got = bp__stream_read(from, STREAM_SCRATCH_BYTES);
    if (got == -EAGAIN)
        return true;
    if (got <= 0) {
        bp__join_fail(join, up ? BP_STREAM_CLIENT : BP_STREAM_SATELLITE, got);
        return false;
    }
    int r = up ? pass(join, from->joiner->scratch, (size_t)got)
               : bp__buffer_add(&to->out, from->joiner->scratch, (size_t)got);
    if (r < 0) {
        bp__join_fail(join, r == -EBADMSG ? BP_STREAM_FRAME : BP_STREAM_CLIENT, r);
        return false;
    }
    if (from->tls && bp__tls_has_pending(from->tls))
        bp__stream_again(from);
    ssize_t sent = bp__stream_send(to);
    if (sent < 0 && sent != -EAGAIN) {
        bp__join_fail(join, up ? BP_STREAM_SATELLITE : BP_STREAM_CLIENT, sent);
        return false;
    }
    return true;
}

/**
 * watch() - Let epoll report what one side waits for
 * @join: Join
 * @s: The side
 * @other: The other one
 *
 * Return: 0, or a negative errno
 * Thread: own
 */
static int watch(const struct join *join, bp_stream *s, const bp_stream *other) {
    uint32_t wanted = waits(join) && !other->out.bytes ? EPOLLIN : 0;
    if (s->out.bytes)
        wanted |= s->write_wants_read ? EPOLLIN : EPOLLOUT;
    return bp__stream_watch(s, wanted);
}

/**
 * bp__join_run() - Go on with a join as far as both sides do
 * @join: Join; it is freed if it ends
 *
 * Thread: own
 */
void bp__join_run(struct join *join) {
    bp_stream *client = join->client, *satellite = join->satellite;
    ssize_t r = bp__stream_send(client);
    if (r < 0 && r != -EAGAIN) {
        bp__join_fail(join, BP_STREAM_CLIENT, r);
        return;
    }
    r = bp__stream_send(satellite);
    if (r < 0 && r != -EAGAIN) {
        bp__join_fail(join, BP_STREAM_SATELLITE, r);
        return;
    }
    if (waits(join) && !relay(join, client, satellite))
        return;
    if (waits(join) && !relay(join, satellite, client))
        return;
    if (!waits(join) && !client->out.bytes && !satellite->out.bytes) {
        end(join, BP_NEWS_JOINED, BP_STREAM_FINE, 0);
        return;
    }
    int failed = watch(join, client, satellite);
    if (failed == 0)
        failed = watch(join, satellite, client);
    if (failed < 0)
        bp__join_fail(join, BP_STREAM_CLIENT, failed);
}

/**
 * bp__join_begin() - Begin to join two open streams
 * @join: Join
 *
 * Thread: own
 */
void bp__join_begin(struct join *join) {
    bp_stream *client = join->client, *satellite = join->satellite;
    BP_ASSERT(client->state == STREAM_OPEN && satellite->state == STREAM_OPEN);
    client->state = satellite->state = STREAM_JOINS;
    client->join = join;
    satellite->client = client;
    bp__stream_time(client, join->deadline_ms);
    int r = fill(join);
    if (client->broken || satellite->broken)
        bp__join_fail(join, client->broken ? BP_STREAM_CLIENT : BP_STREAM_SATELLITE,
                      client->broken ? client->broken : satellite->broken);
    else if (r < 0)
        bp__join_fail(join, r == -EBADMSG ? BP_STREAM_FRAME : BP_STREAM_CLIENT, r);
    else
        bp__join_run(join);
}
