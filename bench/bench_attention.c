/* Speed of attention alone: prefill of 512 tokens, and decode of 1, 8 and 32 sequences at contexts of 160, 1,000 and
 * 4,096, with the shape of SmolLM2-135M (9 query heads, 3 KV heads of 64, 30 layers).
 *
 *   bench_attention [--threads 1,2] [--paths auto,avx512,avx2] [--kv bf16,f32,int8] [--layers 30] [--seconds 0.4]
 *                   [--heads H] [--kv-heads KH] [--size D] [--only TEXT]
 *
 * A sample is one layer: the threads of a team take items from the list, as a step of the
 * device does. Layers follow one another, so that KV comes from memory as far as caches do not hold all layers. Between
 * samples the same threads read as many bytes of the same KV plainly: what the machine gives at that moment. Columns:
 * microseconds a layer (best), cycles per (query head, 16 tokens) by the time-stamp counter and per thread, MAC a
 * nanosecond, GB/s of KV, best plain read and the share of it, and microseconds of all layers a token. Best of many
 * samples counts: other work on the machine only takes away. */
#include "kernels/attention.h"
#include "kernels/rope.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/device/thread_team.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEQS_MAX = 32, CONTEXT_MAX = 4096, PREFILL = 512, ITEMS_MAX = 4096, THREADS_MAX = 16 };
static const char *const kv_names[] = {[KV_F32] = "f32", [KV_BF16] = "bf16", [KV_I8] = "int8"};

#define SINK_BYTES ((size_t)1 << 20)

struct item {
    uint32_t seq, token, rows, kv_head, position;
};

struct bench {
    struct kv_layout layout;
    enum cpu_path path;
    uint32_t H, KH, layers, threads;
    uint8_t *kv;
    size_t block_bytes;
    uint32_t *tables; /* [seq][blocks of a sequence] */
    uint32_t seqs, context, rows, table_blocks;
    float *q, *out, *scratch[THREADS_MAX];
    struct item items[ITEMS_MAX];
    uint32_t items_count, layer;
    atomic_uint next;
    atomic_ullong sink;
    struct thread_team *team;
    double seconds;
};

static void run_layer(void *state, uint32_t thread_idx)
{
    struct bench *b = state;
    uint32_t G = b->H / b->KH, D = b->layout.D;
    for (;;) {
        uint32_t i = atomic_fetch_add_explicit(&b->next, 1, memory_order_relaxed);
        if (i >= b->items_count) return;
        const struct item *item = &b->items[b->items_count - 1 - i];
        struct attention_args args = {
            .layout = b->layout,
            .kv = b->kv + ((size_t)b->layer * b->KH + item->kv_head) * b->layout.head_bytes,
            .kv_block_bytes = b->block_bytes,
            .blocks = b->tables + (size_t)item->seq * b->table_blocks,
            .q = b->q + ((size_t)item->token * b->H + item->kv_head * G) * D,
            .out = b->out + ((size_t)item->token * b->H + item->kv_head * G) * D,
            .q_stride = (size_t)b->H * D,
            .out_stride = (size_t)b->H * D,
            .rows = item->rows,
            .G = G,
            .position = item->position,
            .scale = 1 / sqrtf((float)D),
            .scratch = b->scratch[thread_idx],
        };
        attention(b->path, &args);
    }
}

/* As many bytes as a layer has of KV, in rising order of addresses: what memory gives to plain loads. */
static void run_read(void *state, uint32_t thread_idx)
{
    struct bench *b = state;
    size_t share = (size_t)b->seqs * b->table_blocks * b->KH * b->layout.head_bytes / b->threads & ~(size_t)255;
    const uint8_t *data = b->kv + ((size_t)b->layer * b->threads + thread_idx) * share;
    const uint64_t *p = (const uint64_t *)(const void *)data, *end = (const uint64_t *)(const void *)(data + share);
    uint64_t sum[4] = {0};
    for (; p < end; p += 32) sum[0] += p[0], sum[1] += p[8], sum[2] += p[16], sum[3] += p[24];
    atomic_fetch_add(&b->sink, sum[0] + sum[1] + sum[2] + sum[3]);
}

static uint64_t cycles(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    return 0;
#endif
}

