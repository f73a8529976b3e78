/* Frames of a journal into a ledger, and its snapshots; see ledger_store.h. A snapshot file: magic, LSN, length of the
 * ledger's bytes (ledger_save, with a checksum of their own), the bytes, XXH64 of all before. */
#include "server/billing/ledger_store.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "server/billing/bytes.h"
#include "server/billing/disk_file.h"
#include "server/billing/journal_reader.h"

#include <inttypes.h>
#include <string.h>

static const char NEWER[] = "ledger.snap", OLDER[] = "ledger.snap.old";
static const uint8_t MAGIC[8] = "MRSNAP1";
enum { HEAD_BYTES = 24, SUM_BYTES = 8 };
#define SNAPSHOT_BYTES_MAX ((size_t)1 << 36)

struct store_mark {
    uint64_t hwm;
    char hash8[HASH8_CHARS + 1];
};

struct ledger_store {
    struct ledger_store_config config;
    struct ledger *ledger;
    struct journal_reader *reader; /* NULL: opened when frames are wanted */
    uint64_t lsn;                  /* applied up to here */
    uint64_t end_lsn;              /* highest seen in the journal */
    uint64_t segment_lsn;          /* of the last frame */
    uint64_t saved_lsn, kept_lsn;  /* of the newest snapshot; of the older one */
    struct buf pending;            /* the state at the end of the last whole segment, to be written */
    uint64_t pending_lsn;          /* 0: nothing waits */
    bool newer_damaged;
    struct store_mark marks[PARTITIONS]; /* of this journal's producer, in the newest snapshot */
    struct store_mark taken[PARTITIONS]; /* ... and in the one that is being written */
};

/* ---- snapshots ---- */

static void take_marks(const struct ledger *ledger, uint64_t producer, struct store_mark marks[PARTITIONS])
{
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        uint64_t epoch;
        if (!ledger_hwm(ledger, p, producer, &epoch, &marks[p].hwm, marks[p].hash8)) marks[p].hwm = 0;
    }
}

static void put_u64_to(struct buf *out, uint64_t value)
{
    uint8_t bytes[8];
    struct byte_writer to = {.bytes = bytes, .capacity = sizeof bytes};
    put_u64(&to, value);
    buf_append(out, bytes, sizeof bytes);
}

/* The state as a snapshot's bytes. Without memory there is no snapshot this time. */
static void copy_state(struct ledger_store *store)
{
    buf_clear(&store->pending);
    store->pending_lsn = 0;
    struct buf bytes;
    buf_init(&bytes, 0);
    ledger_save(store->ledger, &bytes);
    buf_append(&store->pending, MAGIC, sizeof MAGIC);
    put_u64_to(&store->pending, store->lsn);
    put_u64_to(&store->pending, bytes.length);
    buf_append(&store->pending, bytes.data, bytes.length);
    if (buf_ok(&bytes) && buf_ok(&store->pending)) {
        put_u64_to(&store->pending, hash_xxh64(store->pending.data, store->pending.length, 0));
    }
    if (buf_ok(&bytes) && buf_ok(&store->pending)) store->pending_lsn = store->lsn;
    buf_free(&bytes);
}

static enum status read_snapshot(struct ledger *ledger, const struct buf *file, uint64_t *lsn, struct error *err)
{
    struct byte_reader from = {.bytes = (const uint8_t *)file->data, .length = file->length};
    const uint8_t *magic = get_bytes(&from, sizeof MAGIC);
    uint64_t seen = get_u64(&from), length = get_u64(&from);
    if (from.bad || memcmp(magic, MAGIC, sizeof MAGIC) != 0 || length != file->length - HEAD_BYTES - SUM_BYTES) {
        return error_set(err, ST_INVAL, "it is no snapshot, or cut");
    }
    from.offset = file->length - SUM_BYTES;
    if (get_u64(&from) != hash_xxh64(file->data, file->length - SUM_BYTES, 0)) {
        return error_set(err, ST_INVAL, "its checksum is wrong");
    }
    TRY(ledger_load(ledger, file->data + HEAD_BYTES, length, err));
    *lsn = seen;
    return ST_OK;
}

