/* TLS on a socket: handshake, read, write and end, each a call that does not wait. */
#include "tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define READ_AHEAD_BYTES (64 << 10)
#define ALERT_BYTES 2 /* RFC 8446 section 6 */

static const unsigned char ALPN_H2[] = "\x02h2";

/**
 * prepare_client() - Set what a client offers, sends and verifies
 * @ssl: Connection
 * @server_name: Name or address that the server's certificate must have; NULL: any
 *
 * Return: 0, or -1
 * Thread: one
 */
static int prepare_client(SSL *ssl, const char *server_name) {
    unsigned char address[sizeof(struct in6_addr)];
    if (SSL_set_alpn_protos(ssl, ALPN_H2, sizeof ALPN_H2 - 1) != 0)
        return -1;
    if (!server_name)
        return 0;
    if (inet_pton(AF_INET, server_name, address) == 1 || inet_pton(AF_INET6, server_name, address) == 1)
        return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), server_name) == 1 ? 0 : -1;
    if (SSL_set_tlsext_host_name(ssl, server_name) != 1)
        return -1;
    return SSL_set1_host(ssl, server_name) == 1 ? 0 : -1;
}

bp_tls *bp_tls_new(bp_tls_ctx *ctx, int fd, const char *server_name, char *error, size_t error_bytes) {
    ERR_clear_error();
    bp_tls *tls = calloc(1, sizeof *tls);
    if (!tls) {
        snprintf(error, error_bytes, "out of memory");
        return NULL;
    }
    tls->ssl = SSL_new(ctx->ssl_ctx);
    BIO *bio = bp__tls_bio_new(fd);
    if (!tls->ssl || !bio || (!ctx->server && prepare_client(tls->ssl, server_name) < 0)) {
        bp__tls_explain("TLS connection", error, error_bytes);
        BIO_free(bio);
        bp_tls_free(tls);
        return NULL;
    }
    SSL_set_bio(tls->ssl, bio, bio);
    bp__tls_meter_attach(&tls->meter, tls->ssl);
    if (ctx->server)
        SSL_set_accept_state(tls->ssl);
    else
        SSL_set_connect_state(tls->ssl);
    return tls;
}

void bp_tls_free(bp_tls *tls) {
    if (!tls)
        return;
    SSL_free(tls->ssl); /* sends nothing: without close_notify by then, the peer finds a truncation */
    free(tls->batch);
    free(tls);
}

/**
 * flooded() - Note that the peer is over a limit; each read returns that from now on
 * @tls: Connection
 * @flood: The limit
 *
 * Return: @flood
 * Thread: one
 */
static int flooded(bp_tls *tls, int flood) {
    snprintf(tls->error, sizeof tls->error, "%s", bp__tls_meter_message(flood));
    ERR_clear_error();
    return tls->meter.flood = tls->read_failure = flood;
}

/**
 * openssl_gave_up() - Whether OpenSSL's own limits of empty records or of warnings in a row were passed
 * @error: OpenSSL's error (ERR_peek_error(3))
 *
 * Return: whether they were
 * Thread: any
 */
static bool openssl_gave_up(unsigned long error) {
    int reason = ERR_GET_REASON(error);
    return ERR_GET_LIB(error) == ERR_LIB_SSL &&
           (reason == SSL_R_RECORD_TOO_SMALL || reason == SSL_R_TOO_MANY_WARN_ALERTS);
}

/**
 * verification_failure() - Describe why the peer's certificate was refused, or what else OpenSSL says
 * @tls: Connection, whose message is set
 *
 * Return: BP_TLS_ERROR
 * Thread: one
 */
static int verification_failure(bp_tls *tls) {
    long verified = SSL_get_verify_result(tls->ssl);
    if (verified != X509_V_OK) {
        snprintf(tls->error, sizeof tls->error, "certificate: %s", X509_verify_cert_error_string(verified));
        ERR_clear_error();
    } else
        bp__tls_explain("TLS", tls->error, sizeof tls->error);
    return BP_TLS_ERROR;
}

/**
 * truncated() - Note that the stream ended without close_notify
 * @tls: Connection, whose message is set
 *
 * Return: BP_TLS_TRUNCATED
 * Thread: one
 */
