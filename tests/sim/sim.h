/* One simulated run of the scheduler from a seed: its world, and the parts that drive and check it.
 *
 *   sim_load.c    makes a configuration and requests from the seed
 *   sim_expect.c  what each choice yields alone, worked out without any of the scheduler's code
 *   sim_check.c   the rules R1-R14, R16-R19, R21, R23, R25 to R28, after every plan and commit
 *   sim_steps.c   steps under way, as the simulator remembers them: R9, R11, R22, R24
 *   sim_run.c     virtual time: arrivals, cancels, plan, device step, commit, events
 *   sim.c         the program: seeds, replay (R20), one step ahead against one at a time (R24), planted bugs */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include "scheduler/sched_internal.h"
#include "tests/support/null_device.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SIM_REQUESTS_MAX = 96,
    SIM_CHOICES_MAX = 3,
    SIM_CONTEXT_MAX = 256,
    SIM_BLOCKS_MAX = 64,
    SIM_SEQS_MAX = 16,
    SIM_STEP_TOKENS_MAX = 128,
    SIM_VOCAB = 48,
    SIM_STOPS_MAX = 3,
    SIM_TENANTS = 4,
    SIM_END_ID = 47,
    SIM_SPECIAL_ID = 46,
    SIM_THINK_START = 45,
    SIM_THINK_END = 44
};

enum sim_mode {
    SIM_MIXED,
    SIM_BURST,
    SIM_FLOOD,
    SIM_TINY_POOL,
    SIM_LONG_PROMPTS,
    SIM_SHARED_PREFIX,
    SIM_FAIR,
    SIM_MODES
};

struct sim_choice {
    uint32_t tokens[SIM_CONTEXT_MAX + KV_BLOCK_TOKENS];
    /* alone */
    uint32_t expected[SIM_CONTEXT_MAX];
    uint32_t expected_count, expected_text, expected_reasoning, expected_trimmed;
    enum finish expected_finish;
    uint32_t expected_stop_id, expected_stop_string;
    /* as told by events */
    uint32_t told_count, told_text;
    enum finish told_finish;
};

struct sim_request {
    struct request request;
    struct choice choices[SIM_CHOICES_MAX];
    struct sim_choice sim[SIM_CHOICES_MAX];
    struct token_logprobs prompt_logprobs[SIM_CONTEXT_MAX];
    uint32_t prompt[SIM_CONTEXT_MAX];
    struct stop_string stops[SIM_STOPS_MAX];
    char stop_bytes[SIM_STOPS_MAX][8];
    uint32_t stop_ids[2];
    uint64_t arrival_ns, cancel_ns; /* cancel_ns 0: never; odd: between plan and commit */
    uint32_t domain;
    bool submitted, accepted, canceled, scheduled, ended;
    enum event_kind end_kind;
    enum status end_status;
    uint32_t in_hit; /* at REQUEST_SCHEDULED */
    uint32_t out_when_canceled;
    uint32_t out_limit; /* what the scheduler was told last; 0: none */
    uint64_t raise_ns;  /* when a paused one goes on; 0: it is not known to be paused */
    bool quota_end;     /* its first pause is its end, by CAUSE_QUOTA_END */
    bool fails;         /* a row of it is made to fail */
};

/* What the simulator itself knows of a block: from the batches, not from the scheduler. */
struct sim_block {
    uint16_t written; /* bit i: position i of the block */
    uint32_t ids[KV_BLOCK_TOKENS];
    uint64_t domain;
    bool poisoned; /* part of a sequence whose row was not finite */
};

/* A planned step, copied when it was planned: what a device that reads it then has. */
struct sim_step {
    const struct batch *batch; /* the scheduler's, until the commit */
    uint32_t seqs_count, rows_count;
    struct {
        const struct sim_request *owner;
        uint64_t order;
        uint32_t slot, choice, begin, end;
        block_id table[SIM_CONTEXT_MAX / KV_BLOCK_TOKENS];
    } seqs[SIM_SEQS_MAX];
    uint32_t tokens[SIM_STEP_TOKENS_MAX]; /* of all sequences */
    uint32_t row_seq[SIM_STEP_TOKENS_MAX];
    bool row_scores[SIM_STEP_TOKENS_MAX];
    uint32_t chosen[SIM_STEP_TOKENS_MAX]; /* ids, once it has run */
    uint64_t step_ns, done_ns;
};

