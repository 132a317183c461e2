/* One client connection of the load generator: HTTP/2 as a gRPC client speaks it, every answer's bytes checked. */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include "wire.h"

enum { SLOTS = 256 };
enum outcome { ANSWERED, WRONG_BYTES, RESET, CONNECTION_LOST, REFUSED, UNANSWERED, OUTCOMES };
enum task { ECHO, DOWNLOAD, UPLOAD, CALL };

struct request {
    uint64_t intended_ns; /* when it was meant to be sent: latency counts from here */
    uint32_t phase;
    uint32_t id; /* 0: none */
    uint64_t got, nonce;
    bool wrong;
};

/* Of CALL, for servers of their own: the same message in each request, and the one that must answer it. */
struct call {
    const char *path;
    uint8_t *body, *answer; /* with their prefixes */
    size_t body_bytes, answer_bytes;
};

struct client;
/* Called at every request's end. It may begin the next one. */
typedef void on_answer(struct client *client, const struct request *request, enum outcome outcome);

struct target {
    uint16_t port;
    SSL_CTX *tls; /* or NULL */
    const char *org, *token, *satellites; /* satellites: a name, in which %d counts */
    struct call call;
    uint32_t satellite_count;
    uint32_t source_addresses; /* loopback addresses to connect from, for more connections than one has ports */
    bool wait_settings;        /* like grpc-go: no request before the server's SETTINGS */
    bool resume;
};

struct client {
    struct link link;
    const struct target *target;
    on_answer *answered;
    uint32_t number;
    bool connected, greeted, settled, leaving, indexed, dirty;
    uint32_t next_id, open, max_streams, initial_window;
    int64_t window, upload_window;
    uint32_t unacknowledged;
    struct request *slots; /* SLOTS of them, by (id / 2) % SLOTS */
    struct buffer waiting; /* requests that streams or windows have no room for yet */
    enum task task;
    uint32_t echo_bytes; /* of the payload */
    uint64_t messages;   /* of a download or upload */
    uint32_t message_bytes;
    uint64_t uploaded, moved; /* bytes of the present upload; bytes of all answers and uploads */
};

enum { MAX_ECHO_BYTES = 1 << 15, MAX_TOKEN_BYTES = 1 << 10 };

void client_init(struct client *client, const struct target *target, uint32_t number, on_answer *answered);
int client_connect(struct client *client, int epoll_fd); /* 0 or -errno */
/* Sends the request now, or when the connection has room for it. */
void client_ask(struct client *client, const struct request *request);
/* Serves events of epoll. Returns false if the connection is over; each of its requests has been reported then. */
bool client_serve(struct client *client, int epoll_fd, uint32_t events);
bool client_flush(struct client *client, int epoll_fd);
void client_close(struct client *client);
bool client_resumed(const struct client *client);
SSL_CTX *client_tls(const char *ca_file);

/* Messages (client_message.c). */
enum { REPORT_BYTES = PREFIX_BYTES + 16 };
void write_headers(struct client *client, uint32_t id);
size_t body_bytes(const struct client *client); /* of a request, without the messages of an upload */
void write_body(const struct client *client, uint8_t *body, uint64_t nonce);
bool call_message(const char *hex, uint8_t **ret_message, size_t *ret_bytes); /* false if it is not hex, or too long */
uint64_t upload_bytes(const struct client *client); /* of all messages of an upload or download */
size_t answer_bytes(const struct client *client);
bool answer_matches(const struct client *client, const struct request *slot, const uint8_t *data, size_t bytes);

#endif
