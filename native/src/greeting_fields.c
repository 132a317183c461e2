/* A request's header block, decoded by nghttp2's HPACK (RFC 7541). A walk over the block comes first, as in
 * proto/hpack_scan.py: it refuses what is costly to decode.
 *
 * Without nghttp2's header at build time no block can be decoded, and the greeting leaves each request to Python.
 */
#include "greeting.h"

#include <errno.h>
#include <string.h>

#if __has_include(<nghttp2/nghttp2.h>) && !defined(BP_WITHOUT_NGHTTP2)
#include <nghttp2/nghttp2.h>
#define HAS_NGHTTP2 1
#else
#define HAS_NGHTTP2 0
#endif

#define INDEXED 0x80u
#define INDEXED_PREFIX 0x7fu
#define LITERAL_INDEXED 0x40u
#define LITERAL_INDEXED_PREFIX 0x3fu
#define SIZE_UPDATE 0x20u
#define SIZE_UPDATE_PREFIX 0x1fu
#define LITERAL_PREFIX 0x0fu
#define LENGTH_PREFIX 0x7fu
#define MORE 0x80u
#define BITS_A_BYTE 7u
#define LARGEST_SHIFT 56u /* what a byte of an integer may be shifted by without loss in 64 bits */
#define ENTRY_BYTES 32u /* what RFC 9113 section 6.5.2 counts for a field beside its name and value */

struct walk {
    const struct bp_greeting_limits *limits;
    const uint8_t *block;
    size_t bytes;
    size_t at; /* may lie behind the end, if a string claims to */
    bool cut; /* the last integer was not complete */
};

/**
 * walk_integer() - Read the integer at the walk's position (RFC 7541 section 5.1)
 * @w: Walk, before the end of its block
 * @prefix: The bits of the first byte that belong to the integer
 * @ret: Receives the value; of one that is cut, as much as there is
 *
 * Return: false if it has more bytes than HPACK_INTEGER_BYTES
 * Thread: one
 */
static bool walk_integer(struct walk *w, uint8_t prefix, uint64_t *ret) {
    uint64_t value = w->block[w->at++] & prefix;
    w->cut = false;
    if (value == prefix) {
        for (unsigned count = 1;; count++) {
            unsigned shift = (count - 1) * BITS_A_BYTE;
            if (bp__over(w->limits, BP_LIMIT_HPACK_INTEGER_BYTES, count) || shift > LARGEST_SHIFT)
                return false;
            if (w->at >= w->bytes) {
                w->cut = true;
                break;
            }
            uint8_t byte = w->block[w->at++];
            value += (uint64_t)(byte & ~MORE) << shift;
            if (!(byte & MORE))
                break;
        }
    }
    *ret = value;
    return true;
}

/**
 * walk_string() - Skip the string at the walk's position
 * @w: Walk
 *
 * Return: false if its length has more bytes than HPACK_INTEGER_BYTES
 * Thread: one
 */
static bool walk_string(struct walk *w) {
    uint64_t length;
    if (w->at >= w->bytes)
        return true;
    if (!walk_integer(w, LENGTH_PREFIX, &length))
        return false;
    w->at = length < w->bytes - w->at ? w->at + (size_t)length : w->bytes;
    return true;
}

/**
 * walk_field() - Skip the field at the walk's position
 * @w: Walk, before the end of its block
 *
 * Return: false if an integer in it has more bytes than HPACK_INTEGER_BYTES
 * Thread: one
 */
static bool walk_field(struct walk *w) {
    uint8_t first = w->block[w->at];
    uint64_t index;
    if (first & INDEXED)
        return walk_integer(w, INDEXED_PREFIX, &index);
    if (!walk_integer(w, first & LITERAL_INDEXED ? LITERAL_INDEXED_PREFIX : LITERAL_PREFIX, &index))
        return false;
    return (index || walk_string(w)) && walk_string(w);
}

/**
 * refuse() - Name the limit behind a refusal
 * @ret_limit: Receives the limit
 * @limit: Limit
 * @error: Error
 *
 * Return: @error
 * Thread: any
 */
static int refuse(enum bp_limit *ret_limit, enum bp_limit limit, enum h2_error error) {
    *ret_limit = limit;
    return (int)error;
}

/**
 * check_block() - Refuse a block that would be costly to decode, or resizes the table too far
 * @limits: Limits
 * @block: Whole header block
 * @bytes: Its size
 * @ret_limit: Receives the limit behind a refusal, or BP_LIMIT_NONE
 *
 * Return: 0, or of enum h2_error
 * Thread: any
 */
static int check_block(const struct bp_greeting_limits *limits, const uint8_t *block, size_t bytes,
                       enum bp_limit *ret_limit) {
    struct walk w = {.limits = limits, .block = block, .bytes = bytes};
    uint32_t fields = 0, updates = 0;
    bool resized_too_far = false;
    *ret_limit = BP_LIMIT_NONE;
    while (w.at < bytes) {
        uint8_t first = block[w.at];
        uint64_t size;
        if (first & (INDEXED | LITERAL_INDEXED) || !(first & SIZE_UPDATE)) {
            if (!walk_field(&w))
                return refuse(ret_limit, BP_LIMIT_HPACK_INTEGER_BYTES, H2_COMPRESSION_ERROR);
            if (bp__over(limits, BP_LIMIT_HEADER_FIELDS, ++fields))
                return refuse(ret_limit, BP_LIMIT_HEADER_FIELDS, H2_ENHANCE_YOUR_CALM);
            continue;
        }
        if (!walk_integer(&w, SIZE_UPDATE_PREFIX, &size))
            return refuse(ret_limit, BP_LIMIT_HPACK_INTEGER_BYTES, H2_COMPRESSION_ERROR);
        if (fields) /* RFC 7541 section 4.2 */
            return H2_COMPRESSION_ERROR;
        if (bp__over(limits, BP_LIMIT_TABLE_SIZE_UPDATES, ++updates))
            return refuse(ret_limit, BP_LIMIT_TABLE_SIZE_UPDATES, H2_COMPRESSION_ERROR);
        resized_too_far |= !w.cut && bp__over(limits, BP_LIMIT_TABLE_BYTES, size);
    }
    return resized_too_far ? refuse(ret_limit, BP_LIMIT_TABLE_BYTES, H2_COMPRESSION_ERROR) : 0;
}

