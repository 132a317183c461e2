/* What the programs share that give the engine's parts connections of every kind. Each is called
 *
 *   PROGRAM COUNT SEED CERTIFICATE KEY CA
 * and ends with 1 if it finds something wrong.
 */
#include "storm.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

bp_tls_ctx *server_ctx, *client_ctx;
static int open_before;

void die(const char *what) {
    fprintf(stderr, "storm: %s (errno %d)\n", what, errno);
    exit(1);
}

unsigned pick(unsigned below) { return (unsigned)rand() % below; }

static int descriptors(void) {
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    if (!folder)
        die("opendir");
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

/* Takes the arguments of main: seeds `pick`, and makes both contexts. */
void storm_begin(int count, char **arguments) {
    char error[256] = "";
    if (count != 6)
        die("usage");
    srand((unsigned)atoi(arguments[2]));
    server_ctx = bp_tls_ctx_server(arguments[3], arguments[4], NULL, error, sizeof error);
    client_ctx = bp_tls_ctx_client(arguments[5], NULL, NULL, error, sizeof error);
    if (!server_ctx || !client_ctx)
        die(error);
    open_before = descriptors();
}

/* No descriptor is left of what was opened since `storm_begin`. */
void storm_end(void) {
    if (descriptors() != open_before)
        die("a descriptor is left");
    bp_tls_ctx_free(server_ctx);
    bp_tls_ctx_free(client_ctx);
}
