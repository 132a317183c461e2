/* What the upstream does with each frame: see wire.h for the commands. */
#include "upstream.h"

#include <stdlib.h>
#include <string.h>

enum { OUT_BYTES = 256 << 10, REPORT_BYTES = PREFIX_BYTES + 16 };

/* :status 200, content-type: application/grpc; grpc-status: 0. Never indexed: no state to keep. */
static const uint8_t HEAD[] = "\x88\x0f\x10\x10"
                              "application/grpc";
static const uint8_t TRAILERS[] = "\x00\x0bgrpc-status\x01"
                                  "0";
static struct stream *stream_at(struct connection *connection, uint32_t id) {
    struct stream *stream = connection->streams ? &connection->streams[id >> 1 & connection->mask] : NULL;
    return stream && stream->id == id ? stream : NULL;
}

static struct stream *stream_open(struct connection *connection, uint32_t id) {
    while (!connection->streams || connection->streams[id >> 1 & connection->mask].id) {
        uint32_t mask = connection->streams ? connection->mask * 2 + 1 : 3;
        struct stream *streams = calloc(mask + 1, sizeof *streams);
        if (!streams)
            abort();
        for (uint32_t i = 0; connection->streams && i <= connection->mask; i++)
            if (connection->streams[i].id)
                streams[connection->streams[i].id >> 1 & mask] = connection->streams[i];
        free(connection->streams);
        connection->streams = streams;
        connection->mask = mask;
    }
    struct stream *stream = &connection->streams[id >> 1 & connection->mask];
    *stream = (struct stream){.id = id, .window = connection->initial_window};
    return stream;
}

static void stream_end(struct connection *connection, struct stream *stream) {
    connection->sending -= stream->answering;
    buffer_free(&stream->body);
    stream->id = 0;
}

static uint8_t command(const struct stream *stream) { return stream->body.data[PREFIX_BYTES]; }

static uint32_t message_bytes(const struct stream *stream) {
    uint32_t bytes = get_u32(stream->body.data + ECHO_HEAD_BYTES);
    return bytes && bytes < PATTERN_BYTES ? bytes : 1;
}

bool stream_send(struct connection *connection, struct stream *stream) {
    struct buffer *out = &connection->link.out;
    while (stream->sent < stream->total && buffer_used(out) < OUT_BYTES) {
        uint64_t size = stream->total - stream->sent;
        int64_t window = stream->window < connection->window ? stream->window : connection->window;
        if (window <= 0)
            return false;
        size = size > MAX_DATA_BYTES ? MAX_DATA_BYTES : size;
        size = size > (uint64_t)window ? (uint64_t)window : size;
        frame_header(out, size, DATA, 0, stream->id);
        if (command(stream) == 'D')
            stream_write(stream->sent, message_bytes(stream), out->data + out->end, size);
        else
            memcpy(out->data + out->end, stream->body.data + stream->sent, size);
        out->end += size;
        stream->sent += size;
        stream->window -= (int64_t)size;
        connection->window -= (int64_t)size;
    }
    if (stream->sent == stream->total) {
        frame_header(out, sizeof TRAILERS - 1, HEADERS, END_HEADERS | END_STREAM, stream->id);
        buffer_add(out, TRAILERS, sizeof TRAILERS - 1);
        stream_end(connection, stream);
        return false;
    }
    return true;
}

