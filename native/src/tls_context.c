/* TLS contexts: certificates, keys, who is trusted, which certificate a server name gets. */
#include "tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>

#define WORDS_BYTES 256

/* The peer picks among these. OpenSSL's own list goes on to finite fields of 8192 bits, which are 12 ms of a server's time
 * where a whole handshake is 0.4 (CVE-2002-20001), and P-521. The first list is OpenSSL 3.5's; others do not know all of it. */
static const char *const GROUPS[] = {"X25519MLKEM768:X25519:P-256:P-384", "X25519:P-256:P-384"};

void bp__tls_explain(const char *what, char *error, size_t bytes) {
    unsigned long code = ERR_get_error();
    char words[WORDS_BYTES];
    if (code)
        ERR_error_string_n(code, words, sizeof words);
    else
        snprintf(words, sizeof words, "unknown error");
    snprintf(error, bytes, "%s: %s", what, words);
    ERR_clear_error();
}

/* Of TLS 1.2, what RFC 9113 section 9.2.2 leaves and everybody has: ephemeral keys and AEAD. Those of TLS 1.3 are all so.
 * The others are in its Appendix A, or (DHE) take keys of a size that a peer chooses. */
static const char TLS12_CIPHERS[] = "ECDHE+AESGCM:ECDHE+CHACHA20";

