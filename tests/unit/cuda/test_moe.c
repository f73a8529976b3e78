/* kernels/moe.cu and moe_matmul.cu: routing against kernels/route.c (bits) and a plain stable sort, matmuls and the sum
 * against sums in double of what the device itself was given. Outputs are poisoned, launches repeated. */
#include "kernels/cuda_ops.h"
#include "kernels/route.h"
#include "runtime/base/mem.h"
#include "tests/unit/cuda/weights.h"

enum { SMS = 3, USED_MAX = 8, EXPERTS_MAX = 256 };

static uint64_t seed = 20261123;

/* A layer of experts on the device, and what was made of it. */
struct layer {
    uint32_t X, used, M, live, E, F;
    bool normed, gelu, fp8, biased;
    enum tensor_type packed; /* a format of GGUF, or 0 (TENSOR_F32): bf16, or with fp8 E4M3 */
    struct cuda_moe moe;
    struct cuda_weight gated[EXPERTS_MAX], down[EXPERTS_MAX];
    double *gated_values, *down_values; /* (X, 2F, E) as the device has them, (X, E, F) */
    void *device_live, *device_x, *act, *y, *out, *to_free[32];
    uint32_t frees;
    float *logits;
    uint16_t *x; /* (M, E) */
    uint32_t *chosen, *begins, *places, *place_of;
    float *weights;
    uint16_t *got_act, *got_y, *got_out;
};

static void *keep(struct layer *l, void *device)
{
    assert_true(l->frees < 32);
    return l->to_free[l->frees++] = device;
}

static uint8_t random_code(void)
{
    uint8_t code = (uint8_t)random_bits(&seed);
    return (code & 0x7f) == 0x7f ? code ^ 1 : code;
}

/* A bias is an input that is always 1: its value stands behind the K of its row. */
static void put_row(double *all, size_t row, const double *values, uint32_t K, double bias)
{
    memcpy(all + row * (K + 1), values, K * sizeof *all);
    all[row * (K + 1) + K] = bias;
}

/* X matrices of N x K in a format of GGUF, repacked one by one and put one after the other; values in double. */
static double *make_packed(struct layer *l, struct cuda_weight *weights, uint32_t N, uint32_t K, bool alternating)
{
    double *all = mem_alloc((size_t)l->X * N * (K + 1), sizeof *all);
    uint8_t *codes = NULL, *scales = NULL;
    size_t codes_bytes = 0, scales_bytes = 0;
    for (uint32_t x = 0; x < l->X; x++) {
        struct test_weight w;
        test_weight_make(&w, l->packed, cuda_type_of(l->packed), N, K, alternating, &seed);
        codes_bytes = w.codes_bytes, scales_bytes = w.scales_bytes;
        if (!codes)
            codes = keep(l, device_take(l->X * codes_bytes)), scales = keep(l, device_take(l->X * scales_bytes));
        uint8_t *host = mem_alloc(codes_bytes + scales_bytes, 1);
        device_read(host, w.codes, codes_bytes);
        device_read(host + codes_bytes, w.scales, scales_bytes);
        device_write(codes + x * codes_bytes, host, codes_bytes);
        device_write(scales + x * scales_bytes, host + codes_bytes, scales_bytes);
        mem_free(host);
        weights[x] = w.weight;
        weights[x].codes = codes + x * codes_bytes;
        weights[x].scales = scales + x * scales_bytes;
        for (uint32_t n = 0; n < N; n++) put_row(all, (size_t)x * N + n, w.values + (size_t)n * K, K, 0);
        test_weight_free(&w);
    }
    return all;
}

