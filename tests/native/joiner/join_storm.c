/* Gives a joiner COUNT pairs of a client and a satellite, of every kind, and checks every byte that comes out on either side.
 *
 *   join_storm COUNT SEED CERTIFICATE KEY CA
 * A wrong byte, a stream that is lost, or a descriptor that is left ends the program with 1.
 */
#include "storm.h"

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define AT_ONCE 32
#define MOST_BYTES 60000
#define HEADER_BYTES 9
#define LEFT 16
#define PATIENT_MS 600000

enum kind { HONEST, OWES_ACK, CLIENT_LEAVES, SATELLITE_LEAVES, BAD_FRAME, LATE, STOPPED, NOT_JOINED, KINDS };
static const char *const names[KINDS] = {"honest",    "owes_ack", "client_leaves", "satellite_leaves",
                                         "bad_frame", "late",     "stopped",       "not_joined"};

struct end { /* what a peer says and hears */
    int near, far; /* the peer's socket, and the joiner's; -1 when closed */
    bp_tls *tls; /* the peer's, or NULL */
    bool shaken;
    char *says;
    size_t says_bytes, said;
    char *heard;
    size_t heard_bytes;
    bp_stream *stream;
    char *seen; /* what the joiner has told of it */
    size_t seen_bytes;
    bool released;
};

struct pair {
    bool live;
    enum kind kind;
    struct end client, satellite;
    char *passes; /* the client's bytes without its ACK */
    size_t passes_bytes;
    bool ack_owed, connected, joining;
    unsigned join_in, stop_in;
};

static struct pair pairs[AT_ONCE];
static unsigned ended[KINDS];

static ssize_t end_read(struct end *e, char *buffer, size_t bytes) {
    return e->tls ? bp_tls_read(e->tls, buffer, bytes) : recv(e->near, buffer, bytes, MSG_DONTWAIT);
}

static size_t frame(char *at, unsigned kind, unsigned flags, size_t payload) {
    const unsigned char header[HEADER_BYTES] = {(unsigned char)(payload >> 16), (unsigned char)(payload >> 8),
                                                (unsigned char)payload, (unsigned char)kind, (unsigned char)flags};
    memcpy(at, header, HEADER_BYTES);
    for (size_t i = 0; i < payload; i++)
        at[HEADER_BYTES + i] = (char)pick(256);
    return HEADER_BYTES + payload;
}

/* Frames of every size, with the ACK between two of them. */
static void write_client(struct pair *p) {
    struct end *e = &p->client;
    unsigned frames = 1 + pick(8), ack_at = pick(frames + 1);
    e->says = malloc(MOST_BYTES);
    p->passes = malloc(MOST_BYTES);
    e->heard = malloc(MOST_BYTES);
    e->seen = malloc(MOST_BYTES);
    for (unsigned i = 0; i <= frames; i++) {
        if (p->ack_owed && i == ack_at && p->kind == OWES_ACK)
            e->says_bytes += frame(e->says + e->says_bytes, 4, 1, 0);
        if (p->kind == BAD_FRAME && i == ack_at)
            e->says_bytes += frame(e->says + e->says_bytes, 4, 1, 6);
        if (i == frames)
            break;
        size_t bytes = frame(e->says + e->says_bytes, 0, 0, pick(pick(3) ? 100 : 6000));
        memcpy(p->passes + p->passes_bytes, e->says + e->says_bytes, bytes);
        p->passes_bytes += bytes;
        e->says_bytes += bytes;
    }
}

static void write_satellite(struct pair *p) {
    struct end *e = &p->satellite;
    e->says = malloc(MOST_BYTES);
    e->heard = malloc(MOST_BYTES);
    e->seen = malloc(MOST_BYTES);
    e->says_bytes = pick(pick(2) ? 200 : MOST_BYTES / 2);
    for (size_t i = 0; i < e->says_bytes; i++)
        e->says[i] = (char)pick(256);
}

/* The joiner's end of a client's TLS, after the handshake. */
static bp_tls *shake(struct end *e) {
    char error[256];
    bp_tls *ours = bp_tls_new(server_ctx, e->far, NULL, error, sizeof error);
    e->tls = bp_tls_new(client_ctx, e->near, "box.internal", error, sizeof error);
    bool done = false;
    if (!ours || !e->tls)
        die(error);
    while (!done || !e->shaken) {
        e->shaken = e->shaken || bp_tls_handshake(e->tls) == 0;
        done = done || bp_tls_handshake(ours) == 0;
    }
    return ours;
}

