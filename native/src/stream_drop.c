/* Frees streams, with all that they have. */
#include "stream.h"

#include <stdlib.h>
#include <unistd.h>

/**
 * bp__stream_drop() - Free a stream that no thread and no list refers to
 * @s: Stream
 *
 * Thread: one
 */
void bp__stream_drop(bp_stream *s) {
    struct lane *lane = s->is_half ? NULL : s->lane;
    struct buffer *buffers[] = {&s->out, &s->fresh.data, &s->to_say, &s->news.data};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        bp__buffer_drop(buffers[i], buffers[i]->bytes);
    if (s->join)
        bp__join_free(s->join);
    if (s->to_join)
        bp__join_free(s->to_join);
    if (lane) {
        if (lane->entered)
            bp_admission_leave(s->joiner->admits.admission, &lane->entry, true);
        bp__buffer_drop(&lane->kept, lane->kept.bytes);
        free(lane);
    }
    bp_tls_free(s->tls);
    if (s->owns_fd)
        (void)close(s->fd);
    free(s);
}
