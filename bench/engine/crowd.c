/* What COUNT other connections cost, and what they cost a busy one: idle|stalled|none COUNT ROUND_TRIPS.
 *
 * idle: had one message each way and are silent. stalled: their client sends until everything is full, and their
 * satellite never reads. All ends are this process's; the engine has one thread, so the busy one shares it with them.
 * Prints: p50 and p99 of the busy one's round trip in microseconds, alone and then beside the crowd; engine bytes for
 * each of the crowd (anonymous memory of the process: the peers are bare sockets); pipes open.
 */
#include "bp.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_BYTES 128

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int listener;
static struct sockaddr_in name = {.sin_family = AF_INET};

static void pair(int ends[2]) {
    static unsigned pairs;
    struct sockaddr_in to = name;
    int on = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (pairs++ & 0xff));
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (ends[0] < 0 || connect(ends[0], (struct sockaddr *)&to, sizeof to) ||
        (ends[1] = accept(listener, NULL, NULL)) < 0)
        die("connect");
    setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

struct wire {
    int client, satellite;
};

static struct wire open_wire(bp_engine *engine) {
    int client[2], satellite[2];
    bp_splice *splice;
    pair(client);
    pair(satellite);
    if (bp_engine_splice(engine, client[1], NULL, satellite[1], NULL, &splice) < 0)
        die("bp_engine_splice");
    return (struct wire){client[0], satellite[0]};
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

static double anonymous_bytes(void) {
    char line[256];
    long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %ld", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return (double)kib * 1024;
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

int main(int argc, char **argv) {
    struct bp_options options = {.threads = 1, .splice = BP_SPLICE_AUTO};
    struct rlimit files = {200000, 200000};
    socklen_t bytes = sizeof name;
    bp_engine *engine;
    if (argc != 4)
        die("usage: crowd idle|stalled COUNT ROUND_TRIPS");
    unsigned long count = strtoul(argv[2], NULL, 10), trips = strtoul(argv[3], NULL, 10);
    if (setrlimit(RLIMIT_NOFILE, &files) < 0)
        perror("RLIMIT_NOFILE stays as it is");
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&name, bytes) || listen(listener, 16) ||
        getsockname(listener, (struct sockaddr *)&name, &bytes) || bp_engine_new(&options, &engine) < 0)
        die("start");
    struct wire busy = open_wire(engine), *crowd = calloc(count + 1, sizeof *crowd);
    int direct[2];
    if (!crowd)
        die("calloc");
    pair(direct);
    measure((struct wire){direct[0], direct[1]}, trips);
    measure(busy, trips);
    double before = anonymous_bytes();
    for (unsigned long i = 0; i < count; i++) {
        crowd[i] = open_wire(engine);
        if (strcmp(argv[1], "idle") == 0) {
            pass(crowd[i].client, crowd[i].satellite);
            pass(crowd[i].satellite, crowd[i].client);
        } else
            fill(crowd[i]);
    }
    double each = count ? (anonymous_bytes() - before) / (double)count : 0;
    measure((struct wire){direct[0], direct[1]}, trips);
    measure(busy, trips);
    struct bp_statistics statistics;
    bp_engine_statistics(engine, &statistics);
    printf("%.0f %llu\n", each, (unsigned long long)statistics.pipes_open);
    fflush(stdout);
    _exit(0); /* forty thousand closes would only take time */
}
