/* One folder of a journal, frame by frame; see bill_audit.h. Requests that stand open are kept whole, those that have
 * ended by their id alone: 24 bytes a charge. */
#include "server/billing/bill_audit.h"

#include "runtime/base/buf.h"
#include "runtime/base/mem.h"
#include "server/billing/bill_text.h"
#include "server/billing/frame.h"
#include "server/billing/journal_state.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { OFFSET_S_MAX = 14 * 3600, OFFSET_STEP_S = 900, READ_BYTES = 1 << 16 };

/* A charge that has been seen. */
struct seen {
    struct seen_key {
        uint8_t charge_id[CHARGE_ID_BYTES];
        uint64_t part;
    } key;
    uint64_t account;
    bool ended;
};

/* Energy of a charge in a price slot that has been seen, and of whom it says to be. */
struct seen_energy {
    struct seen_energy_key {
        struct seen_key charge;
        int64_t slot_ms;
    } key;
    uint64_t lsn, account;
};

struct scan {
    struct audit *audit;
    struct journal_reader *reader;
    struct journal_state state;
    bool following; /* the state is right: frames since the last checkpoint made sense */
    bool begun;     /* a frame has been read */
    uint64_t producer, serial;
    uint64_t cursor; /* in the segment: where the last frame ended */
    char path[512];  /* of the segment */
    uint8_t *bytes;  /* READ_BYTES */
};

/* ---- findings ---- */

void audit_find(struct audit *audit, enum audit_kind kind, const char *format, ...)
{
    char text[640];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (kind > audit->worst) audit->worst = kind;
    if (audit->findings_count == AUDIT_FINDINGS_MAX) {
        audit->findings_left_out++;
        return;
    }
    audit->findings_count++;
    buf_append_char(&audit->findings, kind == AUDIT_DAMAGE ? 'X' : kind == AUDIT_DIFFERENCE ? 'D' : 'N');
    buf_append(&audit->findings, text, strlen(text) + 1);
}

enum status audit_init(struct audit *audit, const struct disk *disk)
{
    *audit = (struct audit){.disk = disk, .complete = true};
    bill_map_init(&audit->sequences, sizeof(struct audit_sequence_key), sizeof(struct audit_sequence));
    bill_map_init(&audit->sums, sizeof(struct audit_sum_key), sizeof(struct audit_sum));
    bill_map_init(&audit->accounts, sizeof(uint64_t), sizeof(struct audit_account));
    bill_map_init(&audit->charges, sizeof(struct seen_key), sizeof(struct seen));
    bill_map_init(&audit->energies, sizeof(struct seen_energy_key), sizeof(struct seen_energy));
    buf_init(&audit->findings, 0);
    return ST_OK;
}

void audit_free(struct audit *audit)
{
    for (uint32_t i = 0; i < audit->sequences.count; i++)
        mem_free(((struct audit_sequence *)bill_map_at(&audit->sequences, i))->hashes);
    bill_map_free(&audit->sequences);
    bill_map_free(&audit->sums);
    bill_map_free(&audit->accounts);
    bill_map_free(&audit->charges);
    bill_map_free(&audit->energies);
    buf_free(&audit->findings);
}

struct audit_sequence *audit_sequence_of(struct audit *audit, uint64_t producer, uint16_t partition)
{
    struct audit_sequence_key key = {producer, partition};
    return bill_map_take(&audit->sequences, &key, NULL);
}

/* ---- records ---- */

static uint64_t hash_of(const uint8_t chain[CHAIN_BYTES])
{
    uint64_t hash = 0;
    for (int i = 0; i < 8; i++) hash = hash << 8 | chain[i];
    return hash;
}

static enum status keep_hash(struct audit_sequence *sequence)
{
    uint64_t idx = sequence->pseq - sequence->first;
    if (idx >= sequence->hashes_room) {
        uint64_t room = sequence->hashes_room ? sequence->hashes_room * 2 : 16;
        void *more = sequence->hashes ? mem_resize(sequence->hashes, room, sizeof *sequence->hashes)
                                      : mem_alloc(room, sizeof *sequence->hashes);
        if (!more) return ST_NOMEM;
        sequence->hashes = more;
        sequence->hashes_room = room;
    }
    sequence->hashes[idx] = hash_of(sequence->chain);
    return ST_OK;
}

