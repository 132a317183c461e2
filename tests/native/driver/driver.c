/* Plays both peers of up to CONNECTIONS splices by a script on stdin, and checks every byte that arrives.
 *
 *   faults CALLS MEMORY TINY SEED   open I CLIENT_TLS SATELLITE_TLS WINDOW   send I SIDE BYTES    recv I SIDE BYTES
 *   fin I SIDE                      cut I SIDE (FIN without close_notify)    rst I SIDE           abort I
 *   update I SIDE (KeyUpdate, and the other side is to answer it, before what is sent next)
 *   mallocs PER_MILLE (so many allocations fail)
 *   flow I SIDE (from now on it sends, and the other side reads, as fast as they can)   unflow I (wait for the end)
 *   pause MICROSECONDS              end I (FIN where still open, read to the end, wait for the engine)
 *   short COUNT (so many connections of one small message, some with TLS)    check
 * SIDE is 0 for the client, 1 for the satellite. `end` answers with a line, and so does `check`; a wrong byte or a
 * connection that never ends is said on stderr and ends the program with 1.
 */
#include "bp.h"
#include "faults.h"
#include "tls.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 8
#define BUFFER_BYTES (64 << 10)
#define STUCK_S 60
#define FLOW_S 10
#define SEND_WAIT_MS 20
#define RECV_WAIT_MS 5
#define TLS_EVERY 8

enum ending { OPEN, CLEAN, RESET, TRUNCATED, OWN };

struct peer {
    int fd; /* -1 when closed */
    bp_tls *tls;
    uint64_t sent, received;
    size_t record_bytes; /* TLS: a write that waits must be repeated with at least as much */
    bool fin, fin_sent, cut;
    enum ending ending;
};

struct connection {
    struct peer peer[2];
    bp_splice *splice;
    bool ended;
    struct bp_counters counters;
};

static struct connection connections[CONNECTIONS];
static bp_engine *engine;
static bp_tls_ctx *server_ctx, *client_ctx;
static int listener;
static struct sockaddr_in listener_name = {.sin_family = AF_INET};
static char buffer[BUFFER_BYTES];

static void die(const char *what) {
    fprintf(stderr, "driver: %s (errno %d)\n", what, errno);
    exit(1);
}

static char pattern(int side, uint64_t at) { return (char)(at * 2654435761u >> 11 ^ at >> 8 ^ (unsigned)side * 0x5b); }

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void nonblocking(int fd) {
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        die("fcntl");
}

static void open_listener(void) {
    socklen_t bytes = sizeof listener_name;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&listener_name, bytes) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&listener_name, &bytes) < 0)
        die("listen");
}

/* Every pair has an address of 127/8 of its own: a hundred thousand of them would run out of ports in TIME_WAIT. */
static void tcp_pair(int pair[2], int window) {
    static uint32_t pairs;
    struct sockaddr_in name = listener_name;
    socklen_t bytes = sizeof name;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (pairs++ & 0xffff));
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (pair[0] >= 0 && window)
        setsockopt(pair[0], SOL_SOCKET, SO_RCVBUF, &window, sizeof window);
    if (pair[0] < 0 || connect(pair[0], (struct sockaddr *)&name, bytes) < 0)
        die("connect");
    pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (pair[1] < 0)
        die("accept");
    if (window)
        setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &window, sizeof window);
    nonblocking(pair[0]);
    nonblocking(pair[1]);
}

static bp_tls *tls_on(int fd, bool server) {
    char error[256];
    bp_tls *tls = bp_tls_new(server ? server_ctx : client_ctx, fd, NULL, error, sizeof error);
    if (!tls)
        die(error);
    return tls;
}

static void handshake(bp_tls *one, bp_tls *other) {
    bool one_done = false, other_done = false;
    for (int i = 0; i < 100000 && !(one_done && other_done); i++) {
        int r = one_done ? 0 : bp_tls_handshake(one);
        if (r < 0 && r != BP_TLS_WANT_READ && r != BP_TLS_WANT_WRITE)
            die(bp_tls_error(one));
        one_done = r == 0;
        r = other_done ? 0 : bp_tls_handshake(other);
        if (r < 0 && r != BP_TLS_WANT_READ && r != BP_TLS_WANT_WRITE)
            die(bp_tls_error(other));
        other_done = r == 0;
    }
    if (!one_done || !other_done)
        die("handshake");
}

static void open_connection(struct connection *c, bool client_tls, bool satellite_tls, int window) {
    int pair[2][2];
    bp_tls *legs[2] = {NULL, NULL};
    *c = (struct connection){0};
    for (int side = 0; side < 2; side++) {
        tcp_pair(pair[side], window);
        c->peer[side].fd = pair[side][0];
        if (side == 0 ? !client_tls : !satellite_tls)
            continue;
        c->peer[side].tls = tls_on(pair[side][0], side == 1);
        legs[side] = tls_on(pair[side][1], side == 0);
        handshake(c->peer[side].tls, legs[side]);
    }
    if (bp_engine_splice(engine, pair[0][1], legs[0], pair[1][1], legs[1], &c->splice) < 0)
        die("bp_engine_splice");
}

