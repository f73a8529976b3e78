/* Reads a journal's frames in LSN order: for a start, the emitter, audit, replay and export. Needs no lock and never
 * writes; may follow a journal that is being written, up to the durable LSN that the writer tells. Damage is an answer,
 * never a crash: every byte is checked before it is believed. One thread a reader. */
#ifndef SERVER_BILLING_JOURNAL_READER_H
#define SERVER_BILLING_JOURNAL_READER_H

#include "server/billing/journal.h"

enum frame_type {
    FRAME_CHECKPOINT = 1,
    FRAME_OPEN,
    FRAME_STEP,
    FRAME_FINAL,
    FRAME_GRANT,
    FRAME_RELEASE,
    FRAME_ORDER,
    FRAME_ACCOUNT,
    FRAME_ACK,
    FRAME_RECOVER,
    FRAME_ENERGY /* in segments of version 2 alone */
};

struct frame {
    enum frame_type type;
    uint64_t lsn;
    int64_t wall_us, mono_us;
    const uint8_t *payload; /* valid until the next call */
    uint32_t length;
    uint64_t segment_lsn; /* where it stands, for messages and indexes */
    uint64_t offset;
};

struct segment_info {
    uint64_t base_lsn; /* of its first frame after the checkpoint */
    uint64_t serial;   /* 1, 2, 3 ... in order of making: of two with one base the later one counts */
    uint64_t epoch, producer, bytes;
    int64_t created_us; /* wall */
    bool given_up;      /* the one before it was left because of an I/O error: what stands there behind this one's base
                           is void */
    char uuid[LEDGER_UUID_CHARS + 1];
    char path[512];
};

struct journal_reader;

/* From the segment that holds from_lsn (0: the oldest). ST_NOTFOUND: no segment in the folder (or folders: fallback may
 * be NULL); ST_INVAL: a segment's header or a gap between segments; ST_PROTO: a segment of a newer version of this
 * program; ST_IO, ST_NOMEM. */
NODISCARD enum status journal_reader_open(const struct disk *disk, const char *folder, const char *fallback,
                                          uint64_t from_lsn, struct journal_reader **reader, struct error *err);
void journal_reader_close(struct journal_reader *reader);

/* The next frame with lsn <= until_lsn. Every segment starts with a CHECKPOINT, whose lsn is that of the frame before
 * it (0 in a new journal): it takes no number of its own. ST_AGAIN: there is none yet, or the end of a journal at rest
 * (read with until_lsn = UINT64_MAX; then journal_reader_tail tells whether a torn write stands behind it); ST_INVAL:
 * damage (err: file, offset, what), also a frame that until_lsn promised and that is not there; ST_NOTFOUND: its
 * segment has been removed meanwhile. */
NODISCARD enum status journal_reader_next(struct journal_reader *reader, uint64_t until_lsn, struct frame *frame,
                                          struct error *err);

/* The segment of the last frame: whose producer and ledger its records belong to. Valid until the next call. */
const struct segment_info *journal_reader_segment(const struct journal_reader *reader);
/* Bytes from the end of the last frame to the last byte that is not zero, in the last segment, after ST_AGAIN with
 * UINT64_MAX: 0, or a write that a crash tore (the next journal_open cuts it). */
uint64_t journal_reader_tail(const struct journal_reader *reader);

/* Segments in order, as their headers tell. ST_LIMIT: more than max. */
NODISCARD enum status journal_segments(const struct disk *disk, const char *folder, const char *fallback,
                                       struct segment_info *segments, uint32_t max, uint32_t *count, struct error *err);
/* The last of them, whose uuid is the journal's: older ones may be from before an adopt. ST_NOTFOUND: there is none. */
NODISCARD enum status journal_newest(const struct disk *disk, const char *folder, const char *fallback,
                                     struct segment_info *newest, struct error *err);

/* FINAL, GRANT, RELEASE, ENERGY: their payload is record.h's bytes, as they are. */
static inline bool frame_is_record(enum frame_type type)
{
    return type == FRAME_FINAL || type == FRAME_GRANT || type == FRAME_RELEASE || type == FRAME_ENERGY;
}

/* Payloads of the others. */
struct open_frame {
    uint32_t handle;
    struct charge charge;
    struct open_counts counts;
};
NODISCARD enum status frame_read_open(const struct frame *frame, struct open_frame *open);
NODISCARD enum status frame_read_order(const struct frame *frame, struct order *order);
NODISCARD enum status frame_read_account(const struct frame *frame, uint64_t *account, char order_id[ORDER_ID_MAX + 1],
                                         bool *open);
NODISCARD enum status frame_read_ack(const struct frame *frame, uint16_t *partition, uint64_t *hwm,
                                     char hash8[HASH8_CHARS + 1]);
/* STEP: calls visit for each (handle, ids). */
NODISCARD enum status frame_read_step(const struct frame *frame, void (*visit)(void *state, struct step_count count),
                                      void *state);
/* CHECKPOINT: the sequence position of every partition at the segment's start. Arrays of PARTITIONS. */
NODISCARD enum status frame_read_checkpoint(const struct frame *frame, uint64_t *pseq, uint8_t (*chain)[CHAIN_BYTES]);

#endif
