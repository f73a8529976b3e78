/* How fast the matmul is, as a share of what the core can multiply and the memory can deliver, found in the same run.
 *
 *   bench_matmul [--types Q4_1,Q8_0] [--paths avx512,avx2] [--numerics fast,exact] [--threads 1,2] [--runs 20]
 *                [--shapes 576x576,...] [--cold] [--pack] [--json FILE]
 *
 * Hot: one matrix, again and again (as far as it fits, from L2). --cold: copies of it, COLD_BYTES together, in turn, so
 * that each is read from memory; then GB/s stands beside a plain read of the same bytes by the same threads. --pack:
 * the speed of packing, best panel. Threads are pinned, split the panels evenly and spin between runs. The best of many
 * runs counts, each shorter than a time slice, since other work on the machine only ever takes away. Figures: MAC per
 * cycle and core, by the clock found before (dependent adds), and the share of the peak: of vpdpbusd (64 MAC a cycle on
 * Zen 4; BF16 dots half, f32 FMA a quarter), on avx2 of vpmaddubsw with the vpmaddwd and vpaddd that make 32 bits of
 * its sums. The path avxvnni-evex is the AVX-VNNI source in the encoding of AVX-512 VNNI, for CPUs that have only that.
 * Best of a day's runs are in kernels/README.md. */
#include "kernels/cpu_path.h"
#include "kernels/dequantize.h"
#include "kernels/matmul.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "tests/support/matmul_avxvnni_evex.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { THREADS_MAX = 8, COPIES_MAX = 4096, RUN_NS = 1500000 };
#define COLD_BYTES ((size_t)160 << 20)

static const uint32_t row_counts[] = {1, 2, 4, 8, 16, 32, 64, 256};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])

/* What all threads do between two barriers. */
struct work {
    void (*run)(struct work *work, unsigned thread);
    struct matrix matrix;
    uint8_t *copies; /* `count` packed matrices */
    size_t count, matrix_bytes,
        first; /* first: where the next run begins, so that no run finds its copies in a cache */
    enum cpu_path path;
    bool evex; /* AVX-VNNI in the other encoding */
    const void *act;
    uint32_t M;
    float *out;
    uint64_t iterations;
    atomic_uint_fast64_t sink; /* sums of what plain reads and peaks found, so that nothing is optimised away */
};

static unsigned threads = 1;
static struct work *the_work;
static atomic_uint go, arrived;

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

static void pin(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) fprintf(stderr, "cannot pin thread to cpu %u\n", cpu);
}

