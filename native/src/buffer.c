/* Bytes that wait for a socket or for the caller. Empty buffers have no memory, since thousands of connections are idle. */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/**
 * bp__buffer_add() - Put bytes behind those of a buffer
 * @b: Buffer
 * @data: The bytes
 * @bytes: How many
 *
 * Return: 0, or -ENOMEM, and the buffer is as before
 * Thread: one
 */
int bp__buffer_add(struct buffer *b, const void *data, size_t bytes) {
    if (!bytes)
        return 0;
    if (b->at && b->at + b->bytes + bytes > b->room) {
        memmove(b->data, b->data + b->at, b->bytes);
        b->at = 0;
    }
    if (b->bytes + bytes > b->room) {
        size_t room = b->bytes + bytes;
        if (room < 2 * b->room)
            room = 2 * b->room;
        char *grown = realloc(b->data, room);
        if (!grown)
            return -ENOMEM;
        b->data = grown;
        b->room = room;
    }
    memcpy(b->data + b->at + b->bytes, data, bytes);
    b->bytes += bytes;
    return 0;
}

/**
 * bp__buffer_drop() - Take the first bytes out of a buffer
 * @b: Buffer
 * @bytes: How many, at most as many as it has
 *
 * Thread: one
 */
void bp__buffer_drop(struct buffer *b, size_t bytes) {
    BP_ASSERT(bytes <= b->bytes);
    b->at += bytes;
    b->bytes -= bytes;
    if (!b->bytes) {
        free(b->data);
        *b = (struct buffer){NULL, 0, 0, 0};
    }
}

/**
 * bp__buffer_move() - Move the bytes of a buffer to one that is empty
 * @to: Buffer, empty
 * @from: Buffer, which is empty then
 *
 * Thread: one
 */
void bp__buffer_move(struct buffer *to, struct buffer *from) {
    BP_ASSERT(!to->data);
    *to = *from;
    *from = (struct buffer){NULL, 0, 0, 0};
}
