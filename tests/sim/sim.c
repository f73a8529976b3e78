/* The simulator's program.
 *
 *   sim --seeds N [--from S] [--verbose]      runs N seeds, one step at a time and one step ahead; every 16th twice,
 *                                             its traces must be equal (R20)
 *   sim_planted --plant B --seeds N           runs seeds with planted bug B until a rule breaks; fails when none does
 *
 * Prints the seed, the rule and the reason of a violation; `--from SEED --seeds 1 --verbose` shows it again. */
#include "tests/sim/sim.h"

#include "runtime/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef MILLRACE_PLANTED
enum planted planted_bug;
#endif

static struct sim_request *requests, *requests_ahead;
static uint64_t steps_total, steps_ahead_total, plans_cut_total, modes[SIM_MODES], preemptions_total, hits_total,
    compared_total;

static bool run_seed_so(struct sim *sim, uint64_t seed, bool ahead, struct sim_request *out, bool verbose)
{
    bool held = sim_run(sim, seed, ahead, out, verbose);
    if (held && seed % 16 == 0) {
        uint64_t first = sim->trace;
        held = sim_run(sim, seed, ahead, out, false);
        if (held && sim->trace != first) {
            sim_violation(sim, "R20", "trace %016" PRIx64 ", then %016" PRIx64, first, sim->trace);
            held = false;
        }
    }
    steps_total += sim->steps;
    steps_ahead_total += sim->steps_ahead;
    plans_cut_total += sim->plans_cut;
    for (uint32_t i = 0; held && i < sim->requests_count; i++) {
        preemptions_total += out[i].request.usage.preemptions;
        hits_total += out[i].request.usage.in_hit;
    }
    if (verbose)
        printf("seed %" PRIu64 "%s: trace %016" PRIx64 ", %" PRIu64 " steps, %" PRIu64 " ahead\n", seed,
               ahead ? " ahead" : "", sim->trace, sim->steps, sim->steps_ahead);
    return held;
}

/* Whether nothing but its own content decides what a request yields: no cancel, deadline or lost device, whose moment
 * falls on another step, and no end of one choice that ends the others. */
static bool is_comparable(const struct sim *sim, const struct sim_request *r)
{
    if (!r->accepted || r->end_kind != REQUEST_DONE || sim->fail_step) return false;
    if (r->cancel_ns || r->request.deadline_ns) return false;
    return r->request.choices_count == 1 || (!r->fails && !r->quota_end);
}

/* R24: each request has the same ids, ends and counts as one step at a time. What it hit in the cache and how often it
 * was preempted depend on the others and on moments. */
static void compare(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        const struct sim_request *a = &requests[i], *b = &requests_ahead[i];
        if (!is_comparable(sim, a) || !is_comparable(sim, b)) continue;
        compared_total++;
        const struct usage *x = &a->request.usage, *y = &b->request.usage;
        SIM_HOLD(sim, "R24", a->end_status == b->end_status && (x->cause == y->cause || a->request.choices_count > 1),
                 "request %u: cause %d, one at a time %d", i + 1, y->cause, x->cause);
        SIM_HOLD(sim, "R24",
                 x->in_total == y->in_total && x->out == y->out && x->out_reasoning == y->out_reasoning &&
                     x->out_trimmed == y->out_trimmed && x->choices == y->choices && x->mismatch == y->mismatch,
                 "request %u: usage differs, out %u, one at a time %u", i + 1, y->out, x->out);
        for (uint32_t c = 0; c < a->request.choices_count; c++) {
            const struct choice *p = &a->choices[c], *q = &b->choices[c];
            SIM_HOLD(sim, "R24",
                     p->output_count == q->output_count && p->text_bytes == q->text_bytes && p->finish == q->finish &&
                         p->stop_id == q->stop_id && p->stop_string == q->stop_string,
                     "request %u: choice %u ends otherwise", i + 1, c);
            SIM_HOLD(sim, "R24",
                     memcmp(a->sim[c].tokens, b->sim[c].tokens,
                            (a->request.prompt_count + p->output_count) * sizeof *p->tokens) == 0,
                     "request %u: choice %u has other ids", i + 1, c);
        }
    }
}

static bool run_seed(uint64_t seed, bool verbose)
{
    static struct sim sim;
    bool held =
        run_seed_so(&sim, seed, false, requests, verbose) && run_seed_so(&sim, seed, true, requests_ahead, verbose);
    modes[sim.mode]++;
    if (held) compare(&sim);
    if (sim.violated)
        printf("seed %" PRIu64 " (mode %d%s, step %" PRIu64 "): %s violated: %s\n", seed, sim.mode,
               sim.ahead ? " ahead" : "", sim.steps, sim.violated, sim.detail);
    return !sim.violated;
}

static bool run_seeds(uint64_t from, uint64_t seeds, bool verbose)
{
    for (uint64_t seed = from; seed < from + seeds; seed++)
        if (!run_seed(seed, verbose)) return false;
    return true;
}

/* In a child: a planted bug may also run into one of the scheduler's own CHECKs, which is a find as well. */
static bool finds_planted(uint64_t from, uint64_t seeds, bool verbose)
{
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) return false;
    if (child == 0) {
        bool held = run_seeds(from, seeds, verbose);
        fflush(stdout);
        _exit(held ? 0 : 1);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child) return false;
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
    uint64_t seeds = 1000, from = 1, plant = 0;
    bool verbose = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seeds") && i + 1 < argc)
            seeds = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--from") && i + 1 < argc)
            from = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--plant") && i + 1 < argc)
            plant = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--verbose"))
            verbose = true;
        else {
            fprintf(stderr, "usage: %s [--seeds N] [--from S] [--plant BUG] [--verbose]\n", argv[0]);
            return 2;
        }
    }
    requests = mem_alloc(SIM_REQUESTS_MAX, sizeof *requests);
    requests_ahead = mem_alloc(SIM_REQUESTS_MAX, sizeof *requests_ahead);
    if (!requests || !requests_ahead) return 2;
    bool ok;
#ifdef MILLRACE_PLANTED
    planted_bug = (enum planted)plant;
    ok = plant && plant < PLANTED_COUNT && finds_planted(from, seeds, verbose);
    printf("planted bug %" PRIu64 ": %s\n", plant, ok ? "found" : "NOT found");
#else
    (void)finds_planted;
    if (plant) {
        fprintf(stderr, "this build has no planted bugs\n");
        return 2;
    }
    ok = run_seeds(from, seeds, verbose);
    if (ok) {
        printf("%" PRIu64 " seeds from %" PRIu64 ": every rule held; %" PRIu64 " steps, %" PRIu64
               " of them ahead, %" PRIu64 " cut for power, %" PRIu64 " preemptions, %" PRIu64 " hit tokens; %" PRIu64
               " requests compared; modes",
               seeds, from, steps_total, steps_ahead_total, plans_cut_total, preemptions_total, hits_total,
               compared_total);
        for (uint32_t m = 0; m < SIM_MODES; m++) printf(" %" PRIu64, modes[m]);
        printf("\n");
    }
#endif
    if (ok && !plant && (!steps_ahead_total || !compared_total || !plans_cut_total)) {
        printf("no step ran ahead, nothing could be compared, or no plan was cut\n");
        ok = false;
    }
    mem_free(requests_ahead);
    mem_free(requests);
    return ok ? 0 : 1;
}
