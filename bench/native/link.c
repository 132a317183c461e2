/* A non-blocking socket with or without TLS: see wire.h. */
#include "wire.h"

#include <errno.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_BYTES = 64 << 10 };

static int ssl_result(struct link *link, int result) {
    switch (SSL_get_error(link->ssl, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        ERR_clear_error();
        return -EPROTO;
    }
}

int link_read(struct link *link) {
    if (!link->ssl) {
        ssize_t got = recv(link->fd, buffer_reserve(&link->in, READ_BYTES), READ_BYTES, 0);
        if (got <= 0)
            return got ? -errno : 0;
        link->in.end += (size_t)got;
        return 1;
    }
    /* Until OpenSSL has nothing left: epoll does not report what it has decrypted already. */
    do {
        int got = SSL_read(link->ssl, buffer_reserve(&link->in, READ_BYTES), READ_BYTES);
        if (got <= 0)
            return ssl_result(link, got);
        link->in.end += (size_t)got;
    } while (SSL_pending(link->ssl));
    return 1;
}

int link_flush(struct link *link) {
    struct buffer *out = &link->out;
    while (buffer_used(out)) {
        ssize_t sent;
        if (link->ssl) {
            size_t size = buffer_used(out) < READ_BYTES ? buffer_used(out) : READ_BYTES;
            int result = SSL_write(link->ssl, out->data + out->start, (int)size);
            if (result <= 0)
                return ssl_result(link, result);
            sent = result;
        } else {
            sent = send(link->fd, out->data + out->start, buffer_used(out), MSG_NOSIGNAL);
            if (sent < 0)
                return -errno;
        }
        buffer_consume(out, (size_t)sent);
    }
    return 0;
}

int link_handshake(struct link *link) {
    int result = SSL_do_handshake(link->ssl);
    if (result == 1) {
        link->shaken = true;
        return 0;
    }
    result = ssl_result(link, result);
    return result ? result : -EPROTO;
}

void link_watch(struct link *link, int epoll_fd, uint32_t events, void *owner) {
    if (events == link->events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = owner};
    if (epoll_ctl(epoll_fd, link->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, link->fd, &event) < 0)
        abort();
    link->events = events;
}

void link_close(struct link *link) {
    if (link->fd < 0)
        return;
    if (link->ssl) {
        if (link->shaken)
            (void)SSL_shutdown(link->ssl);
        SSL_free(link->ssl);
        ERR_clear_error();
    }
    close(link->fd);
    link->fd = -1;
    link->ssl = NULL;
    buffer_free(&link->in);
    buffer_free(&link->out);
}
