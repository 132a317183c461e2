/* Faults injected under the engine's system calls, by the linker's --wrap; the driver's own thread never sees one. */
#ifndef FAULTS_H
#define FAULTS_H

#include <stdbool.h>

struct faults {
    unsigned calls;  /* per mille of calls that end with EINTR, EAGAIN or short */
    unsigned memory; /* per mille of calls that end with ENOMEM or ENOBUFS */
    bool tiny_pipes; /* pipes of one page that claim to have sixteen */
};

void faults_exempt_this_thread(void);
void faults_set(struct faults wanted, unsigned seed);
void faults_set_malloc(unsigned per_mille); /* of allocations alone, beside `memory` */
unsigned long faults_of_malloc(void); /* how many allocations failed on purpose */
unsigned long faults_reads(void); /* how often recv(2) returned bytes */
unsigned long faults_whole_sends(void); /* how often send(2) took all that it was given */

#endif
