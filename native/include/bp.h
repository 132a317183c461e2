/* The engine's API: it moves bytes between two sockets, plain or TLS, in threads of its own.
 *
 * The engine has no Python, no policy and no logging. A function that can fail returns 0 or a count, or a negative errno
 * (errno(3)). Each parameter that is a file descriptor says who closes it: "takes" means that the engine does, "borrows"
 * that the caller does. All file descriptors must be sockets.
 *
 * "Thread" says who may call a function:
 *   any  any thread, at any time
 *   one  any thread; calls for the same object must not overlap
 */
#ifndef BP_H
#define BP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BP_MUST_CHECK __attribute__((warn_unused_result))

typedef struct bp_tls_ctx bp_tls_ctx;
typedef struct bp_tls bp_tls;
typedef struct bp_engine bp_engine;
typedef struct bp_splice bp_splice;
typedef struct bp_opener bp_opener;
typedef struct bp_opening bp_opening;
typedef struct bp_joiner bp_joiner;
typedef struct bp_stream bp_stream;
typedef struct bp_admission bp_admission;
typedef struct bp_gate bp_gate;

/* ---- TLS: OpenSSL on the socket itself, so that a connection can move to an engine thread ------------------------ */

enum bp_tls_result { /* what bp_tls_handshake, _read, _write and _shutdown return below 0, besides a negative errno */
                     BP_TLS_WANT_READ = -1001,
                     BP_TLS_WANT_WRITE = -1002,
                     BP_TLS_TRUNCATED = -1003, /* FIN without close_notify */
                     BP_TLS_ERROR = -1004, /* bp_tls_error has OpenSSL's message */
                     /* The peer sends records that carry no data, over a limit. Nothing more is read; writing is still possible. */
                     BP_TLS_CONTROL_FLOOD = -1005, /* over TLS_CONTROL_RECORDS of tls_meter.c */
                     BP_TLS_HANDSHAKE_FLOOD = -1006, /* over TLS_HANDSHAKE_RECORDS of tls_meter.c */
};

/**
 * bp_tls_ctx_server() - Make the context of a listener's connections
 * @certificate: Path of a PEM file: the certificate, then its chain
 * @key: Path of a PEM file: the private key
 * @client_ca: Path of a PEM file: clients must have a certificate of one of these authorities; NULL: clients need none
 * @error: Receives the reason of a failure, NUL-terminated
 * @error_bytes: Size of @error
 *
 * Return: a context, which bp_tls_ctx_free() frees; NULL on failure
 * Thread: any
 */
bp_tls_ctx *bp_tls_ctx_server(const char *certificate, const char *key, const char *client_ca, char *error,
                              size_t error_bytes);
/**
 * bp_tls_ctx_add_crls() - Have a server refuse the clients whose certificates, or whose authorities', are revoked
 * @ctx: Context of a listener that has a client_ca
 * @crls: Path of a PEM file with the CRLs of all authorities of the clients' chains (RFC 5280)
 * @error: Receives the reason of a failure, NUL-terminated
 * @error_bytes: Size of @error
 *
 * A client is also refused if the CRL of one of its authorities is missing, or if its nextUpdate has passed.
 *
 * Return: 0, or -EINVAL
 * Thread: one
 */
BP_MUST_CHECK int bp_tls_ctx_add_crls(bp_tls_ctx *ctx, const char *crls, char *error, size_t error_bytes);
/**
 * bp_tls_ctx_client() - Make the context of connections to satellites
 * @ca: Path of a PEM file: the server must have a certificate of one of these authorities
 * @certificate: Path of a PEM file: the client's certificate and its chain; NULL: none
 * @key: Path of a PEM file: the private key; NULL: none
 * @error: Receives the reason of a failure, NUL-terminated
 * @error_bytes: Size of @error
 *
 * Return: a context, which bp_tls_ctx_free() frees; NULL on failure
 * Thread: any
 */
bp_tls_ctx *bp_tls_ctx_client(const char *ca, const char *certificate, const char *key, char *error,
                              size_t error_bytes);
/**
 * bp_tls_ctx_free() - Drop the caller's reference to a context; its connections keep theirs
 * @ctx: Context, or NULL
 *
 * Thread: one
 */
void bp_tls_ctx_free(bp_tls_ctx *ctx);
/**
 * bp_tls_ctx_add() - Let a server show a further certificate to clients that ask for one of its names (SNI)
 * @ctx: Context of the listener; client_ca, ALPN, kTLS and versions stay as it has them
 * @other: Context with the further certificate; @ctx keeps a reference to its OpenSSL part
 *
 * Return: 0, or -ENOMEM
 * Thread: one, before the first connection of @ctx
 */
BP_MUST_CHECK int bp_tls_ctx_add(bp_tls_ctx *ctx, const bp_tls_ctx *other);
/**
 * bp_tls_ctx_enable_ktls() - Let the kernel encrypt and decrypt for new connections if kernel, OpenSSL and cipher can
 * @ctx: Context
 *
 * Thread: one, before the first connection of @ctx
 */
void bp_tls_ctx_enable_ktls(bp_tls_ctx *ctx);

/**
 * bp_tls_new() - Start TLS on a socket; bp_tls_handshake() comes next
 * @ctx: Context; the connection keeps a reference to its OpenSSL part
 * @fd: Borrows; non-blocking
 * @server_name: Client: the name or address that the server's certificate must have, a name is also sent (SNI); or NULL
 * @error: Receives the reason of a failure, NUL-terminated
 * @error_bytes: Size of @error
 *
 * Return: a connection, which bp_tls_free() frees; NULL on failure
 * Thread: any
 */
bp_tls *bp_tls_new(bp_tls_ctx *ctx, int fd, const char *server_name, char *error, size_t error_bytes);
/**
 * bp_tls_free() - Free a connection's TLS; sends nothing, and the socket stays open
 * @tls: Connection, or NULL
 *
 * Thread: one
 */
void bp_tls_free(bp_tls *tls);
/**
 * bp_tls_handshake() - Go on with the handshake
 * @tls: Connection
 *
 * The time of a call is bounded: BP_TLS_WANT_READ may also mean that the peer has had its share while the socket is
 * still readable.
 *
 * Return: 0 when the handshake is complete, or of enum bp_tls_result, or a negative errno
 * Thread: one
 */
BP_MUST_CHECK int bp_tls_handshake(bp_tls *tls);
/**
 * bp_tls_read() - Read what several records carry, if they are there already
 * @tls: Connection
 * @buffer: Receives the bytes
 * @bytes: Size of @buffer, at least 1
 *
 * The time of a call is bounded, as that of bp_tls_handshake() is.
 *
 * Return: number of bytes, 0 after close_notify, or of enum bp_tls_result, or a negative errno
 * Thread: one
 */
BP_MUST_CHECK ssize_t bp_tls_read(bp_tls *tls, void *buffer, size_t bytes);
/**
 * bp_tls_write() - Write at most one record
 * @tls: Connection
 * @data: Bytes to send
 * @bytes: How many; after BP_TLS_WANT_WRITE the next call must have at least as many, with the same beginning
 *
 * Return: number of bytes written, or of enum bp_tls_result, or a negative errno
 * Thread: one
 */
