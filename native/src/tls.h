/* What the files of TLS share. */
#ifndef BP_TLS_H
#define BP_TLS_H

#include "internal.h"

#include <openssl/ssl.h>

struct bp_tls_ctx {
    SSL_CTX *ssl_ctx;
    int server;
    SSL_CTX **named; /* hold further certificates, chosen by SNI; a reference each */
    size_t named_count;
};

/* Puts into error: what, and OpenSSL's last words, which it takes from the queue. */
void bp__tls_explain(const char *what, char *error, size_t bytes);

/* tls_meter.c: what a peer makes us work. */
struct tls_meter {
    bool established;
    int over; /* the limit that it passed, a flood of enum bp_tls_result; nothing more is read */
    bool answer_due; /* the peer asked for our KeyUpdate, which goes before the next write */
    bool silent; /* close_notify was sent, and nothing may follow it */
    unsigned reads_left, records_left; /* of the call at hand */
    size_t bytes_left;
    unsigned handshake_records;
    uint64_t control_millis; /* tokens, in thousandths */
    uint64_t control_at_ms;
    size_t cost;
};

struct bp_tls {
    SSL *ssl;
    int read_failure; /* what reads are told from now on: OpenSSL says it only once */
    int kernel;       /* enum bp_ktls, once hands were shaken */
    struct ktls_out out;
    struct tls_meter meter;
    char error[256];
};

void bp__tls_meter_attach(struct tls_meter *meter, SSL *ssl);
/* Gives the call that follows its share: see tls_bio.c for how it ends. */
void bp__tls_meter_begin(struct tls_meter *meter);
const char *bp__tls_meter_words(int over);

/* tls_bio.c: a socket BIO, or NULL; borrows fd. Writes by this thread say from now on whether another follows at once. */
BIO *bp__tls_bio_new(int fd);
void bp__tls_bio_more(bool follows);
/* Reads by this thread are from now on the meter's; NULL: nobody's. */
void bp__tls_bio_meter(struct tls_meter *meter);

#endif
