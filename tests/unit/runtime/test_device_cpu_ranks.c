/* The CPU device in parts, a thread a rank: near the forward pass in double as the whole device is, the same bits
 * whatever the batch, chunks and threads, and never a wait without end when a rank is lost. */
#include "tests/unit/unit.h"

#include "runtime/model/model_shard.h"
#include "tests/unit/runtime/rank_grid.h"

enum { V = GRID_VOCAB, TOKENS = GRID_TOKENS, CONTEXT = GRID_CONTEXT };

static const struct model_spec base_spec = {
    TINY_SPEC,       .heads = 6, .head_size = 16,       .rope_size = 16, .attention_scale = 0.25f,
    .ff_width = 224, .vocab = V, .context_max = CONTEXT};
static void compare(const struct grid *r, const struct tiny_model *tiny, double *worst, double *mean)
{
    static double wanted[CONTEXT * V];
    double sum = 0;
    tiny_forward(tiny, prompt, TOKENS, wanted);
    *worst = 0;
    for (uint32_t i = 0; i < TOKENS; i++) {
        assert_int_equal(r->rows[i].flags, 0);
        assert_int_equal(r->rows[i].top_count, 20);
        for (uint32_t k = 0; k < 20; k++) {
            double difference =
                fabs((double)r->rows[i].top_logprobs[k] - wanted[(size_t)i * V + r->rows[i].top_ids[k]]);
            if (!(difference <= *worst)) *worst = difference;
            sum += difference;
        }
    }
    *mean = sum / (TOKENS * 20);
}

static void check_spec(const struct model_spec *spec, enum tensor_type type, bool q8_v, uint32_t ranks_max)
{
    static struct tiny_model tiny;
    static struct grid r, other;
    double worst, mean;
    tiny_make(&tiny, spec, type, q8_v, false);
    static const uint32_t counts[] = {2, 3, 6};
    for (uint32_t k = 0; k < 3 && counts[k] <= ranks_max; k++) {
        uint32_t count = counts[k];
        grid_make(&r, &tiny, count, 1, NUMERICS_EXACT, 1 + count % 2, 60 * NS_PER_S);
        grid_run(&r, 19, 1);
        compare(&r, &tiny, &worst, &mean);
        if (!(worst < 1e-4)) fail_msg("exact, %u ranks: off by %g", count, worst);
        grid_make(&other, &tiny, count, 1, NUMERICS_EXACT, 3 - count % 2, 60 * NS_PER_S);
        grid_run(&other, 5, 1);
        assert_memory_equal(r.rows, other.rows, sizeof r.rows);
        grid_free(&r);
        grid_free(&other);
        grid_make(&r, &tiny, count, 1, NUMERICS_FAST, 2, 60 * NS_PER_S);
        grid_run(&r, TOKENS, 1);
        compare(&r, &tiny, &worst, &mean);
        if (!(mean < 0.3)) fail_msg("fast, %u ranks: off by %g in the mean", count, mean);
        memcpy(other.rows, r.rows, sizeof r.rows);
        grid_run(&r, 8, 1);
        assert_memory_equal(r.rows, other.rows, sizeof r.rows);
        grid_run(&r, 16, 7); /* few rows in the last layer */
        for (uint32_t i = 0; i < TOKENS; i += 7) assert_memory_equal(&r.rows[i], &other.rows[i], sizeof r.rows[i]);
        grid_free(&r);
    }
    tiny_free(&tiny);
}

static void test_device_cpu_ranks_llama(void **state)
{
    (void)state;
    check_spec(&base_spec, TENSOR_Q4_1, false, 6); /* from three ranks on they share KV heads */
    struct model_spec spec = base_spec;
    spec.heads = spec.kv_heads = 3; /* uneven */
    spec.head_size = 32;
    check_spec(&spec, TENSOR_Q8_0, true, 3);
}

static void test_device_cpu_ranks_biases_norms_scales(void **state)
{
    (void)state;
    struct model_spec spec = tiny_rich(base_spec, 21);
    spec.has_qkv_bias = true;
    spec.tied_head = false;
    check_spec(&spec, TENSOR_Q8_0, false, 3);
    check_spec(&spec, TENSOR_F32, true, 2);
}

static void test_device_cpu_ranks_experts(void **state)
{
    (void)state;
    struct model_spec spec = tiny_mixture(base_spec); /* whole experts */
    check_spec(&spec, TENSOR_Q8_0, true, 3);
    spec.expert_width = 256; /* split in two */
    spec.experts_normed = true;
    spec.layer_flags[1] = 0; /* and a layer without */
    check_spec(&spec, TENSOR_Q4_1, false, 2);
}

/* A value that is not finite in one rank's part alone marks the token on all. */
static void test_device_cpu_ranks_not_finite(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct grid r;
    struct model_spec spec = base_spec;
    spec.tied_head = false;
    for (uint32_t spoilt = 0; spoilt < 2; spoilt++) {
        tiny_make(&tiny, &spec, TENSOR_F32, false, false);
        /* v's last row of layer 0 is the last head's, of the last rank; its first the first rank's */
        struct tensor_view *v = &tiny.layers[0].v;
        size_t row = spoilt ? v->rows - 1 : 0;
        for (uint32_t i = 0; i < tiny.owned_count; i++)
            if (tiny.owned[i] == v->data) ((float *)tiny.owned[i])[row * v->cols] = INFINITY;
        for (uint32_t threads = 1; threads <= 2; threads++) {
            grid_make(&r, &tiny, 2, 1, NUMERICS_FAST, threads, 60 * NS_PER_S);
            grid_fill(&r, 0, 20, 3);
            grid_step(&r);
            for (uint32_t i = 0; i < r.batch->rows_count; i++)
                assert_int_equal(r.result->rows[i].flags, ROW_NOT_FINITE);
            for (uint32_t rank = 0; rank < 2; rank++) {
                const struct device_cpu *cpu = (const struct device_cpu *)(const void *)r.devices[rank];
                for (uint32_t n = 0; n < 20; n++) assert_true(cpu->bad[n]);
            }
            grid_free(&r);
        }
        tiny_free(&tiny);
    }
}

