/* The admission: who may reach which awake satellite at once, without a question to the control plane.
 *
 * The control plane tells tokens, gates and credits. A thread that has read a request enters, or leaves it to the control
 * plane. One lock makes each step one step: what is asked is seen as it is then, and never half of a change.
 */
#include "admission.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_PAYERS 64

int bp_admission_new(bp_admission **ret_admission) {
    bp_admission *admission = calloc(1, sizeof *admission);
    if (!admission)
        return -ENOMEM;
    if (pthread_mutex_init(&admission->lock, NULL)) {
        free(admission);
        return -ENOMEM;
    }
    LIST_INIT(&admission->gates);
    *ret_admission = admission;
    return 0;
}

void bp_admission_reset(bp_admission *admission) {
    pthread_mutex_lock(&admission->lock);
    admission->seat++;
    for (bp_gate *gate; (gate = LIST_FIRST(&admission->gates));)
        bp__gate_take_out(admission, gate);
    bp__grants_clear(&admission->grants);
    admission->until_us = 0;
    free(admission->payers);
    admission->payers = NULL;
    admission->payer_room = 0;
    pthread_mutex_unlock(&admission->lock);
    bp__grants_clear(&admission->coming);
}

void bp_admission_free(bp_admission *admission) {
    if (!admission)
        return;
    bp_admission_reset(admission);
    pthread_mutex_destroy(&admission->lock);
    free(admission);
}

int bp_admission_add_token(bp_admission *admission, const uint8_t *digest, int64_t expires_us, uint32_t payer,
                           uint32_t identity, const char *patterns) {
    if (payer >= BP_PAYERS)
        return -EINVAL;
    return bp__grants_add(&admission->coming, digest, expires_us, payer, identity, patterns);
}

void bp_admission_take_table(bp_admission *admission, uint64_t generation, uint32_t streams, uint32_t window_bytes) {
    bp__grants_sort(&admission->coming);
    admission->coming.generation = generation;
    pthread_mutex_lock(&admission->lock);
    struct grants before = admission->grants;
    admission->grants = admission->coming;
    admission->streams = streams;
    admission->window_bytes = window_bytes;
    pthread_mutex_unlock(&admission->lock);
    admission->coming = (struct grants){0};
    bp__grants_clear(&before);
}

/**
 * make_room() - Make room for a principal
 * @admission: Admission, locked
 * @payer: Its number, below BP_PAYERS
 *
 * Return: 0, or -ENOMEM
 * Thread: any
 */