/* Whether what somebody knows of a sequence is true of it. hwm 0 is: nothing yet. */
static bool mark_fits(const struct audit_sequence *sequence, uint64_t hwm, const char *hash8)
{
    char text[HASH8_CHARS + 1];
    if (hwm == 0 || hwm < sequence->first) return true; /* before what is here: nothing to compare with */
    if (hwm > sequence->pseq) return false;
    (void)snprintf(text, sizeof text, "%016" PRIx64, sequence->hashes[hwm - sequence->first]);
    return strcmp(text, hash8) == 0;
}

static enum status follow_chain(struct scan *scan, const struct frame *frame, const struct record *record)
{
    struct audit *audit = scan->audit;
    struct audit_sequence *sequence = audit_sequence_of(audit, scan->producer, record->partition);
    if (!sequence) return ST_NOMEM;
    if (record->partition != record_partition(record->account))
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": the record stands in another account's partition",
                   frame->lsn);
    uint64_t wanted = sequence->known ? sequence->pseq + 1 : record->pseq;
    if (record->pseq > wanted) {
        audit->counts.lost += record->pseq - wanted;
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": partition %u goes from record %" PRIu64 " to %" PRIu64,
                   frame->lsn, record->partition, wanted - 1, record->pseq);
    } else if (record->pseq < wanted) {
        audit->counts.doubled++;
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": partition %u has record %" PRIu64 " again", frame->lsn,
                   record->partition, record->pseq);
        return ST_OK;
    } else if (sequence->known && !record_sealed(frame->payload, frame->length, sequence->chain)) {
        audit_find(audit, AUDIT_DIFFERENCE,
                   "LSN %" PRIu64 ": record %" PRIu64 " of partition %u does not follow from the one before it",
                   frame->lsn, record->pseq, record->partition);
    }
    bool gap = record->pseq != wanted;
    if (!sequence->known || gap) { /* begin anew behind a gap */
        sequence->first = record->pseq;
        sequence->known = true;
    }
    sequence->pseq = record->pseq;
    memcpy(sequence->chain, record->chain, CHAIN_BYTES);
    return keep_hash(sequence);
}

static enum status add_up(struct scan *scan, const struct record *record)
{
    struct audit *audit = scan->audit;
    const struct audit_sequence *sequence = audit_sequence_of(audit, scan->producer, record->partition);
    if (!sequence) return ST_NOMEM;
    bool applied = !audit->ledger || (sequence->marked && record->pseq <= sequence->hwm);
    audit->counts.unapplied += !applied;
    if (record->kind == RECORD_GRANT || record->kind == RECORD_RELEASE) return ST_OK;
    if (!applied) return ST_OK;
    struct audit_account *account = bill_map_take(&audit->accounts, &record->account, NULL);
    struct audit_sum_key key = {record->account, record->month, record->mclass};
    struct audit_sum *sum = bill_map_take(&audit->sums, &key, NULL);
    if (!account || !sum) return ST_NOMEM;
    account->units += record->units;
    sum->total.mclass = record->mclass;
    if (record->kind == RECORD_ENERGY) {
        month_add_energy(&sum->total, &record->energy);
        return ST_OK;
    }
    if (record->kind == RECORD_WAIVED) {
        sum->total.waived_in += record->in_total;
        sum->total.waived_out += record->out;
        sum->total.waived_records++;
        return ST_OK;
    }
    sum->total.in_miss += record->in_total - record->in_hit;
    sum->total.in_hit += record->in_hit;
    sum->total.out += record->out;
    sum->total.units += record->units;
    sum->total.records++;
    return ST_OK;
}

static bool month_fits(const struct audit *audit, const struct record *record)
{
    int64_t wall_us = record->kind == RECORD_ENERGY ? record->energy.slot_ms * 1000 : record->ended_us;
    if (audit->utc_offset_given) return record->month == record_month(wall_us, audit->utc_offset_s);
    for (int32_t offset_s = -OFFSET_S_MAX; offset_s <= OFFSET_S_MAX; offset_s += OFFSET_STEP_S)
        if (record->month == record_month(wall_us, offset_s)) return true;
    return false;
}

