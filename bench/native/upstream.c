/* The upstream of every measurement: an HTTP/2 gRPC server of one thread that decodes nothing but frames.
 *
 * `upstream PORT [--cpu N] [--realtime PRIORITY] [--boot SECONDS] [--mark FILE] [--tls CHAIN_AND_KEY]`. With --mark it writes the moment when it listens
 * (CLOCK_MONOTONIC, ns) to the end of FILE. Commands are in the requests' bodies: see wire.h.
 */
#include "upstream.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { EVENTS = 256, PREFACE_BYTES = 24 };
static int epoll_fd;
static SSL_CTX *tls; /* or NULL */

static void connection_free(struct connection *connection) {
    for (uint32_t i = 0; connection->streams && i <= connection->mask; i++)
        buffer_free(&connection->streams[i].body);
    free(connection->streams);
    link_close(&connection->link);
    free(connection);
}

static bool read_frames(struct connection *connection) {
    int result = link_read(&connection->link);
    if (result <= 0)
        return result == -EAGAIN;
    if (!connection->greeted) {
        if (buffer_used(&connection->link.in) < PREFACE_BYTES)
            return true;
        buffer_consume(&connection->link.in, PREFACE_BYTES);
        connection->greeted = true;
    }
    struct frame frame;
    while (frame_next(&connection->link.in, &frame))
        upstream_frame(connection, &frame);
    return true;
}

static bool serve(struct connection *connection, uint32_t events) {
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !read_frames(connection))
        return false;
    bool more = false;
    for (uint32_t i = 0; connection->sending && i <= connection->mask; i++)
        if (connection->streams[i].id && connection->streams[i].answering)
            more |= stream_send(connection, &connection->streams[i]);
    int result = link_flush(&connection->link);
    /* During a handshake the socket is writable, and the client's next bytes are what is missing: no turn in between. */
    more |= result == -EAGAIN && !(connection->link.ssl && SSL_want_read(connection->link.ssl));
    link_watch(&connection->link, epoll_fd, more ? EPOLLIN | EPOLLOUT : EPOLLIN, connection);
    return !result || result == -EAGAIN;
}

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct connection *connection = calloc(1, sizeof *connection);
        if (!connection)
            abort();
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        connection->link.fd = fd;
        connection->window = connection->initial_window = DEFAULT_WINDOW;
        if (tls) {
            connection->link.ssl = SSL_new(tls);
            if (!connection->link.ssl)
                abort();
            SSL_set_fd(connection->link.ssl, fd);
            SSL_set_accept_state(connection->link.ssl);
        }
        frame_opening(&connection->link.out);
        if (!serve(connection, 0))
            connection_free(connection);
    }
}

static int choose_h2(SSL *ssl, const unsigned char **ret_name, unsigned char *ret_bytes, const unsigned char *offered,
                     unsigned bytes, void *unused) {
    (void)ssl, (void)offered, (void)bytes, (void)unused;
    *ret_name = (const unsigned char *)"h2";
    *ret_bytes = 2;
    return SSL_TLSEXT_ERR_OK;
}

static SSL_CTX *tls_of(const char *file) {
    SSL_CTX *made = SSL_CTX_new(TLS_server_method());
    if (!made || SSL_CTX_use_certificate_chain_file(made, file) != 1 ||
        SSL_CTX_use_PrivateKey_file(made, file, SSL_FILETYPE_PEM) != 1) {
        fprintf(stderr, "upstream: cannot use %s\n", file);
        exit(2);
    }
    SSL_CTX_set_mode(made, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_alpn_select_cb(made, choose_h2, NULL);
    return made;
}

int main(int argc, char **argv) {
    const char *mark = NULL;
    double boot_s = 0;
    for (int i = 2; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--cpu"))
            pin_to_cpu(atoi(argv[i + 1]));
        else if (!strcmp(argv[i], "--realtime"))
            run_realtime(atoi(argv[i + 1]));
        else if (!strcmp(argv[i], "--boot"))
            boot_s = atof(argv[i + 1]);
        else if (!strcmp(argv[i], "--mark"))
            mark = argv[i + 1];
        else if (!strcmp(argv[i], "--tls"))
            tls = tls_of(argv[i + 1]);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    pattern_fill();
    usleep((useconds_t)(boot_s * 1e6));
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    (void)setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 16384) < 0) {
        perror("upstream");
        return 1;
    }
    if (mark) {
        FILE *file = fopen(mark, "a");
        if (file) {
            fprintf(file, "%llu\n", (unsigned long long)now_ns());
            fclose(file);
        }
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event) < 0)
        return 1;
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (!connection)
                accept_all(listener);
            else if (!serve(connection, events[i].events))
                connection_free(connection);
        }
    }
}
