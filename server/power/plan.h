/* The node's table of deferrable jobs (tiers flex and batch): which are accepted, which may run now, and why the others
 * wait. Around scheduler/deadline.h, which has the rules (D1-D4).
 *
 *   plan_admit -> waiting --released--> the caller starts it: plan_started -> plan_progress ... -> plan_remove
 *                    ^                      |
 *                    +------taken back------+  (an event, or the green power is gone before it has started)
 *                    any of them --deadline passed--> PLAN_EXPIRED: it is no longer in the table; the caller ends it
 *
 * Work is counted in device seconds, because a deadline is one of time and a capped node has less of them, not cheaper
 * ones: plan_work tells what a request takes at most, by what the engines' steps have cost. A slot's capacity is its
 * length times the share of full work that the lowest cap or target of the slot pays for, less the 95th percentile of
 * what interactive requests took in minutes of the last day. Green watts become device seconds by what the node draws
 * above idle while it works.
 *
 * Slots come from the store of signals; without one all may run, in the order of deadlines and as far as a slot's work
 * ahead. Planned anew every 60 s, at each slot, and at once when a cap, a target or a shed level changes. A shed level
 * of 1 or more holds all but what its deadline asks for now: those that are released then are told `forced`, and go to
 * the engine as class default, since flex and batch are held there. plan_take chooses again whenever jobs have come,
 * gone or worked.
 *
 * Jobs are not kept here: who accepted one (the journal) enters it again after a restart. io thread only, no lock;
 * times are Unix milliseconds and arguments. */
#ifndef SERVER_POWER_PLAN_H
#define SERVER_POWER_PLAN_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "scheduler/deadline.h"
#include "server/power/slot.h"

enum { PLAN_SLOT_MS = 900000, PLAN_SLOTS = 192, PLAN_JOBS_MAX = 100000, PLAN_PRINT_JOBS_MAX = 1000 };

enum plan_green { PLAN_GREEN_ANY, PLAN_GREEN_PREFER, PLAN_GREEN_ONLY };
enum plan_tier { PLAN_FLEX, PLAN_BATCH };
enum plan_end { PLAN_DONE, PLAN_CANCELED, PLAN_FAILED };

struct plan_job {
    uint64_t id;         /* not 0, no other job's */
    double work;         /* device seconds at most: plan_work */
    int64_t deadline_ms; /* flex that has started does not expire */
    int64_t span_ms;     /* it lasts so long by itself on a busy node: plan_span_ms. 0: not known */
    enum plan_green green;
    enum plan_tier tier;
};

/* What one request computes. */
struct plan_request {
    uint32_t prompt_tokens; /* exact, less what is known to be cached */
    uint32_t output_tokens; /* max_tokens, or what is left of it; of all choices */
    uint32_t choices;       /* >= 1 */
};

/* Why a deadline was missed: a cap or target took the capacity, an event held it, there was no green (green only), or
 * it took longer than its work was thought to. */
enum plan_cause { PLAN_CAUSE_CAP, PLAN_CAUSE_EVENT, PLAN_CAUSE_GREEN, PLAN_CAUSE_LATE, PLAN_CAUSES };

enum plan_news_kind { PLAN_RELEASED, PLAN_TAKEN_BACK, PLAN_EXPIRED };

struct plan_news {
    enum plan_news_kind kind;
    uint64_t id;
    bool forced;           /* RELEASED in an event, by its deadline; goes to the engine as class default */
    enum plan_cause cause; /* EXPIRED */
};

struct plan_explanation {
    const char *state;   /* "waiting", "released", "running" */
    const char *why;     /* of one that waits: "green", "price", "event", "capacity"; else by what it was let go: these
                            or "deadline" */
    int64_t expected_ms; /* when it starts, as things stand; now once released. 0: never (green only, none ahead) */
    int64_t deadline_ms;
    int64_t span_ms;
    bool waits_green; /* it waits, and for nothing but green power */
};

