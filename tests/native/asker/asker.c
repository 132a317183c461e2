/* Calls pure functions of the engine for a test, under a sanitizer: one question on stdin, one answer on stdout.
 *
 * Each argument is a path's beginning that is the daemon's own. The questions:
 *   'r': server name and domain (u32 length, or NO_TEXT), the number of fields (u32), their sizes and their text. The answer
 *        is whether the request was read (u8) and the struct bp_request.
 *   'f': the struct bp_announcement, a length (u32), and so many bytes of a satellite. The answer is the enum
 *        bp_first_settings (u32), the struct bp_announcement that was heard, a length (u32) and so many bytes of words.
 *   'l': a length (u32), an address of so many bytes, and a port (u32). The answer is the result (i32) and the struct
 *        bp_listener.
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
    if (bytes && fwrite(from, 1, bytes, stdout) != bytes)
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

static void read_first_settings(void) {
    struct bp_announcement announced, heard = {0};
    size_t words_bytes = 0;
    get(&announced, sizeof announced);
    uint32_t bytes = get_u32();
    char *said = room(bytes), *words = room(bytes + BP_SETTINGS_ADDED_BYTES);
    get(said, bytes);
    uint32_t verdict = bp_first_settings_read(&announced, said, bytes, words, &words_bytes, &heard);
    uint32_t size = (uint32_t)words_bytes;
    put(&verdict, sizeof verdict);
    put(&heard, sizeof heard);
    put(&size, sizeof size);
    put(words, size);
    free(said);
    free(words);
}

static void look_up(struct bp_lookup *lookup) {
    struct bp_listener found = {0};
    uint32_t bytes = get_u32();
    char *address = room(bytes);
    get(address, bytes);
    int32_t r = bp_lookup_listener(lookup, address, bytes, (uint16_t)get_u32(), &found);
    put(&r, sizeof r);
    put(&found, sizeof found);
    free(address);
}

int main(int count, char **arguments) {
    own_paths = (const char *const *)(arguments + 1);
    own_count = (uint32_t)count - 1;
    struct bp_lookup lookup;
    bp_lookup_init(&lookup);
    for (int kind; (kind = getchar()) != EOF; fflush(stdout)) {
        if (kind == 'r')
            read_request();
        else if (kind == 'f')
            read_first_settings();
        else if (kind == 'l')
            look_up(&lookup);
        else
            abort();
    }
    bp_lookup_close(&lookup);
    return 0;
}