/* What a charged or waived record says of itself. */
static void check_record(struct audit *audit, uint64_t lsn, const struct record *record)
{
    bool charged = record->kind == RECORD_CHARGED;
    uint64_t units =
        charged ? charge_units(&record->charge, record->in_total - record->in_hit, record->in_hit, record->out) : 0;
    bool unseen = record->flags & RECORD_UNSEEN;
    audit->counts.mismatch += (record->flags & RECORD_MISMATCH) != 0;
    audit->counts.incomplete += (record->flags & RECORD_INCOMPLETE) != 0;
    audit->counts.clock += (record->flags & RECORD_CLOCK) != 0;
    audit->counts.unseen += unseen;
    audit->counts.units += record->units;
    if (record->in_hit > record->in_total || record->out_reasoning > record->out || record->out_trimmed > record->out ||
        record->forced > record->out)
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": a part is more than its whole", lsn);
    else if (record->units != units)
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": %" PRIu64 " units, its weights give %" PRIu64, lsn,
                   record->units, units);
    if (!month_fits(audit, record))
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": month %" PRIu32 " is not that of its end", lsn,
                   record->month);
    if (charged != cause_is_charged(record->cause, unseen, false) &&
        charged != cause_is_charged(record->cause, unseen, true))
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": a record of this cause is not %s", lsn,
                   charged ? "charged" : "waived");
    if ((record->cause == CAUSE_NODE_CRASH) != ((record->flags & RECORD_INCOMPLETE) != 0))
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": a crash's end without its flag, or the flag without it",
                   lsn);
}

static bool same_charge(const struct charge *a, const struct charge *b)
{
    uint8_t bytes[2][CHARGE_BYTES_MAX];
    size_t length = charge_encode(a, bytes[0]);
    return charge_encode(b, bytes[1]) == length && memcmp(bytes[0], bytes[1], length) == 0 &&
           a->account == b->account && a->mclass == b->mclass;
}

static struct seen *seen_of(struct audit *audit, const struct charge *charge, bool *made)
{
    struct seen_key key = {.part = charge->part};
    memcpy(key.charge_id, charge->charge_id, CHARGE_ID_BYTES);
    struct seen *seen = bill_map_take(&audit->charges, &key, made);
    if (seen && *made) seen->account = charge->account;
    return seen;
}

static enum status check_final(struct scan *scan, uint64_t lsn, const struct record *record)
{
    struct audit *audit = scan->audit;
    bool made;
    struct seen *seen = seen_of(audit, &record->charge, &made);
    if (!seen) return ST_NOMEM;
    if (seen->ended) {
        audit->counts.doubled++;
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": a second FINAL of a charge (J2)", lsn);
    }
    seen->ended = true;
    uint32_t handle = scan->following ? state_find(&scan->state, &record->charge) : STATE_NONE;
    if (handle == STATE_NONE) return ST_OK; /* journal_state says what that means */
    const struct open_slot *slot = &scan->state.slots[handle];
    const struct open_counts *counts = &slot->open.counts;
    if (!same_charge(&slot->open.charge, &record->charge) || counts->in_total != record->in_total ||
        counts->in_hit != record->in_hit || counts->choices != record->choices)
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": the FINAL does not say what its OPEN said", lsn);
    /* STEPs count one id of each choice ahead (meter.h). */
    bool near = slot->ids >= record->out && slot->ids <= (uint64_t)record->out + record->choices;
    if (!near && !(record->flags & RECORD_MISMATCH)) {
        audit->counts.mismatch++;
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": the FINAL counts %" PRIu32 " ids, its STEPs %" PRIu64,
                   lsn, record->out, slot->ids);
    }
    return ST_OK;
}

static enum status check_energy(struct audit *audit, uint64_t lsn, const struct record *record)
{
    struct seen_energy_key key = {.charge = {.part = record->charge.part}, .slot_ms = record->energy.slot_ms};
    memcpy(key.charge.charge_id, record->charge.charge_id, CHARGE_ID_BYTES);
    bool made;
    struct seen_energy *seen = bill_map_take(&audit->energies, &key, &made);
    if (!seen) return ST_NOMEM;
    audit->counts.energies++;
    audit->counts.energy_uj += record_energy_uj(&record->energy);
    audit->counts.ugco2_loc += record->energy.ugco2_loc;
    audit->counts.ugco2_mkt += record->energy.ugco2_mkt;
    if (made) {
        seen->lsn = lsn;
        seen->account = record->account;
    } else {
        audit->counts.doubled++;
        audit_find(audit, AUDIT_DIFFERENCE,
                   "LSN %" PRIu64 ": energy of a charge in a slot again, it stands at LSN %" PRIu64, lsn, seen->lsn);
    }
    if (!month_fits(audit, record))
        audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": month %" PRIu32 " is not that of its slot", lsn,
                   record->month);
    return ST_OK;
}

