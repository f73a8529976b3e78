/* Frames added up (journal_state.h). Slots are found by handle, and for a FINAL by its charge, through chained buckets.
 */
#include "server/billing/journal_state.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "server/billing/journal_planted.h"

void state_init(struct journal_state *state)
{
    *state = (struct journal_state){.free_head = STATE_NONE};
}

void state_free(struct journal_state *state)
{
    mem_free(state->slots);
    mem_free(state->buckets);
    state_init(state);
}

static uint32_t bucket_of(const struct journal_state *state, const struct charge *charge)
{
    return (uint32_t)(hash_bytes(charge->charge_id, CHARGE_ID_BYTES, charge->part) % state->slots_capacity);
}

static bool same_charge(const struct charge *a, const struct charge *b)
{
    return a->part == b->part && memcmp(a->charge_id, b->charge_id, CHARGE_ID_BYTES) == 0;
}

uint32_t state_find(const struct journal_state *state, const struct charge *charge)
{
    if (state->slots_capacity == 0) return STATE_NONE;
    uint32_t handle = state->buckets[bucket_of(state, charge)];
    while (handle != STATE_NONE && !same_charge(&state->slots[handle].open.charge, charge)) {
        handle = state->slots[handle].next_hashed;
    }
    return handle;
}

static void hash_in(struct journal_state *state, uint32_t handle)
{
    uint32_t *head = &state->buckets[bucket_of(state, &state->slots[handle].open.charge)];
    state->slots[handle].next_hashed = *head;
    *head = handle;
}

static void hash_out(struct journal_state *state, uint32_t handle)
{
    uint32_t *link = &state->buckets[bucket_of(state, &state->slots[handle].open.charge)];
    while (*link != handle) link = &state->slots[*link].next_hashed;
    *link = state->slots[handle].next_hashed;
}

bool state_reserve(struct journal_state *state, uint32_t handle)
{
    if (handle < state->slots_capacity) return true;
    uint32_t capacity = state->slots_capacity == 0 ? 64 : state->slots_capacity;
    while (capacity <= handle) capacity *= 2;
    uint32_t *buckets = mem_alloc(capacity, sizeof *buckets);
    if (buckets == NULL) return false;
    struct open_slot *slots = mem_resize(state->slots, capacity, sizeof *slots);
    if (slots == NULL) {
        mem_free(buckets);
        return false;
    }
    mem_free(state->buckets);
    state->slots = slots;
    state->buckets = buckets;
    state->slots_capacity = capacity;
    for (uint32_t i = 0; i < capacity; i++) buckets[i] = STATE_NONE;
    for (uint32_t i = 0; i < state->slots_count; i++) {
        if (slots[i].used) hash_in(state, i);
    }
    return true;
}

uint32_t state_free_handle(const struct journal_state *state)
{
    if (state->free_head != STATE_NONE) return state->free_head;
    return state->slots_count < STATE_OPENS_MAX ? state->slots_count : STATE_NONE;
}

/* The writer always takes the head of the free list or the next new slot; a reader follows whatever handle it reads. */
static void take_slot(struct journal_state *state, uint32_t handle)
{
    if (handle >= state->slots_count) {
        for (uint32_t i = state->slots_count; i < handle; i++) {
            state->slots[i] = (struct open_slot){.next_free = state->free_head, .next_hashed = STATE_NONE};
            state->free_head = i;
        }
        state->slots_count = handle + 1;
    } else {
        uint32_t *link = &state->free_head;
        while (*link != handle) link = &state->slots[*link].next_free;
        *link = state->slots[handle].next_free;
    }
    state->slots[handle] = (struct open_slot){.used = true, .next_free = STATE_NONE, .next_hashed = STATE_NONE};
    state->opens++;
}