/* Waits for `go` to change: spinning, and after a while asleep, so as not to take a core from others while idle. */
static unsigned wait_for_go(unsigned seen)
{
    uint64_t start = now_ns();
    for (;;) {
        const unsigned value = atomic_load_explicit(&go, memory_order_acquire);
        if (value != seen) return value;
        if (now_ns() - start < 2000000) continue;
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
}

static void *worker(void *argument)
{
    const unsigned thread = (unsigned)(uintptr_t)argument;
    pin(thread);
    for (unsigned seen = 0;;) {
        seen = wait_for_go(seen);
        if (thread >= seen % (THREADS_MAX + 1)) continue; /* not in this one */
        the_work->run(the_work, thread);
        atomic_fetch_add_explicit(&arrived, 1, memory_order_release);
    }
    return NULL;
}

static unsigned workers; /* started, without the main thread */

static uint64_t time_once(struct work *work)
{
    static unsigned generation;
    the_work = work;
    atomic_store(&arrived, 0);
    const uint64_t start = now_ns();
    atomic_store_explicit(&go, ++generation * (THREADS_MAX + 1) + threads, memory_order_release);
    work->run(work, 0);
    while (atomic_load_explicit(&arrived, memory_order_acquire) + 1 < threads) continue;
    const uint64_t ns = now_ns() - start;
    work->first = (work->first + work->iterations) % (work->count ? work->count : 1);
    return ns;
}

/* Nanoseconds an iteration, best of runs of about RUN_NS. */
static double time_best(struct work *work, unsigned runs)
{
    work->iterations = 1;
    uint64_t ns = time_once(work);
    while (ns < RUN_NS / 4) {
        work->iterations *= ns < RUN_NS / 64 ? 8 : 2;
        ns = time_once(work);
    }
    work->iterations = work->iterations * RUN_NS / ns + 1;
    double best = 1e30;
    for (unsigned i = 0; i < runs; i++) {
        const double per_iteration = (double)time_once(work) / (double)work->iterations;
        if (per_iteration < best) best = per_iteration;
    }
    return best;
}

/* ---- what the machine can do ---- */

static void run_adds(struct work *work, unsigned thread)
{
    uint64_t n = work->iterations * 1000, x = 0;
    (void)thread;
#if defined(__x86_64__)
    __asm__ volatile(
        "1: add $1,%1\n add $1,%1\n add $1,%1\n add $1,%1\n add $1,%1\n add $1,%1\n add $1,%1\n add $1,%1\n"
        " sub $8,%0\n jnz 1b"
        : "+r"(n), "+r"(x));
#endif
    atomic_fetch_add(&work->sink, x);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void run_dots(struct work *work, unsigned thread)
{
    uint64_t n = work->iterations * 100;
    (void)thread;
#define DOT(i) "vpdpbusd %%zmm16, %%zmm17, %%zmm" #i "\n"
    __asm__ volatile("1: " DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11) DOT(12)
                         DOT(13) DOT(14) DOT(15) " sub $1,%0\n jnz 1b"
                     : "+r"(n)
                     :
                     : "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11",
                       "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17");
#undef DOT
}

/* Products of 8 outputs and 4 inputs, and what adds them up in 32 bits. */
__attribute__((target("avx2"))) static void run_pairs(struct work *work, unsigned thread)
{
    uint64_t n = work->iterations * 100;
    (void)thread;
#define PAIRS(i)                                                                                                       \
    "vpmaddubsw %%ymm12, %%ymm13, %%ymm8\n vpmaddwd %%ymm14, %%ymm8, %%ymm8\n vpaddd %%ymm8, %%ymm" #i ", %%ymm" #i "\n"
    __asm__ volatile("1: " PAIRS(0) PAIRS(1) PAIRS(2) PAIRS(3) PAIRS(4) PAIRS(5) PAIRS(6) PAIRS(7) " sub $1,%0\n jnz 1b"
                     : "+r"(n)
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm12", "xmm13",
                       "xmm14");
#undef PAIRS
}
#else
static void run_pairs(struct work *work, unsigned thread)
{
    (void)work, (void)thread;
}
static void run_dots(struct work *work, unsigned thread)
{
    (void)work, (void)thread;
}
#endif

static void panel_range(const struct work *work, unsigned thread, uint32_t *begin, uint32_t *end)
{
    *begin = work->matrix.panels * thread / threads;
    *end = work->matrix.panels * (thread + 1) / threads;
}

static void run_read(struct work *work, unsigned thread)
{
    uint64_t sum[8] = {0};
    uint32_t begin, end;
    panel_range(work, thread, &begin, &end);
    for (uint64_t i = 0; i < work->iterations; i++) {
        const uint8_t *data = work->copies + (work->first + i) % work->count * work->matrix_bytes;
        const uint64_t *p = (const uint64_t *)(const void *)(data + begin * work->matrix.panel_bytes);
        const uint64_t *stop = (const uint64_t *)(const void *)(data + end * work->matrix.panel_bytes);
        for (; p < stop; p += 8) sum[0] += p[0], sum[1] += p[2], sum[2] += p[4], sum[3] += p[6];
    }
    atomic_fetch_add(&work->sink, sum[0] + sum[1] + sum[2] + sum[3]);
}

static void run_matmul(struct work *work, unsigned thread)
{
    struct matrix matrix = work->matrix;
    uint32_t begin, end;
    panel_range(work, thread, &begin, &end);
    for (uint64_t i = 0; i < work->iterations; i++) {
        matrix.data = work->copies + (work->first + i) % work->count * work->matrix_bytes;
        matmul(work->path, &matrix, begin, end, work->act, work->M, work->out, matrix.N);
    }
}

/* The AVX-VNNI tile in the other encoding, as matmul() would go through the panels. N is whole panels. */
static void run_evex(struct work *work, unsigned thread)
{
    const struct matrix *w = &work->matrix;
    const size_t row_bytes = act_row_bytes(w->act, w->K);
    uint32_t begin, end;
    panel_range(work, thread, &begin, &end);
    for (uint64_t i = 0; i < work->iterations; i++) {
        const uint8_t *data = work->copies + (work->first + i) % work->count * work->matrix_bytes;
        const uint32_t step = work->M <= MATMUL_TILE_ROWS ? end - begin : 1;
        for (uint32_t p = begin; p < end; p += step)
            for (uint32_t m = 0; m < work->M; m += MATMUL_TILE_ROWS)
                matmul_tile_avxvnni_evex(w, data + p * w->panel_bytes, step, (const uint8_t *)work->act + m * row_bytes,
                                         work->M - m < MATMUL_TILE_ROWS ? work->M - m : MATMUL_TILE_ROWS,
                                         work->out + (size_t)m * w->N + 16 * p, w->N);
    }
}

/* ---- one matrix ---- */

struct settings {
    const char *types, *paths, *numerics, *shapes, *threads;
    unsigned runs;
    bool cold, pack;
    FILE *json;
    double clock_ghz, dots_peak, pairs_peak; /* of one core, MAC a nanosecond; 0 where there is no such instruction */
};

static bool listed(const char *list, const char *name)
{
    const size_t length = strlen(name);
    for (const char *p = list; p; p = strchr(p, ','), p = p ? p + 1 : NULL)
        if (strncmp(p, name, length) == 0 && (p[length] == ',' || !p[length])) return true;
    return false;
}

/* Rows with random codes and small scales: speed does not depend on values as long as they are normal. */
static void *file_make(enum tensor_type type, uint32_t N, uint32_t K)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    const size_t bytes = tensor_row_bytes(info, K) * N;
    uint8_t *file = mem_alloc(bytes, 1);
    uint64_t state = 1;
    if (!file) return NULL;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        const uint64_t r = random_next(&state);
        memcpy(file + i, &r, 8);
    }
    const uint16_t scale = f32_to_f16(0.01f);
    const float one = 0.01f;
    for (uint8_t *p = file; p < file + bytes; p += info->block_bytes) {
        if (type == TENSOR_F32)
            memcpy(p, &one, 4);
        else
            memcpy(p + (type == TENSOR_Q6_K ? 208 : 0), &scale, 2);
        if (type == TENSOR_Q4_1 || type == TENSOR_Q5_1 || type == TENSOR_Q4_K || type == TENSOR_Q5_K)
            memcpy(p + 2, &scale, 2);
    }
    return file;
}

