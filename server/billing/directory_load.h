/* A directory from wherever the ledger is. May block as a ledger's client does: not on the io thread. */
#ifndef SERVER_BILLING_DIRECTORY_LOAD_H
#define SERVER_BILLING_DIRECTORY_LOAD_H

#include "server/billing/directory.h"
#include "server/billing/ledger_client.h"

/* If the ledger's directory is of another version than *version (or none has been read: first), *directory is a new one
 * and *version its version; else *directory is NULL. On failure both stay, and the caller keeps what it has (F16).
 * ST_INVAL: a line, named in err; ST_IO, ST_TIMEOUT: the ledger; ST_LIMIT, ST_NOMEM. */
NODISCARD enum status directory_load(const struct ledger_client *client, bool first, uint64_t *version,
                                     struct directory **directory, struct error *err);

#endif