/* X matrices of N x K, one after the other; values in double. */
static double *make_weights(struct layer *l, struct cuda_weight *weights, uint32_t N, uint32_t K, bool alternating)
{
    if (l->packed) return make_packed(l, weights, N, K, alternating);
    const size_t count = (size_t)l->X * N * K, blocks = (K + 127) / 128, scales_count = l->X * blocks * N;
    double *values = mem_alloc(count, sizeof *values);
    uint16_t *codes = mem_alloc(count, sizeof *codes), *bias = mem_alloc((size_t)l->X * N, sizeof *bias);
    float *scales = mem_alloc(scales_count, sizeof *scales);
    uint8_t *bytes = (uint8_t *)codes;
    for (size_t i = 0; i < scales_count; i++) scales[i] = (float)random_within(&seed, 0.001, 0.01);
    for (size_t i = 0; i < count; i++) {
        const size_t x = i / ((size_t)N * K), n = i / K % N, k = i % K;
        if (l->fp8) {
            bytes[i] = random_code();
            values[i] = e4m3_value(bytes[i]) * (double)scales[(x * blocks + k / 128) * N + n];
        } else {
            codes[i] = bf16_of(random_within(&seed, -0.5, 0.5));
            values[i] = bf16_value(codes[i]);
        }
    }
    for (size_t i = 0; i < (size_t)l->X * N; i++) bias[i] = bf16_of(random_within(&seed, -1, 1));
    const uint8_t *device_codes = keep(l, device_copy(codes, count * (l->fp8 ? 1 : 2)));
    const float *device_scales = keep(l, device_copy(scales, scales_count * sizeof *scales));
    const uint16_t *device_bias = keep(l, device_copy(bias, (size_t)l->X * N * sizeof *bias));
    for (uint32_t x = 0; x < l->X; x++) {
        weights[x] = (struct cuda_weight){.type = l->fp8 ? CUDA_TYPE_E4M3 : CUDA_TYPE_BF16,
                                          .N = N,
                                          .K = K,
                                          .codes = device_codes + (size_t)x * N * K * (l->fp8 ? 1 : 2),
                                          .alternating = alternating};
        if (l->fp8) {
            weights[x].scales = device_scales + x * blocks * N;
            weights[x].scale_rows = 1;
            weights[x].scale_cols = 128;
        }
        if (l->biased) weights[x].bias = device_bias + (size_t)x * N;
    }
    double *all = mem_alloc((size_t)l->X * N * (K + 1), sizeof *all);
    for (size_t row = 0; row < (size_t)l->X * N; row++)
        put_row(all, row, values + row * K, K, l->biased ? bf16_value(bias[row]) : 0);
    mem_free(values);
    mem_free(codes);
    mem_free(bias);
    mem_free(scales);
    return all;
}

/* what: 0 random, 1 all tokens to expert X - 1 first, 2 only the first `used` experts, 3 one token has other experts */
static void make_logits(struct layer *l, int what)
{
    for (uint32_t m = 0; m < l->M; m++) {
        for (uint32_t x = 0; x < l->X; x++) {
            float *at = &l->logits[(size_t)m * l->X + x];
            *at = (float)random_within(&seed, -4, 4);
            if (what == 1 && x == l->X - 1) *at = 9;
            if ((what == 2 || (what == 3 && m != l->live / 2)) && x >= l->used) *at = -20;
        }
    }
}

