/* Segments as files: which are there, making them from spares, and what stands in one. Under the journal, its recovery
 * and its reader. Functions hold no state; the caller's thread. */
#ifndef SERVER_BILLING_JOURNAL_SEGMENT_H
#define SERVER_BILLING_JOURNAL_SEGMENT_H

#include "server/billing/frame.h"
#include "server/billing/journal_state.h"

enum { SEGMENT_PATH_MAX = 512, SEGMENT_FOLDER_MAX = 440, SPARE_SLOTS = 4, SPARES_WANTED = 2 };

/* Whole reads and writes: repeat EINTR and go on after short ones. ST_IO: the error, or the file's end. */
NODISCARD enum status disk_read_all(const struct disk *disk, int fd, void *out, uint64_t length, uint64_t offset);
NODISCARD enum status disk_write_all(const struct disk *disk, int fd, const void *bytes, uint64_t length,
                                     uint64_t offset);
/* Zeros from offset on, `length` bytes. */
NODISCARD enum status disk_zero(const struct disk *disk, int fd, uint64_t length, uint64_t offset);
/* Makes a folder if it is not there, and its name durable. */
NODISCARD enum status disk_folder(const struct disk *disk, const char *path, struct error *err);

struct segment {
    struct segment_info info;
    struct segment_header header;
};
struct segment_list {
    struct segment *items; /* by rising base LSN; those that another one made void are left out */
    uint32_t count, capacity;
};
/* Every segment of both folders (fallback may be NULL). ST_INVAL: a header, a name that is not its base LSN, or a
 * number missing in their order of making; ST_PROTO: one of a newer version of this program; ST_IO, ST_NOMEM. An empty
 * list is fine. A folder that is not there has none.
 */
NODISCARD enum status segment_list_read(const struct disk *disk, const char *folder, const char *fallback,
                                        struct segment_list *list, struct error *err);
NODISCARD enum status segment_list_add(struct segment_list *list, const struct segment *segment);
void segment_list_free(struct segment_list *list);

/* A new spare in the folder. ST_LIMIT: there are enough, or no room; ST_IO. */
NODISCARD enum status spare_make(const struct disk *disk, const char *folder, uint64_t segment_bytes,
                                 struct error *err);
/* At a start: removes half-made spares, those of another size, and those that are not all zeros (a crash came while one
 * was becoming a segment); counts the rest. */
NODISCARD enum status spares_look(const struct disk *disk, const char *folder, uint64_t segment_bytes, uint32_t *count);
/* Makes a segment out of a spare (makes one when there is none; *spares is what is left): header, checkpoint frame and
 * the frames behind it, fdatasync, rename, directory fsync. So a segment is whole when it has its name, and all of it
 * is durable on ST_OK. *fd is the caller's. */
struct segment_start {
    struct segment_header header;
    const uint8_t *checkpoint, *frames;
    uint64_t checkpoint_bytes, frames_bytes; /* multiples of FRAME_ALIGN */
};
NODISCARD enum status segment_create(const struct disk *disk, const char *folder, const struct segment_start *start,
                                     int *fd, uint32_t *spares, struct segment *segment);

struct segment_scan {
    bool checkpoint;      /* its first frame is valid; if not, that is damage */
    uint64_t end;         /* offset behind the last valid frame */
    uint64_t tail_bytes;  /* from there to the last byte that is not zero */
    uint64_t unclaimed;   /* offset of the first frame that none claims as synced */
    uint64_t last_lsn;    /* base_lsn - 1: none */
    uint32_t records;     /* FINAL, GRANT, RELEASE, ENERGY */
    uint32_t tail_frames; /* with damage: whole frames behind it */
};
/* Reads a segment's bytes (segment_bytes of them) up to the first frame that is not valid, or has limit_lsn or more.
 * Frames are added to state unless it is NULL; then the checkpoint must come first. ST_INVAL: damage, not a torn tail:
 * a later frame claims what cannot be read, or a frame does not follow from those before; scan is filled in then too.
 */
NODISCARD enum status segment_scan_bytes(const uint8_t *bytes, const struct segment_header *header, uint64_t limit_lsn,
                                         struct journal_state *state, struct segment_scan *scan, const char **why);
/* Opens (DISK_WRITE or DISK_READ), checks the size and reads the whole segment; *bytes is the caller's (mem_free). */
NODISCARD enum status segment_load(const struct disk *disk, const struct segment *segment, enum disk_open how, int *fd,
                                   uint8_t **bytes, struct error *err);
/* The highest LSN that a valid frame of this segment at or behind `from` claims as synced; 0: none. *frames counts
 * them.
 */
uint64_t segment_claims(const uint8_t *bytes, uint64_t length, uint64_t from, const struct segment_header *header,
                        uint32_t *frames);

#endif
