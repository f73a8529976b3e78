/* Small whole files over a struct disk: read at once, replaced at once. A file is either as it was or as it shall be,
 * at whatever moment the power goes. Any thread, one at a time for a name. */
#ifndef SERVER_BILLING_DISK_FILE_H
#define SERVER_BILLING_DISK_FILE_H

#include "runtime/base/buf.h"
#include "server/billing/disk.h"

/* Appends the file's bytes to out. ST_NOTFOUND: there is none; ST_LIMIT: larger than limit_bytes; ST_IO, ST_NOMEM. */
NODISCARD enum status disk_file_read(const struct disk *disk, const char *folder, const char *name, size_t limit_bytes,
                                     struct buf *out, struct error *err);
/* "<name>.tmp", fsync, rename, fsync of the folder. keep: the name that the file there now gets, or NULL. ST_IO:
 * nothing was replaced, or (folder's fsync) it is not known; a failed fsync is not repeated: the next call makes a new
 * file. */
NODISCARD enum status disk_file_replace(const struct disk *disk, const char *folder, const char *name, const char *keep,
                                        const void *bytes, size_t length, struct error *err);

#endif
