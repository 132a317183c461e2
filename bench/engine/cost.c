/* Measures what a message through the engine costs its thread, without HTTP/2 and Python.
 *
 * Arguments: MODE SIZE COUNT KIND [CERTIFICATE KEY CA].
 *
 * KIND `echo`: a message goes to the satellite and one of the same size comes back, COUNT times.
 * KIND `stream`, `down`: COUNT messages go one way, as fast as the reader takes them: to the satellite, to the client.
 * KIND `tls-up`, `tls-down`: the same stream, with TLS on the client's leg.
 * Built with UNSENT_BYTES, the engine has that limit of unsent bytes for its client.
 * Prints: microseconds of the engine thread's CPU per message, wall microseconds per message, spliced share.
 */
#include "bp.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void pair(int ends[2]) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (bind(listener, (struct sockaddr *)&name, bytes) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&name, &bytes))
        die("listen");
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(ends[0], (struct sockaddr *)&name, bytes) || (ends[1] = accept(listener, NULL, NULL)) < 0)
        die("connect");
    setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    close(listener);
}

static void put(int fd, const char *data, size_t bytes) {
    while (bytes) {
        ssize_t n = send(fd, data, bytes, MSG_NOSIGNAL);
        if (n <= 0)
            die("send");
        data += n;
        bytes -= (size_t)n;
    }
}

static void take(int fd, char *data, size_t bytes) {
    while (bytes) {
        ssize_t n = recv(fd, data, bytes, 0);
        if (n <= 0)
            die("recv");
        bytes -= (size_t)n;
    }
}

struct work {
    int fd;
    bp_tls *tls; /* of the peer, on a blocking socket; or NULL */
    size_t bytes;
    unsigned long count;
};

static void *send_stream(void *argument) {
    const struct work *work = argument;
    char *data = calloc(1, work->bytes);
    for (unsigned long i = 0; i < work->count; i++)
        if (!work->tls)
            put(work->fd, data, work->bytes);
        else
            for (size_t at = 0; at < work->bytes;) {
                ssize_t n = bp_tls_write(work->tls, data + at, work->bytes - at);
                if (n <= 0)
                    die("bp_tls_write");
                at += (size_t)n;
            }
    free(data);
    return NULL;
}

static bp_tls *tls_on(bp_tls_ctx *ctx, int fd) {
    char error[256];
    bp_tls *tls = bp_tls_new(ctx, fd, NULL, error, sizeof error);
    if (!tls)
        die(error);
    return tls;
}

static void *shake(void *tls) {
    if (bp_tls_handshake(tls) < 0)
        die("handshake");
    return NULL;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Sends messages of `bytes` through the engine and back, one at a time. */
static void run_echo(int client, int satellite, char *data, size_t bytes, unsigned long count) {
    for (unsigned long i = 0; i < count; i++) {
        put(client, data, bytes);
        take(satellite, data, bytes);
        put(satellite, data, bytes);
        take(client, data, bytes);
    }
}

/* Sends a stream of `count` messages one way: down to the client, or up from it. */
static void run_stream(int client, int satellite, bp_tls *client_tls, bool down, char *data, size_t bytes,
                       unsigned long count) {
    struct work work = {down ? satellite : client, down ? NULL : client_tls, bytes, count};
    pthread_t sender;
    pthread_create(&sender, NULL, send_stream, &work);
    for (unsigned long i = 0; i < count && down && !client_tls; i++)
        take(client, data, bytes);
    for (size_t left = bytes * count; left && down && client_tls;) {
        ssize_t n = bp_tls_read(client_tls, data, bytes < left ? bytes : left);
        if (n <= 0)
            die("bp_tls_read");
        left -= (size_t)n;
    }
    for (unsigned long i = 0; i < count && !down; i++)
        take(satellite, data, bytes);
    pthread_join(sender, NULL);
}

/* TLS on both ends of the client's leg; files: certificate, key, authority. */
static void make_tls(char **files, const int client[2], bp_tls **ret_client, bp_tls **ret_near) {
    char error[256];
    pthread_t other;
    bp_tls_ctx *server = bp_tls_ctx_server(files[0], files[1], NULL, error, sizeof error);
    bp_tls_ctx *trusting = bp_tls_ctx_client(files[2], NULL, NULL, error, sizeof error);
    if (!server || !trusting)
        die(error);
    *ret_client = tls_on(trusting, client[0]);
    *ret_near = tls_on(server, client[1]);
    pthread_create(&other, NULL, shake, *ret_client);
    shake(*ret_near);
    pthread_join(other, NULL);
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 8)
        die("usage: cost off|auto|always SIZE COUNT echo|stream|down|tls-up|tls-down [CERTIFICATE KEY CA]");
    bool down = strcmp(argv[4], "down") == 0 || strcmp(argv[4], "tls-down") == 0;
    struct bp_options options = {.threads = 1,
                                 .splice = strcmp(argv[1], "off") == 0    ? BP_SPLICE_OFF
                                           : strcmp(argv[1], "auto") == 0 ? BP_SPLICE_AUTO
                                                                          : BP_SPLICE_ALWAYS};
#ifdef UNSENT_BYTES
    options.unsent_bytes = UNSENT_BYTES;
#endif
    size_t bytes = strtoul(argv[2], NULL, 10);
    unsigned long count = strtoul(argv[3], NULL, 10);
    int client[2], satellite[2];
    bp_engine *engine;
    bp_splice *splice;
    char *data = calloc(1, bytes);
    struct bp_statistics statistics;
    uint64_t cpu_before, cpu_after;
    pair(client);
    pair(satellite);
    bp_tls *client_tls = NULL, *near_tls = NULL;
    if (argc == 8)
        make_tls(argv + 5, client, &client_tls, &near_tls);
    if (!data || bp_engine_new(&options, &engine) < 0 ||
        bp_engine_splice(engine, client[1], near_tls, satellite[1], NULL, &splice) < 0 ||
        bp_engine_thread_cpu_ns(engine, 0, &cpu_before) < 0)
        die("engine");
    uint64_t start = now_ns();
    if (strcmp(argv[4], "echo") == 0)
        run_echo(client[0], satellite[0], data, bytes, count);
    else
        run_stream(client[0], satellite[0], client_tls, down, data, bytes, count);
    uint64_t took = now_ns() - start;
    if (bp_engine_thread_cpu_ns(engine, 0, &cpu_after) < 0)
        die("cpu");
    bp_engine_statistics(engine, &statistics);
    printf("%.3f %.3f %.3f\n", (double)(cpu_after - cpu_before) / 1e3 / (double)count,
           (double)took / 1e3 / (double)count,
           (double)statistics.spliced_bytes / (double)(statistics.spliced_bytes + statistics.copied_bytes));
    bp_engine_free(engine);
    close(client[0]);
    close(satellite[0]);
    free(data);
    return 0;
}
