/* What a journal's frames add up to: open requests, the last record of each partition, what a ledger has confirmed. It
 * changes by state_apply alone, so a writer that appends and a start that reads come to the same state.
 *
 * A writer keeps two: `live`, after everything appended, and `settled`, after everything durable. A segment's
 * checkpoint is written from `settled`, so it is right at any moment, also when a failed segment is left.
 *
 * Requests lie in slots; a slot's index is their handle. state_reserve takes memory beforehand, so that state_apply
 * cannot fail for want of it. One thread at a time. */
#ifndef SERVER_BILLING_JOURNAL_STATE_H
#define SERVER_BILLING_JOURNAL_STATE_H

#include "server/billing/frame.h"

enum { STATE_OPENS_MAX = 1 << 16, STATE_NONE = UINT32_MAX };

struct open_slot {
    bool used;
    uint32_t next_free, next_hashed; /* chains by slot; STATE_NONE ends them */
    struct open_frame open;
    uint64_t ids; /* of its STEPs */
    int64_t first_us, last_us,
        last_mono_us; /* wall of its first STEP (0: none), wall and monotonic of its last frame */
};

struct partition_state {
    uint64_t pseq;
    uint8_t chain[CHAIN_BYTES];
    uint64_t confirmed; /* a ledger's mark */
    char confirmed_hash8[HASH8_CHARS + 1];
};

struct journal_state {
    uint64_t lsn, epoch;
    struct partition_state partitions[PARTITIONS];
    struct open_slot *slots;
    uint32_t slots_count, slots_capacity, opens, free_head;
    uint32_t *buckets; /* by charge_id and part; as many as slots_capacity */
};

void state_init(struct journal_state *state);
void state_free(struct journal_state *state);
/* Room for a slot of this index. False: no memory, nothing changed. */
bool state_reserve(struct journal_state *state, uint32_t handle);
/* A handle that is free; state_reserve is next. STATE_NONE: STATE_OPENS_MAX are open. */
uint32_t state_free_handle(const struct journal_state *state);
/* The open request of a charge, or STATE_NONE. */
uint32_t state_find(const struct journal_state *state, const struct charge *charge);

/* Adds a frame. trusted: the writer's own, whose record is not decoded and hashed a second time. ST_INVAL: it does not
 * follow from the state (*why is static text; the state is not to be used any more); ST_NOMEM only where nothing was
 * reserved. */
NODISCARD enum status state_apply(struct journal_state *state, const struct frame *frame, bool trusted,
                                  const char **why);

/* The frame that a record of this kind stands in. */
enum frame_type frame_type_of(enum record_kind kind);

/* Bytes that the checkpoint of a state with so many open requests takes at most, frame header included. */
uint64_t state_checkpoint_bytes_max(uint32_t opens);
void state_checkpoint_put(const struct journal_state *state, struct byte_writer *to);
/* Replaces the state. ST_INVAL: not valid; ST_NOMEM. */
NODISCARD enum status state_checkpoint_load(struct journal_state *state, const struct frame *frame);

/* Forgets records and marks: another producer's begin. */
void state_partitions_clear(struct journal_state *state);
/* Whether both are the same to a reader of their checkpoints. */
bool state_equal(const struct journal_state *a, const struct journal_state *b);

#endif