static enum status load_snapshot(struct ledger_store *store, const char *name, struct error *err)
{
    struct buf file;
    buf_init(&file, 0);
    struct error why = {""};
    enum status status = disk_file_read(store->config.disk, store->config.folder, name, SNAPSHOT_BYTES_MAX, &file, err);
    if (status == ST_OK) {
        status = file.length < HEAD_BYTES + SUM_BYTES ? error_set(&why, ST_INVAL, "it is cut")
                                                      : read_snapshot(store->ledger, &file, &store->lsn, &why);
        if (status != ST_OK) (void)error_set(err, status, "%s/%s: %s", store->config.folder, name, why.message);
    }
    buf_free(&file);
    return status;
}

/* The newer one, or the older one when that is damaged or was lost between two renames. No snapshot at all: LSN 0. */
static enum status load_newest(struct ledger_store *store, bool *damaged, struct error *err)
{
    struct error older = {""};
    enum status status = load_snapshot(store, NEWER, err);
    *damaged = status == ST_INVAL;
    if (status == ST_OK || (status != ST_INVAL && status != ST_NOTFOUND)) return status;
    enum status second = load_snapshot(store, OLDER, &older);
    if (second == ST_NOTFOUND) return status == ST_NOTFOUND ? ST_OK : status;
    if (second != ST_OK && status == ST_NOTFOUND) *err = older;
    return second;
}

bool ledger_store_snapshot_wanted(const struct ledger_store *store, uint64_t segment_lsn)
{
    return store->pending_lsn != 0 && store->pending_lsn < segment_lsn;
}

bool ledger_store_snapshot_take(struct ledger_store *store, struct ledger_snapshot *snapshot)
{
    if (store->pending_lsn == 0) return false;
    *snapshot =
        (struct ledger_snapshot){.bytes = store->pending, .lsn = store->pending_lsn, .keep_old = store->newer_damaged};
    buf_init(&store->pending, 0);
    store->pending_lsn = 0;
    return true;
}

enum status ledger_snapshot_write(const struct disk *disk, const char *folder, const struct ledger_snapshot *snapshot,
                                  struct error *err)
{
    return disk_file_replace(disk, folder, NEWER, snapshot->keep_old ? NULL : OLDER, snapshot->bytes.data,
                             snapshot->bytes.length, err);
}

enum status ledger_store_snapshot_done(struct ledger_store *store, struct ledger_snapshot *snapshot, bool written,
                                       struct journal *journal)
{
    buf_free(&snapshot->bytes);
    if (!written) return ST_OK;
    bool both = !store->newer_damaged;
    store->newer_damaged = false;
    if (both) store->kept_lsn = store->saved_lsn;
    store->saved_lsn = snapshot->lsn;
    if (journal != NULL) journal_keep_from(journal, store->kept_lsn + 1);
    enum status status = ST_OK;
    for (uint16_t p = 0; p < PARTITIONS && journal != NULL && both && status == ST_OK; p++) {
        const struct store_mark *mark = &store->marks[p]; /* the older snapshot's now: both hold it (S3) */
        if (mark->hwm > 0) status = journal_put_ack(journal, p, mark->hwm, mark->hash8);
    }
    memcpy(store->marks, store->taken, sizeof store->marks);
    return status;
}

enum status ledger_store_snapshot(struct ledger_store *store, struct journal *journal, struct error *err)
{
    struct ledger_snapshot snapshot;
    if (!ledger_store_snapshot_take(store, &snapshot)) return ST_OK;
    enum status status = ledger_snapshot_write(store->config.disk, store->config.folder, &snapshot, err);
    enum status done = ledger_store_snapshot_done(store, &snapshot, status == ST_OK, journal);
    if (status == ST_OK && done != ST_OK) status = error_set(err, done, "cannot confirm a snapshot to the journal");
    return status;
}

/* ---- frames ---- */

static enum status refused(struct error *err, const struct frame *frame, enum ledger_answer answer)
{
    if (answer == LEDGER_LIMIT) return error_set(err, ST_NOMEM, "out of memory for the ledger");
    return error_set(err, ST_INVAL, "the ledger refuses the record at LSN %" PRIu64 ": %s", frame->lsn,
                     ledger_answer_name(answer));
}

