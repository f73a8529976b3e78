/* Deferrable work in green and cheap hours: weeks replayed in virtual time through the real scheduler and plan
 * (tests/support/power_replay.h), with a job's length unknown until it ends, against the offline optimum; and what the
 * plan itself costs with many jobs.
 *
 *   bench_green [--json] [--traces FOLDER] [--only WORD] [--seed FIRST] [--seeds COUNT]
 *
 * FOLDER: tests/support/traces, from the root. WORD: cases whose names begin with it.
 *
 * Green: share of the optimum's green tokens. Price: share of the optimum's saving against running at once, with an
 * error of 20 % on each forecast. The last lines: admission, choice and end at so many jobs held. */
#include "runtime/base/clock.h"
#include "runtime/base/random.h"
#include "tests/support/power_replay.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 1000 };

static double solar[REPLAY_SLOTS_MAX], wind[REPLAY_SLOTS_MAX];
static bool json, begun;
static const char *only = "";
static uint64_t seed_first = 1, seeds_count = 3;

static void die(const char *what)
{
    fprintf(stderr, "bench_green: %s\n", what);
    exit(1);
}

static void print_row(const char *name, double batch, uint64_t seed, double share, double at_once,
                      const struct replay_result *result)
{
    if (json)
        printf("%s\n  {\"case\": \"%s\", \"batch_share\": %g, \"seed\": %d, \"share_of_optimum\": %.4f, \"at_once\": "
               "%.4f, "
               "\"jobs\": %u, \"missed\": %u, \"steps\": %llu}",
               begun ? "," : "", name, batch, (int)seed, share, at_once, result->jobs, result->misses,
               (unsigned long long)result->steps);
    else
        printf("%-24s %5.2f %4d %9.2f %% %9.2f %% %8u %6u %9llu\n", name, batch, (int)seed, 100 * share, 100 * at_once,
               result->jobs, result->misses, (unsigned long long)result->steps);
    (void)fflush(stdout);
    begun = true;
}

static void run(const char *name, const double *green, const double *price, double batch, uint32_t hours_min)
{
    if (strncmp(name, only, strlen(only)) != 0) return;
    for (uint64_t seed = seed_first; seed < seed_first + seeds_count; seed++) {
        struct replay_config config = {.seed = seed,
                                       .slots = REPLAY_SLOTS_MAX,
                                       .green = green,
                                       .price = price,
                                       .price_error = 0.2,
                                       .interactive = 0.2,
                                       .batch = batch,
                                       .speed = 1,
                                       .margin_slots = 2,
                                       .hours_min = hours_min,
                                       .hours_max = 24};
        struct replay_result planned, once;
        replay_run(&config, &planned);
        config.at_once = true;
        replay_run(&config, &once);
        if (price)
            print_row(name, batch, seed, (once.cost - planned.cost) / (once.cost - once.cost_optimum), 0, &planned);
        else
            print_row(name, batch, seed, planned.green_tokens / planned.green_optimum,
                      once.green_tokens / once.green_optimum, &planned);
    }
}

static void ignore(void *state, const struct deadline_news *news)
{
    (void)state;
    (void)news;
}

