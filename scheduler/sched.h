/* The scheduler: which tokens enter the next step, and what the step's results mean. Pure: requests, results and times
 * go in, a batch and events come out. No I/O, clock, lock or thread; no allocation after sched_create. The same calls
 * with the same times give the same plans (R20). The engine, the simulator and the benchmark drive it alike:
 *
 *   sched_submit, sched_cancel ...  ->  sched_plan  ->  (device step)  ->  sched_commit  ->  take the events
 *
 * With a device that runs ahead the next step is planned before the last one is committed:
 *
 *   plan 1, plan 2, commit 1, plan 3, commit 2, ...
 *
 * Plan 2 takes for granted that every sequence goes on: an id that step 1 will choose is pending, its token is a
 * TOKEN_OF_ROW (batch.h), and a sequence that turns out to have ended has its row of step 2 dropped at that commit; its
 * blocks stay its own until then. Limits of length and of what is paid for are known in advance, so nothing is planned
 * beyond them. What needs blocks that only a preemption gives waits: that plan is empty, and commit 1 comes first. Ids,
 * their order and usage of a request are the same in both ways.
 *
 * A request is a job; each of its choices is a sequence. Life of both, with the function on each edge:
 *
 *   job       sched_submit -> WAITING -admit-> STARTED -last sequence ends, or job_end-> DONE event
 *                                \- cancel, deadline -> REFUSED event
 *   sequence  admit -> RUNNING <-preempt / admit-> WAITING again (it keeps its ids, not its KV) -> sequence_end
 *
 * Files: sched.c (life of jobs, submit, cancel), sched_plan.c, sched_power.c, sched_commit.c, sched_internal.h
 * (records). Rules R1-R27 are in the README of this folder. One thread. */
#ifndef SCHEDULER_SCHED_H
#define SCHEDULER_SCHED_H

#include "runtime/base/status.h"
#include "runtime/batch.h"
#include "runtime/power/attribution.h"
#include "runtime/power/energy_model.h"
#include "scheduler/request.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SCHED_SUBMITS_MAX = 256, /* submissions and cancels between two times that events are taken */
    SCHED_STEPS_MAX = 2      /* steps planned and not committed */
};

/* What the scheduler must know of a token. */
struct sched_text {
    const char *bytes;
    uint32_t length;
    bool special;
};

struct sched_config {
    uint32_t context_max;     /* positions of a sequence */
    uint32_t running_max;     /* sequences in a step, 1.. */
    uint32_t step_tokens_max; /* tokens in a step, at least 16 and running_max */
    uint32_t rows_max;        /* rows with logits in a step, at least running_max */
    uint32_t kv_blocks;       /* of KV_BLOCK_TOKENS tokens */
    uint32_t queue_requests_max;
    uint64_t queue_tokens_max;
    uint32_t tenants_max;
    uint32_t tenant_share_percent; /* 1..100 */
    bool tells_shares;             /* sched_plan_shares is wanted */
    uint64_t itl_target_ns;        /* 0: no bound on chunks, and the cost model stays frozen */
    bool prefix_cache;
    uint64_t cache_epoch;                  /* changes when cached KV stops being valid */
    uint32_t think_start_id, think_end_id; /* VOCAB_NO_ID without */
    const struct sched_text *texts;        /* [texts_count], borrowed */
    uint32_t texts_count;                  /* the vocabulary */
    const uint32_t *end_ids;               /* borrowed */
    uint32_t end_ids_count;
    uint64_t weights_bytes, kv_block_bytes; /* for the cost model */
    uint64_t class_limit_ns[CLASS_COUNT];   /* waiting longer ranks a request up; 0: the built-in values */
};

/* Counters since the start, and gauges. */
struct sched_stats {
    uint64_t prompt_tokens, cached_tokens; /* of started requests: in_total, in_hit */
    uint64_t computed_prompt_tokens, generation_tokens, recomputed_tokens;
    uint64_t preemptions, prefix_queries_tokens, prefix_hits_tokens;
    uint64_t requests_done, requests_refused, mismatches;
    uint32_t running, waiting; /* sequences with KV; requests not yet started */
    uint64_t waiting_tokens;
    uint32_t kv_blocks_used, kv_blocks_cached, kv_blocks_total;
    uint32_t step_tokens, step_rows; /* of the last plan */
    uint64_t touched;                /* records touched, admission apart (R15) */
};