BP_MUST_CHECK ssize_t bp_tls_write(bp_tls *tls, const void *data, size_t bytes);
/**
 * bp_tls_shutdown() - Send close_notify
 * @tls: Connection
 *
 * Until this returns 0, FIN or close(2) would lose bytes. After BP_TLS_WANT_WRITE call again when the socket is writable;
 * if it is writable already, call again after a while, because the kernel's TLS sends what it queued by itself.
 *
 * Return: 0, or of enum bp_tls_result, or a negative errno
 * Thread: one
 */
BP_MUST_CHECK int bp_tls_shutdown(bp_tls *tls);
/**
 * bp_tls_error() - The message of the last failure
 * @tls: Connection
 *
 * Return: text, valid until the next call for @tls; empty if nothing failed
 * Thread: one
 */
const char *bp_tls_error(const bp_tls *tls);
/**
 * bp_tls_alpn() - Copy the protocol that both sides agreed on (ALPN, RFC 7301)
 * @tls: Connection after its handshake
 * @text: Receives the name, NUL-terminated
 * @bytes: Size of @text
 *
 * Return: length of the name; 0 if there is none or it does not fit
 * Thread: one
 */
size_t bp_tls_alpn(const bp_tls *tls, char *text, size_t bytes);
/**
 * bp_tls_server_name() - Copy the name that the client asked for (SNI, RFC 6066 section 3)
 * @tls: Connection after its handshake
 * @text: Receives the name, NUL-terminated
 * @bytes: Size of @text
 *
 * Return: length of the name; 0 if there is none or it does not fit
 * Thread: one
 */
size_t bp_tls_server_name(const bp_tls *tls, char *text, size_t bytes);
/**
 * bp_tls_version() - The version of TLS
 * @tls: Connection after its handshake
 *
 * Return: OpenSSL's name of it, such as "TLSv1.3"
 * Thread: one
 */
const char *bp_tls_version(const bp_tls *tls);
/**
 * bp_tls_cipher() - The cipher suite
 * @tls: Connection after its handshake
 *
 * Return: OpenSSL's name of it; empty if there is none
 * Thread: one
 */
const char *bp_tls_cipher(const bp_tls *tls);
/**
 * bp_tls_peer_certificate() - Copy the peer's certificate as DER (RFC 5280) if it fits
 * @tls: Connection after its handshake
 * @der: Receives the certificate
 * @bytes: Size of @der
 *
 * Return: size of the certificate in bytes, also if it does not fit; 0 if there is none
 * Thread: one
 */
size_t bp_tls_peer_certificate(const bp_tls *tls, void *der, size_t bytes);
/**
 * bp_openssl_version() - The version of OpenSSL at run time
 *
 * Return: OpenSSL's text, such as "OpenSSL 3.0.11 19 Sep 2023"
 * Thread: any
 */
const char *bp_openssl_version(void);

enum bp_ktls { BP_KTLS_TX = 1, BP_KTLS_RX = 2 };

/**
 * bp_tls_ktls() - Which directions the kernel does for a connection
 * @tls: Connection after its handshake
 *
 * Return: a sum of enum bp_ktls, or 0
 * Thread: one
 */
int bp_tls_ktls(const bp_tls *tls);
/**
 * bp_ktls_self_test() - Try kTLS on a connection of the engine's own over loopback
 * @message: Receives what was found, NUL-terminated
 * @bytes: Size of @message
 *
 * Tests whether records on the wire are encrypted, and whether bytes survive splice(2) under back-pressure. Blocks for
 * some milliseconds.
 *
 * Return: which of enum bp_ktls may be spliced, or a negative errno
 * Thread: any
 */
BP_MUST_CHECK int bp_ktls_self_test(char *message, size_t bytes);

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
                 BP_GIVEN_BACK, /* by bp_splice_give_back; the sockets stay open */
                 BP_CLIENT_TLS_FLOOD, /* more KeyUpdates, tickets, alerts or empty records than TLS_CONTROL_RECORDS allows */
                 BP_SATELLITE_TLS_FLOOD,
                 BP_REASONS
};

enum bp_priority { /* how soon a thread runs that has something to do, beside others that want its core */
                   BP_PRIORITY_NORMAL, /* SCHED_OTHER */
                   BP_PRIORITY_SLICE, /* SCHED_OTHER with slices of 0.1 ms (Linux 6.12); needs no privilege */
                   BP_PRIORITY_REALTIME, /* SCHED_RR 1 unless the thread is busy all the time; needs RLIMIT_RTPRIO */
};

struct bp_options {
    unsigned threads; /* 0: one per core */
    enum bp_splice_mode splice;
    int ktls; /* which of enum bp_ktls may be spliced: what bp_ktls_self_test returned, or 0 */
    uint32_t idle_timeout_s; /* 0: none */
    uint32_t half_closed_timeout_s; /* 0: none */
    uint32_t pipes; /* most that are open at once, per thread; 0 or over PIPE_MAX: PIPE_MAX */
    enum bp_priority priority; /* a thread that is refused one gets the next below it */
    uint32_t unsent_bytes; /* TCP_NOTSENT_LOWAT of clients' sockets; 0: the system's */
    uint32_t busy_poll_us; /* longest time that a thread polls before it sleeps; 0: it does not */
};

struct bp_counters {
    uint64_t up_bytes; /* delivered from client to satellite */
    uint64_t down_bytes; /* delivered from satellite to client */
    uint64_t spliced_bytes;
    uint64_t last_activity_ms; /* CLOCK_MONOTONIC */
    uint64_t first_down_ms; /* when the first byte was delivered to the client; 0: none was */
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
    uint64_t running_ns; /* how long the present turn has lasted; 0: the thread waits */
};

/**
 * bp_engine_new() - Make an engine and start its threads
 * @options: Copied
 * @ret_engine: Receives the engine on success, which bp_engine_free() frees
 *
 * Return: 0, or a negative errno
 * Thread: any
 */
BP_MUST_CHECK int bp_engine_new(const struct bp_options *options, bp_engine **ret_engine);
/**
 * bp_engine_event_fd() - The file descriptor that is readable when bp_engine_take_ended() has something
 * @engine: Engine
 *
 * Return: a file descriptor, which the engine closes
 * Thread: any
 */
int bp_engine_event_fd(const bp_engine *engine);
/**
 * bp_engine_splice() - Hand over a connection: its bytes move until it ends
 * @engine: Engine
 * @client_fd: Takes on success
 * @client_tls: Takes on success; NULL: plain
 * @satellite_fd: Takes on success
 * @satellite_tls: Takes on success; NULL: plain
 * @ret_splice: Receives the splice on success, which bp_engine_take_ended() returns when it has ended
 *
 * Return: 0; -ESHUTDOWN after bp_engine_close(); or another negative errno, and the caller keeps all that it passed
 * Thread: any
 */
BP_MUST_CHECK int bp_engine_splice(bp_engine *engine, int client_fd, bp_tls *client_tls, int satellite_fd,
                                   bp_tls *satellite_tls, bp_splice **ret_splice);
/**
 * bp_engine_take_ended() - Take the splice that ended first
 * @engine: Engine
 *
 * Return: a splice, which the caller frees by bp_splice_free(); NULL if there is none
 * Thread: one
 */
bp_splice *bp_engine_take_ended(bp_engine *engine);
/**
 * bp_splice_free() - Free a splice, and close the sockets that were given back and not taken
 * @splice: One that bp_engine_take_ended() returned
 *
 * Thread: one
 */
