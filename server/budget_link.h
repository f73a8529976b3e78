/* Keys' budgets of a server with packages: holds for the exchanges, questions for the ledger, one at a time, in libuv's
 * pool; rules: billing/budget.h, billing/budgets.h. Which budget a key has is looked up in the directory each time, so
 * that a change counts at once, for lines of batches as well.
 *
 *   exchange -> budget_link_hold -> budgets.c -> [pool: ledger_client.budget] -> answered -> exchange asks again
 *
 * io thread. */
#ifndef SERVER_BUDGET_LINK_H
#define SERVER_BUDGET_LINK_H

#include "runtime/base/status.h"
#include "server/auth.h"
#include "server/billing/billing.h"
#include "server/billing/budgets.h"

#include <uv.h>

struct budget_link;

/* answered: who waits is to ask again. In Redis it has a connection of its own. ST_NOMEM. */
NODISCARD enum status budget_link_open(uv_loop_t *loop, struct billing *billing, const struct auth *auth,
                                       void (*answered)(void *state), void *state, struct budget_link **link,
                                       struct error *err);
/* Every reserve goes back, as long as the ledger answers and for at most two seconds; blocks. When the loop has ended,
 * and before billing_close. NULL is fine. */
void budget_link_close(struct budget_link *link);

/* As budgets_hold; a key without a budget, or no link: LEASE_HELD with all of most. */
enum lease_verdict budget_link_hold(struct budget_link *link, uint64_t key, uint64_t least, uint64_t most,
                                    struct budget_wish *wish, struct budget_hold *hold, uint64_t *got);
/* As budgets_less and budgets_settle; a hold of nothing: nothing. */
void budget_link_less(struct budget_link *link, uint64_t key, struct budget_hold *hold, uint64_t units);
void budget_link_settle(struct budget_link *link, uint64_t key, struct budget_hold *hold, uint64_t used);

void budget_link_tick(struct budget_link *link); /* every HTTP_TICK_MS */

#endif