/* What the next plan may take of a watt budget (R25, R26). */
struct sched_power {
    double room_j;   /* joules above idle; infinity: no limit; 0: what has ended is ended, and nothing is planned */
    double urgent_j; /* that priority's prompts may take where it is more than room_j */
    double idle_w;   /* drawn without work */
    double range_w;  /* the most that work draws above it; 0: not known */
    struct energy_model model;
    bool holds_deferrable; /* flex and batch wait, as far as their class limits allow */
    bool paces_default;    /* a row of default has a token in twice its interval (R27); priority as ever */
    bool caps_rows; /* at most rows_most rows of flex and batch in a step, and no prompt of theirs beside so many,
                     * as far as their class limits allow */
    uint32_t rows_most;
    uint32_t step_ms; /* that a step with prompts may last under a limit; 0: 30 */
};

struct sched;

/* ST_INVAL: a size is 0 or contradicts another (err names it); ST_NOMEM. The caller owns the scheduler. */
NODISCARD enum status sched_create(const struct sched_config *config, struct sched **sched, struct error *err);
void sched_destroy(struct sched *sched);

/* Takes a request over. Not ST_OK: it was refused and a REQUEST_REFUSED event with that status is there (R18: it holds
 * nothing): ST_INVAL (can never fit, or a field is out of range), ST_LIMIT (queue full), ST_QUOTA (tenant's share
 * full), ST_TIMEOUT (deadline has passed). */
enum status sched_submit(struct sched *sched, struct request *request, uint64_t now_ns);

/* Refuses a request unseen, with the event that sched_submit would make. */
void sched_refuse(struct sched *sched, struct request *request, enum status status, uint64_t now_ns);

/* Marks a request for its end in the next plan; tokens sampled for it until then are dropped. CAUSE_QUOTA_END and
 * CAUSE_ACCOUNT_STOP end a started one well (FINISH_QUOTA, FINISH_ACCOUNT, ST_OK): what was held back for stop strings
 * may be shown. False: not known. */
bool sched_cancel(struct sched *sched, uint64_t request_id, enum cause cause);

/* Raises the output limit of each of a request's choices (never lowers it): paused ones go on with the next plan.
 * False: not known. */
bool sched_raise(struct sched *sched, uint64_t request_id, uint32_t out_limit);

/* Ends what is cancelled or late, then plans a step; with fewer than SCHED_STEPS_MAX open. The batch is valid until the
 * next call of a sched_ function that is not a query; tokens_count 0 means that there is nothing to do, or nothing
 * before the commit of the step that is open. Each plan with tokens is committed, in order, or ended by sched_end_all.
 */
const struct batch *sched_plan(struct sched *sched, uint64_t now_ns);

/* Holds for all plans that follow, until the next call. Without any there is no limit, and no joules are told. */
void sched_set_power(struct sched *sched, const struct sched_power *power);
/* Whether a sequence of flex or batch runs: one that can wait while others are ahead of their watts. */
bool sched_runs_deferrable(const struct sched *sched);
/* How long until a row of default that the last plan left out may go on; UINT64_MAX: there is none. */
uint64_t sched_power_wait_ns(const struct sched *sched, uint64_t now_ns);
/* What the last plan with tokens computes, and its joules above idle by the model of sched_set_power. Returns these. */
double sched_plan_joules(const struct sched *sched, struct energy_work *work);
/* Who does what in that plan: a share for each sequence of its batch, in that order; group is the request's service
 * class. With config.tells_shares only. Valid until the next plan. */
const struct energy_share *sched_plan_shares(const struct sched *sched, uint32_t *count);

/* Takes the results of the oldest open step: all of it (R14). */
void sched_commit(struct sched *sched, const struct batch_result *result, uint64_t now_ns);

/* How long that step took on the device, for the cost model. Call after sched_commit. */
void sched_observe(struct sched *sched, uint64_t step_ns);

/* Discards the open steps and ends every request: started ones with `cause`, the others are refused; both
 * with `status`. */
void sched_end_all(struct sched *sched, enum cause cause, enum status status, uint64_t now_ns);

/* Events since they were last taken, in order; the caller must take them before more than SCHED_SUBMITS_MAX further
 * submissions or the next plan-commit pair. Valid until the next call that is not a query. */
const struct event *sched_events(const struct sched *sched, uint32_t *count);
void sched_events_taken(struct sched *sched);

uint32_t sched_steps_open(const struct sched *sched);
bool sched_has_work(const struct sched *sched); /* a plan may do something, now or when time passes */
void sched_stats_read(const struct sched *sched, struct sched_stats *stats);
/* Time until the queue's prompt tokens are worked off at the measured rate; 0 without a measurement. */
uint64_t sched_queue_wait_ns(const struct sched *sched);

#endif