void bp_splice_free(bp_splice *splice);
/**
 * bp_splice_counters() - Read a splice's counters, live or ended
 * @splice: Splice
 * @ret: Receives the counters
 *
 * Thread: any
 */
void bp_splice_counters(const bp_splice *splice, struct bp_counters *ret);
/**
 * bp_splice_abort() - Ask for the end of a splice: soon both peers get RST
 * @splice: Splice
 *
 * Thread: any
 */
void bp_splice_abort(bp_splice *splice);
/**
 * bp_splice_give_back() - Ask for the sockets of a live plain connection
 * @splice: Splice
 *
 * The engine reads no more and delivers what it has read; then the splice ends with BP_GIVEN_BACK. A peer that does not
 * read delays that. bp_splice_abort() still works.
 *
 * Return: 0, or -EOPNOTSUPP if a leg is TLS
 * Thread: any
 */
BP_MUST_CHECK int bp_splice_give_back(bp_splice *splice);
/**
 * bp_splice_take_sockets() - Take the sockets out of a splice that was given back; the caller closes them
 * @splice: One that bp_engine_take_ended() returned
 * @ret_client_fd: Receives the client's socket on success
 * @ret_satellite_fd: Receives the satellite's socket on success
 *
 * Return: 0, or -EINVAL if it was not given back or they were taken already
 * Thread: one
 */
BP_MUST_CHECK int bp_splice_take_sockets(bp_splice *splice, int *ret_client_fd, int *ret_satellite_fd);
/**
 * bp_engine_statistics() - Add up the counters of all threads
 * @engine: Engine
 * @ret: Receives the sums
 *
 * Thread: any
 */
void bp_engine_statistics(bp_engine *engine, struct bp_statistics *ret);
/**
 * bp_engine_threads() - The number of threads
 * @engine: Engine
 *
 * Return: the number of threads, 1 to 256
 * Thread: any
 */
unsigned bp_engine_threads(const bp_engine *engine);
/**
 * bp_engine_thread_cpu_ns() - The CPU time that a thread has used
 * @engine: Engine, not closed
 * @index: Thread, from 0
 * @ret_ns: Receives the time in nanoseconds
 *
 * Return: 0; -EINVAL if there is no such thread; or another negative errno
 * Thread: one, with bp_engine_close()
 */
BP_MUST_CHECK int bp_engine_thread_cpu_ns(const bp_engine *engine, unsigned index, uint64_t *ret_ns);
/**
 * bp_engine_thread_priority() - The priority that a thread has now
 * @engine: Engine
 * @index: Thread, from 0
 * @ret_priority: Receives the priority
 * @ret_error: Receives the errno of the priority that was refused at the start, or 0
 *
 * Return: 0; or -EINVAL if there is no such thread
 * Thread: any
 */
BP_MUST_CHECK int bp_engine_thread_priority(const bp_engine *engine, unsigned index, enum bp_priority *ret_priority,
                                            int *ret_error);
/**
 * bp_thread_give_way() - Give the calling thread, and those that it starts from now on, a tenth of an engine thread's weight
 *
 * A thread that has a higher nice value already keeps it, and so does one that does not run under SCHED_OTHER.
 *
 * Return: 0, or a negative errno: -EPERM if a filter of system calls forbids it
 * Thread: any
 */
BP_MUST_CHECK int bp_thread_give_way(void);
/**
 * bp_engine_thread_turns() - Read what a thread tells of its turns, without stopping it
 * @engine: Engine
 * @index: Thread, from 0
 * @ret: Receives the counters
 *
 * Return: 0, or -EINVAL if there is no such thread
 * Thread: any
 */
BP_MUST_CHECK int bp_engine_thread_turns(const bp_engine *engine, unsigned index, struct bp_turns *ret);
/**
 * bp_engine_close() - End every splice and join the threads
 * @engine: Engine; bp_engine_take_ended() works until bp_engine_free()
 *
 * Thread: one
 */
void bp_engine_close(bp_engine *engine);
/**
 * bp_engine_free() - Close an engine, then free it and the ended splices that the caller did not take
 * @engine: Engine, or NULL
 *
 * Thread: one, and no other function for this engine
 */
void bp_engine_free(bp_engine *engine);

/* ---- openings: accepted connections until their first bytes, in threads of their own ------------------------------- */

enum bp_opening_step { BP_OPENING_FIRST_BYTE, BP_OPENING_HANDSHAKE, BP_OPENING_FLIGHT, BP_OPENING_DONE };

struct bp_opened { /* how an opening ended */
    enum bp_opening_step step; /* where it ended; BP_OPENING_DONE: its first bytes are here */
    ssize_t
        result; /* unless it is done: 0 if the peer closed, of enum bp_tls_result, a negative errno, -ECANCELED: aborted */
    bp_tls *tls; /* still owned by the opening; NULL: the peer speaks no TLS, or said nothing */
    const char *first; /* likewise */
    size_t first_bytes;
};

/**
 * bp_opener_new() - Start the threads that bring accepted connections to their first bytes
 * @threads: How many; 0: one per core
 * @first_bytes: The most that is read of the first bytes, up to 64 KiB
 * @ret_opener: Receives the opener on success, which bp_opener_free() frees
 *
 * Return: 0, or a negative errno
 * Thread: any
 */
BP_MUST_CHECK int bp_opener_new(unsigned threads, size_t first_bytes, bp_opener **ret_opener);
/**
 * bp_opener_event_fd() - The file descriptor that is readable when bp_opener_take() has something
 * @opener: Opener
 *
 * Return: a file descriptor, which the opener closes
 * Thread: any
 */
int bp_opener_event_fd(const bp_opener *opener);
/**
 * bp_opener_threads() - The number of threads
 * @opener: Opener
 *
 * Return: the number of threads, 1 to 256
 * Thread: any
 */
unsigned bp_opener_threads(const bp_opener *opener);
/**
 * bp_opener_turns() - Read what a thread tells of its turns, and the CPU time that it has used, without stopping it
 * @opener: Opener
 * @index: Thread, from 0
 * @ret: Receives the counters
 * @ret_cpu_ns: Receives nanoseconds
 *
 * Return: 0; -EINVAL if there is no such thread; or another negative errno
 * Thread: any
 */
BP_MUST_CHECK int bp_opener_turns(const bp_opener *opener, unsigned index, struct bp_turns *ret, uint64_t *ret_cpu_ns);
/**
 * bp_opener_limit() - Bound the handshakes that begin; those beyond wait for their turn
 * @opener: Opener
 * @handshakes_per_s: How many in a second; 0: no limit
 *
 * Thread: any
 */
void bp_opener_limit(bp_opener *opener, uint32_t handshakes_per_s);
/**
 * bp_opener_start() - Begin an opening: the peer's TLS, if it begins with TLS and there is a context, and its first bytes
 * @opener: Opener, not closed
 * @fd: Borrows until bp_opener_take() returns the opening
 * @ctx: Borrows likewise; context of a listener; NULL: plain
 * @ret_opening: Receives the opening on success
 *
 * There is no deadline: the caller aborts an opening that takes too long.
 *
 * Return: 0, or -ENOMEM
 * Thread: any
 */
BP_MUST_CHECK int bp_opener_start(bp_opener *opener, int fd, bp_tls_ctx *ctx, bp_opening **ret_opening);
/**
 * bp_opening_abort() - Ask for the end of an opening; bp_opener_take() returns it soon
 * @opening: One that bp_opening_free() has not freed; nothing happens if it is over already
 *
 * Thread: one
 */