static void layer_make(struct layer *l, uint32_t X, uint32_t used, uint32_t M, uint32_t live, int what)
{
    l->X = X, l->used = used, l->M = M, l->live = live;
    const size_t items = (size_t)M * used;
    l->logits = mem_alloc((size_t)M * X, sizeof *l->logits);
    l->x = mem_alloc((size_t)M * l->E, sizeof *l->x);
    l->chosen = mem_alloc(items, sizeof *l->chosen);
    l->weights = mem_alloc(items, sizeof *l->weights);
    l->begins = mem_alloc(X + 1, sizeof *l->begins);
    l->places = mem_alloc(items, sizeof *l->places);
    l->place_of = mem_alloc(items, sizeof *l->place_of);
    l->got_act = mem_alloc(items * l->F, sizeof *l->got_act);
    l->got_y = mem_alloc(items * l->E, sizeof *l->got_y);
    l->got_out = mem_alloc((size_t)M * l->E, sizeof *l->got_out);
    make_logits(l, what);
    for (size_t i = 0; i < (size_t)M * l->E; i++) l->x[i] = bf16_of(random_within(&seed, -1, 1));
    l->moe = (struct cuda_moe){.router_logits = keep(l, device_copy(l->logits, (size_t)M * X * sizeof(float))),
                               .X = X,
                               .used = used,
                               .count = X,
                               .normed = l->normed,
                               .chosen = keep(l, device_take(items * 4)),
                               .weights = keep(l, device_take(items * 4)),
                               .begins = keep(l, device_take((X + 1) * sizeof(uint32_t))),
                               .places = keep(l, device_take(items * 4)),
                               .place_of = keep(l, device_take(items * 4))};
    l->device_live = keep(l, device_copy(&l->live, sizeof l->live));
    l->device_x = keep(l, device_copy(l->x, (size_t)M * l->E * 2));
    l->act = keep(l, device_take(items * l->F * 2));
    l->y = keep(l, device_take(items * l->E * 2));
    l->out = keep(l, device_take((size_t)M * l->E * 2));
    if (l->E == 0) return;
    l->gated_values = make_weights(l, l->gated, 2 * l->F, l->E, true);
    l->down_values = make_weights(l, l->down, l->E, l->F, false);
}

