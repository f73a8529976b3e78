/* Starting a journal, and what an operator does when it does not start.
 *
 *   lock -> last segment: frames up to the first that is not valid -> state
 *        -> torn tail zeroed, unclaimed frames written again, fdatasync -> RECOVER, FINALs -> fdatasync
 *
 * Every step leaves a journal that the same steps take again, so a crash between any two is harmless: zeroing only
 * removes what was never promised, and the FINALs already written are not missing at the next start.
 *
 * "Unclaimed" frames are those that no later frame tells to be synced. They may stand in the page cache alone, marked
 * clean by an fdatasync that failed before the last process ended; written again, they are dirty, and the next
 * fdatasync means them. Rejected: a new segment at each start (it needs the same for the old one, and 64 MiB each).
 */
#include "server/billing/journal_internal.h"
#include "server/billing/journal_repair.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/journal_planted.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

static uint64_t random_producer(void)
{
    uint64_t producer;
    random_fill(&producer, sizeof producer);
    return producer == 0 ? 1 : producer;
}

static enum status damaged(struct error *err, const struct segment *segment, uint64_t offset, const char *why)
{
    return error_set(err, ST_INVAL,
                     "billing journal: %s: damaged at byte %" PRIu64 ": %s; `millrace bill repair` saves and cuts what "
                     "follows",
                     segment->info.path, offset, why);
}

/* What is not promised goes, what may be in the cache alone is written again; durable when it returns. */
static enum status mend(struct journal *journal, const uint8_t *bytes, const struct segment_scan *scan)
{
    const struct disk *disk = journal->config.disk;
    if (!JOURNAL_PLANTED(KEEP_TAIL)) TRY(disk_zero(disk, journal->fd, scan->tail_bytes, scan->end));
    if (!JOURNAL_PLANTED(TRUST_CACHE)) {
        TRY(disk_write_all(disk, journal->fd, bytes + scan->unclaimed, scan->end - scan->unclaimed, scan->unclaimed));
    }
    return disk->sync(disk->state, journal->fd) == 0 ? ST_OK : ST_IO;
}

/* Reads the last segment into `settled` and makes it the one written to. */
static enum status take_last(struct journal *journal, struct segment_scan *scan, struct journal_report *report,
                             struct error *err)
{
    const struct segment *last = &journal->segments.items[journal->segments.count - 1];
    uint8_t *bytes = NULL;
    const char *why = "";
    TRY(segment_load(journal->config.disk, last, DISK_WRITE, &journal->fd, &bytes, err));
    enum status status = segment_scan_bytes(bytes, &last->header, UINT64_MAX, &journal->settled, scan, &why);
    if (status == ST_INVAL) status = damaged(err, last, scan->end, why);
    if (status == ST_NOMEM) status = error_set(err, ST_NOMEM, "billing journal: no memory");
    report->read_bytes += scan->end;
    report->records += scan->records;
    report->cut_bytes = scan->tail_bytes;
    if (status == ST_OK && mend(journal, bytes, scan) != ST_OK) {
        status = error_set(err, ST_IO, "billing journal: %s: cannot be written", last->info.path);
    }
    mem_free(bytes);
    if (status == ST_OK) {
        journal->position = scan->end + (JOURNAL_PLANTED(APPEND_AT_END) ? frame_aligned(scan->tail_bytes) : 0);
        journal->written_lsn = journal->settled.lsn;
        journal->synced_ns = clock_now_ns(journal->config.clock);
        journal->producer = last->info.producer;
        journal->serial = last->info.serial;
    }
    return status;
}

