/* Start-up self-test of kTLS: a sandboxed kernel may accept the options and send plaintext, and kernels from 5.15 to
 * mid-2026 drop bytes when a record does not fit into the pipe ("net: tls: fix silent data drop under pipe
 * back-pressure"). So nothing is believed that was not seen on a connection of our own. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TEST_BYTES 40000       /* more than two records, and not a multiple of one */
#define TINY_PIPE_BYTES 4096   /* one slot: a full record with its header and tag has two fragments at least */
#define STEP_MS 200            /* longest wait for the loopback */
#define HANDSHAKE_STEPS 20
#define APPLICATION_DATA 0x17  /* RFC 8446 section 5.1 */

struct bench {
    SSL_CTX *server_ctx, *client_ctx;
    SSL *server, *client;
    int server_fd, client_fd;
    int pipe[2];
    struct ktls_out out;
    unsigned char sent[TEST_BYTES], received[TEST_BYTES];
};

static int use_throwaway_certificate(SSL_CTX *ctx) {
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    int done = key && certificate && X509_set_version(certificate, X509_VERSION_3) == 1 &&
               ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1) == 1 &&
               X509_gmtime_adj(X509_getm_notBefore(certificate), -60) != NULL &&
               X509_gmtime_adj(X509_getm_notAfter(certificate), 3600) != NULL &&
               X509_set_pubkey(certificate, key) == 1 && X509_sign(certificate, key, EVP_sha256()) > 0 &&
               SSL_CTX_use_certificate(ctx, certificate) == 1 && SSL_CTX_use_PrivateKey(ctx, key) == 1;
    X509_free(certificate);
    EVP_PKEY_free(key);
    return done ? 0 : -EIO;
}

