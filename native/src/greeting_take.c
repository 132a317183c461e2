/* What whole frames do to a greeting, and our words about them. As proto/greeting.py, header_block.py and payloads.py. */
#include "greeting.h"

#include <stdlib.h>
#include <string.h>

#define PRIORITY_FLAG 0x20u
#define ENABLE_PUSH 2u
#define MAX_FRAME_SIZE 5u
#define LEAST_FRAME_SIZE (1u << 14)
#define LARGEST_FRAME_SIZE ((1u << 24) - 1)
#define END_STREAM 0x1u
#define PADDED 0x8u

/**
 * put_frame() - Add a frame to our words
 * @g: Greeting
 * @type: Type
 * @flags: Flags
 * @payload: Payload; the stream is 0
 * @bytes: Its size
 *
 * Thread: one
 */
static void put_frame(struct bp_greeting *g, enum frame_type type, uint8_t flags, const uint8_t *payload,
                      uint8_t bytes) {
    uint8_t *at = g->words + g->words_bytes;
    memset(at, 0, FRAME_HEADER_BYTES);
    at[2] = bytes;
    at[3] = (uint8_t)type;
    at[4] = flags;
    memcpy(at + FRAME_HEADER_BYTES, payload, bytes);
    g->words_bytes += FRAME_HEADER_BYTES + bytes;
}

/**
 * bp__say_settings() - Add our SETTINGS to our words, unless the client has them; values that hold initially are left out
 * @g: Greeting
 *
 * Thread: one
 */
void bp__say_settings(struct bp_greeting *g) {
    uint8_t entries[2 * SETTING_BYTES], *end = entries;
    if (g->settings_sent)
        return;
    g->settings_sent = true;
    if (g->streams != LARGEST)
        end = bp__put_setting(end, MAX_CONCURRENT_STREAMS, g->streams);
    if (g->window_bytes != INITIAL_WINDOW)
        end = bp__put_setting(end, INITIAL_WINDOW_SIZE, g->window_bytes);
    put_frame(g, SETTINGS, 0, entries, (uint8_t)(end - entries));
}

struct part { /* of a payload */
    const uint8_t *at;
    uint32_t bytes;
    enum h2_error error;
};

/**
 * unpad() - Find the content of DATA or HEADERS between its padding (RFC 9113 section 6.1)
 * @f: Frame
 *
 * Return: the content; none if there is an error
 * Thread: any
 */
static struct part unpad(const struct frame *f) {
    if (!(f->flags & PADDED))
        return (struct part){f->payload, f->length, H2_NO_ERROR};
    if (!f->length)
        return (struct part){f->payload, 0, H2_FRAME_SIZE_ERROR};
    uint32_t padding = f->payload[0];
    if (padding >= f->length)
        return (struct part){f->payload, 0, H2_PROTOCOL_ERROR};
    return (struct part){f->payload + 1, f->length - 1 - padding, H2_NO_ERROR};
}

/**
 * block_part() - Find the part of a header block that HEADERS or CONTINUATION has
 * @f: Frame
 *
 * Return: the part; none if there is an error
 * Thread: any
 */
static struct part block_part(const struct frame *f) {
    if (f->type == CONTINUATION)
        return (struct part){f->payload, f->length, H2_NO_ERROR};
    struct part part = unpad(f);
    uint32_t start = f->flags & PRIORITY_FLAG ? PRIORITY_BYTES : 0;
    if (part.error)
        return part;
    if (start > part.bytes)
        return (struct part){f->payload, 0, H2_FRAME_SIZE_ERROR};
    return (struct part){part.at + start, part.bytes - start, H2_NO_ERROR};
}

/**
 * gather_block() - Put the parts of the first header block together
 * @g: Greeting
 * @kept: The client's bytes; the block's frames are whole, and begin at g->block_at
 *
 * Return: g->block_bytes bytes, which free() frees; NULL without memory
 * Thread: one
 */