/* `live` begins as what is durable. */
static enum status copy_to_live(struct journal *journal)
{
    struct byte_writer *to = &journal->checkpoint;
    uint64_t bytes = state_checkpoint_bytes_max(journal->settled.opens + 1);
    if (to->capacity < bytes) {
        uint8_t *memory = mem_resize(to->bytes, bytes, 1);
        if (memory == NULL) return ST_NOMEM;
        to->bytes = memory;
        to->capacity = bytes;
    }
    to->length = 0;
    state_checkpoint_put(&journal->settled, to);
    struct frame frame = {
        .type = FRAME_CHECKPOINT, .lsn = journal->settled.lsn, .payload = to->bytes, .length = (uint32_t)to->length};
    return state_checkpoint_load(&journal->live, &frame);
}

/* A time that a frame tells, into what a record can say. */
static int64_t in_range(int64_t wall_us)
{
    return wall_us < 0 ? 0 : wall_us > WALL_US_MAX ? WALL_US_MAX : wall_us;
}

/* The FINAL of a request that a crash left open: what its durable STEPs tell. Its month is that of its closing, so that
 * a month that has been billed does not change. */
static enum status close_open(struct journal *journal, uint32_t handle)
{
    const struct open_slot *slot = &journal->live.slots[handle];
    const struct open_counts *counts = &slot->open.counts;
    int64_t opened_mono_us = (int64_t)(counts->opened_ns / 1000);
    uint64_t out_max = REQUEST_TOKENS_MAX - counts->in_total;
    struct record record = {.kind = RECORD_WAIVED,
                            .cause = CAUSE_NODE_CRASH,
                            .flags = RECORD_INCOMPLETE,
                            .opened_us = counts->opened_us,
                            .first_us = in_range(slot->first_us),
                            .ended_us = clock_unix_us(journal->config.clock),
                            .in_total = counts->in_total,
                            .in_hit = counts->in_hit,
                            .choices = counts->choices,
                            .out = (uint32_t)(slot->ids < out_max ? slot->ids : out_max)};
    if (slot->last_mono_us > opened_mono_us) record.duration_us = in_range(slot->last_mono_us - opened_mono_us);
    int64_t parted_us = in_range(slot->last_us) - counts->opened_us - record.duration_us;
    if (parted_us > 1000000 || parted_us < -1000000) record.flags |= RECORD_CLOCK;
    return journal_put_final(journal, handle, &record);
}

static enum status close_all(struct journal *journal, uint64_t cut_bytes, uint32_t *closed)
{
    *closed = journal->live.opens;
    TRY(journal_put_recover(journal, journal->live.epoch + 1, cut_bytes, *closed));
    for (uint32_t handle = 0; handle < journal->live.slots_count && !JOURNAL_PLANTED(LEAVE_OPEN); handle++) {
        if (journal->live.slots[handle].used) TRY(close_open(journal, handle));
    }
    if (JOURNAL_PLANTED(RECOVER_UNSYNCED)) return journal->config.mode == COMMIT_STEP ? ST_OK : journal_sync(journal);
    return journal_sync(journal);
}

static enum status recover(struct journal *journal, struct journal_report *report, struct error *err)
{
    struct segment_scan scan;
    TRY(take_last(journal, &scan, report, err));
    enum status status = copy_to_live(journal);
    if (status == ST_OK) status = close_all(journal, scan.tail_bytes, &report->closed);
    if (status != ST_OK) return error_set(err, status, "billing journal: %s: cannot be written", journal->active);
    return ST_OK;
}

static enum status create(struct journal *journal, struct journal_report *report, struct error *err)
{
    report->created = true;
    journal->producer = random_producer();
    enum status status = journal_segment_begin(journal, false);
    if (status == ST_OK) status = close_all(journal, 0, &report->closed);
    if (status != ST_OK) return error_set(err, status, "billing journal: %s: cannot make a segment", journal->folder);
    return ST_OK;
}

