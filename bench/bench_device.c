/* Speed of the CPU device alone, without scheduler or server: prefill of 512 tokens, decode at 1 to 64 streams with 160
 * tokens of context each, and 8 streams with 4,096. Prints a table, with --phases where each workload's time goes, then
 * one line of JSON.
 *
 *   bench_device MODEL.gguf [--kv bf16|int8] [--threads N] [--path P] [--numerics fast|exact] [--seconds S] [--only
 * WORKLOAD] [--phases 1]
 *
 * CPU ms is what a step takes from all processors together. Each figure is the best and the median of the runs that fit
 * into S seconds (at least three): on a machine that others use as well, the best is nearest to what the code can do.
 * Steps are greedy; tokens are pseudo-random and the same in every run, since the time of a step depends on shapes
 * alone. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/device/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { TOKENS_MAX = 512, STREAMS_MAX = 64, CONTEXT_MAX = 4096, KV_BLOCKS = 8 * CONTEXT_MAX / 16, RUNS_MAX = 1000 };

static const struct workload {
    const char *name, *json;
    uint32_t streams, tokens_each, context; /* context: positions after the step */
} workloads[] = {
    {"prefill 512", "prefill_512", 1, 512, 512},
    {"decode 1 stream", "decode_1", 1, 1, 160},
    {"decode 8 streams", "decode_8", 8, 1, 160},
    {"decode 16 streams", "decode_16", 16, 1, 160},
    {"decode 32 streams", "decode_32", 32, 1, 160},
    {"decode 64 streams", "decode_64", 64, 1, 160},
    {"decode 8 x 4096", "decode_8_context_4096", 8, 1, 4096},
};
enum { WORKLOADS = sizeof workloads / sizeof workloads[0] };

static const char *const phase_names[PHASE_COUNT] = {"embed", "prepare", "qkv",    "attention", "o",    "gated",
                                                     "down",  "head",    "sample", "wait",      "ranks"};

struct bench {
    struct model *model;
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    double seconds;
    const char *only;
    bool phases;
    block_id blocks[KV_BLOCKS]; /* 0, 1, 2, ...: a stream's table is a piece of it */
};

struct figures {
    double best_s, median_s, cpu_s;
};

static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};

/* A batch of `streams` sequences, the first of which holds the blocks of stream `first`. */
static void fill(struct bench *b, const struct workload *work, uint32_t first, uint32_t streams, uint32_t position,
                 uint32_t tokens_each)
{
    struct batch *batch = b->batch;
    uint64_t state = 7;
    batch->seqs_count = batch->rows_count = streams;
    batch->tokens_count = streams * tokens_each;
    for (uint32_t s = 0; s < streams; s++) {
        batch->q_start[s] = s * tokens_each;
        batch->kv_len[s] = position + tokens_each;
        batch->block_table[s] = b->blocks + (first + s) * (work->context / 16);
        for (uint32_t i = 0; i < tokens_each; i++) {
            uint32_t n = s * tokens_each + i;
            batch->tokens[n] = (uint32_t)(random_next(&state) % b->model->spec.vocab);
            batch->positions[n] = position + i;
            batch->seq_of_token[n] = s;
        }
        batch->rows[s] = (struct batch_row){
            .token = (s + 1) * tokens_each - 1, .params = &greedy, .position = position + tokens_each};
    }
    batch->q_start[streams] = batch->tokens_count;
}

