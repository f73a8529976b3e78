/* Segment headers, frames and payloads to bytes and back (frame.h has the layout). Readers check every number before
 * they use it: what they are given may be any bytes. */
#include "server/billing/frame.h"

#include "runtime/base/check.h"
#include "runtime/base/crc32c.h"
#include "server/billing/journal_planted.h"

static const char MAGIC[] = "MRJRNL1\n";
enum { HEADER_CRC_AT = SEGMENT_HEADER_BYTES - 4, GIVEN_UP = 1 };
/* Offsets in a frame. */
enum { CRC_AT = 0, LENGTH_AT = 4, LSN_AT = 8, SALT_AT = 16, TYPE_AT = 20, VERSION_AT = 21, LAG_AT = 22, WALL_AT = 24 };

static uint64_t number_at(const uint8_t *bytes, size_t offset, size_t length)
{
    struct byte_reader from = {.bytes = bytes, .offset = offset, .length = offset + length};
    return get_number(&from, length);
}

static void number_put_at(uint8_t *bytes, size_t offset, uint64_t value, size_t length)
{
    struct byte_writer to = {.bytes = bytes, .length = offset, .capacity = offset + length};
    put_number(&to, value, length);
}

static bool version_known(uint64_t version)
{
    return version == SEGMENT_VERSION_PLAIN || version == SEGMENT_VERSION_ENERGY;
}

void segment_header_encode(const struct segment_header *header, uint8_t out[SEGMENT_HEADER_BYTES])
{
    CHECK(version_known(header->version));
    memset(out, 0, SEGMENT_HEADER_BYTES);
    struct byte_writer to = {.bytes = out, .capacity = HEADER_CRC_AT};
    put_bytes(&to, MAGIC, 8);
    put_u32(&to, header->version);
    put_u32(&to, header->salt);
    put_bytes(&to, header->uuid, LEDGER_UUID_CHARS);
    put_u32(&to, header->given_up ? GIVEN_UP : 0);
    put_u64(&to, header->producer);
    put_u64(&to, header->epoch);
    put_u64(&to, header->base_lsn);
    put_u64(&to, header->serial);
    put_u64(&to, header->segment_bytes);
    put_i64(&to, header->created_us);
    put_bytes(&to, header->boot_id, sizeof header->boot_id);
    number_put_at(out, HEADER_CRC_AT, crc32c(out, HEADER_CRC_AT), 4);
}

static const char *header_complaint(const struct segment_header *header, uint32_t flags)
{
    if ((flags & ~(uint32_t)GIVEN_UP) != 0) return "unknown flags in its header";
    if (header->base_lsn == 0 || header->base_lsn > INT64_MAX || header->serial == 0 || header->epoch == 0 ||
        header->producer == 0) {
        return "a number in its header is out of range";
    }
    if (header->segment_bytes < SEGMENT_BYTES_MIN || header->segment_bytes % 4096 != 0 ||
        header->segment_bytes > UINT32_MAX) {
        return "its header tells a size that no segment has";
    }
    for (int i = 0; i < LEDGER_UUID_CHARS; i++) {
        if (header->uuid[i] < 0x21 || header->uuid[i] > 0x7e) return "its header names no ledger";
    }
    return NULL;
}

enum status segment_header_decode(const uint8_t bytes[SEGMENT_HEADER_BYTES], struct segment_header *header,
                                  const char **why)
{
    *why = NULL;
    if (memcmp(bytes, MAGIC, 8) != 0) *why = "no journal segment: its first bytes are others";
    if (*why == NULL && number_at(bytes, HEADER_CRC_AT, 4) != crc32c(bytes, HEADER_CRC_AT)) {
        *why = "its header is damaged (checksum)";
    }
    if (*why != NULL) return ST_INVAL;
    struct segment_header read = {.uuid = ""};
    struct byte_reader from = {.bytes = bytes, .offset = 8, .length = HEADER_CRC_AT};
    read.version = get_u32(&from);
    if (!version_known(read.version)) {
        *why = "written by a newer version of this program: read it with that one";
        return ST_PROTO;
    }
    read.salt = get_u32(&from);
    get_copy(&from, read.uuid, LEDGER_UUID_CHARS);
    uint32_t flags = get_u32(&from);
    read.given_up = (flags & GIVEN_UP) != 0;
    read.producer = get_u64(&from);
    read.epoch = get_u64(&from);
    read.base_lsn = get_u64(&from);
    read.serial = get_u64(&from);
    read.segment_bytes = get_u64(&from);
    read.created_us = get_i64(&from);
    get_copy(&from, read.boot_id, sizeof read.boot_id);
    *why = header_complaint(&read, flags);
    if (*why != NULL) return ST_INVAL;
    *header = read;
    return ST_OK;
}