static void begin(bp_joiner *joiner, struct pair *p) {
    int client[2], satellite[2];
    char error[256];
    bp_tls *half = NULL;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, client) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, satellite) < 0)
        die("socketpair");
    *p = (struct pair){.live = true, .kind = (enum kind)pick(KINDS)};
    p->client.near = client[0], p->client.far = client[1];
    p->satellite.near = satellite[0], p->satellite.far = satellite[1];
    p->ack_owed = p->kind == OWES_ACK || p->kind == BAD_FRAME || p->kind == LATE || p->kind == CLIENT_LEAVES ||
                  p->kind == SATELLITE_LEAVES || p->kind == STOPPED;
    p->join_in = 1 + pick(30);
    p->stop_in = p->kind == STOPPED || p->kind == NOT_JOINED ? 1 + pick(60) : 0;
    write_client(p);
    write_satellite(p);
    bp_tls *ours = pick(2) ? shake(&p->client) : NULL;
    if (pick(2)) {
        half = bp_tls_new(client_ctx, p->satellite.far, "box.internal", error, sizeof error);
        p->satellite.tls = bp_tls_new(server_ctx, p->satellite.near, NULL, error, sizeof error);
        if (!half || !p->satellite.tls)
            die(error);
    }
    if (bp_stream_open(joiner, p->client.far, ours, &p->client.stream) < 0 ||
        bp_stream_connect(joiner, p->satellite.far, half, PATIENT_MS, &p->satellite.stream) < 0)
        die("a stream is refused");
    bp_stream_allow(p->client.stream, pick(3) ? pick(MOST_BYTES) : 0);
    bp_stream_allow(p->satellite.stream, pick(3) ? pick(MOST_BYTES) : 0);
}

static void hang_up(struct end *e) {
    bp_tls_free(e->tls);
    e->tls = NULL;
    if (e->near >= 0)
        close(e->near);
    e->near = -1;
}

static void play_end(struct end *e) {
    if (e->near < 0)
        return;
    if (e->tls && !e->shaken) {
        e->shaken = bp_tls_handshake(e->tls) == 0;
        return;
    }
    for (unsigned i = 0; i < 4 && e->said < e->says_bytes; i++) {
        size_t bytes = 1 + pick((unsigned)(e->says_bytes - e->said));
        ssize_t put = e->tls ? bp_tls_write(e->tls, e->says + e->said, e->says_bytes - e->said)
                             : send(e->near, e->says + e->said, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put <= 0)
            break;
        e->said += (size_t)put;
    }
    ssize_t got = end_read(e, e->heard + e->heard_bytes, MOST_BYTES - e->heard_bytes);
    e->heard_bytes += got > 0 ? (size_t)got : 0;
}

static void join(struct pair *p) {
    struct bp_join wanted = {
        .to_client = p->satellite.seen,
        .to_client_bytes = p->satellite.seen_bytes,
        .to_satellite = p->ack_owed ? NULL : p->client.seen,
        .to_satellite_bytes = p->ack_owed ? 0 : p->client.seen_bytes,
        .frames = p->ack_owed ? p->client.seen : NULL,
        .frames_bytes = p->ack_owed ? p->client.seen_bytes : 0,
        .ack_owed = p->ack_owed,
        .deadline_ms = p->kind == LATE ? 1 + pick(100) : PATIENT_MS,
    };
    p->joining = true;
    if (bp_stream_join(p->client.stream, p->satellite.stream, &wanted) < 0)
        die("bp_stream_join");
}

/* One step of both peers and of the caller. */
static void play(struct pair *p) {
    play_end(&p->client);
    play_end(&p->satellite);
    if (p->stop_in && --p->stop_in == 0) {
        bp_stream_release(p->client.stream);
        if (!p->joining)
            bp_stream_release(p->satellite.stream);
        p->join_in = 0;
        return;
    }
    if (p->join_in && p->connected && p->kind != NOT_JOINED && --p->join_in == 0)
        join(p);
    else if (!p->joining && !pick(4)) {
        bp_stream_allow(p->client.stream, pick(MOST_BYTES));
        bp_stream_allow(p->satellite.stream, pick(MOST_BYTES));
    }
    if (p->joining && p->kind == CLIENT_LEAVES && p->client.said == p->client.says_bytes)
        hang_up(&p->client);
    if (p->joining && p->kind == SATELLITE_LEAVES && p->satellite.said == p->satellite.says_bytes)
        hang_up(&p->satellite);
}

