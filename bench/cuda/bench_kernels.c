/* Kernels alone: bytes that a kernel must read, divided by its time, as a share of what a copy reaches.
 *
 * Matmuls read each weight once, so several copies of a weight take turns: together they are larger than any cache.
 * Times are of many launches between two events, the median of five rounds. */
#include "bench/cuda/bench_cuda.h"

#include "kernels/cuda_attention.h"
#include "kernels/cuda_ops.h"
#include "runtime/base/mem.h"
#include "runtime/device/cuda/attention_plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 5, COPIES_MAX = 64 };

struct timer {
    cudaStream_t stream;
    cudaEvent_t begin, end;
};

bool bench_cuda_ok(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return true;
    fprintf(stderr, "bench_cuda: %s: %s\n", what, cudaGetErrorString(error));
    return false;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef cudaError_t launch_fn(void *state, uint32_t turn, cudaStream_t stream);

/* Seconds of a launch; 0 after an error. */
static double time_launches(const struct timer *timer, launch_fn *launch, void *state, uint32_t launches)
{
    double rounds[ROUNDS];
    for (uint32_t round = 0; round <= ROUNDS; round++) { /* the first is warm-up */
        float ms = 0;
        if (!bench_cuda_ok(cudaEventRecord(timer->begin, timer->stream), "event")) return 0;
        for (uint32_t i = 0; i < launches; i++) {
            if (!bench_cuda_ok(launch(state, i, timer->stream), "launch")) return 0;
        }
        if (!bench_cuda_ok(cudaEventRecord(timer->end, timer->stream), "event") ||
            !bench_cuda_ok(cudaEventSynchronize(timer->end), "kernel") ||
            !bench_cuda_ok(cudaEventElapsedTime(&ms, timer->begin, timer->end), "event"))
            return 0;
        if (round) rounds[round - 1] = (double)ms * 1e-3 / launches;
    }
    qsort(rounds, ROUNDS, sizeof *rounds, by_value);
    return rounds[ROUNDS / 2];
}

/* Device memory of small random BF16 values (or codes): what a GPU draws, and so its clock, depends on the data. */
static void *random_memory(size_t bytes)
{
    enum { PIECE = 1 << 20 };
    static uint16_t piece[PIECE / 2];
    void *memory = NULL;
    uint64_t state = 42;
    if (!bench_cuda_ok(cudaMalloc(&memory, bytes), "memory")) return NULL;
    for (uint32_t i = 0; i < PIECE / 2; i++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
        piece[i] = (uint16_t)(state >> 33 & 0x807f) | (uint16_t)(0x3c00 + (state >> 50 & 3) * 0x80);
    }
    for (size_t at = 0; at < bytes; at += PIECE) {
        size_t count = bytes - at < PIECE ? bytes - at : PIECE;
        if (!bench_cuda_ok(cudaMemcpy((uint8_t *)memory + at, piece, count, cudaMemcpyHostToDevice), "copy")) {
            cudaFree(memory);
            return NULL;
        }
    }
    return memory;
}

static void report(struct bench_cuda *bench, const char *name, double bytes, double flops, double seconds)
{
    double share = bytes / seconds / bench->bytes_per_s;
    printf("%-34s %10.2f us %9.0f GB/s %6.1f%% of a copy %8.1f TFLOP/s\n", name, seconds * 1e6, bytes / seconds / 1e9,
           100 * share, flops / seconds / 1e12);
    buf_append_format(bench->json, ",\"%s\":{\"us\":%.3f,\"gb_s\":%.1f,\"of_copy\":%.4f,\"tflop_s\":%.2f}", name,
                      seconds * 1e6, bytes / seconds / 1e9, share, flops / seconds / 1e12);
}

/* ---- a copy ---- */

struct copy {
    void *from, *to;
    size_t bytes;
};

static cudaError_t launch_copy(void *state, uint32_t turn, cudaStream_t stream)
{
    const struct copy *copy = state;
    (void)turn;
    return cudaMemcpyAsync(copy->to, copy->from, copy->bytes, cudaMemcpyDeviceToDevice, stream);
}

static bool measure_copy(struct bench_cuda *bench, const struct timer *timer)
{
    struct copy copy = {.bytes = bench->quick ? 1 << 16 : (size_t)1 << 30};
    copy.from = random_memory(copy.bytes);
    copy.to = random_memory(copy.bytes);
    double seconds = copy.from && copy.to ? time_launches(timer, launch_copy, &copy, bench->quick ? 2 : 10) : 0;
    cudaFree(copy.from);
    cudaFree(copy.to);
    if (seconds <= 0) return false;
    bench->bytes_per_s = 2 * (double)copy.bytes / seconds;
    printf("copy: %.0f GB/s read and written\n", bench->bytes_per_s / 1e9);
    buf_append_format(bench->json, ",\"copy_gb_s\":%.1f", bench->bytes_per_s / 1e9);
    return true;
}

/* ---- skinny matmuls ---- */

struct matmul_bench {
    struct cuda_weight weights[COPIES_MAX];
    uint32_t copies, M, sms;
    struct cuda_matmul matmul;
};

static cudaError_t launch_matmul(void *state, uint32_t turn, cudaStream_t stream)
{
    struct matmul_bench *m = state;
    m->matmul.weight = &m->weights[turn % m->copies];
    return cuda_matmul_skinny(&m->matmul, m->M, m->sms, stream);
}

static const struct matmul_shape {
    const char *name;
    uint32_t N, K;
} matmul_shapes[] = {/* Llama 3 8B */
                     {"qkv", 6144, 4096},
                     {"o", 4096, 4096},
                     {"gate_up", 28672, 4096},
                     {"down", 4096, 14336},
                     {"head", 128256, 4096}};

static bool measure_matmul(struct bench_cuda *bench, const struct timer *timer, const struct matmul_shape *shape,
                           enum cuda_type type, const char *type_name, uint32_t M)
{
    static struct matmul_bench m;
    uint32_t N = bench->quick ? 48 : shape->N, K = bench->quick ? 256 : shape->K;
    size_t codes, scales;
    cuda_weight_bytes(type, N, K, &codes, &scales);
    size_t each = codes + scales;
    m.copies = bench->quick ? 2 : (uint32_t)(((size_t)400 << 20) / each + 1);
    if (m.copies > COPIES_MAX) m.copies = COPIES_MAX;
    m.M = M;
    m.sms = bench->sms;
    uint8_t *memory = random_memory(each * m.copies);
    void *x = random_memory((size_t)M * K * 2), *y = random_memory((size_t)M * N * 2);
    size_t scratch_bytes = cuda_matmul_scratch_bytes(bench->sms);
    void *scratch = random_memory(scratch_bytes);
    bool good = memory && x && y && scratch && bench_cuda_ok(cudaMemset(scratch, 0, scratch_bytes), "memset") &&
                bench_cuda_ok(cudaDeviceSynchronize(), "memset");
    for (uint32_t i = 0; i < m.copies; i++) {
        m.weights[i] = (struct cuda_weight){.type = type,
                                            .N = N,
                                            .K = K,
                                            .codes = memory + i * each,
                                            .scales = scales ? memory + i * each + codes : NULL,
                                            .scale_rows = type == CUDA_TYPE_E4M3 ? 1 : 0};
    }
    m.matmul = (struct cuda_matmul){.x = x, .y = y, .scratch = scratch};
    double seconds = good ? time_launches(timer, launch_matmul, &m, bench->quick ? 2 : 4 * m.copies) : 0;
    cudaFree(memory);
    cudaFree(x);
    cudaFree(y);
    cudaFree(scratch);
    if (seconds <= 0) return false;
    char name[64];
    snprintf(name, sizeof name, "matmul_%s_%s_M%u", shape->name, type_name, M);
    report(bench, name, (double)each + 2.0 * M * (N + K), 2.0 * M * N * K, seconds);
    return true;
}

static bool measure_matmuls(struct bench_cuda *bench, const struct timer *timer)
{
    static const struct {
        enum cuda_type type;
        const char *name;
    } types[] = {
        {CUDA_TYPE_BF16, "bf16"}, {CUDA_TYPE_E4M3, "e4m3"}, {CUDA_TYPE_Q4_1, "q4_1"}, {CUDA_TYPE_Q8_0, "q8_0"}};
    static const uint32_t Ms[] = {1, 8, 16};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (size_t s = 0; s < sizeof matmul_shapes / sizeof *matmul_shapes; s++) {
            for (size_t i = 0; i < sizeof Ms / sizeof *Ms; i++) {
                if (!measure_matmul(bench, timer, &matmul_shapes[s], types[t].type, types[t].name, Ms[i])) return false;
            }
            if (bench->quick) break;
        }
    }
    return true;
}

