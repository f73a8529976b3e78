/* Who is next: classes, tenants and their waiting work.
 *
 *   rank 0  aged priority     each rank: a heap of accounts with waiting work, lowest counter first
 *   rank 1  priority          each account (tenant x rank): its entries in the order
 *   rank 2  default                (group, priority, order): preempted sequences, then further choices of started
 *   rank 3  flex                   requests, then new requests; lower `priority` first; then first come
 *   rank 4  batch
 *
 * A lower rank goes first. An entry of class c starts at rank c + 1 and moves up one when it has waited past its limit.
 * Within a rank, tenants share by tokens: the virtual token counter of Sheng et al., OSDI 2024. An account's counter
 * grows by its uncached prompt tokens when they are admitted and by 2 for each output id; the lowest counter goes next.
 * An account that becomes active (waiting or running) starts at the lowest active counter, so idling saves no credit
 * (R16).
 *
 * Entries are a pairing heap an account (Fredman et al. 1986) with links in fixed arrays: O(1) to add, O(log n)
 * amortised to take; a plain list would let one tenant make insertions slow by sending falling priorities. Engine
 * thread. */
#ifndef SCHEDULER_FAIR_H
#define SCHEDULER_FAIR_H

#include "scheduler/heap.h"
#include "scheduler/request.h"

#include <stdbool.h>
#include <stdint.h>

enum { FAIR_RANKS = CLASS_COUNT + 1, FAIR_NONE = UINT32_MAX, FAIR_OUTPUT_WEIGHT = 2 };
enum fair_group { FAIR_PREEMPTED, FAIR_CHOICE, FAIR_NEW };

struct fair_entry {
    uint64_t order;
    uint32_t tenant;
    uint32_t child, sibling, previous; /* pairing heap: previous is the left sibling, or the parent of a first child */
    int32_t priority;
    uint8_t group, rank;
    bool waiting;
};

struct fair_account {
    uint64_t counter;
    uint32_t root; /* first entry, FAIR_NONE */
    uint32_t waiting_entries, running;
    bool dirty;
};

struct fair {
    struct fair_entry *entries;      /* [entries_max] */
    struct fair_account *accounts;   /* [tenants_max * FAIR_RANKS], tenant-major */
    struct heap waiting[FAIR_RANKS]; /* tenants with waiting entries, by counter */
    struct heap active[FAIR_RANKS];  /* tenants with waiting or running work, by counter */
    uint32_t *dirty;                 /* accounts whose counter grew since fair_settle */
    uint32_t dirty_count, waiting_count, tenants_max, entries_max;
    uint64_t touched;
};

NODISCARD enum status fair_init(struct fair *fair, uint32_t tenants_max, uint32_t entries_max); /* ST_NOMEM */
void fair_free(struct fair *fair);

/* Puts entry (not waiting) in the queue of tenant and rank. order: first come first; unique. */
void fair_push(struct fair *fair, uint32_t entry, uint32_t tenant, uint32_t rank, enum fair_group group,
               int32_t priority, uint64_t order);
void fair_remove(struct fair *fair, uint32_t entry); /* harmless when it does not wait */

/* The entry to admit next, FAIR_NONE when nothing waits. Settled counters only. */
uint32_t fair_top(const struct fair *fair);

/* A sequence of the account runs or has stopped running. */
void fair_run_begin(struct fair *fair, uint32_t tenant, uint32_t rank);
void fair_run_end(struct fair *fair, uint32_t tenant, uint32_t rank);

/* Adds to the account's counter; takes effect in the order at the next fair_settle (O(log tenants) an account, not a
 * row). */
void fair_charge(struct fair *fair, uint32_t tenant, uint32_t rank, uint64_t tokens);
void fair_settle(struct fair *fair);

uint64_t fair_touched(const struct fair *fair);

static inline struct fair_account *fair_account(const struct fair *fair, uint32_t tenant, uint32_t rank)
{
    return &fair->accounts[(uint64_t)tenant * FAIR_RANKS + rank];
}

#endif