void audit_energies(struct audit *audit)
{
    if (!audit->complete) return; /* the charge may stand in a segment that is not kept any more */
    for (uint32_t i = 0; i < audit->energies.count; i++) {
        const struct seen_energy *energy = bill_map_at(&audit->energies, i);
        const struct seen *charge = bill_map_find(&audit->charges, &energy->key.charge);
        if (!charge || charge->account != energy->account)
            audit_find(audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": energy of a charge that %s", energy->lsn,
                       charge ? "is another account's" : "is not there");
    }
}

static enum status take_record(struct scan *scan, const struct frame *frame)
{
    struct audit *audit = scan->audit;
    struct record record;
    struct error reason = {""};
    if (record_decode(frame->payload, frame->length, &record, &reason) != ST_OK) {
        audit_find(audit, AUDIT_DAMAGE, "LSN %" PRIu64 ": %.400s", frame->lsn, reason.message);
        return ST_OK;
    }
    audit->counts.records++;
    audit->counts.charged += record.kind == RECORD_CHARGED;
    audit->counts.waived += record.kind == RECORD_WAIVED;
    audit->counts.grants += record.kind == RECORD_GRANT;
    audit->counts.releases += record.kind == RECORD_RELEASE;
    TRY(follow_chain(scan, frame, &record));
    if (record.kind == RECORD_CHARGED || record.kind == RECORD_WAIVED) {
        check_record(audit, frame->lsn, &record);
        TRY(check_final(scan, frame->lsn, &record));
    }
    if (record.kind == RECORD_ENERGY) TRY(check_energy(audit, frame->lsn, &record));
    return add_up(scan, &record);
}

/* ---- other frames ---- */

static enum status take_open(struct scan *scan, const struct frame *frame)
{
    struct open_frame open;
    bool made;
    if (frame_read_open(frame, &open) != ST_OK) return ST_OK; /* journal_state tells */
    struct seen *seen = seen_of(scan->audit, &open.charge, &made);
    if (!seen) return ST_NOMEM;
    if (made) return ST_OK;
    scan->audit->counts.doubled++;
    audit_find(scan->audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": a second OPEN of a charge (J2)", frame->lsn);
    return ST_OK;
}

/* An ACK is what a ledger once confirmed: it cannot lie behind the journal's own end. */
static enum status take_ack(struct scan *scan, const struct frame *frame)
{
    uint16_t partition;
    uint64_t hwm;
    char hash8[HASH8_CHARS + 1];
    if (frame_read_ack(frame, &partition, &hwm, hash8) != ST_OK) return ST_OK;
    struct audit_sequence *sequence = audit_sequence_of(scan->audit, scan->producer, partition);
    if (!sequence) return ST_NOMEM;
    if ((hwm > 0 && !sequence->known) || !mark_fits(sequence, hwm, hash8))
        audit_find(scan->audit, AUDIT_DIFFERENCE,
                   "LSN %" PRIu64 ": a ledger confirmed record %" PRIu64
                   " of partition %u, which is not this journal's",
                   frame->lsn, hwm, partition);
    return ST_OK;
}

/* Where the sequences of a journal whose beginning is not here stand. */
static enum status begin_at(struct scan *scan)
{
    struct audit *audit = scan->audit;
    for (uint16_t i = 0; i < PARTITIONS; i++) {
        const struct partition_state *from = &scan->state.partitions[i];
        if (from->pseq == 0) continue;
        struct audit_sequence *sequence = audit_sequence_of(audit, scan->producer, i);
        if (!sequence) return ST_NOMEM;
        if (sequence->known) continue; /* another folder has it */
        sequence->known = true;
        sequence->first = sequence->pseq = from->pseq;
        memcpy(sequence->chain, from->chain, CHAIN_BYTES);
        TRY(keep_hash(sequence));
    }
    for (uint32_t i = 0; i < scan->state.slots_count; i++) {
        bool made;
        if (scan->state.slots[i].used && !seen_of(audit, &scan->state.slots[i].open.charge, &made)) return ST_NOMEM;
    }
    return ST_OK;
}

