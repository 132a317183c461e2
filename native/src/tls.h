/* What the files of TLS share. */
#ifndef BP_TLS_H
#define BP_TLS_H

#include "internal.h"

#include <openssl/ssl.h>

struct bp_tls_ctx {
    SSL_CTX *ssl_ctx;
    int server;
    SSL_CTX **named; /* further certificates, chosen by SNI; each holds a reference */
    size_t named_count;
};

/* Puts into error: what, and OpenSSL's last words, which it takes from the queue. */
void bp__tls_explain(const char *what, char *error, size_t bytes);

/* tls_bio.c: a socket BIO, or NULL; borrows fd. Writes by this thread say from now on whether another follows at once. */
BIO *bp__tls_bio_new(int fd);
void bp__tls_bio_more(bool follows);

#endif
