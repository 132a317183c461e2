/* Gives an opener COUNT connections of every kind, honest, broken and aborted, and checks every byte that comes out.
 *
 *   storm COUNT SEED CERTIFICATE KEY CA
 * A wrong byte, an opening that is lost or comes twice, or a descriptor that is left ends the program with 1.
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

#define AT_ONCE 64
#define MOST_SAID 40000
#define FIRST_BYTES 16384
#define LEFT 32
#define RECORD_HANDSHAKE 0x16

enum kind { PLAIN, TLS, PLAIN_TO_TLS, GARBAGE, SILENT, GONE, HALF, KINDS };

struct connection {
    enum kind kind;
    int near, far; /* the peer's end, and the opener's; -1 when closed */
    bp_tls *tls;   /* the peer's */
    bool shaken;
    size_t said, says;
    unsigned abort_in; /* rounds until it is aborted; 0: never */
    bp_opening *opening;
};

static struct connection connections[AT_ONCE];
static char pattern[MOST_SAID];
static unsigned ended[KINDS], done[KINDS];

static void begin(bp_opener *opener, struct connection *c) {
    int pair[2];
    char error[256];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        die("socketpair");
    *c = (struct connection){.kind = (enum kind)pick(KINDS), .near = pair[0], .far = pair[1]};
    c->says = 1 + pick(pick(2) ? 100 : MOST_SAID);
    c->abort_in = c->kind == SILENT ? 1 + pick(20) : pick(4) ? 0 : 1 + pick(20);
    if (c->kind == TLS || c->kind == HALF) {
        c->tls = bp_tls_new(client_ctx, c->near, "localhost", error, sizeof error);
        if (!c->tls)
            die(error);
    }
    if (bp_opener_start(opener, c->far, c->kind == PLAIN ? NULL : server_ctx, &c->opening) < 0)
        die("bp_opener_start");
}

static void hang_up(struct connection *c) {
    bp_tls_free(c->tls);
    c->tls = NULL;
    if (c->near >= 0)
        close(c->near);
    c->near = -1;
}

static void say(struct connection *c) {
    while (c->said < c->says) {
        ssize_t put = c->tls ? bp_tls_write(c->tls, pattern + c->said, c->says - c->said)
                             : send(c->near, pattern + c->said, c->says - c->said, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put <= 0)
            return;
        c->said += (size_t)put;
    }
}

static void say_garbage(const struct connection *c) {
    char garbage[64] = {RECORD_HANDSHAKE};
    for (size_t i = 1; i < sizeof garbage; i++)
        garbage[i] = (char)pick(256);
    (void)!send(c->near, garbage, 1 + pick(sizeof garbage), MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* One step of the peer. */
static void play(struct connection *c) {
    if (c->abort_in && --c->abort_in == 0)
        bp_opening_abort(c->opening);
    if (c->near < 0)
        return;
    switch (c->kind) {
    case TLS:
        c->shaken = c->shaken || bp_tls_handshake(c->tls) == 0;
        if (c->shaken)
            say(c);
        break;
    case HALF:
        (void)!bp_tls_handshake(c->tls);
        hang_up(c);
        break;
    case PLAIN:
    case PLAIN_TO_TLS:
        say(c);
        break;
    case GARBAGE:
        say_garbage(c);
        if (!pick(3))
            hang_up(c);
        break;
    case GONE:
        hang_up(c);
        break;
    default:
        break;
    }
}

/* Reads the rest of what the peer says, behind the first bytes. */
static void read_rest(struct connection *c, bp_tls *tls, size_t at) {
    static char buffer[MOST_SAID];
    time_t until = time(NULL) + STUCK_S;
    while (at < c->says) {
        ssize_t got = tls ? bp_tls_read(tls, buffer, sizeof buffer) : recv(c->far, buffer, sizeof buffer, MSG_DONTWAIT);
        if (got > 0 && (at + (size_t)got > c->says || memcmp(buffer, pattern + at, (size_t)got) != 0))
            die("a wrong byte");
        at += got > 0 ? (size_t)got : 0;
        play(c);
        if (got == 0 || time(NULL) > until)
            die("bytes are lost");
    }
}

static void finish(struct connection *c, bp_opening *opening) {
    struct bp_opened opened;
    bp_opening_read(opening, &opened);
    ended[c->kind]++;
    c->abort_in = 0;
    if (opened.step == BP_OPENING_DONE) {
        bool begins_tls = c->kind == GARBAGE || c->kind == HALF || c->kind == GONE || c->kind == SILENT;
        bp_tls *tls = bp_opening_take_tls(opening);
        done[c->kind]++;
        if (begins_tls || (c->kind == TLS) != (tls != NULL))
            die("opened, and should not be");
        if (!opened.first_bytes || opened.first_bytes > FIRST_BYTES ||
            memcmp(opened.first, pattern, opened.first_bytes) != 0)
            die("wrong first bytes");
        read_rest(c, tls, opened.first_bytes);
        bp_tls_free(tls);
    } else if (opened.result > 0 || opened.first)
        die("failed, and has bytes");
    bp_opening_free(opening);
    c->opening = NULL;
    hang_up(c);
    close(c->far);
}

static bool take_all(bp_opener *opener) {
    bool some = false;
    bp_opening *opening;
    while ((opening = bp_opener_take(opener))) {
        int i = 0;
        while (i < AT_ONCE && connections[i].opening != opening)
            i++;
        if (i == AT_ONCE)
            die("an opening that there is not");
        finish(&connections[i], opening);
        some = true;
    }
    return some;
}

static void run(bp_opener *opener, unsigned count) {
    struct pollfd event = {.fd = bp_opener_event_fd(opener), .events = POLLIN};
    unsigned begun = 0, open = 1;
    time_t until = time(NULL) + STUCK_S;
    while (begun < count || open) {
        open = 0;
        if (!pick(50))
            bp_opener_limit(opener, pick(2) ? 0 : 2000);
        for (int i = 0; i < AT_ONCE; i++) {
            if (!connections[i].opening && begun < count) {
                begin(opener, &connections[i]);
                begun++;
            }
            if (connections[i].opening) {
                open++;
                play(&connections[i]);
            }
        }
        if (poll(&event, 1, 1) > 0 && take_all(opener))
            until = time(NULL) + STUCK_S;
        if (time(NULL) > until)
            die("an opening never ends");
    }
}

int main(int count, char **arguments) {
    bp_opener *opener;
    storm_begin(count, arguments);
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (char)('a' + i % 23);
    if (bp_opener_new(3, FIRST_BYTES, &opener) < 0)
        die("bp_opener_new");
    run(opener, (unsigned)atoi(arguments[1]));
    for (int i = 0; i < LEFT; i++) /* the opener ends with openings under way */
        begin(opener, &connections[i]);
    bp_opener_free(opener);
    for (int i = 0; i < LEFT; i++) {
        hang_up(&connections[i]);
        close(connections[i].far);
    }
    storm_end();
    for (int kind = 0; kind < KINDS; kind++)
        printf("%u %u\n", ended[kind], done[kind]);
    return 0;
}
