/* Listing, making and reading segments (journal_segment.h).
 *
 *   spare-<k>.tmp  zeros, fdatasync, rename ->
 *   spare-<k>.mrs  header, checkpoint, first frames, fdatasync, rename, directory fsync ->  <base_lsn:016x>.mrj
 *
 * So a file named .mrj always has its header, its checkpoint and its whole length: no crash tears them, and a bad one
 * is damage. And when a segment takes over from a failed one, there is no moment at which a frame stands in neither. */
#include "server/billing/journal_segment.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "server/billing/journal_planted.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

enum { INTERRUPTS_MAX = 1000, ZEROS_BYTES = 1 << 18, LIST_MAX = 1 << 16 };

enum status disk_read_all(const struct disk *disk, int fd, void *out, uint64_t length, uint64_t offset)
{
    uint8_t *to = out;
    for (int interrupts = 0; length > 0;) {
        int64_t done = disk->read_at(disk->state, fd, to, length, offset);
        if (done == -EINTR && interrupts++ < INTERRUPTS_MAX) continue;
        if (done <= 0) return ST_IO;
        to += done;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
    }
    return ST_OK;
}

enum status disk_write_all(const struct disk *disk, int fd, const void *bytes, uint64_t length, uint64_t offset)
{
    const uint8_t *from = bytes;
    for (int interrupts = 0; length > 0;) {
        int64_t done = disk->write_at(disk->state, fd, from, length, offset);
        if (done == -EINTR && interrupts++ < INTERRUPTS_MAX) continue;
        if (done == -ENOSPC || done == -EDQUOT) return ST_LIMIT;
        if (done <= 0) return ST_IO;
        from += done;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
    }
    return ST_OK;
}

enum status disk_zero(const struct disk *disk, int fd, uint64_t length, uint64_t offset)
{
    static const uint8_t zeros[ZEROS_BYTES];
    while (length > 0) {
        uint64_t part = length < ZEROS_BYTES ? length : ZEROS_BYTES;
        TRY(disk_write_all(disk, fd, zeros, part, offset));
        offset += part;
        length -= part;
    }
    return ST_OK;
}

enum status disk_folder(const struct disk *disk, const char *path, struct error *err)
{
    char parent[SEGMENT_PATH_MAX];
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    if (length == 0 || length > SEGMENT_FOLDER_MAX) {
        return error_set(err, ST_INVAL, "billing journal: the folder's name has %zu bytes, at most %d are possible",
                         length, SEGMENT_FOLDER_MAX);
    }
    int made = disk->make_folder(disk->state, path);
    if (made != 0 && made != -EEXIST) {
        return error_set(err, ST_IO, "billing journal: cannot make %s (error %d)", path, -made);
    }
    while (length > 0 && path[length - 1] != '/') length--;
    while (length > 1 && path[length - 1] == '/') length--;
    (void)snprintf(parent, sizeof parent, "%.*s", length > 0 ? (int)length : 1, length > 0 ? path : ".");
    int synced = disk->sync_folder(disk->state, parent);
    if (synced != 0 && synced != -EACCES) { /* a parent that may not be read is another's, and made long ago */
        return error_set(err, ST_IO, "billing journal: cannot sync %s (error %d)", parent, -synced);
    }
    return ST_OK;
}

void segment_list_free(struct segment_list *list)
{
    mem_free(list->items);
    *list = (struct segment_list){0};
}

enum status segment_list_add(struct segment_list *list, const struct segment *segment)
{
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity == 0 ? 16 : list->capacity * 2;
        if (capacity > LIST_MAX) return ST_LIMIT;
        struct segment *items = mem_resize(list->items, capacity, sizeof *items);
        if (items == NULL) return ST_NOMEM;
        list->items = items;
        list->capacity = capacity;
    }
    uint32_t at = list->count;
    while (at > 0 && (list->items[at - 1].info.base_lsn > segment->info.base_lsn ||
                      (list->items[at - 1].info.base_lsn == segment->info.base_lsn &&
                       list->items[at - 1].info.serial > segment->info.serial))) {
        at--;
    }
    memmove(list->items + at + 1, list->items + at, (list->count - at) * sizeof *list->items);
    list->items[at] = *segment;
    list->count++;
    return ST_OK;
}

