/* Deferrable requests that wait in Redis until a server with green power to spare runs them.
 *
 *   accepting server                      Redis: stream, job, result               a server with green to spare
 *   pool_offer      ---- entry --------->  open
 *                                          taken  <------- XREADGROUP ----------  pool_want -> POOL_PULLED
 *                                            |    <-- renewed while it runs ----  (silent for pool_reclaim_ms: others)
 *   POOL_RESULT     <--- result ---------  done   <------- first one only ------  pool_finish -> POOL_FINISHED
 *   bills, writes the answer, pool_forget
 *   pool_withdraw   ----------------------> nothing
 *
 * O1  One server bills: the one that accepted. A result carries ids and counts, and no charge; it becomes a charge when
 *     that server tells it through its own journal, under the charge id and the digest that the request has there
 *     whoever computes it. So however often a request runs, and whatever Redis loses, it is charged once; and a server
 *     that only pulls needs no lease of accounts that it has never seen.
 * O2  Of several runs the first result counts (mr_pool_finish); of a result that came in vain the tokens are counted as
 *     waste, and are in no bill.
 * O3  What is offered is still the accepting server's: it may run it at any moment without asking, and does when its
 *     plan says so, when Redis is away, when an entry is lost, and when a job has ended DELIVERIES_MAX pullers. Then a
 *     result that comes too late is waste.
 * O4  Nothing waits for Redis but the pool's thread. Commands queue; offers are refused at once while it is away.
 * O5  Redis holds prompts and answers in clear while they wait. Nothing of them is logged. Both expire.
 *
 * All functions: io thread. The way to Redis: billing/redis_link.h; calls: pool.lua. */
#ifndef SERVER_POOL_POOL_H
#define SERVER_POOL_POOL_H

#include "runtime/base/buf.h"
#include "server/billing/redis_link.h"
#include "server/pool/pool_entry.h"

enum { POOL_GROUP_MAX = 63, POOL_ENTRY_NAME_MAX = 47, POOL_DELIVERIES_MAX = 3 };

struct pool;

struct pool_config {
    struct redis_settings redis;
    const char *group;         /* servers that share work: letters, digits, '-', '_', '.' */
    void (*wake)(void *state); /* any thread: pool_take has something */
    void *wake_state;
};

enum pool_news_kind {
    POOL_OFFERED,  /* it waits in Redis */
    POOL_REFUSED,  /* it does not: Redis is away, or the stream is full */
    POOL_OPEN,     /* nobody runs it (any more) */
    POOL_TAKEN,    /* somebody does */
    POOL_RESULT,   /* bytes: its result; it is not watched any more */
    POOL_GONE,     /* given up, expired or lost; it is not watched any more */
    POOL_PULLED,   /* entry, bytes: to be run here, and ended by pool_finish or pool_return */
    POOL_LOST,     /* entry: withdrawn, or another's now: its run here is in vain. Nothing is to be returned */
    POOL_FINISHED, /* entry, counts */
};

struct pool_news {
    enum pool_news_kind kind;
    uint8_t id[POOL_ID_BYTES];
    char entry[POOL_ENTRY_NAME_MAX + 1];
    struct buf bytes; /* the taker's to free */
    bool counts;
};

struct pool_stats {
    bool up;
    uint64_t offered, refused, pulled, results, returned, gone;
};

/* Reads the URL and starts the thread; connects nothing yet. ST_INVAL, ST_IO, ST_NOMEM (err). */
NODISCARD enum status pool_open(const struct pool_config *config, struct pool **pool, struct error *err);
/* Up to a moment for what is queued, then the end: what is still running here is others' after pool_reclaim_ms. */
void pool_close(struct pool *pool); /* NULL is fine */

/* Which model is served: servers of one hash share work. Before it is told nothing is done. */
void pool_serve(struct pool *pool, const uint8_t model[32]);
bool pool_serves(const struct pool *pool);

/* bytes: an entry, taken over. ttl_ms: how long it may wait and run. false: no memory, bytes are freed. */
NODISCARD bool pool_offer(struct pool *pool, const uint8_t id[POOL_ID_BYTES], struct buf *bytes, uint64_t ttl_ms);
void pool_withdraw(struct pool *pool, const uint8_t id[POOL_ID_BYTES]); /* not watched from here on */
void pool_forget(struct pool *pool, const uint8_t id[POOL_ID_BYTES]);   /* its result is not needed any more */

/* To be pulled at the next look. Once what was wanted before has come (pool_came, asked before pool_take is emptied).
 */
void pool_want(struct pool *pool, uint32_t count);
bool pool_came(struct pool *pool);
/* bytes: a result, taken over. */
NODISCARD bool pool_finish(struct pool *pool, const char *entry, const uint8_t id[POOL_ID_BYTES], struct buf *bytes,
                           uint64_t ttl_ms);
/* again: it waits for others; else the accepting server is to run it. */
void pool_return(struct pool *pool, const char *entry, const uint8_t id[POOL_ID_BYTES], bool again);

bool pool_take(struct pool *pool, struct pool_news *news);
void pool_read_stats(struct pool *pool, struct pool_stats *stats);

#endif
