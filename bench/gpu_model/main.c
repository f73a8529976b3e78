/* What steps and clusters would cost on GPUs that are not here; see roofline.h and cluster.h for how.
 *
 *   bench_gpu_model step     [SHAPE] [options]   a step's kernels, bytes, time; a table over batches
 *   bench_gpu_model cluster  [SHAPE] [options]   requests through real schedulers in virtual time
 *   bench_gpu_model check                        the roofline against public figures
 *   bench_gpu_model validate MODEL [--seconds S] the simulator against the CPU engine, both run here
 *
 *   SHAPE     llama3-8b (default), llama3.2-1b, qwen3-32b, or a model file or folder
 *   options   --gpu h100|h200|a100  --ranks N  --weights bf16|fp8|w4  --kv bf16|fp8  --gap-us X  --own-all-reduce
 *             --clients N  --nodes N  --prompt N  --output N  --requests N  --context N  --json
 *
 * Predictions count for as much as `validate` and `check` show. `validate` must be within 10 % before a figure of
 * `cluster` is quoted. */
#include "bench/gpu_model/closed_loop.h"
#include "bench/gpu_model/cluster.h"
#include "bench/gpu_model/cpu_cost.h"
#include "bench/gpu_model/roofline.h"
#include "runtime/base/mem.h"
#include "runtime/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a kernel in a graph costs beside its work, fitted so that Llama 3.2 1B, one stream on an H100, reaches half of
 * the bandwidth, which is the most that vLLM and SGLang do (Hazy Research, "Look Ma, No Bubbles!", 2025-05-27). */
#define GAP_S 4.8e-6

struct options {
    const char *shape, *gpu, *weights, *kv;
    uint32_t ranks, clients, nodes, prompt, output, requests, context;
    double gap_s, seconds;
    bool own_all_reduce, json;
};

static int fail(const char *what)
{
    fprintf(stderr, "bench_gpu_model: %s\n", what);
    return 1;
}

/* ---- what is modelled ---- */

/* From the models' config.json files on the Hugging Face hub. */
static const struct shape {
    const char *name;
    uint32_t layers, width, heads, kv_heads, head_size, ff_width, vocab;
    bool tied;
} shapes[] = {
    {"llama3-8b", 32, 4096, 32, 8, 128, 14336, 128256, false},
    {"llama3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, true},
    {"qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936, false},
};

static bool spec_of(const char *name, struct model_spec *spec, struct error *err)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct shape *s = &shapes[i];
        if (strcmp(s->name, name) != 0) continue;
        *spec = (struct model_spec){.layers = s->layers,
                                    .width = s->width,
                                    .heads = s->heads,
                                    .kv_heads = s->kv_heads,
                                    .head_size = s->head_size,
                                    .ff_width = s->ff_width,
                                    .vocab = s->vocab,
                                    .tied_head = s->tied};
        return true;
    }
    struct model *model;
    if (model_open(name, &model, err) != ST_OK) return false;
    *spec = model->spec;
    model_close(model);
    return true;
}

static bool roofline_of(const struct options *o, struct roofline *model, struct error *err)
{
    const struct gpu *gpu = gpu_named(o->gpu);
    bool fp8 = !strcmp(o->weights, "fp8");
    *model = (struct roofline){.gpu = gpu,
                               .ranks = o->ranks,
                               .weight_bytes = fp8                         ? 1
                                               : !strcmp(o->weights, "w4") ? 0.625
                                                                           : 2,
                               .kv_bytes = !strcmp(o->kv, "fp8") ? 1 + 4.0 / 128 : 2,
                               .shares = roofline_goals,
                               .gap_s = o->gap_s,
                               .own_all_reduce = o->own_all_reduce};
    if (!gpu) {
        error_set(err, ST_INVAL, "--gpu %.20s is none of a100, h100, h200", o->gpu);
        return false;
    }
    return spec_of(o->shape, &model->spec, err);
}

