/* See closed_loop.h. */
#include "bench/gpu_model/closed_loop.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "scheduler/engine.h"

#include <semaphore.h>

struct job {
    struct request request;
    struct choice choice;
    uint32_t *tokens;
};

struct loop {
    const struct cluster_request *requests;
    struct job *jobs;
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
    const struct cluster_request *asked = &loop->requests[idx];
    struct job *job = &loop->jobs[idx];
    uint64_t rng = idx + UINT64_C(0x100000000);
    job->tokens = mem_alloc((size_t)asked->prompt_count + asked->output_count, sizeof *job->tokens);
    if (!job->tokens) return ST_NOMEM;
    for (uint32_t i = 0; i < asked->prompt_count; i++) job->tokens[i] = (uint32_t)(random_next(&rng) % loop->vocab);
    job->choice = (struct choice){.tokens = job->tokens, .seed = idx};
    job->request = (struct request){.id = idx + 1,
                                    .owner = job,
                                    .service_class = CLASS_DEFAULT,
                                    .prompt = job->tokens,
                                    .prompt_count = asked->prompt_count,
                                    .choices = &job->choice,
                                    .choices_count = 1,
                                    .params = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                                    .max_tokens = asked->output_count,
                                    .ignore_eos = true};
    return engine_submit(loop->engine, &job->request);
}

static enum status run(struct loop *loop, uint32_t clients)
{
    for (uint32_t i = 0; i < clients && loop->next < loop->count; i++) TRY(submit_next(loop));
    while (loop->ended < loop->count) {
        struct event event;
        while (!engine_poll(loop->engine, &event)) sem_wait(&loop->events);
        if (event.kind == REQUEST_REFUSED || (event.kind == REQUEST_DONE && event.status != ST_OK)) return ST_DEVICE;
        if (event.kind != REQUEST_DONE) continue;
        struct job *job = event.request->owner;
        loop->report->prompt_tokens += job->request.usage.in_total;
        loop->report->output_tokens += job->request.usage.out;
        loop->ended++;
        if (loop->next < loop->count) TRY(submit_next(loop));
    }
    return ST_OK;
}

enum status closed_loop_run(const struct cluster_config *config, struct device *device,
                            const struct tokenizer *tokenizer, const struct cluster_request *requests, uint32_t count,
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
