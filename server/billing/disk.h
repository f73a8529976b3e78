/* The file system as the journal sees it: a table of calls, so that a test can put one in its place that tears,
 * reorders and drops what was not synced (tests/support/sim_disk.h). Calls return what they say or -errno; none is
 * retried here. Paths are whole. Any thread. */
#ifndef SERVER_BILLING_DISK_H
#define SERVER_BILLING_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum disk_open { DISK_READ, DISK_WRITE, DISK_CREATE /* read and write; must not exist */ };

struct disk {
    void *state;
    int (*open)(void *state, const char *path, enum disk_open how); /* descriptor; files 0640 */
    void (*close)(void *state, int fd);
    int64_t (*read_at)(void *state, int fd, void *out, size_t length, uint64_t offset); /* bytes, 0: end */
    int64_t (*write_at)(void *state, int fd, const void *bytes, size_t length,
                        uint64_t offset); /* bytes, may be short */
    int (*sync)(void *state, int fd);     /* fdatasync */
    int64_t (*size)(void *state, int fd);
    int (*rename)(void *state, const char *from, const char *to);
    int (*remove)(void *state, const char *path);
    int (*make_folder)(void *state, const char *path); /* 0 or -EEXIST too; 0750 */
    int (*sync_folder)(void *state, const char *path); /* fsync of a directory */
    int (*lock)(void *state, int fd);                  /* flock, exclusive, at once; -EWOULDBLOCK */
    int (*list)(void *state, const char *folder, void (*visit)(void *visitor, const char *name), void *visitor);
    int (*free_permille)(void *state, const char *folder); /* 0..1000 of the file system's space */
};

/* The machine's. Static. */
const struct disk *disk_system(void);
/* Puts another in its place, for a test of the whole process: before any thread asks for it. NULL: the machine's. */
void disk_system_set(const struct disk *disk);

#endif
