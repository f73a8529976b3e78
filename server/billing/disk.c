/* disk.h on POSIX. Every call is one system call, so that a test's disk can stand at the same boundaries; nothing is
 * retried, because only the journal knows what a repetition would mean. Descriptors close on exec. */
#include "server/billing/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int or_errno(int result)
{
    return result < 0 ? -errno : result;
}

static int system_open(void *state, const char *path, enum disk_open how)
{
    (void)state;
    static const int flags[] = {
        [DISK_READ] = O_RDONLY, [DISK_WRITE] = O_RDWR, [DISK_CREATE] = O_RDWR | O_CREAT | O_EXCL};
    return or_errno(open(path, flags[how] | O_CLOEXEC | O_NOFOLLOW, 0640));
}

static void system_close(void *state, int fd)
{
    (void)state;
    (void)close(fd);
}

static int64_t system_read_at(void *state, int fd, void *out, size_t length, uint64_t offset)
{
    (void)state;
    ssize_t done = pread(fd, out, length, (off_t)offset);
    return done < 0 ? -errno : done;
}

static int64_t system_write_at(void *state, int fd, const void *bytes, size_t length, uint64_t offset)
{
    (void)state;
    ssize_t done = pwrite(fd, bytes, length, (off_t)offset);
    return done < 0 ? -errno : done;
}

static int system_sync(void *state, int fd)
{
    (void)state;
    return or_errno(fdatasync(fd));
}

static int64_t system_size(void *state, int fd)
{
    (void)state;
    struct stat info;
    return fstat(fd, &info) < 0 ? -errno : (int64_t)info.st_size;
}

static int system_rename(void *state, const char *from, const char *to)
{
    (void)state;
    return or_errno(rename(from, to));
}

static int system_remove(void *state, const char *path)
{
    (void)state;
    return or_errno(unlink(path));
}

static int system_make_folder(void *state, const char *path)
{
    (void)state;
    return or_errno(mkdir(path, 0750));
}

static int system_sync_folder(void *state, const char *path)
{
    (void)state;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -errno;
    int result = or_errno(fsync(fd));
    (void)close(fd);
    return result;
}

static int system_lock(void *state, int fd)
{
    (void)state;
    return or_errno(flock(fd, LOCK_EX | LOCK_NB));
}

static int system_list(void *state, const char *folder, void (*visit)(void *visitor, const char *name), void *visitor)
{
    (void)state;
    DIR *listing = opendir(folder);
    if (listing == NULL) return -errno;
    int result = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(listing);
        if (entry == NULL) {
            result = -errno;
            break;
        }
        visit(visitor, entry->d_name);
    }
    (void)closedir(listing);
    return result;
}

static int system_free_permille(void *state, const char *folder)
{
    (void)state;
    struct statvfs info;
    if (statvfs(folder, &info) < 0) return -errno;
    if (info.f_blocks == 0) return 0;
    return (int)((double)info.f_bavail / (double)info.f_blocks * 1000);
}

static const struct disk *replaced;

void disk_system_set(const struct disk *disk)
{
    replaced = disk;
}

const struct disk *disk_system(void)
{
    static const struct disk disk = {
        .open = system_open,
        .close = system_close,
        .read_at = system_read_at,
        .write_at = system_write_at,
        .sync = system_sync,
        .size = system_size,
        .rename = system_rename,
        .remove = system_remove,
        .make_folder = system_make_folder,
        .sync_folder = system_sync_folder,
        .lock = system_lock,
        .list = system_list,
        .free_permille = system_free_permille,
    };
    return replaced ? replaced : &disk;
}
