/* What the load generator and the upstream share: byte buffers, HTTP/2 frames, a socket with or without TLS.
 *
 * It uses no HTTP/2 library, so that neither end is the bottleneck of a measurement and no header block needs decoding: the
 * first bytes of a request's body say what it asks for, and an answer is checked by its body.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FRAME_BYTES = 9, MAX_DATA_BYTES = 16384, PREFIX_BYTES = 5, DEFAULT_WINDOW = 65535 };
enum { WINDOW_BYTES = 4 << 20 }; /* of both ends; grpc-go's own estimate goes as high */
enum frame_type { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8 };
enum { SETTING_MAX_STREAMS = 3, SETTING_INITIAL_WINDOW = 4 };

/* The body of a request: a gRPC message whose payload begins with one of these.
 * 'E' u64 nonce, pattern: answered with the same message.
 * 'D' u64 messages u32 bytes: answered with that many messages of the pattern.
 * 'U' u64 messages u32 bytes, then that many messages of the pattern: answered with u64 good bytes and u64 bad ones. */
enum { COMMAND_BYTES = PREFIX_BYTES + 1 + 8 + 4, ECHO_HEAD_BYTES = PREFIX_BYTES + 1 + 8 };

struct buffer {
    uint8_t *data;
    size_t start, end, capacity;
};
size_t buffer_used(const struct buffer *buffer);
/* Makes room for `bytes` more at the end; aborts if there is no memory. */
uint8_t *buffer_reserve(struct buffer *buffer, size_t bytes);
void buffer_add(struct buffer *buffer, const void *data, size_t bytes);
void buffer_consume(struct buffer *buffer, size_t bytes);
bool buffer_take(struct buffer *buffer, void *ret_data, size_t bytes); /* false if it holds fewer */
void buffer_free(struct buffer *buffer);

struct frame {
    uint32_t length;
    uint8_t type, flags;
    uint32_t stream;
    const uint8_t *payload; /* of DATA without its padding; `length` counts the padding, as flow control does */
    uint32_t payload_bytes;
};
bool frame_next(struct buffer *in, struct frame *ret_frame); /* its payload is valid until the next read */
void frame_header(struct buffer *out, size_t length, enum frame_type type, unsigned flags, uint32_t stream);
void frame_u32(struct buffer *out, enum frame_type type, uint32_t stream, uint32_t value);
void frame_setting(uint8_t *at, unsigned id, uint32_t value);
/* Sends what both ends send first: their windows. */
void frame_opening(struct buffer *out);

void put_u32(uint8_t *at, uint32_t value);
void put_u64(uint8_t *at, uint64_t value);
uint32_t get_u32(const uint8_t *at);
uint64_t get_u64(const uint8_t *at);

enum { PATTERN_BYTES = 1 << 17 };
extern uint8_t pattern[2 * PATTERN_BYTES]; /* incompressible, the same in every process */
void pattern_fill(void);
/* Whether the bytes are those at `offset` of endless messages of the pattern, `message_bytes` each. */
bool stream_matches(uint64_t offset, uint32_t message_bytes, const uint8_t *data, size_t bytes);
void stream_write(uint64_t offset, uint32_t message_bytes, uint8_t *data, size_t bytes);

struct link {
    int fd;
    SSL *ssl; /* or NULL */
    struct buffer in, out;
    uint32_t events; /* as epoll has them */
    bool shaken;
};
/* 1: something was read; 0: end; -EAGAIN or -errno. */
int link_read(struct link *link);
int link_flush(struct link *link); /* 0: all is written; -EAGAIN or -errno */
int link_handshake(struct link *link); /* 0, -EAGAIN (events are set), -EPROTO */
void link_watch(struct link *link, int epoll_fd, uint32_t events, void *owner);
void link_close(struct link *link);

/* -1: any CPU. As root also ahead of other sessions' programs (sched(7), autogroup), like all of the bench. */
void pin_to_cpu(int cpu);
/* SCHED_RR; 0: not. Exits with a message if it is refused. */
void run_realtime(int priority);
uint64_t now_ns(void);

#endif
