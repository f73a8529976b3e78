/* The models of the process: what is loaded, what is on its way, and who uses it.
 *
 *                 loader thread, one job at a time              pool
 *   models_load -> open -> (memory: share, check) -> build -> engine -> READY     engine ends, memory back <- DRAINING
 *
 * Each model has its own device, KV blocks, engine and metrics; engines share the cores by one turn (device/turn.h).
 * At the start all models are opened before the first is built, because the KV memory is divided among them.
 *
 * S1  A call that may touch a model's tokenizer, template or engine counts in `users`; who only holds the record (its
 *     names) counts in `pins`. What is loaded is freed at users 0 only, the record at pins 0.
 * S2  `users` grows only while the model is READY. So a DRAINING one empties, and nobody meets half a model.
 * S3  Memory is counted from the moment a share is fixed, at first by the file's size, then as it is. It is checked
 *     before a build begins and after it: a model that turns out larger than the limit allows is freed again.
 * S4  A model that fails takes nothing with it: the others serve on.
 * S5  Calls that a drain ends are cut from the loop, never inside models_sleep or models_unload: who asks may be inside
 *     the answer to another call (http_conn_reply lets the connection's next request in), and in the midst of a list.
 *
 * io thread only, but for the hooks: open and build run on the loader's thread, unload in the pool. */
#ifndef SERVER_MODELS_H
#define SERVER_MODELS_H

#include "scheduler/engine.h"
#include "server/billing/meter.h"
#include "server/api.h"
#include "server/load.h"
#include "server/memory_plan.h"
#include "server/metrics.h"
#include "server/model_life.h"
#include "server/model_names.h"
#include "server/power/power_thread.h"
#include "server/power/signal.h"

#include <uv.h>

#include <stdbool.h>
#include <stdint.h>

struct models;

enum model_stage { STAGE_NONE, STAGE_OPEN, STAGE_BUILD, STAGE_START };

/* One model. Read by others, written by models.c (users and pins through its functions) but for `waiting`. */
struct served {
    struct models *models;
    char *path; /* never told to clients */
    struct model_names names;
    struct model_life life;
    struct api_model model;
    struct metrics metrics;
    struct engine *engine;       /* READY and DRAINING, else NULL */
    struct meter_port *port;     /* its events, when they are billed */
    struct power_port *power;    /* its watts, where they are metered */
    struct engine_stats carried; /* what engines before the present one have counted */
    struct memory_row memory;    /* as of S3; its name is names.items[0] */
    struct memory_row full;      /* what it took when it was last loaded; name NULL: never yet */
    uint64_t kv_share_bytes;     /* what it has when it is awake */
    uint32_t users, pins;
    uint32_t waiting;        /* calls that wait for its wake; the exchanges' to count */
    uint64_t steps_seen;     /* of metrics */
    enum status fail_status; /* FAILED: why, for operators */
    struct error fail_reason;
    /* models.c's own */
    struct loaded loaded;
    struct load_need need;
    uint64_t kv_asked_bytes; /* by the load; 0: what is left */
    bool at_start, in_table, metrics_begun, retiring;
    enum model_stage stage;
    uv_work_t work;
    struct engine *engine_ending;
};

struct models_hooks {
    enum status (*open)(const struct config *config, const char *path, struct loaded *loaded, struct load_need *need,
                        struct error *err);
    enum status (*build)(const struct config *config, uint64_t kv_bytes, struct loaded *loaded, struct error *err);
    void (*unload)(struct loaded *loaded); /* of what open or build gave, or of an empty one */
};

struct models_listener {
    void *state;
    void (*wake)(void *state);                           /* engine threads: events are waiting */
    void (*settled)(void *state, struct served *served); /* READY, ASLEEP, FAILED or GONE now; GONE: out of the table */
    void (*cut)(void *state, struct served *served);     /* the time to drain is over: end its calls */
};

struct models {
    const struct config *config;
    struct models_hooks hooks;
    struct models_listener listener;
    struct meter *meter;     /* borrowed; NULL: nothing is billed. Set before models_start */
    struct power *power;     /* borrowed; NULL: no meter of watts. Set before models_start */
    struct signals *signals; /* borrowed: what power's sources tell; never NULL once models are started */
    uv_loop_t *loop;
    struct served *items[MODELS_MAX]; /* in the order in which they are listed */
    uint32_t count;
    uint64_t memory_limit_bytes;
    /* own */
    struct turn *turn;
    bool divided, loader_running, stopping, ended;
    _Atomic bool job_done; /* the loader's last word */
    struct served *job;    /* on the loader's thread */
    uv_thread_t thread;
    enum status job_status;
    struct error job_error;
    uv_async_t async;
    uv_mutex_t closing; /* guards closed */
    bool closed;
};

/* The configuration's models, LOADING; models_start begins with them. ST_NOMEM, ST_INVAL. */
NODISCARD enum status models_init(struct models *models, uv_loop_t *loop, const struct config *config,
                                  const struct models_hooks *hooks, const struct models_listener *listener,
                                  struct error *err);
void models_start(struct models *models);
void models_stop(struct models *models);  /* begins with nothing more */
void models_close(struct models *models); /* its handles; before the loop ends */
/* After the loop: stops the meter and the engines, lets last_events take what they told and end all calls, and frees
 * everything but what a loader that still runs is at: the process's end ends that too. */
void models_free(struct models *models, void (*last_events)(void *state), void *state);

/* The model of that name, or NULL. */
struct served *models_find(const struct models *models, const char *name);
/* In that state now. */
uint32_t models_in(const struct models *models, enum model_state state);
/* Those that take requests, now or after a wake. */
uint32_t models_serving(const struct models *models);

/* Loads a model under names (taken over on ST_OK). A FAILED model of its first name is replaced. ST_AGAIN: a name is in
 * use; ST_LIMIT: MODELS_MAX; ST_NOMEM. */
NODISCARD enum status models_load(struct models *models, const char *path, struct model_names *names,
                                  uint64_t kv_asked_bytes, struct served **served, struct error *err);
/* As model_life.h; what is begun is told by listener.settled. */
enum model_verdict models_sleep(struct served *served, uint32_t level, uint64_t drain_ns);
enum model_verdict models_unload(struct served *served, uint64_t drain_ns);
/* Also ST_NOMEM (err): its memory is taken by others meanwhile, and it sleeps on. */
NODISCARD enum status models_wake(struct served *served, enum model_verdict *verdict, struct error *err);

void models_tick(struct models *models); /* cuts what drains for too long */

void served_use(struct served *served);   /* S2 */
void served_leave(struct served *served); /* may free what is loaded */
void served_pin(struct served *served);
void served_unpin(struct served *served); /* may free the record */

uint64_t models_memory_used(const struct models *models);
/* The next event of its engine, by way of the meter if there is one. False: none now. */
bool served_poll(struct served *served, struct event *event);
/* The engine's counters over all its lives; of one that is not READY what the last told. */
void served_stats(const struct served *served, struct engine_stats *stats);

#endif
