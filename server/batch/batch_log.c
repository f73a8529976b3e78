/* The results of a batch: frames, the log, and the files made of it; see batch_disk.h. */
#include "server/batch/batch_parts.h"

#include "runtime/base/crc32c.h"
#include "runtime/base/mem.h"
#include "server/billing/bytes.h"

#include <errno.h>
#include <string.h>

enum { FRAME_BYTES_MAX = 268435456, COPY_BYTES = 1048576 };

void batch_frame(enum batch_frame_kind kind, uint32_t line, const void *bytes, size_t length, struct buf *out)
{
    uint8_t head[BATCH_FRAME_HEAD] = {0};
    struct byte_writer to = {.bytes = head + 8, .capacity = 8};
    put_u32(&to, line);
    put_u8(&to, (uint8_t)kind);
    uint32_t crc = crc32c_extend(crc32c(head + 8, 8), bytes, length);
    to = (struct byte_writer){.bytes = head, .capacity = 8};
    put_u32(&to, (uint32_t)length);
    put_u32(&to, crc);
    if (length > FRAME_BYTES_MAX) out->failed = true;
    buf_append(out, head, sizeof head);
    buf_append(out, bytes, length);
}

static uint32_t number_at(const char *bytes)
{
    uint32_t number = 0;
    for (int i = 3; i >= 0; i--) number = number << 8 | (uint8_t)bytes[i];
    return number;
}

bool batch_frame_head(const char *bytes, struct batch_frame_head *head)
{
    *head = (struct batch_frame_head){.length = number_at(bytes),
                                      .crc = number_at(bytes + 4),
                                      .line = number_at(bytes + 8),
                                      .kind = (uint8_t)bytes[12]};
    return head->length <= FRAME_BYTES_MAX && head->kind <= FRAME_FAILED;
}

bool batch_frame_good(const struct batch_frame_head *head, const char *head_bytes, const char *payload)
{
    return crc32c_extend(crc32c(head_bytes + 8, 8), payload, head->length) == head->crc;
}

void batch_result_line(const char *custom_id, int http_status, const char *request_id, const struct buf *body,
                       const char *code, const char *message, struct buf *out)
{
    char id[BATCH_ID_MAX + 1];
    batch_make_id("batch_req_", id);
    buf_append_format(out, "{\"id\":\"%s\",\"custom_id\":", id);
    buf_append_json_string(out, custom_id, strlen(custom_id));
    if (body) {
        buf_append_format(out, ",\"response\":{\"status_code\":%d,\"request_id\":\"%s\",\"body\":", http_status,
                          request_id);
        size_t from = out->length;
        buf_append(out, body->data, body->length);
        for (size_t i = from; buf_ok(out) && i < out->length; i++)
            if (out->data[i] == '\n' || out->data[i] == '\r') out->data[i] = ' ';
        buf_append_text(out, "},\"error\":null}\n");
        return;
    }
    buf_append_format(out, ",\"response\":null,\"error\":{\"code\":\"%s\",\"message\":", code);
    buf_append_json_string(out, message, strlen(message));
    buf_append_text(out, "}}\n");
}

/* ---- the log ---- */

struct log_reader {
    const struct disk *disk;
    int fd; /* -1: there is no log */
    uint64_t offset;
    struct buf frame; /* head and payload of the current one */
    struct batch_frame_head head;
};

static enum status log_open(const struct batch_folder *folder, const char *id, struct log_reader *reader,
                            struct error *err)
{
    char path[BATCH_PATH_BYTES];
    *reader = (struct log_reader){.disk = folder->disk, .fd = -1};
    if (!batch_path(folder, id, ".log", path)) return batch_path_long(err);
    int fd = folder->disk->open(folder->disk->state, path, DISK_READ);
    if (fd == -ENOENT) return ST_OK;
    if (fd < 0) return batch_io_failed(err, "open a log", fd);
    reader->fd = fd;
    return ST_OK;
}

static void log_close(struct log_reader *reader)
{
    if (reader->fd >= 0) reader->disk->close(reader->disk->state, reader->fd);
    buf_free(&reader->frame);
}

