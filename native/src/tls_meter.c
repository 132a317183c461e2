/* Limits the work that a TLS peer can cause without sending data: in one call, and over the life of the connection.
 *
 * OpenSSL stays inside one call while records come that carry nothing for the caller: KeyUpdate (four key derivations
 * each), NewSessionTicket, warnings, a handshake in fragments of a byte. SSL_MODE_AUTO_RETRY does not change that while
 * OpenSSL has records that it has read ahead. So this file counts records and messages where OpenSSL reports them
 * (SSL_set_msg_callback(3)), and tls_bio.c counts reads where OpenSSL asks for bytes.
 * A call that has used its share ends as if the socket were empty. A peer over a limit is stopped before the next record,
 * even if OpenSSL has that already: OpenSSL is told that the stream has ended, as by close_notify.
 * OpenSSL itself limits 32 empty records and 5 warnings in a row; the engine reports that as the same flood.
 */
#include "tls.h"

/* The share of one call. A record of a handshake takes two reads; afterwards one read brings up to 64 KiB. */
#define CALL_READS 64
#define CALL_BYTES (256u << 10)
#define CALL_RECORDS 512 /* some 0.7 us each when they are small */

/* Records until the handshake is complete. A ClientHello is one or two; a chain of certificates, 100 KiB at the most, in
 * fragments of 512 bytes (RFC 6066 section 4) is 200. */
#define TLS_HANDSHAKE_RECORDS 512

/* Records and messages that are not application data, after the handshake: most at once, and per second. A message and
 * its record count as two. Servers send up to 8 tickets after a handshake; key updates are due after 2^24 records
 * (RFC 8446 section 5.5) or, with Java, 2^37 bytes: minutes apart at any speed. At some 15 us each the limits cost little. */
#define TLS_CONTROL_RECORDS 64
#define TLS_CONTROL_PER_S 2

#define MILLI 1000u

/**
 * stop() - Stop a peer that is over a limit
 * @meter: Its meter
 * @ssl: Connection; to OpenSSL the peer's stream has ended, as by close_notify
 * @flood: The limit, a flood of enum bp_tls_result
 *
 * Thread: one
 */
static void stop(struct tls_meter *meter, SSL *ssl, int flood) {
    BP_ASSERT(flood == BP_TLS_CONTROL_FLOOD || flood == BP_TLS_HANDSHAKE_FLOOD);
    BP_ASSERT(!meter->flood);
    meter->flood = flood;
    SSL_set_shutdown(ssl, SSL_get_shutdown(ssl) | SSL_RECEIVED_SHUTDOWN);
}

/**
 * charge() - Count a record or message that is not application data; stop the peer if it is over the rate
 * @meter: Meter
 * @ssl: Connection
 *
 * Thread: one
 */
static void charge(struct tls_meter *meter, SSL *ssl) {
    uint64_t now_ms = bp__now_ms();
    BP_ASSERT(now_ms >= meter->control_at_ms);
    BP_ASSERT(meter->control_millis <= TLS_CONTROL_RECORDS * MILLI);
    meter->control_millis += (now_ms - meter->control_at_ms) * TLS_CONTROL_PER_S;
    meter->control_at_ms = now_ms;
    if (meter->control_millis > TLS_CONTROL_RECORDS * MILLI)
        meter->control_millis = TLS_CONTROL_RECORDS * MILLI;
    if (meter->control_millis < MILLI)
        stop(meter, ssl, BP_TLS_CONTROL_FLOOD);
    else
        meter->control_millis -= MILLI;
}

/**
 * defer_key_update() - Change a KeyUpdate that asks for ours into one that does not, and note that ours is due
 * @meter: Meter
 * @message: A handshake message that OpenSSL is about to read, in its own buffer
 * @bytes: Size of @message
 *
 * OpenSSL would answer inside the read, and cannot while a record of ours waits for room: it would end the connection with
 * "bad length". RFC 8446 section 4.6.3 wants the answer only before our next application data, so bp_tls_write() answers.
 *
 * Thread: one
 */
static void defer_key_update(struct tls_meter *meter, const void *message, size_t bytes) {
    unsigned char *at = (unsigned char *)(uintptr_t)message; /* of OpenSSL's own buffer for it */
    if (bytes == SSL3_HM_HEADER_LENGTH + 1 && at[0] == SSL3_MT_KEY_UPDATE && at[4] == SSL_KEY_UPDATE_REQUESTED) {
        at[4] = SSL_KEY_UPDATE_NOT_REQUESTED;
        meter->key_update_due = true;
    }
}

/**
 * on_message() - OpenSSL's callback for records and messages (SSL_set_msg_callback(3))
 * @written: Whether OpenSSL sends it
 * @version: Not used
 * @kind: What @data is: a record's header, what TLS 1.3 has inside a record, or a whole handshake message
 * @data: The bytes
 * @bytes: How many
 * @ssl: Connection
 * @argument: Its meter
 *
 * Thread: one
 */
static void on_message(int written, int version, int kind, const void *data, size_t bytes, SSL *ssl, void *argument) {
    struct tls_meter *meter = argument;
    BP_ASSERT(meter->records_left <= CALL_RECORDS && meter->reads_left <= CALL_READS &&
              meter->bytes_left <= CALL_BYTES);
    bool control = bytes && *(const unsigned char *)data != SSL3_RT_APPLICATION_DATA;
    (void)version;
    if (written || meter->flood)
        return;
    if (kind == SSL3_RT_HEADER) {
        meter->cost += STEP_COST;
        meter->records_left -= meter->records_left > 0;
        if (!meter->established && ++meter->handshake_records > TLS_HANDSHAKE_RECORDS)
            stop(meter, ssl, BP_TLS_HANDSHAKE_FLOOD);
    }
    if (meter->established && kind == SSL3_RT_HANDSHAKE)
        defer_key_update(meter, data, bytes);
    if (meter->established &&
        (kind == SSL3_RT_HANDSHAKE || (control && (kind == SSL3_RT_HEADER || kind == SSL3_RT_INNER_CONTENT_TYPE))))
        charge(meter, ssl);
}

/**
 * bp__tls_meter_attach() - Start to count what a peer sends
 * @meter: Meter, which is reset
 * @ssl: Connection, whose callback is set
 *
 * Thread: one
 */
void bp__tls_meter_attach(struct tls_meter *meter, SSL *ssl) {
    BP_ASSERT(SSL_in_before(ssl));
    *meter = (struct tls_meter){.control_millis = TLS_CONTROL_RECORDS * MILLI, .control_at_ms = bp__now_ms()};
    SSL_set_msg_callback(ssl, on_message);
    SSL_set_msg_callback_arg(ssl, meter);
}

/**
 * bp__tls_meter_begin() - Give the call that follows its share of reads, records and bytes
 * @meter: Meter; tls_bio.c ends the call when the share is used up
 *
 * Thread: one
 */
void bp__tls_meter_begin(struct tls_meter *meter) {
    meter->reads_left = CALL_READS;
    meter->records_left = CALL_RECORDS;
    meter->bytes_left = CALL_BYTES;
}

/**
 * bp__tls_meter_message() - Describe a limit
 * @flood: BP_TLS_CONTROL_FLOOD or BP_TLS_HANDSHAKE_FLOOD
 *
 * Return: text
 * Thread: any
 */
const char *bp__tls_meter_message(int flood) {
    return flood == BP_TLS_HANDSHAKE_FLOOD
               ? "over the limit TLS_HANDSHAKE_RECORDS: the handshake comes in too many records"
               : "over the limit TLS_CONTROL_RECORDS: too many records that carry no data (key updates, tickets, "
                 "alerts)";
}
