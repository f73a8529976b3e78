/* What files and batches are on disk, in a folder of their own (0700, files 0600):
 *
 *   file-ID        the bytes of a file                        file-ID.meta    its object and its owner
 *   batch_ID.meta  a batch's object and its owner             batch_ID.log    its results, a frame a line of the input
 *   lock           who serves from this folder                *.tmp, *.part   unfinished; removed at the next start
 *
 *   frame: len u32 | crc32c u32 of all that follows | line u32 | kind u8, 3 x 0 | len bytes
 *
 * B1  A .meta is replaced whole (disk_file.h): what a client was told of is there after whatever end.
 * B2  A log only grows, by write and fdatasync. A frame that is not whole, or whose sum is wrong, ends it: what stands
 *     behind is dropped, and the log written anew without it before anything is appended.
 * B3  A line has one result: of two frames for a line the first counts.
 * B4  An output file is made from the log under ids that the .meta names already, then its .meta, then the batch's; the
 *     log goes last. So whatever is cut off is made again, the same.
 *
 * These files hold what customers ask and are answered, in clear: it is what they are for. Nothing of it goes
 * elsewhere. Any thread, one at a time for an object; io over struct disk. */
#ifndef SERVER_BATCH_BATCH_DISK_H
#define SERVER_BATCH_BATCH_DISK_H

#include "server/batch/batch_record.h"
#include "server/billing/disk.h"

/* The machine's, whose new files are 0600 and folders 0700. Static. */
const struct disk *batch_disk_system(void);

struct batch_folder {
    const struct disk *disk;
    const char *path;
    const _Atomic bool *stop; /* set: long work ends with ST_CANCELED */
};

enum batch_line_state {
    LINE_TODO,
    LINE_AWAY, /* in the pool, batch_pool.c */
    LINE_RUNS,
    LINE_SAVED, /* not yet durable */
    LINE_DONE,
    LINE_FAILED
};

struct batch_line { /* of an input file; empty lines are none */
    uint64_t offset;
    uint32_t length, number;               /* bytes without the line feed; from 1 */
    uint32_t prompt_tokens, output_tokens; /* for the plan: as measured, else by its bytes and what it asks for */
    uint8_t state, tries;
    bool kept;   /* it is offered to no pool (any more) */
    bool pooled; /* its result is in Redis */
};

struct batch_lines {
    struct batch_line *items;
    uint32_t count, capacity;
};

/* Makes and locks it; *lock_fd is closed by the caller. ST_IO: err says what, another process with the lock too. */
NODISCARD enum status batch_folder_open(const struct batch_folder *folder, int *lock_fd, struct error *err);

/* visit: the text of each "<prefix>*.meta" that is whole, once. Removes what no .meta names, and what is unfinished. */
NODISCARD enum status batch_folder_load(const struct batch_folder *folder, const char *prefix,
                                        void (*visit)(void *state, const char *text, size_t length), void *state,
                                        struct error *err);
NODISCARD enum status batch_meta_write(const struct batch_folder *folder, const char *id, const struct buf *text,
                                       struct error *err);
/* ".meta", then the bytes and the log. What is not there is no failure. */
NODISCARD enum status batch_remove(const struct batch_folder *folder, const char *id, struct error *err);

/* A new file's bytes: begin, write.., end (durable under its id) or drop. */
struct batch_writer {
    const struct batch_folder *folder;
    int fd;
    uint64_t bytes;
    char id[BATCH_ID_MAX + 1];
};
NODISCARD enum status batch_write_begin(struct batch_writer *writer, const struct batch_folder *folder, const char *id,
                                        struct error *err);
NODISCARD enum status batch_write(struct batch_writer *writer, const void *bytes, size_t length, struct error *err);
NODISCARD enum status batch_write_end(struct batch_writer *writer, struct error *err);
void batch_write_drop(struct batch_writer *writer); /* after any failure, and after end: nothing */

/* Up to `size` bytes at an offset; *got 0: the end. */
NODISCARD enum status batch_read_at(const struct batch_folder *folder, const char *id, uint64_t offset, void *out,
                                    size_t size, size_t *got, struct error *err);

/* Tells exactly what a request will take: its prompt, and its answer at most. body: JSON text. NULL: nothing can be
 * measured; false: this body cannot, and its line is estimated (when it runs it gets its error, or its model). */
struct batch_gauge {
    bool (*measure)(void *state, const struct buf *body, uint32_t *prompt_tokens, uint32_t *output_tokens);
    void *state;
};

/* Reads an input file once: where its lines are, and what is wrong with them (items of errors.data, at most 100). */
NODISCARD enum status batch_scan(const struct batch_folder *folder, const struct batch_info *info,
                                 const struct batch_gauge *gauge, struct batch_lines *lines, struct buf *errors,
                                 struct error *err);
/* A line's custom_id and its body as JSON text, the line having passed batch_scan. */
NODISCARD enum status batch_line_read(const struct batch_folder *folder, const char *input_id,
                                      const struct batch_line *line, char custom_id[BATCH_CUSTOM_ID_MAX + 1],
                                      struct buf *body, struct error *err);

enum batch_frame_kind { FRAME_META, FRAME_DONE, FRAME_FAILED };

/* Appends a frame to out. */
void batch_frame(enum batch_frame_kind kind, uint32_t line, const void *bytes, size_t length, struct buf *out);
/* The line of an output file. body: JSON text (a newline in it becomes a space), NULL with code and message: the line
 * has no response. */
void batch_result_line(const char *custom_id, int http_status, const char *request_id, const struct buf *body,
                       const char *code, const char *message, struct buf *out);

/* Marks the lines that the log has, LINE_DONE or LINE_FAILED, and repairs it (B2); *length: its bytes. */
NODISCARD enum status batch_log_load(const struct batch_folder *folder, const char *id, struct batch_lines *lines,
                                     uint64_t *length, struct error *err);
/* After an append that failed: the log anew up to `length`, in another file; what an fsync could not write may look
 * written in this one. */
NODISCARD enum status batch_log_renew(const struct batch_folder *folder, const char *id, uint64_t length,
                                      struct error *err);
NODISCARD enum status batch_log_append(const struct batch_folder *folder, const char *id, const struct buf *frames,
                                       uint64_t *length, struct error *err);
void batch_log_drop(const struct batch_folder *folder, const char *id); /* it was not needed any more */
/* B4: output and error files from the log; lines without a result become errors with this code. *info gets its counts,
 * and loses the id of a file that would be empty. Then the metas; not the batch's own. */
NODISCARD enum status batch_finalize(const struct batch_folder *folder, struct batch_info *info,
                                     const struct batch_lines *lines, int64_t now_s, struct file_info *output,
                                     struct file_info *error_file, struct error *err);

#endif
