/* Plan + commit without a model: what a step of the scheduler costs a running request.
 *
 *   bench_sched [--json] [--quick]
 *
 * Each case fills the running set with requests of 64 prompt ids, then times steps of one id each (a page crossing
 * every 16 steps, with the SHA-256 of the block and its entry in the prefix index when the cache is on). Results come
 * from a prepared array: neither a device nor an engine is measured. Reported: the median of 5 runs, lowest and
 * highest; the exponent is the least-squares slope of log(step) over log(running) for 10 and more. S2 of the design
 * repeats 1,000 running with 100,000 waiting, and with 1,000,000 blocks. "ahead" is a step planned while the one before
 * is open, as for a device that runs ahead (bench_ahead.c has the engine around it); "metered" is one whose shares and
 * record go to the power thread too. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "scheduler/power_port.h"
#include "scheduler/sched.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 1000, PROMPT = 64, RUNS = 5, CONTEXT = 8192 };

struct bench_request {
    struct request request;
    struct choice choice;
    uint32_t *tokens;
};

struct bench_case {
    const char *name;
    uint32_t running, waiting, blocks;
    bool cache, ahead, metered;
};

struct measure {
    double step_ns, low, high; /* per step */
    double touched;            /* records a step */
};

static struct sched_text texts[VOCAB];

static void die(const char *what)
{
    fprintf(stderr, "bench_sched: %s\n", what);
    exit(1);
}

static struct sched *make_sched(const struct bench_case *c)
{
    struct sched_config config = {.context_max = CONTEXT,
                                  .running_max = c->running,
                                  .rows_max = c->running,
                                  .step_tokens_max = c->running < 4096 ? 8192 : 2 * c->running,
                                  .kv_blocks = c->blocks,
                                  .queue_requests_max = c->running + c->waiting + 16,
                                  .queue_tokens_max = 1u << 30,
                                  .tenants_max = 64,
                                  .tenant_share_percent = 100,
                                  .prefix_cache = c->cache,
                                  .tells_shares = c->metered,
                                  .think_start_id = UINT32_MAX,
                                  .think_end_id = UINT32_MAX,
                                  .texts = texts,
                                  .texts_count = VOCAB};
    struct sched *sched;
    struct error err;
    if (sched_create(&config, &sched, &err) != ST_OK) die(err.message);
    return sched;
}

static void submit(struct sched *sched, struct bench_request *r, uint64_t id, uint32_t out)
{
    uint64_t rng = id;
    uint32_t prompt = PROMPT + (uint32_t)(id % KV_BLOCK_TOKENS); /* page crossings spread over the steps */
    r->tokens = mem_alloc(prompt + out, sizeof *r->tokens);
    if (!r->tokens) die("no memory");
    for (uint32_t i = 0; i < prompt; i++) {
        rng = rng * UINT64_C(6364136223846793005) + 1442695040888963407;
        r->tokens[i] = (uint32_t)(rng >> 33) % VOCAB;
    }
    r->choice = (struct choice){.tokens = r->tokens, .seed = id};
    r->request = (struct request){.id = id,
                                  .tenant = (uint32_t)(id % 64),
                                  .service_class = CLASS_DEFAULT,
                                  .prompt = r->tokens,
                                  .prompt_count = PROMPT,
                                  .choices = &r->choice,
                                  .choices_count = 1,
                                  .params = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                                  .max_tokens = out,
                                  .ignore_eos = true};
    if (sched_submit(sched, &r->request, 1) != ST_OK) die("refused");
    sched_events_taken(sched);
}

/* As the engine tells a step to the power thread. */
static void tell(struct sched *sched, struct power_port *port, uint64_t now_ns)
{
    struct power_step record = {.start_ns = now_ns, .end_ns = now_ns};
    uint32_t count;
    const struct energy_share *shares = sched_plan_shares(sched, &count);
    record.joules = sched_plan_joules(sched, &record.work);
    power_port_launched(port, now_ns, &record, shares, count);
    power_port_stepped(port, &record, 0);
}

/* The power thread's part, outside of what is timed. */
static void drain(struct power_port *port)
{
    static struct energy_share shares[POWER_SHARES_MAX];
    struct power_step record;
    while (port && power_port_take(port, &record))
        if (!power_port_shares(port, &record, shares)) die("shares did not fit");
}

