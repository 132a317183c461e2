/* The way of a client to its satellite without the caller: what was told to the admission allows it.
 *
 *   arrives ──▶ GREETS ──first request──▶ DIALS ──connected──▶ INTRODUCES ──first frame──▶ joined
 *                  └───────────────────────┴──────────────────────┴──▶ up: the caller's
 * A client that has not been told anything goes from DIALS to the join: its satellite's SETTINGS will be its first.
 *
 * Until it is joined a client can always go up: it has heard nothing of its satellite, and the satellite has got no request of
 * it. All its bytes are news then, with the ranges that are not replayed, and a mark of what it was told. It goes up at
 * whatever is not plain, so that every refusal has one author.
 *
 * All of this is done by the joiner's thread. The one step that others can see is that of lane_join.c.
 */
#include "stream.h"

#include <errno.h>
#include <string.h>

#define CLIENT_BYTES (64u << 10) /* most that is read of a client */
#define NS_A_US 1000u
#define NS_A_S 1e9

/**
 * note_moment() - Note when a step of the way was done
 * @l: Lane
 * @now_us: CLOCK_MONOTONIC, or 0
 *
 * Thread: own
 */
static void note_moment(struct lane *l, uint64_t now_us) {
    BP_ASSERT(l->facts.moment_count < BP_LANE_MOMENTS);
    l->facts.moment_us[l->facts.moment_count++] = now_us;
}

/**
 * let_go() - Let a stream have news for the caller again
 * @s: Stream of a lane
 *
 * Thread: own
 */
static void let_go(bp_stream *s) {
    if (s->due)
        TAILQ_REMOVE(&s->joiner->due, s, due_link);
    s->due = s->in_lane = false;
}

/**
 * has_asked() - Note that a client has made its first request, or will not make it here
 * @l: Lane
 *
 * Thread: own
 */
static void has_asked(struct lane *l) {
    bp_joiner *j = l->client->joiner;
    if (!l->is_silent)
        return;
    l->is_silent = false;
    TAILQ_REMOVE(&j->silent, l, silent_link);
    j->silent_count--;
}

/**
 * leave() - End a lane
 * @l: Lane, which only the caller uses from now on
 *
 * Thread: own
 */
static void leave(struct lane *l) {
    bp_joiner *j = l->client->joiner;
    let_go(l->client);
    if (l->half)
        let_go(l->half);
    bp__stream_untime(l->client);
    TAILQ_REMOVE(&j->lanes, l, link);
    j->lane_count--;
    has_asked(l);
}

/**
 * up() - Give a client to the caller
 * @l: Lane
 * @why: Why it was not admitted
 *
 * Thread: own
 */
static void up(struct lane *l, enum bp_entering why) {
    bp_stream *client = l->client, *half = l->half;
    l->facts.why = why;
    l->facts.mark = bp_greeting_mark(&l->greeting);
    if (l->entered)
        bp_admission_leave(client->joiner->admits.admission, &l->entry, true);
    l->entered = false;
    leave(l);
    l->half = NULL;
    if (half) {
        half->lane = NULL;
        half->orphan = true;
        if (half->state != STREAM_RELEASED)
            bp__stream_release(half, BP_STREAM_FINE, 0);
        bp__stream_note(half, 0);
    }
    client->allowed_bytes = client->read_bytes;
    bp__stream_note(client, BP_NEWS_UP);
}

/**
 * take_out() - Take the frame out of what is replayed that the greeting has answered or waited for
 * @l: Lane
 *
 * Thread: own
 */
static void take_out(struct lane *l) {
    struct bp_greeting *g = &l->greeting;
    char *at = l->kept.data + l->kept.at + g->framed;
    l->facts.removed[l->facts.removed_count++] = (struct bp_removed){g->passed - g->removed, (uint32_t)g->removed};
    memmove(at, at + g->removed, l->kept.bytes - g->framed - g->removed);
    l->kept.bytes -= g->removed;
}

/**
 * say() - Say the greeting's words to the client
 * @l: Lane
 *
 * Return: 0, or -ENOMEM
 * Thread: own
 */
static int say(struct lane *l) {
    const struct bp_greeting *g = &l->greeting;
    int r = bp__buffer_add(&l->client->out, g->words, g->words_bytes);
    if (r == 0)
        l->facts.said_bytes += g->words_bytes;
    return r;
}

/**
 * take_request() - Read the first request, and enter by it
 * @l: Lane
 *
 * Return: BP_ENTERED, or why it goes up
 * Thread: own
 */
