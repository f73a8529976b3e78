/* bench/gpu_model: shapes of steps by enumeration, the roofline by hand arithmetic, the simulator where its result
 * follows from the numbers. */
#include "tests/unit/unit.h"

#include "bench/gpu_model/cluster.h"
#include "bench/gpu_model/cpu_cost.h"
#include "bench/gpu_model/roofline.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <math.h>

/* ---- shapes ---- */

static void test_shape_by_enumeration(void **state)
{
    (void)state;
    uint64_t rng = 5;
    for (uint32_t round = 0; round < 200; round++) {
        enum { SEQS = 5 };
        uint32_t q_start[SEQS + 1] = {0}, kv_len[SEQS], window = (uint32_t)(random_next(&rng) % 20);
        double kv = 0, kv_windowed = 0, pairs = 0, pairs_windowed = 0;
        for (uint32_t s = 0; s < SEQS; s++) {
            uint32_t tokens = 1 + (uint32_t)(random_next(&rng) % 9), before = (uint32_t)(random_next(&rng) % 40);
            q_start[s + 1] = q_start[s] + tokens;
            kv_len[s] = before + tokens;
            uint32_t lowest = kv_len[s];
            for (uint32_t position = before; position < kv_len[s]; position++) {
                uint32_t sees = window && window < position + 1 ? window : position + 1;
                pairs += position + 1;
                pairs_windowed += sees;
                if (position + 1 - sees < lowest) lowest = position + 1 - sees;
            }
            kv += kv_len[s];
            kv_windowed += kv_len[s] - lowest;
        }
        struct batch batch = {.tokens_count = q_start[SEQS], .seqs_count = SEQS, .q_start = q_start, .kv_len = kv_len};
        struct step_shape shape = step_shape_of(&batch, window);
        assert_true(shape.kv_tokens == kv && shape.pairs == pairs);
        if (window) assert_true(shape.kv_tokens_windowed == kv_windowed && shape.pairs_windowed == pairs_windowed);
    }
}

/* ---- the roofline ---- */

static struct roofline llama3_8b(double weight_bytes, double kv_bytes)
{
    return (struct roofline){.gpu = gpu_named("h100"),
                             .spec = {.layers = 32,
                                      .width = 4096,
                                      .heads = 32,
                                      .kv_heads = 8,
                                      .head_size = 128,
                                      .ff_width = 14336,
                                      .vocab = 128256},
                             .ranks = 1,
                             .weight_bytes = weight_bytes,
                             .kv_bytes = kv_bytes,
                             .fp8_flops = weight_bytes == 1,
                             .shares = {0.85, 1, 0.85, 1, 0.85}};
}

/* A decode step that nothing but memory bounds: weights but the embedding, and KV, at 85 % of 3.35 TB/s. What the model
 * counts beyond these (activations) is small. */
static void test_roofline_of_decode_is_its_bytes(void **state)
{
    (void)state;
    const double layer = 2 * 4096.0 * 4096 + 2 * 1024.0 * 4096 + 3 * 14336.0 * 4096, head = 128256.0 * 4096;
    static const struct {
        double weight_bytes, kv_bytes, batch, context;
    } cases[] = {{2, 2, 1, 1024}, {1, 1, 1, 1024}, {0.625, 2, 1, 1024}, {2, 2, 64, 1024}, {1, 1, 64, 1024}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct roofline model = llama3_8b(cases[i].weight_bytes, cases[i].kv_bytes);
        double positions = cases[i].batch * cases[i].context;
        struct step_shape step = {(uint32_t)cases[i].batch,
                                  (uint32_t)cases[i].batch,
                                  (uint32_t)cases[i].batch,
                                  positions,
                                  positions,
                                  positions,
                                  positions};
        double bytes = (32 * layer + head) * cases[i].weight_bytes + positions * 32 * 8 * 2 * 128 * cases[i].kv_bytes;
        double expected_s = bytes / (0.85 * 3.35e12), got_s = roofline_step(&model, &step, NULL);
        if (!(got_s >= expected_s && got_s < expected_s * 1.06))
            fail_msg("case %zu: %.3f ms, bytes alone %.3f", i, got_s * 1e3, expected_s * 1e3);
    }
}

static void test_roofline_of_prefill_is_its_operations(void **state)
{
    (void)state;
    struct roofline model = llama3_8b(2, 2);
    const double layer = 2 * 4096.0 * 4096 + 2 * 1024.0 * 4096 + 3 * 14336.0 * 4096, M = 8192;
    struct step_shape step = {8192, 1, 1, M, M, M * (M + 1) / 2, M * (M + 1) / 2};
    double flops = 2 * M * 32 * layer + 4 * (M * (M + 1) / 2) * 32 * 128 * 32, expected_s = flops / 989e12;
    double got_s = roofline_step(&model, &step, NULL);
    assert_true(got_s >= expected_s && got_s < expected_s * 1.12);
}