static enum status apply_record(struct ledger_store *store, const struct frame *frame,
                                const struct ledger_store_events *events, struct error *err)
{
    struct record record;
    TRY(record_decode(frame->payload, frame->length, &record, err));
    const struct segment_info *segment = journal_reader_segment(store->reader);
    const struct encoded_record encoded = {.bytes = frame->payload, .length = frame->length};
    struct ledger_reply reply;
    ledger_apply(store->ledger, record.partition, segment->producer, segment->epoch, store->config.uuid, &encoded, 1,
                 (uint64_t)record.t_ms, events != NULL ? events->log : NULL, events != NULL ? events->state : NULL,
                 &reply);
    if (reply.answer != LEDGER_OK) return refused(err, frame, reply.answer);
    if (reply.grants_count > 0 && events != NULL && events->grant != NULL) {
        events->grant(events->state, record.account, record.mclass, record.pseq, reply.grants[0].leased,
                      reply.grants[0].open);
    }
    return ST_OK;
}

static enum status apply_order(struct ledger_store *store, const struct frame *frame,
                               const struct ledger_store_events *events, struct error *err)
{
    enum ledger_answer answer;
    uint32_t leases = 0, packages = 0;
    if (frame->type == FRAME_ACCOUNT) {
        uint64_t account;
        char id[ORDER_ID_MAX + 1];
        bool open;
        enum status status = frame_read_account(frame, &account, id, &open);
        if (status != ST_OK) return error_set(err, status, "the ACCOUNT at LSN %" PRIu64 " is damaged", frame->lsn);
        answer = ledger_account_set(store->ledger, store->config.uuid, account, id, open);
    } else {
        struct order order;
        enum status status = frame_read_order(frame, &order);
        if (status != ST_OK) return error_set(err, status, "the ORDER at LSN %" PRIu64 " is damaged", frame->lsn);
        answer = order.op == PACKAGE_REAP ? ledger_reap(store->ledger, store->config.uuid, order.account, order.units,
                                                        order.created_ms, &leases, &packages)
                                          : ledger_order(store->ledger, store->config.uuid, &order, order.created_ms);
    }
    if (events != NULL && events->order != NULL) {
        events->order(events->state, frame->lsn, answer, leases, packages);
    }
    return ST_OK;
}

/* The journal's oldest segment must begin where the snapshot ends, or before (S4). */
static enum status check_start(const struct ledger_store *store, struct error *err)
{
    const struct segment_info *segment = journal_reader_segment(store->reader);
    if (segment->base_lsn <= store->lsn + 1) return ST_OK;
    return error_set(err, ST_INVAL,
                     "%s: the journal begins at LSN %" PRIu64 ", the ledger's newest snapshot ends at %" PRIu64
                     ": segments between are missing",
                     store->config.folder, segment->base_lsn, store->lsn);
}

/* A new segment: what was applied so far is whole segments, and may become a snapshot (S2). */
static void enter_segment(struct ledger_store *store, const struct frame *frame)
{
    bool first = store->segment_lsn == 0;
    bool other = frame->segment_lsn != store->segment_lsn;
    store->segment_lsn = frame->segment_lsn;
    if (first || !other || store->lsn == store->saved_lsn || store->lsn + 1 != frame->segment_lsn) return;
    copy_state(store);
    take_marks(store->ledger, journal_reader_segment(store->reader)->producer, store->taken);
}

static enum status apply_frame(struct ledger_store *store, const struct frame *frame,
                               const struct ledger_store_events *events, struct error *err)
{
    if (store->segment_lsn == 0) TRY(check_start(store, err));
    enter_segment(store, frame);
    if (frame->lsn > store->end_lsn) store->end_lsn = frame->lsn;
    if (frame->type == FRAME_CHECKPOINT || frame->lsn <= store->lsn) return ST_OK;
    bool ours = strcmp(journal_reader_segment(store->reader)->uuid, store->config.uuid) == 0; /* else before an adopt */
    enum status status = ST_OK;
    if (ours && frame_is_record(frame->type)) {
        status = apply_record(store, frame, events, err);
    } else if (ours && (frame->type == FRAME_ORDER || frame->type == FRAME_ACCOUNT)) {
        status = apply_order(store, frame, events, err);
    }
    if (status == ST_OK) store->lsn = frame->lsn;
    return status;
}

