/* Frames in LSN order, over segments (journal_reader.h).
 *
 * A window of the file is read at a time; what is not valid in it is read again once before it counts, because the
 * writer may have been there since. The next segment is looked for only where the present one has no next frame, so
 * following a live journal lists the folder once a segment. When a file fails, the frames whose fdatasync failed may
 * still be read from it: the same stand in the segment that takes over (journal.c), where they are then left out, and
 * its checkpoint with them. */
#include "server/billing/journal_segment.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

enum { WINDOW_BYTES = 1 << 20, FOLLOW_BYTES = 1 << 15 };

struct journal_reader {
    const struct disk *disk;
    char folder[SEGMENT_FOLDER_MAX + 1], fallback[SEGMENT_FOLDER_MAX + 1];
    bool has_fallback;
    struct segment_list segments;
    uint32_t segment_idx;
    int fd;
    uint64_t offset;    /* of the next frame in its segment */
    uint64_t next_lsn;  /* of the next frame; the checkpoint's when it comes next */
    uint64_t given_lsn; /* frames up to here were read in a segment that failed; 0: none comes a second time */
    bool checkpoint_next;
    uint8_t *window;
    uint64_t window_at, window_length, window_capacity;
    uint64_t tail_bytes;
};

static const struct segment *current(const struct journal_reader *reader)
{
    return &reader->segments.items[reader->segment_idx];
}

static enum status damaged(const struct journal_reader *reader, uint64_t offset, const char *why, struct error *err)
{
    return error_set(err, ST_INVAL, "billing journal: %s: damaged at byte %" PRIu64 ": %s", current(reader)->info.path,
                     offset, why);
}

static enum status list_again(struct journal_reader *reader, struct error *err)
{
    struct segment_list list;
    uint64_t serial = reader->segments.count > 0 ? current(reader)->info.serial : 0;
    TRY(segment_list_read(reader->disk, reader->folder, reader->has_fallback ? reader->fallback : NULL, &list, err));
    uint32_t idx = 0;
    while (idx < list.count && list.items[idx].info.serial != serial) idx++;
    if (reader->segments.count > 0 && idx == list.count) {
        segment_list_free(&list);
        return error_set(err, ST_NOTFOUND, "billing journal: %s is not there any more", current(reader)->info.path);
    }
    segment_list_free(&reader->segments);
    reader->segments = list;
    reader->segment_idx = idx;
    return ST_OK;
}

static enum status enter(struct journal_reader *reader, uint32_t idx, struct error *err)
{
    const char *path = reader->segments.items[idx].info.path;
    int fd = reader->disk->open(reader->disk->state, path, DISK_READ);
    if (fd < 0) {
        return error_set(err, fd == -ENOENT ? ST_NOTFOUND : ST_IO, "billing journal: %s: cannot be opened (error %d)",
                         path, -fd);
    }
    if (reader->fd >= 0) reader->disk->close(reader->disk->state, reader->fd);
    reader->fd = fd;
    reader->segment_idx = idx;
    reader->offset = SEGMENT_HEADER_BYTES;
    reader->next_lsn = current(reader)->info.base_lsn - 1;
    reader->checkpoint_next = true;
    reader->window_length = 0;
    return ST_OK;
}

enum status journal_reader_open(const struct disk *disk, const char *folder, const char *fallback, uint64_t from_lsn,
                                struct journal_reader **reader, struct error *err)
{
    if (strlen(folder) > SEGMENT_FOLDER_MAX || (fallback != NULL && strlen(fallback) > SEGMENT_FOLDER_MAX)) {
        return error_set(err, ST_INVAL, "billing journal: the folder's name is too long");
    }
    struct journal_reader *made = mem_alloc(1, sizeof *made);
    if (made == NULL) return error_set(err, ST_NOMEM, "billing journal: no memory");
    made->disk = disk;
    made->fd = -1;
    made->has_fallback = fallback != NULL;
    (void)snprintf(made->folder, sizeof made->folder, "%s", folder);
    if (fallback != NULL) (void)snprintf(made->fallback, sizeof made->fallback, "%s", fallback);
    made->window_capacity = WINDOW_BYTES;
    made->window = mem_resize(NULL, 1, made->window_capacity); /* written before it is read */
    enum status status = made->window == NULL ? error_set(err, ST_NOMEM, "billing journal: no memory") : ST_OK;
    if (status == ST_OK) status = list_again(made, err);
    if (status == ST_OK && made->segments.count == 0) {
        status = error_set(err, ST_NOTFOUND, "billing journal: %s holds none", folder);
    }
    if (status == ST_OK && from_lsn > 0 && from_lsn < made->segments.items[0].info.base_lsn) {
        status =
            error_set(err, ST_NOTFOUND, "billing journal: frame %" PRIu64 " is older than the oldest segment kept, %s",
                      from_lsn, made->segments.items[0].info.path);
    }
    uint32_t idx = 0;
    while (status == ST_OK && idx + 1 < made->segments.count &&
           made->segments.items[idx + 1].info.base_lsn <= from_lsn) {
        idx++;
    }
    if (status == ST_OK) status = enter(made, idx, err);
    if (status != ST_OK) {
        journal_reader_close(made);
        return status;
    }
    *reader = made;
    return ST_OK;
}

