/* The greeting: reads a client's first frames, as proto/greeting.py does, without I/O and without a buffer of its own.
 *
 * The caller keeps the client's bytes. Each call reads whole frames until there is something to tell. What breaks a rule or a
 * limit is refused with its error code, and the words are proto/greeting.py's. What is unusual is left to proto/greeting.py
 * too: clients that do not speak HTTP/2, more open streams than BP_GREETING_STREAMS, and whatever memory is missing for. Then
 * nothing of the frame has been taken.
 *
 * proto/states.py explains the states. tests/native/test_greeting.py compares both.
 */
#include "greeting.h"

#include <string.h>

#define PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define PREFACE_BYTES (sizeof PREFACE - 1)
#define MARK_ACKED 1
#define MARK_STREAMS 2
#define MARK_WINDOW 33

/**
 * check_header() - Check a frame's header alone, before its payload has come
 * @g: Greeting
 * @f: Frame
 *
 * Return: BP_GREETING_MORE, or BP_GREETING_REFUSED
 * Thread: one
 */
static enum bp_greeting_verdict check_header(struct bp_greeting *g, const struct frame *f) {
    bool in_block = g->state == BP_GREETING_OPENING_BLOCK || g->state == BP_GREETING_HELD_BLOCK;
    if (bp__over(g->limits, BP_LIMIT_FRAME_BYTES, f->length))
        return bp__refuse(g, H2_FRAME_SIZE_ERROR, BP_LIMIT_FRAME_BYTES);
    if (bp__next_state(g->state, f->seen) == BP_GREETING_ENDED || (in_block && f->stream != g->block_stream))
        return bp__refuse(g, H2_PROTOCOL_ERROR, BP_LIMIT_NONE);
    enum h2_error error = bp__shape_error(f);
    if (error)
        return bp__refuse(g, error, BP_LIMIT_NONE);
    return f->seen == IN_SETTINGS ? bp__bounded(g, BP_LIMIT_SETTINGS_ENTRIES, f->length / SETTING_BYTES)
                                  : BP_GREETING_MORE;
}

/**
 * count() - Count a whole frame, and refuse one too many
 * @g: Greeting, in the state in which the frame came
 * @seen: Input
 *
 * Return: BP_GREETING_MORE, or BP_GREETING_REFUSED
 * Thread: one
 */
static enum bp_greeting_verdict count(struct bp_greeting *g, enum input seen) {
    bool held = g->state == BP_GREETING_HELD;
    enum bp_limit limit = BP_LIMIT_NONE;
    if (seen == IN_SETTINGS)
        limit = BP_LIMIT_SETTINGS_FRAMES;
    else if (seen == IN_PING && !held)
        limit = BP_LIMIT_PING_FRAMES;
    else if (seen == IN_GOAWAY || seen == IN_QUIET)
        limit = held ? BP_LIMIT_QUIET_FRAMES : BP_LIMIT_OPENING_FRAMES;
    else if (held && (seen == IN_HEADERS || seen == IN_HEADERS_PART))
        limit = BP_LIMIT_HELD_HEADERS;
    else if (seen == IN_RST_STREAM)
        limit = BP_LIMIT_RST_STREAM_FRAMES;
    return limit ? bp__bounded(g, limit, ++g->counts[limit]) : BP_GREETING_MORE;
}

/**
 * undo() - Forget a frame that was refused or is left to Python: only how it ended remains
 * @g: Greeting
 * @before: As it was before the frame
 *
 * Thread: one
 */
static void undo(struct bp_greeting *g, const struct bp_greeting *before) {
    bool refused = g->state == BP_GREETING_ENDED;
    uint32_t error_code = g->error_code;
    enum bp_limit limit = g->limit;
    *g = *before;
    if (refused)
        bp__refuse(g, (enum h2_error)error_code, limit);
}

