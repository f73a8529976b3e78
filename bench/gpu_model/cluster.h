/* A cluster of nodes in virtual time: each node runs the real scheduler (scheduler/sched.h), its device is a function
 * that says how long a step takes. Nothing sleeps and no clock is read, so a run is a function of its arguments.
 *
 * Closed loop (clients > 0): each client asks again when its answer is there; arrivals are ignored. Open loop: requests
 * come when they say. A node is chosen by the request's group (conversations of a group share a prefix), else the node
 * with the fewest requests. */
#ifndef BENCH_GPU_MODEL_CLUSTER_H
#define BENCH_GPU_MODEL_CLUSTER_H

#include "bench/gpu_model/step_shape.h"
#include "scheduler/sched.h"

struct cluster_request {
    double arrival_s;
    uint32_t prompt_count, output_count;
    uint32_t group, shared_count; /* group 0: none; else the first shared_count ids are the group's */
    /* results, seconds of virtual time */
    double asked_s, first_s, done_s;
    bool refused;
};

/* Such a request, as an engine or a scheduler takes it. */
struct cluster_job {
    struct request request; /* its owner is the job */
    struct choice choice;
    uint32_t *tokens; /* of prompt and answer; mem_free */
    struct cluster_request *asked;
};
/* Request number idx; its prompt is a function of idx, the group and the vocabulary. *job stays where it is while the
 * request lives. ST_NOMEM. */
NODISCARD enum status cluster_job_make(struct cluster_job *job, uint32_t idx, struct cluster_request *asked,
                                       uint32_t vocab);

typedef double (*cluster_step_fn)(const void *state, const struct step_shape *step); /* seconds */

struct cluster_config {
    uint32_t nodes, clients;
    struct sched_config sched; /* texts and end ids are the cluster's own */
    uint32_t window;           /* of the model's windowed layers */
    double host_s;             /* of a step, not hidden behind the device */
    cluster_step_fn step;
    const void *step_state;
};

struct cluster_report {
    double seconds; /* from the first request to the last answer */
    uint64_t prompt_tokens, output_tokens, steps, preemptions, refused;
    double busy_s; /* of all nodes' devices */
    double ttft_p50_s, ttft_p99_s, itl_mean_s;
};

NODISCARD enum status cluster_run(const struct cluster_config *config, struct cluster_request *requests, uint32_t count,
                                  struct cluster_report *report, struct error *err);

#endif