static enum status open_slot_add(struct journal_state *state, const struct open_frame *open, const char **why)
{
    if (open->handle >= STATE_OPENS_MAX) {
        *why = "OPEN with a handle that is too large";
        return ST_INVAL;
    }
    if (!state_reserve(state, open->handle)) return ST_NOMEM;
    if (open->handle < state->slots_count && state->slots[open->handle].used) {
        *why = "OPEN of a handle that is open";
        return ST_INVAL;
    }
    if (state_find(state, &open->charge) != STATE_NONE) { /* J2 */
        *why = "second OPEN of a charge";
        return ST_INVAL;
    }
    take_slot(state, open->handle);
    state->slots[open->handle].open = *open;
    hash_in(state, open->handle);
    return ST_OK;
}

static void close_slot(struct journal_state *state, uint32_t handle)
{
    hash_out(state, handle);
    state->slots[handle].used = false;
    state->slots[handle].next_free = state->free_head;
    state->free_head = handle;
    state->opens--;
}

struct step_apply {
    struct journal_state *state;
    const struct frame *frame;
    bool bad;
};

static void apply_step_count(void *context, struct step_count count)
{
    struct step_apply *apply = context;
    struct journal_state *state = apply->state;
    if (count.handle >= state->slots_count || !state->slots[count.handle].used) {
        apply->bad = true;
        return;
    }
    struct open_slot *slot = &state->slots[count.handle];
    if (slot->first_us == 0 && count.ids > 0) slot->first_us = apply->frame->wall_us;
    slot->ids += count.ids;
    slot->last_us = apply->frame->wall_us;
    slot->last_mono_us = apply->frame->mono_us;
}

enum frame_type frame_type_of(enum record_kind kind)
{
    switch (kind) {
    case RECORD_CHARGED:
    case RECORD_WAIVED: return FRAME_FINAL;
    case RECORD_GRANT: return FRAME_GRANT;
    case RECORD_RELEASE: return FRAME_RELEASE;
    case RECORD_ENERGY: break;
    }
    return FRAME_ENERGY;
}

static enum status apply_record(struct journal_state *state, const struct frame *frame, bool trusted, const char **why)
{
    struct record record;
    if (record_decode(frame->payload, frame->length, &record, NULL) != ST_OK) {
        *why = "a record that cannot be read";
        return ST_INVAL;
    }
    struct partition_state *partition = &state->partitions[record.partition];
    bool final = record.kind == RECORD_CHARGED || record.kind == RECORD_WAIVED;
    if (frame->type != frame_type_of(record.kind)) {
        *why = "a record in a frame of another kind";
        return ST_INVAL;
    }
    if (record.pseq != partition->pseq + 1) {
        *why = "a gap in the records of a partition";
        return ST_INVAL;
    }
    if (!trusted && !record_sealed(frame->payload, frame->length, partition->chain)) {
        *why = "a record whose hash does not follow from the one before";
        return ST_INVAL;
    }
    if (final) {
        uint32_t handle = state_find(state, &record.charge);
        if (handle == STATE_NONE) { /* J2 */
            *why = "a FINAL without an OPEN";
            return ST_INVAL;
        }
        close_slot(state, handle);
    }
    partition->pseq = record.pseq;
    memcpy(partition->chain, record.chain, CHAIN_BYTES);
    return ST_OK;
}

static enum status apply_open(struct journal_state *state, const struct frame *frame, const char **why)
{
    struct open_frame open;
    if (frame_read_open(frame, &open) != ST_OK) {
        *why = "an OPEN that cannot be read";
        return ST_INVAL;
    }
    TRY(open_slot_add(state, &open, why));
    state->slots[open.handle].last_us = frame->wall_us;
    state->slots[open.handle].last_mono_us = frame->mono_us;
    return ST_OK;
}