static uint8_t *gather_block(const struct bp_greeting *g, const uint8_t *kept) {
    uint8_t *block = malloc(g->block_bytes + 1);
    size_t at = g->block_at, filled = 0;
    if (!block)
        return NULL;
    for (uint32_t i = 0; i <= g->continuations; i++) {
        struct frame f = bp__parse_header(kept + at);
        struct part part = block_part(&f);
        memcpy(block + filled, part.at, part.bytes);
        filled += part.bytes;
        at += FRAME_HEADER_BYTES + f.length;
    }
    return block;
}

/**
 * decode_block() - Decode the first header block, whose last frame this is
 * @g: Greeting
 * @kept: The client's bytes
 * @content: What the last frame has of it
 * @ret: Receives the fields
 *
 * Return: BP_GREETING_REQUEST, BP_GREETING_REFUSED or BP_GREETING_UNUSUAL
 * Thread: one
 */
static enum bp_greeting_verdict decode_block(struct bp_greeting *g, const uint8_t *kept, const uint8_t *content,
                                             struct bp_fields *ret) {
    uint8_t *gathered = NULL;
    enum bp_limit limit;
    if (g->continuations) {
        gathered = gather_block(g, kept);
        if (!gathered)
            return BP_GREETING_UNUSUAL;
        content = gathered;
    }
    int r = bp__decode_fields(g->limits, content, g->block_bytes, ret, &limit);
    free(gathered);
    if (r < 0)
        return BP_GREETING_UNUSUAL;
    return r ? bp__refuse(g, (enum h2_error)r, limit) : BP_GREETING_REQUEST;
}

/**
 * open_stream() - Note the stream of HEADERS
 * @g: Greeting
 * @stream: Stream
 *
 * Return: BP_GREETING_MORE, BP_GREETING_REFUSED or BP_GREETING_UNUSUAL
 * Thread: one
 */
static enum bp_greeting_verdict open_stream(struct bp_greeting *g, uint32_t stream) {
    if (stream % 2 == 0)
        return bp__refuse(g, H2_PROTOCOL_ERROR, BP_LIMIT_NONE);
    if (stream <= g->last_stream)
        return BP_GREETING_MORE;
    if (g->open_count == BP_GREETING_STREAMS)
        return BP_GREETING_UNUSUAL;
    g->last_stream = stream;
    g->open[g->open_count++] = stream;
    return BP_GREETING_MORE;
}

/**
 * take_block() - Process HEADERS or CONTINUATION
 * @g: Greeting
 * @was: State in which the frame came
 * @f: Frame
 * @kept: The client's bytes
 * @ret: Receives the fields of the first request
 *
 * Return: BP_GREETING_MORE, BP_GREETING_REQUEST, BP_GREETING_REFUSED or BP_GREETING_UNUSUAL
 * Thread: one
 */
static enum bp_greeting_verdict take_block(struct bp_greeting *g, enum bp_greeting_state was, const struct frame *f,
                                           const uint8_t *kept, struct bp_fields *ret) {
    struct part part = block_part(f);
    enum bp_greeting_verdict verdict = BP_GREETING_MORE;
    if (f->type == HEADERS) {
        verdict = open_stream(g, f->stream);
        g->block_stream = f->stream;
        g->block_end_stream = f->flags & END_STREAM;
        g->block_first = was == BP_GREETING_OPENING;
        g->block_at = g->framed;
        g->block_bytes = 0;
        g->continuations = 0;
    } else
        verdict = bp__bounded(g, BP_LIMIT_CONTINUATION_FRAMES, ++g->continuations);
    if (verdict == BP_GREETING_MORE && part.error)
        verdict = bp__refuse(g, part.error, BP_LIMIT_NONE);
    if (verdict != BP_GREETING_MORE)
        return verdict;
    g->block_bytes += part.bytes;
    verdict = bp__bounded(g, BP_LIMIT_HEADER_BLOCK_BYTES, g->block_bytes);
    if (verdict != BP_GREETING_MORE || !(f->flags & END_HEADERS) || !g->block_first)
        return verdict;
    g->told_stream = f->stream;
    return decode_block(g, kept, part.at, ret);
}

