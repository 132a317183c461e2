/* The upstream's connections and streams. */
#ifndef BENCH_UPSTREAM_H
#define BENCH_UPSTREAM_H

#include "wire.h"

struct stream {
    uint32_t id;         /* 0: free */
    bool asked;          /* END_STREAM came */
    bool answering;      /* HEADERS went out */
    struct buffer body;  /* what must be kept: all of an echo, otherwise the command */
    uint64_t got, good;  /* bytes of the body; those of an upload's messages that were right */
    uint64_t total, sent; /* of the answer */
    int64_t window;
};

struct connection {
    struct link link;
    bool greeted;
    int64_t window;
    uint32_t initial_window, unacknowledged;
    struct stream *streams; /* by (id / 2) & mask */
    uint32_t mask, sending;
};

void upstream_frame(struct connection *connection, const struct frame *frame);
/* Sends what the windows and the output buffer have room for. Returns whether it waits only for the buffer. */
bool stream_send(struct connection *connection, struct stream *stream);

#endif
