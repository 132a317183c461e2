/* TLS contexts: certificates and keys, the authorities that are trusted, which certificate a server name gets. */
#include "tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define MESSAGE_BYTES 256

/* The peer chooses among these. OpenSSL's own list also has P-521 and finite fields up to 8192 bits, which take 12 ms of a
 * server's time where a whole handshake takes 0.4 (CVE-2002-20001). OpenSSL before 3.5 does not know all of the first list. */
static const char *const GROUPS[] = {"X25519MLKEM768:X25519:P-256:P-384", "X25519:P-256:P-384"};

/**
 * bp__tls_explain() - Describe OpenSSL's last failure, and empty its queue of errors
 * @what: What failed
 * @error: Receives "@what: reason", NUL-terminated
 * @bytes: Size of @error
 *
 * Thread: any; the queue is the thread's
 */
void bp__tls_explain(const char *what, char *error, size_t bytes) {
    unsigned long code = ERR_get_error();
    char message[MESSAGE_BYTES];
    if (code)
        ERR_error_string_n(code, message, sizeof message);
    else
        snprintf(message, sizeof message, "unknown error");
    snprintf(error, bytes, "%s: %s", what, message);
    ERR_clear_error();
}

/* Of TLS 1.2, the ciphers that RFC 9113 section 9.2.2 allows and every peer has: ephemeral keys and AEAD. All ciphers of
 * TLS 1.3 are such. The others are in its Appendix A, or (DHE) use keys of a size that the peer chooses. */
static const char TLS12_CIPHERS[] = "ECDHE+AESGCM+AES128:ECDHE+AESGCM:ECDHE+CHACHA20";

