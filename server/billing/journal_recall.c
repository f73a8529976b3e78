/* See journal_recall.h. A segment's first frame tells when it begins; the last one that begins before since_us is the
 * first to be read. */
#include "server/billing/journal_recall.h"

#include "runtime/base/mem.h"

#include <string.h>

enum { SEGMENTS_MAX = 16384 };

/* When the segment with that base begins; what cannot be read begins at once: better read too much. */
static int64_t begins_us(const struct disk *disk, const char *folder, const char *fallback, uint64_t base_lsn)
{
    struct journal_reader *reader;
    struct frame frame;
    int64_t begins = INT64_MAX;
    if (journal_reader_open(disk, folder, fallback, base_lsn, &reader, NULL) != ST_OK) return begins;
    if (journal_reader_next(reader, UINT64_MAX, &frame, NULL) == ST_OK) begins = frame.wall_us;
    journal_reader_close(reader);
    return begins;
}

static enum status first_segment(const struct disk *disk, const char *folder, const char *fallback, int64_t since_us,
                                 uint64_t *base_lsn, struct error *err)
{
    uint32_t count = 0;
    struct segment_info *segments = mem_alloc(SEGMENTS_MAX, sizeof *segments);
    if (!segments) return error_set(err, ST_NOMEM, "out of memory");
    enum status status = journal_segments(disk, folder, fallback, segments, SEGMENTS_MAX, &count, err);
    while (status == ST_OK && count > 1 && begins_us(disk, folder, fallback, segments[count - 1].base_lsn) > since_us)
        count--;
    if (status == ST_OK) *base_lsn = count ? segments[count - 1].base_lsn : 0;
    mem_free(segments);
    return status;
}

static bool has_key(const struct record *record)
{
    static const uint8_t none[sizeof record->charge.idempotency];
    return memcmp(record->charge.idempotency, none, sizeof none) != 0;
}

enum status journal_recall(const struct disk *disk, const char *folder, const char *fallback, int64_t since_us,
                           uint64_t until_lsn, const _Atomic bool *stop,
                           void (*visit)(void *state, const struct record *record), void *state, struct error *err)
{
    struct journal_reader *reader;
    struct record record;
    struct frame frame;
    uint64_t from_lsn = 0;
    TRY(first_segment(disk, folder, fallback, since_us, &from_lsn, err));
    TRY(journal_reader_open(disk, folder, fallback, from_lsn, &reader, err));
    enum status status;
    while ((status = journal_reader_next(reader, until_lsn, &frame, err)) == ST_OK) {
        if (stop && *stop) {
            status = error_set(err, ST_CANCELED, "told to stop");
            break;
        }
        if (frame.type != FRAME_FINAL) continue;
        status = record_decode(frame.payload, frame.length, &record, err);
        if (status != ST_OK) break;
        if (record.kind == RECORD_CHARGED && record.ended_us >= since_us && has_key(&record)) visit(state, &record);
    }
    journal_reader_close(reader);
    return status == ST_AGAIN ? ST_OK : status;
}