static struct step_shape decode_shape(uint32_t seqs, uint32_t context)
{
    double positions = (double)seqs * context;
    return (struct step_shape){seqs, seqs, seqs, positions, positions, positions, positions};
}

/* ---- step ---- */

static int run_step(const struct options *o)
{
    struct roofline model;
    struct error err = {""};
    if (!roofline_of(o, &model, &err)) return fail(err.message);
    static const uint32_t batches[] = {1, 8, 16, 64, 256};
    printf("%s, %u x %s, weights %s, KV %s, context %u, gap %.1f us: predicted, not measured\n\n", o->shape, o->ranks,
           model.gpu->name, o->weights, o->kv, o->context, o->gap_s * 1e6);
    printf("%8s %10s %10s %12s %12s\n", "batch", "ms", "tok/s", "bytes GB", "of bandwidth");
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        struct roofline_row rows[NODE_COUNT];
        struct step_shape step = decode_shape(batches[i], o->context);
        double seconds = roofline_step(&model, &step, rows), bytes = 0;
        for (uint32_t n = 0; n < NODE_COUNT; n++) bytes += n == NODE_ALL_REDUCE ? 0 : rows[n].bytes;
        printf("%8u %10.3f %10.0f %12.2f %11.0f%%\n", batches[i], seconds * 1e3, batches[i] / seconds, bytes / 1e9,
               100 * bytes / seconds / model.gpu->bytes_per_s);
    }
    struct roofline_row rows[NODE_COUNT];
    struct step_shape step = decode_shape(64, o->context);
    double seconds = roofline_step(&model, &step, rows);
    printf("\nbatch 64 by kernel:\n%-16s %9s %10s %10s %10s %7s\n", "kernel", "launches", "MB", "GFLOP", "us", "share");
    for (uint32_t n = 0; n < NODE_COUNT; n++) {
        if (!rows[n].launches) continue;
        printf("%-16s %9u %10.1f %10.1f %10.1f %6.1f%%\n", roofline_node_names[n], rows[n].launches,
               rows[n].bytes / 1e6, rows[n].flops / 1e9, rows[n].seconds * 1e6, 100 * rows[n].seconds / seconds);
    }
    return 0;
}

/* ---- cluster ---- */

static double roofline_cost(const void *state, const struct step_shape *step)
{
    return roofline_step(state, step, NULL);
}

static struct cluster_request *make_requests(uint32_t count, uint32_t prompt, uint32_t output)
{
    struct cluster_request *requests = mem_alloc(count, sizeof *requests);
    for (uint32_t i = 0; requests && i < count; i++) {
        requests[i].prompt_count = prompt;
        requests[i].output_count = output;
    }
    return requests;
}

static struct sched_config limits_for(uint32_t clients, uint32_t context, uint32_t step_tokens, uint32_t blocks)
{
    uint32_t running = clients < 512 ? clients : 512;
    return (struct sched_config){.context_max = context,
                                 .running_max = running,
                                 .step_tokens_max = step_tokens,
                                 .rows_max = running,
                                 .kv_blocks = blocks,
                                 .queue_requests_max = clients + 16,
                                 .queue_tokens_max = UINT64_C(1) << 40,
                                 .tenants_max = 1,
                                 .tenant_share_percent = 100,
                                 .prefix_cache = true};
}