static void test_roofline_ranks_and_nodes(void **state)
{
    (void)state;
    struct roofline model = llama3_8b(2, 2), four = model;
    struct step_shape step = {8, 8, 8, 8192, 8192, 8192, 8192};
    struct roofline_row one_rows[NODE_COUNT], four_rows[NODE_COUNT];
    four.ranks = 4;
    roofline_step(&model, &step, one_rows);
    roofline_step(&four, &step, four_rows);
    assert_int_equal(one_rows[NODE_ALL_REDUCE].launches, 0);
    assert_int_equal(four_rows[NODE_ALL_REDUCE].launches, 64); /* after O and after down */
    double share = four_rows[NODE_GATE_UP].bytes / one_rows[NODE_GATE_UP].bytes;
    assert_true(share > 0.249 && share < 0.26);
    assert_true(fabs(roofline_weight_bytes(&model) - 2 * 8.03e9) < 2e7); /* Llama 3 8B has 8.03 G parameters */
    assert_true(fabs(roofline_weight_bytes(&four) * 4 - roofline_weight_bytes(&model)) < 1);
    assert_true(roofline_kv_blocks(&model, 0.92) > 25000 && roofline_kv_blocks(&model, 0.1) == 0);
}

/* ---- the simulator ---- */

static double constant_step(const void *state, const struct step_shape *step)
{
    (void)step;
    return *(const double *)state;
}

static struct cluster_config config_of(uint32_t nodes, uint32_t clients, const double *step_s)
{
    return (struct cluster_config){.nodes = nodes,
                                   .clients = clients,
                                   .sched = {.context_max = 256,
                                             .running_max = 64,
                                             .step_tokens_max = 4096,
                                             .rows_max = 64,
                                             .kv_blocks = 2048,
                                             .queue_requests_max = 1024,
                                             .queue_tokens_max = 1 << 20,
                                             .tenants_max = 1,
                                             .tenant_share_percent = 100,
                                             .prefix_cache = true},
                                   .step = constant_step,
                                   .step_state = step_s};
}

/* Every step costs the same and has room for all: a request of N ids takes N steps. */
static void test_cluster_of_constant_steps(void **state)
{
    (void)state;
    static const double step_s = 0.01;
    for (uint32_t nodes = 1; nodes <= 3; nodes++) {
        struct cluster_config config = config_of(nodes, 12, &step_s);
        struct cluster_request requests[24];
        struct cluster_report report;
        struct error err = {""};
        for (uint32_t i = 0; i < 24; i++)
            requests[i] = (struct cluster_request){.prompt_count = 40, .output_count = 10};
        assert_int_equal(cluster_run(&config, requests, 24, &report, &err), ST_OK);
        assert_int_equal(report.output_tokens, 240);
        assert_int_equal(report.prompt_tokens, 24 * 40);
        assert_int_equal(report.refused, 0);
        assert_int_equal(report.steps, 20 * nodes); /* two waves of ten */
        assert_true(fabs(report.seconds - 0.2) < 1e-9);
        assert_true(fabs(report.ttft_p99_s - 0.01) < 1e-9);
        assert_true(fabs(report.itl_mean_s - 0.01) < 1e-9);
        struct cluster_report again;
        assert_int_equal(cluster_run(&config, requests, 24, &again, &err), ST_OK);
        assert_memory_equal(&report, &again, sizeof report);
    }
}

static void test_cluster_open_loop_and_groups(void **state)
{
    (void)state;
    static const double step_s = 0.001;
    struct cluster_config config = config_of(2, 0, &step_s);
    struct cluster_request requests[40];
    struct cluster_report report;
    struct error err = {""};
    for (uint32_t i = 0; i < 40; i++)
        requests[i] = (struct cluster_request){
            .arrival_s = 0.05 * i, .prompt_count = 64, .output_count = 5, .group = 1 + i % 2, .shared_count = 48};
    assert_int_equal(cluster_run(&config, requests, 40, &report, &err), ST_OK);
    assert_int_equal(report.output_tokens, 200);
    for (uint32_t i = 0; i < 40; i++) {
        assert_true(requests[i].asked_s >= requests[i].arrival_s && requests[i].first_s > requests[i].asked_s);
        assert_true(requests[i].done_s < requests[i].arrival_s + 0.05); /* alone on its node */
    }
    config.sched.kv_blocks = 4; /* 64 positions: none fits, each is refused and the run still ends */
    assert_int_equal(cluster_run(&config, requests, 40, &report, &err), ST_OK);
    assert_int_equal(report.refused, 40);
}

static void test_cpu_cost_is_straight_between_points(void **state)
{
    (void)state;
    struct cpu_cost cost = {.row_s = 0.5, .kv_s = 0.25, .pair_s = 0.125};
    for (uint32_t i = 0; i < COST_POINTS; i++) cost.tokens[i] = 1 << i, cost.base_s[i] = 10.0 * (i + 1);
    struct step_shape step = {.tokens = 1};
    assert_true(cpu_cost_step(&cost, &step) == 10);
    step = (struct step_shape){.tokens = 48, .rows = 2, .kv_tokens = 4, .pairs = 8};
    assert_true(cpu_cost_step(&cost, &step) == 65 + 1 + 1 + 1);
    step = (struct step_shape){.tokens = 1024}; /* beyond the last: its slope goes on */
    assert_true(cpu_cost_step(&cost, &step) == 120);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shape_by_enumeration),
        cmocka_unit_test(test_roofline_of_decode_is_its_bytes),
        cmocka_unit_test(test_roofline_of_prefill_is_its_operations),
        cmocka_unit_test(test_roofline_ranks_and_nodes),
        cmocka_unit_test(test_cluster_of_constant_steps),
        cmocka_unit_test(test_cluster_open_loop_and_groups),
        cmocka_unit_test(test_cpu_cost_is_straight_between_points),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
