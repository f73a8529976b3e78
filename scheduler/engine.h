/* The engine: the thread that carries the scheduler's decisions out, step after step.
 *
 *   io thread --submit/cancel--> ring -> [ sched_plan -> device_step -> sched_commit ] -> ring --events--> io thread
 *
 * A device that can (device.h: launch) gets its next step while one runs: plan 2, launch 2, collect 1, commit 1, ... so
 * that the time of plan, commit and events is hidden behind a step; what a request yields is the same.
 *
 * It is the only thread that touches scheduler and device. It never does I/O; while there is work it allocates nothing,
 * takes no lock and makes no system call but wake-ups (tests/unit/scheduler/test_engine_quiet.c). With nothing
 * to do, or no watts to do it with, it sleeps. After each step that made events it calls `wake` once (not once a token
 * or stream). A full event ring stops the engine until the server has taken some: nothing is lost. */
#ifndef SCHEDULER_ENGINE_H
#define SCHEDULER_ENGINE_H

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "runtime/device/device.h"
#include "runtime/device/turn.h"
#include "runtime/text/tokenizer.h"
#include "scheduler/power_port.h"
#include "scheduler/request.h"

#include <stdbool.h>
#include <stdint.h>

struct engine;

struct engine_config {
    uint32_t context_max;                  /* max-model-len */
    uint32_t running_max;                  /* max-num-seqs: sequences in a step */
    uint32_t step_tokens_max;              /* max-num-batched-tokens */
    uint32_t queue_requests_max;           /* waiting requests of all tenants */
    uint64_t queue_tokens_max;             /* their prompt tokens */
    uint32_t tenants_max;                  /* tenant indices are below this */
    uint32_t tenant_share_percent;         /* of both queues, while other tenants wait */
    uint64_t itl_target_ns;                /* gap between tokens that prefill chunks must respect; 0 = no bound */
    bool prefix_cache;                     /* false: blocks are shared only between the choices of one request */
    uint32_t think_start_id, think_end_id; /* reasoning markers, VOCAB_NO_ID without */
    struct power_port *power;              /* a watt budget; borrowed; NULL: there is none */
    struct turn *turn; /* shared with engines on the same cores; borrowed; NULL: this engine has them alone */
    const struct clock *clock;
    void (*wake)(void *state); /* engine thread: events are waiting */
    void *wake_state;
};

/* What metrics, health and admission read: a consistent copy, made at the end of each step. */
struct engine_stats {
    uint64_t steps, step_ns_total, device_ns_total; /* of the device: how long the thread waited for it */
    uint64_t steps_ahead;                           /* launched while another was under way */
    uint64_t own_ns_total, idle_ns_total; /* with device_ns_total all of the engine thread's life: neither; asleep */
    uint64_t turn_ns_total;               /* of that asleep: work was there, and another engine's step */
    uint64_t paced_ns_total;              /* of that asleep: work was there, and no watts */
    uint64_t prompt_tokens, cached_tokens, computed_prompt_tokens, generation_tokens, recomputed_tokens;
    uint64_t preemptions, prefix_queries_tokens, prefix_hits_tokens;
    uint64_t requests_done, requests_refused;
    uint32_t running, waiting; /* sequences, requests */
    uint64_t waiting_tokens;
    uint32_t kv_blocks_used, kv_blocks_cached, kv_blocks_total;
    uint64_t queue_wait_estimate_ns; /* queued work / measured rate: Retry-After */
    uint32_t last_step_tokens, last_step_rows;
    bool device_lost; /* the engine has ended its requests and takes no more */
    uint64_t beat_ns; /* when the loop last turned, for the watchdog */
};

/* Starts the engine thread. device and tokenizer are borrowed and must outlive it. ST_NOMEM, ST_INVAL;
 * ST_LIMIT: the turn has no place left (err). */
NODISCARD enum status engine_create(const struct engine_config *config, struct device *device,
                                    const struct tokenizer *tokenizer, struct engine **engine, struct error *err);

/* Stops after the steps under way, ends whatever still runs with CAUSE_PLATFORM_CANCEL (their events can still be
 * polled until destroy), joins the thread. io thread. */
void engine_stop(struct engine *engine);
void engine_destroy(struct engine *engine);

/* Hands a request over. ST_AGAIN: the ring is full (answer 503). io thread only. */
NODISCARD enum status engine_submit(struct engine *engine, struct request *request);

/* Asks for the request's end; takes effect in the next plan, its blocks are free within that step, or with the commit
 * of the last that it is in. Its REQUEST_DONE still comes. Harmless for a request that has ended or was never known.
 * cause: as sched_cancel. False: the ring is full, ask again. io thread only. */
NODISCARD bool engine_cancel(struct engine *engine, uint64_t request_id, enum cause cause);
/* Raises the output limit of each of its choices; as sched_raise. False: the ring is full, ask again. io thread only.
 */
NODISCARD bool engine_raise(struct engine *engine, uint64_t request_id, uint32_t out_limit);

/* The next event, false when there is none. One thread: io, or the meter's; after engine_stop its caller. */
bool engine_poll(struct engine *engine, struct event *event);

/* Any thread; does not disturb the engine. */
void engine_stats_read(const struct engine *engine, struct engine_stats *stats);

#endif