void journal_reader_close(struct journal_reader *reader)
{
    if (reader == NULL) return;
    if (reader->fd >= 0) reader->disk->close(reader->disk->state, reader->fd);
    segment_list_free(&reader->segments);
    mem_free(reader->window);
    mem_free(reader);
}

/* The window begins at the reader's offset and holds at least `wanted` bytes, or all up to the segment's end. */
static enum status window_fill(struct journal_reader *reader, uint64_t wanted, uint64_t usual, struct error *err)
{
    uint64_t left = current(reader)->info.bytes - reader->offset;
    if (wanted > reader->window_capacity) {
        uint8_t *window = mem_resize(reader->window, wanted, 1);
        if (window == NULL) return error_set(err, ST_NOMEM, "billing journal: no memory");
        reader->window = window;
        reader->window_capacity = wanted;
    }
    uint64_t length = wanted > usual ? wanted : usual;
    if (length > left) length = left;
    reader->window_length = 0;
    if (disk_read_all(reader->disk, reader->fd, reader->window, length, reader->offset) != ST_OK) {
        return error_set(err, ST_IO, "billing journal: %s: cannot be read", current(reader)->info.path);
    }
    reader->window_at = reader->offset;
    reader->window_length = length;
    return ST_OK;
}

/* Looks at the next frame's place; reads it anew when the window's bytes are no valid frame. ST_NOTFOUND: there is
 * none. at_rest: much will follow; else the writer is close ahead, and little is read at a time. */
static enum status look(struct journal_reader *reader, bool at_rest, struct frame *frame, struct error *err)
{
    const struct segment *segment = current(reader);
    uint64_t room = segment->info.bytes - reader->offset;
    for (bool fresh = false;; fresh = true) {
        uint64_t claimed, needed = FRAME_HEADER_BYTES, into = reader->offset - reader->window_at;
        bool inside = reader->offset >= reader->window_at && into <= reader->window_length;
        enum frame_look looked =
            frame_look(reader->window + (inside ? into : 0), inside ? reader->window_length - into : 0, room,
                       &segment->header, frame, &claimed, &needed);
        if (looked == FRAME_GOOD) {
            bool fits = reader->checkpoint_next == (frame->type == FRAME_CHECKPOINT);
            if (fits && frame->lsn == reader->next_lsn) return ST_OK;
            looked = FRAME_BAD;
        }
        if (looked == FRAME_BAD && fresh) return ST_NOTFOUND;
        TRY(window_fill(reader, needed, at_rest ? WINDOW_BYTES : FOLLOW_BYTES, err));
    }
}

/* From the reader's offset: bytes up to the last that is not zero, and what frames there claim. */
static enum status rest_of_segment(struct journal_reader *reader, uint64_t *tail_bytes, uint64_t *claimed,
                                   struct error *err)
{
    const struct segment *segment = current(reader);
    uint64_t whole = segment->info.bytes - reader->offset, length = whole;
    uint32_t frames;
    uint8_t *bytes = mem_alloc(1, whole);
    if (bytes == NULL) return error_set(err, ST_NOMEM, "billing journal: no memory");
    if (disk_read_all(reader->disk, reader->fd, bytes, whole, reader->offset) != ST_OK) {
        mem_free(bytes);
        return error_set(err, ST_IO, "billing journal: %s: cannot be read", segment->info.path);
    }
    while (length > 0 && bytes[length - 1] == 0) length--;
    *tail_bytes = length;
    *claimed = length == 0 ? 0 : segment_claims(bytes, whole, 0, &segment->header, &frames);
    mem_free(bytes);
    return ST_OK;
}