/* any_uuid: whose journal it has been does not matter; it keeps that uuid. */
static enum status open_journal(const struct journal_config *config, bool any_uuid, struct journal **journal,
                                struct journal_report *report, struct error *err)
{
    struct journal *made = NULL;
    *report = (struct journal_report){0};
    enum status status = journal_prepare(config, &made, err);
    if (status == ST_OK) {
        status = segment_list_read(config->disk, made->folder, made->config.fallback, &made->segments, err);
    }
    uint32_t count = made == NULL ? 0 : made->segments.count;
    if (status == ST_OK && count > 0) {
        const char *uuid = made->segments.items[count - 1].info.uuid;
        if (any_uuid) {
            memcpy(made->uuid, uuid, sizeof made->uuid);
        } else if (strcmp(uuid, made->uuid) != 0) {
            status = error_set(err, ST_INVAL,
                               "billing journal: %s belongs to ledger %s, not to %s; `millrace bill adopt` moves it",
                               made->folder, uuid, made->uuid);
        }
    }
    if (status == ST_OK) status = count == 0 ? create(made, report, err) : recover(made, report, err);
    if (status != ST_OK) {
        journal_release(made);
        return status;
    }
    if (made->stats.spares == 0 && made->free_permille >= (int32_t)config->free_permille_min &&
        spare_make(config->disk, made->active, config->segment_bytes, NULL) == ST_OK) {
        made->stats.spares = 1;
    }
    report->producer = made->producer;
    report->epoch = made->live.epoch;
    report->segments = made->segments.count;
    *journal = made;
    return ST_OK;
}

enum status journal_open(const struct journal_config *config, struct journal **journal, struct journal_report *report,
                         struct error *err)
{
    return open_journal(config, false, journal, report, err);
}

enum status journal_adopt(const struct journal_config *config, uint64_t *producer, struct error *err)
{
    struct journal *journal;
    struct journal_report report;
    TRY(open_journal(config, true, &journal, &report, err));
    (void)snprintf(journal->uuid, sizeof journal->uuid, "%s", config->uuid);
    journal->producer = random_producer();
    state_partitions_clear(&journal->live);
    state_partitions_clear(&journal->settled);
    enum status status = journal_segment_begin(journal, false);
    if (status == ST_OK) status = journal_sync(journal);
    if (status == ST_OK) {
        *producer = journal->producer;
    } else {
        (void)error_set(err, status, "billing journal: %s: cannot make a segment", journal->folder);
    }
    journal_release(journal);
    return status;
}

/* The bytes to be cut, in a file of their own beside the segment. */
static enum status save_cut(const struct journal *journal, const struct segment *last, const uint8_t *bytes,
                            struct repair_report *report)
{
    const struct disk *disk = journal->config.disk;
    char folder[SEGMENT_PATH_MAX];
    int fd = -EEXIST;
    for (unsigned n = 0; n < 1000 && fd == -EEXIST; n++) {
        (void)snprintf(report->saved, sizeof report->saved, "%.480s.cut-%u", last->info.path, n);
        fd = disk->open(disk->state, report->saved, DISK_CREATE);
    }
    if (fd < 0) return ST_IO;
    enum status status = disk_write_all(disk, fd, bytes + report->cut_offset, report->cut_bytes, 0);
    if (status == ST_OK && disk->sync(disk->state, fd) != 0) status = ST_IO;
    disk->close(disk->state, fd);
    (void)snprintf(folder, sizeof folder, "%s", last->info.path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL) *slash = 0;
    if (status == ST_OK && disk->sync_folder(disk->state, folder) != 0) status = ST_IO;
    return status;
}

