/* What the joiner's files share. */
#ifndef BP_STREAM_H
#define BP_STREAM_H

#include "check.h"

#include <sys/queue.h>

TAILQ_HEAD(stream_list, bp_stream);

#define FRAME_HEADER_BYTES 9 /* RFC 9113 section 4.1 */

struct buffer { /* bytes that wait; all zero if there are none */
    char *data;
    size_t room, at, bytes; /* the bytes are data[at] to data[at + bytes - 1] */
};

struct ack_filter { /* all zero at the beginning of a frame */
    unsigned char header[FRAME_HEADER_BYTES];
    size_t header_bytes; /* that have come */
    size_t left;         /* of the frame's payload */
    bool done;
};

enum stream_state {
    STREAM_BEGINS, /* its thread has not seen it yet */
    STREAM_CONNECTS,
    STREAM_SHAKES,
    STREAM_OPEN,
    STREAM_JOINS,
    STREAM_RELEASED, /* its socket is the caller's again */
};

enum stream_request { /* what a caller asks of a stream's thread; several at once are served in this order */
                      ASKS_BEGIN = 1,
                      ASKS_SAY = 2,
                      ASKS_ALLOW = 4,
                      ASKS_JOIN = 8,
                      ASKS_RELEASE = 16,
};

struct join { /* of a client and a satellite; the client's stream has it */
    bp_stream *client, *satellite;
    struct buffer to_client, to_satellite;
    struct buffer frames; /* the client's, after to_satellite, in which the ACK may be */
    bool ack_owed;
    uint32_t deadline_ms;
    struct ack_filter filter;
};

struct news { /* what the caller was not told yet */
    unsigned flags;
    enum bp_stream_failure failure;
    ssize_t result;
    struct buffer data;
};

struct bp_stream {
    bp_joiner *joiner;
    int fd; /* the caller's; watched only while `registered` */
    bp_tls *tls; /* or NULL */
    enum stream_state state; /* this and what follows belongs to the thread */
    struct join *join; /* of a client that joins */
    bp_stream *client; /* of a satellite that joins */
    struct buffer out;
    _Atomic uint64_t sent_bytes; /* in all, and what was dropped since nobody can be told; other threads read it */
    uint64_t read_bytes, told_bytes; /* in all; told_bytes: sent_bytes as the caller was told last */
    uint64_t allowed_bytes; /* nothing is read beyond */
    uint64_t deadline_ms; /* CLOCK_MONOTONIC; while it is on the list of those that are timed */
    ssize_t broken; /* why a read or a write has failed; or 0 */
    bool deaf; /* nothing more can be read: the stream has ended, or is broken */
    bool mute; /* nothing more can be written */
    bool hung_up, write_wants_read;
    unsigned char header[FRAME_HEADER_BYTES]; /* of the frame for which a join has failed */
    bool registered, timed, again, changed; /* watched by epoll; on the list of this name */
    uint32_t watched; /* the events that epoll has for it while it is registered */
    struct news fresh; /* of this turn */
    TAILQ_ENTRY(bp_stream) timed_link, again_link, changed_link;
    unsigned asks; /* of enum stream_request; this and what follows is guarded by the joiner's lock */
    struct buffer to_say;
    uint64_t to_allow_bytes;
    struct join *to_join;
    bool joining; /* a join has its bytes: none is given to the caller any more */
    bool published; /* released, and the thread has forgotten it */
    bool asked, told; /* on the list of this name */
    struct news news;
    char words[BP_STREAM_WORDS];
    TAILQ_ENTRY(bp_stream) all_link, asked_link, told_link;
};

#define STREAM_SCRATCH_BYTES (64u << 10)

struct bp_joiner {
    int event_fd, epoll_fd, wake_fd;
    pthread_t thread;
    bool started;
    struct turns turns;
    _Atomic bool stop, paused, resumed; /* resumed: streams may have been left unread meanwhile */
    pthread_mutex_t lock;
    struct stream_list all, asked, told; /* guarded by the lock */
    struct buffer given; /* what the caller reads at present; the caller's */
    struct stream_list timed, again, changed; /* this and what follows belongs to the thread alone */
    uint64_t now_ms;
    char scratch[STREAM_SCRATCH_BYTES];
};

/* buffer.c */
int bp__buffer_add(struct buffer *buffer, const void *data, size_t bytes);
void bp__buffer_drop(struct buffer *buffer, size_t bytes);
void bp__buffer_move(struct buffer *to, struct buffer *from);

/* ack_filter.c */
int bp__ack_filter(struct ack_filter *filter, const char *data, size_t bytes, struct buffer *out);

/* stream.c */
int bp__stream_watch(bp_stream *stream, uint32_t wanted);
void bp__stream_note(bp_stream *stream, unsigned flags);
void bp__stream_time(bp_stream *stream, uint64_t deadline_ms);
void bp__stream_untime(bp_stream *stream);
void bp__stream_break(bp_stream *stream, ssize_t why);
void bp__stream_release(bp_stream *stream, enum bp_stream_failure failure, ssize_t result);
ssize_t bp__stream_read(bp_stream *stream, size_t most_bytes);
ssize_t bp__stream_send(bp_stream *stream);
void bp__stream_again(bp_stream *stream);
void bp__stream_begin(bp_stream *stream);
void bp__stream_run(bp_stream *stream, uint32_t events);

/* join.c */
void bp__join_begin(struct join *join);
void bp__join_run(struct join *join);
void bp__join_fail(struct join *join, enum bp_stream_failure failure, ssize_t result);
void bp__join_free(struct join *join);

/* joiner_thread.c */
void *bp__joiner_main(void *joiner);

#endif
