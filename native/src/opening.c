/* One connection from its accept to its first bytes: is it TLS, the handshake, the first flight. Nothing here waits.
 *
 *   FIRST_BYTE ──is it TLS's?──▶ HANDSHAKE ──▶ FLIGHT ──▶ DONE
 *        └──────────no─────────────────────────▲
 * The first flight is what lies there when it is read first, up to a bound: the caller reads on. A peer that ends or fails
 * before that has opened nothing, whatever it has said.
 */
#include "opener.h"

#include <errno.h>
#include <openssl/ssl3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define FLIGHT_READS 4 /* of one peer before others get a turn; TLS returns several records at once */
#define MESSAGE_BYTES 128

/**
 * over() - Note how an opening has ended
 * @o: Opening
 * @result: As in struct bp_opened
 *
 * Return: OPENING_OVER
 * Thread: own
 */
static enum opening_next over(bp_opening *o, ssize_t result) {
    BP_ASSERT(result <= 0 && !o->over);
    o->over = true;
    o->result = result;
    return OPENING_OVER;
}

/**
 * waits_or_over() - Say what a call that brought nothing means
 * @o: Opening
 * @why: 0 at the end of the stream, of enum bp_tls_result, or a negative errno
 *
 * Return: what to wait for, or OPENING_OVER
 * Thread: own
 */
static enum opening_next waits_or_over(bp_opening *o, ssize_t why) {
    BP_ASSERT(why <= 0);
    if (why == BP_TLS_WANT_READ || why == -EAGAIN || why == -EINTR)
        return OPENING_READS;
    if (why == BP_TLS_WANT_WRITE)
        return OPENING_WRITES;
    return over(o, why);
}

/**
 * look() - See whether the first byte is that of a TLS handshake (RFC 8446 section 5.1)
 * @o: Opening, whose step changes if there is a byte
 *
 * Return: the number of bytes seen, 1; 0 if the peer has closed; or a negative errno
 * Thread: own
 */
static ssize_t look(bp_opening *o) {
    unsigned char first;
    ssize_t got = recv(o->fd, &first, 1, MSG_PEEK);
    if (got < 0)
        return -errno;
    if (got == 1)
        o->step = first == SSL3_RT_HANDSHAKE ? BP_OPENING_HANDSHAKE : BP_OPENING_FLIGHT;
    return got;
}

/**
 * shake() - Go on with the handshake
 * @o: Opening
 *
 * Return: as bp_tls_handshake()
 * Thread: own
 */
static int shake(bp_opening *o) {
    char message[MESSAGE_BYTES];
    if (!o->tls)
        o->tls = bp_tls_new(o->ctx, o->fd, NULL, message, sizeof message);
    if (!o->tls)
        return -ENOMEM; /* on a server's side nothing else can fail */
    int r = bp_tls_handshake(o->tls);
    if (r == 0)
        o->step = BP_OPENING_FLIGHT;
    return r;
}

/**
 * read_some() - Read what has come
 * @o: Opening
 * @buffer: Receives the bytes
 * @bytes: Size of @buffer, at least 1
 *
 * Return: number of bytes, 0 at the end, of enum bp_tls_result, or a negative errno
 * Thread: own
 */
static ssize_t read_some(bp_opening *o, char *buffer, size_t bytes) {
    if (o->tls)
        return bp_tls_read(o->tls, buffer, bytes);
    ssize_t got = recv(o->fd, buffer, bytes, 0);
    return got < 0 ? -errno : got;
}

/**
 * keep() - Keep the first flight for the caller
 * @o: Opening, which is over then
 * @data: The bytes
 * @bytes: How many, at least 1
 *
 * Return: OPENING_OVER
 * Thread: own
 */
static enum opening_next keep(bp_opening *o, const char *data, size_t bytes) {
    BP_ASSERT(!o->first && bytes > 0);
    o->first = malloc(bytes);
    if (!o->first)
        return over(o, -ENOMEM);
    memcpy(o->first, data, bytes);
    o->first_bytes = bytes;
    o->step = BP_OPENING_DONE;
    return over(o, 0);
}

/**
 * read_flight() - Read the first flight, if it has come
 * @o: Opening
 * @scratch: Buffer of the thread
 * @most_bytes: The most to read, up to OPENING_SCRATCH_BYTES
 *
 * Return: what to wait for, or OPENING_OVER
 * Thread: own
 */
static enum opening_next read_flight(bp_opening *o, char *scratch, size_t most_bytes) {
    size_t filled = 0;
    ssize_t got = 1;
    for (int reads = 0; reads < FLIGHT_READS && filled < most_bytes && got > 0; reads++) {
        got = read_some(o, scratch + filled, most_bytes - filled);
        filled += got > 0 ? (size_t)got : 0;
    }
    BP_ASSERT(filled <= most_bytes);
    if (got < 0 && waits_or_over(o, got) == OPENING_OVER)
        return OPENING_OVER;
    return filled ? keep(o, scratch, filled) : waits_or_over(o, got);
}

/**
 * bp__opening_run() - Go on as far as the peer has come
 * @o: Opening that is not over
 * @scratch: Buffer of the thread, of OPENING_SCRATCH_BYTES
 * @most_bytes: The most that is read of the first flight
 *
 * Return: what to wait for, or OPENING_OVER
 * Thread: own
 */
enum opening_next bp__opening_run(bp_opening *o, char *scratch, size_t most_bytes) {
    BP_ASSERT(!o->over && most_bytes <= OPENING_SCRATCH_BYTES);
    if (o->step == BP_OPENING_FIRST_BYTE) {
        ssize_t seen = look(o);
        if (seen <= 0)
            return waits_or_over(o, seen);
    }
    if (o->step == BP_OPENING_HANDSHAKE) {
        if (!o->may_shake)
            return OPENING_TURN;
        int r = shake(o);
        if (r != 0)
            return waits_or_over(o, r);
    }
    BP_ASSERT(o->step == BP_OPENING_FLIGHT);
    return read_flight(o, scratch, most_bytes);
}
