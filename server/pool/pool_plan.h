/* The pool's decisions: what a server offers, how much it pulls, and when it takes back what it has offered.
 *
 *   accepting   waits for green ---offer---> open --pulled--> taken ---> result, billed here
 *                    ^                        |                |
 *                    +---- the plan lets it go, own green or its deadline        (the puller's result has then lost)
 *                    +---- TAKE_BACK_MS before the last moment to start ---------+
 *
 * The plan (server/power/plan.h) lets a part of a batch go two slots before its last moment: from then on what nobody
 * has pulled runs here. What somebody runs is left to him for one slot more, and then taken back whatever he does, so
 * that it is done here in time: never late, and never lost, with or without Redis.
 * Pulling: what green power the next quarter of an hour has beyond all own deferrable work (plan_surplus). Pure. */
#ifndef SERVER_POOL_POOL_PLAN_H
#define SERVER_POOL_POOL_PLAN_H

#include <stdbool.h>
#include <stdint.h>

enum {
    POOL_TAKE_BACK_MS = 900000, /* one slot of the plan */
    POOL_WAIT_MS_MIN = 60000    /* for green of its own, to be worth the way */
};

struct pool_offer {
    int64_t now_ms, deadline_ms, span_ms; /* span: how long it takes on a busy node */
    int64_t expected_ms;                  /* when the plan thinks that it starts here; 0: not known */
    bool waits_green;
};

bool pool_may_offer(const struct pool_offer *offer);

/* let_go: the plan has released it here. */
bool pool_takes_back(const struct pool_offer *offer, bool let_go, bool taken);

struct pool_room {
    double surplus_s, job_s;        /* device seconds: of green to spare; of a job as pulled so far, 0: none yet */
    uint32_t running, running_max;  /* jobs of the pool here */
    uint32_t kv_tokens, job_tokens; /* free; of a job as pulled so far */
    uint32_t queued;                /* own requests that wait for their place in the engine */
};

uint32_t pool_pulls(const struct pool_room *room);

#endif