static int run_cluster(const struct options *o)
{
    struct roofline model;
    struct error err = {""};
    if (!roofline_of(o, &model, &err)) return fail(err.message);
    struct cluster_config config = {
        .nodes = o->nodes,
        .clients = o->clients,
        .sched = limits_for(o->clients, o->prompt + o->output, 2048, roofline_kv_blocks(&model, 0.92)),
        .window = model.spec.window,
        .step = roofline_cost,
        .step_state = &model};
    if (config.sched.kv_blocks * KV_BLOCK_TOKENS < o->prompt + o->output)
        return fail("the weights leave no room for one sequence: raise --ranks");
    struct cluster_request *requests = make_requests(o->requests, o->prompt, o->output);
    struct cluster_report report;
    if (!requests) return fail("no memory");
    enum status status = cluster_run(&config, requests, o->requests, &report, &err);
    mem_free(requests);
    if (status != ST_OK) return fail(err.message);
    double gpu_hours = report.seconds / 3600 * o->nodes * o->ranks, tokens = (double)report.output_tokens;
    printf("%s, %u nodes of %u x %s, %u clients, %u + %u tokens, %u requests: predicted, not measured\n", o->shape,
           o->nodes, o->ranks, model.gpu->name, o->clients, o->prompt, o->output, o->requests);
    printf("  %.0f output tok/s (%.0f a GPU), TTFT p50 %.1f ms p99 %.1f ms, ITL %.2f ms\n", tokens / report.seconds,
           tokens / report.seconds / o->nodes / o->ranks, report.ttft_p50_s * 1e3, report.ttft_p99_s * 1e3,
           report.itl_mean_s * 1e3);
    printf("  %.1f GPU-seconds a million output tokens, %llu steps, %llu preemptions\n",
           gpu_hours * 3600 / tokens * 1e6, (unsigned long long)report.steps, (unsigned long long)report.preemptions);
    if (o->json)
        printf("{\"predicted\":true,\"shape\":\"%s\",\"gpu\":\"%s\",\"ranks\":%u,\"nodes\":%u,\"clients\":%u,"
               "\"output_tok_s\":%.1f,\"ttft_p50_ms\":%.2f,\"ttft_p99_ms\":%.2f,\"itl_ms\":%.3f}\n",
               o->shape, model.gpu->name, o->ranks, o->nodes, o->clients, tokens / report.seconds,
               report.ttft_p50_s * 1e3, report.ttft_p99_s * 1e3, report.itl_mean_s * 1e3);
    return 0;
}

/* ---- check ---- */

/* Public figures: share of an H100's bandwidth that one stream of Llama 3.2 1B in BF16 reaches. */
static int run_check(const struct options *o)
{
    static const struct {
        const char *what;
        double gap_s, expected;
    } rows[] = {
        {"kernels in a graph (vLLM, SGLang: at most 50 %); the gap is fitted to this", GAP_S, 0.50},
        {"one persistent kernel (78 %): no gaps", 0, 0.78},
    };
    struct roofline model;
    struct error err = {""};
    struct options shape = *o;
    int code = 0;
    shape.shape = "llama3.2-1b";
    shape.gpu = "h100";
    if (!roofline_of(&shape, &model, &err)) return fail(err.message);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct roofline_row nodes[NODE_COUNT];
        struct step_shape step = decode_shape(1, 128);
        double bytes = 0;
        model.gap_s = rows[i].gap_s;
        double seconds = roofline_step(&model, &step, nodes);
        for (uint32_t n = 0; n < NODE_COUNT; n++) bytes += nodes[n].bytes;
        double share = bytes / seconds / model.gpu->bytes_per_s, ratio = share / rows[i].expected;
        printf("%-80s public %.2f, model %.2f, ratio %.2f\n", rows[i].what, rows[i].expected, share, ratio);
        if (fabs(ratio - 1) > 0.15) code = 1;
    }
    return code;
}

/* ---- validate ---- */

enum { CPU_SEQS = 64, CPU_CONTEXT = 1024, CPU_TOKENS = 512 };

static const struct load {
    uint32_t clients, prompt, output, requests;
} loads[] = {{1, 64, 64, 6}, {8, 128, 64, 32}, {32, 128, 64, 96}, {16, 512, 32, 48}, {64, 32, 96, 128}};
enum { LOADS = sizeof loads / sizeof *loads };

struct world {
    struct model *model;
    struct tokenizer *tokenizer;
    struct device *device;
};

static double rate(const struct cluster_report *report)
{
    return (double)(report->prompt_tokens + report->output_tokens) / report->seconds;
}

