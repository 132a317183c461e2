/* What the engine's files share. Threads own splices; the mailbox and the ended list are the only things that cross. */
#ifndef BP_INTERNAL_H
#define BP_INTERNAL_H

#include "bp.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define SCRATCH_BYTES (64u << 10) /* one read in copy mode; also what a direction may have to stash */
#define TURN_BYTES (1u << 20) /* most that one direction moves before the others on its thread have a turn */
#define LOOP_BYTES (16u << 20) /* and all directions together, in some 20 ms: where many are busy, each has less */
#define STEP_COST 512 /* what a read of a few bytes, or a record of TLS, costs: as much as so many bytes */
#define LAST_WORDS_BYTES (8u << 20) /* of a leg that broke: more than a socket's receive buffer holds (tcp_rmem) */
#define READY_A_TURN 256 /* splices with more to do that go on in one turn; the others in the next */
#define ENDS_A_TURN 256 /* splices that one turn ends for a timeout or on request, at some 20 us each */
#define LONG_TURN_NS 50000000u /* what no peer's input may make of a turn */
#define PIPE_MIN_BYTES (64 << 10) /* smaller pipes (user past pipe-user-pages-soft) are not worth a splice */
#define PIPE_POOL 64 /* idle pipes kept per thread */
#define PIPE_MAX 512 /* pipes open per thread: 64 KiB each, 32 MiB of pages at the most */
#define STREAM_READS 3 /* this many full reads in a row make a stream (HAProxy's CF_STREAMER_FAST) */
#define QUIET_READS 3 /* this many small splices in a row end it */
#define FULL_READ_BYTES (32u << 10)
#define FULL_RECORD_BYTES (16u << 10) /* what a full read is where the kernel decrypts: it gives one record at a time */
#define SMALL_READ_BYTES 4096 /* below, a pipe costs more than the copy it saves (HAProxy MIN_SPLICE_FORWARD) */
#ifndef TICK_MS /* tests shorten it */
#define TICK_MS 1000 /* granularity of the timeouts, and of the retry when the kernel lacks memory */
#endif

enum leg_id { CLIENT = 0, SATELLITE = 1 };
#define NO_LEG (-1)

struct leg {
    int fd;
    bp_tls *tls; /* or NULL */
    uint32_t watched; /* epoll interest now, the shadow of what the kernel has */
    bool registered;
    bool splices_in; /* splice(2) may read from it: plain, or the kernel decrypts */
    bool splices_out; /* splice(2) may write to it: plain, or the kernel encrypts */
    /* TLS: the peer sent FIN without close_notify; a fatal alert went back, and nothing may follow it. */
    bool truncated;
    uint8_t id; /* enum leg_id: tells the leg from an epoll pointer */
};

/* One direction, written once and used twice. Invariant: bytes are in the pipe or in the stash or nowhere; nothing is
 * read while any are, so EAGAIN is never ambiguous: on a read it means that the socket is dry, on a write that the
 * peer's window is full. */
struct direction {
    int pipe[2]; /* -1 unless bytes are in it or the direction streams */
    size_t in_pipe;
    char *stash; /* what a copy could not deliver, lent until it is */
    size_t stash_at, stash_bytes;
    bool eof; /* the source has ended (FIN, close_notify or truncation) */
    bool shut; /* and the destination was told */
    bool notify_waits; /* TLS: close_notify waits for the destination to be writable */
    bool streaming;
    bool no_splice; /* the kernel refused once: copy for good */
    bool starved; /* the kernel had no memory for it: quiet until the next tick */
    bool read_wants_write; /* TLS: a read waits for the source to be writable */
    bool write_wants_read; /* TLS: a write waits for the destination to be readable */
    uint8_t full_reads, small_reads;
    uint8_t tells; /* how often the end was told to a destination that was not ready for FIN */
    _Atomic uint64_t bytes; /* delivered */
};

struct bp_splice {
    struct leg leg[2];
    struct direction direction[2]; /* [CLIENT]: source is the client */
    struct bp_thread *thread;
    struct bp_splice *next, *previous; /* the thread's list of live ones; next also in mailbox and ended list */
    struct bp_splice *ready_next; /* the thread's list of those with more to do */
    bool ready;
    int broken; /* the leg that failed, or NO_LEG */
    int truncated; /* reason to report if it ends well otherwise, or 0 */
    uint64_t half_closed_ms;
    bool with_tls; /* set once: other threads may ask while the legs belong to this splice's thread */
    bool giving_back; /* deliver, read no more */
    _Atomic bool abort, give_back;
    _Atomic uint64_t spliced_bytes;
    _Atomic uint64_t last_activity_ms;
    _Atomic int reason;
    _Atomic int error;
};