static int connect_pair(struct bench *b) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof name;
    const int on = 1;
    int r = 0, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    b->client_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || b->client_fd < 0 || bind(listener, (struct sockaddr *)&name, bytes) < 0 ||
        listen(listener, 1) < 0 || getsockname(listener, (struct sockaddr *)&name, &bytes) < 0 ||
        connect(b->client_fd, (struct sockaddr *)&name, bytes) < 0 ||
        (b->server_fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0 ||
        fcntl(b->client_fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(b->server_fd, F_SETFL, O_NONBLOCK) < 0)
        r = -errno;
    (void)setsockopt(b->client_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(b->server_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (listener >= 0)
        (void)close(listener);
    return r;
}

static int shake_hands(struct bench *b) {
    b->server = SSL_new(b->server_ctx);
    b->client = SSL_new(b->client_ctx);
    if (!b->server || !b->client || SSL_set_fd(b->server, b->server_fd) != 1 ||
        SSL_set_fd(b->client, b->client_fd) != 1)
        return -ENOMEM;
    SSL_set_accept_state(b->server);
    SSL_set_connect_state(b->client);
    for (int i = 0; i < HANDSHAKE_STEPS; i++) {
        int client = SSL_do_handshake(b->client), server = SSL_do_handshake(b->server);
        if (client == 1 && server == 1)
            return 0;
        struct pollfd wait[2] = {{.fd = b->client_fd, .events = POLLIN}, {.fd = b->server_fd, .events = POLLIN}};
        if (poll(wait, 2, STEP_MS) <= 0)
            break;
    }
    return -EPROTO;
}

static bool wait_for(int fd, short events) {
    struct pollfd wait = {.fd = fd, .events = events};
    return poll(&wait, 1, STEP_MS) == 1;
}

/* Bytes go pipe -> kernel TLS -> wire -> OpenSSL, and it can be told when the kernel has passed all of them on. */
static bool tx_works(struct bench *b) {
    size_t at = 0, in_pipe = 0, received = 0;
    unsigned char first = 0;
    while (received < TEST_BYTES) {
        if (at < TEST_BYTES && in_pipe == 0) {
            ssize_t put = write(b->pipe[1], b->sent + at, TEST_BYTES - at > 4096 ? 4096 : TEST_BYTES - at);
            if (put <= 0)
                return false;
            at += (size_t)put;
            in_pipe = (size_t)put;
        }
        ssize_t moved = in_pipe ? splice(b->pipe[0], NULL, b->server_fd, NULL, in_pipe, SPLICE_F_NONBLOCK) : 0;
        if (moved < 0 && errno != EAGAIN)
            return false;
        in_pipe -= moved > 0 ? (size_t)moved : 0;
        b->out.payload_bytes += moved > 0 ? (size_t)moved : 0;
        if (!wait_for(b->client_fd, POLLIN))
            return false;
        if (!received && (recv(b->client_fd, &first, 1, MSG_PEEK) != 1 || first != APPLICATION_DATA))
            return false;
        int got = SSL_read(b->client, b->received + received, (int)(TEST_BYTES - received));
        if (got <= 0 && SSL_get_error(b->client, got) != SSL_ERROR_WANT_READ)
            return false;
        received += got > 0 ? (size_t)got : 0;
    }
    return memcmp(b->sent, b->received, TEST_BYTES) == 0 && bp__ktls_out_drained(&b->out, b->server_fd);
}

/* Bytes go OpenSSL -> wire -> kernel TLS -> a pipe that a record does not fit into. */
static bool rx_works(struct bench *b) {
    size_t sent = 0, received = 0;
    while (received < TEST_BYTES) {
        int put = sent < TEST_BYTES ? SSL_write(b->client, b->sent + sent, (int)(TEST_BYTES - sent)) : 0;
        sent += put > 0 ? (size_t)put : 0;
        if (!wait_for(b->server_fd, POLLIN))
            return false; /* what is missing was dropped */
        ssize_t moved = splice(b->server_fd, NULL, b->pipe[1], NULL, TEST_BYTES, SPLICE_F_NONBLOCK);
        if (moved < 0 && errno == EAGAIN)
            continue;
        if (moved <= 0)
            return false;
        while (moved > 0) {
            ssize_t got = read(b->pipe[0], b->received + received, (size_t)moved);
            if (got <= 0)
                return false;
            received += (size_t)got;
            moved -= got;
        }
    }
    return memcmp(b->sent, b->received, TEST_BYTES) == 0;
}

static int run_version(struct bench *b, int version, char *words, size_t bytes) {
    int kernel = 0, usable = 0;
    int r = connect_pair(b);
    SSL_CTX *both[] = {b->server_ctx, b->client_ctx}; /* whatever openssl.cnf has as its defaults */
    for (int i = 0; i < 2; i++) {
        SSL_CTX_set_min_proto_version(both[i], version);
        SSL_CTX_set_max_proto_version(both[i], version);
    }
    if (r == 0)
        r = shake_hands(b);
    if (r == 0 && (pipe2(b->pipe, O_CLOEXEC | O_NONBLOCK) < 0 || fcntl(b->pipe[1], F_SETPIPE_SZ, TINY_PIPE_BYTES) < 0))
        r = -errno;
    const char *name = version == TLS1_3_VERSION ? "TLS 1.3" : "TLS 1.2";
    if (r < 0) {
        snprintf(words, bytes, "%s: the self-test could not run: %s", name, strerror(-r));
        return r;
    }
    kernel |= BIO_get_ktls_send(SSL_get_wbio(b->server)) ? BP_KTLS_TX : 0;
    kernel |= BIO_get_ktls_recv(SSL_get_rbio(b->server)) ? BP_KTLS_RX : 0;
    if (kernel & BP_KTLS_TX)
        bp__ktls_out_begin(&b->out, b->server_fd);
    usable |= (kernel & BP_KTLS_TX) && tx_works(b) ? BP_KTLS_TX : 0;
    usable |= (kernel & BP_KTLS_RX) && rx_works(b) ? BP_KTLS_RX : 0;
    static const char *const say[2][2] = {{"not offered", "never"}, {"refused: it failed the self-test", "works"}};
    snprintf(words, bytes, "%s: send %s, receive %s", name, say[!!(kernel & BP_KTLS_TX)][!!(usable & BP_KTLS_TX)],
             say[!!(kernel & BP_KTLS_RX)][!!(usable & BP_KTLS_RX)]);
    /* What is not offered on this version does no harm; what is offered and broken does. */
    return usable | (~kernel & (BP_KTLS_TX | BP_KTLS_RX)) << 2;
}

static void close_bench(struct bench *b) {
    SSL_free(b->server);
    SSL_free(b->client);
    b->server = b->client = NULL;
    int *fds[] = {&b->server_fd, &b->client_fd, &b->pipe[0], &b->pipe[1]};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0)
            (void)close(*fds[i]);
        *fds[i] = -1;
    }
}

int bp_ktls_self_test(char *words, size_t bytes) {
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
    char found[2][128] = {"", ""};
    int usable = 0, broken = 0, r = 0;
    struct bench *b = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    b->server_fd = b->client_fd = b->pipe[0] = b->pipe[1] = -1;
    for (size_t i = 0; i < TEST_BYTES; i++)
        b->sent[i] = (unsigned char)(i * 2654435761u >> 13);
    b->server_ctx = SSL_CTX_new(TLS_server_method());
    b->client_ctx = SSL_CTX_new(TLS_client_method());
    if (!b->server_ctx || !b->client_ctx)
        r = -ENOMEM;
    else
        r = use_throwaway_certificate(b->server_ctx);
#ifdef SSL_OP_ENABLE_KTLS
    if (r == 0) {
        SSL_CTX_set_options(b->server_ctx, SSL_OP_ENABLE_KTLS);
        SSL_CTX_set_num_tickets(b->server_ctx, 0);
    }
#endif
    for (int i = 0; i < 2 && r >= 0; i++) {
        r = run_version(b, versions[i], found[i], sizeof found[i]);
        close_bench(b);
        if (r >= 0) {
            usable |= r & 3;
            broken |= ~(r | r >> 2) & 3;
        }
    }
    close_bench(b);
    SSL_CTX_free(b->server_ctx);
    SSL_CTX_free(b->client_ctx);
    free(b);
    snprintf(words, bytes, "%s; %s", found[0], found[1]);
    return r < 0 ? r : usable & ~broken;
}
