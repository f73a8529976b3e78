/* RoPE and the KV write: the same bits on every path, the meaning of the reference, nothing beside the head touched. */
#include "tests/unit/unit.h"

#include "kernels/dequantize.h"
#include "kernels/rope.h"
#include "tests/unit/kernels/paths.h"

#include <float.h>
#include <math.h>

enum { D_MAX = 160 };

static void check(enum rope_pairs pairs, uint32_t rope_size, uint32_t position, const float *factors, double scale,
                  uint64_t *seed)
{
    double frequencies[D_MAX / 2];
    float c[D_MAX], s[D_MAX], x[D_MAX], wanted[D_MAX], scalar[D_MAX], y[D_MAX];
    for (uint32_t i = 0; i < D_MAX; i++) x[i] = random_between(seed, -2, 2);
    memcpy(wanted, x, sizeof x);
    memcpy(scalar, x, sizeof x);
    rope_frequencies(frequencies, rope_size, 10000, scale, factors);
    rope_angles(c, s, pairs, rope_size, frequencies, 1, position);
    rope_ref(wanted, pairs, rope_size, 10000, scale, factors, position);
    rope(CPU_PATH_SCALAR, scalar, c, s, pairs, rope_size);
    for (uint32_t i = 0; i < D_MAX; i++) {
        float bound = i < rope_size ? 2e-7f * 4 : 0;
        if (!(fabsf(scalar[i] - wanted[i]) <= bound))
            fail_msg("size %u, value %u: %g, wanted %g", rope_size, i, (double)scalar[i], (double)wanted[i]);
    }
    PATHS_EACH(path)
    {
        memcpy(y, x, sizeof x);
        rope(path, y, c, s, pairs, rope_size);
        assert_memory_equal(y, scalar, sizeof y);
    }
}

static void test_rope_paths_agree_and_match_reference(void **state)
{
    (void)state;
    uint64_t seed = 4;
    static const uint32_t positions[] = {0, 1, 17, 1000, 131071};
    float factors[D_MAX / 2];
    for (uint32_t i = 0; i < D_MAX / 2; i++) factors[i] = random_between(&seed, 1, 32);
    for (uint32_t size = 2; size <= 128; size += size < 40 ? 2 : 22) {
        for (size_t p = 0; p < 5; p++) {
            for (int pairs = ROPE_PAIRS_INTERLEAVED; pairs <= ROPE_PAIRS_HALVES; pairs++) {
                check((enum rope_pairs)pairs, size, positions[p], NULL, 1, &seed);
                check((enum rope_pairs)pairs, size, positions[p], factors, 0.25, &seed);
            }
        }
    }
}

static float kv_item(const struct kv_layout *layout, const uint8_t *base, size_t idx)
{
    if (layout->type == KV_F32) return ((const float *)(const void *)base)[idx];
    return bf16_to_f32(((const uint16_t *)(const void *)base)[idx]);
}

static void test_rope_kv_write_fills_its_slot_alone(void **state)
{
    (void)state;
    uint64_t seed = 5;
    static _Alignas(64) uint8_t head[2 * 16 * 4 * (D_MAX + 16) + 128], before[sizeof head], first[sizeof head];
    float k[D_MAX], v[D_MAX];
    for (uint32_t D = 1; D <= 80; D += D < 20 ? 1 : 12) {
        for (int type = KV_F32; type <= KV_BF16; type++) {
            struct kv_layout layout = kv_layout_of((enum kv_type)type, D);
            uint32_t slot = (uint32_t)(random_next(&seed) % KV_TOKENS);
            bool first_path = true;
            assert_true(layout.head_bytes <= sizeof head);
            for (uint32_t d = 0; d < D; d++) {
                k[d] = random_between(&seed, -9, 9);
                v[d] = random_between(&seed, -9, 9);
            }
            PATHS_EACH(path)
            {
                memset(head, 0x5a, sizeof head);
                memset(before, 0x5a, sizeof before);
                kv_write(path, &layout, head, slot, k, v);
                for (uint32_t d = 0; d < D; d++) {
                    float wanted_k = type == KV_F32 ? k[d] : bf16_to_f32(f32_to_bf16(k[d]));
                    float wanted_v = type == KV_F32 ? v[d] : bf16_to_f32(f32_to_bf16(v[d]));
                    assert_true(kv_item(&layout, head, kv_k_index(&layout, slot, d)) == wanted_k);
                    assert_true(kv_item(&layout, head + layout.v_offset_bytes, kv_v_index(&layout, slot, d)) ==
                                wanted_v);
                }
                if (first_path) memcpy(first, head, sizeof head);
                assert_memory_equal(head, first, D % 16 ? layout.v_offset_bytes : sizeof head);
                first_path = false;
                uint32_t changed = 0;
                for (size_t i = 0; i < sizeof head; i++) changed += head[i] != before[i];
                assert_true(changed <= (D + D % 2 + layout.P) * (type == KV_F32 ? 4 : 2));
            }
        }
    }
}

