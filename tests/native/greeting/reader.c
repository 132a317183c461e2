/* Reads greetings for a test, under a sanitizer: one call of bp_greeting_next() for each question on stdin.
 *
 * First it says how large struct bp_greeting is (u32), and gets the limits and the number of fields that it has room for
 * (u32). Each question is a struct bp_greeting, the time (double), a length (u64) and so many bytes. Each answer is the verdict
 * (i32), the struct, the number of fields and the length of their text (u32), their sizes and the text. Numbers are as this
 * machine has them. The bytes lie alone in memory, so that a read behind them is found.
 */
#include "bp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *room(size_t bytes) {
    void *made = malloc(bytes ? bytes : 1);
    if (!made)
        abort();
    return made;
}

/* Whether there is another question; its middle must not be missing. */
static bool get(void *into, size_t bytes) {
    size_t got = fread(into, 1, bytes, stdin);
    if (got && got != bytes)
        abort();
    return got == bytes;
}

static void put(const void *from, size_t bytes) {
    if (bytes && fwrite(from, 1, bytes, stdout) != bytes)
        abort();
}

static void answer(struct bp_greeting *g, const struct bp_greeting_limits *limits, struct bp_fields *fields) {
    double now_s;
    uint64_t bytes;
    if (!get(&now_s, sizeof now_s) || !get(&bytes, sizeof bytes))
        abort();
    char *kept = room(bytes);
    if (bytes && !get(kept, bytes))
        abort();
    g->limits = limits;
    fields->count = 0;
    fields->text_bytes = 0;
    int32_t verdict = (int32_t)bp_greeting_next(g, kept, bytes, now_s, fields);
    uint32_t sizes[2] = {fields->count, (uint32_t)fields->text_bytes};
    free(kept);
    put(&verdict, sizeof verdict);
    put(g, sizeof *g);
    put(sizes, sizeof sizes);
    put(fields->sizes, 2 * fields->count * sizeof *fields->sizes);
    put(fields->text, fields->text_bytes);
    fflush(stdout);
}

int main(void) {
    struct bp_greeting g;
    struct bp_greeting_limits limits;
    struct bp_fields fields = {0};
    uint32_t size = sizeof g;
    put(&size, sizeof size);
    fflush(stdout);
    if (!get(&limits, sizeof limits) || !get(&fields.most, sizeof fields.most))
        return 1;
    fields.sizes = room(2 * fields.most * sizeof *fields.sizes);
    fields.text_most = (size_t)limits.most[BP_LIMIT_HEADER_LIST_BYTES];
    fields.text = room(fields.text_most);
    while (get(&g, sizeof g))
        answer(&g, &limits, &fields);
    free(fields.sizes);
    free(fields.text);
    return 0;
}
