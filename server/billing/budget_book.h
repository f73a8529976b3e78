/* What was taken of keys' budgets (budget.h), for a ledger in the process: the file "budgets" in the journal's folder,
 * a line "KEY PERIOD NUMBER PRODUCER TAKEN" for each key and producer. What Redis keeps for several nodes (mr_budget of
 * ledger.lua). A change writes the file anew, as ledger_lines.h does.
 *
 * One thread at a time; several processes only under the journal's lock. */
#ifndef SERVER_BILLING_BUDGET_BOOK_H
#define SERVER_BILLING_BUDGET_BOOK_H

#include "runtime/base/status.h"
#include "server/billing/budget.h"
#include "server/billing/disk.h"

/* ST_INVAL: the file is damaged (err: the line), or a number of the question is too large; ST_IO: it is not known
 * whether it was taken: ask again; ST_NOMEM. */
NODISCARD enum status budget_book_ask(const struct disk *disk, const char *folder, int64_t unix_s,
                                      const struct budget_ask *ask, struct budget_answer *answer, struct error *err);

#endif
