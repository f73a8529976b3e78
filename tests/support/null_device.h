/* A device without arithmetic: the next id is a hash of the sequence's ids, its seed and the position.
 *
 * Its "KV" keeps, for each position, the id and the hash of everything before; a step reads the previous position
 * through the block table, so a wrong block changes the output just as it would on a real device. With `verify` each
 * row reads its whole sequence back and compares it with the ids that the scheduler says it has seen. What a sequence
 * yields alone is null_device_next over its ids: tests compute it without a device.
 *
 * With `ahead` it has launch and collect: a launched step is copied, and runs as late as it may, when it is collected;
 * one that lasts ends so long after its launch, or after the step before. What a TOKEN_OF_ROW names is checked as far
 * as a device can: the row chose for that position, of a sequence with that seed and block table.
 *
 * Rows can be made to fail by their seed: null_device_seed_failing. Steps can be made to fail or to last. */
#ifndef TESTS_SUPPORT_NULL_DEVICE_H
#define TESTS_SUPPORT_NULL_DEVICE_H

#include "runtime/device/device.h"

#include <stdbool.h>
#include <stdint.h>

struct null_device_config {
    uint32_t vocab, kv_blocks, tokens_max, seqs_max, rows_max;
    size_t weights_bytes, kv_block_bytes; /* only reported */
    bool verify;
    bool ahead;                                                  /* launch and collect */
    uint64_t step_ns;                                            /* a step takes this long */
    uint64_t fail_step;                                          /* this step (from 1) returns ST_DEVICE; 0: none */
    bool fail_launch;                                            /* ... at its launch, not when it is collected */
    void (*before_step)(void *state, const struct batch *batch); /* engine thread, at its launch; NULL: none */
    void *before_step_state;
};

struct null_device_counts {
    uint64_t steps, tokens, rows;
    uint64_t kv_mismatches;        /* rows whose KV is not what the scheduler says it is */
    uint64_t ahead;                /* steps launched while another was under way */
    uint64_t allocations_in_steps; /* by the stepping thread, between the first and the last step */
};

/* ST_NOMEM. The caller owns the device (device_destroy). */
NODISCARD enum status null_device_create(const struct null_device_config *config, struct device **device);
/* Stable only while no step runs. */
void null_device_counts(const struct device *device, struct null_device_counts *counts);

enum null_failure { NULL_FAILURE_NONE, NULL_FAILURE_NOT_FINITE, NULL_FAILURE_NO_CHOICE };
/* A seed whose row at `position` (of the id to be chosen) fails that way; other positions are as usual. */
uint64_t null_device_seed_failing(enum null_failure failure, uint32_t position);

/* The hash of ids[0 .. count), and of a prefix with one id more. */
uint64_t null_device_prefix(const uint32_t *ids, uint32_t count);
uint64_t null_device_extend(uint64_t prefix, uint32_t id);
/* The id chosen after a prefix, at `position`. Ids in banned are passed over. */
uint32_t null_device_next(uint64_t prefix, uint64_t seed, uint32_t position, uint32_t vocab, const uint32_t *banned,
                          uint32_t banned_count);

#endif