static void layer_free(struct layer *l)
{
    for (uint32_t i = 0; i < l->frees; i++) cuda_ok(cudaFree(l->to_free[i]));
    void *all[] = {l->logits,   l->x,       l->chosen, l->weights, l->begins,       l->places,
                   l->place_of, l->got_act, l->got_y,  l->got_out, l->gated_values, l->down_values};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

static void layer_route(struct layer *l)
{
    const size_t bytes = (size_t)l->M * l->used * 4;
    device_poison(l->moe.chosen, bytes);
    device_poison(l->moe.weights, bytes);
    device_poison(l->moe.begins, (l->X + 1) * sizeof(uint32_t));
    device_poison(l->moe.places, bytes);
    device_poison(l->moe.place_of, bytes);
    cuda_ok(cuda_moe_route(&l->moe, l->device_live, l->M, device_stream()));
    device_wait();
    device_read(l->chosen, l->moe.chosen, bytes);
    device_read(l->weights, l->moe.weights, bytes);
    device_read(l->begins, l->moe.begins, (l->X + 1) * sizeof(uint32_t));
    device_read(l->places, l->moe.places, bytes);
    device_read(l->place_of, l->moe.place_of, bytes);
}

static void layer_multiply(struct layer *l)
{
    const size_t items = (size_t)l->M * l->used;
    device_poison(l->act, items * l->F * 2);
    device_poison(l->y, items * l->E * 2);
    device_poison(l->out, (size_t)l->M * l->E * 2);
    cuda_ok(cuda_moe_matmul(&l->moe, l->gated + l->moe.first, l->device_x, l->moe.places, l->act, l->gelu, l->M, SMS,
                            device_stream()));
    cuda_ok(cuda_moe_matmul(&l->moe, l->down + l->moe.first, l->act, NULL, l->y, false, l->M, SMS, device_stream()));
    cuda_ok(cuda_moe_combine(l->out, &l->moe, l->y, l->E, l->device_live, l->M, device_stream()));
    device_wait();
    device_read(l->got_act, l->act, items * l->F * 2);
    device_read(l->got_y, l->y, items * l->E * 2);
    device_read(l->got_out, l->out, (size_t)l->M * l->E * 2);
}

/* Choices and weights have the bits of kernels/route.c; places are those of a stable sort by expert. */
static void expect_routes(const struct layer *l)
{
    const uint32_t items = l->live * l->used;
    uint32_t chosen[USED_MAX], place = 0;
    float weights[USED_MAX];
    for (uint32_t m = 0; m < l->live; m++) {
        route(l->logits + (size_t)m * l->X, l->X, l->used, l->normed, chosen, weights);
        assert_memory_equal(l->chosen + (size_t)m * l->used, chosen, l->used * sizeof *chosen);
        assert_memory_equal(l->weights + (size_t)m * l->used, weights, l->used * sizeof *weights);
    }
    for (uint32_t x = 0; x < l->X; x++) {
        assert_int_equal(l->begins[x], place);
        for (uint32_t i = 0; i < items; i++) {
            if (l->chosen[i] != x) continue;
            assert_int_equal(l->places[place], i / l->used);
            assert_int_equal(l->place_of[i], place);
            place++;
        }
    }
    assert_int_equal(l->begins[l->X], items);
    const size_t beyond = ((size_t)l->M * l->used - items) * 4;
    expect_poison(l->chosen + items, beyond, "chosen");
    expect_poison(l->weights + items, beyond, "weights");
    expect_poison(l->places + items, beyond, "places");
    expect_poison(l->place_of + items, beyond, "place_of");
}

static void test_moe_routes_as_the_cpu(void **state)
{
    (void)state;
    static const struct {
        uint32_t X, used, M, live;
    } shapes[] = {{1, 1, 3, 3},   {2, 2, 5, 4},    {8, 2, 1, 1},     {16, 1, 9, 9},  {17, 3, 33, 30},
                  {60, 4, 20, 0}, {64, 8, 40, 40}, {128, 8, 70, 65}, {256, 8, 5, 5}, {33, 7, 300, 299}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int what = 0; what < 3; what++) {
            if (CHOICE_ONLY && (i + (size_t)what) % 3) continue;
            struct layer l = {.normed = (i + (size_t)what) % 2};
            layer_make(&l, shapes[i].X, shapes[i].used, shapes[i].M, shapes[i].live, what);
            if (what == 0) { /* many equal */
                for (size_t k = 0; k < (size_t)l.M * l.X; k++) l.logits[k] = rintf(l.logits[k]) * 0.0f;
                for (size_t k = 0; k < (size_t)l.M * l.X; k += 3) l.logits[k] = (float)(random_bits(&seed) % 3) - 1;
                device_write((void *)(uintptr_t)l.moe.router_logits, l.logits, (size_t)l.M * l.X * sizeof(float));
            }
            for (int round = 0; round < 2; round++) {
                layer_route(&l);
                expect_routes(&l);
            }
            layer_free(&l);
        }
    }
}

/* Whatever the logits, experts are valid and distinct; a neighbour's bits stay. */
static void test_moe_routes_what_is_not_finite(void **state)
{
    (void)state;
    struct layer l = {.normed = true};
    layer_make(&l, 20, 4, 6, 6, 0);
    for (uint32_t x = 0; x < 20; x++) l.logits[20 + x] = NAN;
    l.logits[2 * 20 + 7] = NAN;
    l.logits[3 * 20 + 1] = -NAN;
    for (uint32_t x = 0; x < 20; x++) l.logits[4 * 20 + x] = x % 2 ? INFINITY : -INFINITY;
    device_write((void *)(uintptr_t)l.moe.router_logits, l.logits, (size_t)l.M * l.X * sizeof(float));
    layer_route(&l);
    for (uint32_t m = 0; m < 6; m++) {
        uint32_t seen = 0, chosen[USED_MAX];
        float weights[USED_MAX];
        for (uint32_t u = 0; u < 4; u++) {
            assert_true(l.chosen[4 * m + u] < 20 && !(seen >> l.chosen[4 * m + u] & 1));
            seen |= 1u << l.chosen[4 * m + u];
        }
        route(l.logits + 20 * m, 20, 4, true, chosen, weights);
        if (m == 0 || m == 5) assert_memory_equal(l.weights + 4 * m, weights, sizeof weights / 2);
        if (m == 1 || m == 2) assert_true(l.weights[4 * m] != l.weights[4 * m]);
    }
    assert_int_equal(l.begins[20], 24);
    layer_free(&l);
}

