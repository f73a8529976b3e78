/* Which Idempotency-Keys a journal has charges of: what is left of answered requests after a restart. */
#ifndef SERVER_BILLING_JOURNAL_RECALL_H
#define SERVER_BILLING_JOURNAL_RECALL_H

#include "server/billing/journal_reader.h"

/* Calls visit for each charged FINAL with a key that ended at since_us (wall) or later, up to until_lsn, in the order
 * of the journal. Segments that are older as a whole are not read. Waived ones are left out: nothing was billed, so a
 * retry may run. ST_INVAL: damage; ST_IO, ST_NOMEM; what was visited before stays so;
 * ST_CANCELED: *stop was set (NULL: never). Any thread. */
NODISCARD enum status journal_recall(const struct disk *disk, const char *folder, const char *fallback,
                                     int64_t since_us, uint64_t until_lsn, const _Atomic bool *stop,
                                     void (*visit)(void *state, const struct record *record), void *state,
                                     struct error *err);

#endif
