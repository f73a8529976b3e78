/* What a server runs for others: pulls from the pool while it has green power to spare, and gives results back.
 *
 *   POOL_PULLED -> plan_enter -> exchange_start_inner (unbilled here) -> ids and counts -> pool_finish -> POOL_FINISHED
 *                     \-> no room: pool_return           \-> fails: pool_return        \-> POOL_LOST: broken off
 *
 * W1  A pulled request is a job of the plan like an own one, with its deadline, so that a server does not pull beyond
 *     what is left. If the plan does not let it go at once, it goes back.
 * W2  It is of class batch, and of nobody's tenant here but of its account's name in the prefix cache (`pool:..`): no
 *     account's limits, packages or keys of this server count for it.
 * W3  What fails for the moment (429, 5xx) waits for others, and nothing is pulled for a while; what can never run here
 *     (400, several choices, log-probabilities) is for the accepting server.
 * io thread. */
#ifndef SERVER_POOL_POOL_WORK_H
#define SERVER_POOL_POOL_WORK_H

#include "server/exchange.h"
#include "server/pool/pool.h"

struct pool_work;

struct pool_work_config {
    struct pool *pool;
    struct exchanges *exchanges;
    struct plan *plan;
    uint32_t concurrency;
    bool (*may_run)(void *state); /* whether calls are taken at all at the moment */
    void *state;
};

struct pool_work_stats {
    uint32_t running;
    uint64_t done, wasted, output_tokens, wasted_tokens; /* tokens: computed, prompts included in the wasted */
};

NODISCARD enum status pool_work_create(const struct pool_work_config *config, struct pool_work **work,
                                       struct error *err);
void pool_work_over(struct pool_work *work); /* answers that still come are dropped; NULL is fine */
void pool_work_destroy(struct pool_work *work);

/* false: it is not of a request that this server runs for others. */
bool pool_work_news(struct pool_work *work, struct pool_news *news);
/* Each second or so; came: as pool_came before the news were taken. */
void pool_work_tick(struct pool_work *work, bool came);
void pool_work_read_stats(const struct pool_work *work, struct pool_work_stats *stats);

#endif