static void step(struct sched *sched, struct power_port *port, struct batch_result *result, uint64_t *now_ns)
{
    const struct batch *batch = sched_plan(sched, ++*now_ns);
    if (!batch->tokens_count) die("an empty plan");
    if (port) tell(sched, port, *now_ns);
    sched_commit(sched, result, ++*now_ns);
    sched_events_taken(sched);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Fills the running set, then times `steps` steps RUNS times; every choice has room for all of them. */
static struct measure measure(const struct bench_case *c, uint32_t steps)
{
    const struct clock *clock = clock_system();
    struct sched *sched = make_sched(c);
    struct batch_result *result;
    struct power_port metered, *port = c->metered ? &metered : NULL;
    if (port && power_port_init(port) != ST_OK) die("no memory");
    uint64_t now_ns = 1;
    uint32_t total = c->running + c->waiting, out = steps * (RUNS + 1) + 512;
    struct bench_request *requests = mem_alloc(total, sizeof *requests);
    if (!requests || batch_result_create(c->running, &result) != ST_OK) die("no memory");
    for (uint32_t i = 0; i < c->running; i++) result->rows[i].id = i % VOCAB;
    for (uint32_t i = 0; i < c->running; i++) submit(sched, &requests[i], i + 1, out);
    struct sched_stats stats = {0};
    for (uint32_t i = 0; stats.step_rows < c->running; i++) {
        if (i > 400) die("the running set does not fill");
        step(sched, port, result, &now_ns);
        drain(port);
        sched_stats_read(sched, &stats);
    }
    for (uint32_t i = c->running; i < total; i++) submit(sched, &requests[i], i + 1, 16);
    if (c->ahead && !sched_plan(sched, ++now_ns)->tokens_count) die("an empty plan");
    for (uint32_t i = 0; i < steps; i++) {
        step(sched, port, result, &now_ns);
        drain(port);
    }
    double values[RUNS], *singles = mem_alloc(steps, sizeof *singles);
    if (!singles) die("no memory");
    sched_stats_read(sched, &stats);
    uint64_t touched = stats.touched;
    for (uint32_t run = 0; run < RUNS; run++) {
        for (uint32_t i = 0; i < steps; i++) {
            uint64_t start_ns = clock_now_ns(clock);
            step(sched, port, result, &now_ns);
            singles[i] = (double)(clock_now_ns(clock) - start_ns);
            drain(port);
        }
        qsort(singles, steps, sizeof *singles, by_value);
        values[run] = singles[steps / 2];
    }
    sched_stats_read(sched, &stats);
    if (stats.preemptions || stats.running != c->running) die("the case did not stay as it was set up");
    qsort(values, RUNS, sizeof *values, by_value);
    struct measure m = {.step_ns = values[RUNS / 2],
                        .low = values[0],
                        .high = values[RUNS - 1],
                        .touched = (double)(stats.touched - touched) / (RUNS * steps)};
    for (uint32_t i = 0; i < total; i++) mem_free(requests[i].tokens);
    mem_free(singles);
    mem_free(requests);
    if (port) power_port_free(port);
    batch_result_destroy(result);
    sched_destroy(sched);
    return m;
}

/* Least-squares slope of log(step) over log(running). */
static double exponent(const struct bench_case *cases, const struct measure *m, uint32_t from, uint32_t count)
{
    double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
    for (uint32_t i = from; i < count; i++) {
        double x = log(cases[i].running), y = log(m[i].step_ns);
        n++, sx += x, sy += y, sxx += x * x, sxy += x * y;
    }
    return (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

int main(int argc, char **argv)
{
    bool json = false, quick = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json"))
            json = true;
        else if (!strcmp(argv[i], "--quick"))
            quick = true;
        else
            die("usage: bench_sched [--json] [--quick]");
    }
    for (uint32_t i = 0; i < VOCAB; i++) texts[i] = (struct sched_text){.bytes = "word", .length = 4};
    static const struct bench_case cases[] = {
        {"S1", 1, 0, 4096, true, false, false},
        {"S1", 10, 0, 4096, true, false, false},
        {"S1", 100, 0, 65536, true, false, false},
        {"S1", 1000, 0, 160000, true, false, false},
        {"S1", 10000, 0, 1000000, true, false, false},
        {"S1 cache off", 1000, 0, 160000, false, false, false},
        {"S1 cache off", 10000, 0, 1000000, false, false, false},
        {"S2 100,000 waiting", 1000, 100000, 160000, true, false, false},
        {"S2 1,000,000 blocks", 1000, 0, 1000000, true, false, false},
        {"256", 256, 0, 65536, true, false, false},
        {"256 ahead", 256, 0, 65536, true, true, false},
        {"1,000 ahead", 1000, 0, 160000, true, true, false},
        {"256 metered", 256, 0, 65536, true, false, true},
        {"1,000 metered", 1000, 0, 160000, true, false, true},
    };
    enum { CASES = sizeof cases / sizeof *cases };
    struct measure m[CASES];
    if (!json)
        printf("%-20s %8s %8s %9s %12s %10s %21s %14s\n", "case", "running", "waiting", "blocks", "us a step",
               "ns a row", "lowest .. highest", "touched a row");
    for (uint32_t i = 0; i < CASES; i++) {
        uint32_t rows = cases[i].running, steps = rows >= 10000 ? 64 : rows >= 1000 ? 256 : 1024;
        m[i] = measure(&cases[i], quick ? 32 : steps);
        if (!json)
            printf("%-20s %8u %8u %9u %12.2f %10.1f %10.1f .. %7.1f %14.2f\n", cases[i].name, rows, cases[i].waiting,
                   cases[i].blocks, m[i].step_ns / 1e3, m[i].step_ns / rows, m[i].low / rows, m[i].high / rows,
                   m[i].touched / rows);
    }
    double slope = exponent(cases, m, 1, 5), waiting = m[7].step_ns / m[3].step_ns,
           blocks = m[8].step_ns / m[3].step_ns;
    if (!json) {
        printf("exponent over 10..10,000: %.3f (goal 1.05)\n", slope);
        printf("100,000 waiting: %+.1f %%; 1,000,000 blocks: %+.1f %% (goal 5 %%)\n", (waiting - 1) * 100,
               (blocks - 1) * 100);
        return 0;
    }
    printf("{\"benchmark\":\"sched\",\"cases\":[");
    for (uint32_t i = 0; i < CASES; i++)
        printf("%s{\"case\":\"%s\",\"running\":%u,\"waiting\":%u,\"blocks\":%u,\"step_ns\":%.1f,\"row_ns\":%.2f,\"row_"
               "ns_low\":%.2f,"
               "\"row_ns_high\":%.2f,\"touched_a_row\":%.3f}",
               i ? "," : "", cases[i].name, cases[i].running, cases[i].waiting, cases[i].blocks, m[i].step_ns,
               m[i].step_ns / cases[i].running, m[i].low / cases[i].running, m[i].high / cases[i].running,
               m[i].touched / cases[i].running);
    printf("],\"exponent\":%.4f,\"waiting_ratio\":%.4f,\"blocks_ratio\":%.4f}\n", slope, waiting, blocks);
    return 0;
}
