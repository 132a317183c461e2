/* The engine's API: moves bytes between two sockets, plain or TLS, in its own threads.
 *
 * No Python, no policy, no logging. Functions return 0 or a count, or -errno; fd ownership is written on each parameter:
 * "takes" (the callee closes it) or "borrows". All fds must be non-blocking sockets.
 */
#ifndef BP_H
#define BP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BP_MUST_CHECK __attribute__((warn_unused_result))

typedef struct bp_tls_ctx bp_tls_ctx;
typedef struct bp_tls bp_tls;
typedef struct bp_engine bp_engine;
typedef struct bp_splice bp_splice;

/* ---- TLS: OpenSSL on the socket itself, so that a connection can move to an engine thread ------------------------ */

enum bp_tls_result { /* negative results of bp_tls_handshake/read/write/shutdown, besides -errno */
                     BP_TLS_WANT_READ = -1001,
                     BP_TLS_WANT_WRITE = -1002,
                     BP_TLS_TRUNCATED = -1003, /* FIN without close_notify */
                     BP_TLS_ERROR = -1004,     /* bp_tls_error has OpenSSL's words */
                     /* The peer made us work for nothing; the connection reads no more, but can still be written to: */
                     BP_TLS_CONTROL_FLOOD = -1005, /* over TLS_CONTROL_RECORDS of tls_meter.c */
                     BP_TLS_HANDSHAKE_FLOOD = -1006, /* over TLS_HANDSHAKE_RECORDS of it */
};

/* Both return NULL on failure, with a reason in error[error_bytes]. Paths are PEM files; the last two may be NULL. */
bp_tls_ctx *bp_tls_ctx_server(const char *certificate, const char *key, const char *client_ca, char *error,
                              size_t error_bytes);
bp_tls_ctx *bp_tls_ctx_client(const char *ca, const char *certificate, const char *key, char *error,
                              size_t error_bytes);
void bp_tls_ctx_free(bp_tls_ctx *ctx);
/* A server shows other's certificate to clients that ask for one of its names (SNI); keeps a reference to other. All else
 * stays as ctx has it: client_ca, ALPN, kTLS, versions. */
BP_MUST_CHECK int bp_tls_ctx_add(bp_tls_ctx *ctx, const bp_tls_ctx *other);
/* From now on connections of ctx let the kernel do the records where kernel, OpenSSL and cipher can. */
void bp_tls_ctx_enable_ktls(bp_tls_ctx *ctx);

/* Borrows fd; keeps a reference to ctx. server_name (may be NULL) is sent and verified by a client. */
bp_tls *bp_tls_new(bp_tls_ctx *ctx, int fd, const char *server_name, char *error, size_t error_bytes);
void bp_tls_free(bp_tls *tls);
BP_MUST_CHECK int bp_tls_handshake(bp_tls *tls);
/* What several records have, if they are there already; 0: close_notify. It and bp_tls_handshake work for a bounded time:
 * BP_TLS_WANT_READ may also say that the peer has had its share, and the socket is readable still. */
BP_MUST_CHECK ssize_t bp_tls_read(bp_tls *tls, void *buffer, size_t bytes);
BP_MUST_CHECK ssize_t bp_tls_write(bp_tls *tls, const void *data, size_t bytes);
/* Sends close_notify. Until 0 is returned FIN or close(2) would lose bytes; BP_TLS_WANT_WRITE: call again when the socket
 * is writable, and if that does not help after a while, since the kernel's TLS catches up by itself. */
BP_MUST_CHECK int bp_tls_shutdown(bp_tls *tls);
const char *bp_tls_error(const bp_tls *tls);
/* Copies into text (NUL-terminated); return its length, 0 if there is none. */
size_t bp_tls_alpn(const bp_tls *tls, char *text, size_t bytes);
size_t bp_tls_server_name(const bp_tls *tls, char *text, size_t bytes);
const char *bp_tls_version(const bp_tls *tls);
const char *bp_tls_cipher(const bp_tls *tls);
/* Copies the peer's certificate as DER if it fits; returns its size, 0 if there is none. */
size_t bp_tls_peer_certificate(const bp_tls *tls, void *der, size_t bytes);
const char *bp_openssl_version(void);

enum bp_ktls { BP_KTLS_TX = 1, BP_KTLS_RX = 2 };

int bp_tls_ktls(const bp_tls *tls); /* which of enum bp_ktls the kernel does for this connection */
/* Tries kTLS on a connection of its own over loopback: are records on the wire encrypted, and do bytes survive splice(2)
 * under back-pressure? Returns which of enum bp_ktls may be spliced, or -errno; words says what was found. Blocks for
 * some milliseconds. */
BP_MUST_CHECK int bp_ktls_self_test(char *words, size_t bytes);

/* ---- engine -------------------------------------------------------------------------------------------------------- */

enum bp_splice_mode { BP_SPLICE_OFF, BP_SPLICE_AUTO, BP_SPLICE_ALWAYS };

