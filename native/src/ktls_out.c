/* How much of a kTLS connection's stream TCP has been given: the kernel does not tell.
 *
 * A record that finds no room is queued inside the kernel's TLS, and the call that brought it has succeeded. FIN and
 * close(2) overtake that queue, and close drops it (net/tls/tls_sw.c: tls_sw_sendmsg passes over the EAGAIN of
 * tls_tx_records; tls_sw_release_resources_tx frees tx_list). So before FIN it must be known to be empty. That follows
 * from three counts: the payload handed over, the records made of it, and the bytes that came to TCP.
 */
#include "internal.h"

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
#define STABLE_TRIES 16 /* two looks at TCP in a row that agree; acknowledgements come between them */

/* Bytes that were ever written to TCP, up to a constant. 0, or -errno. */
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

/* How many records the kernel has made, and what each adds to its payload. 0, or -errno: before Linux 5.16 the kernel
 * keeps the sequence numbers of other ciphers than AES-GCM to itself. */
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

void bp__ktls_out_begin(struct ktls_out *out, int fd) {
    int unacknowledged;
    memset(out, 0, sizeof *out);
    out->counts = records(fd, &out->records_before, &out->overhead) == 0 &&
                  written_to_tcp(fd, &out->tcp_before, &unacknowledged) == 0;
}

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
    return written - out->tcp_before >= out->payload_bytes + (count - out->records_before) * out->overhead;
}