/* ---- attention ---- */

struct attention_bench {
    struct cuda_attention attention;
    struct cuda_step step;
    uint32_t grid;
};

static cudaError_t launch_attention(void *state, uint32_t turn, cudaStream_t stream)
{
    const struct attention_bench *a = state;
    (void)turn;
    return cuda_attention(&a->attention, &a->step, a->grid, stream);
}

static const struct attention_shape {
    const char *name;
    uint32_t seqs, tokens_each, context, H, KH, D;
    bool fp8;
} attention_shapes[] = {
    {"attention_decode_64x128", 64, 1, 128, 32, 8, 128, false},
    {"attention_decode_64x1024", 64, 1, 1024, 32, 8, 128, false},
    {"attention_decode_64x8192", 64, 1, 8192, 32, 8, 128, false},
    {"attention_decode_1x65536", 1, 1, 65536, 32, 8, 128, false},
    {"attention_decode_64x1024_fp8", 64, 1, 1024, 32, 8, 128, true},
    {"attention_prefill_1x8192", 1, 8192, 8192, 32, 8, 128, false},
    {"attention_prefill_4x1024", 4, 1024, 1024, 32, 8, 128, false},
};

/* A step of the shape in device memory; its arrays lie one after the other. */
struct step_memory {
    struct cuda_step_header header;
    uint32_t *words; /* q_start, kv_len, table_start, table */
    uint32_t words_count;
    struct attention_item *items;
    uint8_t *device;
};