static enum status apply_rest(struct journal_state *state, const struct frame *frame, const char **why)
{
    uint16_t partition;
    uint64_t hwm, account, epoch, cut_bytes;
    uint32_t closed;
    char hash8[HASH8_CHARS + 1], order_id[ORDER_ID_MAX + 1];
    struct order order;
    bool open;
    struct byte_reader from = {.bytes = frame->payload, .length = frame->length};
    *why = "a frame that cannot be read";
    if (frame->type == FRAME_ORDER) return frame_read_order(frame, &order);
    if (frame->type == FRAME_ACCOUNT) return frame_read_account(frame, &account, order_id, &open);
    if (frame->type == FRAME_ACK) {
        TRY(frame_read_ack(frame, &partition, &hwm, hash8));
        struct partition_state *to = &state->partitions[partition];
        to->confirmed = hwm;
        memcpy(to->confirmed_hash8, hash8, sizeof hash8);
        return ST_OK;
    }
    if (frame->type != FRAME_RECOVER || !frame_get_recover(&from, &epoch, &cut_bytes, &closed)) return ST_INVAL;
    if (epoch <= state->epoch) {
        *why = "an epoch that is not above the one before";
        return ST_INVAL;
    }
    state->epoch = epoch;
    return ST_OK;
}

enum status state_apply(struct journal_state *state, const struct frame *frame, bool trusted, const char **why)
{
    enum status status;
    *why = "a frame out of its place";
    if (frame->type == FRAME_CHECKPOINT || frame->lsn != state->lsn + 1) return ST_INVAL;
    if (frame->type == FRAME_OPEN) {
        status = apply_open(state, frame, why);
    } else if (frame->type == FRAME_STEP) {
        struct step_apply apply = {.state = state, .frame = frame};
        status = frame_read_step(frame, apply_step_count, &apply);
        if (apply.bad) status = ST_INVAL;
        *why = "a STEP of a request that is not open";
    } else if (frame_is_record(frame->type)) {
        status = apply_record(state, frame, trusted, why);
    } else {
        status = apply_rest(state, frame, why);
    }
    if (status == ST_OK) state->lsn = frame->lsn;
    return status;
}

uint64_t state_checkpoint_bytes_max(uint32_t opens)
{
    return frame_aligned(FRAME_HEADER_BYTES + CHECKPOINT_FIXED_BYTES_MAX + (uint64_t)opens * CHECKPOINT_OPEN_BYTES_MAX);
}

static void put_partitions(const struct journal_state *state, struct byte_writer *to)
{
    uint16_t records = 0, marks = 0;
    for (int i = 0; i < PARTITIONS; i++) {
        records = (uint16_t)(records + (state->partitions[i].pseq > 0));
        marks = (uint16_t)(marks + (state->partitions[i].confirmed > 0));
    }
    put_u16(to, records);
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        if (state->partitions[i].pseq == 0) continue;
        put_u16(to, i);
        put_u64(to, state->partitions[i].pseq);
        put_bytes(to, state->partitions[i].chain, CHAIN_BYTES);
    }
    put_u16(to, marks);
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        const struct partition_state *partition = &state->partitions[i];
        if (partition->confirmed > 0) frame_put_ack(to, i, partition->confirmed, partition->confirmed_hash8);
    }
}

void state_checkpoint_put(const struct journal_state *state, struct byte_writer *to)
{
    put_u64(to, state->epoch);
    put_partitions(state, to);
    if (JOURNAL_PLANTED(LOSE_OPENS)) {
        put_u32(to, 0);
        return;
    }
    put_u32(to, state->opens);
    for (uint32_t i = 0; i < state->slots_count; i++) {
        const struct open_slot *slot = &state->slots[i];
        if (!slot->used) continue;
        frame_put_open(to, &slot->open);
        put_u64(to, slot->ids);
        put_i64(to, slot->first_us);
        put_i64(to, slot->last_us);
        put_i64(to, slot->last_mono_us);
    }
}

/* Partitions and marks, in rising order each. */
static bool get_partitions(struct byte_reader *from, struct journal_state *state)
{
    uint16_t count = get_u16(from);
    int32_t last = -1;
    for (uint16_t i = 0; i < count && !from->bad; i++) {
        uint16_t partition = get_u16(from);
        if (partition >= PARTITIONS || partition <= last) return false;
        state->partitions[partition].pseq = get_u64(from);
        if (state->partitions[partition].pseq > CHECKPOINT_PSEQ_MAX) return false;
        get_copy(from, state->partitions[partition].chain, CHAIN_BYTES);
        last = partition;
    }
    count = get_u16(from);
    last = -1;
    for (uint16_t i = 0; i < count && !from->bad; i++) {
        uint16_t partition;
        uint64_t hwm;
        char hash8[HASH8_CHARS + 1];
        if (!frame_get_ack(from, &partition, &hwm, hash8) || partition <= last) return false;
        state->partitions[partition].confirmed = hwm;
        memcpy(state->partitions[partition].confirmed_hash8, hash8, sizeof hash8);
        last = partition;
    }
    return !from->bad;
}