static void stream_answer(struct connection *connection, struct stream *stream) {
    if (buffer_used(&stream->body) < ECHO_HEAD_BYTES) {
        frame_u32(&connection->link.out, RST_STREAM, stream->id, 1);
        stream_end(connection, stream);
        return;
    }
    stream->answering = true;
    connection->sending++;
    stream->total = buffer_used(&stream->body);
    if (command(stream) == 'D')
        stream->total = get_u64(stream->body.data + PREFIX_BYTES + 1) * (PREFIX_BYTES + message_bytes(stream));
    if (command(stream) == 'U') {
        uint8_t report[REPORT_BYTES] = {0};
        put_u32(report + 1, REPORT_BYTES - PREFIX_BYTES);
        put_u64(report + PREFIX_BYTES, stream->good);
        put_u64(report + PREFIX_BYTES + 8, stream->got - COMMAND_BYTES - stream->good);
        memcpy(stream->body.data, report, PREFIX_BYTES);
        buffer_free(&stream->body);
        buffer_add(&stream->body, report, sizeof report);
        stream->total = sizeof report;
    }
    frame_header(&connection->link.out, sizeof HEAD - 1, HEADERS, END_HEADERS, stream->id);
    buffer_add(&connection->link.out, HEAD, sizeof HEAD - 1);
    (void)stream_send(connection, stream);
}

static void on_data(struct connection *connection, const struct frame *frame) {
    connection->unacknowledged += frame->length;
    if (connection->unacknowledged >= WINDOW_BYTES / 2) {
        frame_u32(&connection->link.out, WINDOW_UPDATE, 0, connection->unacknowledged);
        connection->unacknowledged = 0;
    }
    struct stream *stream = stream_at(connection, frame->stream);
    if (!stream || stream->asked)
        return;
    const uint8_t *data = frame->payload;
    size_t size = frame->payload_bytes;
    bool upload = stream->got > PREFIX_BYTES && command(stream) == 'U';
    if (!upload || stream->got < COMMAND_BYTES) {
        bool first_upload = stream->got == 0 && size > PREFIX_BYTES && data[PREFIX_BYTES] == 'U';
        size_t kept = upload || first_upload ? COMMAND_BYTES - (size_t)stream->got : size;
        kept = kept > size ? size : kept;
        buffer_add(&stream->body, data, kept);
        stream->got += kept;
        data += kept;
        size -= kept;
    }
    if (size && stream_matches(stream->got - COMMAND_BYTES, message_bytes(stream), data, size))
        stream->good += size;
    stream->got += size;
    if (frame->length && !(frame->flags & END_STREAM) && stream->got > COMMAND_BYTES)
        frame_u32(&connection->link.out, WINDOW_UPDATE, stream->id, frame->length);
    if (frame->flags & END_STREAM) {
        stream->asked = true;
        stream_answer(connection, stream);
    }
}

static void on_settings(struct connection *connection, const struct frame *frame) {
    if (frame->flags & ACK)
        return;
    for (uint32_t i = 0; i + 6 <= frame->length; i += 6) {
        const uint8_t *at = frame->payload + i;
        if ((at[0] << 8 | at[1]) != SETTING_INITIAL_WINDOW)
            continue;
        int64_t change = (int64_t)get_u32(at + 2) - connection->initial_window;
        connection->initial_window = get_u32(at + 2);
        for (uint32_t k = 0; connection->streams && k <= connection->mask; k++)
            connection->streams[k].window += change;
    }
    frame_header(&connection->link.out, 0, SETTINGS, ACK, 0);
}

void upstream_frame(struct connection *connection, const struct frame *frame) {
    struct stream *stream = frame->stream ? stream_at(connection, frame->stream) : NULL;
    switch (frame->type) {
    case HEADERS:
        if (!stream)
            (void)stream_open(connection, frame->stream);
        break;
    case DATA:
        on_data(connection, frame);
        break;
    case SETTINGS:
        on_settings(connection, frame);
        break;
    case PING:
        if (!(frame->flags & ACK)) {
            frame_header(&connection->link.out, frame->length, PING, ACK, 0);
            buffer_add(&connection->link.out, frame->payload, frame->length);
        }
        break;
    case RST_STREAM:
        if (stream)
            stream_end(connection, stream);
        break;
    case WINDOW_UPDATE:
        if (stream)
            stream->window += get_u32(frame->payload);
        else if (!frame->stream)
            connection->window += get_u32(frame->payload);
        break;
    default:
        break;
    }
}