/**
 * check_opened() - Refuse a frame on a stream that the client has not opened
 * @g: Greeting
 * @stream: Stream
 *
 * Return: BP_GREETING_MORE, or BP_GREETING_REFUSED
 * Thread: one
 */
static enum bp_greeting_verdict check_opened(struct bp_greeting *g, uint32_t stream) {
    bool idle = stream > g->last_stream || stream % 2 == 0;
    return idle ? bp__refuse(g, H2_PROTOCOL_ERROR, BP_LIMIT_NONE) : BP_GREETING_MORE;
}

/**
 * take_data() - Process DATA
 * @g: Greeting
 * @f: Frame
 *
 * Return: BP_GREETING_MORE, or BP_GREETING_REFUSED
 * Thread: one
 */
static enum bp_greeting_verdict take_data(struct bp_greeting *g, const struct frame *f) {
    enum h2_error error = unpad(f).error;
    enum bp_greeting_verdict verdict = check_opened(g, f->stream);
    if (verdict == BP_GREETING_MORE && error)
        verdict = bp__refuse(g, error, BP_LIMIT_NONE);
    if (verdict == BP_GREETING_MORE && !f->length)
        verdict = bp__bounded(g, BP_LIMIT_EMPTY_DATA_FRAMES, ++g->counts[BP_LIMIT_EMPTY_DATA_FRAMES]);
    if (verdict != BP_GREETING_MORE)
        return verdict;
    g->data_bytes += f->length;
    return bp__over(g->limits, BP_LIMIT_WINDOW_BYTES, g->data_bytes)
               ? bp__refuse(g, H2_FLOW_CONTROL_ERROR, BP_LIMIT_WINDOW_BYTES)
               : BP_GREETING_MORE;
}

/**
 * take_reset() - Process RST_STREAM
 * @g: Greeting
 * @f: Frame
 *
 * Return: BP_GREETING_RESET, or BP_GREETING_REFUSED
 * Thread: one
 */
static enum bp_greeting_verdict take_reset(struct bp_greeting *g, const struct frame *f) {
    enum bp_greeting_verdict verdict = check_opened(g, f->stream);
    if (verdict != BP_GREETING_MORE)
        return verdict;
    for (uint32_t i = 0; i < g->open_count; i++)
        if (g->open[i] == f->stream) {
            g->open[i] = g->open[--g->open_count];
            break;
        }
    g->told_stream = f->stream;
    g->error_code = bp__read_u32(f->payload);
    return BP_GREETING_RESET;
}

/**
 * take_settings() - Check the values of the client's SETTINGS (RFC 9113 section 6.5.2)
 * @g: Greeting
 * @f: Frame
 *
 * Return: BP_GREETING_MORE, or BP_GREETING_REFUSED
 * Thread: one
 */
static enum bp_greeting_verdict take_settings(struct bp_greeting *g, const struct frame *f) {
    for (uint32_t at = 0; at < f->length; at += SETTING_BYTES) {
        uint32_t setting = (uint32_t)f->payload[at] << 8 | f->payload[at + 1];
        uint32_t value = bp__read_u32(f->payload + at + 2);
        if (setting == INITIAL_WINDOW_SIZE && value > LARGEST)
            return bp__refuse(g, H2_FLOW_CONTROL_ERROR, BP_LIMIT_NONE);
        if (setting == ENABLE_PUSH && value > 1)
            return bp__refuse(g, H2_PROTOCOL_ERROR, BP_LIMIT_NONE);
        if (setting == MAX_FRAME_SIZE && (value < LEAST_FRAME_SIZE || value > LARGEST_FRAME_SIZE))
            return bp__refuse(g, H2_PROTOCOL_ERROR, BP_LIMIT_NONE);
    }
    return BP_GREETING_MORE;
}

