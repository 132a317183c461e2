/* What a TLS peer can make us work without saying anything, bounded: in one call, and for the connection's life.
 *
 * OpenSSL goes on inside one call for as long as records come that carry nothing for the caller: KeyUpdate (four key
 * derivations each), NewSessionTicket, warnings, a handshake in fragments of a byte. Turning SSL_MODE_AUTO_RETRY off does
 * not end that while it has read ahead. So records and messages are counted where OpenSSL shows them
 * (SSL_set_msg_callback(3)), reads where it asks for bytes (tls_bio.c).
 * A call that has had its share ends as if the socket were dry. A peer over a limit is stopped within the records that
 * OpenSSL has already: to it the stream has ended, as by close_notify, which is looked at before each record.
 * Bounded by OpenSSL itself, and told as the same flood: 32 empty records and 5 warnings in a row.
 */
#include "tls.h"

/* Of one call. A record of a handshake is two reads; of the stream, one read is up to 64 KiB. */
#define CALL_READS 64
#define CALL_BYTES (256u << 10)
#define CALL_RECORDS 512 /* of the stream, some 0.7 us each when they are small */

/* Records until hands are shaken. A ClientHello is one or two; a chain of certificates, 100 KiB at the most, in fragments
 * of 512 bytes (RFC 6066 section 4) is 200. */
#define TLS_HANDSHAKE_RECORDS 512

/* Records and messages that are not application data, after the handshake: so many at once, and so many a second. Each
 * message counts with its record. Servers send up to 8 tickets behind a handshake; key updates are due after 2^24 records
 * (RFC 8446 section 5.5) or, with Java, 2^37 bytes: minutes apart at any speed. At some 15 us each this is nothing. */
#define TLS_CONTROL_RECORDS 64
#define TLS_CONTROL_PER_S 2

#define MILLI 1000u

static void stop(struct tls_meter *meter, SSL *ssl, int why) {
    meter->over = why;
    SSL_set_shutdown(ssl, SSL_get_shutdown(ssl) | SSL_RECEIVED_SHUTDOWN);
}

static void charge(struct tls_meter *meter, SSL *ssl) {
    uint64_t now_ms = bp__now_ms();
    meter->control_millis += (now_ms - meter->control_at_ms) * TLS_CONTROL_PER_S;
    meter->control_at_ms = now_ms;
    if (meter->control_millis > TLS_CONTROL_RECORDS * MILLI)
        meter->control_millis = TLS_CONTROL_RECORDS * MILLI;
    if (meter->control_millis < MILLI)
        stop(meter, ssl, BP_TLS_CONTROL_FLOOD);
    else
        meter->control_millis -= MILLI;
}

/* OpenSSL would answer a KeyUpdate that asks for ours inside the read, and cannot while a record of ours waits for room:
 * "bad length" would end the connection. RFC 8446 section 4.6.3 wants the answer before our next application data only, so
 * what OpenSSL is about to read is made one that does not ask, and bp_tls_write answers. */
static void put_off_answer(struct tls_meter *meter, const void *message, size_t bytes) {
    unsigned char *at = (unsigned char *)(uintptr_t)message; /* of OpenSSL's own buffer for it */
    if (bytes == SSL3_HM_HEADER_LENGTH + 1 && at[0] == SSL3_MT_KEY_UPDATE && at[4] == SSL_KEY_UPDATE_REQUESTED) {
        at[4] = SSL_KEY_UPDATE_NOT_REQUESTED;
        meter->answer_due = true;
    }
}

/* A record's header, what TLS 1.3 has inside it, or a whole handshake message. */
static void seen(int written, int version, int kind, const void *data, size_t bytes, SSL *ssl, void *argument) {
    struct tls_meter *meter = argument;
    bool control = bytes && *(const unsigned char *)data != SSL3_RT_APPLICATION_DATA;
    (void)version;
    if (written || meter->over)
        return;
    if (kind == SSL3_RT_HEADER) {
        meter->cost += STEP_COST;
        meter->records_left -= meter->records_left > 0;
        if (!meter->established && ++meter->handshake_records > TLS_HANDSHAKE_RECORDS)
            stop(meter, ssl, BP_TLS_HANDSHAKE_FLOOD);
    }
    if (meter->established && kind == SSL3_RT_HANDSHAKE)
        put_off_answer(meter, data, bytes);
    if (meter->established &&
        (kind == SSL3_RT_HANDSHAKE || (control && (kind == SSL3_RT_HEADER || kind == SSL3_RT_INNER_CONTENT_TYPE))))
        charge(meter, ssl);
}

void bp__tls_meter_attach(struct tls_meter *meter, SSL *ssl) {
    *meter = (struct tls_meter){.control_millis = TLS_CONTROL_RECORDS * MILLI, .control_at_ms = bp__now_ms()};
    SSL_set_msg_callback(ssl, seen);
    SSL_set_msg_callback_arg(ssl, meter);
}

void bp__tls_meter_begin(struct tls_meter *meter) {
    meter->reads_left = CALL_READS;
    meter->records_left = CALL_RECORDS;
    meter->bytes_left = CALL_BYTES;
}

const char *bp__tls_meter_words(int over) {
    return over == BP_TLS_HANDSHAKE_FLOOD
               ? "over the limit TLS_HANDSHAKE_RECORDS: the handshake comes in too many records"
               : "over the limit TLS_CONTROL_RECORDS: too many records that carry no data (key updates, tickets, "
                 "alerts)";
}