static bool make_step(struct attention_bench *a, const struct attention_shape *s, const struct attention_plan_config *c,
                      struct step_memory *m)
{
    struct attention_plan *plan = NULL;
    uint32_t blocks_each = (s->context + CUDA_KV_TOKENS - 1) / CUDA_KV_TOKENS, S = s->seqs;
    uint32_t items_max = attention_plan_items_max(c, c->tokens_max, S);
    m->words_count = 2 * (S + 1) + S + S * blocks_each;
    m->words = mem_alloc(m->words_count, sizeof *m->words);
    m->items = mem_alloc(items_max, sizeof *m->items);
    if (!m->words || !m->items || attention_plan_create(c, &plan) != ST_OK) return false;
    uint32_t *q_start = m->words, *kv_len = q_start + S + 1, *table_start = kv_len + S, *table = table_start + S + 1;
    for (uint32_t i = 0; i <= S; i++) q_start[i] = i * s->tokens_each, table_start[i] = i * blocks_each;
    for (uint32_t i = 0; i < S; i++) kv_len[i] = s->context;
    for (uint32_t i = 0; i < S * blocks_each; i++) table[i] = (uint32_t)((uint64_t)i * 7919 % (S * blocks_each));
    uint32_t items = attention_plan_make(plan, S, q_start, kv_len, 0, m->items);
    attention_plan_destroy(plan);
    m->header = (struct cuda_step_header){.tokens = S * s->tokens_each, .seqs = S};
    m->header.items[0] = items;
    size_t words_at = 256, items_at = words_at + (m->words_count * sizeof *m->words + 255) / 256 * 256;
    size_t items_bytes = items * sizeof *m->items;
    if (!bench_cuda_ok(cudaMalloc((void **)&m->device, items_at + items_bytes), "memory") ||
        !bench_cuda_ok(cudaMemcpy(m->device, &m->header, sizeof m->header, cudaMemcpyHostToDevice), "copy") ||
        !bench_cuda_ok(
            cudaMemcpy(m->device + words_at, m->words, m->words_count * sizeof *m->words, cudaMemcpyHostToDevice),
            "copy") ||
        !bench_cuda_ok(cudaMemcpy(m->device + items_at, m->items, items_bytes, cudaMemcpyHostToDevice), "copy"))
        return false;
    const uint32_t *words = (const uint32_t *)(const void *)(m->device + words_at);
    a->step = (struct cuda_step){.header = (const void *)m->device,
                                 .q_start = words,
                                 .kv_len = words + S + 1,
                                 .table_start = words + 2 * S + 1,
                                 .table = words + 3 * S + 2};
    a->step.items[0] = (const void *)(m->device + items_at);
    return true;
}