static void drop(struct peer *p, enum ending ending) {
    bp_tls_free(p->tls);
    p->tls = NULL;
    close(p->fd);
    p->fd = -1;
    p->ending = ending;
}

static ssize_t put(struct peer *p, size_t bytes) {
    if (!p->tls) {
        ssize_t r = send(p->fd, buffer, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        return r < 0 ? -errno : r;
    }
    ssize_t r = bp_tls_write(p->tls, buffer, bytes);
    p->record_bytes = r == BP_TLS_WANT_WRITE ? bytes : 0;
    return r == BP_TLS_WANT_WRITE || r == BP_TLS_WANT_READ ? -EAGAIN : r;
}

static ssize_t put_pattern(struct peer *p, int side, size_t bytes) {
    if (bytes < p->record_bytes)
        bytes = p->record_bytes;
    if (bytes > BUFFER_BYTES)
        bytes = BUFFER_BYTES;
    for (size_t i = 0; i < bytes; i++)
        buffer[i] = pattern(side, p->sent + i);
    ssize_t r = put(p, bytes);
    if (r > 0)
        p->sent += (size_t)r;
    return r;
}

static void send_bytes(struct peer *p, int side, size_t bytes) {
    uint64_t until = p->sent + bytes;
    while (p->fd >= 0 && !p->fin && p->sent < until) {
        ssize_t r = put_pattern(p, side, (size_t)(until - p->sent));
        struct pollfd writable = {.fd = p->fd, .events = POLLOUT};
        if (r < 0 && (r != -EAGAIN || poll(&writable, 1, SEND_WAIT_MS) <= 0))
            return;
    }
}

static void take(struct peer *p, int side, size_t bytes) {
    ssize_t r;
    if (bytes > BUFFER_BYTES)
        bytes = BUFFER_BYTES;
    if (p->tls)
        r = bp_tls_read(p->tls, buffer, bytes);
    else if ((r = recv(p->fd, buffer, bytes, MSG_DONTWAIT)) < 0)
        r = -errno;
    for (ssize_t i = 0; i < r; i++)
        if (buffer[i] != pattern(1 - side, p->received + (uint64_t)i))
            die("a wrong byte arrived");
    if (r > 0)
        p->received += (uint64_t)r;
    else if (r == 0)
        p->ending = CLEAN;
    else if (r == BP_TLS_TRUNCATED)
        p->ending = TRUNCATED;
    else if (r != -EAGAIN && r != BP_TLS_WANT_READ && r != BP_TLS_WANT_WRITE)
        p->ending = RESET;
}

static void receive_bytes(struct peer *p, int side, size_t bytes) {
    uint64_t until = p->received + bytes;
    while (p->fd >= 0 && p->ending == OPEN && p->received < until) {
        uint64_t before = p->received;
        take(p, side, (size_t)(until - p->received));
        struct pollfd readable = {.fd = p->fd, .events = POLLIN};
        if (p->received == before && (p->ending != OPEN || poll(&readable, 1, RECV_WAIT_MS) <= 0))
            return;
    }
}

/* Sends the FIN that was asked for, behind a TLS record that still waits. */
static void push_fin(struct peer *p, int side) {
    if (!p->fin || p->fin_sent || p->fd < 0)
        return;
    if (p->record_bytes && put_pattern(p, side, p->record_bytes) == -EAGAIN)
        return;
    if (p->tls && !p->cut && bp_tls_shutdown(p->tls) == BP_TLS_WANT_WRITE)
        return;
    shutdown(p->fd, SHUT_WR);
    p->fin_sent = true;
}

static void reset(struct peer *p) {
    static const struct linger rst = {.l_onoff = 1, .l_linger = 0};
    if (p->fd < 0)
        return;
    setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
    int fd = p->fd;
    close(fd); /* before the TLS object: freeing it must not say goodbye */
    p->fd = -1;
    bp_tls_free(p->tls);
    p->tls = NULL;
    p->ending = OWN;
}

static void collect(void) {
    bp_splice *s;
    while ((s = bp_engine_take_ended(engine))) {
        for (int i = 0; i < CONNECTIONS; i++)
            if (connections[i].splice == s) {
                bp_splice_counters(s, &connections[i].counters);
                connections[i].ended = true;
                connections[i].splice = NULL;
            }
        bp_splice_free(s);
    }
}

static void end_connection(int index, bool silent) {
    struct connection *c = &connections[index];
    uint64_t deadline_ms = now_ms() + STUCK_S * 1000;
    for (int side = 0; side < 2; side++)
        c->peer[side].fin = true;
    for (;;) {
        struct pollfd wait[3] = {{.fd = bp_engine_event_fd(engine), .events = POLLIN}};
        bool waiting = !c->ended;
        for (int side = 0; side < 2; side++) {
            struct peer *p = &c->peer[side];
            push_fin(p, side);
            wait[1 + side].fd = p->ending == OPEN ? p->fd : -1;
            wait[1 + side].events = (short)(POLLIN | (p->fin_sent ? 0 : POLLOUT));
            waiting |= p->fd >= 0 && p->ending == OPEN;
        }
        if (!waiting)
            break;
        if (now_ms() > deadline_ms)
            die("a connection never ended");
        (void)poll(wait, 3, 1000);
        collect();
        for (int side = 0; side < 2; side++)
            if (wait[1 + side].fd >= 0)
                receive_bytes(&c->peer[side], side, BUFFER_BYTES);
    }
    for (int side = 0; side < 2; side++)
        if (c->peer[side].fd >= 0)
            drop(&c->peer[side], c->peer[side].ending);
    if (silent)
        return;
    printf("end %d %d %llu %llu %llu %llu %llu %llu %d %d %lu\n", index, c->counters.reason,
           (unsigned long long)c->counters.up_bytes, (unsigned long long)c->counters.down_bytes,
           (unsigned long long)c->peer[0].sent, (unsigned long long)c->peer[1].sent,
           (unsigned long long)c->peer[0].received, (unsigned long long)c->peer[1].received, c->peer[0].ending,
           c->peer[1].ending, faults_of_malloc());
}

/* TLS 1.3 alone has it, and not while a write waits. */
static void update_keys(struct peer *p) {
    if (p->tls && !p->fin && !p->record_bytes && p->ending == OPEN && p->fd >= 0 &&
        SSL_key_update(p->tls->ssl, SSL_KEY_UPDATE_REQUESTED) == 1)
        (void)SSL_do_handshake(p->tls->ssl);
    ERR_clear_error();
}

static struct {
    pthread_t sender, receiver;
    int from, to;
} flow;

static void *flow_out(void *ignored) {
    static char zeros[BUFFER_BYTES];
    struct pollfd writable = {.fd = flow.from, .events = POLLOUT};
    (void)ignored;
    faults_exempt_this_thread();
    while (poll(&writable, 1, STUCK_S * 1000) > 0)
        if (send(flow.from, zeros, sizeof zeros, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
            break;
    return NULL;
}

static void *flow_in(void *ignored) {
    static char taken[BUFFER_BYTES];
    struct pollfd readable = {.fd = flow.to, .events = POLLIN};
    ssize_t got = 1;
    (void)ignored;
    faults_exempt_this_thread();
    while (got != 0 && poll(&readable, 1, STUCK_S * 1000) > 0) {
        got = recv(flow.to, taken, sizeof taken, MSG_DONTWAIT);
        if (got < 0 && errno != EAGAIN)
            break;
    }
    return NULL;
}

static void start_flow(const struct connection *c, int side) {
    flow.from = c->peer[side].fd;
    flow.to = c->peer[1 - side].fd;
    if (pthread_create(&flow.sender, NULL, flow_out, NULL) || pthread_create(&flow.receiver, NULL, flow_in, NULL))
        die("pthread_create");
}

/* Waits for the engine to end it, although both sides go on. */
static void end_flow(int index) {
    struct connection *c = &connections[index];
    uint64_t deadline_ms = now_ms() + FLOW_S * 1000;
    for (collect(); !c->ended; collect()) {
        struct pollfd wait = {.fd = bp_engine_event_fd(engine), .events = POLLIN};
        if (now_ms() > deadline_ms)
            die("a connection that failed goes on and on");
        (void)poll(&wait, 1, 100);
    }
    pthread_join(flow.sender, NULL);
    pthread_join(flow.receiver, NULL);
    for (int side = 0; side < 2; side++)
        drop(&c->peer[side], RESET);
    printf("unflow %d\n", c->counters.reason);
}

static void check(void) {
    struct bp_statistics statistics;
    unsigned fds = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder))
        fds++;
    closedir(folder);
    bp_engine_statistics(engine, &statistics);
    printf("check %llu %u %llu %llu %lu %lu\n", (unsigned long long)statistics.live, fds - 2 - 1,
           (unsigned long long)statistics.pipes_open, (unsigned long long)statistics.spliced_bytes, faults_reads(),
           faults_whole_sends());
}

static void run_short(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        struct connection *c = &connections[0];
        open_connection(c, i % TLS_EVERY == 1, i % TLS_EVERY == 3, 0); /* one leg of a quarter: handshakes take time */
        send_bytes(&c->peer[0], 0, 100);
        send_bytes(&c->peer[1], 1, 100);
        end_connection(0, true);
        if (c->counters.reason != BP_CLOSED || c->peer[0].received != 100 || c->peer[1].received != 100)
            die("a short connection went wrong");
    }
    printf("short %u\n", count);
}