static const char *path_label(enum cpu_path path, bool evex)
{
    return evex ? "avxvnni-evex" : cpu_path_name(path);
}

static void report(const struct settings *set, const struct work *work, double ns, double read_ns)
{
    const double macs = (double)work->M * work->matrix.N * work->matrix.K;
    const double per_cycle = macs / ns / set->clock_ghz / threads;
    const double peak = work->path == CPU_PATH_AVX2 ? set->pairs_peak : set->dots_peak;
    const double share = peak > 0 ? macs / ns / threads / peak : 0;
    const double gb_per_s = (double)work->matrix_bytes / ns;
    if (read_ns > 0)
        printf(" %5.1f/%3.0f%%", gb_per_s, 100 * read_ns / ns);
    else
        printf(" %5.1f/%3.0f%%", per_cycle, 100 * share);
    fflush(stdout);
    if (!set->json) return;
    fprintf(set->json,
            "{\"type\":\"%s\",\"path\":\"%s\",\"numerics\":\"%s\",\"n\":%u,\"k\":%u,\"rows\":%u,\"threads\":%u,"
            "\"cold\":%s,\"ns\":%.1f,\"gmac_per_s\":%.2f,\"mac_per_cycle_core\":%.2f,\"share_of_int8_peak\":%.4f,"
            "\"gb_per_s\":%.2f,\"share_of_read\":%.4f}\n",
            tensor_type_info(work->matrix.type)->name, path_label(work->path, work->evex),
            work->matrix.numerics == NUMERICS_EXACT ? "exact" : "fast", work->matrix.N, work->matrix.K, work->M,
            threads, set->cold ? "true" : "false", ns, macs / ns, per_cycle, share, gb_per_s,
            read_ns > 0 ? read_ns / ns : 0);
}