static enum status get_opens(struct byte_reader *from, struct journal_state *state)
{
    uint32_t count = get_u32(from);
    for (uint32_t i = 0; i < count && !from->bad; i++) {
        struct open_frame open;
        const char *why;
        if (!frame_get_open(from, &open)) return ST_INVAL;
        TRY(open_slot_add(state, &open, &why));
        struct open_slot *slot = &state->slots[open.handle];
        slot->ids = get_u64(from);
        slot->first_us = get_i64(from);
        slot->last_us = get_i64(from);
        slot->last_mono_us = get_i64(from);
    }
    return from->bad || from->offset != from->length ? ST_INVAL : ST_OK;
}

enum status state_checkpoint_load(struct journal_state *state, const struct frame *frame)
{
    if (frame->type != FRAME_CHECKPOINT) return ST_INVAL;
    struct journal_state read;
    state_init(&read);
    struct byte_reader from = {.bytes = frame->payload, .length = frame->length};
    read.lsn = frame->lsn;
    read.epoch = get_u64(&from);
    enum status status = read.epoch <= EPOCH_MAX && get_partitions(&from, &read) ? get_opens(&from, &read) : ST_INVAL;
    if (status != ST_OK) {
        state_free(&read);
        return status;
    }
    state_free(state);
    *state = read;
    return ST_OK;
}

enum status frame_read_checkpoint(const struct frame *frame, uint64_t *pseq, uint8_t (*chain)[CHAIN_BYTES])
{
    struct journal_state *state = mem_alloc(1, sizeof *state);
    if (state == NULL) return ST_NOMEM;
    state_init(state);
    enum status status = state_checkpoint_load(state, frame);
    for (int i = 0; i < PARTITIONS && status == ST_OK; i++) {
        pseq[i] = state->partitions[i].pseq;
        memcpy(chain[i], state->partitions[i].chain, CHAIN_BYTES);
    }
    state_free(state);
    mem_free(state);
    return status;
}

void state_partitions_clear(struct journal_state *state)
{
    memset(state->partitions, 0, sizeof state->partitions);
}

static bool same_slot(const struct open_slot *a, const struct open_slot *b)
{
    uint8_t bytes[2][OPEN_BYTES_MAX];
    struct byte_writer to_a = {.bytes = bytes[0], .capacity = OPEN_BYTES_MAX};
    struct byte_writer to_b = {.bytes = bytes[1], .capacity = OPEN_BYTES_MAX};
    frame_put_open(&to_a, &a->open);
    frame_put_open(&to_b, &b->open);
    return to_a.length == to_b.length && memcmp(bytes[0], bytes[1], to_a.length) == 0 && a->ids == b->ids &&
           a->first_us == b->first_us && a->last_us == b->last_us && a->last_mono_us == b->last_mono_us;
}

bool state_equal(const struct journal_state *a, const struct journal_state *b)
{
    if (a->lsn != b->lsn || a->epoch != b->epoch || a->opens != b->opens) return false;
    for (int i = 0; i < PARTITIONS; i++) {
        const struct partition_state *p = &a->partitions[i], *q = &b->partitions[i];
        if (p->pseq != q->pseq || p->confirmed != q->confirmed || memcmp(p->chain, q->chain, CHAIN_BYTES) != 0) {
            return false;
        }
    }
    for (uint32_t i = 0; i < a->slots_count; i++) {
        if (!a->slots[i].used) continue;
        if (i >= b->slots_count || !b->slots[i].used || !same_slot(&a->slots[i], &b->slots[i])) return false;
    }
    return true;
}