static enum status read_exactly(struct log_reader *reader, size_t length, uint64_t offset, bool *whole,
                                struct error *err)
{
    size_t done = 0;
    *whole = false;
    if (!buf_reserve(&reader->frame, length)) return error_set(err, ST_NOMEM, "out of memory");
    while (done < length) {
        int64_t got =
            reader->disk->read_at(reader->disk->state, reader->fd, reader->frame.data + reader->frame.length + done,
                                  length - done, offset + done);
        if (got == -EINTR) continue;
        if (got < 0) return batch_io_failed(err, "read a log", got);
        if (got == 0) return ST_OK;
        done += (size_t)got;
    }
    reader->frame.length += length;
    *whole = true;
    return ST_OK;
}

/* The next whole frame; *found false: there is none, `offset` is where the good part ends (B2). */
static enum status log_next(struct log_reader *reader, bool *found, struct error *err)
{
    bool whole;
    *found = false;
    if (reader->fd < 0) return ST_OK;
    buf_clear(&reader->frame);
    TRY(read_exactly(reader, BATCH_FRAME_HEAD, reader->offset, &whole, err));
    if (!whole || !batch_frame_head(reader->frame.data, &reader->head)) return ST_OK;
    int64_t size = reader->disk->size(reader->disk->state, reader->fd);
    if (size < 0) return batch_io_failed(err, "read a log", size);
    if ((uint64_t)size - reader->offset - BATCH_FRAME_HEAD < reader->head.length) return ST_OK;
    TRY(read_exactly(reader, reader->head.length, reader->offset + BATCH_FRAME_HEAD, &whole, err));
    if (!whole || reader->head.kind == FRAME_META ||
        !batch_frame_good(&reader->head, reader->frame.data, reader->frame.data + BATCH_FRAME_HEAD))
        return ST_OK;
    reader->offset += BATCH_FRAME_HEAD + reader->head.length;
    *found = true;
    return ST_OK;
}

static enum status copy_start(const struct batch_folder *folder, const struct log_reader *reader, int to_fd,
                              uint64_t length, struct error *err)
{
    char *piece = mem_alloc(COPY_BYTES, 1);
    uint64_t at = 0;
    enum status status = piece ? ST_OK : error_set(err, ST_NOMEM, "out of memory");
    while (status == ST_OK && at < length) {
        size_t want = length - at < COPY_BYTES ? (size_t)(length - at) : COPY_BYTES;
        int64_t got = reader->disk->read_at(reader->disk->state, reader->fd, piece, want, at);
        if (got == -EINTR) continue;
        if (got <= 0)
            status = batch_io_failed(err, "read a log", got == 0 ? -EIO : got);
        else
            status = batch_write_all(folder->disk, to_fd, piece, (size_t)got, at, err);
        if (status == ST_OK) at += (uint64_t)got;
    }
    mem_free(piece);
    int result = status == ST_OK ? folder->disk->sync(folder->disk->state, to_fd) : 0;
    return result < 0 ? batch_io_failed(err, "fsync", result) : status;
}

/* B2: the log without its torn end, in its place. */
static enum status repair(const struct batch_folder *folder, const char *id, const struct log_reader *reader,
                          struct error *err)
{
    const struct disk *disk = folder->disk;
    char path[BATCH_PATH_BYTES], temporary[BATCH_PATH_BYTES];
    if (!batch_path(folder, id, ".log", path) || !batch_path(folder, id, ".log.tmp", temporary))
        return batch_path_long(err);
    (void)disk->remove(disk->state, temporary);
    int fd = disk->open(disk->state, temporary, DISK_CREATE);
    if (fd < 0) return batch_io_failed(err, "create a log", fd);
    enum status status = copy_start(folder, reader, fd, reader->offset, err);
    disk->close(disk->state, fd);
    TRY(status);
    int result = disk->rename(disk->state, temporary, path);
    if (result >= 0) result = disk->sync_folder(disk->state, folder->path);
    return result < 0 ? batch_io_failed(err, "replace a log", result) : ST_OK;
}

