/* The memory traffic of the element-wise kernels: what they read and write as activations and cache passes once, in
 * whole sectors. Weights of norms, angles and tables, which all rows share, come from a cache and are not counted. */
#include "tests/unit/cuda/device_memory.h"

#include "kernels/cuda_ops.h"
#include "tests/emulator/counters.h"

static const double ratio_max = 1.05;

/* Sectors of a watched range against bytes that must pass. */
static void expect_once(const char *name, bool written, size_t bytes)
{
    struct range_counts counts;
    assert_true(counters_range(name, &counts));
    const uint64_t sectors = written ? counts.written_sectors : counts.read_sectors;
    const double ratio = (double)sectors * 32 / (double)bytes;
    print_message("%-24s %s %8zu bytes, ratio %.3f\n", name, written ? "writes" : "reads ", bytes, ratio);
    assert_true(ratio <= ratio_max);
    assert_int_equal(written ? counts.written_bytes : counts.read_bytes, bytes);
}

static void *zeros(size_t bytes)
{
    void *at = device_take(bytes);
    device_fill(at, 0, bytes);
    return at;
}

static void norm_traffic(uint32_t E, bool e4m3)
{
    enum { M = 6 };
    const uint32_t live = M;
    const size_t values = (size_t)M * E;
    struct cuda_norm norm = {.x = zeros(values * 4),
                             .y = zeros(values * 2),
                             .residual_scale = 1,
                             .weight = zeros(E * sizeof(float)),
                             .out = device_take(values * 2),
                             .out_scales = e4m3 ? device_take(M * 4) : NULL,
                             .bad = zeros(M * 4),
                             .E = E,
                             .eps = 1e-5f};
    uint32_t *d_live = device_copy(&live, sizeof live);
    counters_start();
    counters_watch("norm x", norm.x, values * 4);
    counters_watch("norm y", norm.y, values * 2);
    counters_watch("norm out", norm.out, values * (e4m3 ? 1 : 2));
    cuda_ok(cuda_add_rmsnorm(&norm, d_live, M, device_stream()));
    device_wait();
    counters_stop();
    expect_once("norm x", false, values * 4);
    expect_once("norm x", true, values * 4);
    expect_once("norm y", false, values * 2);
    expect_once("norm out", true, values * (e4m3 ? 1 : 2));
    cudaFree(norm.x), cudaFree((void *)(uintptr_t)norm.y), cudaFree((void *)(uintptr_t)norm.weight);
    cudaFree(norm.out), cudaFree(norm.out_scales), cudaFree(norm.bad), cudaFree(d_live);
}

static void test_norm_passes_rows_once(void **state)
{
    (void)state;
    static const uint32_t widths[] = {576, 4096, 5120};
    for (int i = 0; i < (CHOICE_ONLY ? 1 : 3); i++) {
        norm_traffic(widths[i], false);
        norm_traffic(widths[i], true);
    }
}

static void test_glu_passes_rows_once(void **state)
{
    (void)state;
    enum { M = 4, F = 1536 };
    const uint32_t live = M;
    uint16_t *gu = zeros(M * 2 * F * 2), *out = device_take(M * F * 2);
    uint32_t *d_live = device_copy(&live, sizeof live);
    for (int alternating = 0; alternating < 2; alternating++) {
        counters_start();
        counters_watch("glu gate and up", gu, M * 2 * F * 2);
        counters_watch("glu out", out, M * F * 2);
        cuda_ok(cuda_glu(out, gu, F, false, alternating, d_live, M, device_stream()));
        device_wait();
        counters_stop();
        expect_once("glu gate and up", false, M * 2 * F * 2);
        expect_once("glu out", true, M * F * 2);
    }
    cudaFree(gu), cudaFree(out), cudaFree(d_live);
}

