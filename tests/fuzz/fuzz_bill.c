/* libFuzzer over what `millrace bill` reads: journal frames (audit), JSON of a server or an order file, and amounts,
 * times and lists as they are typed.
 *
 * Frames are built from the input with headers, LSNs and checksums that are right, so that what is fuzzed is behind
 * them: checkpoints, records, counts. Input: a kind, then for frames (type, length u16, payload) .. */
#include "tests/unit/unit.h"

#include "server/billing/bill_audit.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_text.h"
#include "server/billing/frame.h"
#include "tests/support/memory_ledger.h"

#include <inttypes.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SEGMENT_BYTES = 65536, SALT = 77 };

static uint8_t segment[SEGMENT_BYTES];

static int memory_open(void *state, const char *path, enum disk_open how)
{
    (void)state, (void)how;
    return strstr(path, ".mrj") ? 3 : -2;
}
static void memory_close(void *state, int fd)
{
    (void)state, (void)fd;
}
static int64_t memory_read(void *state, int fd, void *out, size_t length, uint64_t offset)
{
    (void)state, (void)fd;
    if (offset >= SEGMENT_BYTES) return 0;
    if (length > SEGMENT_BYTES - offset) length = (size_t)(SEGMENT_BYTES - offset);
    memcpy(out, segment + offset, length);
    return (int64_t)length;
}
static int64_t memory_size(void *state, int fd)
{
    (void)state, (void)fd;
    return SEGMENT_BYTES;
}
static int memory_list(void *state, const char *folder, void (*visit)(void *visitor, const char *name), void *visitor)
{
    (void)state, (void)folder;
    visit(visitor, "0000000000000001.mrj");
    return 0;
}
static const struct disk memory_disk = {
    .open = memory_open, .close = memory_close, .read_at = memory_read, .size = memory_size, .list = memory_list};

static void build_segment(const uint8_t *data, size_t size)
{
    struct segment_header header = {.version = SEGMENT_VERSION_ENERGY,
                                    .uuid = "11111111-2222-3333-4444-555555555555",
                                    .salt = SALT,
                                    .producer = 9,
                                    .epoch = 1,
                                    .base_lsn = 1,
                                    .serial = 1,
                                    .segment_bytes = SEGMENT_BYTES};
    memset(segment, 0, sizeof segment);
    segment_header_encode(&header, segment);
    uint64_t at = SEGMENT_HEADER_BYTES, lsn = 0;
    while (size >= 3) {
        struct frame frame = {.type = (enum frame_type)data[0], .lsn = lsn, .wall_us = 1, .mono_us = 1};
        size_t length = (size_t)(data[1] | data[2] << 8);
        data += 3, size -= 3;
        if (length > size) length = size;
        if (at + FRAME_HEADER_BYTES + length + FRAME_ALIGN > SEGMENT_BYTES) return;
        frame.length = (uint32_t)length;
        frame.payload = data;
        memcpy(segment + at + FRAME_HEADER_BYTES, data, length);
        frame_head(segment + at, &frame);
        if (!frame_suits(segment + at, header.version)) return; /* no writer makes it */
        frame_stamp(segment + at, &header, 0);
        at += frame_aligned(FRAME_HEADER_BYTES + length);
        data += length, size -= length;
        lsn++;
    }
}

static void audit_one(const uint8_t *data, size_t size)
{
    static struct memory_ledger memory;
    struct ledger_client client;
    struct audit audit;
    struct error err = {""};
    build_segment(data, size);
    memory_ledger_init(&memory, "11111111-2222-3333-4444-555555555555", &client);
    if (audit_init(&audit, &memory_disk) != ST_OK || audit_marks(&audit, &client, &err) != ST_OK) abort();
    if (audit_scan(&audit, "/j", NULL, &err) == ST_OK && audit_compare(&audit, &client, &err) != ST_OK) abort();
    audit_energies(&audit);
    if (audit.worst == AUDIT_DAMAGE && audit.findings_count == 0) abort();
    audit_free(&audit);
    memory_ledger_free(&memory);
}

static void read_json(const char *text, size_t length)
{
    static struct account_balance balance;
    struct month_total totals[MODEL_CLASSES];
    struct order order;
    struct json *root;
    struct error err = {""};
    uint32_t count;
    if (json_read(text, length, &root, &err) != ST_OK) return;
    if (bill_read_order(root, &order, &err) == ST_OK) { /* what is taken is written and taken again */
        struct buf out;
        struct json *again;
        struct order back;
        buf_init(&out, 0);
        bill_json_order(&order, LEDGER_OK, &out);
        if (json_read(out.data, out.length, &again, &err) != ST_OK || bill_read_order(again, &back, &err) != ST_OK ||
            memcmp(&order, &back, sizeof order) != 0)
            abort();
        json_release(again);
        buf_free(&out);
    }
    (void)!bill_read_balance(root, &balance, &err);
    (void)!bill_read_months(root, totals, &count, &err);
    json_release(root);
}

static void read_text(const char *text)
{
    struct buf out;
    uint64_t value, back;
    int64_t ms;
    int32_t offset_s;
    uint32_t month;
    buf_init(&out, 0);
    if (bill_parse_tokens(text, PACKAGE_UNITS_MAX, &value, NULL) == ST_OK) {
        buf_append_format(&out, "%" PRIu64 ".%06" PRIu64, value / UNITS_PER_TOKEN, value % UNITS_PER_TOKEN);
        buf_append_char(&out, '\0');
        if (bill_parse_tokens(out.data, PACKAGE_UNITS_MAX, &back, NULL) != ST_OK || back != value) abort();
    }
    buf_clear(&out);
    if (bill_parse_time(text, &ms, NULL) == ST_OK) {
        int64_t again;
        bill_append_time_ms(&out, ms);
        buf_append_char(&out, '\0');
        if (bill_parse_time(out.data, &again, NULL) != ST_OK || again != ms) abort();
    }
    (void)!bill_parse_classes(text, &value, NULL);
    (void)!bill_parse_month(text, &month, NULL);
    (void)!bill_parse_offset(text, &offset_s, NULL);
    (void)!bill_account(text, &value, NULL);
    buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    char *text = calloc(1, size);
    if (!text) return 0;
    memcpy(text, data + 1, size - 1);
    if (data[0] % 4 == 0)
        read_text(text);
    else if (data[0] % 4 == 1)
        read_json(text, size - 1);
    else
        audit_one(data + 1, size - 1);
    free(text);
    return 0;
}