/* sum over k < K of row[k] * bf16 in[k], plus row[K]; *error is what f32 sums in any order may differ by. */
static double dot(const double *row, const uint16_t *in, uint32_t K, double *error)
{
    double sum = row[K], magnitude = fabs(row[K]);
    for (uint32_t k = 0; k < K; k++) {
        sum += row[k] * bf16_value(in[k]);
        magnitude += fabs(row[k] * bf16_value(in[k]));
    }
    *error = magnitude * (K + 8) * 0x1p-22; /* codes, minima and sums are larger than what is left of them */
    return sum;
}

static double activation(double gate, bool gelu)
{
    const double u = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate);
    return gelu ? 0.5 * gate * (1 + tanh(u)) : gate / (1 + exp(-gate));
}

static void expect_place(const struct layer *l, uint32_t expert, uint32_t place)
{
    const uint16_t *x = l->x + (size_t)l->places[place] * l->E, *act = l->got_act + (size_t)place * l->F;
    for (uint32_t f = 0; f < l->F; f++) {
        const uint32_t row = f / 8 * 16 + f % 8;
        const double *rows = l->gated_values + ((size_t)expert * 2 * l->F + row) * (l->E + 1);
        double gate_error, up_error;
        const double gate = dot(rows, x, l->E, &gate_error), up = dot(rows + 8 * (l->E + 1), x, l->E, &up_error);
        const double a = activation(gate, l->gelu), wanted = a * up;
        expect_bf16(act[f], wanted, 1.2 * gate_error * fabs(up) + up_error * fabs(a) + 1e-6 * fabs(wanted), "act",
                    place, f);
    }
    for (uint32_t n = 0; n < l->E; n++) {
        double error;
        const double *row = l->down_values + ((size_t)expert * l->E + n) * (l->F + 1);
        const double wanted = dot(row, act, l->F, &error);
        expect_bf16(l->got_y[(size_t)place * l->E + n], wanted, error, "y", place, n);
    }
}

static void expect_products(const struct layer *l)
{
    const size_t items = (size_t)l->live * l->used, all = (size_t)l->M * l->used;
    for (uint32_t x = 0; x < l->X; x++)
        for (uint32_t place = l->begins[x]; place < l->begins[x + 1]; place++) expect_place(l, x, place);
    for (uint32_t m = 0; m < l->live; m++) {
        for (uint32_t n = 0; n < l->E; n++) {
            double wanted = 0, magnitude = 0;
            for (uint32_t u = 0; u < l->used; u++) {
                const size_t i = (size_t)m * l->used + u;
                const double part = (double)l->weights[i] * bf16_value(l->got_y[(size_t)l->place_of[i] * l->E + n]);
                wanted += part;
                magnitude += fabs(part);
            }
            expect_bf16(l->got_out[(size_t)m * l->E + n], wanted, magnitude * 0x1p-22, "out", m, n);
        }
    }
    expect_poison(l->got_act + items * l->F, (all - items) * l->F * 2, "act");
    expect_poison(l->got_y + items * l->E, (all - items) * l->E * 2, "y");
    expect_poison(l->got_out + (size_t)l->live * l->E, (size_t)(l->M - l->live) * l->E * 2, "out");
}

struct shape {
    uint32_t X, used, M, live, E, F;
    int what;
    enum tensor_type packed;
};

static void multiply_and_expect(const struct shape *s, size_t i)
{
    struct layer l = {.E = s->E, .F = s->F, .normed = i % 2, .gelu = i % 3 == 0, .biased = i % 4 == 1};
    l.packed = s->packed;
    l.fp8 = i % 2;
    layer_make(&l, s->X, s->used, s->M, s->live, s->what);
    layer_route(&l);
    expect_routes(&l);
    for (int round = 0; round < 2; round++) {
        layer_multiply(&l);
        expect_products(&l);
    }
    layer_free(&l);
}