void bp_opening_abort(bp_opening *opening);
/**
 * bp_opener_take() - Take the opening that was over first
 * @opener: Opener
 *
 * Return: an opening, which the caller frees by bp_opening_free(); NULL if there is none
 * Thread: one
 */
bp_opening *bp_opener_take(bp_opener *opener);
/**
 * bp_opening_read() - Read how an opening ended
 * @opening: One that bp_opener_take() returned
 * @ret: Receives it
 *
 * Thread: one
 */
void bp_opening_read(const bp_opening *opening, struct bp_opened *ret);
/**
 * bp_opening_take_tls() - Take the TLS connection out of an opening
 * @opening: One that bp_opener_take() returned
 *
 * Return: the connection, which bp_tls_free() frees; or NULL
 * Thread: one
 */
bp_tls *bp_opening_take_tls(bp_opening *opening);
/**
 * bp_opening_free() - Free an opening, and its TLS connection unless that was taken; the socket stays open
 * @opening: One that bp_opener_take() returned, or NULL
 *
 * Thread: one
 */
void bp_opening_free(bp_opening *opening);
/**
 * bp_opener_free() - End all openings, join the threads, free the opener and the openings that the caller did not take
 * @opener: Opener, or NULL
 *
 * Thread: one, and no other function for this opener
 */
void bp_opener_free(bp_opener *opener);

/* ---- streams: connections between their first bytes and their splice, in a thread of their own --------------------- */
/* What the bp_stream_ functions ask for is done after bp_joiner_wake(): once for many, since a wake-up is dear. */

enum bp_news_flag { /* what is new of a stream, in this order */
                    BP_NEWS_CONNECTED = 1, /* a satellite is connected, and its TLS handshake is done */
                    BP_NEWS_DATA = 2, /* bytes of the peer */
                    BP_NEWS_END = 4, /* the peer has ended its stream after them */
                    BP_NEWS_BROKEN = 8, /* a read or a write has failed; `result` and `words` say how */
                    BP_NEWS_HUNG_UP = 16, /* the peer has ended or reset the connection, behind what may be read */
                    BP_NEWS_SENT = 32, /* much was sent: bp_stream_sent_bytes() tells how much */
                    BP_NEWS_JOINED = 64, /* of a client: nothing is left to be replayed; both streams are released */
                    BP_NEWS_RELEASED =
                        128, /* the socket is the caller's again; `failure` says whether something failed */
                    /* Of the client of bp_opener_admit(), which has no news before one of these: */
                    BP_NEWS_UP = 256, /* it was not admitted, and is the caller's from now on */
                    BP_NEWS_COMMITTED = 512, /* it is being joined, and counts as its satellite's from now on */
};

enum bp_stream_failure { /* what has failed when a stream is released */
                         BP_STREAM_FINE,
                         BP_STREAM_CONNECT, /* -errno; -ETIME: the deadline; -ECANCELED: bp_stream_release() */
                         BP_STREAM_HANDSHAKE, /* of enum bp_tls_result, or as above */
                         BP_STREAM_CLIENT, /* of a join: 0 if the client has ended, of enum bp_tls_result, or -errno */
                         BP_STREAM_SATELLITE, /* likewise */
                         BP_STREAM_FRAME, /* the client has sent a frame that must not come; `header` has its header */
                         BP_STREAM_LATE, /* the join was not done in time */
                         BP_STREAM_STOPPED, /* by bp_stream_release() */
};

enum bp_stream_sizes { BP_STREAM_WORDS = 256 };

struct bp_news { /* of one stream; the pointers are valid until the next bp_joiner_take() */
    bp_stream *stream;
    unsigned flags; /* of enum bp_news_flag */
    enum bp_stream_failure failure; /* with BP_NEWS_RELEASED */
    ssize_t result; /* with BP_NEWS_RELEASED and BP_NEWS_BROKEN */
    const char *data;
    size_t data_bytes;
    const char *unsent; /* with BP_NEWS_RELEASED: what waits for the peer */
    size_t unsent_bytes;
    const char *words; /* TLS' message of the last failure, or empty */
    const unsigned char *header; /* with BP_STREAM_FRAME: 9 bytes */
};

struct bp_join { /* what each side gets before the splice */
    const char *to_client;
    size_t to_client_bytes;
    const char *to_satellite;
    size_t to_satellite_bytes;
    const char *frames; /* the client's bytes behind those: whole frames from their beginning on */
    size_t frames_bytes;
    int ack_owed; /* whether the ACK of SETTINGS has to be taken out of what follows to_satellite */
    uint32_t deadline_ms;
};

/**
 * bp_joiner_new() - Start the thread that has connections between their first bytes and their splice
 * @ret_joiner: Receives the joiner on success, which bp_joiner_free() frees
 *
 * Return: 0, or a negative errno
 * Thread: any
 */
BP_MUST_CHECK int bp_joiner_new(bp_joiner **ret_joiner);
/**
 * bp_joiner_event_fd() - The file descriptor that is readable while bp_joiner_take() has something
 * @joiner: Joiner
 *
 * Return: a file descriptor, which the joiner closes
 * Thread: any
 */
int bp_joiner_event_fd(const bp_joiner *joiner);
/**
 * bp_joiner_turns() - Read what the thread tells of its turns, and the CPU time that it has used, without stopping it
 * @joiner: Joiner
 * @ret: Receives the counters
 * @ret_cpu_ns: Receives nanoseconds
 *
 * Return: 0, or a negative errno
 * Thread: any
 */
BP_MUST_CHECK int bp_joiner_turns(const bp_joiner *joiner, struct bp_turns *ret, uint64_t *ret_cpu_ns);
/**
 * bp_joiner_wake() - Have the thread do what was asked by the bp_stream_ functions since the last call
 * @joiner: Joiner
 *
 * Thread: any
 */
void bp_joiner_wake(bp_joiner *joiner);
/**
 * bp_joiner_pause() - Read no stream, or read all again; joins go on
 * @joiner: Joiner
 * @paused: Whether nothing is to be read
 *
 * Thread: any
 */
void bp_joiner_pause(bp_joiner *joiner, int paused);
/**
 * bp_joiner_take() - Take what is new of one stream
 * @joiner: Joiner
 * @ret: Receives it
 *
 * Return: 1, or 0 if there is nothing
 * Thread: one
 */
int bp_joiner_take(bp_joiner *joiner, struct bp_news *ret);
/**
 * bp_joiner_free() - Join the thread, free the joiner and all streams with their TLS; the sockets stay open
 * @joiner: Joiner, or NULL
 *
 * Thread: one, and no other function for this joiner
 */
void bp_joiner_free(bp_joiner *joiner);
/**
 * bp_stream_open() - Make the stream of a connected peer; nothing is done before something is asked of it
 * @joiner: Joiner
 * @fd: Borrows until the stream is released
 * @tls: Takes on success; NULL: plain
 * @ret_stream: Receives the stream on success
 *
 * Return: 0, or -ENOMEM
 * Thread: any
 */
BP_MUST_CHECK int bp_stream_open(bp_joiner *joiner, int fd, bp_tls *tls, bp_stream **ret_stream);
/**
 * bp_stream_connect() - Make the stream of a satellite that is being connected to; it begins as that of a peer does
 * @joiner: Joiner
 * @fd: Borrows until the stream is released; connect(2) was called for it without waiting
 * @tls: Takes on success: its handshake comes next; NULL: plain
 * @deadline_ms: For the connection and the handshake, at least 1
 * @ret_stream: Receives the stream on success
 *
 * Return: 0, -EINVAL, or -ENOMEM
 * Thread: any
 */