/* Two costs are one: the machine that a run met between two measurements was as fast as their mean. */
static struct cpu_cost mean_cost(const struct cpu_cost *a, const struct cpu_cost *b)
{
    struct cpu_cost mean = *a;
    for (uint32_t i = 0; i < COST_POINTS; i++) mean.base_s[i] = (a->base_s[i] + b->base_s[i]) / 2;
    mean.row_s = (a->row_s + b->row_s) / 2;
    mean.kv_s = (a->kv_s + b->kv_s) / 2;
    mean.pair_s = (a->pair_s + b->pair_s) / 2;
    return mean;
}

/* cost: of the device before; becomes that after. */
static enum status validate_load(const struct world *w, const struct load *load, double seconds, struct cpu_cost *cost,
                                 double *predicted, double *measured, struct error *err)
{
    struct cpu_cost during, after;
    struct cluster_config config = {
        .nodes = 1,
        .clients = load->clients,
        .sched =
            limits_for(load->clients < 16 ? 16 : load->clients, CPU_CONTEXT, CPU_TOKENS, w->device->info.kv_blocks),
        .window = w->model->spec.window,
        .step = cpu_cost_step,
        .step_state = &during,
    };
    struct cluster_request *requests = make_requests(load->requests, load->prompt, load->output);
    struct cluster_report real, virtual_time;
    if (!requests) return error_set(err, ST_NOMEM, "no memory");
    enum status status = closed_loop_run(&config, w->device, w->tokenizer, requests, load->requests, &real, err);
    if (status == ST_OK) status = cpu_cost_measure(w->device, seconds, &after, err);
    if (status == ST_OK) {
        during = mean_cost(cost, &after);
        *cost = after;
        status = cluster_run(&config, requests, load->requests, &virtual_time, err);
    }
    mem_free(requests);
    if (status != ST_OK) return status;
    *measured = rate(&real);
    *predicted = rate(&virtual_time);
    return ST_OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Rounds of: each load really, between two measurements of the device, then in virtual time with their mean; the median
 * ratio of the rounds. */
static int validate(const struct world *w, const struct options *o, struct error *err)
{
    enum { ROUNDS = 5 };
    double ratios[LOADS][ROUNDS], measured = 0, predicted = 0, last[LOADS];
    int code = 0;
    struct cpu_cost cost;
    if (cpu_cost_measure(w->device, o->seconds, &cost, err) != ST_OK) return fail(err->message);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < LOADS; i++) {
            if (validate_load(w, &loads[i], o->seconds, &cost, &predicted, &measured, err) != ST_OK)
                return fail(err->message);
            ratios[i][round] = predicted / measured;
            last[i] = measured;
        }
    }
    printf("%8s %8s %8s %16s %26s\n", "clients", "prompt", "output", "measured tok/s", "predicted / measured");
    for (uint32_t i = 0; i < LOADS; i++) {
        qsort(ratios[i], ROUNDS, sizeof **ratios, by_value);
        printf("%8u %8u %8u %16.0f %12.3f [%.3f..%.3f]\n", loads[i].clients, loads[i].prompt, loads[i].output, last[i],
               ratios[i][ROUNDS / 2], ratios[i][0], ratios[i][ROUNDS - 1]);
        if (fabs(ratios[i][ROUNDS / 2] - 1) > 0.10) code = 1;
    }
    printf("%s\n", code ? "not within 10 %: no GPU figure of this model may be quoted" : "within 10 %");
    if (!o->json) return code;
    printf("{\"rounds\":%d,\"loads\":[", ROUNDS);
    for (uint32_t i = 0; i < LOADS; i++)
        printf("%s{\"clients\":%u,\"prompt\":%u,\"output\":%u,\"measured_tok_s\":%.1f,\"ratio\":%.4f,\"low\":%.4f,"
               "\"high\":%.4f}",
               i ? "," : "", loads[i].clients, loads[i].prompt, loads[i].output, last[i], ratios[i][ROUNDS / 2],
               ratios[i][0], ratios[i][ROUNDS - 1]);
    printf("]}\n");
    return code;
}