static enum bp_entering take_request(struct lane *l) {
    bp_joiner *j = l->client->joiner;
    struct bp_lane_facts *facts = &l->facts;
    struct bp_request request;
    const char *name = *facts->server_name ? facts->server_name : NULL;
    note_moment(l, bp__now_ns() / NS_A_US);
    if (!bp_request_read(&j->fields, name, l->rules, &request))
        return BP_UNUSUAL;
    facts->traceparent_bytes = request.traceparent.bytes;
    facts->tracestate_bytes = request.tracestate.bytes;
    memcpy(facts->traceparent, j->fields.text + request.traceparent.at, request.traceparent.bytes);
    memcpy(facts->tracestate, j->fields.text + request.tracestate.at, request.tracestate.bytes);
    enum bp_entering verdict = bp_admission_enter(j->admits.admission, request.digest, &request.satellite,
                                                  bp__boot_us(), bp__wall_us(), &l->entry);
    l->entered = verdict == BP_ENTERED;
    note_moment(l, bp__now_ns() / NS_A_US);
    return verdict;
}

/**
 * read_frames() - Read what has come of a client's greeting
 * @l: Lane that greets
 * @ret_asks: Receives whether the first request is whole
 *
 * Return: BP_ENTERED unless it goes up: then why
 * Thread: own
 */
static enum bp_entering read_frames(struct lane *l, bool *ret_asks) {
    bp_joiner *j = l->client->joiner;
    struct bp_greeting *g = &l->greeting;
    enum bp_entering found = BP_ENTERED;
    double now_s = (double)bp__now_ns() / NS_A_S;
    for (;;) {
        const char *kept = l->kept.data + l->kept.at;
        enum bp_greeting_verdict verdict = bp_greeting_next(g, kept, l->kept.bytes, now_s, &j->fields);
        if (verdict == BP_GREETING_MORE)
            return found;
        if (verdict == BP_GREETING_ACKED || verdict == BP_GREETING_PINGED)
            take_out(l);
        if (verdict == BP_GREETING_PINGED && say(l) < 0)
            return BP_UNUSUAL; /* its ranges count, and the mark: the caller has only to go on */
        if (l->facts.removed_count == BP_LANE_REMOVED)
            return BP_UNUSUAL;
        if (verdict == BP_GREETING_REQUEST) {
            *ret_asks = true;
            found = take_request(l);
        } else if (verdict != BP_GREETING_ACKED && verdict != BP_GREETING_PINGED)
            return BP_UNUSUAL;
        if (found != BP_ENTERED)
            return found;
    }
}

/**
 * ends_flight() - Say SETTINGS, since nothing more has come and a client may wait for them
 * @l: Lane
 *
 * Return: 0, or -ENOMEM
 * Thread: own
 */
static int ends_flight(struct lane *l) {
    enum bp_greeting_state state = l->greeting.state;
    if (state != BP_GREETING_SETTINGS && state != BP_GREETING_OPENING && state != BP_GREETING_OPENING_BLOCK)
        return 0;
    bp_greeting_speak(&l->greeting);
    return say(l);
}

/**
 * hear() - Go on with what the client has said
 * @l: Lane
 *
 * Thread: own
 */
static void hear(struct lane *l) {
    bp_stream *client = l->client;
    const struct buffer *data = &client->fresh.data;
    size_t bytes = data->bytes - l->fed_bytes;
    bool asks = false;
    if (l->step != LANE_GREETS || !bytes)
        return; /* it is behind the request: the join has it */
    if (bp__buffer_add(&l->kept, data->data + data->at + l->fed_bytes, bytes) < 0) {
        up(l, BP_UNUSUAL);
        return;
    }
    l->fed_bytes = data->bytes;
    enum bp_entering found = read_frames(l, &asks);
    if (found == BP_ENTERED && !asks && ends_flight(l) < 0)
        found = BP_UNUSUAL;
    if (found != BP_ENTERED) {
        up(l, found);
        bp__stream_run(client, 0); /* what was said to it */
        return;
    }
    if (asks) {
        l->step = LANE_DIALS;
        has_asked(l);
        bp__stream_untime(client);
        bp__stream_time(client, client->joiner->admits.reach_ms);
        if (bp__lane_dial(l) < 0)
            up(l, BP_UNREACHED);
    }
    bp__stream_run(client, 0);
}

/**
 * join() - Take the last look, and join the client and its satellite
 * @l: Lane, which is over then
 * @words: What the client gets first; empty then
 *
 * Thread: own
 */
static void join(struct lane *l, struct buffer *words) {
    bp_stream *client = l->client;
    int r = bp__lane_join(l, words);
    if (r < 0) {
        up(l, r == -ESTALE ? BP_CHANGED : BP_UNREACHED);
        return;
    }
    struct join *join = client->to_join;
    client->to_join = NULL;
    leave(l);
    bp__buffer_drop(&client->fresh.data, l->fed_bytes);
    bp__buffer_drop(&l->half->fresh.data, l->half->fresh.data.bytes);
    client->fresh.flags = l->half->fresh.flags = 0;
    bp__join_begin(join);
    bp__stream_note(client, 0); /* the caller is told of BP_NEWS_COMMITTED */
}

/**
 * connected() - Go on with a satellite that is connected
 * @l: Lane
 *
 * Thread: own
 */