static void run(const char *line) {
    int i = 0, side = 0, client_tls, satellite_tls, window, tiny;
    unsigned long n;
    unsigned calls, memory, seed;
    if (sscanf(line, "faults %u %u %d %u", &calls, &memory, &tiny, &seed) == 4)
        faults_set((struct faults){calls, memory, tiny != 0}, seed);
    else if (sscanf(line, "open %d %d %d %d", &i, &client_tls, &satellite_tls, &window) == 4)
        open_connection(&connections[i % CONNECTIONS], client_tls, satellite_tls, window);
    else if (sscanf(line, "send %d %d %lu", &i, &side, &n) == 3)
        send_bytes(&connections[i % CONNECTIONS].peer[side & 1], side & 1, n);
    else if (sscanf(line, "recv %d %d %lu", &i, &side, &n) == 3)
        receive_bytes(&connections[i % CONNECTIONS].peer[side & 1], side & 1, n);
    else if (sscanf(line, "update %d %d", &i, &side) == 2)
        update_keys(&connections[i % CONNECTIONS].peer[side & 1]);
    else if (sscanf(line, "mallocs %lu", &n) == 1)
        faults_set_malloc((unsigned)n);
    else if (sscanf(line, "flow %d %d", &i, &side) == 2)
        start_flow(&connections[i % CONNECTIONS], side & 1);
    else if (sscanf(line, "unflow %d", &i) == 1)
        end_flow(i % CONNECTIONS);
    else if (sscanf(line, "rst %d %d", &i, &side) == 2)
        reset(&connections[i % CONNECTIONS].peer[side & 1]);
    else if (sscanf(line, "fin %d %d", &i, &side) == 2 || sscanf(line, "cut %d %d", &i, &side) == 2) {
        struct peer *p = &connections[i % CONNECTIONS].peer[side & 1];
        p->cut |= line[0] == 'c' && !p->fin;
        p->fin = true;
        push_fin(p, side & 1);
    } else if (sscanf(line, "abort %d", &i) == 1) {
        collect();
        if (connections[i % CONNECTIONS].splice)
            bp_splice_abort(connections[i % CONNECTIONS].splice);
    } else if (sscanf(line, "pause %lu", &n) == 1)
        usleep((useconds_t)(n % 1000000));
    else if (sscanf(line, "end %d", &i) == 1)
        end_connection(i % CONNECTIONS, false);
    else if (sscanf(line, "short %lu", &n) == 1)
        run_short((unsigned)n);
    else if (strcmp(line, "check\n") == 0)
        check();
    else
        die("what is this line?");
}