void frame_head(uint8_t *bytes, const struct frame *frame)
{
    struct byte_writer to = {.bytes = bytes, .capacity = FRAME_HEADER_BYTES};
    put_u32(&to, 0);
    put_u32(&to, FRAME_HEADER_BYTES + frame->length);
    put_u64(&to, frame->lsn);
    put_u32(&to, 0);
    put_u8(&to, (uint8_t)frame->type);
    put_u8(&to, 0);
    put_u16(&to, FRAME_LAG_NONE);
    put_i64(&to, frame->wall_us);
    put_i64(&to, frame->mono_us);
}

/* Frames by what a version may hold: those up to RECOVER stand in all. */
static bool type_suits(uint64_t type, uint32_t version)
{
    return type >= FRAME_CHECKPOINT && type <= (version >= SEGMENT_VERSION_ENERGY ? FRAME_ENERGY : FRAME_RECOVER);
}

bool frame_suits(const uint8_t *bytes, uint32_t version)
{
    return type_suits(number_at(bytes, TYPE_AT, 1), version);
}

void frame_stamp(uint8_t *bytes, const struct segment_header *header, uint64_t synced_lsn)
{
    CHECK(frame_suits(bytes, header->version));
    uint64_t lag = frame_lsn(bytes) - synced_lsn;
    number_put_at(bytes, SALT_AT, header->salt, 4);
    number_put_at(bytes, VERSION_AT, header->version, 1);
    number_put_at(bytes, LAG_AT, lag < FRAME_LAG_NONE ? lag : FRAME_LAG_NONE, 2);
    number_put_at(bytes, CRC_AT, crc32c(bytes + 4, frame_length(bytes) - 4), 4);
}

uint32_t frame_length(const uint8_t *bytes)
{
    return (uint32_t)number_at(bytes, LENGTH_AT, 4);
}

uint64_t frame_lsn(const uint8_t *bytes)
{
    return number_at(bytes, LSN_AT, 8);
}

enum frame_look frame_look(const uint8_t *bytes, uint64_t available, uint64_t room, const struct segment_header *header,
                           struct frame *frame, uint64_t *claimed, uint64_t *needed)
{
    if (room < FRAME_HEADER_BYTES) return FRAME_BAD;
    *needed = FRAME_HEADER_BYTES;
    if (available < FRAME_HEADER_BYTES) return FRAME_SHORT;
    uint32_t length = frame_length(bytes);
    uint64_t type = number_at(bytes, TYPE_AT, 1);
    if (length < FRAME_HEADER_BYTES || length > FRAME_HEADER_BYTES + FRAME_PAYLOAD_MAX ||
        frame_aligned(length) > room || number_at(bytes, SALT_AT, 4) != header->salt ||
        number_at(bytes, VERSION_AT, 1) != header->version || !type_suits(type, header->version)) {
        return FRAME_BAD;
    }
    *needed = frame_aligned(length);
    if (available < *needed) return FRAME_SHORT;
    if (!JOURNAL_PLANTED(NO_CRC) && number_at(bytes, CRC_AT, 4) != crc32c(bytes + 4, length - 4)) return FRAME_BAD;
    for (uint64_t i = length; i < *needed; i++) {
        if (bytes[i] != 0) return FRAME_BAD;
    }
    uint64_t lag = number_at(bytes, LAG_AT, 2);
    frame->type = (enum frame_type)type;
    frame->lsn = frame_lsn(bytes);
    frame->wall_us = (int64_t)number_at(bytes, WALL_AT, 8);
    frame->mono_us = (int64_t)number_at(bytes, WALL_AT + 8, 8);
    frame->payload = bytes + FRAME_HEADER_BYTES;
    frame->length = length - FRAME_HEADER_BYTES;
    *claimed = lag == FRAME_LAG_NONE || lag > frame->lsn ? 0 : frame->lsn - lag;
    return FRAME_GOOD;
}

