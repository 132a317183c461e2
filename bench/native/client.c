/* See client.h. */
#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static const char PREFACE[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
enum { UPLOAD_OUT_BYTES = 256 << 10 };
static void send_body(struct client *client, const uint8_t *body, size_t bytes, uint32_t id, unsigned last_flags) {
    for (size_t sent = 0; sent < bytes;) {
        size_t size = bytes - sent < MAX_DATA_BYTES ? bytes - sent : MAX_DATA_BYTES;
        frame_header(&client->link.out, size, DATA, sent + size == bytes ? last_flags : 0, id);
        buffer_add(&client->link.out, body + sent, size);
        sent += size;
    }
    client->window -= (int64_t)bytes;
}

static void upload_more(struct client *client) {
    struct buffer *out = &client->link.out;
    uint32_t id = client->next_id - 2;
    while (client->task == UPLOAD && client->open && client->uploaded < upload_bytes(client) &&
           buffer_used(out) < UPLOAD_OUT_BYTES) {
        int64_t window = client->window < client->upload_window ? client->window : client->upload_window;
        uint64_t size = upload_bytes(client) - client->uploaded;
        if (window <= 0)
            return;
        size = size > MAX_DATA_BYTES ? MAX_DATA_BYTES : size;
        size = size > (uint64_t)window ? (uint64_t)window : size;
        frame_header(out, size, DATA, client->uploaded + size == upload_bytes(client) ? END_STREAM : 0, id);
        stream_write(client->uploaded, client->message_bytes, out->data + out->end, size);
        out->end += size;
        client->uploaded += size;
        client->window -= (int64_t)size;
        client->upload_window -= (int64_t)size;
        client->moved += size;
    }
}

static bool has_room(const struct client *client) {
    return client->greeted && !client->leaving && client->open < client->max_streams &&
           !client->slots[client->next_id / 2 % SLOTS].id && client->window >= (int64_t)body_bytes(client) &&
           (client->settled || !client->target->wait_settings);
}

static void send_request(struct client *client, const struct request *request) {
    static uint8_t body[PREFIX_BYTES + MAX_ECHO_BYTES];
    uint32_t id = client->next_id;
    struct request *slot = &client->slots[id / 2 % SLOTS];
    client->next_id += 2;
    client->open++;
    *slot = *request;
    slot->id = id;
    slot->nonce = (uint64_t)client->number << 32 | id;
    write_headers(client, id);
    write_body(client, body, slot->nonce);
    send_body(client, body, body_bytes(client), id, client->task == UPLOAD ? 0 : END_STREAM);
    client->uploaded = 0;
    client->upload_window = (int64_t)client->initial_window - COMMAND_BYTES;
    upload_more(client);
    client->dirty = true;
}

void client_ask(struct client *client, const struct request *request) {
    if (!buffer_used(&client->waiting) && has_room(client))
        send_request(client, request);
    else
        buffer_add(&client->waiting, request, sizeof *request);
}

static void ask_waiting(struct client *client) {
    struct request request;
    while (has_room(client) && buffer_take(&client->waiting, &request, sizeof request))
        send_request(client, &request);
}

static void request_end(struct client *client, struct request *slot, enum outcome outcome) {
    struct request ended = *slot;
    slot->id = 0;
    client->open--;
    client->answered(client, &ended, outcome);
}

static void on_data(struct client *client, const struct frame *frame, struct request *slot) {
    client->unacknowledged += frame->length;
    if (client->unacknowledged >= WINDOW_BYTES / 2) {
        frame_u32(&client->link.out, WINDOW_UPDATE, 0, client->unacknowledged);
        if (slot && client->task == DOWNLOAD)
            frame_u32(&client->link.out, WINDOW_UPDATE, slot->id, client->unacknowledged);
        client->unacknowledged = 0;
    }
    if (!slot)
        return;
    slot->wrong |= !answer_matches(client, slot, frame->payload, frame->payload_bytes);
    slot->got += frame->payload_bytes;
    if (client->task == DOWNLOAD)
        client->moved += frame->payload_bytes;
}