/* Writes the context of all streams, so that attention reads what a conversation would have left. */
static bool write_context(struct bench *b, const struct workload *work)
{
    for (uint32_t s = 0; s < work->streams; s++) {
        for (uint32_t position = 0; position < work->context - work->tokens_each;) {
            uint32_t left = work->context - work->tokens_each - position;
            uint32_t count = left < TOKENS_MAX ? left : TOKENS_MAX;
            fill(b, work, s, 1, position, count);
            if (device_step(b->device, b->batch, b->result) != ST_OK) return false;
            position += count;
        }
    }
    return true;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* CPU time of all threads so far; spinning at barriers counts, waiting for a processor that others use does not. */
static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static bool time_steps(struct bench *b, struct figures *figures)
{
    static double runs[RUNS_MAX];
    const struct clock *clock = clock_system();
    uint64_t begin_ns = clock_now_ns(clock);
    uint32_t count = 0;
    double cpu_begin = cpu_seconds();
    while (count < RUNS_MAX) {
        uint64_t start_ns = clock_now_ns(clock);
        if (count >= 3 && (double)(start_ns - begin_ns) > b->seconds * 1e9) break;
        if (device_step(b->device, b->batch, b->result) != ST_OK) return false;
        runs[count++] = (double)(clock_now_ns(clock) - start_ns) / 1e9;
    }
    qsort(runs, count, sizeof runs[0], by_value);
    *figures = (struct figures){runs[0], runs[count / 2], (cpu_seconds() - cpu_begin) / count};
    return true;
}

/* Shares of a workload's thread time by phase. */
static void print_phases(const struct bench *b, const uint64_t before[PHASE_COUNT])
{
    double all = 0;
    for (uint32_t i = 0; i < PHASE_COUNT; i++) all += (double)(b->device->phase_ticks[i] - before[i]);
    for (uint32_t i = 0; i < PHASE_COUNT; i++) {
        printf("  %s %.1f%%", phase_names[i], 100 * (double)(b->device->phase_ticks[i] - before[i]) / all);
    }
    printf("\n");
}

static bool measure(struct bench *b)
{
    char json[2048];
    uint64_t before[PHASE_COUNT];
    int used = snprintf(json, sizeof json, "{\"device\":\"%s\"", b->device->info.name);
    printf("%-22s %12s %12s %10s %10s\n", "workload", "best tok/s", "median tok/s", "median ms", "CPU ms");
    for (size_t i = 0; i < WORKLOADS; i++) {
        const struct workload *work = &workloads[i];
        const double tokens = work->streams * work->tokens_each;
        struct figures figures;
        if (b->only && strcmp(b->only, work->json) != 0) continue;
        if (!write_context(b, work)) return false;
        memcpy(before, b->device->phase_ticks, sizeof before);
        fill(b, work, 0, work->streams, work->context - work->tokens_each, work->tokens_each);
        if (!time_steps(b, &figures)) return false;
        printf("%-22s %12.0f %12.0f %10.2f %10.2f\n", work->name, tokens / figures.best_s, tokens / figures.median_s,
               figures.median_s * 1e3, figures.cpu_s * 1e3);
        if (b->phases) print_phases(b, before);
        used += snprintf(json + used, sizeof json - (size_t)used, ",\"%s\":%.1f,\"%s_best\":%.1f", work->json,
                         tokens / figures.median_s, work->json, tokens / figures.best_s);
    }
    printf("%s}\n", json);
    return true;
}

static bool parse(int argc, char **argv, struct device_config *config, struct bench *b, struct error *err)
{
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0) {
            config->threads = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--path") == 0) {
            if (cpu_path_parse(argv[i + 1], &config->path, err) != ST_OK) return false;
        } else if (strcmp(argv[i], "--numerics") == 0) {
            config->numerics = strcmp(argv[i + 1], "exact") == 0 ? NUMERICS_EXACT : NUMERICS_FAST;
        } else if (strcmp(argv[i], "--kv") == 0) {
            config->kv_int8 = strcmp(argv[i + 1], "int8") == 0;
        } else if (strcmp(argv[i], "--seconds") == 0) {
            b->seconds = strtod(argv[i + 1], NULL);
        } else if (strcmp(argv[i], "--only") == 0) {
            b->only = argv[i + 1];
        } else if (strcmp(argv[i], "--phases") == 0) {
            b->phases = strcmp(argv[i + 1], "0") != 0;
        } else {
            error_set(err, ST_INVAL, "unknown option %s", argv[i]);
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    static struct bench b = {.seconds = 1.5};
    struct error err = {""};
    struct device_config config = {.path = cpu_path_best(),
                                   .threads = 2,
                                   .tokens_max = TOKENS_MAX,
                                   .seqs_max = STREAMS_MAX,
                                   .rows_max = STREAMS_MAX,
                                   .context_max = CONTEXT_MAX};
    int code = 1;
    if (argc < 2) {
        fprintf(stderr, "usage: bench_device MODEL.gguf [--threads N] [--path P] [--numerics fast|exact] [--seconds S] "
                        "[--only WORKLOAD] [--phases 1] [--kv bf16|int8]\n");
        return 1;
    }
    if (!parse(argc, argv, &config, &b, &err)) goto done;
    if (model_open(argv[1], &b.model, &err) != ST_OK) goto done;
    config.kv_bytes = KV_BLOCKS * device_cpu_kv_block_bytes(&b.model->spec, config.numerics, config.kv_int8);
    uint64_t start_ns = clock_now_ns(clock_system());
    if (device_cpu_create(b.model, &config, NULL, NULL, &b.device, &err) != ST_OK) goto done;
    printf("%s, packed %.1f MB in %.0f ms\n", b.device->info.name, (double)b.device->info.weights_bytes / 1e6,
           (double)(clock_now_ns(clock_system()) - start_ns) / 1e6);
    model_release_file(b.model);
    if (batch_create(TOKENS_MAX, STREAMS_MAX, STREAMS_MAX, &b.batch) != ST_OK) goto done;
    if (batch_result_create(STREAMS_MAX, &b.result) != ST_OK) goto done;
    for (uint32_t i = 0; i < KV_BLOCKS; i++) b.blocks[i] = i;
    if (!measure(&b)) {
        error_set(&err, ST_DEVICE, "a step failed");
        goto done;
    }
    code = 0;
done:
    if (code) fprintf(stderr, "bench_device: %s\n", err.message);
    batch_result_destroy(b.result);
    batch_destroy(b.batch);
    device_destroy(b.device);
    if (b.model) model_close(b.model);
    return code;
}
