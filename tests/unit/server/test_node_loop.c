/* The slow loop: its decisions by table, and closed over the real scheduler in virtual time, with steps that last the
 * longer the more rows they have. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "scheduler/sched.h"
#include "server/power/node_loop.h"

#include <math.h>
#include <string.h>

enum { VOCAB = 64, END_ID = 63, ROWS = 32, PROMPT = 8, CONTEXT = 8192, STREAMS = 4, JOBS = 48, JOB_OUT = 300 };

/* ---- decisions ---- */

static void test_node_guard_takes_and_gives(void **state)
{
    (void)state;
    static const struct {
        double limit_s, p95_s;
        uint32_t intervals, seen;
        bool capped;
        uint32_t most;
    } rows[] = {
        {0.02, 0.019, 100, 28, false, 0}, {0.02, 0.04, 100, 28, true, 14}, /* in proportion */
        {0.02, 0.021, 100, 14, true, 12}, {0.02, 0.5, 100, 12, true, 3},   /* one at least, three in four at most */
        {0.02, 0.018, 100, 3, true, 3},   {0.02, 0.015, 100, 3, true, 3},  /* not calm enough; calm for a second */
        {0.02, 0.015, 100, 3, true, 4},   {0.02, 0.015, 100, 4, true, 4},  {0.02, 0.015, 100, 4, true, 5},
        {0.02, 0.03, 100, 5, true, 3}, /* taken back soon: twice as patient */
        {0.02, 0.015, 100, 3, true, 3},   {0.02, 0.015, 100, 3, true, 3},  {0.02, 0.015, 100, 3, true, 3},
        {0.02, 0.015, 100, 3, true, 4},   {0.02, 0.9, 100, 1, true, 0},    {0, 0.9, 100, 1, false, 0},
        {0.02, 0.9, 100, 1, true, 0},     {0.02, 0, 0, 0, false, 0}, /* nobody interactive: nothing is held */
    };
    struct node_guard guard = {.capped = false};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        node_guard_turn(&guard, rows[i].limit_s, rows[i].p95_s, rows[i].intervals, rows[i].seen);
        assert_int_equal(guard.capped, rows[i].capped);
        if (guard.capped) assert_int_equal(guard.rows_most, rows[i].most);
    }
}

static void test_node_step_by_joules(void **state)
{
    (void)state;
    assert_int_equal(node_step_ms(0, 1, 1, 1000), 0);
    assert_int_equal(node_step_ms(0.1, 0, 0, 0), 30);   /* nothing measured: the longest */
    assert_int_equal(node_step_ms(0.025, 0, 0, 0), 20); /* that leaves a fifth of the limit */
    assert_int_equal(node_step_ms(0.002, 0, 0, 0), 10);
    assert_int_equal(node_step_ms(0.1, 0.001, 0.1, 1000), 10); /* a step costs nothing: short ones are as cheap */
    assert_int_equal(node_step_ms(0.1, 1, 0.01, 1000), 30);    /* a step costs all: long ones are cheaper */
    assert_int_equal(node_step_ms(0.1, 0.05, 0.1, 1000), 14);  /* 0.05 / 14 over 0.05 / 30 is under 2 % of it */
}

/* ---- closed over the scheduler ---- */

struct work {
    struct request request;
    struct choice choice;
    uint32_t tokens[CONTEXT];
};

struct rig {
    struct node_loop node;
    struct energy_model model;
    struct sched *sched;
    struct batch_result *results;
    struct work *works;
    uint64_t now_ns, ids;
    double base_s, row_s;                                  /* of a step */
    bool feeds;                                            /* jobs that end are followed by others */
    uint32_t allowed_least, allowed_most, rows_most, over; /* of rows: by the guard, in steps; seconds over the limit */
    uint64_t looked_ns;
    uint32_t rows_seen;
    uint32_t prompt; /* tokens of the next requests */
};

static struct sched_text texts[VOCAB];
static const uint32_t end_ids[1] = {END_ID};

static void submit(struct rig *rig, uint32_t idx)
{
    struct work *work = &rig->works[idx];
    for (uint32_t i = 0; i < rig->prompt; i++) work->tokens[i] = (idx + i) % END_ID;
    work->choice = (struct choice){.tokens = work->tokens};
    work->request = (struct request){.id = ++rig->ids,
                                     .owner = work,
                                     .service_class = idx < STREAMS ? CLASS_DEFAULT : CLASS_BATCH,
                                     .prompt = work->tokens,
                                     .prompt_count = rig->prompt,
                                     .choices = &work->choice,
                                     .choices_count = 1,
                                     .params = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                                     .max_tokens = idx < STREAMS ? CONTEXT - rig->prompt : JOB_OUT};
    assert_int_equal(sched_submit(rig->sched, &work->request, rig->now_ns), ST_OK);
    sched_events_taken(rig->sched);
}