/**
 * take_window() - Process WINDOW_UPDATE
 * @g: Greeting
 * @f: Frame
 *
 * Return: BP_GREETING_MORE, or BP_GREETING_REFUSED
 * Thread: one
 */
static enum bp_greeting_verdict take_window(struct bp_greeting *g, const struct frame *f) {
    uint32_t increment = bp__read_u32(f->payload) & LARGEST;
    if (f->stream && check_opened(g, f->stream) != BP_GREETING_MORE)
        return BP_GREETING_REFUSED;
    if (!increment)
        return bp__refuse(g, H2_PROTOCOL_ERROR, BP_LIMIT_NONE);
    if (f->stream)
        return BP_GREETING_MORE;
    g->window += increment;
    return g->window > LARGEST ? bp__refuse(g, H2_FLOW_CONTROL_ERROR, BP_LIMIT_NONE) : BP_GREETING_MORE;
}

/**
 * take_ping() - Answer PING, behind our SETTINGS, which must be a server's first frame (RFC 9113 section 3.4)
 * @g: Greeting
 * @was: State in which the frame came
 * @f: Frame
 * @now_s: As bp_greeting_next() has it
 *
 * Return: BP_GREETING_PINGED, or BP_GREETING_REFUSED
 * Thread: one
 */
static enum bp_greeting_verdict take_ping(struct bp_greeting *g, enum bp_greeting_state was, const struct frame *f,
                                          double now_s) {
    if (was == BP_GREETING_HELD) {
        double passed_s = now_s > g->ping_at_s ? now_s - g->ping_at_s : 0;
        double tokens = g->ping_tokens + passed_s * g->limits->most[BP_LIMIT_PING_PER_S];
        double burst = g->limits->most[BP_LIMIT_PING_BURST];
        g->ping_tokens = (tokens < burst ? tokens : burst) - 1;
        g->ping_at_s = now_s;
        if (g->ping_tokens < 0)
            return bp__refuse(g, H2_ENHANCE_YOUR_CALM, BP_LIMIT_PING_PER_S);
    }
    bp__say_settings(g);
    put_frame(g, PING, ACK, f->payload, (uint8_t)f->length);
    return BP_GREETING_PINGED;
}

/**
 * bp__take_frame() - Process a whole frame
 * @g: Greeting
 * @was: State in which the frame came
 * @f: Frame
 * @kept: The client's bytes
 * @now_s: As bp_greeting_next() has it
 * @ret: Receives the fields of the first request
 *
 * Return: BP_GREETING_MORE if there is nothing to tell, or another verdict
 * Thread: one
 */
enum bp_greeting_verdict bp__take_frame(struct bp_greeting *g, enum bp_greeting_state was, const struct frame *f,
                                        const uint8_t *kept, double now_s, struct bp_fields *ret) {
    switch (f->seen) {
    case IN_SETTINGS_ACK:
        if (!g->settings_sent || g->acked)
            return bp__refuse(g, H2_PROTOCOL_ERROR, BP_LIMIT_NONE);
        g->acked = true;
        return BP_GREETING_ACKED;
    case IN_PING:
        return take_ping(g, was, f, now_s);
    case IN_HEADERS:
    case IN_HEADERS_PART:
    case IN_CONTINUATION:
    case IN_CONTINUATION_PART:
        return take_block(g, was, f, kept, ret);
    case IN_DATA:
        return take_data(g, f);
    case IN_RST_STREAM:
        return take_reset(g, f);
    case IN_GOAWAY:
        g->error_code = bp__read_u32(f->payload + 4);
        g->going_away = true;
        g->failing |= g->error_code != H2_NO_ERROR;
        return BP_GREETING_GOING_AWAY;
    case IN_SETTINGS:
        return take_settings(g, f);
    default: /* the others are for the satellite */
        return f->type == WINDOW_UPDATE ? take_window(g, f) : BP_GREETING_MORE;
    }
}
