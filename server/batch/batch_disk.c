/* The folder, metas and bytes of files; see batch_disk.h. */
#include "server/batch/batch_disk.h"

#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/batch/batch_parts.h"
#include "server/billing/disk_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static int private_open(void *state, const char *path, enum disk_open how)
{
    if (how != DISK_CREATE) return disk_system()->open(state, path, how);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? -errno : fd;
}

static int private_folder(void *state, const char *path)
{
    (void)state;
    return mkdir(path, 0700) < 0 ? -errno : 0;
}

const struct disk *batch_disk_system(void)
{
    static struct disk disk;
    if (!disk.open) {
        disk = *disk_system();
        disk.open = private_open;
        disk.make_folder = private_folder;
    }
    return &disk;
}

bool batch_path(const struct batch_folder *folder, const char *name, const char *suffix, char path[BATCH_PATH_BYTES])
{
    return snprintf(path, BATCH_PATH_BYTES, "%s/%s%s", folder->path, name, suffix) < BATCH_PATH_BYTES;
}

enum status batch_io_failed(struct error *err, const char *what, int64_t result)
{
    char reason[128];
    return error_set(err, ST_IO, "cannot %s in the folder of batches: %s", what,
                     strerror_r((int)-result, reason, sizeof reason));
}

enum status batch_path_long(struct error *err)
{
    return error_set(err, ST_INVAL, "the path of the folder of batches is too long");
}

enum status batch_write_all(const struct disk *disk, int fd, const void *bytes, size_t length, uint64_t offset,
                            struct error *err)
{
    size_t done = 0;
    while (done < length) {
        int64_t got = disk->write_at(disk->state, fd, (const char *)bytes + done, length - done, offset + done);
        if (got == -EINTR) continue;
        if (got <= 0) return batch_io_failed(err, "write", got == 0 ? -ENOSPC : got);
        done += (size_t)got;
    }
    return ST_OK;
}

/* A folder that was made is in its parent for good, and what a killed process renamed here is, too. */
static int sync_folders(const struct batch_folder *folder)
{
    const struct disk *disk = folder->disk;
    char parent[BATCH_PATH_BYTES];
    const char *slash = strrchr(folder->path, '/');
    size_t length = slash ? (size_t)(slash - folder->path) : 0;
    if (length >= sizeof parent) return -ENAMETOOLONG;
    memcpy(parent, folder->path, length);
    parent[length] = '\0';
    int result = disk->sync_folder(disk->state, length ? parent : slash ? "/" : ".");
    return result < 0 ? result : disk->sync_folder(disk->state, folder->path);
}

enum status batch_folder_open(const struct batch_folder *folder, int *lock_fd, struct error *err)
{
    const struct disk *disk = folder->disk;
    char path[BATCH_PATH_BYTES];
    if (!batch_path(folder, "lock", "", path)) return batch_path_long(err);
    int result = disk->make_folder(disk->state, folder->path);
    if (result < 0 && result != -EEXIST) return batch_io_failed(err, "make itself", result);
    result = sync_folders(folder);
    if (result < 0) return batch_io_failed(err, "fsync", result);
    int fd = disk->open(disk->state, path, DISK_CREATE);
    if (fd == -EEXIST) fd = disk->open(disk->state, path, DISK_WRITE);
    if (fd < 0) return batch_io_failed(err, "open the lock", fd);
    result = disk->lock(disk->state, fd);
    if (result < 0) {
        disk->close(disk->state, fd);
        return result == -EWOULDBLOCK ? error_set(err, ST_IO, "another process serves from the folder of batches")
                                      : batch_io_failed(err, "lock", result);
    }
    *lock_fd = fd;
    return ST_OK;
}

/* ---- loading ---- */

struct names {
    char (*items)[BATCH_ID_MAX + 6];
    size_t count, capacity;
    bool failed;
};

