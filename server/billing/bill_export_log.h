/* The log of a ledger in Redis, for export: each applied record once, orders, and what expired. One thread. */
#ifndef SERVER_BILLING_BILL_EXPORT_LOG_H
#define SERVER_BILLING_BILL_EXPORT_LOG_H

#include "server/billing/bill.h"

enum { LOG_ID_MAX = 40 };

/* An entry; texts are valid in the call, "" where the entry has none. time: end of the lease (G), clock (X); outcome:
 * units that no package paid (F), units leased (G). */
struct log_entry {
    const char *id, *kind, *producer, *pseq, *account, *funding, *time, *outcome, *order, *terms;
    const uint8_t *raw; /* the record's bytes, of kinds F W G R */
    size_t raw_length;
};
typedef enum status (*log_entry_fn)(void *state, const struct log_entry *entry, struct error *err);

/* Where each partition's log has been read to. */
struct log_ends {
    char id[PARTITIONS][LOG_ID_MAX];
};

/* All partitions, oldest entry first. Needs the right to XRANGE, which a server's user has not. */
NODISCARD enum status bill_log_read(struct bill *bill, log_entry_fn visit, void *state, struct log_ends *ends,
                                    struct error *err);
/* Removes what has been read, and nothing newer. Needs XTRIM. */
NODISCARD enum status bill_log_trim(struct bill *bill, const struct log_ends *ends, uint64_t *removed,
                                    struct error *err);

#endif