static int truncated(bp_tls *tls) {
    snprintf(tls->error, sizeof tls->error, "the peer ended the connection without close_notify");
    ERR_clear_error();
    return BP_TLS_TRUNCATED;
}

/**
 * result() - Turn a failed call of OpenSSL into a result; call it before anything changes errno or the queue of errors
 * @tls: Connection
 * @returned: What the call returned
 *
 * Return: 0 after close_notify, or of enum bp_tls_result, or a negative errno
 * Thread: one
 */
static int result(bp_tls *tls, int returned) {
    int saved_errno = errno;
    if (tls->meter.flood)
        return flooded(tls, tls->meter.flood);
    if (openssl_gave_up(ERR_peek_error()))
        return flooded(tls, BP_TLS_CONTROL_FLOOD);
    BP_ASSERT(returned <= 0);
    int why = SSL_get_error(tls->ssl, returned);
    switch (why) {
    case SSL_ERROR_WANT_READ:
        return BP_TLS_WANT_READ;
    case SSL_ERROR_WANT_WRITE:
        return BP_TLS_WANT_WRITE;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_SYSCALL:
        if (!ERR_peek_error() && saved_errno) {
            snprintf(tls->error, sizeof tls->error, "%s", strerror(saved_errno));
            return -saved_errno;
        }
        if (!ERR_peek_error())
            return truncated(tls);
        break;
    default:
        break;
    }
    if (ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
        return truncated(tls);
    return verification_failure(tls);
}

/**
 * write_result() - Turn a failed write into a result: after the peer's close_notify SSL_get_error(3) reports that instead
 * @tls: Connection
 * @returned: What the call returned
 *
 * Return: of enum bp_tls_result, or a negative errno
 * Thread: one
 */
static int write_result(bp_tls *tls, int returned) {
    int saved_errno = errno;
    int why = result(tls, returned);
    if (why)
        return why;
    return saved_errno ? -saved_errno : -EPIPE;
}

/**
 * find_ktls() - Ask OpenSSL what the kernel does
 * @tls: Connection after its handshake
 *
 * Return: a sum of enum bp_ktls, or 0
 * Thread: one
 */
static int find_ktls(const bp_tls *tls) {
    int kernel = 0;
#ifdef SSL_OP_ENABLE_KTLS
    if (BIO_get_ktls_send(SSL_get_wbio(tls->ssl)))
        kernel |= BP_KTLS_TX;
    if (BIO_get_ktls_recv(SSL_get_rbio(tls->ssl)))
        kernel |= BP_KTLS_RX;
#else
    (void)tls;
#endif
    return kernel;
}

int bp_tls_handshake(bp_tls *tls) {
    BP_CHECK_TLS(tls);
    if (tls->read_failure)
        return tls->read_failure;
    ERR_clear_error();
    bp__tls_meter_begin(&tls->meter);
    bp__tls_bio_meter(&tls->meter);
    errno = 0;
    int done = SSL_do_handshake(tls->ssl);
    bp__tls_bio_meter(NULL);
    if (done != 1) {
        int why = result(tls, done);
        return why == 0 ? BP_TLS_TRUNCATED : why;
    }
    tls->meter.established = true;
    tls->kernel = find_ktls(tls);
    if (tls->kernel & BP_KTLS_TX)
        bp__ktls_out_begin(&tls->out, SSL_get_fd(tls->ssl));
    /* One read(2) for several records, not two for each; OpenSSL frees the buffer when it is empty
     * (SSL_MODE_RELEASE_BUFFERS). Not where the kernel decrypts: a read is one record there. */
    if (!(tls->kernel & BP_KTLS_RX)) {
        SSL_set_read_ahead(tls->ssl, 1);
        SSL_set_default_read_buffer_len(tls->ssl, READ_AHEAD_BYTES);
    }
    BP_CHECK_TLS(tls);
    return 0;
}

/**
 * read_record() - Read what one record carries
 * @tls: Connection
 * @buffer: Receives the bytes
 * @bytes: Size of @buffer
 *
 * Return: as bp_tls_read()
 * Thread: one
 */
static ssize_t read_record(bp_tls *tls, char *buffer, size_t bytes) {
    if (tls->read_failure)
        return tls->read_failure;
    ERR_clear_error();
    errno = 0;
    int got = SSL_read(tls->ssl, buffer, bytes > INT_MAX ? INT_MAX : (int)bytes);
    if (tls->meter.flood)
        return result(tls, got);
    if ((tls->kernel & BP_KTLS_TX) && tls->meter.key_update_due) {
        snprintf(tls->error, sizeof tls->error,
                 "the peer wants new keys (KeyUpdate), which the kernel's TLS cannot change");
        return tls->read_failure = BP_TLS_ERROR;
    }
    if (got > 0)
        return got;
    int why = result(tls, got);
    if (why < 0 && why != BP_TLS_WANT_READ && why != BP_TLS_WANT_WRITE && why != -ENOMEM && why != -ENOBUFS)
        tls->read_failure = why;
    return why;
}

ssize_t bp_tls_read(bp_tls *tls, void *buffer, size_t bytes) {
    size_t filled = 0;
    ssize_t got;
    BP_CHECK_TLS(tls);
    BP_ASSERT(bytes > 0);
    bp__tls_meter_begin(&tls->meter);
    bp__tls_bio_meter(&tls->meter);
    do {
        got = read_record(tls, (char *)buffer + filled, bytes - filled);
        filled += got > 0 ? (size_t)got : 0;
    } while (got > 0 && filled < bytes && tls->meter.records_left && bp__tls_has_pending(tls));
    bp__tls_bio_meter(NULL);
    BP_ASSERT(filled <= bytes);
    BP_CHECK_TLS(tls);
    return filled ? (ssize_t)filled : got;
}

/**
 * bp__tls_cost() - What the peer has cost since the last call
 * @tls: Connection
 *
 * Return: bytes that came, and STEP_COST for each record
 * Thread: one
 */
size_t bp__tls_cost(bp_tls *tls) {
    size_t cost = tls->meter.cost;
    tls->meter.cost = 0;
    return cost;
}

/**
 * write_to_kernel() - Write to a socket whose TLS is the kernel's
 * @tls: Connection
 * @data: Bytes
 * @bytes: How many
 *
 * OpenSSL would give the kernel the caller's buffer and, when the write is retried, use that buffer again, whatever
 * SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER says (openssl#21202): if the caller's bytes have moved, wrong ones would be sent. To
 * the kernel's TLS a write is a record's payload and nothing more, so send(2) serves.
 *
 * Return: as bp_tls_write()
 * Thread: one
 */
static ssize_t write_to_kernel(bp_tls *tls, const void *data, size_t bytes) {
    ssize_t put;
    BP_ASSERT(tls->kernel & BP_KTLS_TX);
    do
        put = send(SSL_get_fd(tls->ssl), data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (put < 0 && errno == EINTR);
    if (put < 0 && errno == EAGAIN)
        return BP_TLS_WANT_WRITE;
    if (put < 0) {
        int saved_errno = errno;
        snprintf(tls->error, sizeof tls->error, "%s", strerror(saved_errno));
        return -saved_errno;
    }
    tls->out.payload_bytes += (size_t)put;
    return put;
}

ssize_t bp_tls_write(bp_tls *tls, const void *data, size_t bytes) {
    BP_CHECK_TLS(tls);
    if (!bytes)
        return 0;
    if (tls->kernel & BP_KTLS_TX)
        return write_to_kernel(tls, data, bytes);
    if (tls->meter.key_update_due && SSL_key_update(tls->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1)
        tls->meter.key_update_due = false; /* if this fails, a record waits for room and goes first */
    ERR_clear_error();
    bp__tls_meter_begin(&tls->meter);
    errno = 0;
    /* One record a call: with more, OpenSSL would finish a record that waited, go on with the next, and report neither while
     * that one waits. The counters would be behind what was delivered. */
    bool more = bytes > SSL3_RT_MAX_PLAIN_LENGTH;
    bp__tls_bio_more(more);
    bp__tls_bio_meter(&tls->meter); /* it should read nothing; if it does, within the share of a call */
    int put = SSL_write(tls->ssl, data, more ? SSL3_RT_MAX_PLAIN_LENGTH : (int)bytes);
    bp__tls_bio_meter(NULL);
    bp__tls_bio_more(false);
    return put > 0 ? put : write_result(tls, put);
}

/**
 * bp__tls_spliced() - Count bytes that splice(2) gave to the kernel's TLS
 * @tls: Connection
 * @bytes: How many
 *
 * Thread: one
 */
void bp__tls_spliced(bp_tls *tls, size_t bytes) {
    BP_ASSERT(tls->kernel & BP_KTLS_TX);
    tls->out.payload_bytes += bytes;
}

int bp_tls_shutdown(bp_tls *tls) {
    BP_CHECK_TLS(tls);
    /* After a failure OpenSSL has sent its alert already; OpenSSL does not count a flood as a failure. */
    if (!tls->meter.close_notify_sent && (!tls->read_failure || tls->meter.flood)) {
        ERR_clear_error();
        errno = 0;
        /* The answer to a KeyUpdate may still wait for room, and SSL_shutdown(3) fails before it is sent. */
        int done = SSL_in_init(tls->ssl) ? SSL_do_handshake(tls->ssl) : 1;
        if (done == 1)
            done = SSL_shutdown(tls->ssl);
        if (done < 0)
            return write_result(tls, done);
        BP_ASSERT(SSL_get_shutdown(tls->ssl) & SSL_SENT_SHUTDOWN);
        tls->meter.close_notify_sent = true;
        tls->out.payload_bytes += ALERT_BYTES;
    }
    if ((tls->kernel & BP_KTLS_TX) && !bp__ktls_out_drained(&tls->out, SSL_get_fd(tls->ssl)))
        return BP_TLS_WANT_WRITE;
    return 0;
}

/**
 * bp__tls_has_pending() - Whether a read may find what the socket does not show
 * @tls: Connection
 *
 * Return: whether OpenSSL has bytes, decrypted or not, or has seen an end after them
 * Thread: one
 */
bool bp__tls_has_pending(const bp_tls *tls) {
    return tls->read_failure || (SSL_get_shutdown(tls->ssl) & SSL_RECEIVED_SHUTDOWN) || SSL_has_pending(tls->ssl);
}

int bp_tls_ktls(const bp_tls *tls) { return tls->kernel; }

const char *bp_tls_error(const bp_tls *tls) { return tls->error; }

/**
 * copy_text() - Copy a name that OpenSSL owns
 * @from: Name, or NULL
 * @length: Its length
 * @text: Receives it, NUL-terminated
 * @bytes: Size of @text
 *
 * Return: @length; 0 if there is none or it does not fit
 * Thread: any
 */
static size_t copy_text(const void *from, size_t length, char *text, size_t bytes) {
    if (!from || !length || length >= bytes)
        return 0;
    memcpy(text, from, length);
    text[length] = '\0';
    return length;
}

size_t bp_tls_alpn(const bp_tls *tls, char *text, size_t bytes) {
    const unsigned char *alpn = NULL;
    unsigned length = 0;
    SSL_get0_alpn_selected(tls->ssl, &alpn, &length);
    return copy_text(alpn, length, text, bytes);
}

size_t bp_tls_server_name(const bp_tls *tls, char *text, size_t bytes) {
    const char *name = SSL_get_servername(tls->ssl, TLSEXT_NAMETYPE_host_name);
    return copy_text(name, name ? strlen(name) : 0, text, bytes);
}

const char *bp_tls_version(const bp_tls *tls) { return SSL_get_version(tls->ssl); }

const char *bp_tls_cipher(const bp_tls *tls) {
    const char *name = SSL_get_cipher_name(tls->ssl);
    return name ? name : "";
}

size_t bp_tls_peer_certificate(const bp_tls *tls, void *der, size_t bytes) {
    X509 *peer = SSL_get1_peer_certificate(tls->ssl);
    if (!peer)
        return 0;
    int size = i2d_X509(peer, NULL);
    if (size > 0 && (size_t)size <= bytes) {
        unsigned char *at = der;
        (void)i2d_X509(peer, &at);
    }
    X509_free(peer);
    return size > 0 ? (size_t)size : 0;
}

const char *bp_openssl_version(void) { return OpenSSL_version(OPENSSL_VERSION); }