static void take_name(void *visitor, const char *name)
{
    struct names *names = visitor;
    if (strlen(name) >= sizeof *names->items) return; /* none of ours */
    if (names->count == names->capacity) {
        size_t capacity = names->capacity ? names->capacity * 2 : 64;
        void *items = mem_resize(names->items, capacity, sizeof *names->items);
        if (!items) {
            names->failed = true;
            return;
        }
        names->items = items;
        names->capacity = capacity;
    }
    memcpy(names->items[names->count++], name, strlen(name) + 1);
}

static bool ends_with(const char *name, const char *suffix, size_t *stem)
{
    size_t length = strlen(name), ending = strlen(suffix);
    if (length <= ending || strcmp(name + length - ending, suffix) != 0) return false;
    *stem = length - ending;
    return true;
}

static bool named(const struct names *names, const char *name, size_t stem)
{
    for (size_t i = 0; i < names->count; i++) {
        size_t of_meta;
        if (ends_with(names->items[i], ".meta", &of_meta) && of_meta == stem &&
            memcmp(names->items[i], name, stem) == 0)
            return true;
    }
    return false;
}

/* Of a name of ours: whether no .meta holds it. */
static bool is_left_over(const struct names *names, const char *name)
{
    size_t stem;
    if (ends_with(name, ".meta", &stem)) return false;
    if (ends_with(name, ".tmp", &stem) || ends_with(name, ".part", &stem)) return true;
    return !named(names, name, ends_with(name, ".log", &stem) ? stem : strlen(name));
}

static enum status load_meta(const struct batch_folder *folder, const char *name,
                             void (*visit)(void *state, const char *text, size_t length), void *state,
                             struct error *err)
{
    struct buf text;
    struct batch_frame_head head;
    buf_init(&text, 0);
    enum status status = disk_file_read(folder->disk, folder->path, name, BATCH_META_BYTES_MAX, &text, err);
    if (status == ST_OK && (text.length < BATCH_FRAME_HEAD || !batch_frame_head(text.data, &head) ||
                            head.kind != FRAME_META || head.length != text.length - BATCH_FRAME_HEAD ||
                            !batch_frame_good(&head, text.data, text.data + BATCH_FRAME_HEAD)))
        status = error_set(err, ST_INVAL, "\"%s\" in the folder of batches is damaged", name);
    if (status == ST_OK) visit(state, text.data + BATCH_FRAME_HEAD, head.length);
    buf_free(&text);
    return status;
}

enum status batch_folder_load(const struct batch_folder *folder, const char *prefix,
                              void (*visit)(void *state, const char *text, size_t length), void *state,
                              struct error *err)
{
    const struct disk *disk = folder->disk;
    struct names names = {0};
    int result = disk->list(disk->state, folder->path, take_name, &names);
    enum status status = names.failed ? error_set(err, ST_NOMEM, "out of memory")
                         : result < 0 ? batch_io_failed(err, "list", result)
                                      : ST_OK;
    for (size_t i = 0; i < names.count && status == ST_OK; i++) {
        char path[BATCH_PATH_BYTES];
        size_t stem;
        const char *name = names.items[i];
        if (strncmp(name, prefix, strlen(prefix)) != 0) continue;
        if (ends_with(name, ".meta", &stem))
            status = load_meta(folder, name, visit, state, err);
        else if (is_left_over(&names, name) && batch_path(folder, name, "", path))
            (void)disk->remove(disk->state, path);
    }
    mem_free(names.items);
    return status;
}

enum status batch_meta_write(const struct batch_folder *folder, const char *id, const struct buf *text,
                             struct error *err)
{
    char name[BATCH_ID_MAX + 6];
    struct buf frame;
    (void)snprintf(name, sizeof name, "%s.meta", id);
    buf_init(&frame, BATCH_META_BYTES_MAX);
    batch_frame(FRAME_META, 0, text->data, text->length, &frame);
    enum status status = buf_ok(text) && buf_ok(&frame)
                             ? disk_file_replace(folder->disk, folder->path, name, NULL, frame.data, frame.length, err)
                             : error_set(err, ST_NOMEM, "out of memory");
    buf_free(&frame);
    return status;
}