struct sim {
    uint64_t seed, rng;
    enum sim_mode mode;
    bool ahead; /* one step ahead of the results, or one step at a time */
    bool verbose;
    struct sched_config config;
    struct sched *sched;
    struct device *device;
    struct batch_result *result;
    struct sim_request *requests; /* [SIM_REQUESTS_MAX] */
    uint32_t requests_count, submitted, ended;
    uint64_t now_ns, device_free_ns;
    uint64_t steps, fail_step;
    uint64_t steps_ahead; /* planned while another was under way */
    struct sim_step under_way[SCHED_STEPS_MAX], last;
    uint32_t under_way_count;
    struct sim_block blocks[SIM_BLOCKS_MAX];
    uint64_t told;                 /* ids, by events */
    uint64_t service[SIM_TENANTS]; /* counted from events: R16 */
    uint64_t service_start[SIM_TENANTS];
    bool backlogged;
    bool powered;       /* plans have a room of joules, drawn anew for each */
    uint64_t power_rng; /* of its own: requests are those of the seed without it */
    struct sched_power power;
    uint64_t plans_cut;   /* that left something out for power */
    uint64_t trace;       /* hash of all plans and events */
    const char *violated; /* a rule's name; NULL while all hold */
    char detail[256];
};

/* Notes the first violation. Never aborts, so that a planted bug can be reported. */
void sim_violation(struct sim *sim, const char *rule, const char *format, ...) PRINTF_LIKE(3, 4);
#define SIM_HOLD(sim, rule, condition, ...)                                                                            \
    do {                                                                                                               \
        if (!(condition)) sim_violation(sim, rule, __VA_ARGS__);                                                       \
    } while (0)

extern struct sched_text sim_texts[SIM_VOCAB];
extern const uint32_t sim_end_ids[1];

static inline uint64_t sim_random(struct sim *sim, uint64_t below)
{
    uint64_t z = (sim->rng += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return below ? (z ^ z >> 31) % below : 0;
}
static inline bool sim_chance(struct sim *sim, uint32_t percent)
{
    return sim_random(sim, 100) < percent;
}

void sim_load(struct sim *sim); /* config and requests */
/* Joules that the next plan may take; half of the seeds never have a limit. */
void sim_load_power(struct sim *sim);
void sim_draw_power(struct sim *sim);
void sim_expect(const struct sim *sim, struct sim_request *request);
struct sim_request *sim_owner(const struct request *request);

/* The running sequences before a plan, for R6 and R8. */
struct sim_before {
    uint32_t count;
    struct {
        uint32_t slot;
        uint64_t order;
        uint8_t rank;
    } running[64];
    uint64_t preemptions;
};
void sim_check_before(const struct sim *sim, struct sim_before *before);
void sim_check_plan(struct sim *sim, const struct sim_before *before, const struct batch *batch);
void sim_check_state(struct sim *sim); /* after plan and after commit */
void sim_check_event(struct sim *sim, const struct event *event);
void sim_check_fairness(struct sim *sim);
void sim_check_end(struct sim *sim);

/* The planned batch joins the steps under way. */
void sim_step_planned(struct sim *sim, const struct batch *batch);
/* Blocks of steps under way against what the scheduler has done with them since. */
void sim_check_under_way(struct sim *sim);
/* The oldest step under way has run, and sim->result is what it gave: its writes. It becomes sim->last. */
void sim_step_ran(struct sim *sim);
/* Blocks may be shared inside this only: the cache's domain, or one request when the cache is off. */
uint64_t sim_domain_of(const struct sim *sim, const struct sim_request *request);

/* Runs a seed, one step ahead or not. True when every rule held; else *sim tells which did not. requests is scratch of
 * SIM_REQUESTS_MAX and holds afterwards what became of each. */
bool sim_run(struct sim *sim, uint64_t seed, bool ahead, struct sim_request *requests, bool verbose);

#endif