/* What the joiner has left of an end's bytes, and what the other end has heard, are all that it has said. */
static void check_rest(struct pair *p, struct end *from, struct end *to, const char *wanted, size_t bytes) {
    static char buffer[MOST_BYTES];
    bp_tls *tls = bp_stream_take_tls(from->stream);
    time_t until = time(NULL) + STUCK_S;
    size_t rest = 0;
    while (to->heard_bytes + rest < bytes) {
        ssize_t got = tls ? bp_tls_read(tls, buffer + rest, sizeof buffer - rest)
                          : recv(from->far, buffer + rest, sizeof buffer - rest, MSG_DONTWAIT);
        rest += got > 0 ? (size_t)got : 0;
        play_end(&p->client);
        play_end(&p->satellite);
        if (time(NULL) > until)
            die("bytes are lost");
    }
    if (to->heard_bytes + rest != bytes || memcmp(wanted, to->heard, to->heard_bytes) != 0 ||
        memcmp(wanted + to->heard_bytes, buffer, rest) != 0)
        die("a wrong byte");
    bp_tls_free(tls);
}

static void free_end(struct end *e) {
    bp_stream_free(e->stream);
    hang_up(e);
    close(e->far);
    free(e->says);
    free(e->heard);
    free(e->seen);
}

static void finish(struct pair *p, bool joined) {
    if (joined) {
        if (p->kind == BAD_FRAME || p->kind == LATE || p->kind == CLIENT_LEAVES || p->kind == SATELLITE_LEAVES)
            die("joined, and should not be");
        check_rest(p, &p->client, &p->satellite, p->passes, p->passes_bytes);
        check_rest(p, &p->satellite, &p->client, p->satellite.says, p->satellite.says_bytes);
    } else if (p->kind == HONEST || p->kind == OWES_ACK)
        die("not joined, and should be");
    free_end(&p->client);
    free_end(&p->satellite);
    free(p->passes);
    p->live = false;
    ended[p->kind]++;
}

static void note(struct pair *p, struct end *e, const struct bp_news *news) {
    if (p->joining && news->data_bytes)
        die("bytes are told that a join has");
    if (news->data_bytes && memcmp(e->says + e->seen_bytes, news->data, news->data_bytes) != 0)
        die("wrong bytes are told");
    if (news->data_bytes)
        memcpy(e->seen + e->seen_bytes, news->data, news->data_bytes);
    e->seen_bytes += news->data_bytes;
    p->connected = p->connected || (news->flags & BP_NEWS_CONNECTED);
    e->released = e->released || (news->flags & BP_NEWS_RELEASED);
}

static bool take_all(bp_joiner *joiner) {
    struct bp_news news;
    bool some = false;
    while (bp_joiner_take(joiner, &news)) {
        int i = 0;
        while (i < AT_ONCE &&
               (!pairs[i].live || (pairs[i].client.stream != news.stream && pairs[i].satellite.stream != news.stream)))
            i++;
        if (i == AT_ONCE)
            die("news of a stream that there is not");
        struct pair *p = &pairs[i];
        bool of_client = p->client.stream == news.stream;
        note(p, of_client ? &p->client : &p->satellite, &news);
        if (p->joining ? of_client && p->client.released : p->client.released && p->satellite.released)
            finish(p, news.flags & BP_NEWS_JOINED);
        some = true;
    }
    return some;
}

static void run(bp_joiner *joiner, unsigned count) {
    struct pollfd event = {.fd = bp_joiner_event_fd(joiner), .events = POLLIN};
    unsigned begun = 0, live = 1;
    time_t until = time(NULL) + STUCK_S;
    while (begun < count || live) {
        live = 0;
        if (!pick(20))
            bp_joiner_pause(joiner, pick(2) ? 1 : 0);
        else
            bp_joiner_pause(joiner, 0);
        for (int i = 0; i < AT_ONCE; i++) {
            if (!pairs[i].live && begun < count) {
                begin(joiner, &pairs[i]);
                begun++;
            }
            if (pairs[i].live) {
                live++;
                play(&pairs[i]);
            }
        }
        bp_joiner_wake(joiner);
        if (poll(&event, 1, 1) > 0 && take_all(joiner))
            until = time(NULL) + STUCK_S;
        if (time(NULL) > until)
            die("a pair never ends");
    }
}

int main(int count, char **arguments) {
    bp_joiner *joiner;
    storm_begin(count, arguments);
    if (bp_joiner_new(&joiner) < 0)
        die("bp_joiner_new");
    run(joiner, (unsigned)atoi(arguments[1]));
    for (int i = 0; i < LEFT; i++) { /* the joiner ends with pairs under way */
        begin(joiner, &pairs[i]);
        play(&pairs[i]);
        bp_joiner_wake(joiner);
    }
    bp_joiner_free(joiner);
    for (int i = 0; i < LEFT; i++) {
        pairs[i].client.stream = pairs[i].satellite.stream = NULL;
        free_end(&pairs[i].client);
        free_end(&pairs[i].satellite);
        free(pairs[i].passes);
    }
    storm_end();
    for (int kind = 0; kind < KINDS; kind++)
        printf("%s %u\n", names[kind], ended[kind]);
    return 0;
}