/* Values within half a step of the token's own scale, nothing else touched, the same on every path. */
static void test_rope_kv_write_int8(void **state)
{
    (void)state;
    uint64_t seed = 9;
    enum { D = 37 };
    struct kv_layout layout = kv_layout_of(KV_I8, D);
    static _Alignas(64) uint8_t head[4096], first[sizeof head];
    const float *scales[2] = {
        (const float *)(const void *)(head + kv_i8_scales(KV_TOKENS * D)),
        (const float *)(const void *)(head + layout.v_offset_bytes + kv_i8_scales((size_t)KV_TOKENS * layout.P))};
    float x[2][D];
    for (uint32_t i = 0; i < 2 * D; i++) x[i / D][i % D] = random_between(&seed, -9, 9);
    x[0][3] = x[1][4] = 1;
    PATHS_EACH(path)
    {
        memset(head, 0x5a, sizeof head);
        kv_write(path, &layout, head, 5, x[0], x[1]);
        if (path == CPU_PATH_SCALAR) memcpy(first, head, sizeof head);
        assert_memory_equal(head, first, sizeof head);
        for (uint32_t d = 0; d < D; d++) {
            float k = (float)(int8_t)head[kv_k_index(&layout, 5, d)] * scales[0][5];
            float v = (float)(int8_t)head[layout.v_offset_bytes + kv_v_index(&layout, 5, d)] * scales[1][5];
            assert_true(fabsf(k - x[0][d]) <= 0.501f * scales[0][5]);
            assert_true(fabsf(v - x[1][d]) <= 0.501f * scales[1][5]);
        }
        uint32_t changed = 0;
        for (size_t i = 0; i < sizeof head; i++) changed += head[i] != 0x5a;
        assert_true(changed <= 2 * D + 2 * sizeof(float));
        x[0][3] = NAN;
        x[1][4] = INFINITY;
        kv_write(path, &layout, head, 6, x[0], x[1]);
        assert_true(isnan(scales[0][6]) && isnan(scales[1][6]));
        x[0][3] = x[1][4] = 1;
    }
}

static void test_rope_kv_write_rounds_to_bf16(void **state)
{
    (void)state;
    struct kv_layout layout = kv_layout_of(KV_BF16, 16);
    _Alignas(64) uint8_t head[1024];
    float k[16] = {FLT_MAX,   -FLT_MAX,  INFINITY,  NAN,           0x1.fep-41f,
                   -0x1p-40f, 0x1.01p0f, 0x1.03p0f, 0x1.010002p0f, 1e-42f};
    float v[16] = {0, -INFINITY, -NAN, -0x1.7fp100f};
    static const float wanted[16] = {NAN, NAN, NAN, NAN, 0, -0x1p-40f, 1, 0x1.04p0f, 0x1.02p0f};
    assert_true(layout.head_bytes <= sizeof head);
    PATHS_EACH(path)
    {
        kv_write(path, &layout, head, 3, k, v);
        for (uint32_t d = 0; d < 16; d++) {
            float got = kv_item(&layout, head, kv_k_index(&layout, 3, d));
            assert_true(isnan(wanted[d]) ? isnan(got) : got == wanted[d]);
        }
        assert_true(isnan(kv_item(&layout, head + layout.v_offset_bytes, kv_v_index(&layout, 3, 1))));
        assert_true(isnan(kv_item(&layout, head + layout.v_offset_bytes, kv_v_index(&layout, 3, 2))));
        assert_true(kv_item(&layout, head + layout.v_offset_bytes, kv_v_index(&layout, 3, 3)) == -0x1.8p100f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope_paths_agree_and_match_reference),
                                       cmocka_unit_test(test_rope_kv_write_fills_its_slot_alone),
                                       cmocka_unit_test(test_rope_kv_write_int8),
                                       cmocka_unit_test(test_rope_kv_write_rounds_to_bf16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
