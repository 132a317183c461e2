/* See wire.h. */
#include "wire.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

uint8_t pattern[2 * PATTERN_BYTES];

size_t buffer_used(const struct buffer *buffer) { return buffer->end - buffer->start; }

uint8_t *buffer_reserve(struct buffer *buffer, size_t bytes) {
    if (buffer->capacity - buffer->end < bytes && buffer->start) {
        size_t used = buffer_used(buffer);
        if (used)
            memmove(buffer->data, buffer->data + buffer->start, used);
        buffer->start = 0;
        buffer->end = used;
    }
    if (buffer->capacity - buffer->end < bytes) {
        size_t capacity = buffer->capacity ? buffer->capacity : 512;
        while (capacity - buffer->end < bytes)
            capacity *= 2;
        uint8_t *data = realloc(buffer->data, capacity);
        if (!data)
            abort();
        buffer->data = data;
        buffer->capacity = capacity;
    }
    return buffer->data + buffer->end;
}

void buffer_add(struct buffer *buffer, const void *data, size_t bytes) {
    memcpy(buffer_reserve(buffer, bytes), data, bytes);
    buffer->end += bytes;
}

void buffer_consume(struct buffer *buffer, size_t bytes) {
    buffer->start += bytes;
    if (buffer->start == buffer->end)
        buffer->start = buffer->end = 0;
}

bool buffer_take(struct buffer *buffer, void *ret_data, size_t bytes) {
    if (!buffer->data || buffer_used(buffer) < bytes)
        return false;
    memcpy(ret_data, buffer->data + buffer->start, bytes);
    buffer_consume(buffer, bytes);
    return true;
}

void buffer_free(struct buffer *buffer) {
    free(buffer->data);
    *buffer = (struct buffer){0};
}

void put_u32(uint8_t *at, uint32_t value) {
    for (int i = 3; i >= 0; i--, value >>= 8)
        at[i] = (uint8_t)value;
}

void put_u64(uint8_t *at, uint64_t value) {
    put_u32(at, (uint32_t)(value >> 32));
    put_u32(at + 4, (uint32_t)value);
}

uint32_t get_u32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

uint64_t get_u64(const uint8_t *at) { return (uint64_t)get_u32(at) << 32 | get_u32(at + 4); }

bool frame_next(struct buffer *in, struct frame *ret_frame) {
    const uint8_t *at = in->data + in->start;
    if (buffer_used(in) < FRAME_BYTES)
        return false;
    uint32_t length = get_u32(at) >> 8;
    if (buffer_used(in) < FRAME_BYTES + length)
        return false;
    *ret_frame = (struct frame){length, at[3], at[4], get_u32(at + 5) & 0x7fffffff, at + FRAME_BYTES, length};
    if (ret_frame->type == DATA && ret_frame->flags & PADDED && length) {
        uint32_t padding = 1U + ret_frame->payload[0];
        ret_frame->payload++;
        ret_frame->payload_bytes = padding > length ? 0 : length - padding;
    }
    buffer_consume(in, FRAME_BYTES + length);
    return true;
}

void frame_header(struct buffer *out, size_t length, enum frame_type type, unsigned flags, uint32_t stream) {
    uint8_t *at = buffer_reserve(out, FRAME_BYTES + length);
    put_u32(at, (uint32_t)length << 8 | type);
    at[4] = (uint8_t)flags;
    put_u32(at + 5, stream);
    out->end += FRAME_BYTES;
}

void frame_u32(struct buffer *out, enum frame_type type, uint32_t stream, uint32_t value) {
    uint8_t payload[4];
    put_u32(payload, value);
    frame_header(out, sizeof payload, type, 0, stream);
    buffer_add(out, payload, sizeof payload);
}

void frame_setting(uint8_t *at, unsigned id, uint32_t value) {
    at[0] = (uint8_t)(id >> 8);
    at[1] = (uint8_t)id;
    put_u32(at + 2, value);
}

void frame_opening(struct buffer *out) {
    uint8_t setting[6];
    frame_setting(setting, SETTING_INITIAL_WINDOW, WINDOW_BYTES);
    frame_header(out, sizeof setting, SETTINGS, 0, 0);
    buffer_add(out, setting, sizeof setting);
    frame_u32(out, WINDOW_UPDATE, 0, WINDOW_BYTES - DEFAULT_WINDOW);
}

void pattern_fill(void) {
    uint64_t state = 0x9e3779b97f4a7c15; /* xorshift64 */
    for (size_t i = 0; i < PATTERN_BYTES; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pattern[i] = pattern[i + PATTERN_BYTES] = (uint8_t)(state >> 24);
    }
}

/* Calls for the piece of a message that `offset` falls into: prefix or pattern. */
static size_t piece(uint64_t offset, uint32_t message_bytes, uint8_t prefix[PREFIX_BYTES], const uint8_t **ret_piece) {
    size_t within = (size_t)(offset % (PREFIX_BYTES + message_bytes));
    prefix[0] = 0;
    put_u32(prefix + 1, message_bytes);
    if (within < PREFIX_BYTES) {
        *ret_piece = prefix + within;
        return PREFIX_BYTES - within;
    }
    *ret_piece = pattern + (within - PREFIX_BYTES);
    return message_bytes - (within - PREFIX_BYTES);
}

bool stream_matches(uint64_t offset, uint32_t message_bytes, const uint8_t *data, size_t bytes) {
    while (bytes) {
        uint8_t prefix[PREFIX_BYTES];
        const uint8_t *expected;
        size_t size = piece(offset, message_bytes, prefix, &expected);
        if (size > bytes)
            size = bytes;
        if (memcmp(expected, data, size) != 0)
            return false;
        data += size;
        offset += size;
        bytes -= size;
    }
    return true;
}

void stream_write(uint64_t offset, uint32_t message_bytes, uint8_t *data, size_t bytes) {
    while (bytes) {
        uint8_t prefix[PREFIX_BYTES];
        const uint8_t *source;
        size_t size = piece(offset, message_bytes, prefix, &source);
        if (size > bytes)
            size = bytes;
        memcpy(data, source, size);
        data += size;
        offset += size;
        bytes -= size;
    }
}

#define FIRST_NICE "-10" /* as in lab.py */

void pin_to_cpu(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu >= 0) {
        CPU_SET((size_t)cpu, &set);
        (void)sched_setaffinity(0, sizeof set, &set);
    }
    FILE *session = fopen("/proc/self/autogroup", "w");
    if (!session)
        return; /* no autogroups, or not root */
    fputs(FIRST_NICE, session);
    fclose(session);
}

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

void run_realtime(int priority) {
    const struct sched_param param = {.sched_priority = priority};
    if (priority > 0 && sched_setscheduler(0, SCHED_RR, &param) < 0) {
        perror("SCHED_RR");
        exit(2);
    }
}