/* A rank that does not come: the device is lost, at once and for good, with any number of threads. */
static void test_device_cpu_ranks_lost(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct grid r;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, false);
    for (uint32_t threads = 1; threads <= 3; threads++)
        for (uint32_t steps = 0; steps < 2; steps++) {
            grid_make(&r, &tiny, 3, 1, NUMERICS_FAST, threads, 30 * NS_PER_MS);
            grid_fill(&r, 0, steps ? 1 : 20, 1);
            r.absent = 2;
            grid_step(&r);
            assert_int_equal(r.status[0], ST_DEVICE);
            assert_int_equal(r.status[1], ST_DEVICE);
            r.absent = 0;
            grid_step(&r);
            for (uint32_t rank = 0; rank < 3; rank++) assert_int_equal(r.status[rank], ST_DEVICE);
            grid_free(&r);
        }
    tiny_free(&tiny);
}

/* The comm ends at every operation of a step in turn. */
struct failing {
    struct comm comm;
    struct comm *inner;
    uint32_t left;
};

static enum status failing_sum(struct comm *comm, void *data, size_t count, enum comm_type type, void *stream)
{
    struct failing *f = (struct failing *)(void *)comm;
    if (f->left-- == 0) comm_abort(f->inner);
    return comm_all_reduce(f->inner, data, count, type, stream);
}

static enum status failing_gather(struct comm *comm, const void *part, size_t bytes, void *all, uint32_t root,
                                  void *stream)
{
    struct failing *f = (struct failing *)(void *)comm;
    if (f->left-- == 0) comm_abort(f->inner);
    return comm_gather(f->inner, part, bytes, all, root, stream);
}

static void test_device_cpu_ranks_lost_anywhere(void **state)
{
    (void)state;
    static const struct comm_ops ops = {.all_reduce = failing_sum, .gather = failing_gather};
    static struct tiny_model tiny;
    static struct grid r;
    uint32_t operations = 0;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, false);
    for (uint32_t threads = 1; threads <= 3; threads += 2)
        for (uint32_t at = 0;; at++) {
            grid_make(&r, &tiny, 2, 1, NUMERICS_FAST, threads, 3600 * NS_PER_S);
            struct device_cpu *cpu = (struct device_cpu *)(void *)r.devices[1];
            struct failing failing = {{&ops, 1, 2}, r.comms[1].peers, at};
            cpu->comm = &failing.comm;
            grid_fill(&r, 0, 40, 1);
            grid_step(&r);
            enum status status = r.status[1];
            assert_true(r.status[0] == status || r.status[0] == ST_DEVICE || status == ST_DEVICE);
            grid_free(&r);
            if (status == ST_OK) {
                operations = at;
                break;
            }
        }
    assert_int_equal(operations, 1 + 2 * TINY_LAYERS + 1 + 3); /* embedding, sums, marks, 3 groups of 16 rows */
    tiny_free(&tiny);
}

static void test_device_cpu_ranks_refuses(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct grid r;
    struct error err = {""};
    struct device *device = NULL;
    struct model *part = NULL;
    struct device_config config = {cpu_path_best(), NUMERICS_FAST, false, 1, 0, 8, 1, 8, 64, NULL, NULL};
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, false);
    grid_make(&r, &tiny, 2, 1, NUMERICS_FAST, 1, NS_PER_S);
    assert_int_equal(model_shard(&tiny.model, 0, 2, &part, &err), ST_OK);
    assert_int_equal(device_cpu_create(part, &config, NULL, NULL, &device, &err), ST_INVAL); /* no comm */
    config.comm = r.comms[1].peers;
    assert_int_equal(device_cpu_create(part, &config, NULL, NULL, &device, &err), ST_INVAL);        /* another's */
    assert_int_equal(device_cpu_create(&tiny.model, &config, NULL, NULL, &device, &err), ST_INVAL); /* whole */
    model_close(part);
    grid_fill(&r, 0, 4, 1);
    r.batch->tokens[2] = V;
    for (uint32_t rank = 0; rank < 2; rank++)
        assert_int_equal(device_step(r.devices[rank], r.batch, r.result), ST_INVAL); /* before anything ran */
    grid_free(&r);
    tiny_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_cpu_ranks_llama),   cmocka_unit_test(test_device_cpu_ranks_biases_norms_scales),
        cmocka_unit_test(test_device_cpu_ranks_experts), cmocka_unit_test(test_device_cpu_ranks_not_finite),
        cmocka_unit_test(test_device_cpu_ranks_lost),    cmocka_unit_test(test_device_cpu_ranks_lost_anywhere),
        cmocka_unit_test(test_device_cpu_ranks_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