BP_MUST_CHECK int bp_stream_connect(bp_joiner *joiner, int fd, bp_tls *tls, uint32_t deadline_ms,
                                    bp_stream **ret_stream);
/**
 * bp_stream_allow() - Say how far a stream may be read
 * @stream: Stream
 * @bytes: How many bytes in all; less than before stops it, but bytes that were read already still come
 *
 * Thread: any
 */
void bp_stream_allow(bp_stream *stream, uint64_t bytes);
/**
 * bp_stream_say() - Send words to a stream's peer, behind those that wait
 * @stream: Stream
 * @data: The words, which are copied
 * @bytes: How many
 *
 * Return: 0, or -ENOMEM
 * Thread: any
 */
BP_MUST_CHECK int bp_stream_say(bp_stream *stream, const char *data, size_t bytes);
/**
 * bp_stream_sent_bytes() - How many bytes of all words have been sent, or dropped since nothing can be written
 * @stream: Stream
 *
 * Return: number of bytes
 * Thread: any
 */
uint64_t bp_stream_sent_bytes(const bp_stream *stream);
/**
 * bp_stream_read_bytes() - How many bytes of the peer were read, whether the caller has seen them or a join has passed them on
 * @stream: One that is released
 *
 * Return: number of bytes
 * Thread: one
 */
uint64_t bp_stream_read_bytes(const bp_stream *stream);
/**
 * bp_stream_join() - Send each side what the other has said, until both sockets can be spliced or something has failed
 * @client: Open stream
 * @satellite: Open stream, which has told that it is connected
 * @join: Copied. Bytes that were read and not taken follow behind what it has
 *
 * Bytes that come of either stream from now on are not told any more. Both streams are released when this is over.
 *
 * Return: 0, or -ENOMEM
 * Thread: one
 */
BP_MUST_CHECK int bp_stream_join(bp_stream *client, bp_stream *satellite, const struct bp_join *join);
/**
 * bp_stream_release() - Ask for a stream's socket: what it does ends, and soon it is released
 * @stream: Stream; of two that join, the client's. Nothing happens if it is released already
 *
 * Thread: any
 */
void bp_stream_release(bp_stream *stream);
/**
 * bp_stream_take_tls() - Take the TLS connection out of a stream
 * @stream: Stream that is released
 *
 * Return: the connection, which bp_tls_free() frees; or NULL
 * Thread: one
 */
bp_tls *bp_stream_take_tls(bp_stream *stream);
/**
 * bp_stream_free() - Free a stream, and its TLS connection unless that was taken; the socket stays open
 * @stream: Stream that is released, or NULL
 *
 * Thread: one
 */
void bp_stream_free(bp_stream *stream);

/* ---- greeting: a client's first frames, without I/O; proto/greeting.py says what is done with them and why ---------- */

enum bp_greeting_sizes {
    BP_GREETING_STREAMS = 16, /* open at once; more are left to Python */
    BP_GREETING_WORDS = 38, /* SETTINGS with two entries, and PING's ACK */
};

enum bp_limit { /* what a client may go over: the names of proto/limits.py */
                BP_LIMIT_NONE,
                BP_LIMIT_FRAME_BYTES,
                BP_LIMIT_CONTINUATION_FRAMES,
                BP_LIMIT_HEADER_BLOCK_BYTES,
                BP_LIMIT_SETTINGS_FRAMES,
                BP_LIMIT_SETTINGS_ENTRIES,
                BP_LIMIT_GREETING_BYTES,
                BP_LIMIT_OPENING_FRAMES,
                BP_LIMIT_PING_FRAMES,
                BP_LIMIT_HEADER_LIST_BYTES,
                BP_LIMIT_HEADER_FIELDS,
                BP_LIMIT_TABLE_SIZE_UPDATES,
                BP_LIMIT_HPACK_INTEGER_BYTES,
                BP_LIMIT_TABLE_BYTES,
                BP_LIMIT_WINDOW_BYTES,
                BP_LIMIT_HELD_HEADERS,
                BP_LIMIT_RST_STREAM_FRAMES,
                BP_LIMIT_QUIET_FRAMES,
                BP_LIMIT_EMPTY_DATA_FRAMES,
                BP_LIMIT_PING_BURST,
                BP_LIMIT_PING_PER_S,
                BP_LIMITS
};

enum bp_greeting_state { /* the states of proto/states.py */
                         BP_GREETING_PREFACE,
                         BP_GREETING_SETTINGS,
                         BP_GREETING_OPENING,
                         BP_GREETING_OPENING_BLOCK,
                         BP_GREETING_HELD,
                         BP_GREETING_HELD_BLOCK,
                         BP_GREETING_ENDED,
};

enum bp_greeting_verdict { /* what bp_greeting_next() has to tell */
                           BP_GREETING_MORE, /* all whole frames have been read, and more bytes are needed */
                           BP_GREETING_ACKED, /* the client has acknowledged our SETTINGS */
                           BP_GREETING_PINGED, /* a PING was answered */
                           BP_GREETING_REQUEST, /* the first header block is complete: told_stream, block_end_stream */
                           BP_GREETING_RESET, /* RST_STREAM: told_stream, error_code */
                           BP_GREETING_GOING_AWAY, /* GOAWAY: error_code */
                           BP_GREETING_REFUSED, /* a rule or a limit is broken: error_code of the GOAWAY to send, limit */
                           BP_GREETING_UNUSUAL, /* the frame at `framed` is proto/greeting.py's, and all that follows */
};

struct bp_greeting_limits { /* values of proto/limits.py */
    double most[BP_LIMITS];
};

struct
    bp_greeting { /* one client's; `streams` and `window_bytes` may be set until our SETTINGS are sent, the rest is read only */
    const struct bp_greeting_limits *limits;
    enum bp_greeting_state state;
    size_t
        framed; /* where the next frame begins in the client's bytes that are kept; the caller that drops all sets 0 */
    size_t opening_bytes; /* how long preface and SETTINGS are, once they are whole */
    size_t removed; /* the bytes at `framed` that the caller must take out before its next call */
    uint64_t passed; /* where the next frame begins in all of the client's bytes, with what was taken out */
    uint8_t words[BP_GREETING_WORDS]; /* to send */
    uint32_t words_bytes;
    uint32_t streams, window_bytes; /* of our SETTINGS */
    bool settings_sent, acked;
    bool going_away, failing; /* the client has sent GOAWAY; with an error */
    uint32_t last_stream; /* the highest that the client opened */
    uint32_t open_count;
    uint32_t open[BP_GREETING_STREAMS]; /* not reset; in no order */
    uint32_t counts[BP_LIMITS]; /* by the limit that counts */
    uint64_t data_bytes, window;
    double ping_tokens, ping_at_s;
    uint32_t block_stream, continuations; /* of the last header block */
    bool block_end_stream, block_first;
    size_t block_at, block_bytes;
    uint32_t told_stream, error_code; /* what the last verdict is about */
    enum bp_limit limit;
};

struct bp_fields { /* decoded header fields */
    uint32_t count, most; /* fields; room for so many */
    uint32_t *sizes; /* of each field the name's and the value's: room for 2 * most */
    char *text; /* names and values, without anything between */
    size_t text_bytes, text_most;
};

