/* One set of calls on a ledger, wherever it is: in this process, in a folder at rest, or in Redis. What the admin
 * endpoints, /v1/usage and `millrace bill` are written against; records go another way (meter and emitter).
 *
 *   ledger_redis.c   Redis, over a connection of its own          ledger_store.c   a journal folder that nobody serves
 *   meter.c          the ledger of the running server (orders go through its journal first)
 *
 * Calls may block (Redis: up to its time-out), so never on the io thread but for meter.c's. One thread a client at a
 * time. What the ledger answers is `answer`; the status tells whether it was reached: ST_OK: answer is valid; ST_IO,
 * ST_TIMEOUT: it is not known whether the call took effect: call again with the same order id; ST_NOMEM; ST_INVAL
 * (err).
 */
#ifndef SERVER_BILLING_LEDGER_CLIENT_H
#define SERVER_BILLING_LEDGER_CLIENT_H

#include "server/billing/budget.h"
#include "server/billing/ledger.h"

struct ledger_client {
    const struct ledger_client_calls *calls;
    void *state;
};

struct ledger_client_calls {
    void (*close)(void *state);
    enum status (*init)(void *state, const char *uuid, enum ledger_answer *answer, struct error *err);
    enum status (*uuid)(void *state, char uuid[LEDGER_UUID_CHARS + 1], struct error *err); /* "": none yet */
    enum status (*order)(void *state, const struct order *order, enum ledger_answer *answer, struct error *err);
    enum status (*account_set)(void *state, uint64_t account, const char *order_id, bool open,
                               enum ledger_answer *answer, struct error *err);
    enum status (*reap)(void *state, uint64_t account, uint64_t grace_ms, uint32_t *leases, uint32_t *packages,
                        enum ledger_answer *answer, struct error *err);
    enum status (*balance)(void *state, uint64_t account, struct account_balance *balance, struct error *err);
    enum status (*month)(void *state, uint64_t account, uint32_t month, struct month_total totals[MODEL_CLASSES],
                         uint32_t *count, struct error *err);
    /* Marks of all producers of a partition. */
    enum status (*marks)(void *state, uint16_t partition,
                         void (*visit)(void *visitor, uint64_t producer, uint64_t epoch, uint64_t hwm,
                                       const char *hash8),
                         void *visitor, struct error *err);
    /* Tenants, accounts and keys as directory.h writes them: every line of it; and one more or changed line. version
     * grows with every change. */
    enum status (*directory_version)(void *state, uint64_t *version, struct error *err);
    enum status (*directory_read)(void *state, void (*visit)(void *visitor, const char *line, size_t length),
                                  void *visitor, uint64_t *version, struct error *err);
    enum status (*directory_put)(void *state, const char *id, const char *line, struct error *err);
    /* Asks for units of a key's budget (budget.h); nodes do, others look. ST_INVAL: what is there is damaged. */
    enum status (*budget)(void *state, const struct budget_ask *ask, struct budget_answer *answer, struct error *err);
};

#endif