/**
 * step() - Read the next frame, if it is whole
 * @g: Greeting, in a state in which frames are read
 * @kept: The client's bytes
 * @bytes: How many
 * @now_s: As bp_greeting_next() has it
 * @ret: Receives the fields of the first request
 * @ret_verdict: Receives the verdict
 *
 * Return: whether to go on with the frame after it
 * Thread: one
 */
static bool step(struct bp_greeting *g, const uint8_t *kept, size_t bytes, double now_s, struct bp_fields *ret,
                 enum bp_greeting_verdict *ret_verdict) {
    const struct bp_greeting before = *g;
    if (bytes - g->framed < FRAME_HEADER_BYTES)
        return false;
    struct frame f = bp__parse_header(kept + g->framed);
    *ret_verdict = check_header(g, &f);
    size_t size = FRAME_HEADER_BYTES + f.length;
    if (*ret_verdict != BP_GREETING_MORE || bytes - g->framed < size)
        return false;
    *ret_verdict = count(g, f.seen);
    if (*ret_verdict == BP_GREETING_MORE) {
        g->state = bp__next_state(before.state, f.seen);
        *ret_verdict = bp__take_frame(g, before.state, &f, kept, now_s, ret);
    }
    if (*ret_verdict == BP_GREETING_REFUSED || *ret_verdict == BP_GREETING_UNUSUAL) {
        undo(g, &before);
        return false;
    }
    g->passed += size;
    if (*ret_verdict == BP_GREETING_ACKED || *ret_verdict == BP_GREETING_PINGED)
        g->removed = size;
    else
        g->framed += size;
    if (before.state == BP_GREETING_SETTINGS)
        g->opening_bytes = g->framed;
    return *ret_verdict == BP_GREETING_MORE;
}

void bp_greeting_init(struct bp_greeting *g, const struct bp_greeting_limits *limits) {
    *g = (struct bp_greeting){.limits = limits,
                              .streams = LARGEST,
                              .window_bytes = INITIAL_WINDOW,
                              .window = INITIAL_WINDOW,
                              .ping_tokens = limits->most[BP_LIMIT_PING_BURST]};
}

enum bp_greeting_verdict bp_greeting_next(struct bp_greeting *g, const void *kept, size_t bytes, double now_s,
                                          struct bp_fields *ret_fields) {
    enum bp_greeting_verdict verdict = BP_GREETING_MORE;
    g->words_bytes = 0;
    g->removed = 0;
    if (g->state == BP_GREETING_ENDED)
        return bp__refuse(g, H2_PROTOCOL_ERROR, BP_LIMIT_NONE);
    if (g->state == BP_GREETING_PREFACE) {
        size_t seen = bytes < PREFACE_BYTES ? bytes : PREFACE_BYTES;
        if (memcmp(kept, PREFACE, seen) != 0)
            return BP_GREETING_UNUSUAL;
        if (seen < PREFACE_BYTES)
            return BP_GREETING_MORE;
        g->framed = g->passed = PREFACE_BYTES;
        g->state = BP_GREETING_SETTINGS;
    }
    while (step(g, kept, bytes, now_s, ret_fields, &verdict))
        ;
    bool asked = g->state == BP_GREETING_HELD || g->state == BP_GREETING_HELD_BLOCK;
    return verdict == BP_GREETING_MORE && !asked ? bp__bounded(g, BP_LIMIT_GREETING_BYTES, bytes) : verdict;
}

void bp_greeting_speak(struct bp_greeting *g) {
    g->words_bytes = 0;
    bp__say_settings(g);
}

uint64_t bp_greeting_mark(const struct bp_greeting *g) {
    return (uint64_t)g->settings_sent | (uint64_t)g->acked << MARK_ACKED | (uint64_t)g->streams << MARK_STREAMS |
           (uint64_t)g->window_bytes << MARK_WINDOW;
}

void bp_greeting_resume(struct bp_greeting *g, uint64_t mark) {
    g->settings_sent = mark & 1;
    g->acked = mark >> MARK_ACKED & 1;
    g->streams = mark >> MARK_STREAMS & LARGEST;
    g->window_bytes = (uint32_t)(mark >> MARK_WINDOW);
}