/**
 * bp_nghttp2_version() - The version of nghttp2 at run time
 *
 * Return: nghttp2's text, such as "1.52.0"; NULL if the engine was built without it, and every request is unusual
 * Thread: any
 */
const char *bp_nghttp2_version(void);
/**
 * bp_greeting_init() - Begin a greeting; there is nothing to free
 * @greeting: Receives it
 * @limits: Borrows for as long as the greeting lasts
 *
 * Thread: one
 */
void bp_greeting_init(struct bp_greeting *greeting, const struct bp_greeting_limits *limits);
/**
 * bp_greeting_next() - Read whole frames until there is something to tell
 * @greeting: Greeting
 * @kept: All bytes of the client so far, without those that were taken out; the first frame is at `framed`
 * @bytes: How many
 * @now_s: Time in seconds, of any clock that does not go back
 * @ret_fields: Receives the fields with BP_GREETING_REQUEST
 *
 * Call again after every verdict but BP_GREETING_MORE, BP_GREETING_REFUSED and BP_GREETING_UNUSUAL. `words` has what to send
 * because of this call.
 *
 * Return: of enum bp_greeting_verdict
 * Thread: one
 */
BP_MUST_CHECK enum bp_greeting_verdict bp_greeting_next(struct bp_greeting *greeting, const void *kept, size_t bytes,
                                                        double now_s, struct bp_fields *ret_fields);
/**
 * bp_greeting_speak() - Put our SETTINGS into `words`, unless they were there before
 * @greeting: Greeting
 *
 * Thread: one
 */
void bp_greeting_speak(struct bp_greeting *greeting);
/**
 * bp_greeting_mark() - What the client has heard of us
 * @greeting: Greeting
 *
 * Return: what Greeting.mark of proto/greeting.py is
 * Thread: one
 */
uint64_t bp_greeting_mark(const struct bp_greeting *greeting);
/**
 * bp_greeting_resume() - Go on for another greeting; before anything is read
 * @greeting: Greeting
 * @mark: The other's mark; its bytes, without those that were taken out, are read again
 *
 * Thread: one
 */
void bp_greeting_resume(struct bp_greeting *greeting, uint64_t mark);

/* ---- requests: whose they are, and for which satellite; proto/request.py and daemon/edge/identity.py say why --------- */

enum bp_request_sizes {
    BP_SATELLITE_NAME_BYTES = 64, /* of an org or a satellite */
    BP_TOKEN_BYTES = 16384, /* most of a token */
    BP_DIGEST_BYTES = 32, /* SHA-256 */
    BP_TRACEPARENT_BYTES = 128, /* a longer one is as if it were not there, as in proto/trace_context.py */
    BP_TRACESTATE_BYTES = 512, /* likewise */
};

struct bp_span { /* a part of a request's fields */
    uint32_t at; /* in `text` of struct bp_fields */
    uint32_t bytes; /* 0: there is none */
};

struct bp_satellite { /* the name of one, without NUL */
    uint32_t org_bytes, name_bytes; /* 1 to BP_SATELLITE_NAME_BYTES */
    char org[BP_SATELLITE_NAME_BYTES], name[BP_SATELLITE_NAME_BYTES];
};

struct bp_request_rules { /* of a port */
    const char *domain; /* below it server names are satellites', in lower case; NULL: there is none */
    const char *const *own_paths; /* what the paths begin with that the daemon answers itself */
    uint32_t own_count;
};

struct bp_request { /* a connection's first request */
    struct bp_satellite satellite;
    uint8_t digest[BP_DIGEST_BYTES]; /* SHA-256 of its token */
    struct bp_span traceparent, tracestate; /* not checked yet */
};

/**
 * bp_request_read() - Read whose a request is, and for which satellite, if that is beyond doubt
 * @fields: Its fields, of bp_greeting_next()
 * @server_name: The name that the client asked for by TLS (SNI), or NULL
 * @rules: Rules of its port
 * @ret: Receives the request if the return is true
 *
 * Unusual, and left to Python, is what would be refused, what has no token, what the daemon answers itself, and a server name
 * that no satellite can have.
 *
 * Return: whether it was read; false: it is unusual
 * Thread: any
 */
BP_MUST_CHECK bool bp_request_read(const struct bp_fields *fields, const char *server_name,
                                   const struct bp_request_rules *rules, struct bp_request *ret);

/* ---- first settings: the satellite's, for a client that has heard ours; proto/first_settings.py says why ------------- */

enum bp_first_settings_sizes {
    BP_SERVER_SETTINGS_BYTES = 16384, /* most of the entries of a satellite's first frame */
    BP_SETTINGS_ADDED_BYTES = 12, /* most that the client's frame is longer */
};

enum bp_first_settings {
    BP_FIRST_SETTINGS_MORE, /* the frame is not whole yet */
    BP_FIRST_SETTINGS_WHOLE,
    BP_FIRST_SETTINGS_NO_SERVER, /* it is not SETTINGS of an HTTP/2 server */
};

struct bp_announcement { /* what a server's SETTINGS limit */
    uint32_t streams, window_bytes; /* calls at once, and bytes of each */
};

/**
 * bp_first_settings_read() - Read a satellite's first frame, and change it for a client that has heard ours
 * @announced: What our SETTINGS have announced
 * @said: All bytes of the satellite so far
 * @bytes: How many
 * @words: Receives what the client gets instead; has room for @bytes and BP_SETTINGS_ADDED_BYTES more
 * @ret_words_bytes: Receives how many
 * @ret_heard: Receives what the satellite's SETTINGS announce
 *
 * What is received is set with BP_FIRST_SETTINGS_WHOLE alone. The time that a call takes before that does not depend on @bytes.
 *
 * Return: of enum bp_first_settings
 * Thread: any
 */
BP_MUST_CHECK enum bp_first_settings bp_first_settings_read(const struct bp_announcement *announced, const void *said,
                                                            size_t bytes, void *words, size_t *ret_words_bytes,
                                                            struct bp_announcement *ret_heard);

/* ---- listeners: which socket would get a connection; daemon/sock_diag.py says why it is asked so --------------------- */

struct bp_listener { /* a listening socket */
    uint32_t inode;
    uint32_t uid; /* of the user that has opened it */
};

struct bp_lookup { /* asks the kernel; read only */
    int fd; /* a netlink socket, or -1 */
    uint32_t asked; /* the number of the last question */
};

/**
 * bp_lookup_init() - Make a lookup, which opens its socket at the first question
 * @lookup: Receives it; bp_lookup_close() closes its socket
 *
 * Thread: one
 */
void bp_lookup_init(struct bp_lookup *lookup);
/**
 * bp_lookup_listener() - Find the socket that would get a connection to an address and port
 * @lookup: Lookup
 * @address: IPv4 or IPv6 address, in network order
 * @address_bytes: Its size: 4 or 16
 * @port: Port
 * @ret: Receives the listener if the return is 1
 *
 * The kernel looks it up as for the connection itself, and answers at once. Nothing waits.
 *
 * Return: 1; 0 if no process listens there; or a negative errno, as of a kernel without sock_diag(7) or of a sandbox without
 * AF_NETLINK
 * Thread: one
 */
BP_MUST_CHECK int bp_lookup_listener(struct bp_lookup *lookup, const void *address, size_t address_bytes, uint16_t port,
                                     struct bp_listener *ret);
