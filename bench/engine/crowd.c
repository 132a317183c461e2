/* What COUNT other connections cost, and what they cost a busy one: idle|stalled COUNT ROUND_TRIPS [CERTIFICATE KEY CA].
 *
 * idle: had one message each way and are silent. stalled: their client sends until everything is full, and their
 * satellite never reads. With a certificate their client's leg is TLS. The engine, with one thread, has a process of its
 * own, so that its memory is counted alone; all peers are in another. The busy one is plain.
 * Prints: p50 and p99 in microseconds of a round trip directly and through the engine, then both again beside the crowd;
 * for each of the crowd the engine's bytes (anonymous memory of its process) and the kernel's (slabs and sockets' pages,
 * of both its sockets: half of what the peers' make together with them); pipes open.
 */
#include "bp.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_BYTES 128

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int listener;
static struct sockaddr_in name = {.sin_family = AF_INET};
static bp_tls_ctx *server_ctx, *client_ctx;

static int dial(void) {
    static unsigned dialled;
    struct sockaddr_in to = name;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (dialled++ & 0xff));
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

struct wire {
    int client, satellite;
    bp_tls *tls; /* of the client, or NULL */
};

static bp_tls *handshake(bp_tls_ctx *ctx, int fd) {
    char error[256];
    bp_tls *tls = bp_tls_new(ctx, fd, NULL, error, sizeof error);
    if (!tls || bp_tls_handshake(tls) < 0)
        die("handshake");
    return tls;
}

/* ---- the engine's process ------------------------------------------------------------------------------------------ */

enum order { OPEN_PLAIN = 'p', OPEN_TLS = 't', LOOK = 'l' };

struct look {
    double engine_bytes, kernel_bytes;
    unsigned long long pipes;
};

static double field_bytes(const char *path, const char *format) {
    char line[256];
    long kib = 0;
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, format, &kib) == 1)
            break;
    if (file)
        fclose(file);
    return (double)kib * 1024;
}

static struct look look(bp_engine *engine) {
    struct bp_statistics statistics;
    long page = sysconf(_SC_PAGESIZE);
    bp_engine_statistics(engine, &statistics);
    return (struct look){
        .engine_bytes = field_bytes("/proc/self/status", "RssAnon: %ld"),
        .kernel_bytes = field_bytes("/proc/meminfo", "Slab: %ld") +
                        field_bytes("/proc/net/sockstat", "TCP: inuse %*d orphan %*d tw %*d alloc %*d mem %ld") / 1024 *
                            (double)page,
        .pipes = statistics.pipes_open,
    };
}

static int take(void) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        die("accept");
    return fd;
}

static void serve(int orders) {
    struct bp_options options = {.threads = 1, .splice = BP_SPLICE_AUTO};
#ifdef UNSENT_BYTES
    options.unsent_bytes = UNSENT_BYTES;
#endif
    bp_engine *engine;
    bp_splice *splice;
    char order;
    if (bp_engine_new(&options, &engine) < 0)
        die("engine");
    while (read(orders, &order, 1) == 1) {
        if (order == LOOK) {
            struct look seen = look(engine);
            if (write(orders, &seen, sizeof seen) != sizeof seen)
                die("write");
            continue;
        }
        int client = take();
        bp_tls *tls = order == OPEN_TLS ? handshake(server_ctx, client) : NULL;
        if (bp_engine_splice(engine, client, tls, take(), NULL, &splice) < 0)
            die("bp_engine_splice");
    }
    bp_engine_free(engine);
}

/* ---- the peers' process -------------------------------------------------------------------------------------------- */

static int orders;

static void tell(enum order order) {
    char byte = (char)order;
    if (write(orders, &byte, 1) != 1)
        die("write");
}

static struct look ask(void) {
    struct look seen;
    tell(LOOK);
    if (read(orders, &seen, sizeof seen) != sizeof seen)
        die("read");
    return seen;
}

static struct wire open_wire(bool tls) {
    struct wire wire = {.client = -1};
    tell(tls ? OPEN_TLS : OPEN_PLAIN);
    wire.client = dial();
    wire.tls = tls ? handshake(client_ctx, wire.client) : NULL;
    wire.satellite = dial();
    return wire;
}