enum bp_reason { /* why a connection ended */
                 BP_LIVE = 0,
                 BP_CLOSED, /* both directions ended by FIN, all bytes delivered */
                 BP_CLIENT_RESET, /* RST, or any error of its socket but a timeout */
                 BP_SATELLITE_RESET,
                 BP_CLIENT_TIMEOUT, /* keepalive or TCP_USER_TIMEOUT: the peer is dead */
                 BP_SATELLITE_TIMEOUT,
                 BP_CLIENT_TRUNCATED, /* TLS ended without close_notify; what came was delivered */
                 BP_SATELLITE_TRUNCATED,
                 BP_CLIENT_TLS_ERROR,
                 BP_SATELLITE_TLS_ERROR,
                 BP_IDLE_TIMEOUT,
                 BP_HALF_CLOSED_TIMEOUT, /* one direction ended long ago and the other is silent */
                 BP_ABORTED, /* by bp_splice_abort */
                 BP_ENGINE_CLOSED,
                 BP_NO_MEMORY,
                 BP_GIVEN_BACK, /* by bp_splice_give_back; the sockets live on */
                 BP_CLIENT_TLS_FLOOD, /* more KeyUpdates, tickets, alerts or empty records than TLS_CONTROL_RECORDS lets pass */
                 BP_SATELLITE_TLS_FLOOD,
                 BP_REASONS
};

struct bp_options {
    unsigned threads; /* 0: one per core */
    enum bp_splice_mode splice;
    int ktls; /* which of enum bp_ktls may be spliced: what bp_ktls_self_test returned, or 0 */
    uint32_t idle_timeout_s; /* 0: none */
    uint32_t half_closed_timeout_s; /* 0: none */
    uint32_t pipes; /* at most so many open at once, a thread; 0: PIPE_MAX, which more does not exceed */
};

struct bp_counters {
    uint64_t up_bytes; /* delivered from client to satellite */
    uint64_t down_bytes; /* delivered from satellite to client */
    uint64_t spliced_bytes;
    uint64_t last_activity_ms; /* CLOCK_MONOTONIC */
    int reason; /* enum bp_reason */
    int error; /* errno behind it, or 0 */
};

struct bp_statistics {
    uint64_t live;
    uint64_t pipes_open;
    uint64_t pipe_fallbacks; /* wanted a pipe and had to copy */
    uint64_t spliced_bytes;
    uint64_t copied_bytes;
};

struct bp_turns { /* of one thread; a turn is what it does between two waits */
    uint64_t turns;
    uint64_t long_turns; /* of over 50 ms */
    uint64_t longest_ns;
    uint64_t running_ns; /* how long the turn at hand has lasted; 0: the thread waits */
};

BP_MUST_CHECK int bp_engine_new(const struct bp_options *options, bp_engine **ret_engine);
int bp_engine_event_fd(const bp_engine *engine); /* readable when bp_engine_take_ended has something */
/* On success takes both fds and both tls (each may be NULL); on failure the caller keeps all of them. */
BP_MUST_CHECK int bp_engine_splice(bp_engine *engine, int client_fd, bp_tls *client_tls, int satellite_fd,
                                   bp_tls *satellite_tls, bp_splice **ret_splice);
/* The next ended splice, or NULL; the caller frees it with bp_splice_free when it has read the counters. */
bp_splice *bp_engine_take_ended(bp_engine *engine);
void bp_splice_free(bp_splice *splice); /* an ended one only */
void bp_splice_counters(const bp_splice *splice, struct bp_counters *ret); /* live or ended, any thread */
void bp_splice_abort(bp_splice *splice); /* RST both legs, later */
/* Asks for a live plain connection back: nothing more is read, what was read is delivered, then it ends with
 * BP_GIVEN_BACK. A reader that stalls delays that; bp_splice_abort still works. -EOPNOTSUPP if a leg is TLS. */
BP_MUST_CHECK int bp_splice_give_back(bp_splice *splice);
/* Takes the sockets out of a splice that was given back, once; the caller closes them. -EINVAL if there are none. */
BP_MUST_CHECK int bp_splice_take_sockets(bp_splice *splice, int *ret_client_fd, int *ret_satellite_fd);
void bp_engine_statistics(bp_engine *engine, struct bp_statistics *ret);
unsigned bp_engine_threads(const bp_engine *engine);
BP_MUST_CHECK int bp_engine_thread_cpu_ns(const bp_engine *engine, unsigned index, uint64_t *ret_ns);
/* Read without stopping the thread. */
BP_MUST_CHECK int bp_engine_thread_turns(const bp_engine *engine, unsigned index, struct bp_turns *ret);
/* Ends every splice and joins the threads; take_ended still works until bp_engine_free. */
void bp_engine_close(bp_engine *engine);
void bp_engine_free(bp_engine *engine); /* closes first; frees ended splices that nobody took */

#endif