static void put_varint(struct byte_writer *to, uint32_t value)
{
    for (; value >= 128; value >>= 7) put_u8(to, (uint8_t)(value | 128));
    put_u8(to, (uint8_t)value);
}

/* Bad when it is longer than it needs to be, or above 32 bits: a number has one form. */
static uint32_t get_varint(struct byte_reader *from)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
        uint8_t byte = get_u8(from);
        value |= (uint64_t)(byte & 127) << shift;
        if ((byte & 128) != 0) continue;
        if (value > UINT32_MAX || (byte == 0 && shift > 0)) from->bad = true;
        return (uint32_t)value;
    }
    from->bad = true;
    return 0;
}

static bool complete(const struct byte_reader *from)
{
    return !from->bad && from->offset == from->length;
}

static struct byte_reader payload_of(const struct frame *frame)
{
    return (struct byte_reader){.bytes = frame->payload, .length = frame->length};
}

void frame_put_open(struct byte_writer *to, const struct open_frame *open)
{
    uint8_t charge[CHARGE_BYTES_MAX];
    put_u32(to, open->handle);
    put_u64(to, open->charge.account);
    put_u8(to, open->charge.mclass);
    put_bytes(to, charge, charge_encode(&open->charge, charge));
    put_u32(to, open->counts.in_total);
    put_u32(to, open->counts.in_hit);
    put_u32(to, open->counts.choices);
    put_i64(to, open->counts.opened_us);
    put_u64(to, open->counts.opened_ns);
}

bool frame_get_open(struct byte_reader *from, struct open_frame *open)
{
    open->handle = get_u32(from);
    uint64_t account = get_u64(from);
    uint8_t mclass = get_u8(from);
    if (from->bad || account == 0 || account > INT64_MAX || mclass >= MODEL_CLASSES ||
        charge_decode(from->bytes, from->length, &from->offset, &open->charge, NULL) != ST_OK) {
        from->bad = true;
        return false;
    }
    open->charge.account = account;
    open->charge.mclass = mclass;
    open->counts.in_total = get_u32(from);
    open->counts.in_hit = get_u32(from);
    open->counts.choices = get_u32(from);
    open->counts.opened_us = get_i64(from);
    open->counts.opened_ns = get_u64(from);
    if (open->counts.in_total > REQUEST_TOKENS_MAX || open->counts.in_hit > open->counts.in_total ||
        open->counts.opened_us < 0 || open->counts.opened_us > WALL_US_MAX) {
        from->bad = true;
    }
    return !from->bad;
}

enum status frame_read_open(const struct frame *frame, struct open_frame *open)
{
    struct byte_reader from = payload_of(frame);
    return frame->type == FRAME_OPEN && frame_get_open(&from, open) && complete(&from) ? ST_OK : ST_INVAL;
}

void frame_put_step(struct byte_writer *to, struct step_count count)
{
    put_varint(to, count.handle);
    put_varint(to, count.ids);
}

enum status frame_read_step(const struct frame *frame, void (*visit)(void *state, struct step_count count), void *state)
{
    if (frame->type != FRAME_STEP) return ST_INVAL;
    struct byte_reader check = payload_of(frame);
    while (!check.bad && check.offset < check.length) {
        (void)get_varint(&check);
        (void)get_varint(&check);
    }
    if (!complete(&check)) return ST_INVAL;
    struct byte_reader from = payload_of(frame);
    while (from.offset < from.length) {
        struct step_count count = {.handle = get_varint(&from)};
        count.ids = get_varint(&from);
        visit(state, count);
    }
    return ST_OK;
}

