/* The gates of an admission, one a satellite: found by the satellite by those who enter, and by its number by the control plane.
 *
 * A gate lives while it is open, and while somebody has an entry that was made while it was.
 */
#include "admission.h"
#include "tls.h"

#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

/**
 * compare() - Compare two satellites, for tsearch(3)
 * @a: A struct bp_satellite, or a gate
 * @b: Likewise
 *
 * Return: below, at or above 0
 * Thread: any
 */
static int compare(const void *a, const void *b) {
    const struct bp_satellite *one = a, *other = b;
    if (one->org_bytes != other->org_bytes)
        return one->org_bytes < other->org_bytes ? -1 : 1;
    if (one->name_bytes != other->name_bytes)
        return one->name_bytes < other->name_bytes ? -1 : 1;
    int order = memcmp(one->name, other->name, one->name_bytes);
    return order ? order : memcmp(one->org, other->org, one->org_bytes);
}

/**
 * compare_numbers() - Compare two numbers, for tsearch(3)
 * @a: A struct gate_number
 * @b: Likewise
 *
 * Return: below, at or above 0
 * Thread: any
 */
static int compare_numbers(const void *a, const void *b) {
    uint64_t one = ((const struct gate_number *)a)->number, other = ((const struct gate_number *)b)->number;
    return (one > other) - (one < other);
}

/**
 * bp__gate_of() - Find the open gate of a satellite
 * @admission: Admission, locked
 * @satellite: Satellite
 *
 * Return: the gate, or NULL
 * Thread: any
 */
bp_gate *bp__gate_of(bp_admission *admission, const struct bp_satellite *satellite) {
    void *found = tfind(satellite, &admission->by_satellite, compare);
    return found ? *(bp_gate **)found : NULL;
}

/**
 * find_number() - Find the open gate that has a number
 * @admission: Admission, locked
 * @number: Number
 *
 * Return: the gate, or NULL
 * Thread: any
 */
static bp_gate *find_number(bp_admission *admission, uint64_t number) {
    const struct gate_number wanted = {.number = number};
    void *found = tfind(&wanted, &admission->by_number, compare_numbers);
    return found ? (*(struct gate_number **)found)->gate : NULL;
}

/**
 * bp__gate_drop() - Take a user away
 * @gate: Gate, or NULL; its admission is locked. It is freed if nobody uses it any more
 *
 * Thread: any
 */
void bp__gate_drop(bp_gate *gate) {
    if (!gate || --gate->users)
        return;
    BP_ASSERT(!gate->is_open);
    bp_tls_ctx_free(gate->tls);
    free(gate->inodes);
    free(gate);
}

/**
 * bp__gate_take_out() - Shut a gate
 * @admission: Admission, locked
 * @gate: Gate that is open
 *
 * Thread: any
 */
void bp__gate_take_out(bp_admission *admission, bp_gate *gate) {
    BP_ASSERT(gate->is_open);
    tdelete(gate, &admission->by_satellite, compare);
    tdelete(&gate->number, &admission->by_number, compare_numbers);
    LIST_REMOVE(gate, link);
    admission->gate_count--;
    gate->is_open = false;
    bp__gate_drop(gate);
}

/**
 * set_trust() - Set the TLS of a gate
 * @gate: Gate
 * @tls: Borrows; or NULL
 * @server_name: As in struct bp_gate_facts
 *
 * Return: 0, or -EINVAL or -ENOMEM, and the gate is as it was
 * Thread: any
 */
static int set_trust(bp_gate *gate, bp_tls_ctx *tls, const char *server_name) {
    size_t bytes = tls && server_name ? strnlen(server_name, sizeof gate->server_name) : 0;
    bp_tls_ctx *shared = NULL;
    if (tls && (tls->server || !bytes || bytes == sizeof gate->server_name))
        return -EINVAL;
    if (tls && !(shared = bp__tls_ctx_share(tls)))
        return -ENOMEM;
    bp_tls_ctx_free(gate->tls);
    gate->tls = shared;
    memcpy(gate->server_name, bytes ? server_name : "", bytes);
    gate->server_name[bytes] = '\0';
    gate->trust++;
    return 0;
}

