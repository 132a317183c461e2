/* Gives an opener COUNT clients that a joiner brings to satellites of every kind, while gates are shut, tokens replaced and
 * control planes changed, and checks what the two laws say: every byte that comes out on either side; who went up has told its
 * satellite nothing; and nobody is committed to a gate, by a table, or in a seat that has ended, once the caller has heard of all
 * that were committed before.
 *
 *   lane_storm COUNT SEED CERTIFICATE KEY CA
 * Something wrong, a client that is lost, or a descriptor that is left ends the program with 1.
 */
#include "storm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/sha.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define AT_ONCE 32
#define SATELLITES 4
#define TLS_FROM 2 /* satellites from this one on */
#define MOST_BYTES 40000
#define HEADER_BYTES 9
#define LEFT 16
#define STREAMS 7
#define WINDOW 1000
#define GATES_MOST 100000
#define REQUEST_MS 100
#define REACH_MS 150
#define JOIN_MS 400

enum kind { WHOLE, WAITS, SPLIT, WRONG, SILENT, LEAVES, ABORTED, KINDS };
static const char *const names[KINDS] = {"whole", "waits", "split", "wrong", "silent", "leaves", "aborted"};
enum manner { HONEST, CLOSES, HANGS, GARBAGE, ENDS_LATE, MANNERS };

struct client {
    bool live;
    enum kind kind;
    unsigned id, satellite;
    int near;
    bp_tls *tls;
    bool shaken, spoken_to, acks, acked;
    char *says; /* without the ACK */
    size_t says_bytes, said, opening_bytes, boundary;
    char *sent; /* with it */
    size_t sent_bytes;
    char *heard;
    size_t heard_bytes;
    unsigned leave_in, abort_in, cut_in;
    bp_opening *opening;
    bp_stream *stream;
    bp_splice *splice;
    bool up, committed, failed, over;
    int peer; /* index of its satellite's end, or -1 */
};

struct peer { /* one connection of a satellite */
    bool live;
    enum manner manner;
    unsigned satellite;
    int fd, client; /* client: index, or -1 */
    bp_tls *tls;
    bool shaken;
    char *heard, *says;
    size_t heard_bytes, says_bytes, said;
    time_t since;
};

static struct client clients[AT_ONCE];
static struct peer peers[8 * AT_ONCE];
static int listeners[SATELLITES];
static uint16_t ports[SATELLITES];
static uint64_t gate_of[SATELLITES], next_gate = 1, generation;
static bool shut[GATES_MOST];
static unsigned ended[KINDS], spliced, committed_count, up_by[BP_STOPPED + 1];
static bp_admission *admission;
static bp_opener *opener;
static bp_joiner *joiner;
static bp_engine *engine;
static unsigned next_id = 1;
static const struct bp_request_rules rules = {.domain = NULL};
static unsigned char ours[HEADER_BYTES + 12];

static size_t frame(char *at, unsigned kind, unsigned flags, unsigned stream, const void *payload, size_t bytes) {
    const unsigned char header[HEADER_BYTES] = {(unsigned char)(bytes >> 16),
                                                (unsigned char)(bytes >> 8),
                                                (unsigned char)bytes,
                                                (unsigned char)kind,
                                                (unsigned char)flags,
                                                0,
                                                0,
                                                0,
                                                (unsigned char)stream};
    memcpy(at, header, HEADER_BYTES);
    if (bytes)
        memcpy(at + HEADER_BYTES, payload, bytes);
    return HEADER_BYTES + bytes;
}

static size_t field(char *at, const char *name, const char *value) {
    size_t n = strlen(name), v = strlen(value);
    at[0] = 0;
    at[1] = (char)n;
    memcpy(at + 2, name, n);
    at[2 + n] = (char)v;
    memcpy(at + 3 + n, value, v);
    return 3 + n + v;
}

