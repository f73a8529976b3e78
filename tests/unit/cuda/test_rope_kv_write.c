/* Rotation and paged write against their meaning in double: shapes, pairings, norms, both forms of the cache, far
 * positions, padding, NaN; and no byte of the cache touched but those of the step's tokens. */
#include "tests/unit/cuda/device_memory.h"

#include "kernels/cuda_ops.h"

enum { M = 9, SEQS = 3, LAYERS = 2, BLOCKS = 7, LAYER = 1, TABLE_MAX = 10000 };

struct form {
    uint32_t H, KH, D, rope_size;
    bool interleaved, norms, fp8;
    float magnitude;
    uint32_t live;
    bool nan;
};

/* Three sequences: the end of a long context, a chunk of a prompt across a block border, a first token. */
static const uint32_t positions[M] = {131070, 131071, 14, 15, 16, 17, 0, 99999999, 99999999};
static const uint32_t seq_of_token[M] = {0, 0, 1, 1, 1, 1, 2, 77777777, 77777777};
static const uint32_t table_start[SEQS + 1] = {0, 8192, 8194, 8195};
static const uint32_t block_of_token[M] = {5, 5, 2, 2, 6, 6, 0, BLOCKS, BLOCKS};
enum { TOKENS = 7 }; /* of the step; the rest of M is padding with numbers that must not be looked up */

struct run {
    struct form f;
    size_t stride, qkv_bytes, cache_bytes;
    uint16_t *qkv, *after;
    float *q_norm, *k_norm;
    double *frequencies;
    uint64_t *turns;
    uint8_t *cache, *expected_at;
};

static const float eps = 1e-6f;

static void run_make(struct run *r, const struct form *form, uint64_t *seed)
{
    r->f = *form;
    const uint32_t D = form->D, half = form->rope_size / 2;
    r->stride = (size_t)(form->H + 2 * form->KH) * D;
    r->qkv_bytes = M * r->stride * 2;
    r->cache_bytes = LAYERS * cuda_kv_layer_bytes(BLOCKS, form->KH, D, form->fp8);
    r->qkv = malloc(r->qkv_bytes), r->after = malloc(r->qkv_bytes);
    r->q_norm = malloc(D * sizeof(float)), r->k_norm = malloc(D * sizeof(float));
    r->frequencies = malloc((half + 1) * sizeof(double)), r->turns = malloc((half + 1) * sizeof(uint64_t));
    r->cache = malloc(r->cache_bytes), r->expected_at = calloc(r->cache_bytes, 1);
    for (size_t i = 0; i < M * r->stride; i++) r->qkv[i] = bf16_of(random_within(seed, -3, 3));
    for (uint32_t d = 0; d < D; d++) {
        r->q_norm[d] = (float)random_within(seed, 0.3, 2), r->k_norm[d] = (float)random_within(seed, -2, 2);
    }
    for (uint32_t i = 0; i < half; i++) {
        r->frequencies[i] = pow(500000, -2.0 * i / form->rope_size);
        r->turns[i] = cuda_rope_turn(r->frequencies[i]);
    }
    if (!form->nan) return;
    for (uint32_t m = 0; m < TOKENS; m++) { /* one head of each token, of Q, K and V in turn */
        const size_t head = m % 3 == 0 ? 0 : m % 3 == 1 ? form->H : form->H + form->KH;
        r->qkv[m * r->stride + head * D + random_bits(seed) % D] = m & 1 ? 0xff80 : 0x7fc0;
    }
}

static void run_free(struct run *r)
{
    free(r->qkv), free(r->after), free(r->q_norm), free(r->k_norm);
    free(r->frequencies), free(r->turns), free(r->cache), free(r->expected_at);
}

