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
                      ASKS_LANE = 32, /* after ASKS_BEGIN */
                      ASKS_UP = 64,
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

enum lane_step { LANE_GREETS, LANE_DIALS, LANE_INTRODUCES };

struct lane { /* of a client that is brought to its satellite without the caller; the client's stream has it */
    bp_stream *client, *half; /* half: to the satellite; or NULL */
    const struct bp_request_rules *rules;
    enum lane_step step;
    int stopped; /* -ETIME: its time is over; -ECANCELED: the caller wants it; or 0 */
    bool entered; /* `entry` holds */
    struct bp_entry entry;
    struct bp_greeting greeting;
    struct buffer kept; /* what the greeting has read, without what was taken out */
    size_t fed_bytes; /* of the client's, to the greeting */
    size_t opening_bytes; /* of `kept`, said to the satellite before the join */
    struct bp_lane_facts facts;
    bool is_silent; /* on the list of those whose first request has not come */
    TAILQ_ENTRY(lane) link, silent_link;
};

TAILQ_HEAD(lane_list, lane);

struct bp_stream {
    bp_joiner *joiner;
    int fd; /* watched only while `registered` */
    bool owns_fd; /* else it is the caller's; the caller's to change once the stream is */
    bool is_half; /* of a lane: the caller is told nothing of it */
    bool orphan; /* a half that its lane does not need any more; this and the next three belong to the thread */
    bool in_lane; /* its news are for its lane */
    bool due; /* its lane has to look at it */
    struct lane *lane; /* of a client, to the end; of a half while it is in the lane; or NULL */
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
    TAILQ_ENTRY(bp_stream) timed_link, again_link, changed_link, due_link;
    unsigned asks; /* of enum stream_request; this and what follows is guarded by the joiner's lock */
    struct buffer to_say;
    uint64_t to_allow_bytes;
    struct join *to_join;
    bool joining; /* a join has its bytes: none is given to the caller any more */
    bool published; /* released, and the thread has forgotten it */
    bool asked, told, committed; /* on the list of this name */
    struct news news;
    char words[BP_STREAM_WORDS];
    TAILQ_ENTRY(bp_stream) all_link, asked_link, told_link, committed_link;
};

#define STREAM_SCRATCH_BYTES (64u << 10)
#define LANE_HALF_BYTES (32u << 10) /* most that is read of a satellite before its client is joined */

struct bp_joiner {
    int event_fd, epoll_fd, wake_fd;
    pthread_t thread;
    bool started;
    struct turns turns;
    _Atomic bool stop, paused, resumed; /* resumed: streams may have been left unread meanwhile */
    _Atomic bool look; /* at all lanes, since what was told to the admission has changed */
    _Atomic unsigned lane_count;
    pthread_mutex_t lock;
    struct stream_list all, asked, told, committed; /* guarded by the lock */
    struct buffer given; /* what the caller reads at present; the caller's */
    struct stream_list timed, again, changed; /* this and what follows belongs to the thread alone */
    struct stream_list due;
    struct lane_list lanes, silent;
    unsigned silent_count;
    struct bp_lane_options admits; /* all zero unless bp_joiner_admit() was called */
    struct bp_fields fields; /* of the request that is being read */
    struct bp_lookup lookup; /* who listens */
    uint64_t now_ms, late_at_ms; /* late_at_ms: when the deadlines are looked at next */
    char scratch[STREAM_SCRATCH_BYTES];
};

/* buffer.c */
int bp__buffer_add(struct buffer *buffer, const void *data, size_t bytes);
void bp__buffer_drop(struct buffer *buffer, size_t bytes);
void bp__buffer_move(struct buffer *to, struct buffer *from);

/* ack_filter.c */
int bp__ack_filter(struct ack_filter *filter, const char *data, size_t bytes, struct buffer *out);

/* stream.c */
int bp__stream_make(bp_joiner *joiner, int fd, bp_tls *tls, uint32_t deadline_ms, bp_stream **ret_stream);
void bp__stream_ask(bp_stream *stream, unsigned what);
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

/* stream_drop.c */
void bp__stream_drop(bp_stream *stream);

/* lane_dial.c */
int bp__lane_dial(struct lane *lane);
int bp__lane_finds_owner(struct lane *lane);

/* lane_join.c */
int bp__lane_join(struct lane *lane, struct buffer *words);

/* lane.c */
void bp__lane_begin(bp_stream *client);
void bp__lane_run(bp_stream *stream);
void bp__lane_stop(struct lane *lane, int why);
void bp__lanes_look(bp_joiner *joiner);

/* lane_take.c */
bool bp__lane_take(bp_opening *opening);
void bp__lane_abort(bp_stream *client);

/* joiner_thread.c */
void *bp__joiner_main(void *joiner);

#endif