enum status batch_remove(const struct batch_folder *folder, const char *id, struct error *err)
{
    static const char *const suffixes[] = {".meta", "", ".log"};
    const struct disk *disk = folder->disk;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        char path[BATCH_PATH_BYTES];
        if (!batch_path(folder, id, suffixes[i], path)) return batch_path_long(err);
        int result = disk->remove(disk->state, path);
        if (result < 0 && result != -ENOENT) return batch_io_failed(err, "remove", result);
        if (i > 0) continue;
        result = disk->sync_folder(disk->state, folder->path);
        if (result < 0) return batch_io_failed(err, "fsync", result);
    }
    return ST_OK;
}

/* ---- bytes ---- */

enum status batch_write_begin(struct batch_writer *writer, const struct batch_folder *folder, const char *id,
                              struct error *err)
{
    const struct disk *disk = folder->disk;
    char path[BATCH_PATH_BYTES];
    *writer = (struct batch_writer){.folder = folder, .fd = -1};
    memcpy(writer->id, id, strlen(id) + 1);
    if (!batch_path(folder, id, ".part", path)) return batch_path_long(err);
    (void)disk->remove(disk->state, path); /* of an end that was cut off */
    writer->fd = disk->open(disk->state, path, DISK_CREATE);
    return writer->fd < 0 ? batch_io_failed(err, "create a file", writer->fd) : ST_OK;
}

enum status batch_write(struct batch_writer *writer, const void *bytes, size_t length, struct error *err)
{
    TRY(batch_write_all(writer->folder->disk, writer->fd, bytes, length, writer->bytes, err));
    writer->bytes += length;
    return ST_OK;
}

enum status batch_write_end(struct batch_writer *writer, struct error *err)
{
    const struct disk *disk = writer->folder->disk;
    char from[BATCH_PATH_BYTES], to[BATCH_PATH_BYTES];
    if (!batch_path(writer->folder, writer->id, ".part", from) || !batch_path(writer->folder, writer->id, "", to))
        return batch_path_long(err);
    int result = disk->sync(disk->state, writer->fd);
    if (result < 0) return batch_io_failed(err, "fsync", result);
    disk->close(disk->state, writer->fd);
    writer->fd = -1;
    result = disk->rename(disk->state, from, to);
    if (result < 0) return batch_io_failed(err, "rename", result);
    result = disk->sync_folder(disk->state, writer->folder->path);
    return result < 0 ? batch_io_failed(err, "fsync", result) : ST_OK;
}

void batch_write_drop(struct batch_writer *writer)
{
    char path[BATCH_PATH_BYTES];
    if (!writer->folder || writer->fd < 0) return;
    const struct disk *disk = writer->folder->disk;
    disk->close(disk->state, writer->fd);
    writer->fd = -1;
    if (batch_path(writer->folder, writer->id, ".part", path)) (void)disk->remove(disk->state, path);
}

enum status batch_read_at(const struct batch_folder *folder, const char *id, uint64_t offset, void *out, size_t size,
                          size_t *got, struct error *err)
{
    const struct disk *disk = folder->disk;
    char path[BATCH_PATH_BYTES];
    *got = 0;
    if (!batch_path(folder, id, "", path)) return batch_path_long(err);
    int fd = disk->open(disk->state, path, DISK_READ);
    if (fd < 0) return batch_io_failed(err, "open a file", fd);
    int64_t result = 1;
    while (*got < size && result != 0) {
        result = disk->read_at(disk->state, fd, (char *)out + *got, size - *got, offset + *got);
        if (result == -EINTR) continue;
        if (result < 0) break;
        *got += (size_t)result;
    }
    disk->close(disk->state, fd);
    return result < 0 ? batch_io_failed(err, "read", result) : ST_OK;
}