static void info_fill(struct segment *segment, const char *path)
{
    const struct segment_header *header = &segment->header;
    segment->info = (struct segment_info){.base_lsn = header->base_lsn,
                                          .serial = header->serial,
                                          .epoch = header->epoch,
                                          .producer = header->producer,
                                          .bytes = header->segment_bytes,
                                          .created_us = header->created_us,
                                          .given_up = header->given_up};
    memcpy(segment->info.uuid, header->uuid, sizeof segment->info.uuid);
    (void)snprintf(segment->info.path, sizeof segment->info.path, "%s", path);
}

struct folder_listing {
    const struct disk *disk;
    const char *folder;
    struct segment_list *list;
    struct error *err;
    enum status status;
};

/* 16 hex digits and ".mrj". */
static bool segment_name(const char *name, uint64_t *base_lsn)
{
    if (strlen(name) != 20 || strcmp(name + 16, ".mrj") != 0) return false;
    *base_lsn = 0;
    for (int i = 0; i < 16; i++) {
        const char *digit = strchr("0123456789abcdef", name[i]);
        if (digit == NULL) return false;
        *base_lsn = *base_lsn << 4 | (uint64_t)(digit - "0123456789abcdef");
    }
    return true;
}

static enum status header_load(const struct disk *disk, const char *path, uint64_t base_lsn, struct segment *segment,
                               struct error *err)
{
    uint8_t bytes[SEGMENT_HEADER_BYTES];
    const char *why = "it cannot be read";
    int fd = disk->open(disk->state, path, DISK_READ);
    if (fd == -ENOENT) return ST_NOTFOUND; /* removed since the listing */
    if (fd < 0) return error_set(err, ST_IO, "billing journal: %s: cannot be opened (error %d)", path, -fd);
    int64_t size = disk->size(disk->state, fd);
    enum status status = disk_read_all(disk, fd, bytes, sizeof bytes, 0);
    disk->close(disk->state, fd);
    if (status != ST_OK && size >= SEGMENT_HEADER_BYTES) {
        return error_set(err, ST_IO, "billing journal: %s: cannot be read", path);
    }
    if (status != ST_OK) {
        why = "it has been cut short";
    } else {
        status = segment_header_decode(bytes, &segment->header, &why);
    }
    if (status == ST_OK && segment->header.base_lsn != base_lsn) {
        status = ST_INVAL;
        why = "its name is not that of its first frame";
    }
    if (status == ST_OK && (uint64_t)size != segment->header.segment_bytes) {
        status = ST_INVAL;
        why = "its length is not the one in its header";
    }
    if (status == ST_PROTO) return error_set(err, ST_PROTO, "billing journal: %s: %s", path, why);
    if (status != ST_OK) {
        return error_set(err, ST_INVAL, "billing journal: %s: damaged: %s; take it from an archive", path, why);
    }
    info_fill(segment, path);
    return ST_OK;
}

static void visit_name(void *visitor, const char *name)
{
    struct folder_listing *listing = visitor;
    uint64_t base_lsn;
    if (listing->status != ST_OK || !segment_name(name, &base_lsn)) return;
    char path[SEGMENT_PATH_MAX];
    struct segment segment = {.header = {.uuid = ""}};
    (void)snprintf(path, sizeof path, "%s/%s", listing->folder, name);
    enum status status = header_load(listing->disk, path, base_lsn, &segment, listing->err);
    if (status == ST_NOTFOUND) return;
    listing->status = status == ST_OK ? segment_list_add(listing->list, &segment) : status;
}

/* In order of base LSN, then of making: of two with one base the first is void (nothing of it ever became durable). The
 * order of making must have no gap but before a segment that took over from a failed one. */
static enum status list_check(struct segment_list *list, struct error *err)
{
    for (uint32_t i = 1; i < list->count; i++) {
        const struct segment_info *a = &list->items[i - 1].info, *b = &list->items[i].info;
        if (b->serial > a->serial && (b->serial == a->serial + 1 || b->given_up)) continue;
        return error_set(err, ST_INVAL,
                         "billing journal: between %s and %s a segment is missing or does not belong (numbers %" PRIu64
                         " and %" PRIu64 "); take it from an archive",
                         a->path, b->path, a->serial, b->serial);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        if (i + 1 < list->count && list->items[i + 1].info.base_lsn == list->items[i].info.base_lsn) continue;
        list->items[kept++] = list->items[i];
    }
    list->count = kept;
    return ST_OK;
}