static void bench_rows(const struct settings *set, struct work *work)
{
    const uint32_t K = work->matrix.K, N = work->matrix.N, rows_max = row_counts[COUNT(row_counts) - 1];
    float *x = mem_alloc((size_t)rows_max * K, sizeof *x);
    void *act = mem_alloc(matmul_act_bytes(work->matrix.act, rows_max, K), 1);
    work->out = mem_alloc((size_t)rows_max * N, sizeof *work->out);
    if (!x || !act || !work->out) abort();
    uint64_t state = 7;
    for (size_t i = 0; i < (size_t)rows_max * K; i++)
        x[i] = (float)(int32_t)(random_next(&state) >> 40) * 0x1p-23f - 1.0f;
    printf("%-5s %-12s %-5s %5ux%-4u %u |", tensor_type_info(work->matrix.type)->name,
           path_label(work->path, work->evex), work->matrix.numerics == NUMERICS_EXACT ? "exact" : "fast", N, K,
           threads);
    for (size_t i = 0; i < COUNT(row_counts); i++) {
        work->M = row_counts[i];
        if ((set->cold && work->M > 4) || (work->path == CPU_PATH_SCALAR && work->M > 16)) break;
        if (!matmul_prepare(work->path, work->matrix.act, x, K, work->M, K, 0, work->M, act)) abort();
        work->act = act;
        work->run = work->evex ? run_evex : run_matmul;
        double ns = time_best(work, set->runs), read_ns = 0;
        for (unsigned run = 0; set->cold && run < 3; run++) { /* interleaved: memory speed changes with the hour */
            work->run = run_read;
            const double r = time_best(work, set->runs);
            if (!run || r < read_ns) read_ns = r;
            work->run = work->evex ? run_evex : run_matmul;
            const double t = time_best(work, set->runs);
            if (t < ns) ns = t;
        }
        report(set, work, ns, read_ns);
    }
    printf("\n");
    mem_free(x);
    mem_free(act);
    mem_free(work->out);
}

static void bench_matrix(const struct settings *set, enum tensor_type type, enum numerics numerics, enum cpu_path path,
                         bool evex, uint32_t N, uint32_t K)
{
    struct work work = {.path = path, .evex = evex};
    if (evex && (N % MATMUL_PANEL_ROWS || (type == TENSOR_BF16 && numerics == NUMERICS_FAST))) return;
    if (matmul_plan(type, numerics, path, N, K, &work.matrix) != ST_OK) return; /* K-quants need K % 256 == 0 */
    void *file = file_make(type, N, K);
    work.matrix_bytes = work.matrix.panels * work.matrix.panel_bytes;
    work.count = set->cold ? COLD_BYTES / work.matrix_bytes + 1 : 1;
    work.copies = mem_map(work.matrix_bytes * work.count);
    if (!file || !work.copies) abort();
    work.matrix.data = work.copies;
    matmul_pack(&work.matrix, file, 0, work.matrix.panels); /* touches the pages */
    if (set->pack) {
        const uint64_t start = now_ns();
        const size_t rows_bytes = MATMUL_PANEL_ROWS * tensor_row_bytes(tensor_type_info(type), K);
        uint64_t best_ns = UINT64_MAX;
        for (uint32_t p = 0; now_ns() - start < 200000000; p = (p + 1) % work.matrix.panels) {
            const uint64_t before = now_ns();
            matmul_pack(&work.matrix, (const uint8_t *)file + p * rows_bytes, p, p + 1);
            const uint64_t ns = now_ns() - before;
            if (ns < best_ns) best_ns = ns;
        }
        printf("%-5s pack %5ux%-4u %.2f GB/s of file\n", tensor_type_info(type)->name, N, K,
               (double)tensor_row_bytes(tensor_type_info(type), K) * MATMUL_PANEL_ROWS / (double)best_ns);
    } else {
        for (size_t i = 1; i < work.count; i++)
            memcpy(work.copies + i * work.matrix_bytes, work.copies, work.matrix_bytes);
        for (threads = 1; threads <= workers + 1; threads++) {
            const char digit[2] = {(char)('0' + threads), 0};
            if (listed(set->threads, digit)) bench_rows(set, &work);
        }
        threads = 1;
    }
    mem_free(file);
    mem_unmap(work.copies, work.matrix_bytes * work.count);
}

