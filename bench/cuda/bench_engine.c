/* Decode of the whole device on a random model of a known shape: tokens a second one step ahead, as the engine runs it,
 * beside what the roofline says of the same shape; host time of a launch, and how much of a step the host waits. */
#include "bench/cuda/bench_cuda.h"
#include "bench/cuda/random_model.h"
#include "bench/gpu_model/roofline.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/device/device_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct random_shape shapes[] = {
    {"llama3-8b", 32, 4096, 32, 8, 128, 14336, 128256, 8192},
    {"llama3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, 8192},
    {"tiny", 2, 128, 4, 2, 64, 256, 512, 256},
};

enum { SEQS_MAX = 256, TOKENS_MAX = 2048 };

static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};

struct run {
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    block_id *blocks;
    uint32_t context_max, vocab, streams;
};

static void fill(struct run *r, uint32_t first, uint32_t seqs, uint32_t position, uint32_t tokens_each, bool of_rows)
{
    struct batch *batch = r->batch;
    uint64_t rng = position + 1;
    batch->seqs_count = batch->rows_count = seqs;
    batch->tokens_count = seqs * tokens_each;
    batch->q_start[0] = 0;
    for (uint32_t s = 0; s < seqs; s++) {
        batch->q_start[s + 1] = (s + 1) * tokens_each;
        batch->kv_len[s] = position + tokens_each;
        batch->block_table[s] = r->blocks + (size_t)(first + s) * (r->context_max / KV_BLOCK_TOKENS);
        for (uint32_t i = 0; i < tokens_each; i++) {
            uint32_t n = s * tokens_each + i;
            batch->tokens[n] = of_rows ? TOKEN_OF_ROW | s : (uint32_t)(random_next(&rng) % r->vocab);
            batch->positions[n] = position + i;
            batch->seq_of_token[n] = s;
        }
        batch->rows[s] = (struct batch_row){
            .token = (s + 1) * tokens_each - 1, .params = &greedy, .position = position + tokens_each};
    }
}

static enum status write_context(struct run *r, uint32_t context)
{
    for (uint32_t s = 0; s < r->streams; s++) {
        for (uint32_t position = 0; position < context;) {
            uint32_t count = context - position < TOKENS_MAX ? context - position : TOKENS_MAX;
            if (count > r->device->info.tokens_max) count = r->device->info.tokens_max;
            fill(r, s, 1, position, count, false);
            TRY(device_step(r->device, r->batch, r->result));
            position += count;
        }
    }
    return ST_OK;
}

struct times {
    double wall_s, launch_s, wait_s; /* a step */
};

/* `steps` steps from position `context`, one ahead. */
static enum status decode(struct run *r, uint32_t context, uint32_t steps, struct times *times)
{
    const struct clock *clock = clock_system();
    uint64_t launch_ns = 0, wait_ns = 0, begin_ns = clock_now_ns(clock), at_ns;
    for (uint32_t i = 0; i <= steps; i++) {
        if (i < steps) {
            fill(r, 0, r->streams, context + i, 1, i > 0);
            at_ns = clock_now_ns(clock);
            TRY(device_launch(r->device, r->batch));
            launch_ns += clock_now_ns(clock) - at_ns;
        }
        if (i == 0) continue;
        at_ns = clock_now_ns(clock);
        TRY(device_collect(r->device, r->result));
        wait_ns += clock_now_ns(clock) - at_ns;
    }
    *times = (struct times){(double)(clock_now_ns(clock) - begin_ns) * 1e-9 / steps, (double)launch_ns * 1e-9 / steps,
                            (double)wait_ns * 1e-9 / steps};
    return ST_OK;
}

static const struct gpu *this_gpu(void)
{
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return NULL;
    return strstr(properties.name, "H100")   ? gpu_named("h100")
           : strstr(properties.name, "H200") ? gpu_named("h200")
           : strstr(properties.name, "A100") ? gpu_named("a100")
                                             : NULL;
}