static void run_kernel(struct run *r)
{
    static uint32_t table[TABLE_MAX];
    const struct form *f = &r->f;
    const uint32_t half = f->rope_size / 2;
    for (uint32_t i = 0; i < TABLE_MAX; i++) table[i] = 0x40000000; /* a block far outside */
    for (uint32_t m = 0; m < TOKENS; m++) table[table_start[seq_of_token[m]] + positions[m] / 16] = block_of_token[m];
    const struct cuda_step_header header = {.tokens = f->live, .seqs = SEQS};
    const struct cuda_step step = {.header = device_copy(&header, sizeof header),
                                   .positions = device_copy(positions, sizeof positions),
                                   .seq_of_token = device_copy(seq_of_token, sizeof seq_of_token),
                                   .table_start = device_copy(table_start, sizeof table_start),
                                   .table = device_copy(table, sizeof table)};
    const struct cuda_rope rope = {.qkv = device_take(r->qkv_bytes),
                                   .q_norm = f->norms ? device_copy(r->q_norm, f->D * sizeof(float)) : NULL,
                                   .k_norm = f->norms ? device_copy(r->k_norm, f->D * sizeof(float)) : NULL,
                                   .eps = eps,
                                   .turns = device_copy(r->turns, half * sizeof(uint64_t)),
                                   .magnitude = f->magnitude,
                                   .rope_size = f->rope_size,
                                   .interleaved = f->interleaved,
                                   .H = f->H,
                                   .KH = f->KH,
                                   .D = f->D,
                                   .layer = LAYER,
                                   .kv = {.base = device_take(r->cache_bytes),
                                          .layers = LAYERS,
                                          .blocks = BLOCKS,
                                          .kv_heads = f->KH,
                                          .head_size = f->D,
                                          .fp8 = f->fp8}};
    uint8_t *before = malloc(r->cache_bytes);
    for (int launch = 0; launch < 2; launch++) {
        device_write(rope.qkv, r->qkv, r->qkv_bytes);
        device_poison(rope.kv.base, r->cache_bytes);
        cuda_ok(cuda_rope_kv_write(&rope, &step, M, device_stream()));
        device_wait();
        device_read(r->cache, rope.kv.base, r->cache_bytes);
        if (launch == 1) assert_memory_equal(r->cache, before, r->cache_bytes);
        memcpy(before, r->cache, r->cache_bytes);
    }
    device_read(r->after, rope.qkv, r->qkv_bytes);
    const void *all[] = {step.header, step.positions, step.seq_of_token, step.table_start, step.table,
                         rope.qkv,    rope.q_norm,    rope.k_norm,       rope.turns,       rope.kv.base};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) cudaFree((void *)(uintptr_t)all[i]);
    free(before);
}

/* A head of token m after norm and rotation, in double; what cannot be held in bf16 is NaN. */
static void wanted_head(const struct run *r, uint32_t m, uint32_t head, double *x)
{
    const struct form *f = &r->f;
    const uint32_t D = f->D, half = f->rope_size / 2;
    const bool is_v = head >= f->H + f->KH;
    double squares = 0;
    for (uint32_t d = 0; d < D; d++) {
        x[d] = bf16_value(r->qkv[m * r->stride + (size_t)head * D + d]);
        squares += x[d] * x[d];
    }
    for (uint32_t d = 0; d < D && f->norms && !is_v; d++) {
        x[d] *= (double)(head < f->H ? r->q_norm : r->k_norm)[d] / sqrt(squares / D + (double)eps);
    }
    for (uint32_t i = 0; i < half && !is_v; i++) {
        const uint32_t one = f->interleaved ? 2 * i : i, two = f->interleaved ? 2 * i + 1 : i + half;
        const long double angle = (long double)positions[m] * (long double)r->frequencies[i];
        const double c = (double)cosl(angle) * (double)f->magnitude, s = (double)sinl(angle) * (double)f->magnitude;
        const double a = x[one], b = x[two];
        x[one] = a * c - b * s, x[two] = b * c + a * s;
    }
    for (uint32_t d = 0; d < D; d++)
        if (!isfinite(x[d])) x[d] = (double)NAN;
}

static void expect_cached(struct run *r, uint32_t m, uint32_t head, const double *x)
{
    const struct form *f = &r->f;
    const uint32_t D = f->D, v = head >= f->H + f->KH, kv_head = head - f->H - (v ? f->KH : 0);
    const size_t layer_at = LAYER * cuda_kv_layer_bytes(BLOCKS, f->KH, D, f->fp8), item = f->fp8 ? 1 : 2;
    const size_t piece = ((size_t)block_of_token[m] * f->KH + kv_head) * 2 * 16 * (f->fp8 ? D + 4 : 2 * D);
    const size_t row = v * 16 + positions[m] % 16, at = layer_at + piece + row * D * item;
    memset(r->expected_at + at, 1, D * item);
    float scale = 0;
    if (f->fp8) {
        const size_t scale_at = layer_at + piece + (size_t)32 * D + row * 4;
        memset(r->expected_at + scale_at, 1, 4);
        memcpy(&scale, r->cache + scale_at, 4);
        double amax = 0;
        for (uint32_t d = 0; d < D; d++) amax = x[d] != x[d] || amax != amax ? (double)NAN : fmax(amax, fabs(x[d]));
        if (amax != amax) {
            assert_true(scale != scale);
            return;
        }
        assert_true(fabs((double)scale - amax / 448) <= amax * 1e-8);
    }
    for (uint32_t d = 0; d < D; d++) {
        uint16_t bits;
        memcpy(&bits, r->cache + at + d * item, item);
        if (f->fp8) {
            expect_e4m3(r->cache[at + d], (double)scale, x[d], "cache", m, head * D + d);
        } else {
            expect_bf16(bits, x[d], 3e-6, "cache", m, head * D + d);
        }
    }
}