static void test_moe_multiplies(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {4, 2, 1, 1, 64, 72, 0, 0},    {8, 2, 20, 20, 144, 48, 0, 0}, {3, 1, 21, 19, 32, 160, 1, 0},
        {5, 2, 40, 37, 272, 32, 2, 0}, {16, 4, 6, 0, 32, 16, 0, 0},   {4, 1, 18, 18, 144, 160, 3, 0},
        {1, 1, 9, 9, 16, 16, 0, 0},    {64, 8, 3, 3, 48, 16, 0, 0},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i += CHOICE_ONLY ? 2 : 1) multiply_and_expect(&shapes[i], i);
}

static void test_moe_multiplies_formats_of_files(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {3, 2, 5, 5, 96, 64, 0, TENSOR_Q4_0},   {3, 1, 20, 19, 64, 160, 2, TENSOR_Q4_1},
        {4, 2, 6, 6, 256, 256, 0, TENSOR_Q4_K}, {2, 1, 9, 9, 160, 32, 1, TENSOR_Q8_0},
        {2, 2, 3, 3, 32, 64, 0, TENSOR_Q5_1},   {2, 1, 18, 18, 256, 256, 3, TENSOR_Q6_K},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i += CHOICE_ONLY ? 2 : 1) multiply_and_expect(&shapes[i], i);
}

/* A token's bits are those it has alone, with another grid and another size of items; a NaN stays in its row. */
static void test_moe_depends_on_its_token_alone(void **state)
{
    (void)state;
    struct layer l = {.E = 136, .F = 24};
    layer_make(&l, 3, 2, 40, 40, 0);
    layer_route(&l);
    layer_multiply(&l);
    uint16_t *before = mem_alloc(40 * 136, sizeof *before), *alone = mem_alloc(136, sizeof *alone);
    memcpy(before, l.got_out, 40 * 136 * sizeof *before);
    l.x[17 * 136 + 5] = bf16_of(NAN);
    device_write(l.device_x, l.x, (size_t)l.M * l.E * 2);
    layer_multiply(&l);
    for (uint32_t m = 0; m < 40; m++) {
        const uint16_t *row = l.got_out + (size_t)m * 136;
        if (m == 17)
            assert_true(isnan(bf16_value(row[0])) && isnan(bf16_value(row[135])));
        else
            assert_memory_equal(row, before + (size_t)m * 136, 136 * sizeof *row);
    }
    l.live = l.M = 1;
    device_write(l.device_live, &l.live, sizeof l.live);
    layer_route(&l);
    layer_multiply(&l);
    memcpy(alone, l.got_out, 136 * sizeof *alone);
    assert_memory_equal(alone, before, 136 * sizeof *alone);
    mem_free(before);
    mem_free(alone);
    layer_free(&l);
}

/* Places of other GPUs' experts keep what they have, and add nothing. */
static void expect_part(const struct layer *l, const uint16_t *act, const uint16_t *y)
{
    uint32_t begin = l->begins[l->moe.first], end = l->begins[l->moe.first + l->moe.count];
    for (uint32_t place = 0; place < l->live * l->used; place++) {
        const size_t act_at = (size_t)place * l->F, y_at = (size_t)place * l->E;
        if (place < begin || place >= end) {
            expect_poison(l->got_act + act_at, l->F * 2, "act");
            expect_poison(l->got_y + y_at, l->E * 2, "y");
        } else {
            assert_memory_equal(l->got_act + act_at, act + act_at, l->F * 2);
            assert_memory_equal(l->got_y + y_at, y + y_at, l->E * 2);
        }
    }
    for (uint32_t m = 0; m < l->live; m++) {
        for (uint32_t n = 0; n < l->E; n++) {
            double wanted = 0, magnitude = 0;
            for (uint32_t u = 0; u < l->used; u++) {
                const size_t i = (size_t)m * l->used + u;
                if (l->chosen[i] < l->moe.first || l->chosen[i] >= l->moe.first + l->moe.count) continue;
                const double part = (double)l->weights[i] * bf16_value(y[(size_t)l->place_of[i] * l->E + n]);
                wanted += part;
                magnitude += fabs(part);
            }
            expect_bf16(l->got_out[(size_t)m * l->E + n], wanted, magnitude * 0x1p-22, "out", m, n);
        }
    }
}