static void connected(struct lane *l) {
    struct buffer none = {NULL, 0, 0, 0};
    const struct bp_greeting *g = &l->greeting;
    note_moment(l, bp__now_ns() / NS_A_US);
    int r = bp__lane_finds_owner(l);
    if (r <= 0) {
        l->facts.error = -r;
        up(l, BP_STRANGER);
    } else if (!g->settings_sent) {
        note_moment(l, 0);
        join(l, &none);
    } else if (bp__buffer_add(&l->half->out, l->kept.data + l->kept.at, g->opening_bytes) < 0)
        up(l, BP_UNREACHED);
    else {
        l->step = LANE_INTRODUCES;
        l->opening_bytes = g->opening_bytes;
        l->half->allowed_bytes = LANE_HALF_BYTES;
        bp__stream_run(l->half, 0);
    }
}

/**
 * introduce() - Read what the satellite has said, and join once its first frame is whole
 * @l: Lane
 *
 * Thread: own
 */
static void introduce(struct lane *l) {
    const struct buffer *said = &l->half->fresh.data;
    const struct bp_announcement announced = {l->greeting.streams, l->greeting.window_bytes};
    struct bp_announcement heard;
    struct buffer words = {NULL, 0, 0, 0};
    char *room = l->client->joiner->scratch;
    size_t bytes;
    BP_ASSERT(said->bytes + BP_SETTINGS_ADDED_BYTES <= STREAM_SCRATCH_BYTES);
    switch (bp_first_settings_read(&announced, said->data + said->at, said->bytes, room, &bytes, &heard)) {
    case BP_FIRST_SETTINGS_MORE:
        return;
    case BP_FIRST_SETTINGS_WHOLE:
        break;
    default:
        up(l, BP_UNREACHED);
        return;
    }
    note_moment(l, bp__now_ns() / NS_A_US);
    l->facts.streams = heard.streams;
    l->facts.window_bytes = heard.window_bytes;
    if (bp__buffer_add(&words, room, bytes) < 0)
        up(l, BP_UNREACHED);
    else
        join(l, &words);
    bp__buffer_drop(&words, words.bytes);
}

/**
 * bp__lane_run() - Look at what is new of a stream of a lane
 * @s: Client or satellite, in a lane
 *
 * Thread: own
 */
void bp__lane_run(bp_stream *s) {
    struct lane *l = s->lane;
    const unsigned over = BP_NEWS_END | BP_NEWS_BROKEN | BP_NEWS_HUNG_UP | BP_NEWS_RELEASED;
    if (l->client->fresh.flags & over)
        up(l, BP_LEFT);
    else if (l->stopped == -ECANCELED)
        up(l, BP_STOPPED);
    else if (l->stopped)
        up(l, l->step == LANE_GREETS ? BP_SILENT : BP_UNREACHED);
    else if (s == l->client)
        hear(l);
    else if (s->fresh.flags & over)
        up(l, BP_UNREACHED);
    else if (l->step == LANE_DIALS && (s->fresh.flags & BP_NEWS_CONNECTED))
        connected(l);
    else if (l->step == LANE_INTRODUCES && (s->fresh.flags & BP_NEWS_DATA))
        introduce(l);
}

/**
 * bp__lane_stop() - End a lane in this turn
 * @l: Lane
 * @why: As `stopped` of struct lane
 *
 * Thread: own
 */
void bp__lane_stop(struct lane *l, int why) {
    l->stopped = why;
    bp__stream_note(l->client, 0);
}

/**
 * bp__lane_begin() - Begin with a client that bp__lane_take() has taken
 * @client: Its stream
 *
 * Thread: own
 */
void bp__lane_begin(bp_stream *client) {
    struct lane *l = client->lane;
    bp_joiner *j = client->joiner;
    TAILQ_INSERT_TAIL(&j->lanes, l, link);
    TAILQ_INSERT_TAIL(&j->silent, l, silent_link);
    l->is_silent = true;
    client->in_lane = true;
    client->allowed_bytes = CLIENT_BYTES;
    bp__stream_time(client, j->admits.request_ms);
    bp__stream_note(client, BP_NEWS_DATA);
    if (++j->silent_count > j->admits.silent_clients)
        up(TAILQ_FIRST(&j->silent), BP_SILENT);
}

/**
 * bp__lanes_look() - Give those clients to the caller that may not go on, since something has changed
 * @j: Joiner
 *
 * Thread: own
 */
void bp__lanes_look(bp_joiner *j) {
    struct lane *next;
    int64_t now_us = bp__boot_us(), wall_us = bp__wall_us();
    for (struct lane *l = TAILQ_FIRST(&j->lanes); l; l = next) {
        next = TAILQ_NEXT(l, link);
        if (l->entered && !bp_admission_holds(j->admits.admission, &l->entry, now_us, wall_us))
            up(l, BP_CHANGED);
    }
}
