/* From the joiner to the engine: a client and its satellite that are joined. */
#include "stream.h"

int bp_lane_splice(bp_engine *engine, bp_stream *client, bp_splice **ret_splice) {
    bp_stream *half = client->lane->half;
    BP_ASSERT(client->published && half->published && client->owns_fd && half->owns_fd);
    int r = bp_engine_splice(engine, client->fd, client->tls, half->fd, half->tls, ret_splice);
    if (r < 0)
        return r;
    client->owns_fd = half->owns_fd = false;
    client->tls = half->tls = NULL;
    bp_stream_free(client);
    return 0;
}