struct bp_thread {
    bp_engine *engine;
    pthread_t thread;
    bool started;
    int epoll_fd, wake_fd;
    pthread_mutex_t lock; /* guards mailbox */
    bp_splice *mailbox;
    _Atomic bool stop, requests; /* requests: some splice has abort or give_back set */
    _Atomic uint64_t live, pipes_open, pipe_fallbacks, spliced_bytes, copied_bytes;
    _Atomic uint64_t turn_began_ns; /* 0: waits */
    _Atomic uint64_t turns, long_turns, longest_ns;
    bp_splice *splices; /* the rest belongs to the thread alone */
    bp_splice *ready, **ready_tail; /* who has more to do, in the order of coming */
    unsigned ready_count;
    size_t turn_bytes; /* what a direction may move in this turn */
    uint64_t now_ms;
    int pool[PIPE_POOL][2];
    unsigned pooled;
    char scratch[SCRATCH_BYTES];
};

struct bp_engine {
    struct bp_options options;
    int event_fd;
    unsigned thread_count;
    struct bp_thread *threads;
    pthread_mutex_t lock; /* guards ended and closed */
    bp_splice *ended;
    bp_splice **ended_tail;
    bool closed;
};

/* ktls_out.c */
struct ktls_out {
    bool counts; /* the kernel tells what it takes to count */
    unsigned overhead; /* of a record, in bytes */
    uint64_t payload_bytes, records_before, tcp_before;
};

/* From now on all payload is counted in out->payload_bytes by who sends it; to be called while nothing is queued. */
void bp__ktls_out_begin(struct ktls_out *out, int fd);
bool bp__ktls_out_drained(const struct ktls_out *out, int fd); /* whether FIN and close(2) lose nothing now */

/* tls.c */
/* What the peer has cost since this was last asked, in bytes: those that came, and STEP_COST for each record. */
size_t bp__tls_cost(bp_tls *tls);
void bp__tls_spliced(bp_tls *tls, size_t bytes); /* the kernel was given so many by splice(2) */
/* Whether a read may find what the socket does not show: bytes (decrypted or not), or an end that was seen behind them. */
bool bp__tls_has_pending(const bp_tls *tls);

/* pipe_pool.c */
bool bp__pipe_get(struct bp_thread *thread, int pipe[2]);
void bp__pipe_put(struct bp_thread *thread, int pipe[2], size_t in_pipe);
void bp__pipe_drop_all(struct bp_thread *thread);

/* pump.c */
enum pump_result { PUMP_BLOCKED, PUMP_MORE, PUMP_FAILED };
/* Moves what can be moved from leg `from` to the other. On PUMP_FAILED the splice's reason is set. */
enum pump_result bp__pump(struct bp_thread *thread, bp_splice *splice, enum leg_id from);
bool bp__direction_in_flight(const struct direction *direction);
void bp__fail(bp_splice *splice, enum leg_id leg, int result);

/* splice.c */
/* Pumps the directions in the mask (bit 0: from the client), then looks what follows for the splice. */
#define FROM(leg) (1u << (leg))
#define BOTH (FROM(CLIENT) | FROM(SATELLITE))
void bp__splice_run(struct bp_thread *thread, bp_splice *splice, unsigned directions);
void bp__splice_adopt(struct bp_thread *thread, bp_splice *splice);
void bp__splice_event(struct bp_thread *thread, bp_splice *splice, enum leg_id leg, uint32_t events);
void bp__splice_end(struct bp_thread *thread, bp_splice *splice, enum bp_reason reason, int error);
void bp__splice_tick(struct bp_thread *thread, bp_splice *splice);

/* thread.c */
void *bp__thread_main(void *thread);

/* clock.c */
uint64_t bp__now_ns(void);
uint64_t bp__now_ms(void);

/* ready.c */
void bp__ready(struct bp_thread *thread, bp_splice *splice); /* goes on in a turn to come */
bp_splice *bp__ready_take(struct bp_thread *thread); /* the first one; the list must have one */

/* ended.c */
void bp__wake(int event_fd);
void bp__engine_ended(bp_engine *engine, bp_splice *splice);

#endif
