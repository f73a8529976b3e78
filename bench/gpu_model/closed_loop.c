/* See closed_loop.h. */
#include "bench/gpu_model/closed_loop.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "scheduler/engine.h"

#include <semaphore.h>

struct loop {
    struct cluster_request *requests;
    struct cluster_job *jobs;
    struct engine *engine;
    uint32_t count, next, ended, vocab;
    struct cluster_report *report;
    sem_t events;
};

static void on_wake(void *state)
{
    sem_post(&((struct loop *)state)->events);
}

static enum status submit_next(struct loop *loop)
{
    uint32_t idx = loop->next++;
    TRY(cluster_job_make(&loop->jobs[idx], idx, &loop->requests[idx], loop->vocab));
    return engine_submit(loop->engine, &loop->jobs[idx].request);
}

static enum status run(struct loop *loop, uint32_t clients)
{
    for (uint32_t i = 0; i < clients && loop->next < loop->count; i++) TRY(submit_next(loop));
    while (loop->ended < loop->count) {
        struct event event;
        while (!engine_poll(loop->engine, &event)) sem_wait(&loop->events);
        if (event.kind == REQUEST_REFUSED || (event.kind == REQUEST_DONE && event.status != ST_OK)) return ST_DEVICE;
        if (event.kind != REQUEST_DONE) continue;
        loop->report->prompt_tokens += event.request->usage.in_total;
        loop->report->output_tokens += event.request->usage.out;
        loop->ended++;
        if (loop->next < loop->count) TRY(submit_next(loop));
    }
    return ST_OK;
}

enum status closed_loop_run(const struct cluster_config *config, struct device *device,
                            const struct tokenizer *tokenizer, struct cluster_request *requests, uint32_t count,
                            struct cluster_report *report, struct error *err)
{
    struct loop loop = {.requests = requests, .count = count, .vocab = device->info.vocab, .report = report};
    const struct sched_config *s = &config->sched;
    struct engine_config settings = {.context_max = s->context_max,
                                     .running_max = s->running_max,
                                     .step_tokens_max = s->step_tokens_max,
                                     .queue_requests_max = s->queue_requests_max,
                                     .queue_tokens_max = s->queue_tokens_max,
                                     .tenants_max = s->tenants_max,
                                     .tenant_share_percent = s->tenant_share_percent,
                                     .itl_target_ns = s->itl_target_ns,
                                     .prefix_cache = s->prefix_cache,
                                     .think_start_id = VOCAB_NO_ID,
                                     .think_end_id = VOCAB_NO_ID,
                                     .clock = clock_system(),
                                     .wake = on_wake,
                                     .wake_state = &loop};
    *report = (struct cluster_report){0};
    sem_init(&loop.events, 0, 0);
    loop.jobs = mem_alloc(count, sizeof *loop.jobs);
    enum status status = loop.jobs ? engine_create(&settings, device, tokenizer, &loop.engine, err)
                                   : error_set(err, ST_NOMEM, "closed loop: no memory");
    if (status == ST_OK) {
        uint64_t start_ns = clock_now_ns(clock_system());
        status = run(&loop, config->clients);
        report->seconds = (double)(clock_now_ns(clock_system()) - start_ns) * 1e-9;
        if (status != ST_OK) error_set(err, status, "closed loop: %s", status_text(status));
        engine_stop(loop.engine);
        struct engine_stats stats;
        engine_stats_read(loop.engine, &stats);
        report->steps = stats.steps;
        report->busy_s = (double)stats.device_ns_total * 1e-9;
        engine_destroy(loop.engine);
    }
    for (uint32_t i = 0; loop.jobs && i < count; i++) mem_free(loop.jobs[i].tokens);
    mem_free(loop.jobs);
    sem_destroy(&loop.events);
    return status;
}
