/* Start-up self-test of kTLS. A sandboxed kernel may accept the options and send plaintext, and kernels from 5.15 to
 * mid-2026 drop bytes when a record does not fit into the pipe ("net: tls: fix silent data drop under pipe
 * back-pressure"). So the engine uses only what has worked on a connection of its own. */
#include "check.h"

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
#define BOTH_DIRECTIONS (BP_KTLS_TX | BP_KTLS_RX)
#define NOT_OFFERED 2 /* test_version() shifts the directions that the kernel does not do by so many bits */

struct self_test {
    SSL_CTX *server_ctx, *client_ctx;
    SSL *server, *client;
    int server_fd, client_fd;
    int pipe[2];
    struct ktls_out out;
    unsigned char sent[TEST_BYTES], received[TEST_BYTES];
};

/**
 * use_throwaway_certificate() - Make a certificate with its key and use it; nothing verifies it
 * @ctx: OpenSSL's context of the server
 *
 * Return: 0, or -EIO
 * Thread: one
 */
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

/**
 * connect_pair() - Connect a client and a server over loopback
 * @test: Receives both sockets, non-blocking
 *
 * Return: 0, or a negative errno; close_pair() closes what was opened
 * Thread: one
 */
static int connect_pair(struct self_test *test) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof name;
    const int on = 1;
    int r = 0, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    test->client_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || test->client_fd < 0 || bind(listener, (struct sockaddr *)&name, bytes) < 0 ||
        listen(listener, 1) < 0 || getsockname(listener, (struct sockaddr *)&name, &bytes) < 0 ||
        connect(test->client_fd, (struct sockaddr *)&name, bytes) < 0 ||
        (test->server_fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0 ||
        fcntl(test->client_fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(test->server_fd, F_SETFL, O_NONBLOCK) < 0)
        r = -errno;
    (void)setsockopt(test->client_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(test->server_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (listener >= 0)
        (void)close(listener);
    return r;
}

/**
 * shake_hands() - Do the TLS handshake of the pair
 * @test: The pair, connected
 *
 * Return: 0, or a negative errno
 * Thread: one
 */
static int shake_hands(struct self_test *test) {
    test->server = SSL_new(test->server_ctx);
    test->client = SSL_new(test->client_ctx);
    if (!test->server || !test->client || SSL_set_fd(test->server, test->server_fd) != 1 ||
        SSL_set_fd(test->client, test->client_fd) != 1)
        return -ENOMEM;
    SSL_set_accept_state(test->server);
    SSL_set_connect_state(test->client);
    for (int i = 0; i < HANDSHAKE_STEPS; i++) {
        int client = SSL_do_handshake(test->client), server = SSL_do_handshake(test->server);
        if (client == 1 && server == 1)
            return 0;
        struct pollfd wait[2] = {{.fd = test->client_fd, .events = POLLIN}, {.fd = test->server_fd, .events = POLLIN}};
        if (poll(wait, 2, STEP_MS) <= 0)
            break;
    }
    return -EPROTO;
}

/**
 * wait_for() - Wait for an event, for STEP_MS at most
 * @fd: Borrows
 * @events: As in poll(2)
 *
 * Return: whether it came
 * Thread: one
 */
static bool wait_for(int fd, short events) {
    struct pollfd wait = {.fd = fd, .events = events};
    return poll(&wait, 1, STEP_MS) == 1;
}

/**
 * tx_works() - Test the direction pipe -> kernel TLS -> wire -> OpenSSL
 * @test: The pair, after its handshake
 *
 * Return: whether the bytes arrive encrypted and unchanged, and the kernel tells when it has passed all of them on
 * Thread: one
 */
static bool tx_works(struct self_test *test) {
    size_t at = 0, in_pipe = 0, received = 0;
    unsigned char first = 0;
    while (received < TEST_BYTES) {
        if (at < TEST_BYTES && in_pipe == 0) {
            ssize_t put = write(test->pipe[1], test->sent + at, TEST_BYTES - at > 4096 ? 4096 : TEST_BYTES - at);
            if (put <= 0)
                return false;
            at += (size_t)put;
            in_pipe = (size_t)put;
        }
        ssize_t moved = in_pipe ? splice(test->pipe[0], NULL, test->server_fd, NULL, in_pipe, SPLICE_F_NONBLOCK) : 0;
        if (moved < 0 && errno != EAGAIN)
            return false;
        in_pipe -= moved > 0 ? (size_t)moved : 0;
        test->out.payload_bytes += moved > 0 ? (size_t)moved : 0;
        if (!wait_for(test->client_fd, POLLIN))
            return false;
        if (!received && (recv(test->client_fd, &first, 1, MSG_PEEK) != 1 || first != APPLICATION_DATA))
            return false;
        int got = SSL_read(test->client, test->received + received, (int)(TEST_BYTES - received));
        if (got <= 0 && SSL_get_error(test->client, got) != SSL_ERROR_WANT_READ)
            return false;
        received += got > 0 ? (size_t)got : 0;
    }
    return memcmp(test->sent, test->received, TEST_BYTES) == 0 && bp__ktls_out_drained(&test->out, test->server_fd);
}

/**
 * rx_works() - Test the direction OpenSSL -> wire -> kernel TLS -> a pipe that a record does not fit into
 * @test: The pair, after its handshake
 *
 * Return: whether the bytes arrive unchanged
 * Thread: one
 */
static bool rx_works(struct self_test *test) {
    size_t sent = 0, received = 0;
    while (received < TEST_BYTES) {
        int put = sent < TEST_BYTES ? SSL_write(test->client, test->sent + sent, (int)(TEST_BYTES - sent)) : 0;
        sent += put > 0 ? (size_t)put : 0;
        if (!wait_for(test->server_fd, POLLIN))
            return false; /* what is missing was dropped */
        ssize_t moved = splice(test->server_fd, NULL, test->pipe[1], NULL, TEST_BYTES, SPLICE_F_NONBLOCK);
        if (moved < 0 && errno == EAGAIN)
            continue;
        if (moved <= 0)
            return false;
        while (moved > 0) {
            ssize_t got = read(test->pipe[0], test->received + received, (size_t)moved);
            if (got <= 0)
                return false;
            received += (size_t)got;
            moved -= got;
        }
    }
    return memcmp(test->sent, test->received, TEST_BYTES) == 0;
}

/**
 * test_version() - Test both directions with one version of TLS
 * @test: What to test with; close_pair() closes what was opened
 * @version: TLS1_2_VERSION or TLS1_3_VERSION
 * @message: Receives what was found
 * @bytes: Size of @message
 *
 * Return: directions that work, and, shifted by NOT_OFFERED, those that the kernel does not do; or a negative errno
 * Thread: one
 */
static int test_version(struct self_test *test, int version, char *message, size_t bytes) {
    int kernel = 0, usable = 0;
    int r = connect_pair(test);
    SSL_CTX *both[] = {test->server_ctx, test->client_ctx}; /* openssl.cnf may have other defaults */
    for (int i = 0; i < 2; i++) {
        SSL_CTX_set_min_proto_version(both[i], version);
        SSL_CTX_set_max_proto_version(both[i], version);
    }
    if (r == 0)
        r = shake_hands(test);
    if (r == 0 &&
        (pipe2(test->pipe, O_CLOEXEC | O_NONBLOCK) < 0 || fcntl(test->pipe[1], F_SETPIPE_SZ, TINY_PIPE_BYTES) < 0))
        r = -errno;
    const char *name = version == TLS1_3_VERSION ? "TLS 1.3" : "TLS 1.2";
    if (r < 0) {
        snprintf(message, bytes, "%s: the self-test could not run: %s", name, strerror(-r));
        return r;
    }
    kernel |= BIO_get_ktls_send(SSL_get_wbio(test->server)) ? BP_KTLS_TX : 0;
    kernel |= BIO_get_ktls_recv(SSL_get_rbio(test->server)) ? BP_KTLS_RX : 0;
    if (kernel & BP_KTLS_TX)
        bp__ktls_out_begin(&test->out, test->server_fd);
    usable |= (kernel & BP_KTLS_TX) && tx_works(test) ? BP_KTLS_TX : 0;
    usable |= (kernel & BP_KTLS_RX) && rx_works(test) ? BP_KTLS_RX : 0;
    static const char *const finding[2][2] = {{"not offered", "never"}, {"refused: it failed the self-test", "works"}};
    snprintf(message, bytes, "%s: send %s, receive %s", name, finding[!!(kernel & BP_KTLS_TX)][!!(usable & BP_KTLS_TX)],
             finding[!!(kernel & BP_KTLS_RX)][!!(usable & BP_KTLS_RX)]);
    BP_ASSERT(!(usable & ~kernel));
    /* A direction that the kernel does not do with this version does no harm; one that it does wrongly would. */
    return usable | (~kernel & BOTH_DIRECTIONS) << NOT_OFFERED;
}

/**
 * close_pair() - Close the connection and the pipe of a test
 * @test: The pair; can be connected again
 *
 * Thread: one
 */
static void close_pair(struct self_test *test) {
    SSL_free(test->server);
    SSL_free(test->client);
    test->server = test->client = NULL;
    int *fds[] = {&test->server_fd, &test->client_fd, &test->pipe[0], &test->pipe[1]};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0)
            (void)close(*fds[i]);
        *fds[i] = -1;
    }
}

