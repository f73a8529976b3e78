/* Whole files; see disk_file.h. */
#include "server/billing/disk_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = 512, READ_BYTES = 65536 };

static bool join(char path[PATH_BYTES], const char *folder, const char *name, const char *suffix)
{
    return snprintf(path, PATH_BYTES, "%s/%s%s", folder, name, suffix) < PATH_BYTES;
}

static enum status failed(struct error *err, const char *what, const char *path, int64_t result)
{
    char reason[128];
    return error_set(err, ST_IO, "%s %s: %s", what, path, strerror_r((int)-result, reason, sizeof reason));
}

static enum status read_all(const struct disk *disk, int fd, const char *path, size_t limit_bytes, struct buf *out,
                            struct error *err)
{
    size_t start = out->length;
    for (;;) {
        if (!buf_reserve(out, READ_BYTES)) return error_set(err, ST_NOMEM, "%s: out of memory", path);
        int64_t got = disk->read_at(disk->state, fd, out->data + out->length, READ_BYTES, out->length - start);
        if (got == -EINTR) continue;
        if (got < 0) return failed(err, "cannot read", path, got);
        if (got == 0) return ST_OK;
        out->length += (size_t)got;
        if (out->length - start > limit_bytes) {
            return error_set(err, ST_LIMIT, "%s: larger than %zu bytes", path, limit_bytes);
        }
    }
}

enum status disk_file_read(const struct disk *disk, const char *folder, const char *name, size_t limit_bytes,
                           struct buf *out, struct error *err)
{
    char path[PATH_BYTES];
    if (!join(path, folder, name, "")) return error_set(err, ST_INVAL, "%s: the path is too long", folder);
    int fd = disk->open(disk->state, path, DISK_READ);
    if (fd == -ENOENT) return error_set(err, ST_NOTFOUND, "%s: not there", path);
    if (fd < 0) return failed(err, "cannot open", path, fd);
    enum status status = read_all(disk, fd, path, limit_bytes, out, err);
    disk->close(disk->state, fd);
    return status;
}

static enum status write_all(const struct disk *disk, const char *path, const void *bytes, size_t length,
                             struct error *err)
{
    int removed = disk->remove(disk->state, path);
    if (removed < 0 && removed != -ENOENT) return failed(err, "cannot remove", path, removed);
    int fd = disk->open(disk->state, path, DISK_CREATE);
    if (fd < 0) return failed(err, "cannot create", path, fd);
    size_t done = 0;
    int64_t result = 0;
    while (done < length) {
        result = disk->write_at(disk->state, fd, (const char *)bytes + done, length - done, done);
        if (result == -EINTR) continue;
        if (result <= 0) break;
        done += (size_t)result;
    }
    if (done < length) {
        disk->close(disk->state, fd);
        return failed(err, "cannot write", path, result == 0 ? -ENOSPC : result);
    }
    result = disk->sync(disk->state, fd);
    disk->close(disk->state, fd);
    return result < 0 ? failed(err, "cannot fsync", path, result) : ST_OK;
}

enum status disk_file_replace(const struct disk *disk, const char *folder, const char *name, const char *keep,
                              const void *bytes, size_t length, struct error *err)
{
    char path[PATH_BYTES], temporary[PATH_BYTES], kept[PATH_BYTES];
    if (!join(path, folder, name, "") || !join(temporary, folder, name, ".tmp") ||
        !join(kept, folder, keep != NULL ? keep : name, "")) {
        return error_set(err, ST_INVAL, "%s: the path is too long", folder);
    }
    TRY(write_all(disk, temporary, bytes, length, err));
    if (keep != NULL) {
        int moved = disk->rename(disk->state, path, kept);
        if (moved < 0 && moved != -ENOENT) return failed(err, "cannot rename", path, moved);
    }
    int renamed = disk->rename(disk->state, temporary, path);
    if (renamed < 0) return failed(err, "cannot rename", temporary, renamed);
    int synced = disk->sync_folder(disk->state, folder);
    return synced < 0 ? failed(err, "cannot fsync", folder, synced) : ST_OK;
}