static enum status open_reader(struct ledger_store *store, struct error *err)
{
    const struct ledger_store_config *config = &store->config;
    store->segment_lsn = 0;
    enum status status =
        journal_reader_open(config->disk, config->folder, config->fallback, store->lsn + 1, &store->reader, err);
    if (status != ST_NOTFOUND) return status;
    return journal_reader_open(config->disk, config->folder, config->fallback, 0, &store->reader, err);
}

enum status ledger_store_follow(struct ledger_store *store, uint64_t until_lsn,
                                const struct ledger_store_events *events, struct error *err)
{
    if (until_lsn <= store->lsn && store->reader != NULL) return ST_OK;
    if (store->reader == NULL) TRY(open_reader(store, err));
    for (;;) {
        struct frame frame;
        enum status status = journal_reader_next(store->reader, until_lsn, &frame, err);
        if (status == ST_AGAIN) return ST_OK;
        if (status == ST_OK) status = apply_frame(store, &frame, events, err);
        if (status != ST_OK) {
            journal_reader_close(store->reader); /* the next call starts from the last frame applied */
            store->reader = NULL;
            return status;
        }
    }
}

/* ---- life ---- */

static enum status refuse_history(const struct ledger_store *store, uint64_t until_lsn, uint64_t snapshot_lsn,
                                  struct error *err)
{
    uint64_t end_lsn = until_lsn != UINT64_MAX && until_lsn > store->end_lsn ? until_lsn : store->end_lsn;
    if (snapshot_lsn <= end_lsn) return ST_OK;
    return error_set(err, ST_INVAL,
                     "%s: the ledger's snapshot has seen LSN %" PRIu64 ", the journal ends at %" PRIu64
                     ": it was restored or cloned",
                     store->config.folder, snapshot_lsn, end_lsn);
}

static enum status open_at(struct ledger_store *store, uint64_t until_lsn, struct ledger_store_report *report,
                           struct error *err)
{
    TRY(load_newest(store, &report->snapshot_damaged, err));
    store->newer_damaged = report->snapshot_damaged;
    report->snapshot_lsn = store->saved_lsn = store->lsn;
    enum ledger_answer answer = ledger_init(store->ledger, store->config.uuid);
    if (answer != LEDGER_OK && answer != LEDGER_DUP) {
        return error_set(err, ST_INVAL, "%s: the snapshot is of another ledger (%s)", store->config.folder,
                         ledger_uuid(store->ledger));
    }
    TRY(open_reader(store, err));
    take_marks(store->ledger, 0, store->marks); /* until the first frame tells the producer */
    struct frame frame;
    enum status status = journal_reader_next(store->reader, UINT64_MAX, &frame, err);
    if (status == ST_OK) {
        take_marks(store->ledger, journal_reader_segment(store->reader)->producer, store->marks);
        TRY(apply_frame(store, &frame, NULL, err));
    } else if (status != ST_AGAIN) {
        return status;
    }
    if (until_lsn > store->lsn) TRY(ledger_store_follow(store, until_lsn, NULL, err));
    TRY(refuse_history(store, until_lsn, report->snapshot_lsn, err));
    report->lsn = store->lsn;
    report->frames = store->lsn - report->snapshot_lsn;
    return ST_OK;
}

enum status ledger_store_open(const struct ledger_store_config *config, uint64_t until_lsn, struct ledger_store **store,
                              struct ledger_store_report *report, struct error *err)
{
    struct ledger_store *opened = mem_alloc(1, sizeof *opened);
    if (opened == NULL) return error_set(err, ST_NOMEM, "out of memory for a ledger");
    opened->config = *config;
    buf_init(&opened->pending, 0);
    struct ledger_store_report found = {0};
    enum status status = ledger_create(&opened->ledger);
    if (status == ST_OK) status = open_at(opened, until_lsn, &found, err);
    if (status != ST_OK) {
        ledger_store_close(opened);
        return status;
    }
    *store = opened;
    *report = found;
    return ST_OK;
}

void ledger_store_close(struct ledger_store *store)
{
    if (store == NULL) return;
    if (store->reader != NULL) journal_reader_close(store->reader);
    ledger_destroy(store->ledger);
    buf_free(&store->pending);
    mem_free(store);
}

const struct ledger *ledger_store_ledger(const struct ledger_store *store)
{
    return store->ledger;
}

uint64_t ledger_store_kept_lsn(const struct ledger_store *store)
{
    return store->kept_lsn;
}
