/* A satellite's first frame, and what its client gets instead. As proto/first_settings.py, which says why. */
#include "greeting.h"

#include <string.h>

#define NO_RFC7540_PRIORITIES 9u
#define TYPE_AT 3u /* in a frame's header */

/**
 * begins_a_server() - Whether a frame may be the first of an HTTP/2 server (RFC 9113 section 3.4)
 * @f: Frame
 *
 * Return: whether it may
 * Thread: any
 */
static bool begins_a_server(const struct frame *f) {
    return f->seen == IN_SETTINGS && !f->stream && f->length % SETTING_BYTES == 0 &&
           f->length <= BP_SERVER_SETTINGS_BYTES;
}

/**
 * change() - Copy entries of SETTINGS except NO_RFC7540_PRIORITIES, and add those that ours had and these lack
 * @announced: What our SETTINGS have announced
 * @f: The satellite's frame, which is whole
 * @to: Receives the entries
 * @ret_heard: Receives what they announce: the last of a kind counts (RFC 9113 section 6.5.3)
 *
 * Return: behind the last entry
 * Thread: any
 */
static uint8_t *change(const struct bp_announcement *announced, const struct frame *f, uint8_t *to,
                       struct bp_announcement *ret_heard) {
    bool has_streams = false, has_window = false;
    *ret_heard = (struct bp_announcement){LARGEST, INITIAL_WINDOW};
    for (uint32_t at = 0; at < f->length; at += SETTING_BYTES) {
        const uint8_t *entry = f->payload + at;
        unsigned setting = (unsigned)entry[0] << 8 | entry[1];
        if (setting == NO_RFC7540_PRIORITIES)
            continue;
        if (setting == MAX_CONCURRENT_STREAMS) {
            has_streams = true;
            ret_heard->streams = bp__read_u32(entry + 2);
        } else if (setting == INITIAL_WINDOW_SIZE) {
            has_window = true;
            ret_heard->window_bytes = bp__read_u32(entry + 2);
        }
        memcpy(to, entry, SETTING_BYTES);
        to += SETTING_BYTES;
    }
    if (!has_streams && announced->streams != LARGEST)
        to = bp__put_setting(to, MAX_CONCURRENT_STREAMS, LARGEST);
    if (!has_window && announced->window_bytes != INITIAL_WINDOW)
        to = bp__put_setting(to, INITIAL_WINDOW_SIZE, INITIAL_WINDOW);
    return to;
}

enum bp_first_settings bp_first_settings_read(const struct bp_announcement *announced, const void *said, size_t bytes,
                                              void *words, size_t *ret_words_bytes, struct bp_announcement *ret_heard) {
    const uint8_t *from = said;
    uint8_t *to = words;
    if (bytes < FRAME_HEADER_BYTES) /* a banner may be shorter, and nothing follows */
        return bytes > TYPE_AT && from[TYPE_AT] != SETTINGS ? BP_FIRST_SETTINGS_NO_SERVER : BP_FIRST_SETTINGS_MORE;
    struct frame f = bp__parse_header(from);
    if (!begins_a_server(&f))
        return BP_FIRST_SETTINGS_NO_SERVER;
    size_t whole = FRAME_HEADER_BYTES + f.length;
    if (bytes < whole)
        return BP_FIRST_SETTINGS_MORE;
    uint8_t *end = change(announced, &f, to + FRAME_HEADER_BYTES, ret_heard);
    uint32_t length = (uint32_t)(end - to) - FRAME_HEADER_BYTES;
    const uint8_t header[FRAME_HEADER_BYTES] = {(uint8_t)(length >> 16), (uint8_t)(length >> 8), (uint8_t)length,
                                                SETTINGS, f.flags};
    memcpy(to, header, sizeof header);
    memcpy(end, from + whole, bytes - whole);
    *ret_words_bytes = (size_t)(end - to) + bytes - whole;
    return BP_FIRST_SETTINGS_WHOLE;
}