/* The state that a frame gives its line, once (B3). */
static bool take_frame(const struct batch_frame_head *head, struct batch_lines *lines)
{
    if (head->line >= lines->count || lines->items[head->line].state != LINE_TODO) return false;
    lines->items[head->line].state = head->kind == FRAME_DONE ? LINE_DONE : LINE_FAILED;
    return true;
}

enum status batch_log_load(const struct batch_folder *folder, const char *id, struct batch_lines *lines,
                           uint64_t *length, struct error *err)
{
    struct log_reader reader;
    bool found = true;
    *length = 0;
    TRY(log_open(folder, id, &reader, err));
    enum status status = ST_OK;
    while (status == ST_OK && found) {
        status = log_next(&reader, &found, err);
        if (status == ST_OK && found) (void)take_frame(&reader.head, lines);
    }
    if (status == ST_OK && reader.fd >= 0) { /* a killed process may have written what it did not sync */
        int result = reader.disk->sync(reader.disk->state, reader.fd);
        if (result >= 0) result = reader.disk->sync_folder(reader.disk->state, folder->path);
        if (result < 0) status = batch_io_failed(err, "fsync", result);
    }
    if (status == ST_OK && reader.fd >= 0) {
        int64_t size = reader.disk->size(reader.disk->state, reader.fd);
        if (size < 0)
            status = batch_io_failed(err, "read a log", size);
        else if ((uint64_t)size > reader.offset)
            status = repair(folder, id, &reader, err);
    }
    if (status == ST_OK) *length = reader.offset;
    log_close(&reader);
    return status;
}

enum status batch_log_renew(const struct batch_folder *folder, const char *id, uint64_t length, struct error *err)
{
    struct log_reader reader;
    TRY(log_open(folder, id, &reader, err));
    reader.offset = length;
    enum status status = reader.fd >= 0 ? repair(folder, id, &reader, err) : ST_OK;
    log_close(&reader);
    return status;
}

enum status batch_log_append(const struct batch_folder *folder, const char *id, const struct buf *frames,
                             uint64_t *length, struct error *err)
{
    const struct disk *disk = folder->disk;
    char path[BATCH_PATH_BYTES];
    if (!buf_ok(frames)) return error_set(err, ST_NOMEM, "out of memory");
    if (!batch_path(folder, id, ".log", path)) return batch_path_long(err);
    int fd = disk->open(disk->state, path, DISK_WRITE);
    if (fd == -ENOENT && *length == 0) fd = disk->open(disk->state, path, DISK_CREATE);
    if (fd < 0) return batch_io_failed(err, "open a log", fd);
    enum status status = batch_write_all(disk, fd, frames->data, frames->length, *length, err);
    int result = status == ST_OK ? disk->sync(disk->state, fd) : 0;
    disk->close(disk->state, fd);
    TRY(status);
    if (result >= 0 && *length == 0) result = disk->sync_folder(disk->state, folder->path);
    if (result < 0) return batch_io_failed(err, "fsync", result);
    *length += frames->length;
    return ST_OK;
}

void batch_log_drop(const struct batch_folder *folder, const char *id)
{
    char path[BATCH_PATH_BYTES];
    if (batch_path(folder, id, ".log", path)) (void)folder->disk->remove(folder->disk->state, path);
}

/* ---- output files ---- */

struct outputs {
    struct batch_writer done, failed;
    uint32_t done_count, failed_count;
};

static enum status copy_log(const struct batch_folder *folder, const char *id, struct batch_lines *marks,
                            struct outputs *outputs, struct error *err)
{
    struct log_reader reader;
    bool found = true;
    TRY(log_open(folder, id, &reader, err));
    enum status status = ST_OK;
    while (status == ST_OK && found) {
        if (folder->stop && *folder->stop) status = error_set(err, ST_CANCELED, "told to stop");
        if (status == ST_OK) status = log_next(&reader, &found, err);
        if (status != ST_OK || !found || !take_frame(&reader.head, marks)) continue;
        bool done = reader.head.kind == FRAME_DONE;
        status = batch_write(done ? &outputs->done : &outputs->failed, reader.frame.data + BATCH_FRAME_HEAD,
                             reader.head.length, err);
        if (done)
            outputs->done_count++;
        else
            outputs->failed_count++;
    }
    log_close(&reader);
    return status;
}

