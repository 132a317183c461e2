/* The load generator: open loop, in a process of its own, one thread.
 *
 * It prints "ready" when its connections are open, waits for a line, runs, prints its report as one line of JSON, and ends
 * when its input ends. The times of an open loop's requests are a Poisson process from a seed, the same for every peer.
 * Latency counts from the intended time, so a stall counts for every request that it delayed.
 *
 * rate: phases of an open loop over `connections` warm connections. closed: each connection has `streams` requests
 * in progress. connect: each request on a connection of its own, `connections` at a time, open loop if a rate is given.
 * idle: `connections` that each had one answer and are then held.
 */
#include "load.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, OPENING = 64, WARM = MAX_PHASES };
static const uint64_t SECOND_NS = 1000000000, RETRY_NS = 10000000, OPEN_DEADLINE_S = 60;

static struct options options;
static struct report report;
static struct client *clients, **dirty, **idle_clients; /* dirty: has to be flushed; idle: free for connect mode */
static uint32_t dirty_count, idle_count, opened, warm_asked;
static struct buffer jobs; /* connect mode: requests for which no connection is free */
static uint64_t under_way, asked, next_ns, phase_end_ns, retry_ns, random_state;
static uint32_t current_phase;
static bool running, lost_any;
static int epoll_fd;

/* Seconds to the next request of a Poisson process. */
static double gap_s(double rate) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return -log(((double)(random_state >> 11) + 1) / 9007199254740993.0) / rate;
}

static void ask(struct client *client, const struct request *request) {
    client_ask(client, request);
    if (client->dirty && client->link.fd >= 0)
        dirty[dirty_count++] = client;
}

static bool may_ask(uint64_t now) { return running && (options.count ? asked < options.count : now < phase_end_ns); }

static void lose(struct client *client) {
    client_close(client);
    lost_any = true;
    if (options.mode == CONNECT)
        idle_clients[idle_count++] = client;
}

static void connect_for(struct client *client, const struct request *request) {
    int result = client_connect(client, epoll_fd);
    buffer_free(&client->waiting);
    client_ask(client, request);
    if (!result)
        return;
    buffer_free(&client->waiting);
    report.refused_connects++;
    options.phase[request->phase].outcomes[CONNECTION_LOST]++;
    under_way--;
    lose(client);
}

static void begin_request(uint64_t intended_ns) {
    static uint32_t turn;
    struct request request = {.intended_ns = intended_ns, .phase = current_phase};
    options.phase[current_phase].sent++;
    under_way++;
    asked++;
    if (options.mode == CONNECT && idle_count) {
        struct client *client = idle_clients[--idle_count];
        client->number = (uint32_t)asked - 1;
        connect_for(client, &request);
    } else if (options.mode == CONNECT) {
        buffer_add(&jobs, &request, sizeof request);
    } else {
        ask(&clients[turn++ % options.connections], &request);
    }
}

static void answered(struct client *client, const struct request *request, enum outcome outcome) {
    uint64_t now = now_ns();
    if (request->phase == WARM) {
        opened++;
        warm_asked--;
        return;
    }
    struct phase *phase = &options.phase[request->phase];
    under_way--;
    phase->outcomes[outcome]++;
    if (outcome == ANSWERED) {
        histogram_record(&phase->latency, now - request->intended_ns);
        if (!report.first_answer_ns)
            report.first_answer_ns = now;
        report.last_answer_ns = now;
        if (report.answers_ns && client->number < options.count)
            report.answers_ns[client->number] = now;
        report.resumed += options.mode == CONNECT && client_resumed(client);
    }
    if (options.mode == CONNECT) {
        client->leaving = true;
    } else if (options.mode == CLOSED && client->link.fd >= 0 && may_ask(now)) {
        struct request next = {.intended_ns = now, .phase = request->phase};
        phase->sent++;
        under_way++;
        asked++;
        client_ask(client, &next);
    }
}

static void open_loop(uint64_t now) {
    while (running && options.phase[current_phase].rate > 0) {
        if (next_ns >= phase_end_ns) {
            if (++current_phase == options.phases) {
                running = false;
                return;
            }
            next_ns = phase_end_ns;
            phase_end_ns += (uint64_t)(options.phase[current_phase].seconds * 1e9);
            continue;
        }
        if (next_ns > now)
            return;
        histogram_record(&report.lateness, now - next_ns);
        begin_request(next_ns);
        next_ns += (uint64_t)(gap_s(options.phase[current_phase].rate) * 1e9);
    }
}

/* Connect mode: takes ended connections for requests that wait or, without a rate, for the next ones. */
static void reuse_clients(uint64_t now) {
    struct request request;
    while (idle_count && buffer_take(&jobs, &request, sizeof request))
        connect_for(idle_clients[--idle_count], &request);
    while (idle_count && options.phase[0].rate <= 0 && may_ask(now))
        begin_request(now);
}