void frame_put_order(struct byte_writer *to, const struct order *order)
{
    put_text8(to, order->id);
    put_u64(to, order->account);
    put_u8(to, (uint8_t)order->op);
    put_text8(to, order->package);
    put_u64(to, order->units);
    put_u64(to, order->priority);
    put_u64(to, order->effective_ms);
    put_u64(to, order->expires_ms);
    put_u64(to, order->created_ms);
    put_u64(to, order->class_mask);
}

enum status frame_read_order(const struct frame *frame, struct order *order)
{
    struct byte_reader from = payload_of(frame);
    struct order read = {.id = ""};
    get_text8(&from, read.id, sizeof read.id);
    read.account = get_u64(&from);
    uint8_t op = get_u8(&from);
    get_text8(&from, read.package, sizeof read.package);
    read.units = get_u64(&from);
    read.priority = get_u64(&from);
    read.effective_ms = get_u64(&from);
    read.expires_ms = get_u64(&from);
    read.created_ms = get_u64(&from);
    read.class_mask = get_u64(&from);
    if (frame->type != FRAME_ORDER || !complete(&from) || op >= PACKAGE_OPS) return ST_INVAL;
    read.op = (enum package_op)op;
    *order = read;
    return ST_OK;
}

void frame_put_account(struct byte_writer *to, uint64_t account, const char *order_id, bool open)
{
    put_u64(to, account);
    put_u8(to, open);
    put_text8(to, order_id);
}

enum status frame_read_account(const struct frame *frame, uint64_t *account, char order_id[ORDER_ID_MAX + 1],
                               bool *open)
{
    struct byte_reader from = payload_of(frame);
    uint64_t number = get_u64(&from);
    uint8_t opens = get_u8(&from);
    char id[ORDER_ID_MAX + 1];
    get_text8(&from, id, sizeof id);
    if (frame->type != FRAME_ACCOUNT || !complete(&from) || opens > 1) return ST_INVAL;
    *account = number;
    *open = opens == 1;
    memcpy(order_id, id, sizeof id);
    return ST_OK;
}

static uint8_t hex_digit(char c)
{
    if (c >= '0' && c <= '9') return (uint8_t)(c - '0');
    if (c >= 'a' && c <= 'f') return (uint8_t)(c - 'a' + 10);
    return 0;
}

void frame_put_ack(struct byte_writer *to, uint16_t partition, uint64_t hwm, const char hash8[HASH8_CHARS + 1])
{
    put_u16(to, partition);
    put_u64(to, hwm);
    for (int i = 0; i < HASH8_CHARS; i += 2) put_u8(to, (uint8_t)(hex_digit(hash8[i]) << 4 | hex_digit(hash8[i + 1])));
}

bool frame_get_ack(struct byte_reader *from, uint16_t *partition, uint64_t *hwm, char hash8[HASH8_CHARS + 1])
{
    uint8_t chain[CHAIN_BYTES] = {0};
    *partition = get_u16(from);
    *hwm = get_u64(from);
    get_copy(from, chain, HASH8_CHARS / 2);
    record_hash8(chain, hash8);
    if (*partition >= PARTITIONS) from->bad = true;
    return !from->bad;
}

enum status frame_read_ack(const struct frame *frame, uint16_t *partition, uint64_t *hwm, char hash8[HASH8_CHARS + 1])
{
    struct byte_reader from = payload_of(frame);
    uint16_t read_partition;
    uint64_t read_hwm;
    char text[HASH8_CHARS + 1];
    if (frame->type != FRAME_ACK || !frame_get_ack(&from, &read_partition, &read_hwm, text) || !complete(&from)) {
        return ST_INVAL;
    }
    *partition = read_partition;
    *hwm = read_hwm;
    memcpy(hash8, text, sizeof text);
    return ST_OK;
}

void frame_put_recover(struct byte_writer *to, uint64_t epoch, uint64_t cut_bytes, uint32_t closed)
{
    put_u64(to, epoch);
    put_u64(to, cut_bytes);
    put_u32(to, closed);
}

bool frame_get_recover(struct byte_reader *from, uint64_t *epoch, uint64_t *cut_bytes, uint32_t *closed)
{
    *epoch = get_u64(from);
    *cut_bytes = get_u64(from);
    *closed = get_u32(from);
    return complete(from) && *epoch > 0 && *epoch <= EPOCH_MAX;
}