/**
 * bp_lookup_close() - Close a lookup's socket; a later question opens another
 * @lookup: Lookup
 *
 * Thread: one
 */
void bp_lookup_close(struct bp_lookup *lookup);

/* ---- admission: the tokens, gates and credits that the control plane has told; daemon/planes/snapshots.py says why ---- */

enum bp_admission_sizes {
    BP_GRANTED_TOKENS = 65536, /* of one table */
    BP_PAYERS = 262144, /* principals that are known at once */
    BP_GATES_OPEN = 16384,
    BP_GATE_INODES = 64, /* sockets that may listen for one satellite */
    BP_TLS_NAME_BYTES = 256, /* with NUL */
    BP_ADDRESS_BYTES = 16, /* IPv6; IPv4 has 4 */
};

enum bp_entering { /* whether a client may be brought to its satellite; all but the first: the control plane is asked */
                   BP_ENTERED,
                   BP_NO_TOKEN,
                   BP_NOT_GRANTED,
                   BP_EXPIRED,
                   BP_NO_GATE,
                   BP_RUN_OUT,
                   BP_NO_CREDIT,
                   /* Those that follow are of the way to the satellite: bp_admission_enter() does not return them. */
                   BP_UNUSUAL,
                   BP_SILENT,
                   BP_LEFT,
                   BP_UNREACHED,
                   BP_STRANGER,
                   BP_CHANGED,
                   BP_STOPPED, /* by bp_opening_abort() */
};

struct bp_gate_facts { /* of a satellite that is awake */
    uint64_t number; /* higher than any before */
    struct bp_satellite satellite;
    int64_t until_us; /* CLOCK_BOOTTIME, as all times of the admission but `wall_us` */
    uint8_t address[BP_ADDRESS_BYTES]; /* in network order */
    uint32_t address_bytes; /* 4 or 16; 0: it cannot be connected to here */
    uint16_t port;
    bool wants_tls; /* else the connection is plain */
    bp_tls_ctx *tls; /* borrows; NULL: there is none, and the satellite cannot be connected to here */
    const char *server_name; /* that the satellite's certificate must have; NULL without TLS */
    bool owned; /* only the user `uid`, or one of `inodes` if there are any, may listen there */
    uint32_t uid;
    uint32_t inode_count;
    uint64_t inodes[BP_GATE_INODES];
};

struct bp_entry { /* one client that was admitted; read only */
    bp_gate *gate;
    uint64_t number; /* of the gate */
    uint64_t generation; /* of the table of tokens */
    uint64_t seat, trust; /* as they were */
    uint32_t payer, identity;
    uint8_t digest[BP_DIGEST_BYTES];
};

/**
 * bp_admission_new() - Make tables that admit nobody
 * @ret_admission: Receives them on success, which bp_admission_free() frees
 *
 * Return: 0, or -ENOMEM
 * Thread: any
 */
BP_MUST_CHECK int bp_admission_new(bp_admission **ret_admission);

/**
 * bp_admission_free() - Free the tables; nobody has an entry
 * @admission: Tables, or NULL
 *
 * Thread: one, and no other function for these tables
 */
void bp_admission_free(bp_admission *admission);

/**
 * bp_admission_reset() - Another control plane sits: forget everything
 * @admission: Tables
 *
 * Thread: any
 */
void bp_admission_reset(bp_admission *admission);

/**
 * bp_admission_add_token() - Put a token into the next table; of two with the same digest the last counts
 * @admission: Tables
 * @digest: SHA-256 of the token, BP_DIGEST_BYTES
 * @expires_us: Microseconds since the epoch; 0: never
 * @payer: Number of its principal, below BP_PAYERS
 * @identity: Any number: if the token has another one by then, a client is not brought to its satellite by it
 * @patterns: As `org/name`, `org/prefix*` or `org/`, separated by line feeds, NUL-terminated
 *
 * Return: 0, -EINVAL, -ENOSPC if there are BP_GRANTED_TOKENS, or -ENOMEM
 * Thread: one
 */
BP_MUST_CHECK int bp_admission_add_token(bp_admission *admission, const uint8_t *digest, int64_t expires_us,
                                         uint32_t payer, uint32_t identity, const char *patterns);

/**
 * bp_admission_take_table() - Let the next table count instead of the one before
 * @admission: Tables
 * @generation: Its number
 * @streams: What SETTINGS announce to a client that waits for them, as in struct bp_greeting
 * @window_bytes: Likewise
 *
 * Thread: one
 */
void bp_admission_take_table(bp_admission *admission, uint64_t generation, uint32_t streams, uint32_t window_bytes);

/**
 * bp_admission_credit() - Say how many clients of a principal may be admitted in all
 * @admission: Tables
 * @payer: Number of the principal, below BP_PAYERS
 * @allowed: How many
 * @ret_used: Receives how many were
 *
 * Return: 0, -EINVAL, or -ENOMEM
 * Thread: any
 */
BP_MUST_CHECK int bp_admission_credit(bp_admission *admission, uint32_t payer, uint64_t allowed, uint64_t *ret_used);

/**
 * bp_gate_open() - Open the gate of a satellite that has none
 * @admission: Tables
 * @facts: Copied
 *
 * Return: 0, -EINVAL, -EEXIST, -ENOSPC, or -ENOMEM
 * Thread: any
 */
BP_MUST_CHECK int bp_gate_open(bp_admission *admission, const struct bp_gate_facts *facts);

/**
 * bp_gate_trust() - Change the TLS by which the satellite behind a gate is known; who is on the way is not brought there
 * @admission: Tables
 * @number: The gate's; nothing happens if it is not open
 * @tls: Borrows; NULL: the satellite cannot be connected to here
 * @server_name: As in struct bp_gate_facts
 *
 * Return: 0, -EINVAL, or -ENOMEM
 * Thread: any
 */
BP_MUST_CHECK int bp_gate_trust(bp_admission *admission, uint64_t number, bp_tls_ctx *tls, const char *server_name);

/**
 * bp_gate_renew() - Say how long a gate is good for
 * @admission: Tables
 * @number: The gate's; nothing happens if it is not open
 * @until_us: As in struct bp_gate_facts
 *
 * Thread: any
 */
void bp_gate_renew(bp_admission *admission, uint64_t number, int64_t until_us);

/**
 * bp_gate_shut() - Shut a gate: nobody is committed to it from now on
 * @admission: Tables
 * @number: The gate's; nothing happens if it is not open
 *
 * Thread: any
 */
void bp_gate_shut(bp_admission *admission, uint64_t number);

/**
 * bp_admission_may_enter() - Whether there are tokens, and a gate through which a client can go now
 * @admission: Tables
 * @now_us: CLOCK_BOOTTIME
 *
 * Return: whether there may be; false: there are none
 * Thread: any
 */
bool bp_admission_may_enter(bp_admission *admission, int64_t now_us);

/**
 * bp_admission_enter() - Take a credit for a client, if it may use the satellite and the satellite's gate is open
 * @admission: Tables
 * @digest: SHA-256 of its token, BP_DIGEST_BYTES
 * @satellite: Satellite
 * @now_us: CLOCK_BOOTTIME
 * @wall_us: Microseconds since the epoch
 * @ret: Receives the entry with BP_ENTERED, which bp_admission_leave() ends
 *
 * Return: of enum bp_entering
 * Thread: any
 */