static void revive_clients(uint64_t now) {
    if (!lost_any || options.mode == CONNECT || now < retry_ns)
        return;
    retry_ns = now + RETRY_NS;
    lost_any = false;
    for (uint32_t i = 0; i < options.connections; i++)
        if (clients[i].slots && clients[i].link.fd < 0 && client_connect(&clients[i], epoll_fd) < 0)
            lose(&clients[i]);
}

/* One turn: begins the requests that are due, then serves events until the next one is due or until `until_ns`. */
static void step(uint64_t until_ns) {
    struct epoll_event events[EVENTS];
    uint64_t now = now_ns(), wake = until_ns;
    open_loop(now);
    if (options.mode == CONNECT)
        reuse_clients(now);
    revive_clients(now);
    for (uint32_t i = 0; i < dirty_count; i++)
        if (dirty[i]->dirty && dirty[i]->link.fd >= 0 && !client_flush(dirty[i], epoll_fd))
            lose(dirty[i]);
    dirty_count = 0;
    if (running && options.phase[current_phase].rate > 0 && next_ns < wake)
        wake = next_ns;
    if (lost_any && options.mode != CONNECT && now + RETRY_NS < wake)
        wake = now + RETRY_NS;
    now = now_ns();
    uint64_t wait = wake > now ? wake - now : 0;
    struct timespec timeout = {(time_t)(wait / SECOND_NS), (long)(wait % SECOND_NS)};
    int count = epoll_pwait2(epoll_fd, events, EVENTS, &timeout, NULL);
    for (int i = 0; i < count; i++) {
        struct client *client = events[i].data.ptr;
        if (client->link.fd >= 0 && !client_serve(client, epoll_fd, events[i].events))
            lose(client);
    }
}

/* Opens every connection and waits for one answer on each, so that all is warm before the measurement. */
static void open_connections(void) {
    uint64_t deadline = now_ns() + OPEN_DEADLINE_S * SECOND_NS;
    const struct request request = {.phase = WARM};
    uint64_t messages = options.messages;
    options.messages = 1;
    for (uint32_t next = 0; opened < options.connections && now_ns() < deadline;) {
        while (next < options.connections && warm_asked < OPENING) {
            clients[next].messages = 1;
            if (client_connect(&clients[next], epoll_fd) < 0) {
                perror("load: connect");
                exit(1);
            }
            client_ask(&clients[next++], &request);
            warm_asked++;
        }
        step(now_ns() + SECOND_NS / 10);
        report.refused_connects += lost_any;
    }
    if (opened < options.connections) {
        fprintf(stderr, "load: %u of %u connections had an answer\n", opened, options.connections);
        exit(1);
    }
    for (uint32_t i = 0; i < options.connections; i++)
        clients[i].messages = messages;
    options.messages = messages;
}

static void run(void) {
    uint64_t moved = 0;
    report.begin_ns = next_ns = now_ns();
    phase_end_ns = report.begin_ns + (uint64_t)(options.phase[0].seconds * 1e9);
    running = true;
    for (uint32_t i = 0; i < options.connections; i++)
        moved += clients[i].moved;
    if (options.mode == CLOSED)
        for (uint64_t i = 0; i < (uint64_t)options.connections * options.streams; i++)
            begin_request(now_ns());
    while (running || under_way) {
        uint64_t now = now_ns(), end = report.begin_ns;
        for (uint32_t i = 0; i < options.phases; i++)
            end += (uint64_t)(options.phase[i].seconds * 1e9);
        running = running && (options.count ? asked < options.count : now < end);
        end += running ? 0 : (uint64_t)(options.drain_s * 1e9);
        if (!running && (!under_way || now >= end))
            break;
        step(end);
    }
    report.end_ns = report.last_answer_ns ? report.last_answer_ns : now_ns();
    for (uint32_t i = 0; i < options.connections; i++)
        report.moved_bytes += clients[i].moved;
    report.moved_bytes -= moved;
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    options_parse(&options, argc, argv);
    random_state = options.seed * 0x9e3779b97f4a7c15 | 1;
    pattern_fill();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc(options.connections, sizeof *clients);
    idle_clients = calloc(options.connections, sizeof(struct client *));
    dirty = calloc(1 << 20, sizeof(struct client *));
    if (epoll_fd < 0 || !clients || !idle_clients || !dirty)
        return 1;
    for (uint32_t i = 0; i < options.connections; i++) {
        client_init(&clients[i], &options.target, i, answered);
        clients[i].task = options.task;
        clients[i].echo_bytes = options.echo_bytes;
        clients[i].messages = options.messages;
        clients[i].message_bytes = options.message_bytes;
        idle_clients[idle_count++] = &clients[options.connections - 1 - i];
    }
    if (options.mode == CONNECT && options.count && !(report.answers_ns = calloc(options.count, sizeof(uint64_t))))
        return 1;
    if (options.mode != CONNECT)
        open_connections();
    puts("ready");
    fflush(stdout);
    if (getchar() == EOF)
        return 0;
    if (options.mode != IDLE) {
        double before_s = cpu_s();
        run();
        report.cpu_s = cpu_s() - before_s;
    }
    report_print(&options, &report);
    while (getchar() != EOF)
        continue;
    return 0;
}
