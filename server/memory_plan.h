/* How the memory of the process is divided among its models, and whether one more fits. Pure; any thread.
 *
 *   memory limit  >=  sum over loaded models of weights + scratch + KV
 *                     (asleep at level 1: without KV; at level 2: nothing)
 *   KV memory     >=  sum over awake models of KV
 *
 * M1  Models loaded together at the start divide the KV memory in proportion to what a sequence of full context needs
 *     of each (its least share), so that each can hold as many of them.
 * M2  A model loaded later gets what is left of the KV memory, or the share that its load asks for.
 * M3  Nobody gets less than a sequence of full context. What does not fit is refused with the figures and with what
 *     could be unloaded; nothing is taken from models that are loaded. */
#ifndef SERVER_MEMORY_PLAN_H
#define SERVER_MEMORY_PLAN_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct memory_row {
    const char *name;
    uint64_t weights_bytes, scratch_bytes, kv_bytes; /* in memory now */
};

/* The KV memory of the process: what the option gives; else a quarter of the limit, at most 4 GiB, and no more than the
 * weights leave of it, but as much as the models need at least where there is room for it. */
uint64_t memory_kv_total(uint64_t option_bytes, uint64_t limit_bytes, uint64_t weights_bytes, uint64_t least_bytes);

/* M1: shares of kv_bytes for models that need at least least[i]. ST_INVAL (err): they need more than there is. */
NODISCARD enum status memory_divide(uint64_t kv_bytes, const uint64_t *least, uint32_t count, uint64_t *shares,
                                    struct error *err);

/* M2: the share of one more model; asked_bytes: what its load asks for, 0 = what is left. With strict, the sum of
 * shares stays within kv_total (an operator has set it); otherwise a model gets at least its least share, and the limit
 * of the process decides. ST_NOMEM (err). */
NODISCARD enum status memory_share(uint64_t kv_total, bool strict, const struct memory_row *rows, uint32_t count,
                                   const char *name, uint64_t least, uint64_t asked_bytes, uint64_t *share,
                                   struct error *err);

/* Whether `more` fits beside the rows. ST_NOMEM: err has the figures and the largest of what could be unloaded. */
NODISCARD enum status memory_check(uint64_t limit_bytes, const struct memory_row *rows, uint32_t count,
                                   const struct memory_row *more, struct error *err);

uint64_t memory_of_row(const struct memory_row *row);

#endif