static void on_end(struct client *client, struct request *slot) {
    request_end(client, slot,
                !slot->got                                         ? REFUSED
                : slot->wrong || slot->got != answer_bytes(client) ? WRONG_BYTES
                                                                   : ANSWERED);
}

static void on_settings(struct client *client, const struct frame *frame) {
    if (frame->flags & ACK)
        return;
    if (!client->settled)
        client->max_streams = UINT32_MAX;
    client->settled = true;
    for (uint32_t i = 0; i + 6 <= frame->length; i += 6) {
        const uint8_t *at = frame->payload + i;
        uint32_t value = get_u32(at + 2);
        if ((at[0] << 8 | at[1]) == SETTING_MAX_STREAMS)
            client->max_streams = value;
        if ((at[0] << 8 | at[1]) == SETTING_INITIAL_WINDOW) {
            client->upload_window += (int64_t)value - client->initial_window;
            client->initial_window = value;
        }
    }
    frame_header(&client->link.out, 0, SETTINGS, ACK, 0);
}

static void on_frame(struct client *client, const struct frame *frame) {
    struct request *slot = frame->stream ? &client->slots[frame->stream / 2 % SLOTS] : NULL;
    if (slot && slot->id != frame->stream)
        slot = NULL;
    switch (frame->type) {
    case DATA:
        on_data(client, frame, slot);
        if (slot && frame->flags & END_STREAM)
            on_end(client, slot);
        break;
    case HEADERS:
        if (slot && frame->flags & END_STREAM)
            on_end(client, slot);
        break;
    case RST_STREAM:
        if (slot)
            request_end(client, slot, RESET);
        break;
    case SETTINGS:
        on_settings(client, frame);
        break;
    case PING:
        if (!(frame->flags & ACK)) {
            frame_header(&client->link.out, frame->length, PING, ACK, 0);
            buffer_add(&client->link.out, frame->payload, frame->length);
        }
        break;
    case GOAWAY:
        client->leaving = true;
        break;
    case WINDOW_UPDATE:
        if (!frame->stream)
            client->window += get_u32(frame->payload);
        else if (frame->stream == client->next_id - 2)
            client->upload_window += get_u32(frame->payload);
        break;
    default:
        break;
    }
}

bool client_flush(struct client *client, int epoll_fd) {
    client->dirty = false;
    int result = client->greeted ? link_flush(&client->link) : 0;
    if (result && result != -EAGAIN)
        return false;
    bool more =
        result == -EAGAIN || (client->task == UPLOAD && client->open && client->uploaded < upload_bytes(client) &&
                              client->window > 0 && client->upload_window > 0);
    if (client->greeted)
        link_watch(&client->link, epoll_fd, more ? EPOLLIN | EPOLLOUT : EPOLLIN, client);
    return true;
}

/* Goes on with connecting and the handshake; when both are done, sends the connection preface (RFC 9113 section 3.4). */
static bool greet(struct client *client, int epoll_fd) {
    if (!client->connected) {
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(client->link.fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error)
            return false;
        client->connected = true;
    }
    if (client->link.ssl) {
        int result = link_handshake(&client->link);
        if (result == -EAGAIN)
            link_watch(&client->link, epoll_fd, EPOLLIN, client);
        if (result)
            return result == -EAGAIN;
    }
    client->greeted = true;
    buffer_add(&client->link.out, PREFACE, sizeof PREFACE - 1);
    frame_opening(&client->link.out);
    return true;
}

bool client_serve(struct client *client, int epoll_fd, uint32_t events) {
    if (!client->greeted) {
        if (!greet(client, epoll_fd))
            return false;
        if (!client->greeted)
            return true;
    } else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        int result = link_read(&client->link);
        struct frame frame;
        while (client->link.fd >= 0 && frame_next(&client->link.in, &frame))
            on_frame(client, &frame);
        if (client->link.fd < 0 || (result <= 0 && result != -EAGAIN))
            return false;
    }
    ask_waiting(client);
    upload_more(client);
    return client_flush(client, epoll_fd) && !(client->leaving && !client->open);
}

void client_close(struct client *client) {
    link_close(&client->link);
    for (uint32_t i = 0; client->slots && i < SLOTS; i++)
        if (client->slots[i].id)
            request_end(client, &client->slots[i], CONNECTION_LOST);
}
