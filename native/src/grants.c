/* The table of grants: which tokens there are, for which satellites, and until when. */
#include "admission.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_TOKENS 64
#define FIRST_TEXT_BYTES 4096u

/**
 * digest_of() - Take a digest as numbers
 * @bytes: Digest
 *
 * Return: the numbers
 * Thread: any
 */
static struct digest digest_of(const uint8_t *bytes) {
    struct digest digest;
    for (unsigned i = 0; i < DIGEST_WORDS; i++) {
        uint64_t word;
        memcpy(&word, bytes + i * sizeof word, sizeof word);
        digest.words[i] = be64toh(word);
    }
    return digest;
}

/**
 * is_less() - Whether one digest is before another; the time does not depend on them
 * @a: Digest
 * @b: Digest
 *
 * Return: 1 if @a is before @b, or 0
 * Thread: any
 */
static uint64_t is_less(const struct digest *a, const struct digest *b) {
    uint64_t borrow = 0;
    for (unsigned i = DIGEST_WORDS; i-- > 0;) {
        unsigned __int128 difference = (unsigned __int128)a->words[i] - b->words[i] - borrow;
        borrow = (uint64_t)(difference >> 64) & 1;
    }
    return borrow;
}

/**
 * are_same() - Whether two digests are the same; the time does not depend on them
 * @a: Digest
 * @b: Digest
 *
 * Return: whether they are
 * Thread: any
 */
static bool are_same(const struct digest *a, const struct digest *b) {
    uint64_t different = 0;
    for (unsigned i = 0; i < DIGEST_WORDS; i++)
        different |= a->words[i] ^ b->words[i];
    return !different;
}

/**
 * compare() - Compare two tokens, for qsort(3): by digest, then as they were told
 * @a: A struct token_row
 * @b: Likewise
 *
 * Return: below, at or above 0
 * Thread: any
 */
static int compare(const void *a, const void *b) {
    const struct token_row *one = a, *other = b;
    if (is_less(&one->digest, &other->digest))
        return -1;
    if (is_less(&other->digest, &one->digest))
        return 1;
    return (one->order > other->order) - (one->order < other->order);
}

/**
 * make_room() - Make room for one more token with its text
 * @grants: Grants
 * @text_bytes: Size of the text
 *
 * Return: 0, or -ENOMEM
 * Thread: one
 */
static int make_room(struct grants *grants, size_t text_bytes) {
    if (grants->count == grants->room) {
        uint32_t room = grants->room ? 2 * grants->room : FIRST_TOKENS;
        struct token_row *grown = realloc(grants->tokens, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        grants->tokens = grown;
        grants->room = room;
    }
    if (grants->text_room - grants->text_bytes < text_bytes) {
        size_t room = 2 * (grants->text_bytes + text_bytes) + FIRST_TEXT_BYTES;
        char *grown = realloc(grants->text, room);
        if (!grown)
            return -ENOMEM;
        grants->text = grown;
        grants->text_room = room;
    }
    return 0;
}

/**
 * bp__grants_add() - Add a token to a table that does not count yet
 * @grants: Grants
 * @digest: As bp_admission_add_token() has it
 * @expires_us: Likewise
 * @payer: Likewise
 * @identity: Likewise
 * @patterns: Likewise
 *
 * Return: 0, -ENOSPC, or -ENOMEM
 * Thread: one
 */
int bp__grants_add(struct grants *grants, const uint8_t *digest, int64_t expires_us, uint32_t payer, uint32_t identity,
                   const char *patterns) {
    size_t bytes = strlen(patterns) + 1;
    if (grants->count == BP_GRANTED_TOKENS)
        return -ENOSPC;
    int r = make_room(grants, bytes);
    if (r < 0)
        return r;
    grants->tokens[grants->count] = (struct token_row){.digest = digest_of(digest),
                                                       .order = grants->count,
                                                       .payer = payer,
                                                       .identity = identity,
                                                       .expires_us = expires_us,
                                                       .patterns_at = grants->text_bytes};
    memcpy(grants->text + grants->text_bytes, patterns, bytes);
    grants->text_bytes += bytes;
    grants->count++;
    return 0;
}

/**
 * bp__grants_sort() - Put the tokens of a table in order; of those with the same digest the last one stays
 * @grants: Grants
 *
 * Thread: one
 */
void bp__grants_sort(struct grants *grants) {
    uint32_t kept = 0;
    if (!grants->count)
        return;
    qsort(grants->tokens, grants->count, sizeof *grants->tokens, compare);
    for (uint32_t i = 0; i < grants->count; i++)
        if (i + 1 == grants->count || !are_same(&grants->tokens[i].digest, &grants->tokens[i + 1].digest))
            grants->tokens[kept++] = grants->tokens[i];
    grants->count = kept;
}

/**
 * bp__grants_find() - Find a token
 * @grants: Grants in order
 * @digest: Its SHA-256
 *
 * The number of steps depends on the number of tokens alone, so the time does not tell which there are.
 *
 * Return: the token, or NULL
 * Thread: any
 */
const struct token_row *bp__grants_find(const struct grants *grants, const uint8_t *digest) {
    const struct digest wanted = digest_of(digest);
    const struct token_row *row = grants->tokens; /* the last that is not behind the wanted one, or the first */
    for (uint32_t left = grants->count; left > 1;) {
        uint32_t half = left / 2;
        row += half & (uint32_t)(is_less(&wanted, &row[half].digest) - 1);
        left -= half;
    }
    return grants->count && are_same(&row->digest, &wanted) ? row : NULL;
}

/**
 * covers() - Whether a pattern is for a satellite: Grant.parse and Grant.covers of daemon/model.py
 * @pattern: Pattern
 * @bytes: Its length
 * @satellite: Satellite
 *
 * Return: whether it is
 * Thread: any
 */
static bool covers(const char *pattern, size_t bytes, const struct bp_satellite *satellite) {
    const char *slash = memchr(pattern, '/', bytes);
    size_t org_bytes = slash ? (size_t)(slash - pattern) : bytes;
    const char *name = slash ? slash + 1 : pattern + bytes;
    size_t name_bytes = (size_t)(pattern + bytes - name);
    bool exact = !name_bytes || name[name_bytes - 1] != '*';
    name_bytes -= !exact;
    return org_bytes == satellite->org_bytes && memcmp(pattern, satellite->org, org_bytes) == 0 &&
           (exact ? name_bytes == satellite->name_bytes : name_bytes <= satellite->name_bytes) &&
           memcmp(name, satellite->name, name_bytes) == 0;
}

/**
 * bp__grants_cover() - Whether a token is for a satellite
 * @grants: Grants
 * @token: One of theirs
 * @satellite: Satellite
 *
 * Return: whether it is
 * Thread: any
 */
bool bp__grants_cover(const struct grants *grants, const struct token_row *token,
                      const struct bp_satellite *satellite) {
    for (const char *at = grants->text + token->patterns_at; *at;) {
        size_t bytes = strcspn(at, "\n");
        if (covers(at, bytes, satellite))
            return true;
        at += bytes + (at[bytes] == '\n');
    }
    return false;
}

/**
 * bp__grants_clear() - Forget all tokens
 * @grants: Grants, which are all zero then
 *
 * Thread: one
 */
void bp__grants_clear(struct grants *grants) {
    free(grants->tokens);
    free(grants->text);
    *grants = (struct grants){0};
}