static void pass(int from, int to) {
    char data[MESSAGE_BYTES] = {0};
    size_t at = 0;
    if (send(from, data, sizeof data, MSG_NOSIGNAL) != sizeof data)
        die("send");
    while (at < sizeof data) {
        ssize_t n = recv(to, data, sizeof data - at, 0);
        if (n <= 0)
            die("recv");
        at += (size_t)n;
    }
}

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(struct wire busy, unsigned long count) {
    double *took = calloc(count, sizeof *took);
    if (!took)
        die("calloc");
    for (unsigned long i = 0; i < count; i++) {
        double start = now_us();
        pass(busy.client, busy.satellite);
        pass(busy.satellite, busy.client);
        took[i] = now_us() - start;
    }
    qsort(took, count, sizeof *took, compare);
    printf("%.1f %.1f ", took[count / 2], took[count * 99 / 100]);
    free(took);
}

static void fill(struct wire wire) {
    static const char data[1 << 16];
    fcntl(wire.client, F_SETFL, O_NONBLOCK);
    for (int quiet = 0; quiet < 3;) {
        if (send(wire.client, data, sizeof data, MSG_NOSIGNAL) > 0)
            continue;
        quiet++;
        usleep(500);
    }
}

/* Both ends are the peers' own. */
static struct wire direct_wire(void) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof own;
    int on = 1, here = socket(AF_INET, SOCK_STREAM, 0), ends[2] = {socket(AF_INET, SOCK_STREAM, 0), -1};
    if (bind(here, (struct sockaddr *)&own, bytes) || listen(here, 1) ||
        getsockname(here, (struct sockaddr *)&own, &bytes) || connect(ends[0], (struct sockaddr *)&own, bytes) ||
        (ends[1] = accept(here, NULL, NULL)) < 0)
        die("direct");
    for (int i = 0; i < 2; i++)
        setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    close(here);
    return (struct wire){.client = ends[0], .satellite = ends[1]};
}

static void greet(struct wire wire) {
    char data[MESSAGE_BYTES] = {0};
    if (!wire.tls) {
        pass(wire.client, wire.satellite);
        pass(wire.satellite, wire.client);
        return;
    }
    if (bp_tls_write(wire.tls, data, sizeof data) != sizeof data ||
        recv(wire.satellite, data, sizeof data, MSG_WAITALL) != sizeof data ||
        send(wire.satellite, data, sizeof data, MSG_NOSIGNAL) != sizeof data ||
        bp_tls_read(wire.tls, data, sizeof data) != sizeof data)
        die("greet");
}

static void play(const char *kind, unsigned long count, unsigned long trips) {
    bool tls = client_ctx != NULL;
    struct wire busy = open_wire(false), direct = direct_wire(), *crowd = calloc(count + 1, sizeof *crowd);
    if (!crowd)
        die("calloc");
    if (tls)
        greet(open_wire(true)); /* what OpenSSL allocates once is there now */
    measure(direct, trips);
    measure(busy, trips);
    struct look before = ask();
    for (unsigned long i = 0; i < count; i++) {
        crowd[i] = open_wire(tls);
        if (strcmp(kind, "idle") == 0)
            greet(crowd[i]);
        else
            fill(crowd[i]);
    }
    struct look after = ask();
    measure(direct, trips);
    measure(busy, trips);
    printf("%.0f %.0f %llu\n", (after.engine_bytes - before.engine_bytes) / (double)count,
           (after.kernel_bytes - before.kernel_bytes) / (double)count / 2, ask().pipes);
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct rlimit files;
    socklen_t bytes = sizeof name;
    char error[256];
    int both[2];
    if (argc != 4 && argc != 7)
        die("usage: crowd idle|stalled COUNT ROUND_TRIPS [CERTIFICATE KEY CA]");
    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        die("getrlimit");
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files) < 0)
        die("setrlimit");
    if (argc == 7 && (!(server_ctx = bp_tls_ctx_server(argv[4], argv[5], NULL, error, sizeof error)) ||
                      !(client_ctx = bp_tls_ctx_client(argv[6], NULL, NULL, error, sizeof error))))
        die(error);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&name, bytes) || listen(listener, 16) ||
        getsockname(listener, (struct sockaddr *)&name, &bytes) || socketpair(AF_UNIX, SOCK_STREAM, 0, both) < 0)
        die("start");
    pid_t peers = fork();
    if (peers < 0)
        die("fork");
    if (peers == 0) {
        close(both[0]);
        close(listener);
        orders = both[1];
        play(argv[1], strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10));
        _exit(0); /* forty thousand closes would only take time */
    }
    close(both[1]);
    serve(both[0]);
    int status;
    if (waitpid(peers, &status, 0) != peers || status != 0)
        return 1;
    return 0;
}