/* The present segment has no next frame: goes to the next segment (ST_OK), or tells what that means. */
static enum status at_end(struct journal_reader *reader, uint64_t until_lsn, struct error *err)
{
    uint64_t tail_bytes, claimed;
    if (reader->checkpoint_next) return damaged(reader, reader->offset, "its checkpoint is not valid", err);
    if (reader->segment_idx + 1 == reader->segments.count) TRY(list_again(reader, err));
    if (reader->segment_idx + 1 < reader->segments.count) {
        const struct segment_info *next = &current(reader)[1].info;
        bool again = next->given_up && next->base_lsn < reader->next_lsn;
        if (next->base_lsn != reader->next_lsn && !again) {
            return damaged(reader, reader->offset, "a frame is not valid, or missing", err);
        }
        if (again) reader->given_lsn = reader->next_lsn - 1;
        if (!next->given_up) {
            TRY(rest_of_segment(reader, &tail_bytes, &claimed, err));
            if (tail_bytes > 0) return damaged(reader, reader->offset, "bytes behind its last frame", err);
        }
        return enter(reader, reader->segment_idx + 1, err);
    }
    if (until_lsn != UINT64_MAX) return damaged(reader, reader->offset, "a frame is not valid, or missing", err);
    TRY(rest_of_segment(reader, &tail_bytes, &claimed, err));
    if (claimed >= reader->next_lsn)
        return damaged(reader, reader->offset, "a frame that had been synced is not valid", err);
    reader->tail_bytes = tail_bytes;
    return ST_AGAIN;
}

/* Whether the next segment begins here: what the present one may hold behind is void. */
static bool superseded(const struct journal_reader *reader)
{
    return reader->segment_idx + 1 < reader->segments.count && !reader->checkpoint_next &&
           current(reader)[1].info.base_lsn <= reader->next_lsn;
}

enum status journal_reader_next(struct journal_reader *reader, uint64_t until_lsn, struct frame *frame,
                                struct error *err)
{
    for (;;) {
        if (reader->next_lsn > until_lsn) return ST_AGAIN;
        enum status status = superseded(reader) ? ST_NOTFOUND : look(reader, until_lsn == UINT64_MAX, frame, err);
        if (status == ST_NOTFOUND) {
            TRY(at_end(reader, until_lsn, err));
            continue;
        }
        if (status != ST_OK) return status;
        frame->segment_lsn = current(reader)->info.base_lsn;
        frame->offset = reader->offset;
        reader->offset += frame_aligned(FRAME_HEADER_BYTES + frame->length);
        reader->next_lsn++;
        reader->checkpoint_next = false;
        reader->tail_bytes = 0;
        if (reader->given_lsn == 0) return ST_OK;
        if (frame->lsn == reader->given_lsn && frame->type != FRAME_CHECKPOINT) reader->given_lsn = 0; /* the last */
    }
}

const struct segment_info *journal_reader_segment(const struct journal_reader *reader)
{
    return &current(reader)->info;
}

uint64_t journal_reader_tail(const struct journal_reader *reader)
{
    return reader->tail_bytes;
}

enum status journal_segments(const struct disk *disk, const char *folder, const char *fallback,
                             struct segment_info *segments, uint32_t max, uint32_t *count, struct error *err)
{
    struct segment_list list;
    TRY(segment_list_read(disk, folder, fallback, &list, err));
    enum status status = ST_OK;
    if (list.count > max) {
        status =
            error_set(err, ST_LIMIT, "billing journal: %s holds %u segments, more than %u", folder, list.count, max);
    } else {
        for (uint32_t i = 0; i < list.count; i++) segments[i] = list.items[i].info;
        *count = list.count;
    }
    segment_list_free(&list);
    return status;
}

enum status journal_newest(const struct disk *disk, const char *folder, const char *fallback,
                           struct segment_info *newest, struct error *err)
{
    struct segment_list list;
    TRY(segment_list_read(disk, folder, fallback, &list, err));
    enum status status = list.count > 0 ? ST_OK : error_set(err, ST_NOTFOUND, "%.300s holds no journal", folder);
    if (status == ST_OK) *newest = list.items[list.count - 1].info;
    segment_list_free(&list);
    return status;
}
