/* What the opener's files share. */
#ifndef BP_OPENER_H
#define BP_OPENER_H

#include "check.h"

#include <sys/queue.h>

TAILQ_HEAD(opening_list, bp_opening);

enum opening_next { /* what a connection waits for */
                    OPENING_READS,
                    OPENING_WRITES,
                    OPENING_TURN, /* a handshake's turn */
                    OPENING_OVER,
};

struct bp_opening {
    int fd; /* watched only while `registered` */
    bool owns_fd; /* else it is the caller's */
    bp_tls_ctx *ctx; /* the caller's; NULL: plain */
    bp_tls *tls; /* or NULL */
    enum bp_opening_step step;
    bool over;
    ssize_t result; /* once it is over, as in struct bp_opened */
    char *first; /* or NULL */
    size_t first_bytes;
    bool may_shake; /* it has had its turn */
    bool registered;
    uint32_t watched; /* the events that epoll has for it while it is registered */
    struct opener_thread *thread;
    struct opening_list *list; /* the one that it is on */
    TAILQ_ENTRY(bp_opening) link, abort_link;
    bool begun; /* its thread has taken it out of the mailbox */
    bool aborting; /* is on its thread's list of aborts; guarded by the opener's lock, as is what follows */
    bool aborted; /* the caller has asked for that */
    bool published;
    bp_joiner
        *joiner; /* that brings the client to its satellite if it may; or NULL. It does not change, as the rules */
    const struct bp_request_rules *rules;
    bp_stream *stream; /* the joiner has it: then it is on the opener's list `laned` */
};

#define OPENING_SCRATCH_BYTES (64u << 10)

struct opener_thread {
    bp_opener *opener;
    pthread_t thread;
    bool started;
    int epoll_fd, wake_fd;
    struct turns turns;
    _Atomic bool stop;
    _Atomic unsigned open;
    struct opening_list mailbox, aborts; /* guarded by the opener's lock */
    struct opening_list waiting; /* for their sockets; this and what follows belongs to the thread alone */
    struct opening_list delayed; /* for a handshake's turn, first come, first served */
    struct opening_list retired; /* over, and not published yet */
    char scratch[OPENING_SCRATCH_BYTES];
};

struct bp_opener {
    int event_fd;
    size_t first_bytes;
    unsigned thread_count;
    struct opener_thread *threads;
    _Atomic uint32_t handshakes_per_s; /* 0: no limit */
    _Atomic uint64_t next_handshake_ns;
    pthread_mutex_t lock;
    struct opening_list over; /* for the caller */
    struct opening_list laned; /* of which a joiner tells the caller */
};

/* opening.c */
enum opening_next bp__opening_run(bp_opening *opening, char *scratch, size_t most_bytes);

/* opener_thread.c */
void *bp__opener_main(void *thread);

#endif