static void bench_shapes(const struct settings *set, enum tensor_type type, enum numerics numerics, enum cpu_path path,
                         bool evex)
{
    for (const char *p = set->shapes; p; p = strchr(p, ','), p = p ? p + 1 : NULL) {
        char *end;
        const unsigned long N = strtoul(p, &end, 10), K = *end == 'x' ? strtoul(end + 1, NULL, 10) : 0;
        bench_matrix(set, type, numerics, path, evex, (uint32_t)N, (uint32_t)K);
    }
}

static bool settings_read(struct settings *set, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(name, "--cold")) {
            set->cold = true;
            continue;
        }
        if (!strcmp(name, "--pack")) {
            set->pack = true;
            continue;
        }
        if (!strcmp(name, "--types"))
            set->types = value;
        else if (!strcmp(name, "--paths"))
            set->paths = value;
        else if (!strcmp(name, "--numerics"))
            set->numerics = value;
        else if (!strcmp(name, "--shapes"))
            set->shapes = value;
        else if (!strcmp(name, "--threads"))
            set->threads = value;
        else if (!strcmp(name, "--runs"))
            set->runs = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(name, "--json"))
            set->json = fopen(value, "w");
        else
            return false;
        i++;
    }
    return set->runs > 0;
}

int main(int argc, char **argv)
{
    struct settings set = {.types = "Q4_1,Q8_0",
                           .paths = "avx512,avx2",
                           .numerics = "fast",
                           .threads = "1,2",
                           .runs = 20,
                           .shapes = "576x576,192x576,1536x576,576x1536,49152x576"};
    static const enum tensor_type types[] = {
#define X(name, id, items, bytes) TENSOR_##name,
        TENSOR_TYPE_MAP(X)
#undef X
    };
    if (!settings_read(&set, argc, argv)) {
        fprintf(stderr, "usage: see the head of bench_matmul.c\n");
        return 2;
    }
    pin(0);
    for (unsigned n = 2; n <= THREADS_MAX; n++) {
        const char digit[2] = {(char)('0' + n), 0};
        pthread_t thread;
        while (listed(set.threads, digit) && workers + 1 < n) {
            if (pthread_create(&thread, NULL, worker, (void *)(uintptr_t)(workers + 1)) != 0) return 1;
            workers++;
        }
    }
    struct work work = {.run = run_adds};
    set.clock_ghz = 1000.0 / time_best(&work, 300);
    if (cpu_path_supported(CPU_PATH_AVX512)) {
        work.run = run_dots;
        set.dots_peak = 1600.0 * 64 / time_best(&work, 300);
    }
    if (cpu_path_supported(CPU_PATH_AVX2)) {
        work.run = run_pairs;
        set.pairs_peak = 800.0 * 32 / time_best(&work, 300);
    }
    printf("clock %.2f GHz; peaks, MAC/cycle/core: vpdpbusd %.1f, vpmaddubsw + vpmaddwd + vpaddd %.1f\n", set.clock_ghz,
           set.dots_peak / set.clock_ghz, set.pairs_peak / set.clock_ghz);
    printf("%s\ntype  path         mode     N x K   threads |",
           set.cold ? "GB/s of packed weights / share of plain read, M =" : "MAC/cycle/core / share of peak, M =");
    for (size_t i = 0; i < COUNT(row_counts); i++) printf(" %9u", row_counts[i]);
    printf("\n");
    for (size_t t = 0; t < COUNT(types); t++)
        for (enum cpu_path path = CPU_PATH_COUNT; path-- > CPU_PATH_SCALAR;)
            for (enum numerics numerics = NUMERICS_FAST; numerics <= NUMERICS_EXACT; numerics++) {
                if (!listed(set.types, tensor_type_info(types[t])->name) ||
                    !listed(set.numerics, numerics == NUMERICS_EXACT ? "exact" : "fast"))
                    continue;
                if (listed(set.paths, cpu_path_name(path)) && cpu_path_supported(path))
                    bench_shapes(&set, types[t], numerics, path, false);
                if (path == CPU_PATH_AVXVNNI && listed(set.paths, path_label(path, true)) &&
                    cpu_path_supported(CPU_PATH_AVX512))
                    bench_shapes(&set, types[t], numerics, path, true);
            }
    if (set.json) fclose(set.json);
    return 0;
}
