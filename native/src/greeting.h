/* What the files of the greeting share. */
#ifndef BP_GREETING_H
#define BP_GREETING_H

#include "bp.h"

#define FRAME_HEADER_BYTES 9u
#define ACK 0x1u
#define END_HEADERS 0x4u
#define SETTING_BYTES 6u
#define PRIORITY_BYTES 5u
#define LARGEST 0x7fffffffu /* of 31 bits: streams, windows, and the values of our SETTINGS */
#define INITIAL_WINDOW 65535u
#define MAX_CONCURRENT_STREAMS 3u /* settings, as is what follows */
#define INITIAL_WINDOW_SIZE 4u

enum h2_error { /* RFC 9113 section 7 */
                H2_NO_ERROR = 0x0,
                H2_PROTOCOL_ERROR = 0x1,
                H2_FLOW_CONTROL_ERROR = 0x3,
                H2_FRAME_SIZE_ERROR = 0x6,
                H2_COMPRESSION_ERROR = 0x9,
                H2_ENHANCE_YOUR_CALM = 0xb,
};

enum frame_type {
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION
};

enum input { /* the kinds of frames that the states know; a PART has no END_HEADERS */
             IN_SETTINGS,
             IN_SETTINGS_ACK,
             IN_PING,
             IN_GOAWAY,
             IN_HEADERS,
             IN_HEADERS_PART,
             IN_CONTINUATION,
             IN_CONTINUATION_PART,
             IN_DATA,
             IN_RST_STREAM,
             IN_PUSH_PROMISE,
             IN_QUIET, /* WINDOW_UPDATE, PRIORITY, PING ACK and unknown types */
};

struct frame {
    uint32_t length, stream;
    uint8_t type, flags;
    enum input seen;
    const uint8_t *payload;
};

/* greeting_rules.c */
bool bp__over(const struct bp_greeting_limits *limits, enum bp_limit limit, uint64_t value);
enum bp_greeting_verdict bp__refuse(struct bp_greeting *g, enum h2_error error, enum bp_limit limit);
enum bp_greeting_verdict bp__bounded(struct bp_greeting *g, enum bp_limit limit, uint64_t value);
uint32_t bp__read_u32(const uint8_t *at);
uint8_t *bp__put_setting(uint8_t *at, uint8_t setting, uint32_t value);
struct frame bp__parse_header(const uint8_t *at);
enum bp_greeting_state bp__next_state(enum bp_greeting_state state, enum input seen);
enum h2_error bp__shape_error(const struct frame *f);

/* greeting_fields.c */
int bp__decode_fields(const struct bp_greeting_limits *limits, const uint8_t *block, size_t bytes,
                      struct bp_fields *ret, enum bp_limit *ret_limit);

/* greeting_take.c */
void bp__say_settings(struct bp_greeting *g);
enum bp_greeting_verdict bp__take_frame(struct bp_greeting *g, enum bp_greeting_state was, const struct frame *f,
                                        const uint8_t *kept, double now_s, struct bp_fields *ret);

#endif
