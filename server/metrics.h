/* What /metrics shows, in Prometheus' text format 0.0.4: vLLM's names, labels and buckets (so that its dashboards, and
 * the routers that read it, work unchanged), and our own as mr_*. Counts of tokens and blocks come from the engine's
 * own statistics; times and sizes of requests are observed here. Pure; io thread. */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "scheduler/engine.h"
#include "server/billing/usage.h"
#include "server/power/cost_live.h"
#include "server/power/power_thread.h"

#include <stdbool.h>
#include <stdint.h>

enum metrics_histogram {
    HISTOGRAM_TIME_TO_FIRST_TOKEN,
    HISTOGRAM_INTER_TOKEN,
    HISTOGRAM_TIME_PER_TOKEN,
    HISTOGRAM_E2E,
    HISTOGRAM_QUEUE,
    HISTOGRAM_INFERENCE,
    HISTOGRAM_PREFILL,
    HISTOGRAM_DECODE,
    HISTOGRAM_PROMPT,
    HISTOGRAM_GENERATION,
    HISTOGRAM_GENERATION_MAX,
    HISTOGRAM_PARAMS_MAX_TOKENS,
    HISTOGRAM_PREFILL_COMPUTED,
    HISTOGRAM_ITERATION,
    HISTOGRAM_PARAMS_N,
    HISTOGRAM_PREEMPTIONS,
    HISTOGRAM_COUNT
};

enum { METRICS_BUCKETS_MAX = 40 };

struct histogram {
    uint32_t bounds_count;
    double bounds[METRICS_BUCKETS_MAX];
    uint64_t counts[METRICS_BUCKETS_MAX + 1]; /* of its bucket alone; the last is +Inf */
    double sum;
};

struct metrics {
    char model_name[256]; /* escaped for a label */
    struct histogram histograms[HISTOGRAM_COUNT];
    uint64_t finished[CAUSES];                  /* by enum cause */
    uint64_t rejected_requests;                 /* the node's queue was full */
    uint64_t rate_limited;                      /* a tenant's share was full */
    uint64_t records[CAUSES], records_mismatch; /* usage records, by enum cause */
    uint64_t recorded_in, recorded_hit, recorded_out, recorded_reasoning, recorded_recomputed;
};

/* What is true of a model at the moment of a scrape. */
struct metrics_model {
    const struct metrics *metrics;
    const struct engine_stats *engine; /* NULL: no engine yet */
    bool ready;
    uint32_t sleep_level; /* 0 awake, else as model_life.h */
    uint32_t preparing;   /* what waits for its wake, and what is in the pool: of several models counted for the first,
 as nobody knows yet */
    bool prefix_cache;
    uint64_t weights_bytes, kv_bytes, scratch_bytes; /* in memory */
    uint64_t load_ns, wake_ns, wake_estimate_ns;     /* 0: not known */
};

/* What the meter of watts shows. */
struct metrics_power {
    bool is_on, estimated;
    double watts, setpoint_w, error_ratio; /* setpoint_w infinity: none */
    uint32_t shed_level, alarm;            /* alarm: 0 fine, 1 silent, 2 lost */
    double meter_j, meter_s;               /* counted by the meter, and in how long */
    uint64_t windows, read_failures, steps_lost;
    const struct power_usage *usage; /* with is_on */
    bool has_cost;
    struct cost_live cost; /* with has_cost */
    const char *currency;
};

/* What is true of the process. */
struct metrics_process {
    uint64_t replies[6];           /* by first digit of the HTTP status; counted by metrics_reply */
    uint32_t connections, answers; /* open connections, answers in the making */
    uint64_t log_lines_dropped;
    bool has_audit; /* --audit-log */
    uint64_t audit_lines, audit_failures;
    uint64_t memory_limit_bytes;
    uint64_t io_cpu_ns, process_cpu_ns; /* CPU time of the io thread, of the whole process */
    struct metrics_power power;
    double weight;                                /* that a balancer is told, 0..100 */
    uint64_t io_switches_own, io_switches_forced; /* times the io thread gave its core up: by sleeping, for another */
};

void metrics_init(struct metrics *metrics, const char *model_name, uint32_t context_max);
void metrics_observe(struct metrics *metrics, enum metrics_histogram histogram, double value);

/* A request that was scheduled and has ended. */
void metrics_request_done(struct metrics *metrics, const struct request *request);
void metrics_usage(struct metrics *metrics, const struct usage_record *record);
void metrics_reply(struct metrics_process *process, int http_status);

/* Every series of a model once for each, under one head; then those of the process. */
void metrics_print(const struct metrics_model *models, uint32_t count, const struct metrics_process *process,
                   struct buf *out);

#endif