enum status segment_list_read(const struct disk *disk, const char *folder, const char *fallback,
                              struct segment_list *list, struct error *err)
{
    *list = (struct segment_list){0};
    const char *folders[] = {folder, fallback};
    enum status status = ST_OK;
    for (int i = 0; i < 2 && status == ST_OK; i++) {
        if (folders[i] == NULL) continue;
        struct folder_listing listing = {.disk = disk, .folder = folders[i], .list = list, .err = err};
        int listed = disk->list(disk->state, folders[i], visit_name, &listing);
        status = listing.status;
        if (status == ST_OK && listed != 0 && listed != -ENOENT) {
            status = error_set(err, ST_IO, "billing journal: %s: cannot be listed (error %d)", folders[i], -listed);
        }
    }
    if (status == ST_OK) status = list_check(list, err);
    if (status != ST_OK) segment_list_free(list);
    return status;
}

static void spare_path(const char *folder, unsigned slot, const char *ending, char path[SEGMENT_PATH_MAX])
{
    (void)snprintf(path, SEGMENT_PATH_MAX, "%s/spare-%u.%s", folder, slot, ending);
}

static bool exists(const struct disk *disk, const char *path)
{
    int fd = disk->open(disk->state, path, DISK_READ);
    if (fd >= 0) disk->close(disk->state, fd);
    return fd != -ENOENT;
}

static enum status spare_fill(const struct disk *disk, const char *folder, unsigned slot, int fd,
                              uint64_t segment_bytes)
{
    char half[SEGMENT_PATH_MAX], whole[SEGMENT_PATH_MAX];
    spare_path(folder, slot, "tmp", half);
    spare_path(folder, slot, "mrs", whole);
    enum status status = disk_zero(disk, fd, segment_bytes, 0);
    if (status == ST_OK && disk->sync(disk->state, fd) != 0) status = ST_IO;
    disk->close(disk->state, fd);
    if (status == ST_OK && disk->rename(disk->state, half, whole) != 0) status = ST_IO;
    if (status != ST_OK) {
        (void)disk->remove(disk->state, half);
        return status;
    }
    return disk->sync_folder(disk->state, folder) == 0 ? ST_OK : ST_IO;
}

enum status spare_make(const struct disk *disk, const char *folder, uint64_t segment_bytes, struct error *err)
{
    for (unsigned slot = 0; slot < SPARE_SLOTS; slot++) {
        char half[SEGMENT_PATH_MAX], whole[SEGMENT_PATH_MAX];
        spare_path(folder, slot, "tmp", half);
        spare_path(folder, slot, "mrs", whole);
        if (exists(disk, whole)) continue;
        int fd = disk->open(disk->state, half, DISK_CREATE);
        if (fd == -EEXIST) continue; /* another thread is at it */
        if (fd == -ENOSPC || fd == -EDQUOT) return error_set(err, ST_LIMIT, "billing journal: no room in %s", folder);
        if (fd < 0) return error_set(err, ST_IO, "billing journal: cannot make %s (error %d)", half, -fd);
        if (exists(disk, whole)) { /* made since the look above; now no one else is at this slot */
            disk->close(disk->state, fd);
            if (disk->remove(disk->state, half) != 0) return error_set(err, ST_IO, "cannot remove %s", half);
            continue;
        }
        enum status status = spare_fill(disk, folder, slot, fd, segment_bytes);
        if (status == ST_LIMIT) return error_set(err, ST_LIMIT, "billing journal: no room in %s", folder);
        if (status != ST_OK)
            return error_set(err, status, "billing journal: cannot make a spare segment in %s", folder);
        return ST_OK;
    }
    return error_set(err, ST_LIMIT, "billing journal: %s has all its spare segments", folder);
}

static bool all_zero(const struct disk *disk, int fd, uint64_t length)
{
    uint8_t bytes[32768];
    if (JOURNAL_PLANTED(DIRTY_SPARES)) return true;
    for (uint64_t at = 0; at < length;) {
        uint64_t part = length - at < sizeof bytes ? length - at : sizeof bytes;
        if (disk_read_all(disk, fd, bytes, part, at) != ST_OK || bytes[0] != 0 ||
            memcmp(bytes, bytes + 1, part - 1) != 0) {
            return false;
        }
        at += part;
    }
    return true;
}

