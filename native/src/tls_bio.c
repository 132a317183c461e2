/* OpenSSL's socket BIO, except that a write may say that another follows at once.
 *
 * A record is a write(2) of its own, and so would be a segment of its own and the receiver's work for it. With MSG_MORE
 * (tcp(7)) TCP waits for the rest, which the caller has in hand: it says `more` only then. Should that next write find no
 * room, what is held back goes with the one that follows when there is.
 */
#include "tls.h"

#include <pthread.h>
#include <sys/socket.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static BIO_METHOD *method; /* for the life of the process, as OpenSSL's own are */
static _Thread_local bool more_follows;

static int write_socket(BIO *bio, const char *data, int bytes) {
    if (!more_follows)
        return BIO_meth_get_write(BIO_s_socket())(bio, data, bytes);
    ssize_t put = send((int)BIO_get_fd(bio, NULL), data, (size_t)bytes, MSG_NOSIGNAL | MSG_MORE);
    BIO_clear_retry_flags(bio);
    if (put < 0 && BIO_sock_should_retry((int)put))
        BIO_set_retry_write(bio);
    return (int)put;
}

static void make_method(void) {
    const BIO_METHOD *socket = BIO_s_socket();
    BIO_METHOD *made = BIO_meth_new(BIO_TYPE_SOCKET, "socket that may have more to say");
    if (made && BIO_meth_set_write(made, write_socket) && BIO_meth_set_read(made, BIO_meth_get_read(socket)) &&
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
