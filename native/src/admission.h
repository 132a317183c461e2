/* What the files of the admission share. */
#ifndef BP_ADMISSION_H
#define BP_ADMISSION_H

#include "check.h"

#include <sys/queue.h>

#define DIGEST_WORDS (BP_DIGEST_BYTES / 8)

struct digest {
    uint64_t words[DIGEST_WORDS]; /* as numbers that compare as the bytes do, the highest first */
};

struct token_row {
    struct digest digest;
    uint32_t order; /* in which it was told */
    uint32_t payer, identity;
    int64_t expires_us; /* CLOCK_REALTIME; 0: never */
    size_t patterns_at; /* in the table's text, to the NUL */
};

struct grants { /* a table of tokens, in ascending order of their digests once it counts; all zero: there are none */
    uint64_t generation;
    uint32_t count, room;
    struct token_row *tokens;
    char *text;
    size_t text_bytes, text_room;
};

struct credit {
    uint64_t allowed, used; /* in all */
};

struct gate_number { /* what one tree is sorted by */
    uint64_t number;
    bp_gate *gate;
};

struct bp_gate {
    struct bp_satellite satellite; /* first: it is what the other tree is sorted by */
    struct gate_number number;
    int64_t until_us;
    bool is_open;
    uint32_t users; /* the trees while it is open, and entries */
    uint64_t trust; /* rises with each change of the TLS */
    bool wants_tls; /* without it the satellite cannot be connected to here */
    bp_tls_ctx *tls; /* or NULL */
    char server_name[BP_TLS_NAME_BYTES];
    uint32_t address_bytes;
    uint8_t address[BP_ADDRESS_BYTES];
    uint16_t port;
    bool owned;
    uint32_t uid, inode_count;
    uint64_t *inodes; /* or NULL */
    LIST_ENTRY(bp_gate) link;
};

struct bp_admission {
    struct grants coming; /* the caller's, as bp_admission_add_token() says */
    pthread_mutex_t lock; /* guards all that follows */
    uint64_t seat; /* rises with each reset */
    struct grants grants;
    uint32_t streams, window_bytes;
    int64_t until_us; /* when the last gate runs out, at the latest */
    void *by_satellite, *by_number; /* trees for tsearch(3) */
    LIST_HEAD(gate_list, bp_gate) gates;
    unsigned gate_count;
    struct credit *payers;
    uint32_t payer_room;
};

/* grants.c */
int bp__grants_add(struct grants *grants, const uint8_t *digest, int64_t expires_us, uint32_t payer, uint32_t identity,
                   const char *patterns);
void bp__grants_sort(struct grants *grants);
const struct token_row *bp__grants_find(const struct grants *grants, const uint8_t *digest);
bool bp__grants_cover(const struct grants *grants, const struct token_row *token, const struct bp_satellite *satellite);
void bp__grants_clear(struct grants *grants);

/* gates.c */
bp_gate *bp__gate_of(bp_admission *admission, const struct bp_satellite *satellite);
void bp__gate_take_out(bp_admission *admission, bp_gate *gate);
void bp__gate_drop(bp_gate *gate);

/* admission.c */
void bp__admission_announced(bp_admission *admission, uint32_t *ret_streams, uint32_t *ret_window_bytes);
bool bp__admission_holds(bp_admission *admission, const struct bp_entry *entry, int64_t now_us, int64_t wall_us);

#endif