int main(int argc, char **argv) {
    char line[256], error[256];
    struct bp_options options = {.threads = 2, .half_closed_timeout_s = 0};
    faults_exempt_this_thread();
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    if (argc != 5)
        die("usage: driver off|auto|always[+ktls[+rx]] CERTIFICATE KEY CA");
    options.splice = strncmp(argv[1], "off", 3) == 0    ? BP_SPLICE_OFF
                     : strncmp(argv[1], "auto", 4) == 0 ? BP_SPLICE_AUTO
                                                        : BP_SPLICE_ALWAYS;
    server_ctx = bp_tls_ctx_server(argv[2], argv[3], NULL, error, sizeof error);
    client_ctx = bp_tls_ctx_client(argv[4], NULL, NULL, error, sizeof error);
    if (!server_ctx || !client_ctx)
        die(error);
    if (options.splice == BP_SPLICE_OFF) /* one of the modes is to poll */
        options.busy_poll_us = 200;
    if (strstr(argv[1], "+ktls")) {
        options.ktls = bp_ktls_self_test(error, sizeof error);
        if (options.ktls < 0)
            die(error);
        if (strstr(argv[1], "+rx")) /* although this kernel may drop bytes, which pipes of full size do not let it */
            options.ktls |= BP_KTLS_RX;
        bp_tls_ctx_enable_ktls(server_ctx);
        bp_tls_ctx_enable_ktls(client_ctx);
    }
    if (bp_engine_new(&options, &engine) < 0)
        die("bp_engine_new");
    open_listener();
    while (fgets(line, sizeof line, stdin)) {
        run(line);
        fflush(stdout);
    }
    bp_engine_free(engine);
    bp_tls_ctx_free(server_ctx);
    bp_tls_ctx_free(client_ctx);
    return 0;
}