static enum status measure(struct bench_cuda *bench, struct run *r, const struct model *model, const char *dtype,
                           uint32_t context, uint32_t steps)
{
    struct times times;
    TRY(write_context(r, context));
    TRY(decode(r, context, steps / 4 + 1, &times)); /* warm-up */
    TRY(decode(r, context, steps, &times));
    double rate = r->streams / times.wall_s, roofline = 0;
    const struct gpu *gpu = this_gpu();
    if (gpu) {
        struct roofline prediction = {.gpu = gpu,
                                      .spec = model->spec,
                                      .ranks = 1,
                                      .weight_bytes = !strcmp(dtype, "fp8") ? 1 : 2,
                                      .kv_bytes = 2,
                                      .shares = {1, 1, 1, 1, 1}};
        double positions = (double)r->streams * (context + steps / 2);
        struct step_shape step = {r->streams, r->streams, r->streams, positions, positions, positions, positions};
        roofline = r->streams / roofline_step(&prediction, &step, NULL);
    }
    printf("%8u streams %10.1f tok/s %8.3f ms a step, host %6.1f us a launch, waits %5.1f%%", r->streams, rate,
           times.wall_s * 1e3, times.launch_s * 1e6, 100 * times.wait_s / times.wall_s);
    if (roofline > 0) printf(", roofline %.0f tok/s: %.1f%%", roofline, 100 * rate / roofline);
    printf("\n");
    buf_append_format(bench->json,
                      ",\"decode_%s_%s_%u\":{\"tok_s\":%.2f,\"step_ms\":%.4f,\"launch_us\":%.2f,\"wait\":%.4f,"
                      "\"roofline_tok_s\":%.1f}",
                      model->spec.name, dtype, r->streams, rate, times.wall_s * 1e3, times.launch_s * 1e6,
                      times.wait_s / times.wall_s, roofline);
    return ST_OK;
}

static enum status run_streams(struct bench_cuda *bench, struct run *r, const struct model *model, const char *dtype)
{
    static const uint32_t streams[] = {1, 64, 256}, quick_streams[] = {1, 3};
    uint32_t count = bench->quick ? 2 : 3, context = bench->quick ? 20 : 1024;
    for (uint32_t i = 0; i < count; i++) {
        r->streams = bench->quick ? quick_streams[i] : streams[i];
        if ((uint64_t)r->streams * r->context_max / KV_BLOCK_TOKENS > r->device->info.kv_blocks) {
            printf("%8u streams do not fit into the KV cache\n", r->streams);
            continue;
        }
        TRY(measure(bench, r, model, dtype, context, bench->quick ? 4 : 200));
    }
    return ST_OK;
}

bool bench_cuda_engine(struct bench_cuda *bench, const char *shape, const char *dtype, bool graphs)
{
    const struct random_shape *chosen = NULL;
    struct error err = {""};
    struct model *model = NULL;
    struct run r = {.context_max = bench->quick ? 64 : 1280};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (!strcmp(shapes[i].name, shape)) chosen = &shapes[i];
    }
    if (!chosen) return fprintf(stderr, "bench_cuda: no shape %s\n", shape), false;
    struct device_cuda_config config = {.ranks = 1,
                                        .dtype = !strcmp(dtype, "fp8") ? CUDA_DTYPE_FP8 : CUDA_DTYPE_AUTO,
                                        .memory_utilization = 0.9,
                                        .graphs = graphs,
                                        .tokens_max = bench->quick ? 64 : TOKENS_MAX,
                                        .seqs_max = bench->quick ? 4 : SEQS_MAX,
                                        .rows_max = bench->quick ? 4 : SEQS_MAX,
                                        .context_max = r.context_max};
    enum status status = random_model_create(chosen, &model);
    if (status == ST_OK) status = device_cuda_create(model, &config, NULL, NULL, &r.device, &err);
    if (status == ST_OK) status = batch_create(config.tokens_max, config.seqs_max, config.rows_max, &r.batch);
    if (status == ST_OK) status = batch_result_create(config.rows_max, &r.result);
    if (status == ST_OK) {
        uint32_t blocks = config.seqs_max * (r.context_max / KV_BLOCK_TOKENS);
        r.blocks = mem_alloc(blocks, sizeof *r.blocks);
        for (uint32_t i = 0; r.blocks && i < blocks; i++) r.blocks[i] = i;
        r.vocab = model->spec.vocab;
        printf("%s, weights %s: %s\n", shape, dtype, r.device->info.name);
        status = r.blocks ? run_streams(bench, &r, model, dtype) : ST_NOMEM;
    }
    if (status != ST_OK) fprintf(stderr, "bench_cuda: %s %s\n", status_text(status), err.message);
    mem_free(r.blocks);
    batch_result_destroy(r.result);
    batch_destroy(r.batch);
    device_destroy(r.device);
    random_model_destroy(model);
    return status == ST_OK;
}
