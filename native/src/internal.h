/* What the engine's files share.
 *
 * Each splice belongs to one thread of the engine. Only the mailbox, the ended list and the atomic fields are for other
 * threads too. Each function is documented where it is defined, the public ones in bp.h. "Thread" says who may call it:
 *   own  only the engine's thread that the struct bp_thread or the splice belongs to
 *   any  any thread, at any time
 *   one  any thread; calls for the same object must not overlap
 */
#ifndef BP_INTERNAL_H
#define BP_INTERNAL_H

#include "bp.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

#define SCRATCH_BYTES (64u << 10) /* one read in copy mode; also the most that a direction stashes */
#define TURN_BYTES (1u << 20) /* most that one direction moves before the others on its thread have a turn */
#define LOOP_BYTES                                                                                                     \
    (16u << 20) /* most that all directions of a thread move in a turn, some 20 ms: the busy ones share it */
#define STEP_COST 512 /* least that a read, or a record of TLS, counts for, in bytes */
#define DRAIN_BYTES (8u << 20) /* most that is drained of a broken leg: over a socket's receive buffer (tcp_rmem) */
#define READY_A_TURN 256 /* splices of the ready list that one turn runs; the others run in the next */
#define ENDS_A_TURN 256 /* splices that one turn ends for a timeout or on request, at some 20 us each */
#define LONG_TURN_NS 50000000u /* a turn over this is counted as long; no peer's input may cause one */
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
    uint32_t watched; /* the events that epoll has for it while it is registered */
    bool registered;
    bool splices_in; /* splice(2) may read from it: plain, or the kernel decrypts */
    bool splices_out; /* splice(2) may write to it: plain, or the kernel encrypts */
    /* TLS: the peer sent FIN without close_notify; OpenSSL answered with a fatal alert, and nothing may follow it. */
    bool truncated;
    uint8_t id; /* enum leg_id: tells the leg from an epoll pointer */
};

/* One direction of a splice; the same code serves both.
 *
 * Invariant: what was read and is not delivered is in the pipe, or in the stash and in the records that the destination's
 * TLS keeps. While there is any, nothing is read. So EAGAIN has one meaning each: on a read the socket is empty, on a write
 * the peer's window is full. check.c has the invariants in full. */
struct direction {
    int pipe[2]; /* -1 unless the direction streams */
    size_t in_pipe;
    size_t in_tls; /* in records that the destination has not taken yet (tls_batch.c); they go before the stash */
    char *stash; /* what a copy could not deliver, allocated until it is delivered */
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
    uint8_t end_tries; /* how often the end was sent to a destination whose kernel still had records queued */
    _Atomic uint64_t bytes; /* delivered */
#ifdef BP_DEBUG
    uint64_t taken; /* read from the source: delivered, in the pipe, in records or in the stash */
#endif
};

struct bp_splice {
    struct leg leg[2];
    struct direction direction[2]; /* [CLIENT]: source is the client */
    struct bp_thread *thread;
    struct bp_splice *next, *previous; /* the thread's list of live ones; next also in mailbox and ended list */
    struct bp_splice *ready_next; /* the thread's ready list */
    bool ready; /* is on the ready list */
    int broken; /* the leg that failed, or NO_LEG */
    int truncated; /* reason to report if nothing else fails, or 0 */
    uint64_t half_closed_ms;
    bool with_tls; /* set once: other threads may ask while the legs belong to this splice's thread */
    bool giving_back; /* deliver, read no more */
    _Atomic bool abort, give_back;
    _Atomic uint64_t spliced_bytes;
    _Atomic uint64_t last_activity_ms, first_down_ms;
    _Atomic int reason;
    _Atomic int error;
};

struct turns { /* of a thread, which alone writes them; any thread may read them */
    _Atomic uint64_t began_ns; /* the present one; 0: the thread waits */
    _Atomic uint64_t count, long_count, longest_ns;
};