static void test_moe_multiplies_experts_of_one_gpu(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct layer l = {.E = 64, .F = 80, .fp8 = i};
        layer_make(&l, 7, 3, 20, 19, 0);
        layer_route(&l);
        layer_multiply(&l);
        const size_t items = (size_t)l.M * l.used;
        uint16_t *act = mem_alloc(items * l.F, sizeof *act), *y = mem_alloc(items * l.E, sizeof *y);
        memcpy(act, l.got_act, items * l.F * sizeof *act);
        memcpy(y, l.got_y, items * l.E * sizeof *y);
        for (l.moe.first = 0; l.moe.first < l.X; l.moe.first += l.moe.count) {
            l.moe.count = l.moe.first == 0 ? 3 : l.moe.first == 3 ? 1 : 3;
            layer_multiply(&l);
            expect_part(&l, act, y);
        }
        mem_free(act);
        mem_free(y);
        layer_free(&l);
    }
}

static void test_moe_refuses_what_it_cannot(void **state)
{
    (void)state;
    struct cuda_moe moe = {.X = 257, .used = 2};
    assert_int_equal(cuda_moe_route(&moe, NULL, 1, device_stream()), cudaErrorInvalidValue);
    moe = (struct cuda_moe){.X = 4, .used = 5, .count = 4};
    assert_int_equal(cuda_moe_route(&moe, NULL, 1, device_stream()), cudaErrorInvalidValue);
    moe.used = 2;
    assert_int_equal(cuda_moe_route(&moe, NULL, 0, device_stream()), cudaSuccess);
    assert_int_equal(cuda_moe_combine(NULL, &moe, NULL, 12, NULL, 1, device_stream()), cudaErrorInvalidValue);
    uint16_t codes[3 * 64] = {0};
    struct cuda_weight weights[4] = {{.N = 8, .K = 8}, {.N = 8, .K = 8}, {.N = 8, .K = 8}, {.N = 8, .K = 8}};
    for (uint32_t x = 0; x < 4; x++) weights[x].codes = codes + x * 32;
    assert_int_equal(cuda_moe_matmul(&moe, weights, NULL, NULL, NULL, false, 0, 1, NULL), cudaSuccess);
    for (uint32_t count = 0; count <= 3; count += 3) { /* none, and one more than there is */
        moe.first = 2, moe.count = count;
        assert_int_equal(cuda_moe_matmul(&moe, weights, NULL, NULL, NULL, false, 0, 1, NULL), cudaErrorInvalidValue);
    }
    moe.first = 0, moe.count = 4;
    weights[3].codes = codes; /* not at the others' distance */
    assert_int_equal(cuda_moe_matmul(&moe, weights, NULL, NULL, NULL, false, 1, 1, NULL), cudaErrorInvalidValue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moe_routes_as_the_cpu),
        cmocka_unit_test(test_moe_routes_what_is_not_finite),
        cmocka_unit_test(test_moe_multiplies),
        cmocka_unit_test(test_moe_multiplies_formats_of_files),
        cmocka_unit_test(test_moe_depends_on_its_token_alone),
        cmocka_unit_test(test_moe_multiplies_experts_of_one_gpu),
        cmocka_unit_test(test_moe_refuses_what_it_cannot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
