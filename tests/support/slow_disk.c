/* See slow_disk.h. Every call is handed to the machine's. */
#include "tests/support/slow_disk.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { FDS_MAX = 4096 };

static struct {
    const struct disk *base; /* the machine's */
    struct disk table;
    uint64_t sync_ns, fail_from, syncs; /* fail_from: the sync that fails, and all after it; 0: none */
    FILE *protocol;
    pthread_mutex_t lock; /* of the protocol and of what follows */
    uint64_t opened, file_of_fd[FDS_MAX];
} slow = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

static uint64_t file_of(int fd)
{
    (void)pthread_mutex_lock(&slow.lock);
    uint64_t file = fd >= 0 && fd < FDS_MAX ? slow.file_of_fd[fd] : 0;
    (void)pthread_mutex_unlock(&slow.lock);
    return file;
}

static void end_line(void)
{
    if (slow.protocol) (void)fflush(slow.protocol); /* the process may be killed */
    (void)pthread_mutex_unlock(&slow.lock);
}

static int slow_open(void *state, const char *path, enum disk_open how)
{
    const struct disk *disk = slow.base;
    int fd = disk->open(disk->state, path, how);
    (void)state;
    if (fd < 0 || fd >= FDS_MAX) return fd;
    (void)pthread_mutex_lock(&slow.lock);
    slow.file_of_fd[fd] = ++slow.opened;
    if (slow.protocol) fprintf(slow.protocol, "open %" PRIu64 " %s\n", slow.opened, path);
    end_line();
    return fd;
}

static int64_t slow_write_at(void *state, int fd, const void *bytes, size_t length, uint64_t offset)
{
    const struct disk *disk = slow.base;
    uint64_t file = file_of(fd), begun_ns = now_ns();
    int64_t written = disk->write_at(disk->state, fd, bytes, length, offset);
    uint64_t ended_ns = now_ns();
    (void)state;
    if (written <= 0) return written;
    (void)pthread_mutex_lock(&slow.lock);
    if (slow.protocol)
        fprintf(slow.protocol, "write %" PRIu64 " %" PRIu64 " %" PRId64 " %" PRIu64 " %" PRIu64 "\n", file, offset,
                written, begun_ns, ended_ns);
    end_line();
    return written;
}

static int slow_sync(void *state, int fd)
{
    const struct disk *disk = slow.base;
    uint64_t file = file_of(fd), begun_ns = now_ns();
    struct timespec pause = {(time_t)(slow.sync_ns / NS_PER_S), (long)(slow.sync_ns % NS_PER_S)};
    (void)nanosleep(&pause, NULL);
    int result = disk->sync(disk->state, fd);
    uint64_t ended_ns = now_ns();
    (void)state;
    (void)pthread_mutex_lock(&slow.lock);
    if (slow.fail_from && ++slow.syncs >= slow.fail_from) result = -EIO;
    if (slow.protocol && result == 0)
        fprintf(slow.protocol, "sync %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", file, begun_ns, ended_ns);
    end_line();
    return result;
}

static int slow_rename(void *state, const char *from, const char *to)
{
    const struct disk *disk = slow.base;
    int result = disk->rename(disk->state, from, to);
    (void)state;
    (void)pthread_mutex_lock(&slow.lock);
    if (slow.protocol && result == 0) fprintf(slow.protocol, "rename %s %s\n", from, to);
    end_line();
    return result;
}

const struct disk *slow_disk(uint64_t sync_ns, const char *protocol_path)
{
    slow.base = disk_system();
    slow.table = *slow.base;
    slow.sync_ns = sync_ns;
    slow.protocol = protocol_path ? fopen(protocol_path, "a") : NULL;
    CHECK(!protocol_path || slow.protocol);
    slow.table.open = slow_open;
    slow.table.write_at = slow_write_at;
    slow.table.sync = slow_sync;
    slow.table.rename = slow_rename;
    return &slow.table;
}

void slow_disk_fail_from(uint64_t sync)
{
    slow.fail_from = sync;
}