static void check(const struct form *form, uint64_t *seed)
{
    struct run r;
    double x[512];
    run_make(&r, form, seed);
    run_kernel(&r);
    const uint32_t heads = form->H + 2 * form->KH;
    for (uint32_t m = 0; m < form->live; m++) {
        for (uint32_t head = 0; head < heads; head++) {
            const size_t at = m * r.stride + (size_t)head * form->D;
            wanted_head(&r, m, head, x);
            if (head >= form->H + form->KH) {
                assert_memory_equal(r.after + at, r.qkv + at, form->D * 2);
            } else {
                for (uint32_t d = 0; d < form->D; d++)
                    expect_bf16(r.after[at + d], x[d], 3e-6, "qkv", m, head * form->D + d);
            }
            if (head >= form->H) expect_cached(&r, m, head, x);
        }
    }
    const size_t live = form->live * r.stride;
    assert_memory_equal(r.after + live, r.qkv + live, r.qkv_bytes - live * 2);
    for (size_t i = 0; i < r.cache_bytes; i++)
        if (!r.expected_at[i] && r.cache[i] != DEVICE_POISON) fail_msg("byte %zu of the cache was written", i);
    run_free(&r);
}

static const struct form shapes[] = {
    {.H = 9, .KH = 3, .D = 64, .rope_size = 64},  {.H = 8, .KH = 2, .D = 128, .rope_size = 128},
    {.H = 3, .KH = 1, .D = 80, .rope_size = 32},  {.H = 2, .KH = 2, .D = 8, .rope_size = 8},
    {.H = 2, .KH = 1, .D = 24, .rope_size = 12},  {.H = 5, .KH = 1, .D = 72, .rope_size = 72},
    {.H = 2, .KH = 1, .D = 256, .rope_size = 64}, {.H = 1, .KH = 1, .D = 512, .rope_size = 512},
    {.H = 2, .KH = 1, .D = 120, .rope_size = 90}, {.H = 1, .KH = 1, .D = 16, .rope_size = 0},
};

static void test_rope_turns_and_writes(void **state)
{
    (void)state;
    uint64_t seed = 51;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (uint32_t bits = 0; bits < 8; bits++) {
            if (CHOICE_ONLY && (bits + i) % 4) continue;
            struct form f = shapes[i];
            f.interleaved = bits & 1, f.norms = bits & 2, f.fp8 = bits & 4;
            f.magnitude = bits & 2 ? 1.0f : 1.19f;
            f.live = TOKENS;
            check(&f, &seed);
        }
    }
}

static void test_rope_leaves_padding_alone(void **state)
{
    (void)state;
    uint64_t seed = 52;
    for (uint32_t bits = 0; bits < 4; bits++) {
        for (uint32_t live = 0; live < TOKENS; live += live ? TOKENS - 2 : 1) {
            struct form f = shapes[bits & 1];
            f.magnitude = 1, f.fp8 = bits & 2, f.live = live;
            check(&f, &seed);
        }
    }
}

static void test_rope_carries_nan(void **state)
{
    (void)state;
    uint64_t seed = 53;
    for (uint32_t bits = 0; bits < 16; bits += CHOICE_ONLY ? 5 : 1) {
        struct form f = shapes[bits & 1 ? 4 : 0];
        f.interleaved = bits & 2, f.norms = bits & 4, f.fp8 = bits & 8;
        f.magnitude = 1, f.live = TOKENS, f.nan = true;
        check(&f, &seed);
    }
}

static void test_rope_refuses_shapes_it_cannot_cut(void **state)
{
    (void)state;
    const struct cuda_step step = {0};
    struct cuda_rope rope = {.H = 1, .KH = 1, .D = 64, .rope_size = 64};
    rope.kv = (struct cuda_kv){.layers = 1, .blocks = 1, .kv_heads = 1, .head_size = 64};
    assert_int_equal(cuda_rope_kv_write(&rope, &step, 0, device_stream()), cudaSuccess);
    rope.rope_size = 66;
    assert_int_equal(cuda_rope_kv_write(&rope, &step, 0, device_stream()), cudaErrorInvalidValue);
    rope.rope_size = 64, rope.layer = 1;
    assert_int_equal(cuda_rope_kv_write(&rope, &step, 0, device_stream()), cudaErrorInvalidValue);
    rope.layer = 0, rope.kv.kv_heads = 2;
    assert_int_equal(cuda_rope_kv_write(&rope, &step, 0, device_stream()), cudaErrorInvalidValue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_turns_and_writes),
        cmocka_unit_test(test_rope_leaves_padding_alone),
        cmocka_unit_test(test_rope_carries_nan),
        cmocka_unit_test(test_rope_refuses_shapes_it_cannot_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