static void write_client(struct client *c) {
    char block[512], text[16], name[2] = {(char)('a' + c->satellite), 0};
    static char payload[MOST_BYTES];
    size_t bytes = 0;
    c->says = malloc(MOST_BYTES);
    c->sent = malloc(MOST_BYTES);
    c->heard = malloc(MOST_BYTES);
    memcpy(c->says, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    c->says_bytes = 24 + frame(c->says + 24, 4, 0, 0, NULL, 0);
    c->opening_bytes = c->says_bytes;
    if (c->kind == SILENT)
        return;
    snprintf(text, sizeof text, "ID%08u", c->id);
    bytes += field(block + bytes, ":method", "POST");
    bytes += field(block + bytes, ":scheme", "http");
    bytes += field(block + bytes, ":path", "/a.B/C");
    bytes += field(block + bytes, ":authority", "x");
    bytes += field(block + bytes, "satellite_org", "o");
    bytes += field(block + bytes, "satellite_name", name);
    bytes += field(block + bytes, "satellite_token", c->kind == WRONG ? "nobody" : pick(2) ? "one" : "two");
    bytes += field(block + bytes, "x-id", text);
    c->says_bytes += frame(c->says + c->says_bytes, 1, 4, 1, block, bytes);
    for (unsigned frames = pick(6); frames; frames--) {
        size_t size = pick(pick(3) ? 100 : 5000);
        for (size_t i = 0; i < size; i++)
            payload[i] = (char)(pick(26) + 'a');
        c->says_bytes += frame(c->says + c->says_bytes, 0, 0, 1, payload, size);
    }
}

static void begin(struct client *c) {
    int pair[2];
    char error[256];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        die("socketpair");
    *c = (struct client){.live = true, .kind = (enum kind)pick(KINDS), .near = pair[0], .peer = -1, .id = next_id++};
    c->satellite = pick(SATELLITES);
    write_client(c);
    c->leave_in = c->kind == LEAVES ? 1 + pick(pick(2) ? 6 : 60) : 0;
    c->abort_in = c->kind == ABORTED ? 1 + pick(pick(2) ? 6 : 60) : 0;
    bool tls = pick(2);
    c->tls = tls ? bp_tls_new(client_ctx, c->near, "localhost", error, sizeof error) : NULL;
    if ((tls && !c->tls) || bp_opener_admit(opener, pair[1], tls ? server_ctx : NULL, joiner, &rules, &c->opening) < 0)
        die("a client is refused");
}

static ssize_t put(int fd, bp_tls *tls, const char *data, size_t bytes) {
    return tls ? bp_tls_write(tls, data, bytes) : send(fd, data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static ssize_t get(int fd, bp_tls *tls, char *data, size_t bytes) {
    return tls ? bp_tls_read(tls, data, bytes) : recv(fd, data, bytes, MSG_DONTWAIT);
}

static void hang_up(int *fd, bp_tls **tls) {
    bp_tls_free(*tls);
    *tls = NULL;
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Where the frame begins in which `at` lies, or behind it if that is a boundary. */
static size_t next_boundary(const struct client *c, size_t at) {
    size_t from = 24;
    while (from < at) {
        const unsigned char *h = (const unsigned char *)c->says + from;
        from += HEADER_BYTES + ((size_t)h[0] << 16 | (size_t)h[1] << 8 | h[2]);
    }
    return from;
}

static void client_says(struct client *c) {
    static const char ack[HEADER_BYTES] = {0, 0, 0, 4, 1, 0, 0, 0, 0};
    size_t until = c->says_bytes;
    if (c->kind == WAITS && !c->spoken_to)
        until = c->opening_bytes;
    if (c->kind == SPLIT && c->said < c->says_bytes && pick(3))
        until = c->said + 1 + pick((unsigned)(until - c->said));
    if (c->spoken_to && !c->acked) {
        if (!c->acks) {
            size_t from = c->said < 24 ? 24 : c->said;
            c->boundary = next_boundary(c, from + pick((unsigned)(c->says_bytes - from) + 1));
            c->acks = true;
        }
        if (c->said == c->boundary) {
            ssize_t r = put(c->near, c->tls, ack, sizeof ack);
            if (r != sizeof ack) {
                if (r > 0)
                    die("a part of the ACK was sent");
                return;
            }
            memcpy(c->sent + c->sent_bytes, ack, sizeof ack);
            c->sent_bytes += sizeof ack;
            c->acked = true;
        } else if (until > c->boundary)
            until = c->boundary;
    }
    if (c->said >= until)
        return;
    ssize_t r = put(c->near, c->tls, c->says + c->said, until - c->said);
    if (r > 0) {
        memcpy(c->sent + c->sent_bytes, c->says + c->said, (size_t)r);
        c->sent_bytes += (size_t)r;
        c->said += (size_t)r;
    }
}

static void play_client(struct client *c) {
    if (c->abort_in && --c->abort_in == 0 && c->opening)
        bp_opening_abort(c->opening);
    if (c->cut_in && --c->cut_in == 0 && c->stream)
        bp_stream_release(c->stream);
    if (c->leave_in && --c->leave_in == 0)
        hang_up(&c->near, &c->tls);
    if (c->near < 0)
        return;
    if (c->tls && !c->shaken) {
        c->shaken = bp_tls_handshake(c->tls) == 0;
        return;
    }
    client_says(c);
    errno = 0;
    ssize_t got = get(c->near, c->tls, c->heard + c->heard_bytes, MOST_BYTES - c->heard_bytes);
    c->heard_bytes += got > 0 ? (size_t)got : 0;
    if (got == 0 || (got < 0 && (c->tls ? got != BP_TLS_WANT_READ : errno != EAGAIN)))
        hang_up(&c->near, &c->tls);
    c->spoken_to = c->spoken_to || (c->heard_bytes >= sizeof ours && memcmp(c->heard, ours, sizeof ours) == 0);
}

static void new_peer(unsigned satellite) {
    int fd = accept4(listeners[satellite], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), i = 0;
    char error[256];
    if (fd < 0)
        return;
    while (i < 8 * AT_ONCE && peers[i].live)
        i++;
    if (i == 8 * AT_ONCE)
        die("too many connections of satellites");
    struct peer *p = &peers[i];
    *p = (struct peer){.live = true, .satellite = satellite, .fd = fd, .client = -1, .since = time(NULL)};
    p->manner = pick(2) ? HONEST : (enum manner)pick(MANNERS);
    p->heard = malloc(MOST_BYTES);
    p->says = malloc(MOST_BYTES);
    p->tls = satellite >= TLS_FROM ? bp_tls_new(server_ctx, fd, NULL, error, sizeof error) : NULL;
    const unsigned char entries[12] = {0, 3, 0, 0, 0, 50, 0, 4, 0, 1, 0, 0};
    p->says_bytes = frame(p->says, 4, 0, 0, entries, sizeof entries);
    if (p->manner == GARBAGE)
        memcpy(p->says, "HTTP/1.1 400 Bad Request\r\n", p->says_bytes);
    for (unsigned more = pick(8000); more; more--)
        p->says[p->says_bytes++] = (char)('A' + pick(26));
}

/* The client whose request a satellite has got. Nobody else may have got it, and it must not have gone up. */
static void find_client(int at) {
    struct peer *p = &peers[at];
    const char *found = p->heard_bytes ? memmem(p->heard, p->heard_bytes, "x-id\nID", 7) : NULL;
    if (p->client >= 0 || !found || p->heard + p->heard_bytes - found < 15)
        return;
    char digits[9] = {0};
    memcpy(digits, found + 7, 8);
    unsigned id = (unsigned)strtoul(digits, NULL, 10);
    for (int i = 0; i < AT_ONCE; i++)
        if (clients[i].live && clients[i].id == id) {
            if (clients[i].satellite != p->satellite)
                die("a request has reached another satellite");
            if (clients[i].peer >= 0)
                die("a request has come twice");
            if (clients[i].up)
                die("a client has gone up whose satellite has got its request");
            clients[i].peer = at;
            p->client = i;
        }
}

static void end_peer(struct peer *p) {
    hang_up(&p->fd, &p->tls);
    free(p->heard);
    free(p->says);
    if (p->client >= 0)
        clients[p->client].peer = -2; /* it had one */
    p->live = false;
}

static void play_peer(int at) {
    struct peer *p = &peers[at];
    if (p->manner == CLOSES || time(NULL) > p->since + STUCK_S) {
        end_peer(p);
        return;
    }
    if (p->tls && !p->shaken) {
        int r = bp_tls_handshake(p->tls);
        p->shaken = r == 0;
        if (r < 0 && r != BP_TLS_WANT_READ && r != BP_TLS_WANT_WRITE)
            end_peer(p);
        return;
    }
    ssize_t got = get(p->fd, p->tls, p->heard + p->heard_bytes, MOST_BYTES - p->heard_bytes);
    p->heard_bytes += got > 0 ? (size_t)got : 0;
    find_client(at);
    if ((got == 0 || (got < 0 && got != -EAGAIN && got != BP_TLS_WANT_READ && (p->tls || errno != EAGAIN))) &&
        p->heard_bytes < MOST_BYTES) {
        end_peer(p);
        return;
    }
    if (p->manner != HANGS && p->said < p->says_bytes) {
        ssize_t r = put(p->fd, p->tls, p->says + p->said, p->says_bytes - p->said);
        p->said += r > 0 ? (size_t)r : 0;
    }
    if (p->manner == ENDS_LATE && p->said == p->says_bytes)
        end_peer(p);
}

static void commit(struct client *c, bp_stream *stream) {
    const struct bp_lane_facts *facts = bp_lane_facts(stream);
    if (facts->why != BP_ENTERED || c->committed || c->up)
        die("committed twice, or after it went up");
    if (facts->gate >= GATES_MOST || shut[facts->gate] || facts->generation < generation)
        die("committed by what has ended");
    if (c->kind == WRONG || c->kind == SILENT)
        die("committed, and should not be");
    c->stream = stream;
    c->committed = true;
    c->cut_in = pick(10) ? 0 : 1 + pick(5);
    committed_count++;
    bp_opener_forget(c->opening);
    c->opening = NULL;
}

static struct client *client_by(bp_stream *stream, bool first) {
    for (int i = 0; i < AT_ONCE; i++)
        if (clients[i].live && (first ? clients[i].opening && clients[i].opening == bp_lane_facts(stream)->opening
                                      : clients[i].stream == stream))
            return &clients[i];
    die("news of a stream that there is not");
    return NULL;
}

/* What was told has changed: from now on nobody may be committed by what it was. */
static void hear_of_committed(void) {
    for (bp_stream *stream; (stream = bp_joiner_take_committed(joiner));)
        commit(client_by(stream, true), stream);
    bp_joiner_look(joiner);
}

static void open_gate(unsigned satellite) {
    static const uint8_t loopback[4] = {127, 0, 0, 1};
    struct bp_gate_facts facts = {.number = next_gate, .satellite = {1, 1, "o", {(char)('a' + satellite)}}};
    facts.until_us = INT64_MAX;
    facts.address_bytes = 4;
    memcpy(facts.address, loopback, 4);
    facts.port = ports[satellite];
    facts.wants_tls = satellite >= TLS_FROM;
    facts.tls = facts.wants_tls ? client_ctx : NULL;
    facts.server_name = "box.internal";
    facts.owned = pick(2);
    facts.uid = getuid();
    if (bp_gate_open(admission, &facts) < 0)
        die("bp_gate_open");
    gate_of[satellite] = next_gate++;
}

static void tell_table(void) {
    uint8_t digest[BP_DIGEST_BYTES];
    uint64_t used;
    SHA256((const unsigned char *)"one", 3, digest);
    if (bp_admission_add_token(admission, digest, 0, 3, 0, "o/*") < 0)
        die("a token is refused");
    SHA256((const unsigned char *)"two", 3, digest);
    if (pick(3) && bp_admission_add_token(admission, digest, 0, pick(2), pick(2), "x/y\no/a\no/b*\no/c\no/d") < 0)
        die("a token is refused");
    bp_admission_take_table(admission, generation + 1, STREAMS, WINDOW);
    hear_of_committed();
    generation++;
    for (uint32_t payer = 0; payer < 4; payer++)
        if (bp_admission_credit(admission, payer, pick(10) ? UINT64_MAX : 3, &used) < 0)
            die("a credit is refused");
}

static void change(void) {
    unsigned satellite = pick(SATELLITES);
    switch (pick(8)) {
    case 0:
        tell_table();
        return;
    case 1:
        bp_admission_reset(admission);
        hear_of_committed();
        for (unsigned i = 0; i < SATELLITES; i++) {
            shut[gate_of[i]] = true;
            open_gate(i);
        }
        tell_table();
        return;
    case 2:
        if (bp_gate_trust(admission, gate_of[satellite], satellite >= TLS_FROM ? client_ctx : NULL, "box.internal") < 0)
            die("bp_gate_trust");
        bp_joiner_look(joiner);
        return;
    default:
        bp_gate_shut(admission, gate_of[satellite]);
        hear_of_committed();
        shut[gate_of[satellite]] = true;
        if (next_gate < GATES_MOST - SATELLITES)
            open_gate(satellite);
    }
}

static void check_up(struct client *c, const struct bp_news *news) {
    const struct bp_lane_facts *facts = bp_lane_facts(news->stream);
    up_by[facts->why]++;
    if (c->committed || c->peer != -1)
        die("up, and its satellite has got its request");
    if (news->data_bytes > c->sent_bytes || memcmp(news->data, c->sent, news->data_bytes) != 0)
        die("wrong bytes have come up");
    for (uint32_t i = 0; i < facts->removed_count; i++)
        if (facts->removed[i].bytes != HEADER_BYTES || facts->removed[i].at + HEADER_BYTES > news->data_bytes ||
            memcmp(news->data + facts->removed[i].at, "\0\0\0\4\1\0\0\0\0", HEADER_BYTES) != 0)
            die("what was removed is not the ACK");
}

static void released(struct client *c, const struct bp_news *news) {
    if (c->up || !(news->flags & BP_NEWS_JOINED) || c->kind == ABORTED) {
        if (c->up && pick(2))
            close(bp_stream_take_fd(c->stream));
        bp_stream_free(c->stream);
        c->failed = true;
    } else {
        if (bp_lane_splice(engine, c->stream, &c->splice) < 0)
            die("bp_lane_splice");
        spliced++;
    }
    c->stream = NULL;
}

static void take_news(void) {
    struct bp_news news;
    while (bp_joiner_take(joiner, &news)) {
        bool first = news.flags & (BP_NEWS_UP | BP_NEWS_COMMITTED);
        struct client *c = client_by(news.stream, first);
        if (news.flags & BP_NEWS_COMMITTED)
            commit(c, news.stream);
        if (news.flags & BP_NEWS_UP) {
            check_up(c, &news);
            c->up = true;
            c->stream = news.stream;
            bp_opener_forget(c->opening);
            c->opening = NULL;
            bp_stream_release(c->stream);
        }
        if (news.flags & BP_NEWS_RELEASED)
            released(c, &news);
    }
    bp_joiner_wake(joiner);
}

static void take_openings(void) {
    for (bp_opening *opening; (opening = bp_opener_take(opener));) {
        int i = 0;
        while (i < AT_ONCE && !(clients[i].live && clients[i].opening == opening))
            i++;
        if (i == AT_ONCE)
            die("an opening that there is not");
        if (pick(2))
            close(bp_opening_take_fd(opening));
        bp_opening_free(opening);
        clients[i].opening = NULL;
        clients[i].failed = clients[i].up = true;
    }
}

static void take_ended(void) {
    for (bp_splice *s; (s = bp_engine_take_ended(engine));) {
        for (int i = 0; i < AT_ONCE; i++)
            if (clients[i].live && clients[i].splice == s)
                clients[i].splice = NULL, clients[i].over = true;
        bp_splice_free(s);
    }
}

/* Whether each side has heard all that the other one has said. */
static bool is_complete(const struct client *c) {
    size_t ahead = c->spoken_to ? sizeof ours : 0;
    if (c->peer < 0 || c->said < c->says_bytes || (c->spoken_to && !c->acked))
        return false;
    const struct peer *p = &peers[c->peer];
    if (p->heard_bytes > c->says_bytes || memcmp(p->heard, c->says, p->heard_bytes) != 0)
        die("a satellite has got wrong bytes");
    if (c->heard_bytes > ahead + p->says_bytes ||
        (c->heard_bytes > ahead && memcmp(c->heard + ahead, p->says, c->heard_bytes - ahead) != 0))
        die("a client has got wrong bytes");
    return p->manner == HANGS ? p->heard_bytes == c->says_bytes
                              : p->heard_bytes == c->says_bytes && c->heard_bytes == ahead + p->says_bytes;
}

static void end_client(struct client *c) {
    if (c->peer >= 0) {
        peers[c->peer].client = -1;
        end_peer(&peers[c->peer]);
    }
    hang_up(&c->near, &c->tls);
    free(c->says);
    free(c->sent);
    free(c->heard);
    ended[c->kind]++;
    c->live = false;
}

static void run(unsigned count) {
    struct pollfd events[] = {{.fd = bp_joiner_event_fd(joiner), .events = POLLIN},
                              {.fd = bp_opener_event_fd(opener), .events = POLLIN}};
    unsigned begun = 0, live = 1;
    time_t until = time(NULL) + STUCK_S;
    while (begun < count || live) {
        live = 0;
        if (!pick(12))
            change();
        bp_joiner_pause(joiner, !pick(20));
        for (int i = 0; i < AT_ONCE; i++) {
            struct client *c = &clients[i];
            if (!c->live && begun < count && !pick(4)) {
                begin(c);
                begun++;
            }
            if (!c->live)
                continue;
            live++;
            play_client(c);
            if (c->splice && (is_complete(c) || c->near < 0 || c->peer == -2))
                hang_up(&c->near, &c->tls);
            if (c->failed || c->over) {
                end_client(c);
                until = time(NULL) + STUCK_S;
            }
        }
        for (unsigned i = 0; i < SATELLITES; i++)
            new_peer(i);
        for (int i = 0; i < 8 * AT_ONCE; i++)
            if (peers[i].live)
                play_peer(i);
        (void)poll(events, 2, 1);
        take_openings();
        take_news();
        take_ended();
        if (time(NULL) > until)
            die("a client is lost");
    }
}

static void listen_all(void) {
    for (unsigned i = 0; i < SATELLITES; i++) {
        struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
        socklen_t bytes = sizeof name;
        listeners[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (listeners[i] < 0 || bind(listeners[i], (struct sockaddr *)&name, sizeof name) < 0 ||
            listen(listeners[i], 256) < 0 || getsockname(listeners[i], (struct sockaddr *)&name, &bytes) < 0)
            die("listen");
        ports[i] = ntohs(name.sin_port);
    }
}

static void start(void) {
    static struct bp_greeting_limits limits;
    static const double most[BP_LIMITS] = {0, 16384, 8,    32768, 3,    32,  65536, 64,   10, 49152, 100,
                                           2, 5,     4096, 65535, 1000, 100, 2000,  1000, 10, 2};
    const struct bp_options options = {.threads = 2};
    memcpy(limits.most, most, sizeof most);
    const struct bp_lane_options lanes = {NULL, &limits, 100, 8, REQUEST_MS, REACH_MS, JOIN_MS};
    struct bp_lane_options wanted = lanes;
    const unsigned char entries[12] = {0, 3, 0, 0, 0, STREAMS, 0, 4, 0, 0, WINDOW >> 8, WINDOW & 255};
    frame((char *)ours, 4, 0, 0, entries, sizeof entries);
    if (bp_admission_new(&admission) < 0 || bp_joiner_new(&joiner) < 0 || bp_opener_new(2, 16384, &opener) < 0 ||
        bp_engine_new(&options, &engine) < 0)
        die("start");
    wanted.admission = admission;
    if (bp_joiner_admit(joiner, &wanted) < 0)
        die("bp_joiner_admit");
    for (unsigned i = 0; i < SATELLITES; i++)
        open_gate(i);
    tell_table();
}

int main(int count, char **arguments) {
    storm_begin(count, arguments);
    listen_all();
    start();
    run((unsigned)atoi(arguments[1]));
    for (int i = 0; i < LEFT; i++) /* all ends with clients under way */
        begin(&clients[i]);
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < LEFT; i++)
            play_client(&clients[i]);
    bp_opener_free(opener);
    bp_joiner_free(joiner);
    bp_engine_free(engine);
    bp_admission_free(admission);
    for (int i = 0; i < AT_ONCE; i++)
        if (clients[i].live)
            end_client(&clients[i]);
    for (int i = 0; i < 8 * AT_ONCE; i++)
        if (peers[i].live)
            end_peer(&peers[i]);
    for (unsigned i = 0; i < SATELLITES; i++)
        close(listeners[i]);
    storm_end();
    for (int kind = 0; kind < KINDS; kind++)
        printf("%s %u\n", names[kind], ended[kind]);
    printf("committed %u\nspliced %u\n", committed_count, spliced);
    for (int why = 0; why <= BP_STOPPED; why++)
        printf("up%d %u\n", why, up_by[why]);
    return 0;
}