static enum status take_checkpoint(struct scan *scan, const struct frame *frame)
{
    struct journal_state read;
    state_init(&read);
    enum status status = state_checkpoint_load(&read, frame);
    if (status == ST_NOMEM) return status;
    if (status != ST_OK) {
        audit_find(scan->audit, AUDIT_DAMAGE, "LSN %" PRIu64 ": a checkpoint that cannot be read", frame->lsn);
        scan->following = false;
        return ST_OK;
    }
    uint64_t producer = journal_reader_segment(scan->reader)->producer;
    bool adopted = scan->begun && producer != scan->producer;
    if (adopted) state_partitions_clear(&scan->state);
    if (scan->following && !state_equal(&scan->state, &read))
        audit_find(scan->audit, AUDIT_DIFFERENCE,
                   "LSN %" PRIu64 ": the checkpoint does not say what the frames before it add up to", frame->lsn);
    if (adopted)
        audit_find(scan->audit, AUDIT_NOTE, "from LSN %" PRIu64 " on the producer is %016" PRIx64 " (adopted)",
                   frame->lsn + 1, producer);
    state_free(&scan->state);
    scan->state = read;
    scan->following = true;
    scan->producer = producer;
    return !scan->begun || adopted ? begin_at(scan) : ST_OK;
}

static enum status take_frame(struct scan *scan, const struct frame *frame)
{
    const char *why = "";
    scan->audit->counts.frames++;
    switch (frame->type) {
    case FRAME_CHECKPOINT: return take_checkpoint(scan, frame);
    case FRAME_OPEN: TRY(take_open(scan, frame)); break;
    case FRAME_FINAL:
    case FRAME_GRANT:
    case FRAME_RELEASE:
    case FRAME_ENERGY: TRY(take_record(scan, frame)); break;
    case FRAME_ACK: TRY(take_ack(scan, frame)); break;
    case FRAME_ORDER:
    case FRAME_ACCOUNT: scan->audit->counts.orders++; break;
    case FRAME_STEP:
    case FRAME_RECOVER: break;
    }
    if (!scan->following) return ST_OK;
    enum status status = state_apply(&scan->state, frame, false, &why);
    if (status != ST_INVAL) return status;
    bool final = strstr(why, "FINAL without") != NULL;
    scan->audit->counts.lost += final;
    audit_find(scan->audit, AUDIT_DIFFERENCE, "LSN %" PRIu64 ": %s", frame->lsn, why);
    scan->following = false; /* until the next checkpoint */
    return ST_OK;
}

/* ---- bytes between frames ---- */

/* Everything from the cursor to `end` must be zero: padding, and the room behind a segment's last frame. */
static enum status check_zeros(struct scan *scan, int fd, uint64_t end)
{
    while (scan->cursor < end) {
        size_t wanted = end - scan->cursor < READ_BYTES ? (size_t)(end - scan->cursor) : READ_BYTES;
        int64_t got = scan->audit->disk->read_at(scan->audit->disk->state, fd, scan->bytes, wanted, scan->cursor);
        if (got <= 0) break; /* cut: its size has been told */
        for (int64_t i = 0; i < got; i++) {
            if (scan->bytes[i] == 0) continue;
            audit_find(scan->audit, AUDIT_DAMAGE, "%.400s: offset %" PRIu64 ": a byte that must be zero is not",
                       scan->path, scan->cursor + (uint64_t)i);
            scan->cursor = end;
            return ST_OK;
        }
        scan->cursor += (uint64_t)got;
    }
    scan->cursor = end;
    return ST_OK;
}

/* The segment's file as a whole, once its frames have been read: its length, its name, and what no frame covers. The
 * tail of the last segment is told by its own words; what stands behind the base of one that gave up is void. */
static enum status end_segment(struct scan *scan, bool last, bool void_tail)
{
    const struct disk *disk = scan->audit->disk;
    uint8_t header_bytes[SEGMENT_HEADER_BYTES];
    struct segment_header header;
    const char *why = "";
    if (!scan->begun) return ST_OK;
    int fd = disk->open(disk->state, scan->path, DISK_READ);
    if (fd < 0) return ST_IO;
    int64_t size = disk->size(disk->state, fd);
    int64_t got = disk->read_at(disk->state, fd, header_bytes, sizeof header_bytes, 0);
    if (got != SEGMENT_HEADER_BYTES || segment_header_decode(header_bytes, &header, &why) != ST_OK)
        audit_find(scan->audit, AUDIT_DAMAGE, "%.400s: the header is damaged: %s", scan->path, why);
    else if ((uint64_t)size != header.segment_bytes)
        audit_find(scan->audit, AUDIT_DAMAGE, "%.400s: %" PRId64 " bytes long, made with %" PRIu64, scan->path, size,
                   header.segment_bytes);
    scan->audit->counts.bytes += size > 0 ? (uint64_t)size : 0;
    enum status status = ST_OK;
    if (!last && !void_tail && size > 0) status = check_zeros(scan, fd, (uint64_t)size);
    disk->close(disk->state, fd);
    return status;
}