/* h2 if the client offers it, else http/1.1 so that it can be told in words what the port is, else nothing. */
static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_bytes, const unsigned char *in,
                       unsigned in_bytes, void *arg) {
    static const unsigned char ours[] = "\x02h2\x08http/1.1";
    unsigned char *chosen = NULL;
    (void)ssl;
    (void)arg;
    if (SSL_select_next_proto(&chosen, out_bytes, ours, sizeof ours - 1, in, in_bytes) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_NOACK;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static int set_groups(SSL_CTX *ssl_ctx) {
    for (size_t i = 0; i < sizeof GROUPS / sizeof *GROUPS; i++)
        if (SSL_CTX_set1_groups_list(ssl_ctx, GROUPS[i]) == 1) {
            ERR_clear_error();
            return 1;
        }
    return 0;
}

static bp_tls_ctx *ctx_new(const SSL_METHOD *method, int server, char *error, size_t error_bytes) {
    ERR_clear_error();
    bp_tls_ctx *ctx = calloc(1, sizeof *ctx);
    if (!ctx) {
        snprintf(error, error_bytes, "out of memory");
        return NULL;
    }
    ctx->server = server;
    ctx->ssl_ctx = SSL_CTX_new(method);
    if (!ctx->ssl_ctx || !SSL_CTX_set_min_proto_version(ctx->ssl_ctx, TLS1_2_VERSION) ||
        !SSL_CTX_set_cipher_list(ctx->ssl_ctx, TLS12_CIPHERS) || !set_groups(ctx->ssl_ctx)) {
        bp__tls_explain("TLS context", error, error_bytes);
        bp_tls_ctx_free(ctx);
        return NULL;
    }
    /* No tickets: they would be records that nobody reads once the kernel or the engine owns the stream. */
    SSL_CTX_set_options(ctx->ssl_ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_num_tickets(ctx->ssl_ctx, 0);
    SSL_CTX_set_session_cache_mode(ctx->ssl_ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ctx->ssl_ctx,
                     SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return ctx;
}

static int load_identity(bp_tls_ctx *ctx, const char *certificate, const char *key, char *error, size_t bytes) {
    if (SSL_CTX_use_certificate_chain_file(ctx->ssl_ctx, certificate) != 1) {
        bp__tls_explain(certificate, error, bytes);
        return -1;
    }
    if (SSL_CTX_use_PrivateKey_file(ctx->ssl_ctx, key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(ctx->ssl_ctx) != 1) {
        bp__tls_explain(key, error, bytes);
        return -1;
    }
    return 0;
}

static int load_authorities(bp_tls_ctx *ctx, const char *ca, char *error, size_t bytes) {
    if (SSL_CTX_load_verify_locations(ctx->ssl_ctx, ca, NULL) == 1)
        return 0;
    bp__tls_explain(ca, error, bytes);
    return -1;
}

bp_tls_ctx *bp_tls_ctx_server(const char *certificate, const char *key, const char *client_ca, char *error,
                              size_t error_bytes) {
    bp_tls_ctx *ctx = ctx_new(TLS_server_method(), 1, error, error_bytes);
    if (!ctx)
        return NULL;
    SSL_CTX_set_alpn_select_cb(ctx->ssl_ctx, select_alpn, NULL);
    if (load_identity(ctx, certificate, key, error, error_bytes) < 0 ||
        (client_ca && load_authorities(ctx, client_ca, error, error_bytes) < 0)) {
        bp_tls_ctx_free(ctx);
        return NULL;
    }
    if (client_ca)
        SSL_CTX_set_verify(ctx->ssl_ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return ctx;
}

bp_tls_ctx *bp_tls_ctx_client(const char *ca, const char *certificate, const char *key, char *error,
                              size_t error_bytes) {
    bp_tls_ctx *ctx = ctx_new(TLS_client_method(), 0, error, error_bytes);
    if (!ctx)
        return NULL;
    if (load_authorities(ctx, ca, error, error_bytes) < 0 ||
        (certificate && key && load_identity(ctx, certificate, key, error, error_bytes) < 0)) {
        bp_tls_ctx_free(ctx);
        return NULL;
    }
    SSL_CTX_set_verify(ctx->ssl_ctx, SSL_VERIFY_PEER, NULL);
    return ctx;
}

static bool names(const SSL_CTX *ssl_ctx, const char *name) {
    return X509_check_host(SSL_CTX_get0_certificate(ssl_ctx), name, 0, 0, NULL) == 1;
}

/* Shows the certificate whose names (SAN; RFC 9525) match; the listener's own if none does.
 *
 * Only certificate, chain and key are changed. SSL_set_SSL_CTX would change whom a client's certificate is verified by,
 * too, and whatever else OpenSSL looks up in the context: this way a connection is configured by one context alone. */
static int show_certificate(SSL *ssl, void *arg) {
    const bp_tls_ctx *ctx = arg;
    const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    if (!name || names(ctx->ssl_ctx, name))
        return 1;
    for (size_t i = 0; i < ctx->named_count; i++) {
        SSL_CTX *named = ctx->named[i];
        STACK_OF(X509) *chain = NULL;
        if (!names(named, name))
            continue;
        /* The listener's own may have a key of another kind, and would stay beside it. */
        SSL_certs_clear(ssl);
        return SSL_CTX_get0_chain_certs(named, &chain) &&
               SSL_use_cert_and_key(ssl, SSL_CTX_get0_certificate(named), SSL_CTX_get0_privatekey(named), chain, 1) ==
                   1;
    }
    return 1;
}

int bp_tls_ctx_add(bp_tls_ctx *ctx, const bp_tls_ctx *other) {
    SSL_CTX **grown = realloc(ctx->named, (ctx->named_count + 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    ctx->named = grown;
    SSL_CTX_up_ref(other->ssl_ctx);
    ctx->named[ctx->named_count++] = other->ssl_ctx;
    SSL_CTX_set_cert_cb(ctx->ssl_ctx, show_certificate, ctx);
    return 0;
}

void bp_tls_ctx_enable_ktls(bp_tls_ctx *ctx) {
#ifdef SSL_OP_ENABLE_KTLS
    SSL_CTX_set_options(ctx->ssl_ctx, SSL_OP_ENABLE_KTLS);
#else
    (void)ctx;
#endif
}

void bp_tls_ctx_free(bp_tls_ctx *ctx) {
    if (!ctx)
        return;
    for (size_t i = 0; i < ctx->named_count; i++)
        SSL_CTX_free(ctx->named[i]);
    free(ctx->named);
    SSL_CTX_free(ctx->ssl_ctx);
    free(ctx);
}
