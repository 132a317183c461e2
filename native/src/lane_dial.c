/* The connection to a satellite of a client that was admitted, and who listens there. */
#include "admission.h"
#include "stream.h"
#include "tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define IPV4_BYTES 4u
#define MESSAGE_BYTES 128

/**
 * start_connecting() - Begin to connect a new socket
 * @gate: Gate
 *
 * Return: a descriptor, or a negative errno
 * Thread: own
 */
static int start_connecting(const bp_gate *gate) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(gate->port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(gate->port)};
    bool is_v4 = gate->address_bytes == IPV4_BYTES;
    memcpy(&v4.sin_addr, gate->address, sizeof v4.sin_addr);
    memcpy(&v6.sin6_addr, gate->address, sizeof v6.sin6_addr);
    int fd = socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int r = is_v4 ? connect(fd, (struct sockaddr *)&v4, sizeof v4) : connect(fd, (struct sockaddr *)&v6, sizeof v6);
    if (r < 0 && errno != EINPROGRESS) {
        r = -errno;
        (void)close(fd);
        return r;
    }
    return fd;
}

/**
 * trust_of() - The TLS by which the satellite behind a gate is known now
 * @admission: Admission
 * @gate: Gate
 * @ret_ctx: Receives a context, which bp_tls_ctx_free() frees; or NULL
 * @ret_name: Receives the name that its certificate must have
 *
 * Return: 0; -EHOSTUNREACH if it cannot be connected to here; or -ENOMEM
 * Thread: any
 */
static int trust_of(bp_admission *admission, const bp_gate *gate, bp_tls_ctx **ret_ctx,
                    char ret_name[BP_TLS_NAME_BYTES]) {
    int r = 0;
    *ret_ctx = NULL;
    pthread_mutex_lock(&admission->lock);
    if (!gate->address_bytes || (gate->wants_tls && !gate->tls))
        r = -EHOSTUNREACH;
    else if (gate->tls) {
        *ret_ctx = bp__tls_ctx_share(gate->tls);
        r = *ret_ctx ? 0 : -ENOMEM;
        memcpy(ret_name, gate->server_name, BP_TLS_NAME_BYTES);
    }
    pthread_mutex_unlock(&admission->lock);
    return r;
}

/**
 * bp__lane_dial() - Begin to connect to the satellite of a client
 * @l: Lane that has entered
 *
 * Return: 0, or a negative errno
 * Thread: own
 */
int bp__lane_dial(struct lane *l) {
    bp_joiner *j = l->client->joiner;
    bp_tls_ctx *ctx;
    bp_tls *tls = NULL;
    bp_stream *half;
    char name[BP_TLS_NAME_BYTES], message[MESSAGE_BYTES];
    int r = trust_of(j->admits.admission, l->entry.gate, &ctx, name);
    if (r < 0)
        return r;
    int fd = start_connecting(l->entry.gate);
    if (fd >= 0 && ctx)
        tls = bp_tls_new(ctx, fd, name, message, sizeof message);
    r = fd < 0 ? fd : ctx && !tls ? -ENOMEM : bp__stream_make(j, fd, tls, j->admits.reach_ms, &half);
    bp_tls_ctx_free(ctx);
    if (r < 0) {
        bp_tls_free(tls);
        if (fd >= 0)
            (void)close(fd);
        return r;
    }
    half->owns_fd = half->is_half = half->in_lane = true;
    half->asks = 0;
    half->lane = l;
    l->half = half;
    bp__stream_begin(half);
    return 0;
}

/**
 * bp__lane_finds_owner() - Whether the connection has reached the process that the control plane knows there
 * @l: Lane whose satellite is connected
 *
 * Nobody else can have got it while that one's socket listens. So this is asked after the connection was made.
 *
 * Return: 1; 0 if it has not; or a negative errno if that cannot be seen
 * Thread: own
 */
int bp__lane_finds_owner(struct lane *l) {
    const bp_gate *gate = l->entry.gate;
    struct bp_listener found;
    if (!gate->owned)
        return 1;
    int r = bp_lookup_listener(&l->client->joiner->lookup, gate->address, gate->address_bytes, gate->port, &found);
    if (r <= 0)
        return r;
    for (uint32_t i = 0; i < gate->inode_count; i++)
        if (gate->inodes[i] == found.inode)
            return 1;
    return !gate->inode_count && found.uid == gate->uid;
}
