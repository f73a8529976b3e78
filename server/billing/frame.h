/* The bytes of a journal: segment headers, frames and their payloads. Little endian. Pure, any thread.
 *
 *   <folder>/<base_lsn:016x>.mrj      segment_bytes long, zero-filled before its first use
 *
 *   0     header, 4096 bytes:
 *         magic "MRJRNL1\n"  version u32  salt u32  uuid 36 chars  flags u32 (1: given_up)
 *         producer u64  epoch u64  base_lsn u64  serial u64  segment_bytes u64  created_us i64  boot_id 16
 *         zeros up to 4092, crc32c u32 of bytes 0..4091
 *   4096  frames, each at a multiple of 8, the bytes between them zero; zeros up to the end:
 *         0 crc32c u32 of bytes 4..len-1   4 len u32 (without padding)   8 lsn u64   16 salt u32   20 type u8
 *         21 version u8   22 lag u16   24 wall_us i64   32 mono_us i64   40 payload
 *
 * version: 1; 2 where ENERGY frames may stand, which a node without a meter never writes. A segment is of one version
 * with all its frames. Magic, version and crc of a header stay where they are in every version to come, so that a
 * reader can tell "newer than this program" from "damaged": what it cannot read it never takes for a torn tail.
 *
 * lsn counts 1, 2, 3 ... over all segments; the CHECKPOINT that starts each segment has the lsn of the frame before.
 *
 * lag: lsn - lag was synced when this frame was written (65535: nothing is claimed). That tells a write that a crash
 * tore from damage: a write in flight may leave its later sectors and lose its earlier ones, so "valid frames follow"
 * is no sign of damage; but a bad frame that a later frame claims as synced is damaged. Rejected: refusing whenever a
 * valid frame follows (one power loss in two in group mode would need an operator).
 *
 * Payloads (varint: seven bits a byte, lowest first, the top bit says that more follow):
 *   OPEN        handle u32  account u64  mclass u8  charge (record.h)  in_total in_hit choices u32  opened_us i64
 *               opened_ns u64
 *   STEP        to its end: handle varint, ids varint
 *   FINAL GRANT RELEASE ENERGY   the record
 *   ORDER       id text8  account u64  op u8  package text8  units priority effective_ms expires_ms created_ms
 *               class_mask u64
 *   ACCOUNT     account u64  open u8  order id text8
 *   ACK         partition u16  hwm u64  hash8 8 bytes
 *   RECOVER     epoch u64  cut_bytes u64  closed u32
 *   CHECKPOINT  epoch u64  partitions u16 x (partition u16, pseq u64, chain 32)  acks u16 x (an ACK's payload)
 *               opens u32 x (an OPEN's payload, ids u64, first_us i64, last_us i64, last_mono_us i64) */
#ifndef SERVER_BILLING_FRAME_H
#define SERVER_BILLING_FRAME_H

#include "server/billing/bytes.h"
#include "server/billing/journal_reader.h"

enum {
    SEGMENT_HEADER_BYTES = 4096,
    SEGMENT_BYTES_MIN = 65536,
    FRAME_HEADER_BYTES = 40,
    FRAME_ALIGN = 8,
    FRAME_PAYLOAD_MAX = 1 << 26,
    FRAME_LAG_NONE = UINT16_MAX,
    OPEN_BYTES_MAX = CHARGE_BYTES_MAX + 48,
    CHECKPOINT_OPEN_BYTES_MAX = OPEN_BYTES_MAX + 32,
    CHECKPOINT_FIXED_BYTES_MAX = 8 + 2 + PARTITIONS * 42 + 2 + PARTITIONS * 18 + 4,
    STEP_COUNT_BYTES_MAX = 10,
    SEGMENT_VERSION_PLAIN = 1,
    SEGMENT_VERSION_ENERGY = 2
};

/* What a checkpoint may say at most, so that what follows still counts. */
#define EPOCH_MAX           (UINT64_MAX >> 2)
#define CHECKPOINT_PSEQ_MAX (PSEQ_MAX >> 1)

struct segment_header {
    uint32_t version;
    char uuid[LEDGER_UUID_CHARS + 1];
    uint32_t salt;
    bool given_up;
    uint64_t producer, epoch, base_lsn, serial, segment_bytes;
    int64_t created_us;
    uint8_t boot_id[16];
};

void segment_header_encode(const struct segment_header *header, uint8_t out[SEGMENT_HEADER_BYTES]);
/* ST_INVAL: not what encode wrote; ST_PROTO: whole, but of a version that this program cannot read. *why is static
 * text. */
NODISCARD enum status segment_header_decode(const uint8_t bytes[SEGMENT_HEADER_BYTES], struct segment_header *header,
                                            const char **why);

static inline uint64_t frame_aligned(uint64_t length)
{
    return (length + (FRAME_ALIGN - 1)) & ~(uint64_t)(FRAME_ALIGN - 1);
}

/* Writes the header of a frame whose payload follows at bytes + FRAME_HEADER_BYTES, all but what frame_stamp adds. */
void frame_head(uint8_t *bytes, const struct frame *frame);
/* Salt, version, lag and crc: when it is known which segment it goes to, and what has been synced. */
void frame_stamp(uint8_t *bytes, const struct segment_header *header, uint64_t synced_lsn);
/* Whether a frame that frame_head wrote may stand in a segment of this version. */
bool frame_suits(const uint8_t *bytes, uint32_t version);
uint32_t frame_length(const uint8_t *bytes);
uint64_t frame_lsn(const uint8_t *bytes);

enum frame_look { FRAME_GOOD, FRAME_SHORT /* *needed bytes would tell */, FRAME_BAD };
/* What stands at `bytes`, where `available` can be read and `room` are left in the segment of this header. FRAME_GOOD:
 * frame is filled in (segment_lsn, offset are the caller's), *claimed is the lsn it claims as synced. */
enum frame_look frame_look(const uint8_t *bytes, uint64_t available, uint64_t room, const struct segment_header *header,
                           struct frame *frame, uint64_t *claimed, uint64_t *needed);

/* Payload writers; the readers stand in journal_reader.h. */
void frame_put_open(struct byte_writer *to, const struct open_frame *open);
void frame_put_step(struct byte_writer *to, struct step_count count);
void frame_put_order(struct byte_writer *to, const struct order *order);
void frame_put_account(struct byte_writer *to, uint64_t account, const char *order_id, bool open);
void frame_put_ack(struct byte_writer *to, uint16_t partition, uint64_t hwm, const char hash8[HASH8_CHARS + 1]);
void frame_put_recover(struct byte_writer *to, uint64_t epoch, uint64_t cut_bytes, uint32_t closed);

/* Inside a checkpoint, too. False: not valid. */
bool frame_get_open(struct byte_reader *from, struct open_frame *open);
bool frame_get_ack(struct byte_reader *from, uint16_t *partition, uint64_t *hwm, char hash8[HASH8_CHARS + 1]);
bool frame_get_recover(struct byte_reader *from, uint64_t *epoch, uint64_t *cut_bytes, uint32_t *closed);

#endif