static int make_room(bp_admission *admission, uint32_t payer) {
    uint32_t room = admission->payer_room ? admission->payer_room : FIRST_PAYERS;
    if (payer < admission->payer_room)
        return 0;
    while (room <= payer)
        room *= 2;
    struct credit *grown = realloc(admission->payers, room * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    memset(grown + admission->payer_room, 0, (room - admission->payer_room) * sizeof *grown);
    admission->payers = grown;
    admission->payer_room = room;
    return 0;
}

int bp_admission_credit(bp_admission *admission, uint32_t payer, uint64_t allowed, uint64_t *ret_used) {
    if (payer >= BP_PAYERS)
        return -EINVAL;
    pthread_mutex_lock(&admission->lock);
    int r = make_room(admission, payer);
    if (r == 0) {
        admission->payers[payer].allowed = allowed;
        *ret_used = admission->payers[payer].used;
    }
    pthread_mutex_unlock(&admission->lock);
    return r;
}

bool bp_admission_may_enter(bp_admission *admission, int64_t now_us) {
    pthread_mutex_lock(&admission->lock);
    bool may = admission->grants.count && admission->gate_count && admission->until_us > now_us;
    pthread_mutex_unlock(&admission->lock);
    return may;
}

/**
 * bp__admission_announced() - What SETTINGS announce to a client that waits for them
 * @admission: Admission
 * @ret_streams: Receives it, as bp_admission_take_table() has it
 * @ret_window_bytes: Likewise
 *
 * Thread: any
 */
void bp__admission_announced(bp_admission *admission, uint32_t *ret_streams, uint32_t *ret_window_bytes) {
    pthread_mutex_lock(&admission->lock);
    *ret_streams = admission->streams;
    *ret_window_bytes = admission->window_bytes;
    pthread_mutex_unlock(&admission->lock);
}

/**
 * judge() - Decide whether a token is for a satellite
 * @admission: Admission, locked
 * @token: Token, or NULL
 * @satellite: Satellite
 * @wall_us: Microseconds since the epoch
 *
 * Return: BP_ENTERED if it is, or another verdict
 * Thread: any
 */
static enum bp_entering judge(const bp_admission *admission, const struct token_row *token,
                              const struct bp_satellite *satellite, int64_t wall_us) {
    if (!token)
        return BP_NO_TOKEN;
    if (token->expires_us && token->expires_us <= wall_us)
        return BP_EXPIRED;
    return bp__grants_cover(&admission->grants, token, satellite) ? BP_ENTERED : BP_NOT_GRANTED;
}

/**
 * take_place() - Let a client in whose token is for the satellite, if the gate is open and there is credit
 * @admission: Admission, locked
 * @token: Token
 * @satellite: Satellite
 * @now_us: CLOCK_BOOTTIME
 * @ret: Receives the entry
 *
 * Return: BP_ENTERED, or another verdict
 * Thread: any
 */
static enum bp_entering take_place(bp_admission *admission, const struct token_row *token,
                                   const struct bp_satellite *satellite, int64_t now_us, struct bp_entry *ret) {
    bp_gate *gate = bp__gate_of(admission, satellite);
    if (!gate)
        return BP_NO_GATE;
    if (gate->until_us <= now_us)
        return BP_RUN_OUT;
    struct credit *credit = token->payer < admission->payer_room ? &admission->payers[token->payer] : NULL;
    if (!credit || credit->used >= credit->allowed)
        return BP_NO_CREDIT;
    credit->used++;
    gate->users++;
    *ret = (struct bp_entry){
        .gate = gate,
        .number = gate->number.number,
        .generation = admission->grants.generation,
        .seat = admission->seat,
        .trust = gate->trust,
        .payer = token->payer,
        .identity = token->identity,
    };
    return BP_ENTERED;
}

enum bp_entering bp_admission_enter(bp_admission *admission, const uint8_t *digest,
                                    const struct bp_satellite *satellite, int64_t now_us, int64_t wall_us,
                                    struct bp_entry *ret) {
    pthread_mutex_lock(&admission->lock);
    const struct token_row *token = bp__grants_find(&admission->grants, digest);
    enum bp_entering verdict = judge(admission, token, satellite, wall_us);
    if (verdict == BP_ENTERED)
        verdict = take_place(admission, token, satellite, now_us, ret);
    pthread_mutex_unlock(&admission->lock);
    if (verdict == BP_ENTERED)
        memcpy(ret->digest, digest, sizeof ret->digest);
    return verdict;
}

/**
 * bp__admission_holds() - The same as bp_admission_holds(), for a caller that goes on in the same step
 * @admission: Admission, locked
 * @entry: Entry
 * @now_us: CLOCK_BOOTTIME
 * @wall_us: Microseconds since the epoch
 *
 * Return: whether the client may be brought to its satellite
 * Thread: any
 */
bool bp__admission_holds(bp_admission *admission, const struct bp_entry *entry, int64_t now_us, int64_t wall_us) {
    const bp_gate *gate = entry->gate;
    if (entry->seat != admission->seat || !gate->is_open || gate->until_us <= now_us || gate->trust != entry->trust)
        return false;
    const struct token_row *token = bp__grants_find(&admission->grants, entry->digest);
    return token && token->payer == entry->payer && token->identity == entry->identity &&
           judge(admission, token, &gate->satellite, wall_us) == BP_ENTERED;
}

bool bp_admission_holds(bp_admission *admission, const struct bp_entry *entry, int64_t now_us, int64_t wall_us) {
    pthread_mutex_lock(&admission->lock);
    bool holds = bp__admission_holds(admission, entry, now_us, wall_us);
    pthread_mutex_unlock(&admission->lock);
    return holds;
}

/**
 * give_back() - Free a credit
 * @admission: Admission, locked
 * @seat: Seat in which it was taken
 * @payer: Principal
 *
 * Thread: any
 */
static void give_back(bp_admission *admission, uint64_t seat, uint32_t payer) {
    if (seat != admission->seat)
        return;
    BP_ASSERT(payer < admission->payer_room && admission->payers[payer].used);
    admission->payers[payer].used--;
}

void bp_admission_give_back(bp_admission *admission, uint64_t seat, uint32_t payer) {
    pthread_mutex_lock(&admission->lock);
    give_back(admission, seat, payer);
    pthread_mutex_unlock(&admission->lock);
}

void bp_admission_leave(bp_admission *admission, struct bp_entry *entry, bool back) {
    pthread_mutex_lock(&admission->lock);
    if (back)
        give_back(admission, entry->seat, entry->payer);
    bp__gate_drop(entry->gate);
    pthread_mutex_unlock(&admission->lock);
    *entry = (struct bp_entry){0};
}