static bool measure_attention(struct bench_cuda *bench, const struct timer *timer, const struct attention_shape *shape)
{
    struct attention_shape s = *shape;
    if (bench->quick)
        s.seqs = s.seqs > 2 ? 2 : s.seqs, s.tokens_each = s.tokens_each > 20 ? 20 : 1, s.context = 40, s.H = 4,
        s.KH = 2;
    struct attention_bench a = {.grid = 2 * bench->sms};
    struct step_memory step = {0};
    uint32_t tokens = s.seqs * s.tokens_each, blocks = s.seqs * ((s.context + CUDA_KV_TOKENS - 1) / CUDA_KV_TOKENS);
    struct attention_plan_config config = {tokens, s.seqs, s.context, s.H, s.KH, s.D, a.grid};
    size_t kv_bytes = cuda_kv_layer_bytes(blocks, s.KH, s.D, s.fp8);
    size_t scratch_bytes = cuda_attention_scratch_bytes(tokens, s.context, s.H, s.KH, s.D, a.grid);
    void *kv = random_memory(kv_bytes), *qkv = random_memory((size_t)tokens * (s.H + 2 * s.KH) * s.D * 2);
    void *out = random_memory((size_t)tokens * s.H * s.D * 2), *scratch = random_memory(scratch_bytes);
    bool good = kv && qkv && out && scratch && bench_cuda_ok(cudaMemset(scratch, 0, scratch_bytes), "memset") &&
                bench_cuda_ok(cudaDeviceSynchronize(), "memset") && make_step(&a, &s, &config, &step);
    a.attention = (struct cuda_attention){
        .out = out,
        .qkv = qkv,
        .kv = {.base = kv, .layers = 1, .blocks = blocks, .kv_heads = s.KH, .head_size = s.D, .fp8 = s.fp8},
        .H = s.H,
        .KH = s.KH,
        .D = s.D,
        .scale = 1 / sqrtf((float)s.D),
        .scratch = scratch,
        .partials = cuda_attention_partials(tokens, s.context, s.H, s.KH, s.D)};
    double seconds = good ? time_launches(timer, launch_attention, &a, bench->quick ? 1 : 20) : 0;
    cudaFree(kv);
    cudaFree(qkv);
    cudaFree(out);
    cudaFree(scratch);
    cudaFree(step.device);
    mem_free(step.words);
    mem_free(step.items);
    if (seconds <= 0) return false;
    double first = s.context - s.tokens_each + 1, pairs = (first + s.context) / 2 * s.tokens_each * s.seqs;
    report(bench, shape->name, (double)kv_bytes + 4.0 * tokens * s.H * s.D, 4 * pairs * s.H * s.D, seconds);
    return true;
}

bool bench_cuda_kernels(struct bench_cuda *bench)
{
    struct timer timer;
    if (!bench_cuda_ok(cudaStreamCreateWithFlags(&timer.stream, cudaStreamNonBlocking), "stream") ||
        !bench_cuda_ok(cudaEventCreate(&timer.begin), "event") || !bench_cuda_ok(cudaEventCreate(&timer.end), "event"))
        return false;
    bool good = measure_copy(bench, &timer) && measure_matmuls(bench, &timer);
    for (size_t i = 0; good && i < sizeof attention_shapes / sizeof *attention_shapes; i++) {
        good = measure_attention(bench, &timer, &attention_shapes[i]);
    }
    cudaEventDestroy(timer.begin);
    cudaEventDestroy(timer.end);
    cudaStreamDestroy(timer.stream);
    return good;
}