static enum status begin_segment(struct scan *scan, const struct segment_info *info)
{
    struct audit *audit = scan->audit;
    if (scan->begun && info->serial != scan->serial + 1)
        audit_find(audit, AUDIT_DIFFERENCE, "%.400s: segment number %" PRIu64 " follows number %" PRIu64, info->path,
                   info->serial, scan->serial);
    if (!scan->begun && info->serial != 1) {
        audit->complete = false;
        audit_find(audit, AUDIT_NOTE, "%.400s: the first segment here is number %" PRIu64 ", from LSN %" PRIu64 " on",
                   info->path, info->serial, info->base_lsn);
    }
    if (!audit->uuid[0])
        memcpy(audit->uuid, info->uuid, sizeof audit->uuid);
    else if (strcmp(audit->uuid, info->uuid) != 0)
        audit_find(audit, AUDIT_DIFFERENCE, "%.400s: belongs to ledger %s, not %s", info->path, info->uuid,
                   audit->uuid);
    audit->counts.segments++;
    scan->serial = info->serial;
    scan->cursor = SEGMENT_HEADER_BYTES;
    memcpy(scan->path, info->path, sizeof scan->path);
    return ST_OK;
}

/* The bytes before a frame: at most the padding of the one before. */
static void pass_gap(struct scan *scan, const struct frame *frame)
{
    if (frame->offset != frame_aligned(scan->cursor))
        audit_find(scan->audit, AUDIT_DAMAGE, "%.400s: LSN %" PRIu64 " stands at offset %" PRIu64 ", not %" PRIu64,
                   scan->path, frame->lsn, frame->offset, frame_aligned(scan->cursor));
    scan->cursor = frame->offset + FRAME_HEADER_BYTES + frame->length;
}

static enum status read_frames(struct scan *scan, struct error *err)
{
    struct frame frame;
    struct error reason = {""};
    enum status status;
    while ((status = journal_reader_next(scan->reader, UINT64_MAX, &frame, &reason)) == ST_OK) {
        const struct segment_info *info = journal_reader_segment(scan->reader);
        if (!scan->begun || strcmp(info->path, scan->path) != 0) {
            TRY(end_segment(scan, false, info->given_up));
            TRY(begin_segment(scan, info));
        }
        pass_gap(scan, &frame);
        TRY(take_frame(scan, &frame));
        scan->begun = true;
    }
    if (status == ST_INVAL) {
        audit_find(scan->audit, AUDIT_DAMAGE, "%.500s", reason.message);
        return ST_OK;
    }
    if (status != ST_AGAIN) return error_set(err, status, "%s", reason.message);
    TRY(end_segment(scan, true, false));
    uint64_t tail = journal_reader_tail(scan->reader);
    if (tail > 0)
        audit_find(scan->audit, AUDIT_DAMAGE,
                   "%.300s: %" PRIu64 " bytes behind the last whole frame (LSN %" PRIu64
                   "): a write that a crash tore, which the next start of the server cuts; or damage",
                   scan->path, tail, scan->state.lsn);
    scan->audit->counts.open += scan->following ? scan->state.opens : 0;
    return ST_OK;
}

enum status audit_scan(struct audit *audit, const char *folder, const char *more, struct error *err)
{
    struct error reason = {""};
    struct scan *scan = mem_alloc(1, sizeof *scan);
    if (!scan) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    scan->audit = audit;
    state_init(&scan->state);
    scan->bytes = mem_alloc(1, READ_BYTES);
    enum status status = scan->bytes ? ST_OK : ST_NOMEM;
    if (status == ST_OK) status = journal_reader_open(audit->disk, folder, more, 0, &scan->reader, &reason);
    if (status == ST_INVAL) {
        audit_find(audit, AUDIT_DAMAGE, "%.500s", reason.message);
        status = ST_OK;
    } else if (status == ST_OK) {
        status = read_frames(scan, &reason);
        journal_reader_close(scan->reader);
    }
    state_free(&scan->state);
    mem_free(scan->bytes);
    mem_free(scan);
    return status == ST_OK ? ST_OK
                           : error_set(err, status, "%.200s: %.280s", folder,
                                       reason.message[0] ? reason.message : status_text(status));
}