/* For a last segment whose checkpoint is damaged: the state at the end of the one before. */
static enum status state_before(struct journal *journal, struct error *err)
{
    const struct disk *disk = journal->config.disk;
    uint32_t count = journal->segments.count;
    const struct segment *last = &journal->segments.items[count - 1], *previous = last - 1;
    if (count < 2) {
        return error_set(err, ST_INVAL,
                         "billing journal: %s: its checkpoint is damaged and no segment is before it; take it from an "
                         "archive, or move it away and begin a new journal",
                         last->info.path);
    }
    uint8_t *bytes;
    int fd;
    TRY(segment_load(disk, previous, DISK_READ, &fd, &bytes, err));
    struct segment_scan scan;
    const char *why = "it ends before the next one begins";
    enum status status =
        segment_scan_bytes(bytes, &previous->header, last->info.base_lsn, &journal->settled, &scan, &why);
    if (status == ST_OK && scan.last_lsn + 1 != last->info.base_lsn) status = ST_INVAL;
    if (status == ST_INVAL) {
        status = error_set(err, ST_INVAL,
                           "billing journal: %s: damaged at byte %" PRIu64 " too: %s; take it from an archive",
                           previous->info.path, scan.end, why);
    }
    if (status == ST_OK && previous->info.producer != last->info.producer) state_partitions_clear(&journal->settled);
    mem_free(bytes);
    disk->close(disk->state, fd);
    return status;
}

/* The checkpoint of `settled` where the damaged one stood; what follows is cut, from behind it. */
static enum status checkpoint_again(struct journal *journal, const struct segment *last)
{
    struct byte_writer *to = &journal->checkpoint;
    uint64_t capacity = state_checkpoint_bytes_max(journal->settled.opens);
    if (to->capacity < capacity) {
        uint8_t *memory = mem_resize(to->bytes, capacity, 1);
        if (memory == NULL) return ST_NOMEM;
        to->bytes = memory;
        to->capacity = capacity;
    }
    journal_checkpoint_make(journal, &last->header);
    const struct disk *disk = journal->config.disk;
    uint64_t end = SEGMENT_HEADER_BYTES + to->length;
    TRY(disk_zero(disk, journal->fd, last->info.bytes - end, end));
    TRY(disk_write_all(disk, journal->fd, to->bytes, to->length, SEGMENT_HEADER_BYTES));
    return disk->sync(disk->state, journal->fd) == 0 ? ST_OK : ST_IO;
}

static enum status repair_last(struct journal *journal, struct repair_report *report, struct error *err)
{
    struct segment_scan scan;
    const char *why = "";
    uint8_t *bytes;
    const struct segment *last = &journal->segments.items[journal->segments.count - 1];
    TRY(segment_load(journal->config.disk, last, DISK_WRITE, &journal->fd, &bytes, err));
    enum status status = segment_scan_bytes(bytes, &last->header, UINT64_MAX, &journal->settled, &scan, &why);
    if (status == ST_INVAL) status = ST_OK; /* that is what is mended here */
    if (status == ST_OK && !scan.checkpoint) status = state_before(journal, err);
    memcpy(report->segment, last->info.path, sizeof report->segment);
    report->cut_offset = scan.end;
    report->cut_bytes = scan.tail_bytes;
    report->last_lsn = scan.last_lsn;
    report->frames_lost = scan.tail_frames;
    if (status == ST_OK && report->cut_bytes > 0) {
        status = save_cut(journal, last, bytes, report);
        if (status == ST_OK) status = scan.checkpoint ? mend(journal, bytes, &scan) : checkpoint_again(journal, last);
        if (status != ST_OK) (void)error_set(err, status, "billing journal: %s: cannot be written", last->info.path);
    }
    mem_free(bytes);
    return status;
}

enum status journal_repair(const struct journal_config *config, struct repair_report *report, struct error *err)
{
    struct journal *journal = NULL;
    struct repair_report made = {.segment = ""};
    enum status status = journal_prepare(config, &journal, err);
    if (status == ST_OK) {
        status = segment_list_read(config->disk, journal->folder, journal->config.fallback, &journal->segments, err);
    }
    if (status == ST_OK && journal->segments.count == 0) {
        status = error_set(err, ST_NOTFOUND, "billing journal: %s holds none", journal->folder);
    }
    if (status == ST_OK) status = repair_last(journal, &made, err);
    if (status == ST_OK) *report = made;
    journal_release(journal);
    return status;
}
