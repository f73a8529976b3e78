/* What ledger_redis.c and ledger_redis_read.c share; nobody else includes it. */
#ifndef SERVER_BILLING_LEDGER_REDIS_PARTS_H
#define SERVER_BILLING_LEDGER_REDIS_PARTS_H

#include "server/billing/ledger_redis.h"

/* How long a call may take with redirects, a failover and pauses: a person waits for it. */
enum { CALL_MS = 8000 };

struct ledger_redis {
    struct redis_link *link;
    char uuid[LEDGER_UUID_CHARS + 1]; /* read once; a Redis that holds another ledger later answers WRONGLEDGER */
};

/* One command on the key's node; an error is no reply: ST_IO (it may pass), ST_INVAL. */
NODISCARD enum status ledger_redis_call(struct redis_link *link, const char *key, uint32_t timeout_ms,
                                        const char **arguments, int count, struct redis_reply **reply,
                                        struct error *err);
void ledger_redis_account_key(uint64_t account, char key[LEDGER_KEY_MAX]);

NODISCARD enum status ledger_redis_balance(struct ledger_redis *l, uint64_t account, struct account_balance *balance,
                                           struct error *err);
NODISCARD enum status ledger_redis_month(struct ledger_redis *l, uint64_t account, uint32_t month,
                                         struct month_total totals[MODEL_CLASSES], uint32_t *count, struct error *err);
NODISCARD enum status ledger_redis_marks(struct ledger_redis *l, uint16_t partition, ledger_mark_fn visit,
                                         void *visitor, struct error *err);

#endif
