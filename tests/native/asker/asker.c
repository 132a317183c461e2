/* Reads requests for a test, under a sanitizer: one question on stdin, one answer on stdout.
 *
 * Each argument is a path's beginning that is the daemon's own. A question is 'r', server name and domain (u32 length, or
 * NO_TEXT), the number of fields (u32), their sizes and their text. The answer is whether it was read (u8) and the struct bp_request.
 * Numbers are as this machine has them. Texts lie alone in memory, so that a read behind them is found.
 */
#include "bp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_TEXT UINT32_MAX

static const char *const *own_paths;
static uint32_t own_count;

static void *room(size_t bytes) {
    void *made = malloc(bytes ? bytes : 1);
    if (!made)
        abort();
    return made;
}

static void get(void *into, size_t bytes) {
    if (bytes && fread(into, 1, bytes, stdin) != bytes)
        abort();
}

static void put(const void *from, size_t bytes) {
    if (fwrite(from, 1, bytes, stdout) != bytes)
        abort();
}

static uint32_t get_u32(void) {
    uint32_t number;
    get(&number, sizeof number);
    return number;
}

static char *get_text(void) {
    uint32_t bytes = get_u32();
    if (bytes == NO_TEXT)
        return NULL;
    char *text = room(bytes + 1);
    get(text, bytes);
    text[bytes] = '\0';
    return text;
}

static void read_request(void) {
    struct bp_fields fields = {0};
    struct bp_request request = {0};
    char *server_name = get_text(), *domain = get_text();
    const struct bp_request_rules rules = {domain, own_paths, own_count};
    fields.count = get_u32();
    fields.sizes = room(2 * fields.count * sizeof *fields.sizes);
    get(fields.sizes, 2 * fields.count * sizeof *fields.sizes);
    for (uint32_t i = 0; i < 2 * fields.count; i++)
        fields.text_bytes += fields.sizes[i];
    fields.text = room(fields.text_bytes);
    get(fields.text, fields.text_bytes);
    uint8_t known = bp_request_read(&fields, server_name, &rules, &request);
    put(&known, sizeof known);
    put(&request, sizeof request);
    free(fields.sizes);
    free(fields.text);
    free(server_name);
    free(domain);
}

int main(int count, char **arguments) {
    own_paths = (const char *const *)(arguments + 1);
    own_count = (uint32_t)count - 1;
    for (; getchar() == 'r'; fflush(stdout))
        read_request();
    return 0;
}