BP_MUST_CHECK enum bp_entering bp_admission_enter(bp_admission *admission, const uint8_t *digest,
                                                  const struct bp_satellite *satellite, int64_t now_us, int64_t wall_us,
                                                  struct bp_entry *ret);

/**
 * bp_admission_holds() - Whether a client may still be brought to its satellite, by the tables as they are now
 * @admission: Tables
 * @entry: Its entry
 * @now_us: CLOCK_BOOTTIME
 * @wall_us: Microseconds since the epoch
 *
 * Return: whether it may
 * Thread: any
 */
bool bp_admission_holds(bp_admission *admission, const struct bp_entry *entry, int64_t now_us, int64_t wall_us);

/**
 * bp_admission_leave() - End an entry
 * @admission: Tables
 * @entry: Entry, which is all zero then
 * @back: Whether the client was not brought to its satellite, so that its credit is free
 *
 * Thread: any
 */
void bp_admission_leave(bp_admission *admission, struct bp_entry *entry, bool back);

/**
 * bp_admission_give_back() - Free the credit of a client that was brought to its satellite
 * @admission: Tables
 * @seat: Of its entry; nothing happens if there was a reset since
 * @payer: Likewise
 *
 * Thread: any
 */
void bp_admission_give_back(bp_admission *admission, uint64_t seat, uint32_t payer);

/* ---- lanes: clients that the opener and the joiner bring to their satellites by what was told to the admission -------- */

enum bp_lane_sizes {
    BP_LANE_REMOVED = 16, /* ranges that are not replayed; a client with more is the caller's */
    BP_LANE_MOMENTS = 4, /* request, admission, connection, the satellite's first byte */
    BP_TLS_VERSION_BYTES = 16, /* with NUL */
};

struct bp_lane_options {
    bp_admission *admission; /* borrows for as long as the joiner lives */
    const struct bp_greeting_limits *limits; /* likewise */
    uint32_t most_fields; /* a request with more fields is unusual */
    uint32_t silent_clients; /* whose first request has not come, at most: one more has the oldest of them go up */
    uint32_t request_ms; /* for the first request */
    uint32_t reach_ms; /* for the satellite's connection, and again for its first frame */
    uint32_t join_ms; /* as deadline_ms of struct bp_join */
};

struct bp_removed { /* a range of what the client has said */
    uint64_t at;
    uint32_t bytes;
};

struct bp_lane_facts { /* what is known of a client whose news have BP_NEWS_UP or BP_NEWS_COMMITTED */
    bp_opening *opening;
    enum bp_entering why; /* BP_ENTERED: it was committed */
    int error; /* errno behind BP_STRANGER, or 0 */
    bool has_tls;
    char server_name[BP_TLS_NAME_BYTES], alpn[BP_TLS_NAME_BYTES], tls_version[BP_TLS_VERSION_BYTES];
    uint64_t mark; /* what the client has heard of us, as bp_greeting_mark() */
    uint64_t said_bytes; /* of words to it */
    uint32_t removed_count;
    struct bp_removed removed[BP_LANE_REMOVED];
    uint64_t gate, seat; /* of the entry, as is `payer` */
    uint64_t generation; /* of the table of tokens by which it was committed */
    uint32_t payer;
    uint8_t digest[BP_DIGEST_BYTES];
    uint32_t streams, window_bytes; /* of the satellite's SETTINGS; 0: they were not read */
    uint32_t traceparent_bytes, tracestate_bytes;
    char traceparent[BP_TRACEPARENT_BYTES], tracestate[BP_TRACESTATE_BYTES]; /* as in struct bp_request */
    uint64_t moment_us[BP_LANE_MOMENTS]; /* CLOCK_MONOTONIC; 0: it was not waited for */
    uint32_t moment_count;
    uint64_t read_bytes, sent_bytes; /* of the client, when it was committed */
};

/**
 * bp_joiner_admit() - Let clients of bp_opener_admit() come to a joiner
 * @joiner: Joiner, before the first of them
 * @options: Copied
 *
 * Return: 0, or -ENOMEM
 * Thread: one
 */
BP_MUST_CHECK int bp_joiner_admit(bp_joiner *joiner, const struct bp_lane_options *options);

/**
 * bp_opener_admit() - As bp_opener_start(), and bring the client to its satellite if the joiner's tables allow it
 * @opener: Opener
 * @fd: Takes on success
 * @ctx: As bp_opener_start() has it
 * @joiner: Joiner, which bp_joiner_admit() was called for
 * @rules: Borrows until the opening is the caller's: of the client's port
 * @ret_opening: Receives the opening on success
 *
 * It is taken by bp_opener_take(), or the news of a stream have BP_NEWS_UP or BP_NEWS_COMMITTED.
 *
 * Return: 0, or -ENOMEM
 * Thread: one
 */
BP_MUST_CHECK int bp_opener_admit(bp_opener *opener, int fd, bp_tls_ctx *ctx, bp_joiner *joiner,
                                  const struct bp_request_rules *rules, bp_opening **ret_opening);

/**
 * bp_opening_take_fd() - Take the socket out of an opening of bp_opener_admit()
 * @opening: Opening that bp_opener_take() returned
 *
 * Return: the descriptor, which the caller closes
 * Thread: one
 */
int bp_opening_take_fd(bp_opening *opening);

/**
 * bp_opener_forget() - Free an opening that has come as news of a stream
 * @opening: Of struct bp_lane_facts
 *
 * Thread: one
 */
void bp_opener_forget(bp_opening *opening);

/**
 * bp_joiner_look() - Have the clients looked at that are on their way, since what was told has changed
 * @joiner: Joiner
 *
 * Thread: any
 */
void bp_joiner_look(bp_joiner *joiner);

/**
 * bp_joiner_lanes() - How many clients are on their way
 * @joiner: Joiner
 *
 * Return: how many
 * Thread: any
 */
unsigned bp_joiner_lanes(const bp_joiner *joiner);

/**
 * bp_joiner_take_committed() - Take the BP_NEWS_COMMITTED of one stream, and leave its other news
 * @joiner: Joiner
 *
 * After bp_gate_shut() and the like these are all of whom the caller has not heard.
 *
 * Return: the client's stream, or NULL if there is none
 * Thread: one
 */
bp_stream *bp_joiner_take_committed(bp_joiner *joiner);

/**
 * bp_lane_facts() - What is known of a client
 * @client: Stream whose news have BP_NEWS_UP or BP_NEWS_COMMITTED
 *
 * Return: facts, until the stream is freed
 * Thread: one
 */
const struct bp_lane_facts *bp_lane_facts(const bp_stream *client);

/**
 * bp_stream_take_fd() - Take the socket of a client whose news had BP_NEWS_UP, or that is released
 * @client: Its stream, which borrows the socket from now on, until it is released
 *
 * Return: the descriptor, which the caller closes
 * Thread: one
 */
int bp_stream_take_fd(bp_stream *client);

/**
 * bp_lane_splice() - Hand over a client and its satellite to the engine
 * @engine: Engine
 * @client: The client's stream, whose news have BP_NEWS_COMMITTED and BP_NEWS_JOINED; freed on success, with all that it has
 * @ret_splice: As bp_engine_splice() has it
 *
 * Return: as bp_engine_splice()
 * Thread: one
 */
BP_MUST_CHECK int bp_lane_splice(bp_engine *engine, bp_stream *client, bp_splice **ret_splice);

#endif
