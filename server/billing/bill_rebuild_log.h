/* A ledger from the exported log of a Redis, for `millrace bill rebuild --log`. One thread. */
#ifndef SERVER_BILLING_BILL_REBUILD_LOG_H
#define SERVER_BILLING_BILL_REBUILD_LOG_H

#include "server/billing/bill.h"

/* What `bill export --redis` wrote (one file, or several behind one another in the order they were written), applied
 * entry by entry with the times of the log to an empty ledger. What each entry says of who paid must be what comes out;
 * marks of the export must be reached. uuid NULL: the export's. The caller destroys *ledger.
 * ST_INVAL: the file is none, is incomplete, or contradicts itself (err names the line). */
NODISCARD enum status bill_rebuild_log(const struct bill *bill, const char *path, const char *uuid,
                                       struct ledger **ledger, uint64_t *entries, struct error *err);

#endif