static void plan(struct bench *b)
{
    uint32_t most = attention_rows(b->H / b->KH);
    b->items_count = 0;
    for (uint32_t s = 0; s < b->seqs; s++) {
        for (uint32_t row = 0; row < b->rows; row += most) {
            for (uint32_t h = 0; h < b->KH && b->items_count < ITEMS_MAX; h++) {
                uint32_t rows = b->rows - row < most ? b->rows - row : most;
                b->items[b->items_count++] = (struct item){s, s * b->rows + row, rows, h, b->context - b->rows + row};
            }
        }
    }
}

static bool make(struct bench *b)
{
    uint64_t seed = 5;
    uint32_t D = b->layout.D, blocks = b->seqs * b->table_blocks, stride = 1;
    b->block_bytes = (size_t)b->layers * b->KH * b->layout.head_bytes;
    b->kv = mem_map(blocks * b->block_bytes);
    b->tables = mem_alloc(blocks, sizeof *b->tables);
    b->q = mem_alloc((size_t)b->seqs * b->rows * b->H * D, sizeof(float));
    b->out = mem_alloc((size_t)b->seqs * b->rows * b->H * D, sizeof(float));
    if (!b->kv || !b->tables || !b->q || !b->out) return false;
    for (uint32_t t = 0; t < b->threads; t++) {
        b->scratch[t] = mem_map(attention_scratch_floats(b->layout.type, b->H / b->KH, D) * sizeof(float));
        if (!b->scratch[t]) return false;
    }
    for (stride = 7; blocks % stride == 0;) stride += 2; /* scattered, each block once */
    for (uint32_t i = 0; i < blocks; i++) b->tables[i] = (uint32_t)((uint64_t)i * stride % blocks);
    for (size_t i = 0; i < (size_t)b->seqs * b->rows * b->H * D; i++)
        b->q[i] = (float)(int32_t)(random_next(&seed) >> 40) * 0x1p-22f - 2.0f;
    for (uint32_t block = 0; block < blocks; block++) {
        uint8_t *head = b->kv + block * b->block_bytes;
        float row[256];
        for (uint32_t slot = 0; slot < KV_TOKENS; slot++) {
            for (uint32_t d = 0; d < D; d++) row[d] = (float)(int32_t)(random_next(&seed) >> 40) * 0x1p-22f - 2.0f;
            kv_write(b->path, &b->layout, head, slot, row, row);
        }
        for (uint32_t i = 1; i < b->layers * b->KH; i++)
            memcpy(head + i * b->layout.head_bytes, head, b->layout.head_bytes);
    }
    return true;
}

static void release(struct bench *b)
{
    mem_unmap(b->kv, (size_t)b->seqs * b->table_blocks * b->block_bytes);
    for (uint32_t t = 0; t < b->threads; t++)
        mem_unmap(b->scratch[t], attention_scratch_floats(b->layout.type, b->H / b->KH, b->layout.D) * sizeof(float));
    mem_free(b->tables);
    mem_free(b->q);
    mem_free(b->out);
}

static void measure(struct bench *b, const char *name)
{
    if (!make(b)) {
        fprintf(stderr, "bench_attention: no memory for %s\n", name);
        exit(1);
    }
    plan(b);
    uint64_t begin_ns = clock_now_ns(clock_system()), best_ns = UINT64_MAX, read_ns = UINT64_MAX, ticks = 0;
    for (uint32_t i = 0; i < 3 || (double)(clock_now_ns(clock_system()) - begin_ns) < b->seconds * 1e9; i++) {
        b->layer = (b->layer + 1) % b->layers;
        atomic_store(&b->next, 0);
        uint64_t start_ns = clock_now_ns(clock_system()), start_ticks = cycles();
        team_run(b->team, run_layer, b);
        uint64_t took_ticks = cycles() - start_ticks, ns = clock_now_ns(clock_system()) - start_ns;
        if (ns < best_ns) best_ns = ns, ticks = took_ticks;
        b->layer = (b->layer + 1) % b->layers;
        start_ns = clock_now_ns(clock_system());
        team_run(b->team, run_read, b);
        ns = clock_now_ns(clock_system()) - start_ns;
        if (ns < read_ns) read_ns = ns;
    }
    double units = 0, ns = (double)best_ns; /* (query head, 16 tokens) */
    for (uint32_t row = 0; row < b->rows; row++)
        units += (double)b->seqs * b->H * (b->context - b->rows + row + 1) / KV_TOKENS;
    double kv_bytes =
        (double)b->seqs * ((b->context + KV_TOKENS - 1) / KV_TOKENS) * b->KH * (double)b->layout.head_bytes;
    printf("%-18s %-10s %-4s %u | %9.1f %7.1f %8.1f %7.1f %7.1f %4.0f%% %8.2f\n", name, cpu_path_name(b->path),
           kv_names[b->layout.type], b->threads, ns / 1e3, (double)ticks * b->threads / units,
           units * 32 * b->layout.D / ns, kv_bytes / ns, kv_bytes / (double)read_ns, 100.0 * (double)read_ns / ns,
           ns / 1e3 * 30 / (b->seqs * b->rows));
    release(b);
}