static void test_embed_passes_rows_once(void **state)
{
    (void)state;
    enum { M = 4, E = 1024, N = 8 };
    static const uint32_t tokens[M] = {1, 5, 3, 7};
    const struct cuda_step_header header = {.tokens = M};
    const struct cuda_weight table = {.type = CUDA_TYPE_BF16, .N = N, .K = E, .codes = zeros(N * E * 2)};
    const struct cuda_step step = {.header = device_copy(&header, sizeof header),
                                   .tokens = device_copy(tokens, sizeof tokens)};
    const struct cuda_embedding embedding = {
        .x = device_take(M * E * 4), .bad = device_take(M * 4), .table = &table, .scale = 1};
    counters_start();
    counters_watch("embed table", table.codes, N * E * 2);
    counters_watch("embed x", embedding.x, M * E * 4);
    cuda_ok(cuda_embed(&embedding, &step, M, device_stream()));
    device_wait();
    counters_stop();
    expect_once("embed table", false, M * E * 2);
    expect_once("embed x", true, M * E * 4);
    cudaFree((void *)(uintptr_t)table.codes), cudaFree((void *)(uintptr_t)step.header);
    cudaFree((void *)(uintptr_t)step.tokens), cudaFree(embedding.x), cudaFree(embedding.bad);
}

static void rope_traffic(uint32_t D, bool interleaved, bool fp8)
{
    enum { M = 4, H = 6, KH = 2, BLOCKS = 1 };
    static const uint32_t positions[M] = {4, 5, 6, 7}, seqs[M] = {0}, starts[2] = {0, 1}, table[1] = {0};
    const struct cuda_step_header header = {.tokens = M, .seqs = 1};
    const struct cuda_step step = {.header = device_copy(&header, sizeof header),
                                   .positions = device_copy(positions, sizeof positions),
                                   .seq_of_token = device_copy(seqs, sizeof seqs),
                                   .table_start = device_copy(starts, sizeof starts),
                                   .table = device_copy(table, sizeof table)};
    const size_t head = (size_t)M * D, qkv_bytes = head * (H + 2 * KH) * 2;
    const size_t cache_bytes = cuda_kv_layer_bytes(BLOCKS, KH, D, fp8);
    struct cuda_rope rope = {.qkv = zeros(qkv_bytes),
                             .turns = zeros(D / 2 * sizeof(uint64_t)),
                             .magnitude = 1,
                             .rope_size = D,
                             .interleaved = interleaved,
                             .H = H,
                             .KH = KH,
                             .D = D,
                             .kv = {.base = device_take(cache_bytes),
                                    .layers = 1,
                                    .blocks = BLOCKS,
                                    .kv_heads = KH,
                                    .head_size = D,
                                    .fp8 = fp8}};
    const size_t codes = head * 2 * KH * (fp8 ? 1 : 2);
    counters_start();
    counters_watch("rope Q K V", rope.qkv, qkv_bytes);
    counters_watch("rope cache", rope.kv.base, (size_t)32 * D * (fp8 ? 1 : 2)); /* the first head's K and V */
    cuda_ok(cuda_rope_kv_write(&rope, &step, M, device_stream()));
    device_wait();
    counters_stop();
    expect_once("rope Q K V", false, qkv_bytes);
    expect_once("rope Q K V", true, head * (H + KH) * 2);
    expect_once("rope cache", true, codes / KH);
    const void *all[] = {step.header, step.positions, step.seq_of_token, step.table_start,
                         step.table,  rope.qkv,       rope.turns,        rope.kv.base};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) cudaFree((void *)(uintptr_t)all[i]);
}

static void test_rope_passes_heads_once(void **state)
{
    (void)state;
    for (int bits = 0; bits < 8; bits++) rope_traffic(bits & 1 ? 64 : 128, bits & 2, bits & 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm_passes_rows_once),
        cmocka_unit_test(test_glu_passes_rows_once),
        cmocka_unit_test(test_embed_passes_rows_once),
        cmocka_unit_test(test_rope_passes_heads_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