#if HAS_NGHTTP2

/**
 * add_field() - Copy a field that nghttp2 has decoded
 * @limits: Limits
 * @nv: Field
 * @list_bytes: Size of the list so far, as RFC 9113 section 6.5.2 counts; receives the size with this field
 * @ret: Receives the field
 * @ret_limit: Receives the limit behind a refusal
 *
 * Return: 0, or of enum h2_error, or -ENOBUFS if @ret has no room
 * Thread: one
 */
static int add_field(const struct bp_greeting_limits *limits, const nghttp2_nv *nv, uint64_t *list_bytes,
                     struct bp_fields *ret, enum bp_limit *ret_limit) {
    *list_bytes += ENTRY_BYTES + nv->namelen + nv->valuelen;
    if (bp__over(limits, BP_LIMIT_HEADER_LIST_BYTES, *list_bytes))
        return refuse(ret_limit, BP_LIMIT_HEADER_LIST_BYTES, H2_ENHANCE_YOUR_CALM);
    if (ret->count == ret->most || nv->namelen + nv->valuelen > ret->text_most - ret->text_bytes)
        return -ENOBUFS;
    memcpy(ret->text + ret->text_bytes, nv->name, nv->namelen);
    ret->text_bytes += nv->namelen;
    memcpy(ret->text + ret->text_bytes, nv->value, nv->valuelen);
    ret->text_bytes += nv->valuelen;
    ret->sizes[2 * ret->count] = (uint32_t)nv->namelen;
    ret->sizes[2 * ret->count + 1] = (uint32_t)nv->valuelen;
    ret->count++;
    return 0;
}

/**
 * inflate() - Decode a block that has been checked
 * @limits: Limits
 * @block: Whole header block, the connection's first
 * @bytes: Its size
 * @ret: Receives the fields
 * @ret_limit: Receives the limit behind a refusal
 *
 * Return: 0, or of enum h2_error, or a negative errno if it could not be decided
 * Thread: one
 */
static int inflate(const struct bp_greeting_limits *limits, const uint8_t *block, size_t bytes, struct bp_fields *ret,
                   enum bp_limit *ret_limit) {
    nghttp2_hd_inflater *inflater;
    uint64_t list_bytes = 0;
    int flags = 0, r = 0;
    if (nghttp2_hd_inflate_new(&inflater))
        return -ENOMEM;
    if (nghttp2_hd_inflate_change_table_size(inflater, (size_t)limits->most[BP_LIMIT_TABLE_BYTES]))
        r = -EINVAL;
    while (r == 0 && !(flags & NGHTTP2_HD_INFLATE_FINAL)) {
        nghttp2_nv nv;
        flags = 0;
        ssize_t used = nghttp2_hd_inflate_hd2(inflater, &nv, &flags, block, bytes, 1);
        if (used < 0) {
            r = used == NGHTTP2_ERR_HEADER_COMP ? (int)H2_COMPRESSION_ERROR : -EIO;
            break;
        }
        block += used;
        bytes -= (size_t)used;
        if (flags & NGHTTP2_HD_INFLATE_EMIT)
            r = add_field(limits, &nv, &list_bytes, ret, ret_limit);
        else if (!(flags & NGHTTP2_HD_INFLATE_FINAL) && !used)
            r = -EIO; /* it never says so of a block that is whole */
    }
    nghttp2_hd_inflate_del(inflater);
    return r;
}

const char *bp_nghttp2_version(void) { return nghttp2_version(0)->version_str; }

#else

/**
 * inflate() - Stands for nghttp2, which this build lacks
 * @limits: Ignored
 * @block: Ignored
 * @bytes: Ignored
 * @ret: Ignored
 * @ret_limit: Ignored
 *
 * Return: -ENOSYS
 * Thread: any
 */
static int inflate(const struct bp_greeting_limits *limits, const uint8_t *block, size_t bytes, struct bp_fields *ret,
                   enum bp_limit *ret_limit) {
    (void)limits, (void)block, (void)bytes, (void)ret, (void)ret_limit;
    return -ENOSYS;
}

const char *bp_nghttp2_version(void) { return NULL; }

#endif

/**
 * bp__decode_fields() - Decode a connection's first header block
 * @limits: Limits
 * @block: Whole header block
 * @bytes: Its size
 * @ret: Receives the fields, instead of those that it had
 * @ret_limit: Receives the limit behind a refusal, or BP_LIMIT_NONE
 *
 * Return: 0, or of enum h2_error, or a negative errno if it could not be decided
 * Thread: one
 */
int bp__decode_fields(const struct bp_greeting_limits *limits, const uint8_t *block, size_t bytes,
                      struct bp_fields *ret, enum bp_limit *ret_limit) {
    ret->count = 0;
    ret->text_bytes = 0;
    int r = check_block(limits, block, bytes, ret_limit);
    return r ? r : inflate(limits, block, bytes, ret, ret_limit);
}
