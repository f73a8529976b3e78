/* Requests through a real engine, for tests of devices. All requests are there before the engine looks for the first
 * time, so what runs beside what does not depend on how fast threads are. */
#ifndef TESTS_SUPPORT_ENGINE_RUN_H
#define TESTS_SUPPORT_ENGINE_RUN_H

#include "scheduler/engine.h"

enum { ENGINE_JOB_CHOICES = 3 };

struct engine_job {
    struct request request; /* may be changed between engine_job_make and the run */
    struct choice choices[ENGINE_JOB_CHOICES];
    bool ended;
    enum status status; /* how it ended */
};

/* A request of `id` >= 1 for max_tokens ids of each choice, whatever they are; greedy, with log-probabilities of the
 * first two. The prompt is copied. Ends the program with 1 when there is no memory. */
void engine_job_make(struct engine_job *job, uint64_t id, const uint32_t *prompt, uint32_t prompt_count,
                     uint32_t max_tokens, uint32_t choices);
void engine_job_free(struct engine_job *job);

/* Runs all jobs to their ends; clock and wake of the config are set here. stats: of the stopped engine. Errors: as
 * engine_create and engine_submit. */
NODISCARD enum status engine_jobs_run(const struct engine_config *config, struct device *device,
                                      const struct tokenizer *tokenizer, struct engine_job *jobs, uint32_t count,
                                      struct engine_stats *stats, struct error *err);

#endif