static bool listed(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *p = list; p; p = strchr(p, ','), p = p ? p + 1 : NULL)
        if (strncmp(p, name, length) == 0 && (p[length] == ',' || !p[length])) return true;
    return false;
}

static void measure_all(struct bench *b, const char *only)
{
    static const uint32_t contexts[] = {160, 1000, 4096}, seqs[] = {1, 8, 32};
    char name[64];
    b->seqs = 1, b->rows = b->context = PREFILL, b->table_blocks = PREFILL / KV_TOKENS;
    if (strstr("prefill 512", only)) measure(b, "prefill 512");
    for (size_t c = 0; c < 3; c++) {
        for (size_t s = 0; s < 3; s++) {
            b->seqs = seqs[s], b->rows = 1, b->context = contexts[c];
            b->table_blocks = (contexts[c] + KV_TOKENS - 1) / KV_TOKENS;
            snprintf(name, sizeof name, "decode %u x %u", seqs[s], contexts[c]);
            if (seqs[s] * contexts[c] <= 8 * CONTEXT_MAX && strstr(name, only)) measure(b, name);
        }
    }
}

int main(int argc, char **argv)
{
    const char *threads = "1,2", *paths = "auto", *kv = "bf16", *only = "";
    uint32_t D = 64;
    static struct bench b = {.H = 9, .KH = 3, .layers = 30, .seconds = 0.4};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *value = argv[i + 1];
        uint32_t number = (uint32_t)strtoul(value, NULL, 10);
        if (!strcmp(argv[i], "--threads")) threads = value;
        if (!strcmp(argv[i], "--paths")) paths = value;
        if (!strcmp(argv[i], "--kv")) kv = value;
        if (!strcmp(argv[i], "--only")) only = value;
        if (!strcmp(argv[i], "--layers")) b.layers = number;
        if (!strcmp(argv[i], "--heads")) b.H = number;
        if (!strcmp(argv[i], "--kv-heads")) b.KH = number;
        if (!strcmp(argv[i], "--size")) D = number;
        if (!strcmp(argv[i], "--seconds")) b.seconds = strtod(value, NULL);
    }
    if (!b.layers || !b.KH || b.H % b.KH || !D || D > 256) {
        fprintf(stderr, "bench_attention: impossible shape\n");
        return 1;
    }
    printf("%-18s %-10s %-4s t | %9s %7s %8s %7s %7s %5s %8s\n", "work", "path", "kv", "us/layer", "cycles", "MAC/ns",
           "KV GB/s", "read", "", "us/token");
    for (enum kv_type type = 0; type <= KV_I8; type++) {
        if (!listed(kv, kv_names[type])) continue;
        for (enum cpu_path path = CPU_PATH_COUNT; path-- > CPU_PATH_SCALAR;) {
            if (!cpu_path_supported(path)) continue;
            if (!listed(paths, cpu_path_name(path)) && !(listed(paths, "auto") && path == cpu_path_best())) continue;
            for (b.threads = 1; b.threads <= THREADS_MAX; b.threads++) {
                char digits[8];
                snprintf(digits, sizeof digits, "%u", b.threads);
                if (!listed(threads, digits)) continue;
                if (team_create(b.threads, &b.team) != ST_OK) return 1;
                b.path = path;
                b.layout = kv_layout_of(type, D);
                measure_all(&b, only);
                team_destroy(b.team);
            }
        }
    }
    return 0;
}
