/* What the programs share that give the engine's parts connections of every kind. */
#ifndef STORM_H
#define STORM_H

#include "bp.h"

#define STUCK_S 60 /* with no progress for so long, something is lost */

extern bp_tls_ctx *server_ctx, *client_ctx;

void die(const char *what);
unsigned pick(unsigned below);
void storm_begin(int count, char **arguments);
void storm_end(void);

#endif