enum status spares_look(const struct disk *disk, const char *folder, uint64_t segment_bytes, uint32_t *count)
{
    *count = 0;
    for (unsigned slot = 0; slot < SPARE_SLOTS; slot++) {
        char path[SEGMENT_PATH_MAX];
        spare_path(folder, slot, "tmp", path);
        int removed = disk->remove(disk->state, path);
        if (removed != 0 && removed != -ENOENT) return ST_IO;
        spare_path(folder, slot, "mrs", path);
        int fd = disk->open(disk->state, path, DISK_READ);
        if (fd == -ENOENT) continue;
        if (fd < 0) return ST_IO;
        bool fits = disk->size(disk->state, fd) == (int64_t)segment_bytes && all_zero(disk, fd, segment_bytes);
        disk->close(disk->state, fd);
        if (fits) {
            ++*count;
        } else if (disk->remove(disk->state, path) != 0) {
            return ST_IO;
        }
    }
    return ST_OK;
}

/* The first spare of the right size; -ENOENT: none. */
static int spare_open(const struct disk *disk, const char *folder, uint64_t segment_bytes, char path[SEGMENT_PATH_MAX])
{
    for (unsigned slot = 0; slot < SPARE_SLOTS; slot++) {
        spare_path(folder, slot, "mrs", path);
        int fd = disk->open(disk->state, path, DISK_WRITE);
        if (fd == -ENOENT) continue;
        if (fd < 0 || disk->size(disk->state, fd) == (int64_t)segment_bytes) return fd;
        disk->close(disk->state, fd);
    }
    return -ENOENT;
}

static enum status fill_and_name(const struct disk *disk, const char *folder, const struct segment_start *start, int fd,
                                 const char *spare, struct segment *segment)
{
    uint8_t bytes[SEGMENT_HEADER_BYTES];
    char path[SEGMENT_PATH_MAX];
    uint64_t frames_at = SEGMENT_HEADER_BYTES + start->checkpoint_bytes;
    segment_header_encode(&start->header, bytes);
    TRY(disk_write_all(disk, fd, bytes, sizeof bytes, 0));
    TRY(disk_write_all(disk, fd, start->checkpoint, start->checkpoint_bytes, SEGMENT_HEADER_BYTES));
    TRY(disk_write_all(disk, fd, start->frames, start->frames_bytes, frames_at));
    if (!JOURNAL_PLANTED(SKIP_HEADER_SYNC) && disk->sync(disk->state, fd) != 0) return ST_IO;
    (void)snprintf(path, sizeof path, "%s/%016" PRIx64 ".mrj", folder, start->header.base_lsn);
    if (disk->rename(disk->state, spare, path) != 0) return ST_IO;
    if (!JOURNAL_PLANTED(SKIP_FOLDER_SYNC) && disk->sync_folder(disk->state, folder) != 0) return ST_IO;
    segment->header = start->header;
    info_fill(segment, path);
    return ST_OK;
}

enum status segment_create(const struct disk *disk, const char *folder, const struct segment_start *start, int *fd,
                           uint32_t *spares, struct segment *segment)
{
    char spare[SEGMENT_PATH_MAX];
    int opened = spare_open(disk, folder, start->header.segment_bytes, spare);
    if (opened == -ENOENT) {
        *spares = 0;
        TRY(spare_make(disk, folder, start->header.segment_bytes, NULL));
        opened = spare_open(disk, folder, start->header.segment_bytes, spare);
    } else if (opened >= 0 && *spares > 0) {
        --*spares;
    }
    if (opened < 0) return ST_IO;
    enum status status = fill_and_name(disk, folder, start, opened, spare, segment);
    if (status != ST_OK) {
        disk->close(disk->state, opened);
        (void)disk->remove(disk->state, spare); /* no longer all zeros; a start would see that too */
        return status;
    }
    *fd = opened;
    return ST_OK;
}

uint64_t segment_claims(const uint8_t *bytes, uint64_t length, uint64_t from, const struct segment_header *header,
                        uint32_t *frames)
{
    uint64_t highest = 0;
    *frames = 0;
    for (uint64_t at = frame_aligned(from); at + FRAME_HEADER_BYTES <= length; at += FRAME_ALIGN) {
        uint64_t word;
        memcpy(&word, bytes + at, sizeof word);
        if (word == 0) continue;
        struct frame frame;
        uint64_t claimed, needed;
        if (frame_look(bytes + at, length - at, length - at, header, &frame, &claimed, &needed) != FRAME_GOOD) continue;
        ++*frames;
        if (claimed > highest) highest = claimed;
    }
    return highest;
}