/* Microseconds of an admission, a choice and an end, with so many jobs held. */
static void time_plan(uint32_t jobs, enum deadline_policy policy)
{
    static struct deadline_slot slots[192];
    const struct deadline_config config = {jobs + 1, 2, REPLAY_SLOT_MS};
    const int64_t now_ms = INT64_C(2000000) * REPLAY_SLOT_MS;
    struct deadline *plan;
    struct error err;
    uint64_t rng = 1, ns[3] = {0};
    uint32_t idx;
    int64_t earliest_ms;
    if (deadline_create(&config, &plan, &err) != ST_OK) die(err.message);
    for (uint32_t i = 0; i < 192; i++)
        slots[i] = (struct deadline_slot){1e9, 1e9, 0, random_next_uniform(&rng), policy == DEADLINE_PRICE, false};
    deadline_profile(plan, now_ms, slots, 192, policy, false);
    for (uint32_t i = 0; i < jobs + ROUNDS; i++) {
        struct deadline_job job = {1, now_ms + (int64_t)(40 + random_next(&rng) % 140) * REPLAY_SLOT_MS, 0,
                                   DEADLINE_PREFER};
        uint64_t start_ns = clock_now_ns(clock_system());
        if (deadline_admit(plan, &job, now_ms, &idx, &earliest_ms) != ST_OK) die("refused");
        uint64_t admitted_ns = clock_now_ns(clock_system());
        if (i < jobs) continue;
        (void)deadline_choose(plan, now_ms, ignore, NULL);
        uint64_t chosen_ns = clock_now_ns(clock_system());
        deadline_remove(plan, idx, false);
        ns[0] += admitted_ns - start_ns;
        ns[1] += chosen_ns - admitted_ns;
        ns[2] += clock_now_ns(clock_system()) - chosen_ns;
    }
    deadline_destroy(plan);
    const char *name = policy == DEADLINE_PRICE ? "price" : "green";
    if (json)
        printf(
            "%s\n  {\"case\": \"plan, %s\", \"jobs\": %u, \"admit_us\": %.3f, \"choose_us\": %.3f, \"end_us\": %.3f}",
            begun ? "," : "", name, jobs, (double)ns[0] / ROUNDS / 1e3, (double)ns[1] / ROUNDS / 1e3,
            (double)ns[2] / ROUNDS / 1e3);
    else
        printf("plan, %s, %6u jobs: admit %.2f us, choose %.2f us, end %.2f us\n", name, jobs,
               (double)ns[0] / ROUNDS / 1e3, (double)ns[1] / ROUNDS / 1e3, (double)ns[2] / ROUNDS / 1e3);
    begun = true;
}

int main(int argc, char **argv)
{
    const char *folder = "tests/support/traces";
    double green[2][REPLAY_SLOTS_MAX], price[REPLAY_SLOTS_MAX];
    char path[512];
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (strcmp(argv[i], "--traces") == 0 && i + 1 < argc)
            folder = argv[++i];
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
            only = argv[++i];
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed_first = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--seeds") == 0 && i + 1 < argc)
            seeds_count = strtoull(argv[++i], NULL, 10);
        else
            die("usage: bench_green [--json] [--traces FOLDER] [--only WORD] [--seed FIRST] [--seeds COUNT]");
    }
    (void)snprintf(path, sizeof path, "%s/solar_week_simbench.csv", folder);
    if (!replay_add_trace(path, 1, solar)) die("no solar trace: run it from the root, or give --traces");
    (void)snprintf(path, sizeof path, "%s/wind_week_simbench.csv", folder);
    if (!replay_add_trace(path, 1, wind)) die("no wind trace");
    for (uint32_t i = 0; i < REPLAY_SLOTS_MAX; i++) {
        green[0][i] = 6 * solar[i];
        green[1][i] = 4 * solar[i] + 0.8 * wind[i];
        price[i] = 0.6 - 0.3 * wind[i] - 0.5 * solar[i];
    }
    if (json)
        printf("[");
    else
        printf("%-24s %5s %4s %11s %11s %8s %6s %9s\n", "case", "batch", "seed", "of optimum", "at once", "jobs",
               "missed", "steps");
    run("solar x 6, 24 h", green[0], NULL, 0.2, 24);
    run("solar x 6, 12-24 h", green[0], NULL, 0.2, 12);
    run("solar+wind, 24 h", green[1], NULL, 0.2, 24);
    run("price, 24 h", NULL, price, 0.1, 24);
    run("price, 24 h", NULL, price, 0.15, 24);
    run("price, 24 h", NULL, price, 0.2, 24);
    run("price, 24 h", NULL, price, 0.3, 24);
    run("price, 12-24 h", NULL, price, 0.2, 12);
    for (uint32_t jobs = 1000; strncmp("plan", only, strlen(only)) == 0 && jobs <= 100000; jobs *= 100) {
        time_plan(jobs, DEADLINE_GREEN);
        time_plan(jobs, DEADLINE_PRICE);
    }
    if (json) printf("\n]\n");
    return 0;
}
