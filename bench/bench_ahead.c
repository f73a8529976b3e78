/* How much of the host's time a device that runs ahead hides: the real engine over a null device whose steps last a
 * fixed time, one step at a time and one ahead.
 *
 *   bench_ahead [--json] [--step-us N ...]
 *
 * ROWS streams decode; a step of the null device ends N us after its launch or after the step before, whichever is
 * later, as on a processor of its own, so what a step takes beyond N us is time that the device stands idle. The null
 * device's own work (copying the batch at launch, hashing ids when it is collected) counts as the host's, so the host's
 * time is more than scheduler and engine alone. The thread that takes events only drops them. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "scheduler/engine.h"
#include "tests/support/null_device.h"
#include "tests/support/plain_tokenizer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 256, PROMPT = 64, OUTPUT = 2000, VOCAB = 1000, RUNS = 3 };

struct stream {
    struct request request;
    struct choice choice;
    uint32_t tokens[PROMPT + OUTPUT];
};

struct taker {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    bool due;
};

struct measure {
    double step_us, idle_us; /* a step; of it the device stands idle */
    double ahead;            /* share of steps launched while another ran */
};

static void die(const char *what)
{
    fprintf(stderr, "bench_ahead: %s\n", what);
    exit(1);
}

static void on_wake(void *state)
{
    struct taker *taker = state;
    pthread_mutex_lock(&taker->mutex);
    taker->due = true;
    pthread_cond_signal(&taker->condition);
    pthread_mutex_unlock(&taker->mutex);
}

static void submit_all(struct engine *engine, struct stream *streams)
{
    for (uint32_t i = 0; i < ROWS; i++) {
        struct stream *stream = &streams[i];
        for (uint32_t p = 0; p < PROMPT; p++) stream->tokens[p] = (i * 7 + p * p) % VOCAB;
        stream->choice = (struct choice){.tokens = stream->tokens, .seed = i};
        stream->request =
            (struct request){.id = i + 1,
                             .service_class = CLASS_DEFAULT,
                             .prompt = stream->tokens,
                             .prompt_count = PROMPT,
                             .choices = &stream->choice,
                             .choices_count = 1,
                             .params = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                             .max_tokens = OUTPUT,
                             .ignore_eos = true};
        if (engine_submit(engine, &stream->request) != ST_OK) die("refused");
    }
}

/* Takes events until `until` steps have been committed. */
static void take(struct engine *engine, struct taker *taker, uint64_t until, struct engine_stats *stats)
{
    struct event event;
    for (;;) {
        while (engine_poll(engine, &event)) {
        }
        engine_stats_read(engine, stats);
        if (stats->steps >= until) return;
        pthread_mutex_lock(&taker->mutex);
        while (!taker->due) pthread_cond_wait(&taker->condition, &taker->mutex);
        taker->due = false;
        pthread_mutex_unlock(&taker->mutex);
    }
}

static struct measure measure(const struct tokenizer *tokenizer, uint64_t step_ns, bool ahead, uint64_t steps)
{
    struct null_device_config null = {.vocab = VOCAB,
                                      .kv_blocks = 65536,
                                      .tokens_max = 2048,
                                      .seqs_max = ROWS,
                                      .rows_max = ROWS,
                                      .ahead = ahead,
                                      .step_ns = step_ns};
    struct taker taker = {.mutex = PTHREAD_MUTEX_INITIALIZER, .condition = PTHREAD_COND_INITIALIZER};
    struct engine_config config = {.context_max = PROMPT + OUTPUT,
                                   .running_max = ROWS,
                                   .step_tokens_max = 2048,
                                   .queue_requests_max = 1024,
                                   .queue_tokens_max = 1000000,
                                   .tenants_max = 1,
                                   .tenant_share_percent = 100,
                                   .prefix_cache = true,
                                   .think_start_id = VOCAB_NO_ID,
                                   .think_end_id = VOCAB_NO_ID,
                                   .clock = clock_system(),
                                   .wake = on_wake,
                                   .wake_state = &taker};
    struct device *device = NULL;
    struct engine *engine;
    struct error err;
    struct engine_stats before, after;
    struct stream *streams = mem_alloc(ROWS, sizeof *streams);
    if (!streams || null_device_create(&null, &device) != ST_OK) die("no memory");
    if (engine_create(&config, device, tokenizer, &engine, &err) != ST_OK) die(err.message);
    submit_all(engine, streams);
    take(engine, &taker, 100, &before); /* all prompts are in long before */
    uint64_t start_ns = clock_now_ns(clock_system());
    take(engine, &taker, before.steps + steps, &after);
    uint64_t wall_ns = clock_now_ns(clock_system()) - start_ns;
    if (after.last_step_rows != ROWS) die("not all streams decode");
    engine_destroy(engine);
    device_destroy(device);
    mem_free(streams);
    double count = (double)(after.steps - before.steps), step_us = (double)wall_ns / 1e3 / count;
    return (struct measure){.step_us = step_us,
                            .idle_us = step_us - (double)step_ns / 1e3,
                            .ahead = (double)(after.steps_ahead - before.steps_ahead) / count};
}

/* The run with the least idle time: what disturbs only ever adds. */
static struct measure best(const struct tokenizer *tokenizer, uint64_t step_ns, bool ahead)
{
    struct measure chosen = {.idle_us = 1e18};
    uint64_t steps = UINT64_C(1000000000) / (step_ns + 100000);
    for (uint32_t run = 0; run < RUNS; run++) {
        struct measure m = measure(tokenizer, step_ns, ahead, steps < 1000 ? steps : 1000);
        if (m.idle_us < chosen.idle_us) chosen = m;
    }
    return chosen;
}

int main(int argc, char **argv)
{
    uint64_t steps_us[8] = {200, 500, 2000, 10000};
    uint32_t count = 4, given = 0;
    bool json = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json"))
            json = true;
        else if (!strcmp(argv[i], "--step-us") && i + 1 < argc && given < 8)
            steps_us[given++] = strtoull(argv[++i], NULL, 10);
        else
            die("usage: bench_ahead [--json] [--step-us N ...]");
    }
    if (given) count = given;
    struct tokenizer *tokenizer = NULL;
    struct error err = {""};
    if (plain_tokenizer_create(VOCAB, &tokenizer, &err) != ST_OK) die(err.message);
    if (!json)
        printf("%u rows, us a step\n%10s %22s %22s %8s\n", ROWS, "device", "one at a time (idle)", "one ahead (idle)",
               "hidden");
    else
        printf("{\"benchmark\":\"ahead\",\"rows\":%u,\"cases\":[", ROWS);
    for (uint32_t i = 0; i < count; i++) {
        struct measure one = best(tokenizer, steps_us[i] * 1000, false),
                       two = best(tokenizer, steps_us[i] * 1000, true);
        if (!json)
            printf("%10llu %13.1f %8.1f %13.1f %8.1f %7.1f%%\n", (unsigned long long)steps_us[i], one.step_us,
                   one.idle_us, two.step_us, two.idle_us, 100 * (1 - two.idle_us / one.idle_us));
        else
            printf("%s{\"device_us\":%llu,\"one_idle_us\":%.2f,\"ahead_idle_us\":%.2f,\"ahead_share\":%.4f}",
                   i ? "," : "", (unsigned long long)steps_us[i], one.idle_us, two.idle_us, two.ahead);
        fflush(stdout);
    }
    if (json) printf("]}\n");
    tokenizer_destroy(tokenizer);
    return 0;
}