/* What the process knows each time that it looks; totals are of all time. */
struct plan_now {
    int64_t now_ms;
    double busy_s;                              /* device seconds of all engines' steps */
    double steps, prompt_tokens, output_tokens; /* of these: computed */
    bool metered;                               /* the rest holds */
    double work_j;                              /* joules of the meter above idle */
    double idle_w, full_w;
    double cap_w, target_w; /* of options or given by hand; infinity: none */
    uint32_t shed_level;
};

struct plan_config {
    uint32_t jobs_max, margin_slots; /* 0: PLAN_JOBS_MAX, 2 */
    /* As signal_over_slot (server/power/signal.h); NULL: there is no signal. */
    void (*over_slot)(void *state, int64_t unix_ms, int64_t now_ms, struct power_slot *slot);
    void *state;
};

struct plan_totals {
    struct deadline_sums sums;
    uint64_t admitted, refused, done, misses[PLAN_CAUSES];
    double deferral_s; /* sum over ended waits: from admission to release */
    uint64_t deferrals;
    double flex_down_w; /* what could be shed now: by deferrable jobs that run without being forced */
    double interactive; /* 95th percentile, device seconds a second */
    const char *policy; /* "free", "green", "price" */
    bool hold;
};

struct plan;

NODISCARD enum status plan_create(const struct plan_config *config, struct plan **plan, struct error *err);
void plan_destroy(struct plan *plan); /* NULL is fine */

/* Each turn of the io loop, or about each second. Cheap when nothing is new. */
void plan_look(struct plan *plan, const struct plan_now *now);
/* What has changed for jobs since; false: nothing more. May be called at any time, best after plan_look, plan_admit and
 * plan_remove. A job that is removed has no more news. */
bool plan_take(struct plan *plan, struct plan_news *news, int64_t now_ms);

/* Device seconds at most, and how long it takes on a busy node; by what steps have cost so far. */
double plan_work(const struct plan *plan, const struct plan_request *request);
int64_t plan_span_ms(const struct plan *plan, const struct plan_request *request);

/* ST_OK: promised. ST_LIMIT: it cannot be (503 deadline_infeasible, for flex resource_unavailable); *earliest_ms is the
 * first deadline that could be promised, for flex when to try again; 0: none is known. ST_AGAIN: the table is full.
 * ST_INVAL: id, work or deadline cannot be. */
NODISCARD enum status plan_admit(struct plan *plan, const struct plan_job *job, int64_t now_ms, int64_t *earliest_ms);
/* A job promised in an earlier life: never refused for capacity. ST_AGAIN, ST_INVAL. One whose deadline has passed
 * expires with the next plan_take. */
NODISCARD enum status plan_enter(struct plan *plan, const struct plan_job *job, int64_t now_ms);

/* Ids that are not known are ignored by these. */
void plan_started(struct plan *plan, uint64_t id); /* it is not taken back any more */
void plan_progress(struct plan *plan, uint64_t id, double work_left);
void plan_again(struct plan *plan, uint64_t id, double work); /* it must begin anew, and waits */
/* work_used: device seconds that it really took, of its work; < 0: as plan_progress has told. */
void plan_remove(struct plan *plan, uint64_t id, enum plan_end end, double work_used);

bool plan_released(const struct plan *plan, uint64_t id);
bool plan_explain(const struct plan *plan, uint64_t id, int64_t now_ms, struct plan_explanation *explanation);
/* Device seconds of green power that the next slot's length of time has beyond all jobs that are held; 0 in an event,
 * and where no source tells of green power now. */
double plan_surplus(const struct plan *plan, int64_t now_ms);
void plan_read_totals(const struct plan *plan, struct plan_totals *totals);
const char *plan_cause_text(enum plan_cause cause); /* "cap", "event", "green", "late" */
/* For /metrics, in Prometheus' text form. */
void plan_print_metrics(const struct plan *plan, struct buf *out);
/* Totals, the slots in which work is planned, and the first jobs_count jobs by deadline. JSON. */
void plan_print(const struct plan *plan, int64_t now_ms, uint32_t jobs_count, struct buf *out);

#endif