/* Both lists begin with AES-128: its rounds are fewer than those of AES-256, which is where most of the CPU for a byte goes. */
static const char TLS13_CIPHERS[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

/**
 * has_aes() - Whether the CPU has instructions for AES
 *
 * Return: whether it has; without them ChaCha20 costs less than any AES
 * Thread: any
 */
static bool has_aes(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("aes");
#elif defined(__aarch64__)
    return getauxval(AT_HWCAP) & HWCAP_AES;
#else
    return false;
#endif
}

/**
 * select_alpn() - OpenSSL's callback to choose the protocol (SSL_CTX_set_alpn_select_cb(3))
 * @ssl: Not used
 * @out: Receives the name
 * @out_bytes: Receives its length
 * @in: What the client offers, as in RFC 7301 section 3.1
 * @in_bytes: Size of @in
 * @arg: Not used
 *
 * Chooses h2 if the client offers it. Else http/1.1, so that the daemon can answer what the port is for. Else none.
 *
 * Return: SSL_TLSEXT_ERR_OK, or SSL_TLSEXT_ERR_NOACK to go on without ALPN
 * Thread: one
 */
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

/**
 * set_groups() - Set the groups for key exchange: the first list of GROUPS that OpenSSL knows all of
 * @ssl_ctx: OpenSSL's context
 *
 * Return: 1, or 0 if OpenSSL takes neither
 * Thread: one
 */
static int set_groups(SSL_CTX *ssl_ctx) {
    for (size_t i = 0; i < sizeof GROUPS / sizeof *GROUPS; i++)
        if (SSL_CTX_set1_groups_list(ssl_ctx, GROUPS[i]) == 1) {
            ERR_clear_error();
            return 1;
        }
    return 0;
}

/**
 * ctx_new() - Make a context with what listeners and clients have in common
 * @method: OpenSSL's method
 * @server: Whether its connections are a server's
 * @error: Receives the reason of a failure
 * @error_bytes: Size of @error
 *
 * Return: a context, or NULL
 * Thread: any
 */
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
        !SSL_CTX_set_cipher_list(ctx->ssl_ctx, TLS12_CIPHERS) ||
        !SSL_CTX_set_ciphersuites(ctx->ssl_ctx, TLS13_CIPHERS) || !set_groups(ctx->ssl_ctx)) {
        bp__tls_explain("TLS context", error, error_bytes);
        bp_tls_ctx_free(ctx);
        return NULL;
    }
    /* No tickets: nothing reads these records any more when the kernel or the engine has the stream. */
    SSL_CTX_set_options(ctx->ssl_ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_num_tickets(ctx->ssl_ctx, 0);
    SSL_CTX_set_session_cache_mode(ctx->ssl_ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ctx->ssl_ctx,
                     SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return ctx;
}

/**
 * load_identity() - Load a certificate with its chain and its key
 * @ctx: Context
 * @certificate: Path of a PEM file
 * @key: Path of a PEM file
 * @error: Receives the reason of a failure
 * @bytes: Size of @error
 *
 * Return: 0, or -1
 * Thread: one
 */
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

/**
 * load_authorities() - Load the authorities that a peer's certificate is verified by
 * @ctx: Context
 * @ca: Path of a PEM file
 * @error: Receives the reason of a failure
 * @bytes: Size of @error
 *
 * Return: 0, or -1
 * Thread: one
 */
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
    BP_ASSERT(ctx->server && ctx->ssl_ctx);
    SSL_CTX_set_alpn_select_cb(ctx->ssl_ctx, select_alpn, NULL);
    /* Our order decides, except for a client that puts ChaCha20 first because it has no instructions for AES. */
    if (has_aes())
        SSL_CTX_set_options(ctx->ssl_ctx, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    if (load_identity(ctx, certificate, key, error, error_bytes) < 0 ||
        (client_ca && load_authorities(ctx, client_ca, error, error_bytes) < 0)) {
        bp_tls_ctx_free(ctx);
        return NULL;
    }
    if (client_ca)
        SSL_CTX_set_verify(ctx->ssl_ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return ctx;
}

int bp_tls_ctx_add_crls(bp_tls_ctx *ctx, const char *crls, char *error, size_t error_bytes) {
    X509_STORE *store = SSL_CTX_get_cert_store(ctx->ssl_ctx);
    X509_LOOKUP *lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
    BP_ASSERT(ctx->server);
    if (!lookup || X509_load_crl_file(lookup, crls, X509_FILETYPE_PEM) < 1 ||
        X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL) != 1) {
        bp__tls_explain(crls, error, error_bytes);
        return -EINVAL;
    }
    return 0;
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

/**
 * has_name() - Whether a context's certificate is for a name (SAN; RFC 9525)
 * @ssl_ctx: OpenSSL's context
 * @name: Name, as in SNI
 *
 * Return: whether it is
 * Thread: any
 */
static bool has_name(const SSL_CTX *ssl_ctx, const char *name) {
    return X509_check_host(SSL_CTX_get0_certificate(ssl_ctx), name, 0, 0, NULL) == 1;
}

/**
 * choose_certificate() - OpenSSL's callback to choose the certificate (SSL_CTX_set_cert_cb(3))
 * @ssl: Connection; gets the certificate for the name that the client asks for, or keeps the listener's own
 * @arg: The listener's context
 *
 * Only certificate, chain and key change. SSL_set_SSL_CTX(3) would also change which authorities verify a client's
 * certificate, and all else that OpenSSL looks up in the context.
 *
 * Return: 1, or 0 to end the handshake
 * Thread: one
 */
static int choose_certificate(SSL *ssl, void *arg) {
    const bp_tls_ctx *ctx = arg;
    const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    if (!name || has_name(ctx->ssl_ctx, name))
        return 1;
    for (size_t i = 0; i < ctx->named_count; i++) {
        SSL_CTX *named = ctx->named[i];
        STACK_OF(X509) *chain = NULL;
        if (!has_name(named, name))
            continue;
        /* The listener's own certificate may have a key of another kind; then both would be offered. */
        SSL_certs_clear(ssl);
        return SSL_CTX_get0_chain_certs(named, &chain) &&
               SSL_use_cert_and_key(ssl, SSL_CTX_get0_certificate(named), SSL_CTX_get0_privatekey(named), chain, 1) ==
                   1;
    }
    return 1;
}

int bp_tls_ctx_add(bp_tls_ctx *ctx, const bp_tls_ctx *other) {
    BP_ASSERT(ctx->server && other->server);
    SSL_CTX **grown = realloc(ctx->named, (ctx->named_count + 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    ctx->named = grown;
    SSL_CTX_up_ref(other->ssl_ctx);
    ctx->named[ctx->named_count++] = other->ssl_ctx;
    SSL_CTX_set_cert_cb(ctx->ssl_ctx, choose_certificate, ctx);
    return 0;
}

void bp_tls_ctx_enable_ktls(bp_tls_ctx *ctx) {
#ifdef SSL_OP_ENABLE_KTLS
    SSL_CTX_set_options(ctx->ssl_ctx, SSL_OP_ENABLE_KTLS);
#else
    (void)ctx;
#endif
}

/**
 * bp__tls_ctx_share() - Make a further handle of a client's context, which may outlive the first
 * @ctx: Context of bp_tls_ctx_client()
 *
 * Return: a context, which bp_tls_ctx_free() frees; NULL without memory
 * Thread: any
 */
bp_tls_ctx *bp__tls_ctx_share(const bp_tls_ctx *ctx) {
    bp_tls_ctx *shared = calloc(1, sizeof *shared);
    BP_ASSERT(!ctx->server && !ctx->named);
    if (!shared)
        return NULL;
    SSL_CTX_up_ref(ctx->ssl_ctx);
    shared->ssl_ctx = ctx->ssl_ctx;
    return shared;
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
