/* What a frame's header alone says: the input that it is, whether it may come, how it must look. As proto/states.py. */
#include "greeting.h"

#include <string.h>

/**
 * bp__over() - Whether a value is over a limit
 * @limits: Limits
 * @limit: Which of them
 * @value: Value
 *
 * Return: whether it is
 * Thread: any
 */
bool bp__over(const struct bp_greeting_limits *limits, enum bp_limit limit, uint64_t value) {
    return (double)value > limits->most[limit];
}

/**
 * bp__refuse() - End the greeting by an error
 * @g: Greeting
 * @error: Error
 * @limit: The limit behind it, or BP_LIMIT_NONE
 *
 * Return: BP_GREETING_REFUSED
 * Thread: one
 */
enum bp_greeting_verdict bp__refuse(struct bp_greeting *g, enum h2_error error, enum bp_limit limit) {
    g->state = BP_GREETING_ENDED;
    g->error_code = error;
    g->limit = limit;
    return BP_GREETING_REFUSED;
}

/**
 * bp__bounded() - Refuse a value that is over a limit
 * @g: Greeting
 * @limit: Limit
 * @value: Value
 *
 * Return: BP_GREETING_MORE, or BP_GREETING_REFUSED
 * Thread: one
 */
enum bp_greeting_verdict bp__bounded(struct bp_greeting *g, enum bp_limit limit, uint64_t value) {
    return bp__over(g->limits, limit, value) ? bp__refuse(g, H2_ENHANCE_YOUR_CALM, limit) : BP_GREETING_MORE;
}

/**
 * bp__read_u32() - Read a number of 32 bits
 * @at: Its bytes, the highest first
 *
 * Return: the number
 * Thread: any
 */
uint32_t bp__read_u32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/**
 * bp__put_setting() - Write one entry of SETTINGS
 * @at: Receives its six bytes
 * @setting: Setting
 * @value: Value
 *
 * Return: where the next entry begins
 * Thread: any
 */
uint8_t *bp__put_setting(uint8_t *at, uint8_t setting, uint32_t value) {
    const uint8_t entry[SETTING_BYTES] = {
        0, setting, (uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value};
    memcpy(at, entry, sizeof entry);
    return at + sizeof entry;
}

/**
 * classify() - The kind of input that a frame is
 * @f: Frame
 *
 * Return: the kind
 * Thread: any
 */
static enum input classify(const struct frame *f) {
    switch (f->type) {
    case SETTINGS:
        return f->flags & ACK ? IN_SETTINGS_ACK : IN_SETTINGS;
    case PING:
        return f->flags & ACK ? IN_QUIET : IN_PING;
    case HEADERS:
        return f->flags & END_HEADERS ? IN_HEADERS : IN_HEADERS_PART;
    case CONTINUATION:
        return f->flags & END_HEADERS ? IN_CONTINUATION : IN_CONTINUATION_PART;
    case DATA:
        return IN_DATA;
    case RST_STREAM:
        return IN_RST_STREAM;
    case GOAWAY:
        return IN_GOAWAY;
    case PUSH_PROMISE:
        return IN_PUSH_PROMISE;
    default:
        return IN_QUIET;
    }
}

/**
 * bp__parse_header() - Read a frame's header; its payload may not be there yet
 * @at: Nine bytes
 *
 * Return: the frame
 * Thread: any
 */
struct frame bp__parse_header(const uint8_t *at) {
    struct frame f = {.length = bp__read_u32(at) >> 8,
                      .type = at[3],
                      .flags = at[4],
                      .stream = bp__read_u32(at + 5) & LARGEST,
                      .payload = at + FRAME_HEADER_BYTES};
    f.seen = classify(&f);
    return f;
}

/**
 * bp__next_state() - The state that follows: the table of proto/states.py
 * @state: State, of those in which frames are read
 * @seen: Input
 *
 * Return: the state; BP_GREETING_ENDED if the input may not come
 * Thread: any
 */
enum bp_greeting_state bp__next_state(enum bp_greeting_state state, enum input seen) {
    bool held = state == BP_GREETING_HELD || state == BP_GREETING_HELD_BLOCK;
    if (state == BP_GREETING_SETTINGS)
        return seen == IN_SETTINGS ? BP_GREETING_OPENING : BP_GREETING_ENDED;
    if (state == BP_GREETING_OPENING_BLOCK || state == BP_GREETING_HELD_BLOCK)
        return seen == IN_CONTINUATION ? BP_GREETING_HELD : seen == IN_CONTINUATION_PART ? state : BP_GREETING_ENDED;
    switch (seen) {
    case IN_HEADERS:
        return BP_GREETING_HELD;
    case IN_HEADERS_PART:
        return held ? BP_GREETING_HELD_BLOCK : BP_GREETING_OPENING_BLOCK;
    case IN_DATA:
    case IN_RST_STREAM:
        return held ? state : BP_GREETING_ENDED;
    case IN_CONTINUATION:
    case IN_CONTINUATION_PART:
    case IN_PUSH_PROMISE:
        return BP_GREETING_ENDED;
    default:
        return state;
    }
}

/**
 * bp__shape_error() - Check a frame's header by its type (RFC 9113 section 6)
 * @f: Frame
 *
 * Return: H2_NO_ERROR, or the error
 * Thread: any
 */
enum h2_error bp__shape_error(const struct frame *f) {
    bool wrong_length = false, on_stream = f->stream != 0, wrong_place = false;
    switch (f->type) {
    case DATA:
    case HEADERS:
    case CONTINUATION:
        wrong_place = !on_stream;
        break;
    case PRIORITY:
        wrong_place = !on_stream;
        wrong_length = f->length != PRIORITY_BYTES;
        break;
    case RST_STREAM:
        wrong_place = !on_stream;
        wrong_length = f->length != 4;
        break;
    case SETTINGS:
        wrong_place = on_stream;
        wrong_length = f->length % SETTING_BYTES || (f->flags & ACK && f->length);
        break;
    case PING:
        wrong_place = on_stream;
        wrong_length = f->length != 8;
        break;
    case GOAWAY:
        wrong_place = on_stream;
        wrong_length = f->length < 8;
        break;
    case WINDOW_UPDATE:
        wrong_length = f->length != 4;
        break;
    default:
        break;
    }
    return wrong_place ? H2_PROTOCOL_ERROR : wrong_length ? H2_FRAME_SIZE_ERROR : H2_NO_ERROR;
}