static uint64_t tail_of(const uint8_t *bytes, uint64_t length, uint64_t end)
{
    while (length > end && bytes[length - 1] == 0) length--;
    return length - end;
}

/* Where the first frame with an LSN above `claimed` stands. The checkpoint was durable before the segment's name. */
static uint64_t unclaimed_from(const uint8_t *bytes, const struct segment_scan *scan, uint64_t claimed)
{
    uint64_t at = SEGMENT_HEADER_BYTES;
    while (at < scan->end && frame_lsn(bytes + at) <= claimed) at += frame_aligned(frame_length(bytes + at));
    return at;
}

/* The valid frames from the start, one after the other; *highest is what they claim as synced. */
static enum status scan_frames(const uint8_t *bytes, const struct segment_header *header, uint64_t limit_lsn,
                               struct journal_state *state, struct segment_scan *scan, uint64_t *highest,
                               const char **why)
{
    const uint64_t length = header->segment_bytes;
    for (;;) {
        struct frame frame;
        uint64_t claimed, needed;
        const uint8_t *at = bytes + scan->end;
        if (frame_look(at, length - scan->end, length - scan->end, header, &frame, &claimed, &needed) != FRAME_GOOD) {
            *why = "its checkpoint is not valid";
            return scan->checkpoint ? ST_OK : ST_INVAL;
        }
        if (!scan->checkpoint) {
            *why = "its checkpoint is not valid";
            if (frame.type != FRAME_CHECKPOINT || frame.lsn != header->base_lsn - 1) return ST_INVAL;
            if (state != NULL) TRY(state_checkpoint_load(state, &frame));
            scan->checkpoint = true;
        } else {
            if (frame.lsn != scan->last_lsn + 1 || frame.lsn >= limit_lsn) return ST_OK;
            if (state != NULL) TRY(state_apply(state, &frame, false, why));
            scan->last_lsn = frame.lsn;
            scan->records += frame_is_record(frame.type);
        }
        if (claimed > *highest) *highest = claimed;
        scan->end += frame_aligned(FRAME_HEADER_BYTES + frame.length);
    }
}

enum status segment_scan_bytes(const uint8_t *bytes, const struct segment_header *header, uint64_t limit_lsn,
                               struct journal_state *state, struct segment_scan *scan, const char **why)
{
    const uint64_t length = header->segment_bytes;
    uint64_t highest = 0;
    *scan = (struct segment_scan){.end = SEGMENT_HEADER_BYTES, .last_lsn = header->base_lsn - 1};
    enum status status = scan_frames(bytes, header, limit_lsn, state, scan, &highest, why);
    scan->unclaimed = unclaimed_from(bytes, scan, highest);
    if (limit_lsn != UINT64_MAX) return status; /* what follows is void, or the caller sees that it is too little */
    scan->tail_bytes = tail_of(bytes, length, scan->end);
    if (scan->tail_bytes == 0) return status;
    uint64_t claimed = segment_claims(bytes, length, scan->end, header, &scan->tail_frames);
    TRY(status);
    if (claimed > scan->last_lsn) {
        *why = "a frame that had been synced is not valid";
        return ST_INVAL;
    }
    return ST_OK;
}

enum status segment_load(const struct disk *disk, const struct segment *segment, enum disk_open how, int *fd,
                         uint8_t **bytes, struct error *err)
{
    const char *path = segment->info.path;
    int opened = disk->open(disk->state, path, how);
    if (opened == -ENOENT) return error_set(err, ST_NOTFOUND, "billing journal: %s is not there any more", path);
    if (opened < 0) return error_set(err, ST_IO, "billing journal: %s: cannot be opened (error %d)", path, -opened);
    uint8_t *memory = mem_alloc(1, segment->info.bytes);
    enum status status = ST_NOMEM;
    if (memory != NULL) status = disk_read_all(disk, opened, memory, segment->info.bytes, 0);
    if (status != ST_OK) {
        mem_free(memory);
        disk->close(disk->state, opened);
        return error_set(err, status, "billing journal: %s: %s", path,
                         status == ST_NOMEM ? "no memory to read it" : "cannot be read");
    }
    *fd = opened;
    *bytes = memory;
    return ST_OK;
}