int bp_ktls_self_test(char *message, size_t bytes) {
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
    char found[2][128] = {"", ""};
    int usable = 0, broken = 0, r = 0;
    struct self_test *test = calloc(1, sizeof *test);
    if (!test)
        return -ENOMEM;
    test->server_fd = test->client_fd = test->pipe[0] = test->pipe[1] = -1;
    for (size_t i = 0; i < TEST_BYTES; i++)
        test->sent[i] = (unsigned char)(i * 2654435761u >> 13);
    test->server_ctx = SSL_CTX_new(TLS_server_method());
    test->client_ctx = SSL_CTX_new(TLS_client_method());
    if (!test->server_ctx || !test->client_ctx)
        r = -ENOMEM;
    else
        r = use_throwaway_certificate(test->server_ctx);
#ifdef SSL_OP_ENABLE_KTLS
    if (r == 0) {
        SSL_CTX_set_options(test->server_ctx, SSL_OP_ENABLE_KTLS);
        SSL_CTX_set_num_tickets(test->server_ctx, 0);
    }
#endif
    for (int i = 0; i < 2 && r >= 0; i++) {
        r = test_version(test, versions[i], found[i], sizeof found[i]);
        close_pair(test);
        if (r >= 0) {
            usable |= r & BOTH_DIRECTIONS;
            broken |= ~(r | r >> NOT_OFFERED) & BOTH_DIRECTIONS;
        }
    }
    close_pair(test);
    SSL_CTX_free(test->server_ctx);
    SSL_CTX_free(test->client_ctx);
    free(test);
    snprintf(message, bytes, "%s; %s", found[0], found[1]);
    return r < 0 ? r : usable & ~broken;
}