static enum status write_unfinished(const struct batch_folder *folder, const struct batch_info *info,
                                    const struct batch_lines *marks, struct outputs *outputs, struct error *err)
{
    bool expired = info->ends_as == BATCH_EXPIRED;
    struct buf line;
    buf_init(&line, 0);
    enum status status = ST_OK;
    for (uint32_t i = 0; i < marks->count && status == ST_OK; i++) {
        char custom_id[BATCH_CUSTOM_ID_MAX + 1];
        if (marks->items[i].state != LINE_TODO) continue;
        if (folder->stop && *folder->stop) status = error_set(err, ST_CANCELED, "told to stop");
        if (status == ST_OK) status = batch_line_read(folder, info->input_id, &marks->items[i], custom_id, NULL, err);
        if (status != ST_OK) break;
        buf_clear(&line);
        batch_result_line(custom_id, 0, NULL, NULL, expired ? "batch_expired" : "batch_cancelled",
                          expired ? "This request could not be executed before the completion window expired."
                                  : "This request was not executed because the batch was cancelled.",
                          &line);
        status = buf_ok(&line) ? batch_write(&outputs->failed, line.data, line.length, err)
                               : error_set(err, ST_NOMEM, "out of memory");
        outputs->failed_count++;
    }
    buf_free(&line);
    return status;
}

/* One of the two: its bytes, then its object. An empty one is not kept. */
static enum status end_output(const struct batch_folder *folder, struct batch_writer *writer, char *id,
                              const char *kind, const struct batch_info *info, int64_t now_s, struct file_info *file,
                              struct error *err)
{
    *file = (struct file_info){.output = true,
                               .bytes = writer->bytes,
                               .account = info->caller.account,
                               .created_s = now_s,
                               .expires_s = now_s + info->output_expires_after_s};
    if (writer->bytes == 0) {
        *id = '\0';
        return ST_OK;
    }
    TRY(batch_write_end(writer, err));
    struct buf text;
    buf_init(&text, 0);
    memcpy(file->id, id, strlen(id) + 1);
    buf_append_format(&text, "%s_%s.jsonl", info->id, kind);
    memcpy(file->filename, text.data ? text.data : "", text.length);
    buf_clear(&text);
    file_info_print(file, true, &text);
    enum status status = batch_meta_write(folder, id, &text, err);
    buf_free(&text);
    return status;
}

enum status batch_finalize(const struct batch_folder *folder, struct batch_info *info, const struct batch_lines *lines,
                           int64_t now_s, struct file_info *output, struct file_info *error_file, struct error *err)
{
    struct outputs outputs = {.done = {.fd = -1}, .failed = {.fd = -1}};
    struct batch_lines marks = {.count = lines->count, .capacity = lines->count};
    marks.items = mem_alloc(lines->count + (size_t)1, sizeof *marks.items);
    if (!marks.items) return error_set(err, ST_NOMEM, "out of memory");
    for (uint32_t i = 0; i < lines->count; i++) {
        marks.items[i] = lines->items[i];
        marks.items[i].state = LINE_TODO;
    }
    enum status status = batch_write_begin(&outputs.done, folder, info->output_id, err);
    if (status == ST_OK) status = batch_write_begin(&outputs.failed, folder, info->error_id, err);
    if (status == ST_OK) status = copy_log(folder, info->id, &marks, &outputs, err);
    if (status == ST_OK) status = write_unfinished(folder, info, &marks, &outputs, err);
    if (status == ST_OK)
        status = end_output(folder, &outputs.done, info->output_id, "output", info, now_s, output, err);
    if (status == ST_OK)
        status = end_output(folder, &outputs.failed, info->error_id, "error", info, now_s, error_file, err);
    batch_write_drop(&outputs.done);
    batch_write_drop(&outputs.failed);
    mem_free(marks.items);
    if (status != ST_OK) return status;
    info->completed = outputs.done_count;
    info->failed = outputs.failed_count;
    return ST_OK;
}
