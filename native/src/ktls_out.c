/* How much of a kTLS connection's stream TCP has received from the kernel's TLS: no system call returns that.
 *
 * If TCP has no room for a record, the kernel's TLS queues it, and the call that wrote it succeeds. FIN and close(2)
 * overtake that queue, and close drops it (net/tls/tls_sw.c: tls_sw_sendmsg ignores the EAGAIN of tls_tx_records;
 * tls_sw_release_resources_tx frees tx_list). So the queue must be known to be empty before FIN. Three counts tell: the
 * payload handed over, the records made of it, and the bytes that TCP received.
 */
#include "check.h"

#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <linux/tls.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#ifndef SOL_TLS
#define SOL_TLS 282
#endif
#define SOL_OF_TCP 6
#define HEADER_BYTES 5       /* RFC 8446 section 5.1 */
#define CONTENT_TYPE_BYTES 1 /* RFC 8446 section 5.2; padding is never sent */
#define EXPLICIT_NONCE_BYTES 8 /* TLS 1.2: RFC 5288, RFC 6655; none with ChaCha20: RFC 7905 */
#define TAG_BYTES 16
#define STABLE_TRIES 16 /* to read the same count twice; acknowledgements come in between */

/**
 * written_to_tcp() - Count the bytes that were ever given to TCP, up to a constant
 * @fd: Borrows
 * @ret: Receives the count
 * @ret_unacknowledged: Receives how many of them the peer has not acknowledged
 *
 * Return: 0; -EAGAIN if acknowledgements kept coming in between; or another negative errno
 * Thread: one
 */
static int written_to_tcp(int fd, uint64_t *ret, int *ret_unacknowledged) {
    for (int i = 0; i < STABLE_TRIES; i++) {
        struct tcp_info before, after;
        socklen_t bytes = sizeof before;
        memset(&before, 0, sizeof before);
        memset(&after, 0, sizeof after);
        if (getsockopt(fd, SOL_OF_TCP, TCP_INFO, &before, &bytes) < 0 || ioctl(fd, SIOCOUTQ, ret_unacknowledged) < 0)
            return -errno;
        bytes = sizeof after;
        if (getsockopt(fd, SOL_OF_TCP, TCP_INFO, &after, &bytes) < 0)
            return -errno;
        if (before.tcpi_bytes_acked == after.tcpi_bytes_acked) {
            *ret = (uint64_t)before.tcpi_bytes_acked + (uint64_t)*ret_unacknowledged;
            return 0;
        }
    }
    return -EAGAIN;
}

/**
 * records() - Count the records that the kernel has made
 * @fd: Borrows
 * @ret_count: Receives the count
 * @ret_overhead: Receives what each record adds to its payload, in bytes
 *
 * Return: 0, or a negative errno; before Linux 5.16 the kernel tells the sequence number of AES-GCM only
 * Thread: one
 */
static int records(int fd, uint64_t *ret_count, unsigned *ret_overhead) {
    union {
        struct tls_crypto_info info;
        struct tls12_crypto_info_aes_gcm_128 gcm_128;
        struct tls12_crypto_info_aes_gcm_256 gcm_256;
        struct tls12_crypto_info_aes_ccm_128 ccm_128;
        struct tls12_crypto_info_chacha20_poly1305 chacha;
    } crypto;
    socklen_t bytes = sizeof crypto.info;
    const unsigned char *sequence;
    unsigned nonce = EXPLICIT_NONCE_BYTES;
    int r = 0;
    if (getsockopt(fd, SOL_TLS, TLS_TX, &crypto.info, &bytes) < 0)
        return -errno;
    switch (crypto.info.cipher_type) {
    case TLS_CIPHER_AES_GCM_128:
        bytes = sizeof crypto.gcm_128;
        sequence = crypto.gcm_128.rec_seq;
        break;
    case TLS_CIPHER_AES_GCM_256:
        bytes = sizeof crypto.gcm_256;
        sequence = crypto.gcm_256.rec_seq;
        break;
    case TLS_CIPHER_AES_CCM_128:
        bytes = sizeof crypto.ccm_128;
        sequence = crypto.ccm_128.rec_seq;
        break;
    case TLS_CIPHER_CHACHA20_POLY1305:
        bytes = sizeof crypto.chacha;
        sequence = crypto.chacha.rec_seq;
        nonce = 0;
        break;
    default:
        return -EOPNOTSUPP;
    }
    if (getsockopt(fd, SOL_TLS, TLS_TX, &crypto, &bytes) < 0)
        r = -errno;
    *ret_count = 0;
    for (unsigned i = 0; i < TLS_CIPHER_AES_GCM_128_REC_SEQ_SIZE; i++)
        *ret_count = *ret_count << 8 | sequence[i];
    *ret_overhead = HEADER_BYTES + TAG_BYTES + (crypto.info.version == TLS_1_3_VERSION ? CONTENT_TYPE_BYTES : nonce);
    explicit_bzero(&crypto, sizeof crypto); /* it had the key */
    return r;
}

/**
 * bp__ktls_out_begin() - Start to count what is written to a kTLS socket
 * @out: Counts; from now on the sender adds all payload to out->payload_bytes
 * @fd: Borrows; nothing may be queued in the kernel's TLS
 *
 * Thread: one
 */
void bp__ktls_out_begin(struct ktls_out *out, int fd) {
    int unacknowledged;
    memset(out, 0, sizeof *out);
    out->counts = records(fd, &out->records_before, &out->overhead) == 0 &&
                  written_to_tcp(fd, &out->tcp_before, &unacknowledged) == 0;
}

/**
 * bp__ktls_out_drained() - Whether FIN and close(2) lose nothing now
 * @out: Counts
 * @fd: Borrows
 *
 * Return: whether TCP has all that was written, as far as the kernel tells
 * Thread: one
 */
bool bp__ktls_out_drained(const struct ktls_out *out, int fd) {
    uint64_t count, written;
    unsigned overhead;
    int unacknowledged;
    int r = written_to_tcp(fd, &written, &unacknowledged);
    if (r == -EAGAIN)
        return false;
    if (r < 0)
        return true; /* not a socket that will send anything any more */
    if (!out->counts)
        return unacknowledged == 0; /* the most that can be known: what waits in TLS follows within a moment */
    if (records(fd, &count, &overhead) < 0)
        return true;
    BP_ASSERT(written >= out->tcp_before && count >= out->records_before);
    BP_ASSERT(overhead == out->overhead);
    return written - out->tcp_before >= out->payload_bytes + (count - out->records_before) * out->overhead;
}
