/* See engine_run.h. The engine reads its clock before it takes what was submitted: there its thread waits until all of
 * it is. The clock goes on by a microsecond each time it is read, so that waiting requests age alike in every run. */
#include "tests/support/engine_run.h"

#include "runtime/base/mem.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct run {
    pthread_t owner; /* may always read the clock */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool open;       /* the engine may go; guarded by mutex */
    uint64_t now_ns; /* guarded by mutex */
    uint64_t wakes;  /* guarded by mutex */
};

static void *take(size_t count, size_t size)
{
    void *memory = mem_alloc(count, size);
    if (memory) return memory;
    fprintf(stderr, "no memory for a test's requests\n");
    exit(1);
}

void engine_job_make(struct engine_job *job, uint64_t id, const uint32_t *prompt, uint32_t prompt_count,
                     uint32_t max_tokens, uint32_t choices)
{
    memset(job, 0, sizeof *job);
    for (uint32_t c = 0; c < choices; c++) {
        uint32_t *tokens = take(prompt_count + max_tokens, sizeof *tokens);
        memcpy(tokens, prompt, prompt_count * sizeof *tokens);
        job->choices[c] = (struct choice){
            .tokens = tokens, .logprobs = take(max_tokens, sizeof *job->choices[c].logprobs), .seed = id * 100 + c};
    }
    job->request = (struct request){.id = id,
                                    .owner = job,
                                    .service_class = CLASS_DEFAULT,
                                    .prompt = job->choices[0].tokens,
                                    .prompt_count = prompt_count,
                                    .choices = job->choices,
                                    .choices_count = choices,
                                    .params = {.top_p = 1, .repetition_penalty = 1, .logprobs = 2},
                                    .max_tokens = max_tokens,
                                    .ignore_eos = true};
}

void engine_job_free(struct engine_job *job)
{
    for (uint32_t c = 0; c < job->request.choices_count; c++) {
        mem_free(job->choices[c].tokens);
        mem_free(job->choices[c].logprobs);
    }
}

static uint64_t now_when_open_ns(void *state)
{
    struct run *run = state;
    bool is_owner = pthread_equal(pthread_self(), run->owner);
    pthread_mutex_lock(&run->mutex);
    while (!is_owner && !run->open) pthread_cond_wait(&run->changed, &run->mutex);
    uint64_t now_ns = run->now_ns += 1000;
    pthread_mutex_unlock(&run->mutex);
    return now_ns;
}

static void open_gate(struct run *run)
{
    pthread_mutex_lock(&run->mutex);
    run->open = true;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->mutex);
}

static void on_wake(void *state)
{
    struct run *run = state;
    pthread_mutex_lock(&run->mutex);
    run->wakes++;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->mutex);
}

/* Polls until so many requests have ended. */
static void wait_for(struct run *run, struct engine *engine, uint32_t count)
{
    uint64_t seen = 0;
    while (count) {
        struct event event;
        while (engine_poll(engine, &event)) {
            if (event.kind != REQUEST_DONE && event.kind != REQUEST_REFUSED) continue;
            struct engine_job *job = event.request->owner;
            job->ended = true;
            job->status = event.status;
            count--;
        }
        pthread_mutex_lock(&run->mutex);
        while (count && run->wakes == seen) pthread_cond_wait(&run->changed, &run->mutex);
        seen = run->wakes;
        pthread_mutex_unlock(&run->mutex);
    }
}

enum status engine_jobs_run(const struct engine_config *config, struct device *device,
                            const struct tokenizer *tokenizer, struct engine_job *jobs, uint32_t count,
                            struct engine_stats *stats, struct error *err)
{
    struct run run = {.owner = pthread_self()};
    struct clock clock = {.now_ns = now_when_open_ns, .state = &run};
    struct engine_config own = *config;
    struct engine *engine = NULL;
    uint32_t submitted = 0;
    own.clock = &clock;
    own.wake = on_wake;
    own.wake_state = &run;
    pthread_mutex_init(&run.mutex, NULL);
    pthread_cond_init(&run.changed, NULL);
    enum status status = engine_create(&own, device, tokenizer, &engine, err);
    while (status == ST_OK && submitted < count) {
        status = engine_submit(engine, &jobs[submitted].request);
        if (status == ST_OK) submitted++;
    }
    open_gate(&run);
    if (engine) {
        wait_for(&run, engine, submitted);
        engine_stop(engine);
        engine_stats_read(engine, stats);
        engine_destroy(engine);
    }
    pthread_cond_destroy(&run.changed);
    pthread_mutex_destroy(&run.mutex);
    return status;
}
