/* Why a splice ends: from what a leg's call returned to one of enum bp_reason. */
#include "check.h"

#include <errno.h>

/**
 * truncated_reason() - The reason of a splice whose TLS ended without close_notify
 * @leg: The leg that did
 *
 * Return: of enum bp_reason
 * Thread: any
 */
static int truncated_reason(enum leg_id leg) { return leg == CLIENT ? BP_CLIENT_TRUNCATED : BP_SATELLITE_TRUNCATED; }

/**
 * bp__fail() - Note that a leg failed: sets the splice's reason and error
 * @s: Splice; end_broken() of splice.c ends it
 * @leg: The leg
 * @why: A negative errno, or of enum bp_tls_result
 *
 * Thread: own
 */
void bp__fail(bp_splice *s, enum leg_id leg, int why) {
    static const int reset[2] = {BP_CLIENT_RESET, BP_SATELLITE_RESET};
    static const int timeout[2] = {BP_CLIENT_TIMEOUT, BP_SATELLITE_TIMEOUT};
    static const int tls[2] = {BP_CLIENT_TLS_ERROR, BP_SATELLITE_TLS_ERROR};
    static const int flood[2] = {BP_CLIENT_TLS_FLOOD, BP_SATELLITE_TLS_FLOOD};
    int reason = reset[leg];
    BP_CHECK_OWN(s->thread);
    BP_ASSERT(why < 0 && why != -EAGAIN && why != BP_TLS_WANT_READ && why != BP_TLS_WANT_WRITE);
    if (why == BP_TLS_CONTROL_FLOOD || why == BP_TLS_HANDSHAKE_FLOOD)
        reason = flood[leg];
    else if (why == BP_TLS_ERROR || why == BP_TLS_TRUNCATED || why == -EBADMSG)
        reason = tls[leg]; /* EBADMSG: the kernel could not decrypt */
    else if (why == -ETIMEDOUT || why == -EHOSTUNREACH || why == -ENETUNREACH)
        reason = timeout[leg];
    else if (why == -ENOMEM)
        reason = BP_NO_MEMORY;
    /* After a truncation OpenSSL refuses to write, and a peer that is gone answers with RST: the truncation caused both. */
    if (s->leg[leg].truncated && (reason == tls[leg] || reason == reset[leg]))
        reason = truncated_reason(leg);
    s->broken = leg;
    atomic_store(&s->error, why > BP_TLS_WANT_READ ? -why : 0);
    atomic_store(&s->reason, reason);
}

/**
 * bp__note_truncation() - Note that a TLS peer sent FIN without close_notify
 * @s: Splice
 * @leg: The leg
 *
 * Thread: own
 */
void bp__note_truncation(bp_splice *s, struct leg *leg) {
    BP_ASSERT(leg->tls);
    leg->truncated = true;
    if (!s->truncated)
        s->truncated = truncated_reason((enum leg_id)leg->id);
}
