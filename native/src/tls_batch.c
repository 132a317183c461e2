/* The records of one write, sent by one send(2).
 *
 * One read of the engine brings up to 64 KiB, which are four records. OpenSSL would send each of them by a call of its own.
 * Here they go into a batch (tls_bio.c), and the batch to the socket. What the socket does not take stays in the batch, which
 * then belongs to the connection: OpenSSL has forgotten these records, so they must be sent before anything else, and to the
 * last byte. The caller keeps no copy of what they carry.
 * A thread has one batch at hand. It makes another one when a connection has kept that, and gets it back or frees it later.
 */
#include "tls.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/**
 * send_once() - Send what is left of a batch
 * @tls: Connection
 * @batch: Its batch
 *
 * Return: 0, and the batch says what is left; or a negative errno, -EAGAIN if the socket is full
 * Thread: one
 */
static int send_once(bp_tls *tls, struct tls_batch *batch) {
    ssize_t put;
    BP_ASSERT(batch->at < batch->bytes && batch->bytes <= sizeof batch->data);
    do
        put =
            send(SSL_get_fd(tls->ssl), batch->data + batch->at, batch->bytes - batch->at, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (put < 0 && errno == EINTR);
    if (put < 0) {
        int saved_errno = errno;
        if (saved_errno != EAGAIN)
            snprintf(tls->error, sizeof tls->error, "%s", strerror(saved_errno));
        return -saved_errno;
    }
    batch->at += (size_t)put;
    return 0;
}

/**
 * unsent() - What the records carry that the socket has not taken to their last byte
 * @batch: Batch
 *
 * Return: bytes
 * Thread: one
 */
static size_t unsent(const struct tls_batch *batch) {
    size_t bytes = 0;
    for (unsigned i = 0; i < batch->count; i++)
        bytes += batch->record[i].end > batch->at ? batch->record[i].payload : 0;
    return bytes;
}

/**
 * bp__tls_unsent() - What the connection has taken and the socket has not
 * @tls: Connection
 *
 * Return: bytes; if there are any, bp__tls_flush() comes next
 * Thread: one
 */
size_t bp__tls_unsent(const bp_tls *tls) { return tls->batch ? unsent(tls->batch) : 0; }

/**
 * fill() - Make records
 * @tls: Connection
 * @batch: Empty; receives them
 * @data: What they carry
 * @bytes: How many
 * @ret_why: Receives what the last bp_tls_write() returned
 *
 * Return: how many of the bytes are in records now
 * Thread: one
 */
static size_t fill(bp_tls *tls, struct tls_batch *batch, const char *data, size_t bytes, ssize_t *ret_why) {
    size_t taken = 0;
    bp__tls_bio_batch(batch);
    while (taken < bytes && batch->count < BATCH_RECORDS) {
        *ret_why = bp_tls_write(tls, data + taken, bytes - taken);
        if (*ret_why <= 0)
            break;
        taken += (size_t)*ret_why;
        batch->record[batch->count].end = batch->bytes;
        batch->record[batch->count].payload = (size_t)*ret_why;
        batch->count++;
    }
    bp__tls_bio_batch(NULL);
    BP_ASSERT(taken <= bytes);
    return taken;
}

/**
 * bp__tls_write_records() - Write several records by one send(2) if the bytes are more than one holds
 * @tls: Connection, of which bp__tls_unsent() is 0
 * @data: Bytes
 * @bytes: How many, at least 1
 * @spare: The thread's batch, or NULL; the connection keeps it if the socket does not take all
 *
 * Return: number of bytes that the connection has taken, of which bp__tls_unsent() says how many the socket has not; or as
 *         bp_tls_write()
 * Thread: one
 */
ssize_t bp__tls_write_records(bp_tls *tls, const void *data, size_t bytes, struct tls_batch **spare) {
    ssize_t why = 0;
    BP_CHECK_TLS(tls);
    BP_ASSERT(!tls->batch);
    if (bytes <= SSL3_RT_MAX_PLAIN_LENGTH || (tls->kernel & BP_KTLS_TX))
        return bp_tls_write(tls, data, bytes);
    if (!*spare)
        *spare = malloc(sizeof **spare);
    struct tls_batch *batch = *spare;
    if (!batch)
        return bp_tls_write(tls, data, bytes);
    batch->at = batch->bytes = batch->count = 0;
    size_t taken = fill(tls, batch, data, bytes, &why);
    if (!taken) { /* the connection has failed, and OpenSSL may have made an alert of it */
        if (batch->bytes)
            (void)send_once(tls, batch);
        return why;
    }
    batch->record[batch->count - 1].end = batch->bytes;
    int r = send_once(tls, batch);
    if (r < 0 && r != -EAGAIN && r != -ENOBUFS && r != -ENOMEM)
        return r;
    if (batch->at < batch->bytes) {
        tls->batch = batch;
        tls->meter.batch_waits = true;
        *spare = NULL;
    }
    BP_CHECK_TLS(tls);
    return (ssize_t)taken;
}

/**
 * bp__tls_flush() - Send what the socket did not take
 * @tls: Connection, of which bp__tls_unsent() is not 0
 * @spare: The thread's batch, or NULL; receives the connection's once that is sent
 *
 * Return: by how many bytes bp__tls_unsent() is less now, or BP_TLS_WANT_WRITE, or a negative errno
 * Thread: one
 */
ssize_t bp__tls_flush(bp_tls *tls, struct tls_batch **spare) {
    struct tls_batch *batch = tls->batch;
    BP_CHECK_TLS(tls);
    size_t before = unsent(batch);
    BP_ASSERT(before > 0);
    int r = send_once(tls, batch);
    if (r < 0)
        return r == -EAGAIN ? BP_TLS_WANT_WRITE : r;
    size_t sent = before - unsent(batch);
    if (batch->at == batch->bytes) {
        tls->batch = NULL;
        tls->meter.batch_waits = false;
        if (*spare)
            free(batch);
        else
            *spare = batch;
    }
    BP_CHECK_TLS(tls);
    return sent ? (ssize_t)sent : BP_TLS_WANT_WRITE;
}
