/* What the files of TLS share. A bp_tls and all that belongs to it is used by one thread at a time. */
#ifndef BP_TLS_H
#define BP_TLS_H

#include "check.h"

#include <openssl/ssl.h>

struct bp_tls_ctx {
    SSL_CTX *ssl_ctx;
    int server;
    SSL_CTX **named; /* hold further certificates, chosen by SNI; a reference each */
    size_t named_count;
};

/* tls_context.c */
void bp__tls_explain(const char *what, char *error, size_t bytes);
bp_tls_ctx *bp__tls_ctx_share(const bp_tls_ctx *ctx);

/* tls_meter.c: the work that a peer causes. */
struct tls_meter {
    bool established;
    int flood; /* the limit that it passed, a flood of enum bp_tls_result, or 0; nothing more is read */
    bool key_update_due; /* the peer asked for our KeyUpdate, which goes before the next write */
    bool close_notify_sent; /* and nothing may follow it */
    bool batch_waits; /* records that are made already must be sent before any other */
    unsigned reads_left, records_left; /* of the present call */
    size_t bytes_left; /* likewise */
    unsigned handshake_records;
    uint64_t control_millis; /* tokens, in thousandths */
    uint64_t control_at_ms; /* when they were counted last */
    size_t cost; /* in bytes, since bp__tls_cost() was last called */
};

/* Records that go out by one send(2). */
#define BATCH_RECORDS (SCRATCH_BYTES / SSL3_RT_MAX_PLAIN_LENGTH) /* of what one read brings */
#define BATCH_SPARE_BYTES 256 /* for a KeyUpdate or an alert among them */
#define BATCH_BYTES                                                                                                    \
    (BATCH_RECORDS * (SSL3_RT_HEADER_LENGTH + SSL3_RT_MAX_PLAIN_LENGTH + SSL3_RT_MAX_ENCRYPTED_OVERHEAD) +             \
     BATCH_SPARE_BYTES)

struct tls_batch {
    size_t at, bytes; /* data[at .. bytes) is not sent */
    unsigned count;
    struct {
        size_t end, payload; /* where it ends in `data`; what it carries, in bytes */
    } record[BATCH_RECORDS];
    unsigned char data[BATCH_BYTES];
};

struct bp_tls {
    SSL *ssl;
    struct tls_batch *batch; /* what the socket has not taken of the last write; NULL: nothing */
    int read_failure; /* what each read returns from now on, or 0: OpenSSL says it only once */
    int kernel; /* enum bp_ktls, once the handshake is complete */
    struct ktls_out out;
    struct tls_meter meter;
    char error[256];
};

void bp__tls_meter_attach(struct tls_meter *meter, SSL *ssl);
void bp__tls_meter_begin(struct tls_meter *meter);
const char *bp__tls_meter_message(int flood);

/* tls_bio.c */
BIO *bp__tls_bio_new(int fd);
void bp__tls_bio_more(bool follows);
void bp__tls_bio_meter(struct tls_meter *meter);
void bp__tls_bio_batch(struct tls_batch *batch);

#endif