static void rig_start(struct rig *rig, double limit_s)
{
    const struct sched_config config = {.context_max = CONTEXT,
                                        .running_max = ROWS,
                                        .step_tokens_max = CONTEXT,
                                        .rows_max = ROWS,
                                        .kv_blocks = ROWS * 64 + STREAMS * CONTEXT / KV_BLOCK_TOKENS,
                                        .queue_requests_max = 1000,
                                        .queue_tokens_max = 1u << 24,
                                        .tenants_max = 1,
                                        .tenant_share_percent = 100,
                                        .tells_shares = true,
                                        .weights_bytes = 12800000, /* 0.1 ms a token by the cost model */
                                        .think_start_id = UINT32_MAX,
                                        .think_end_id = UINT32_MAX,
                                        .texts = texts,
                                        .texts_count = VOCAB,
                                        .end_ids = end_ids,
                                        .end_ids_count = 1};
    struct error err;
    memset(rig, 0, sizeof *rig);
    rig->now_ns = rig->looked_ns = NS_PER_S;
    rig->base_s = 0.004;
    rig->row_s = 0.001;
    rig->feeds = true;
    rig->prompt = PROMPT;
    rig->works = mem_alloc(STREAMS + JOBS, sizeof *rig->works);
    assert_non_null(rig->works);
    assert_int_equal(sched_create(&config, &rig->sched, &err), ST_OK);
    assert_int_equal(batch_result_create(ROWS, &rig->results), ST_OK);
    node_loop_init(&rig->node, limit_s, rig->now_ns);
    energy_model_init(&rig->model, 100);
}

static void rig_stop(struct rig *rig)
{
    sched_end_all(rig->sched, CAUSE_PLATFORM_CANCEL, ST_CANCELED, rig->now_ns);
    sched_destroy(rig->sched);
    batch_result_destroy(rig->results);
    mem_free(rig->works);
}

static void run_step(struct rig *rig)
{
    struct power_order order = {.allowance_w = INFINITY};
    node_loop_order(&rig->node, &order);
    sched_set_power(rig->sched, &(struct sched_power){.room_j = INFINITY,
                                                      .urgent_j = INFINITY,
                                                      .model = rig->model,
                                                      .caps_rows = order.caps_rows != 0,
                                                      .rows_most = (uint32_t)order.rows_most});
    const struct batch *batch = sched_plan(rig->sched, rig->now_ns);
    if (batch->tokens_count == 0) {
        rig->now_ns += NS_PER_MS;
        return;
    }
    struct power_step step = {.start_ns = rig->now_ns};
    uint32_t count, deferrable = 0;
    (void)sched_plan_joules(rig->sched, &step.work);
    const struct energy_share *shares = sched_plan_shares(rig->sched, &count);
    rig->now_ns += (uint64_t)((rig->base_s + rig->row_s * batch->tokens_count) * 1e9);
    step.end_ns = rig->now_ns;
    for (uint32_t i = 0; i < count; i++) deferrable += shares[i].group == CLASS_BATCH;
    if (deferrable > rig->rows_seen) rig->rows_seen = deferrable;
    node_loop_step(&rig->node, &step, shares, count);
    for (uint32_t i = 0; i < batch->rows_count; i++) rig->results->rows[i] = (struct row_result){.id = i % END_ID};
    sched_commit(rig->sched, rig->results, rig->now_ns);
    uint32_t ended[STREAMS + JOBS], ends = 0;
    const struct event *events = sched_events(rig->sched, &count);
    for (uint32_t i = 0; i < count; i++)
        if (events[i].kind == REQUEST_DONE)
            ended[ends++] = (uint32_t)((struct work *)events[i].request->owner - rig->works);
    sched_events_taken(rig->sched);
    for (uint32_t i = 0; i < ends; i++)
        if (rig->feeds && ended[i] >= STREAMS) submit(rig, ended[i]);
}