static int run_validate(const struct options *o)
{
    struct world w = {0};
    struct error err = {""};
    struct device_config config = {.path = cpu_path_best(),
                                   .threads = 2,
                                   .tokens_max = CPU_TOKENS,
                                   .seqs_max = CPU_SEQS,
                                   .rows_max = CPU_SEQS,
                                   .context_max = CPU_CONTEXT};
    enum status status = model_open(o->shape, &w.model, &err);
    if (status == ST_OK) status = tokenizer_create(&w.model->vocab, &w.tokenizer, &err);
    if (status == ST_OK) {
        config.kv_bytes = (size_t)CPU_SEQS * CPU_CONTEXT / KV_BLOCK_TOKENS *
                          device_cpu_kv_block_bytes(&w.model->spec, config.numerics, false);
        status = device_cpu_create(w.model, &config, NULL, NULL, &w.device, &err);
    }
    int code = status == ST_OK ? validate(&w, o, &err) : fail(err.message);
    device_destroy(w.device);
    tokenizer_destroy(w.tokenizer);
    if (w.model) model_close(w.model);
    return code;
}

/* ---- the command line ---- */

static bool read_number(const char *name, const char *text, uint32_t *value)
{
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    if (*end || number < 1 || number > 10000000) {
        fprintf(stderr, "bench_gpu_model: %s %s: not a number from 1 to 10,000,000\n", name, text);
        return false;
    }
    *value = (uint32_t)number;
    return true;
}

static bool read_options(int argc, char **argv, struct options *o)
{
    const struct {
        const char *name;
        uint32_t *value;
    } numbers[] = {{"--ranks", &o->ranks},    {"--clients", &o->clients}, {"--nodes", &o->nodes},
                   {"--prompt", &o->prompt},  {"--output", &o->output},   {"--requests", &o->requests},
                   {"--context", &o->context}};
    const struct {
        const char *name, **value;
    } texts[] = {{"--gpu", &o->gpu}, {"--weights", &o->weights}, {"--kv", &o->kv}};
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i];
        bool known = false;
        if (!strcmp(name, "--json")) {
            o->json = true;
        } else if (!strcmp(name, "--own-all-reduce")) {
            o->own_all_reduce = true;
        } else if (name[0] != '-') {
            o->shape = name;
        } else if (i + 1 < argc) {
            const char *value = argv[++i];
            for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) {
                if (strcmp(name, numbers[n].name) != 0) continue;
                if (!read_number(name, value, numbers[n].value)) return false;
                known = true;
            }
            for (size_t n = 0; n < sizeof texts / sizeof *texts; n++) {
                if (!strcmp(name, texts[n].name)) *texts[n].value = value, known = true;
            }
            if (!strcmp(name, "--gap-us")) o->gap_s = strtod(value, NULL) * 1e-6, known = true;
            if (!strcmp(name, "--seconds")) o->seconds = strtod(value, NULL), known = true;
            if (!known) return fprintf(stderr, "bench_gpu_model: unknown option %s\n", name), false;
        } else {
            return fprintf(stderr, "bench_gpu_model: %s wants a value\n", name), false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options o = {.shape = "llama3-8b",
                        .gpu = "h100",
                        .weights = "bf16",
                        .kv = "bf16",
                        .ranks = 1,
                        .clients = 64,
                        .nodes = 1,
                        .prompt = 1024,
                        .output = 256,
                        .requests = 256,
                        .context = 1024,
                        .gap_s = GAP_S,
                        .seconds = 4};
    if (argc < 2 || !read_options(argc, argv, &o)) {
        fprintf(stderr, "usage: bench_gpu_model step|cluster|check|validate [SHAPE or MODEL] [options]\n");
        return 2;
    }
    if (!strcmp(argv[1], "step")) return run_step(&o);
    if (!strcmp(argv[1], "cluster")) return run_cluster(&o);
    if (!strcmp(argv[1], "check")) return run_check(&o);
    if (!strcmp(argv[1], "validate")) return run_validate(&o);
    return fail("the command is none of step, cluster, check, validate");
}
