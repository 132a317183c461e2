/* Takes the ACK of our SETTINGS out of a client's bytes (RFC 9113 section 6.5.3); all others pass. proto/ack_filter.py is the
 * oracle. */
#include "stream.h"

#include <errno.h>
#include <string.h>

#define FRAME_BYTES 16384u /* most that a frame may carry, as in proto/limits.py: nobody has announced more */
#define TYPE_SETTINGS 4u
#define FLAG_ACK 1u

/**
 * take_header() - Look at a frame's header that has come whole
 * @f: Filter
 * @out: Receives the header, unless it is that of the ACK
 *
 * Return: 0; -EBADMSG if the frame is too large or is an ACK that is none, and the filter keeps its header; or -ENOMEM
 * Thread: one
 */
static int take_header(struct ack_filter *f, struct buffer *out) {
    const unsigned char *h = f->header;
    size_t length = (size_t)h[0] << 16 | (size_t)h[1] << 8 | h[2];
    bool on_stream = (h[5] & 0x7f) | h[6] | h[7] | h[8];
    if (length > FRAME_BYTES)
        return -EBADMSG;
    if (h[3] == TYPE_SETTINGS && (h[4] & FLAG_ACK)) {
        if (length || on_stream)
            return -EBADMSG;
        f->done = true;
    } else if (bp__buffer_add(out, h, FRAME_HEADER_BYTES) < 0)
        return -ENOMEM;
    f->left = length;
    f->header_bytes = 0;
    return 0;
}

/**
 * bp__ack_filter() - Pass bytes on, but the ACK
 * @f: Filter; it keeps back the beginning of a header that is not complete
 * @data: The bytes
 * @bytes: How many
 * @out: Receives them
 *
 * Return: 0; -EBADMSG if the filter has the header of a frame that must not come; or -ENOMEM
 * Thread: one
 */
int bp__ack_filter(struct ack_filter *f, const char *data, size_t bytes, struct buffer *out) {
    while (bytes) {
        size_t step = f->done ? bytes : f->left ? f->left : FRAME_HEADER_BYTES - f->header_bytes;
        int r = 0;
        if (step > bytes)
            step = bytes;
        if (f->done || f->left) {
            r = bp__buffer_add(out, data, step);
            f->left -= f->done ? 0 : step;
        } else {
            memcpy(f->header + f->header_bytes, data, step);
            f->header_bytes += step;
            if (f->header_bytes == FRAME_HEADER_BYTES)
                r = take_header(f, out);
        }
        if (r < 0)
            return r;
        data += step;
        bytes -= step;
    }
    return 0;
}