static void run(struct rig *rig, uint32_t seconds)
{
    rig->allowed_least = UINT32_MAX;
    rig->allowed_most = rig->rows_most = rig->over = 0;
    for (uint32_t i = 0; i < seconds; i++) {
        rig->rows_seen = 0;
        for (rig->looked_ns += NS_PER_S; rig->now_ns < rig->looked_ns;) run_step(rig);
        node_loop_turn(&rig->node, &rig->model, rig->looked_ns);
        rig->over += rig->node.limit_s > 0 && rig->node.p95_s > rig->node.limit_s;
        uint32_t allowed = rig->node.guard.capped ? rig->node.guard.rows_most : ROWS;
        if (allowed < rig->allowed_least) rig->allowed_least = allowed;
        if (allowed > rig->allowed_most) rig->allowed_most = allowed;
        if (rig->rows_seen > rig->rows_most) rig->rows_most = rig->rows_seen;
    }
}

/* 4 streams beside as much batch as there is: 32 rows make intervals of 36 ms, and the limit is 20. */
static void test_node_loop_restores_and_lets_go(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, 0.020);
    for (uint32_t i = 0; i < STREAMS; i++) submit(&rig, i);
    run(&rig, 3);
    assert_false(rig.node.guard.capped);
    for (uint32_t i = STREAMS; i < STREAMS + JOBS; i++) submit(&rig, i);
    run(&rig, 8);
    print_message("p95 %.1f ms after 8 s, %u rows\n", 1e3 * rig.node.p95_s, rig.node.guard.rows_most);
    assert_true(rig.over >= 1 && rig.over <= 4 && rig.node.guard.capped && rig.node.p95_s <= 0.020);
    run(&rig, 30);
    print_message("then 30 s: %u over, %u .. %u rows\n", rig.over, rig.allowed_least, rig.allowed_most);
    assert_true(rig.over <= 1 && rig.allowed_least >= 4 && rig.allowed_most - rig.allowed_least <= 4); /* no swing */
    for (uint32_t i = 0; i < STREAMS; i++)
        assert_true(sched_cancel(rig.sched, rig.works[i].request.id, CAUSE_CLIENT_GONE));
    run(&rig, 3); /* nobody to guard */
    assert_true(!rig.node.guard.capped && rig.rows_most == ROWS);
    rig_stop(&rig);
}

/* Steps get faster under a cap: rows come back one by one, and when nothing binds the cap goes. */
static void test_node_loop_gives_back(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, 0.020);
    for (uint32_t i = 0; i < STREAMS + JOBS; i++) submit(&rig, i);
    run(&rig, 8);
    assert_true(rig.node.guard.capped);
    uint32_t held = rig.node.guard.rows_most;
    rig.row_s = 0.0003;
    run(&rig, 10);
    assert_true(rig.over == 0 && (!rig.node.guard.capped || rig.node.guard.rows_most > held));
    run(&rig, 40);
    assert_true(rig.over == 0 && !rig.node.guard.capped && rig.rows_most == ROWS - STREAMS);
    rig_stop(&rig);
}

static void test_node_loop_off(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, 0);
    for (uint32_t i = 0; i < STREAMS + JOBS; i++) submit(&rig, i);
    run(&rig, 5);
    assert_true(!rig.node.guard.capped && rig.node.step_ms == 0 && rig.rows_most == ROWS - STREAMS);
    rig_stop(&rig);
}

/* Through a port: tokens of a long prompt in the first step under a limit. */
static uint32_t first_step_tokens(uint32_t step_ms)
{
    struct rig rig;
    struct power_port port;
    rig_start(&rig, 0.020);
    assert_int_equal(power_port_init(&port), ST_OK);
    const struct power_order order = {.allowance_w = 1e9, .model = rig.model, .step_ms = step_ms};
    power_port_order(&port, &order);
    rig.prompt = CONTEXT / 2;
    submit(&rig, STREAMS - 1);
    assert_int_equal(power_port_begin(&port, rig.sched, rig.now_ns), 0);
    uint32_t tokens = sched_plan(rig.sched, rig.now_ns)->tokens_count;
    power_port_free(&port);
    rig_stop(&rig);
    return tokens;
}

static void test_node_step_reaches_the_plan(void **state)
{
    (void)state;
    uint32_t short_one = first_step_tokens(10), long_one = first_step_tokens(30), as_ever = first_step_tokens(0);
    print_message("tokens of a step: %u in 10 ms, %u in 30 ms\n", short_one, long_one);
    assert_true(short_one > 0 && 2 * short_one < long_one && long_one == as_ever);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_node_guard_takes_and_gives),
        cmocka_unit_test(test_node_step_by_joules),
        cmocka_unit_test(test_node_loop_restores_and_lets_go),
        cmocka_unit_test(test_node_loop_gives_back),
        cmocka_unit_test(test_node_loop_off),
        cmocka_unit_test(test_node_step_reaches_the_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
