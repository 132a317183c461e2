/* OpenSSL's socket BIO, but by send(2) and recv(2): no SIGPIPE, and a write may say that another follows at once.
 *
 * A record is a write of its own, and so would be a segment of its own and the receiver's work for it. With MSG_MORE
 * (tcp(7)) TCP waits for the rest, which the caller has in hand: it says `more` only then. Should that next write find no
 * room, what is held back goes with the one that follows when there is.
 * A read is refused when the peer has had its share of the call at hand (tls_meter.c), as if the socket were dry: what it
 * sent stays there, and epoll, which is level-triggered, tells of it again. OpenSSL asks for bytes only when it has no
 * whole record left, so nothing waits where epoll does not see it.
 * Where the kernel does the records OpenSSL's own calls are needed, since they carry control messages.
 */
#include "tls.h"

#include <pthread.h>
#include <sys/socket.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static BIO_METHOD *method; /* for the life of the process, as OpenSSL's own are */
static _Thread_local bool more_follows;
static _Thread_local struct tls_meter *meter;

static int write_socket(BIO *bio, const char *data, int bytes) {
    /* A KeyUpdate that asks for ours may come behind our close_notify. OpenSSL answers, although nobody reads that any
     * more, and would take the failure to send it for the end of what the peer says. */
    if (meter && meter->silent) {
        BIO_clear_retry_flags(bio);
        return bytes;
    }
    if (BIO_get_ktls_send(bio))
        return BIO_meth_get_write(BIO_s_socket())(bio, data, bytes);
    int flags = MSG_NOSIGNAL | (more_follows ? MSG_MORE : 0);
    ssize_t put = send((int)BIO_get_fd(bio, NULL), data, (size_t)bytes, flags);
    BIO_clear_retry_flags(bio);
    if (put < 0 && BIO_sock_should_retry((int)put))
        BIO_set_retry_write(bio);
    return (int)put;
}

static int read_socket(BIO *bio, char *data, int bytes) {
    if (meter && (meter->over || !meter->reads_left || !meter->bytes_left)) {
        BIO_clear_retry_flags(bio);
        BIO_set_retry_read(bio);
        return -1;
    }
    ssize_t got;
    if (BIO_get_ktls_recv(bio))
        got = BIO_meth_get_read(BIO_s_socket())(bio, data, bytes);
    else
        got = recv((int)BIO_get_fd(bio, NULL), data, (size_t)bytes, 0);
    if (meter && got > 0) {
        meter->reads_left--;
        meter->bytes_left -= (size_t)got < meter->bytes_left ? (size_t)got : meter->bytes_left;
        meter->cost += (size_t)got;
    }
    if (BIO_get_ktls_recv(bio))
        return (int)got;
    BIO_clear_retry_flags(bio);
    if (got < 0 && BIO_sock_should_retry((int)got))
        BIO_set_retry_read(bio);
    if (got == 0)
        BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    return (int)got;
}

static void make_method(void) {
    const BIO_METHOD *socket = BIO_s_socket();
    BIO_METHOD *made = BIO_meth_new(BIO_TYPE_SOCKET, "socket that may have more to say");
    if (made && BIO_meth_set_write(made, write_socket) && BIO_meth_set_read(made, read_socket) &&
        BIO_meth_set_puts(made, BIO_meth_get_puts(socket)) && BIO_meth_set_ctrl(made, BIO_meth_get_ctrl(socket)) &&
        BIO_meth_set_create(made, BIO_meth_get_create(socket)) &&
        BIO_meth_set_destroy(made, BIO_meth_get_destroy(socket)))
        method = made;
    else
        BIO_meth_free(made);
}

BIO *bp__tls_bio_new(int fd) {
    (void)pthread_once(&once, make_method);
    BIO *bio = method ? BIO_new(method) : NULL;
    if (bio)
        BIO_set_fd(bio, fd, BIO_NOCLOSE);
    return bio;
}

void bp__tls_bio_more(bool follows) { more_follows = follows; }

void bp__tls_bio_meter(struct tls_meter *of) { meter = of; }
