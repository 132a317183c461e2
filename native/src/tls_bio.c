/* OpenSSL's socket BIO, but by send(2) and recv(2): no SIGPIPE, and a write can say that another follows at once.
 *
 * Each record is a write of its own, so without more each would be a TCP segment of its own, which the receiver handles by
 * itself. With MSG_MORE (tcp(7)) TCP waits for the next write. The caller says `more` only if it has the next bytes
 * already. If the next write finds no room, TCP sends what it held back together with the write after that.
 * While the thread has a batch, records go there instead, and tls_batch.c sends them together. While a batch of the
 * connection waits for room, everything else that OpenSSL wants to send waits behind it.
 * When the peer has used its share of the present call (tls_meter.c), a read fails as if the socket were empty. The bytes
 * stay in the socket, and epoll, which is level-triggered, reports them again. OpenSSL asks for bytes only when it has no
 * whole record left, so nothing waits where epoll does not see it.
 * If the kernel encrypts or decrypts, OpenSSL's own functions are called, because they carry control messages.
 */
#include "tls.h"

#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static BIO_METHOD *method; /* for the life of the process, as OpenSSL's own are */
static _Thread_local bool more_follows;
static _Thread_local struct tls_meter *meter;
static _Thread_local struct tls_batch *batch;

/**
 * write_batch() - Put a record into the thread's batch
 * @bio: BIO
 * @data: The record
 * @bytes: Its size
 *
 * Return: @bytes; -1 if there is no room: OpenSSL keeps the record, as if the socket were full
 * Thread: one
 */
static int write_batch(BIO *bio, const char *data, int bytes) {
    BIO_clear_retry_flags(bio);
    if ((size_t)bytes > sizeof batch->data - batch->bytes) {
        BIO_set_retry_write(bio);
        return -1;
    }
    memcpy(batch->data + batch->bytes, data, (size_t)bytes);
    batch->bytes += (size_t)bytes;
    return bytes;
}

/**
 * write_socket() - OpenSSL's call to write (BIO_meth_set_write(3))
 * @bio: BIO
 * @data: Bytes
 * @bytes: How many
 *
 * Return: number of bytes, or -1; BIO_should_retry(3) tells whether the socket is full
 * Thread: one
 */
static int write_socket(BIO *bio, const char *data, int bytes) {
    /* A KeyUpdate that asks for ours may come after our close_notify. OpenSSL answers, although the peer does not read that
     * any more. If the answer could not be sent, OpenSSL would stop reading: so it is dropped here. */
    if (meter && meter->close_notify_sent) {
        BIO_clear_retry_flags(bio);
        return bytes;
    }
    if (BIO_get_ktls_send(bio))
        return BIO_meth_get_write(BIO_s_socket())(bio, data, bytes);
    if (batch)
        return write_batch(bio, data, bytes);
    if (meter && meter->batch_waits) {
        BIO_clear_retry_flags(bio);
        BIO_set_retry_write(bio);
        return -1;
    }
    int flags = MSG_NOSIGNAL | (more_follows ? MSG_MORE : 0);
    ssize_t put = send((int)BIO_get_fd(bio, NULL), data, (size_t)bytes, flags);
    BIO_clear_retry_flags(bio);
    if (put < 0 && BIO_sock_should_retry((int)put))
        BIO_set_retry_write(bio);
    return (int)put;
}

/**
 * read_socket() - OpenSSL's call to read (BIO_meth_set_read(3))
 * @bio: BIO
 * @data: Receives the bytes
 * @bytes: Size of @data
 *
 * Return: number of bytes, 0 at EOF, or -1; BIO_should_retry(3) tells whether the socket is empty or the share is used up
 * Thread: one
 */
static int read_socket(BIO *bio, char *data, int bytes) {
    BP_ASSERT(bytes > 0);
    if (meter && (meter->flood || !meter->reads_left || !meter->bytes_left)) {
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

/**
 * make_method() - Make `method`, for pthread_once(3); it stays NULL if there is no memory
 *
 * Thread: any
 */
static void make_method(void) {
    const BIO_METHOD *socket = BIO_s_socket();
    BIO_METHOD *made = BIO_meth_new(BIO_TYPE_SOCKET, "socket with MSG_MORE");
    if (made && BIO_meth_set_write(made, write_socket) && BIO_meth_set_read(made, read_socket) &&
        BIO_meth_set_puts(made, BIO_meth_get_puts(socket)) && BIO_meth_set_ctrl(made, BIO_meth_get_ctrl(socket)) &&
        BIO_meth_set_create(made, BIO_meth_get_create(socket)) &&
        BIO_meth_set_destroy(made, BIO_meth_get_destroy(socket)))
        method = made;
    else
        BIO_meth_free(made);
}

/**
 * bp__tls_bio_new() - Make a BIO on a socket
 * @fd: Borrows
 *
 * Return: a BIO, or NULL if there is no memory
 * Thread: any
 */
BIO *bp__tls_bio_new(int fd) {
    (void)pthread_once(&once, make_method);
    BIO *bio = method ? BIO_new(method) : NULL;
    if (bio)
        BIO_set_fd(bio, fd, BIO_NOCLOSE);
    return bio;
}

/**
 * bp__tls_bio_more() - Set whether another write follows at once
 * @follows: Whether it does, for the writes of the calling thread from now on
 *
 * Thread: any
 */
void bp__tls_bio_more(bool follows) {
    BP_ASSERT(!more_follows || !follows);
    more_follows = follows;
}

/**
 * bp__tls_bio_meter() - Set the meter of the calling thread
 * @of: The meter that its reads and writes count for from now on; NULL: none
 *
 * Thread: any
 */
void bp__tls_bio_meter(struct tls_meter *of) {
    BP_ASSERT(!meter || !of); /* the thread is in one call at a time */
    meter = of;
}

/**
 * bp__tls_bio_batch() - Set the batch of the calling thread
 * @to: Where records go from now on; NULL: to the socket
 *
 * Thread: any
 */
void bp__tls_bio_batch(struct tls_batch *to) {
    BP_ASSERT(!batch || !to);
    batch = to;
}
