/* Tenants, accounts and keys (directory.h) of a ledger in the process: the file "directory.jsonl" in the journal's
 * folder, each line a JSON array [id, line], the first ["", version]. A change writes the file anew: temporary file,
 * fsync, rename, fsync of the folder. What Redis keeps for several nodes (mr_dir_* of ledger.lua).
 *
 * One thread at a time; several processes only under the journal's lock. ST_INVAL: the file is damaged (err: line), or
 * an id or line is not valid: an id is 1 to 200 printable bytes without space, quote or backslash; a line is one JSON
 * value, at most 64 KiB, without line breaks (not parsed here). ST_IO, ST_NOMEM. */
#ifndef SERVER_BILLING_LEDGER_LINES_H
#define SERVER_BILLING_LEDGER_LINES_H

#include "runtime/base/status.h"
#include "server/billing/disk.h"

/* 0 and no lines when there is no file. */
NODISCARD enum status ledger_lines_version(const struct disk *disk, const char *folder, uint64_t *version,
                                           struct error *err);
NODISCARD enum status ledger_lines_read(const struct disk *disk, const char *folder,
                                        void (*visit)(void *visitor, const char *line, size_t length), void *visitor,
                                        uint64_t *version, struct error *err);
/* One more line, or the one with this id changed. The same again changes nothing. */
NODISCARD enum status ledger_lines_put(const struct disk *disk, const char *folder, const char *id, const char *line,
                                       struct error *err);

#endif
