/* The load generator's requests and their answers. See client.h. */
#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A string without Huffman coding. Its length is an integer with a prefix of seven bits (RFC 7541 §5.1, §5.2). */
static uint8_t *string(uint8_t *at, const char *value) {
    enum { PREFIX_MAX = 127 };
    size_t length = strlen(value), rest = length - PREFIX_MAX;
    *at++ = (uint8_t)(length < PREFIX_MAX ? length : PREFIX_MAX);
    if (length >= PREFIX_MAX) {
        for (; rest >= 128; rest >>= 7)
            *at++ = (uint8_t)(0x80 | (rest & 0x7f));
        *at++ = (uint8_t)rest;
    }
    return mempcpy(at, value, length);
}

/* A field that the decoder's dynamic table takes; `name_index` stands for the name if it has one. */
static uint8_t *field(uint8_t *at, uint8_t name_index, const char *name, const char *value) {
    *at++ = 0x40 | name_index;
    if (!name_index)
        at = string(at, name);
    return string(at, value);
}

/* The fields of the first request enter the dynamic table and later requests refer to them, as with real clients. */
void write_headers(struct client *client, uint32_t id) {
    enum {
        METHOD_POST = 3,
        SCHEME_HTTP = 6,
        SCHEME_HTTPS = 7,
        PATH = 4,
        AUTHORITY = 1,
        CONTENT_TYPE = 31,
        NEWEST = 62
    };
    const struct target *target = client->target;
    uint8_t block[512 + MAX_TOKEN_BYTES], *at = block;
    *at++ = 0x80 | METHOD_POST;
    *at++ = 0x80 | (target->tls ? SCHEME_HTTPS : SCHEME_HTTP);
    if (client->indexed) {
        for (int i = 6; i >= 0; i--)
            *at++ = (uint8_t)(0x80 | (NEWEST + i));
    } else {
        char satellite[64];
        uint32_t number = target->satellite_count ? client->number % target->satellite_count : 0;
        const char *mark = strstr(target->satellites, "%d");
        snprintf(satellite, sizeof satellite, "%s", target->satellites);
        if (mark)
            snprintf(satellite, sizeof satellite, "%.*s%u%s", (int)(mark - target->satellites), target->satellites,
                     number, mark + 2);
        at = field(at, PATH, NULL, client->task == CALL ? target->call.path : "/bentpipe.bench.Upstream/Run");
        at = field(at, AUTHORITY, NULL, "localhost");
        at = field(at, 0, "te", "trailers");
        at = field(at, CONTENT_TYPE, NULL, "application/grpc");
        at = field(at, 0, "satellite_name", satellite);
        at = field(at, 0, "satellite_org", target->org);
        at = field(at, 0, "satellite_token", target->token);
        client->indexed = true;
    }
    frame_header(&client->link.out, (size_t)(at - block), HEADERS, END_HEADERS, id);
    buffer_add(&client->link.out, block, (size_t)(at - block));
}

static void echo_body(uint8_t *body, uint32_t payload_bytes, uint64_t nonce) {
    body[0] = 0;
    put_u32(body + 1, payload_bytes);
    body[PREFIX_BYTES] = 'E';
    put_u64(body + PREFIX_BYTES + 1, nonce);
    memcpy(body + ECHO_HEAD_BYTES, pattern + nonce % PATTERN_BYTES, payload_bytes - 9);
}

static void command_body(uint8_t *body, uint8_t command, uint64_t messages, uint32_t bytes) {
    body[0] = 0;
    put_u32(body + 1, COMMAND_BYTES - PREFIX_BYTES);
    body[PREFIX_BYTES] = command;
    put_u64(body + PREFIX_BYTES + 1, messages);
    put_u32(body + ECHO_HEAD_BYTES, bytes);
}

static uint8_t hex_digit(char digit) {
    return (uint8_t)(digit >= '0' && digit <= '9' ? digit - '0' : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : 16);
}

bool call_message(const char *hex, uint8_t **ret_message, size_t *ret_bytes) {
    size_t bytes = strlen(hex) / 2;
    if (strlen(hex) % 2 || bytes > MAX_ECHO_BYTES)
        return false;
    uint8_t *message = calloc(1, PREFIX_BYTES + bytes);
    if (!message)
        abort();
    put_u32(message + 1, (uint32_t)bytes);
    for (size_t i = 0; i < bytes; i++) {
        uint8_t high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);
        if (high > 15 || low > 15) {
            free(message);
            return false;
        }
        message[PREFIX_BYTES + i] = (uint8_t)(high << 4 | low);
    }
    *ret_message = message;
    *ret_bytes = PREFIX_BYTES + bytes;
    return true;
}

size_t body_bytes(const struct client *client) {
    return client->task == ECHO   ? PREFIX_BYTES + client->echo_bytes
           : client->task == CALL ? client->target->call.body_bytes
                                  : COMMAND_BYTES;
}

uint64_t upload_bytes(const struct client *client) { return client->messages * (PREFIX_BYTES + client->message_bytes); }

size_t answer_bytes(const struct client *client) {
    return client->task == ECHO       ? body_bytes(client)
           : client->task == CALL     ? client->target->call.answer_bytes
           : client->task == DOWNLOAD ? upload_bytes(client)
                                      : REPORT_BYTES;
}

void write_body(const struct client *client, uint8_t *body, uint64_t nonce) {
    if (client->task == ECHO)
        echo_body(body, client->echo_bytes, nonce);
    else if (client->task == CALL)
        memcpy(body, client->target->call.body, client->target->call.body_bytes);
    else
        command_body(body, client->task == UPLOAD ? 'U' : 'D', client->messages, client->message_bytes);
}

bool answer_matches(const struct client *client, const struct request *slot, const uint8_t *data, size_t bytes) {
    static uint8_t expected[PREFIX_BYTES + MAX_ECHO_BYTES];
    uint64_t end = slot->got + bytes;
    if (client->task == DOWNLOAD)
        return end <= upload_bytes(client) && stream_matches(slot->got, client->message_bytes, data, bytes);
    if (client->task == CALL)
        return end <= answer_bytes(client) && !memcmp(client->target->call.answer + slot->got, data, bytes);
    if (client->task == ECHO)
        echo_body(expected, client->echo_bytes, slot->nonce);
    else {
        memset(expected, 0, REPORT_BYTES);
        put_u32(expected + 1, 16);
        put_u64(expected + PREFIX_BYTES, upload_bytes(client));
    }
    return end <= answer_bytes(client) && !memcmp(expected + slot->got, data, bytes);
}