/**
 * make() - Make a gate
 * @facts: Facts
 * @ret: Receives it on success, which is not open yet
 *
 * Return: 0, -EINVAL, or -ENOMEM
 * Thread: any
 */
static int make(const struct bp_gate_facts *facts, bp_gate **ret) {
    const struct bp_satellite *name = &facts->satellite;
    if (!name->org_bytes || name->org_bytes > BP_SATELLITE_NAME_BYTES || !name->name_bytes ||
        name->name_bytes > BP_SATELLITE_NAME_BYTES || facts->inode_count > BP_GATE_INODES ||
        (facts->address_bytes != 0 && facts->address_bytes != 4 && facts->address_bytes != BP_ADDRESS_BYTES))
        return -EINVAL;
    bp_gate *gate = calloc(1, sizeof *gate);
    if (!gate)
        return -ENOMEM;
    gate->satellite = *name;
    gate->number = (struct gate_number){facts->number, gate};
    gate->until_us = facts->until_us;
    gate->users = 1;
    gate->address_bytes = facts->address_bytes;
    memcpy(gate->address, facts->address, facts->address_bytes);
    gate->port = facts->port;
    gate->wants_tls = facts->wants_tls;
    gate->owned = facts->owned;
    gate->uid = facts->uid;
    gate->inode_count = facts->inode_count;
    int r = set_trust(gate, facts->tls, facts->server_name);
    if (r == 0 && facts->inode_count) {
        size_t bytes = facts->inode_count * sizeof *gate->inodes;
        gate->inodes = malloc(bytes);
        if (gate->inodes)
            memcpy(gate->inodes, facts->inodes, bytes);
        else
            r = -ENOMEM;
    }
    if (r < 0)
        bp__gate_drop(gate);
    else
        *ret = gate;
    return r;
}

/**
 * put_in() - Open a gate
 * @admission: Admission, locked
 * @gate: Gate
 *
 * Return: 0, -EEXIST, -ENOSPC, or -ENOMEM
 * Thread: any
 */
static int put_in(bp_admission *admission, bp_gate *gate) {
    if (admission->gate_count == BP_GATES_OPEN)
        return -ENOSPC;
    if (bp__gate_of(admission, &gate->satellite) || find_number(admission, gate->number.number))
        return -EEXIST;
    if (!tsearch(gate, &admission->by_satellite, compare))
        return -ENOMEM;
    if (!tsearch(&gate->number, &admission->by_number, compare_numbers)) {
        tdelete(gate, &admission->by_satellite, compare);
        return -ENOMEM;
    }
    LIST_INSERT_HEAD(&admission->gates, gate, link);
    admission->gate_count++;
    gate->is_open = true;
    if (gate->until_us > admission->until_us)
        admission->until_us = gate->until_us;
    return 0;
}

int bp_gate_open(bp_admission *admission, const struct bp_gate_facts *facts) {
    bp_gate *gate;
    int r = make(facts, &gate);
    if (r < 0)
        return r;
    pthread_mutex_lock(&admission->lock);
    r = put_in(admission, gate);
    if (r < 0)
        bp__gate_drop(gate);
    pthread_mutex_unlock(&admission->lock);
    return r;
}

int bp_gate_trust(bp_admission *admission, uint64_t number, bp_tls_ctx *tls, const char *server_name) {
    pthread_mutex_lock(&admission->lock);
    bp_gate *gate = find_number(admission, number);
    int r = gate ? set_trust(gate, tls, server_name) : 0;
    pthread_mutex_unlock(&admission->lock);
    return r;
}

void bp_gate_renew(bp_admission *admission, uint64_t number, int64_t until_us) {
    pthread_mutex_lock(&admission->lock);
    bp_gate *gate = find_number(admission, number);
    if (gate) {
        gate->until_us = until_us;
        if (until_us > admission->until_us)
            admission->until_us = until_us;
    }
    pthread_mutex_unlock(&admission->lock);
}

void bp_gate_shut(bp_admission *admission, uint64_t number) {
    pthread_mutex_lock(&admission->lock);
    bp_gate *gate = find_number(admission, number);
    if (gate)
        bp__gate_take_out(admission, gate);
    pthread_mutex_unlock(&admission->lock);
}
