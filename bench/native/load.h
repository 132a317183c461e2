/* The load generator's options and what it measures: see load.c. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "client.h"
#include "histogram.h"

enum mode { RATE, CLOSED, CONNECT, IDLE };
enum { MAX_PHASES = 8 };

struct phase {
    double rate, seconds; /* requests a second; rate 0: as many as `streams` allow */
    uint64_t sent, outcomes[OUTCOMES];
    struct histogram latency;
};

struct options {
    enum mode mode;
    struct target target;
    uint32_t connections, streams;
    uint64_t count; /* stop after so many requests; 0: by time */
    enum task task;
    uint32_t echo_bytes, message_bytes;
    uint64_t messages;
    double drain_s;
    uint64_t seed;
    uint32_t phases;
    struct phase phase[MAX_PHASES];
};

struct report {
    struct histogram lateness; /* how long after its intended time the generator sent a request */
    uint64_t resumed, first_answer_ns, last_answer_ns, begin_ns, end_ns, moved_bytes, refused_connects;
    double cpu_s;
    uint64_t *answers_ns; /* with a count: when the answer to each request came, by number; 0: it did not */
};

void options_parse(struct options *options, int argc, char **argv); /* exits with a message when it cannot */
void report_print(const struct options *options, const struct report *report);

#endif
