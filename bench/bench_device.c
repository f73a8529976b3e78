/* Speed of the CPU device alone, without scheduler or server: prefill of 512 tokens, and decode at 1, 8, 16, 32 and 64
 * streams with about 160 tokens of context each. Prints a table, then one line of JSON.
 *
 *   bench_device MODEL.gguf [--threads N] [--path auto|scalar|avx2|avx512] [--numerics fast|exact] [--seconds S]
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

enum { PREFILL = 512, CONTEXT = 160, STREAMS_MAX = 64, RUNS_MAX = 1000, BLOCKS_PER_STREAM = 40 };

struct bench {
    struct model *model;
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    double seconds;
    block_id tables[STREAMS_MAX][BLOCKS_PER_STREAM];
};

static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};

static void fill(struct bench *b, uint32_t seqs, uint32_t tokens_each, uint32_t position)
{
    struct batch *batch = b->batch;
    uint64_t state = 7;
    batch->seqs_count = batch->rows_count = seqs;
    batch->tokens_count = seqs * tokens_each;
    for (uint32_t s = 0; s < seqs; s++) {
        batch->q_start[s] = s * tokens_each;
        batch->kv_len[s] = position + tokens_each;
        batch->block_table[s] = b->tables[s];
        for (uint32_t i = 0; i < tokens_each; i++) {
            uint32_t n = s * tokens_each + i;
            batch->tokens[n] = (uint32_t)(random_next(&state) % b->model->spec.vocab);
            batch->positions[n] = position + i;
            batch->seq_of_token[n] = s;
        }
        batch->rows[s] = (struct batch_row){
            .token = (s + 1) * tokens_each - 1, .params = &greedy, .position = position + tokens_each};
    }
    batch->q_start[seqs] = batch->tokens_count;
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

/* Best and median seconds of a step, and the mean of its CPU seconds. */
static bool time_steps(struct bench *b, double *best, double *median, double *cpu)
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
    *best = runs[0];
    *median = runs[count / 2];
    *cpu = (cpu_seconds() - cpu_begin) / count;
    return true;
}

static bool measure(struct bench *b)
{
    static const uint32_t streams[] = {1, 8, 16, 32, 64};
    char json[1024];
    double best, median, cpu;
    printf("%-22s %12s %12s %10s %10s\n", "workload", "best tok/s", "median tok/s", "median ms", "CPU ms");
    fill(b, 1, PREFILL, 0);
    if (!time_steps(b, &best, &median, &cpu)) return false;
    printf("%-22s %12.0f %12.0f %10.2f %10.2f\n", "prefill 512", PREFILL / best, PREFILL / median, median * 1e3,
           cpu * 1e3);
    int used =
        snprintf(json, sizeof json, "{\"device\":\"%s\",\"prefill_512\":%.1f", b->device->info.name, PREFILL / median);
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        for (uint32_t s = 0; s < streams[i]; s++) { /* contexts one by one: tokens_max need not hold them all */
            fill(b, 1, CONTEXT - 1, 0);
            b->batch->block_table[0] = b->tables[s];
            if (device_step(b->device, b->batch, b->result) != ST_OK) return false;
        }
        fill(b, streams[i], 1, CONTEXT - 1);
        if (!time_steps(b, &best, &median, &cpu)) return false;
        char name[32];
        snprintf(name, sizeof name, "decode %u stream%s", streams[i], streams[i] == 1 ? "" : "s");
        printf("%-22s %12.0f %12.0f %10.2f %10.2f\n", name, streams[i] / best, streams[i] / median, median * 1e3,
               cpu * 1e3);
        used +=
            snprintf(json + used, sizeof json - (size_t)used, ",\"decode_%u\":%.1f", streams[i], streams[i] / median);
    }
    printf("%s}\n", json);
    return true;
}

static bool parse(int argc, char **argv, struct device_config *config, double *seconds, struct error *err)
{
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0) {
            config->threads = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--path") == 0) {
            if (cpu_path_parse(argv[i + 1], &config->path, err) != ST_OK) return false;
        } else if (strcmp(argv[i], "--numerics") == 0) {
            config->numerics = strcmp(argv[i + 1], "exact") == 0 ? NUMERICS_EXACT : NUMERICS_FAST;
        } else if (strcmp(argv[i], "--seconds") == 0) {
            *seconds = strtod(argv[i + 1], NULL);
        } else {
            error_set(err, ST_INVAL, "unknown option %s", argv[i]);
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    struct error err = {""};
    struct bench b = {.seconds = 1.5};
    struct device_config config = {.path = cpu_path_best(),
                                   .threads = 2,
                                   .tokens_max = PREFILL,
                                   .seqs_max = STREAMS_MAX,
                                   .rows_max = STREAMS_MAX,
                                   .context_max = BLOCKS_PER_STREAM * KV_BLOCK_TOKENS};
    int code = 1;
    if (argc < 2) {
        fprintf(stderr,
                "usage: bench_device MODEL.gguf [--threads N] [--path P] [--numerics fast|exact] [--seconds S]\n");
        return 1;
    }
    if (!parse(argc, argv, &config, &b.seconds, &err)) goto done;
    if (model_open(argv[1], &b.model, &err) != ST_OK) goto done;
    config.kv_bytes = STREAMS_MAX * BLOCKS_PER_STREAM * device_cpu_kv_block_bytes(&b.model->spec, config.numerics);
    uint64_t start_ns = clock_now_ns(clock_system());
    if (device_cpu_create(b.model, &config, NULL, NULL, &b.device, &err) != ST_OK) goto done;
    printf("%s, packed %.1f MB in %.0f ms\n", b.device->info.name, (double)b.device->info.weights_bytes / 1e6,
           (double)(clock_now_ns(clock_system()) - start_ns) / 1e6);
    model_release_file(b.model);
    if (batch_create(PREFILL, STREAMS_MAX, STREAMS_MAX, &b.batch) != ST_OK) goto done;
    if (batch_result_create(STREAMS_MAX, &b.result) != ST_OK) goto done;
    for (uint32_t s = 0; s < STREAMS_MAX; s++) {
        for (uint32_t i = 0; i < BLOCKS_PER_STREAM; i++) b.tables[s][i] = s * BLOCKS_PER_STREAM + i;
    }
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