/* What a thread used of its core in the window that began last; the thread's own. */
struct share {
    bool watched; /* the thread has had SCHED_RR, which a busy one must leave */
    uint64_t began_ns, used_ns;
    uint64_t busy, calm; /* windows in a row over BUSY_PERCENT, under CALM_PERCENT */
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
    struct turns turns;
    _Atomic int priority, priority_error; /* enum bp_priority, and the errno of what was refused at the start */
    sem_t settled; /* posted when the thread has its priority */
    bp_splice *splices; /* this and what follows belongs to the thread alone */
    bp_splice *ready, **ready_tail; /* splices that have more to do, first come, first served */
    unsigned ready_count;
    size_t turn_bytes; /* what a direction may move in this turn */
    uint64_t now_ms;
    struct share share;
    int pool[PIPE_POOL][2];
    unsigned pooled;
    struct tls_batch *batch; /* for the next write of several records; NULL until one is needed */
    uint64_t poll_ns; /* how long the thread polls before it sleeps (busy_poll.c) */
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
    bool counts; /* the kernel tells what is needed to count */
    unsigned overhead; /* of a record, in bytes */
    uint64_t payload_bytes; /* handed to the kernel since bp__ktls_out_begin(); the sender counts them */
    uint64_t records_before, tcp_before;
};

void bp__ktls_out_begin(struct ktls_out *out, int fd);
bool bp__ktls_out_drained(const struct ktls_out *out, int fd);

/* tls.c */
size_t bp__tls_cost(bp_tls *tls);
void bp__tls_spliced(bp_tls *tls, size_t bytes);
bool bp__tls_has_pending(const bp_tls *tls);

/* tls_batch.c */
ssize_t bp__tls_write_records(bp_tls *tls, const void *data, size_t bytes, struct tls_batch **spare);
ssize_t bp__tls_flush(bp_tls *tls, struct tls_batch **spare);
size_t bp__tls_unsent(const bp_tls *tls);

/* busy_poll.c */
struct epoll_event;
int bp__wait_for_events(struct bp_thread *thread, struct epoll_event *events, int most, int timeout_ms);

/* pipe_pool.c */
bool bp__pipe_get(struct bp_thread *thread, int pipe[2]);
void bp__pipe_put(struct bp_thread *thread, int pipe[2], size_t in_pipe);
void bp__pipe_drop_all(struct bp_thread *thread);

/* pump.c */
enum pump_result {
    PUMP_BLOCKED, /* an event, the next tick or nothing at all lets it go on */
    PUMP_MORE, /* it can go on at once */
    PUMP_FAILED, /* a leg failed: the splice's reason and error are set */
};
enum pump_result bp__pump(struct bp_thread *thread, bp_splice *splice, enum leg_id id);
bool bp__direction_in_flight(const struct direction *direction);

/* reason.c */
void bp__fail(bp_splice *splice, enum leg_id leg, int why);
void bp__note_truncation(bp_splice *splice, struct leg *leg);

/* splice.c */
#define FROM(leg) (1u << (leg)) /* the direction in a mask of directions */
#define BOTH (FROM(CLIENT) | FROM(SATELLITE))
void bp__splice_run(struct bp_thread *thread, bp_splice *splice, unsigned directions);
void bp__splice_adopt(struct bp_thread *thread, bp_splice *splice);
void bp__splice_event(struct bp_thread *thread, bp_splice *splice, enum leg_id id, uint32_t events);
void bp__splice_end(struct bp_thread *thread, bp_splice *splice, enum bp_reason reason, int error);
void bp__splice_tick(struct bp_thread *thread, bp_splice *splice);

/* thread.c */
void *bp__thread_main(void *thread);

/* thread_start.c */
typedef void *bp__thread_body(void *argument);
int bp__thread_start(pthread_t *ret, bp__thread_body *body, void *argument, const char *kind, unsigned index);

/* turns.c */
uint64_t bp__turn_begin(struct turns *turns);
void bp__turn_end(struct turns *turns);
struct bp_turns bp__turns_read(const struct turns *turns);
int bp__thread_cpu_ns(pthread_t thread, uint64_t *ret_ns);

/* socket.c */
int bp__socket_prepare(int fd);
void bp__socket_limit_unsent(int fd, uint32_t bytes);

/* clock.c */
uint64_t bp__now_ns(void);
uint64_t bp__now_ms(void);
int64_t bp__boot_us(void);
int64_t bp__wall_us(void);

/* priority.c */
enum bp_priority bp__priority_apply(enum bp_priority wanted, int *ret_error);
void bp__priority_begin(struct bp_thread *thread);
void bp__priority_window(struct bp_thread *thread);

/* ready.c */
void bp__ready(struct bp_thread *thread, bp_splice *splice);
bp_splice *bp__ready_take(struct bp_thread *thread);

/* ended.c */
void bp__wake(int event_fd);
void bp__engine_ended(bp_engine *engine, bp_splice *splice);

#endif
