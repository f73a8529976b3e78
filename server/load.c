/* Loading, step by step, with progress; see load.h. */
#include "server/load.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/device/device_cuda.h"
#include "runtime/device/device_ranks.h"
#include "server/machine.h"
#include "server/matmul_place.h"
#include "server/memory_plan.h"
#include "server/nodes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEMPLATE_BYTES_MAX = 1 << 20 };

struct progress {
    uint64_t start_ns, shown_ns;
    bool terminal;
};

static struct progress progress_start(void)
{
    uint64_t now_ns = clock_now_ns(clock_system());
    return (struct progress){now_ns, now_ns, isatty(STDERR_FILENO) != 0};
}

/* On a terminal a bar that is drawn again at most ten times a second; elsewhere nothing until the end. */
static void show_progress(void *state, size_t done_bytes, size_t total_bytes)
{
    struct progress *progress = state;
    uint64_t now_ns = clock_now_ns(clock_system());
    if (!progress->terminal || (done_bytes < total_bytes && now_ns - progress->shown_ns < NS_PER_S / 10)) return;
    progress->shown_ns = now_ns;
    double seconds = (double)(now_ns - progress->start_ns) / 1e9;
    int filled = total_bytes ? (int)((double)done_bytes * 40.0 / (double)total_bytes) : 40;
    fprintf(stderr, "\rloading [%.*s%*s] %3d %%  %.2f GB/s%s", filled, "########################################",
            40 - filled, "", filled * 100 / 40, seconds > 0 ? (double)done_bytes / seconds / 1e9 : 0.0,
            done_bytes >= total_bytes ? "\n" : "");
}

static enum status read_template_file(const char *path, struct buf *text, struct error *err)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return error_set(err, errno == ENOENT ? ST_NOTFOUND : ST_IO, "--chat-template %s: %s", path, strerror(errno));
    char piece[4096];
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, file)) > 0) buf_append(text, piece, n);
    bool failed = ferror(file) != 0;
    fclose(file);
    if (failed) return error_set(err, ST_IO, "--chat-template %s: cannot be read", path);
    if (!buf_ok(text))
        return error_set(err, ST_LIMIT, "--chat-template %s: larger than %d bytes", path, TEMPLATE_BYTES_MAX);
    return ST_OK;
}

static enum status compile_template(const struct config *config, struct loaded *loaded, struct error *err)
{
    struct error reason = {{0}};
    if (config->chat_template) {
        struct buf text;
        buf_init(&text, TEMPLATE_BYTES_MAX);
        enum status status = read_template_file(config->chat_template, &text, err);
        if (status == ST_OK &&
            chat_template_compile(text.data ? text.data : "", text.length, &loaded->chat_template, &reason) != ST_OK)
            status = error_set(err, ST_INVAL, "--chat-template %s: %.300s", config->chat_template, reason.message);
        buf_free(&text);
        return status;
    }
    if (!loaded->model->chat_template) return ST_OK;
    /* A model whose own template is beyond us still serves completions; chat then says why not. */
    if (chat_template_compile(loaded->model->chat_template, loaded->model->chat_template_length, &loaded->chat_template,
                              &reason) != ST_OK)
        log_line(LOG_WARN, "load",
                 "message=\"the model's chat template is not usable: %.300s; give one with --chat-template\"",
                 reason.message);
    return ST_OK;
}

uint64_t load_memory_limit(const struct config *config)
{
    return config->memory_limit_bytes ? config->memory_limit_bytes : machine_memory_bytes() / 10 * 9;
}

static bool is_exact(const struct config *config)
{
    return !strcmp(config->numerics, "exact");
}

static uint32_t ranks_of(const struct config *config)
{
    return config->tensor_parallel_size ? config->tensor_parallel_size : 1; /* tests leave it */
}

static uint32_t stages_of(const struct config *config)
{
    return config->pipeline_parallel_size ? config->pipeline_parallel_size : 1;
}

static bool is_kv_int8(const struct config *config)
{
    return !strcmp(config->kv_cache_dtype, "int8");
}

/* ---- which device ---- */

static const struct load_cuda *cuda_calls;

void load_set_cuda(const struct load_cuda *calls)
{
    cuda_calls = calls;
}

static enum status check_device_options(const struct config *config, bool cuda, struct error *err)
{
    const char *kv = config->kv_cache_dtype;
    if (cuda && (is_exact(config) || is_kv_int8(config)))
        return error_set(err, ST_INVAL, "%s is of the CPU device: leave it away, or give --device cpu",
                         is_exact(config) ? "--numerics exact" : "--kv-cache-dtype int8");
    if (!cuda && config->place.processes > 1)
        return error_set(err, ST_INVAL,
                         "%" PRIu32
                         " processes (by %s), but this runs on the CPU: only GPUs work together over several "
                         "processes; --nnodes 1 serves alone",
                         config->place.processes, config->place.source);
    if (!cuda && (!strcmp(kv, "fp8") || strcmp(config->dtype, "auto") != 0))
        return error_set(err, ST_INVAL, "--%s %s is of the CUDA device, and this runs on the CPU",
                         !strcmp(kv, "fp8") ? "kv-cache-dtype" : "dtype", !strcmp(kv, "fp8") ? kv : config->dtype);
    if (cuda && config->models.count > 1)
        return error_set(err, ST_INVAL, "--device cuda serves one model a process: start one for each");
    return ST_OK;
}

/* Options that only the CPU device knows decide for it. */
static bool wants_cpu(const struct config *config)
{
    return !strcmp(config->device, "cpu") ||
           (!strcmp(config->device, "auto") && (is_exact(config) || is_kv_int8(config) || config->models.count > 1));
}

/* Where the configuration's models run; a log line when --device auto found a GPU's driver or library missing. */
static enum status choose_device(const struct config *config, bool *on_cuda, struct error *err)
{
    static atomic_bool told;
    bool asked = !strcmp(config->device, "cuda");
    struct error reason = {""};
    uint32_t gpus;
    *on_cuda = false;
    if (wants_cpu(config) || (!cuda_calls && !asked)) return check_device_options(config, false, err);
    if (!cuda_calls) return error_set(err, ST_NOTFOUND, "--device cuda: this binary was built without the CUDA device");
    enum status status = cuda_calls->probe(&gpus, &reason);
    if (status != ST_OK && asked) return error_set(err, status, "--device cuda: %s", reason.message);
    if (status != ST_OK && !atomic_exchange(&told, true))
        log_line(LOG_INFO, "load", "device=cpu reason=\"%s\"", reason.message);
    *on_cuda = status == ST_OK;
    return check_device_options(config, *on_cuda, err);
}

static enum status find_context(const struct config *config, struct loaded *loaded, struct error *err)
{
    uint32_t trained = loaded->model->spec.context_max, asked = config->max_model_len;
    loaded->context_max = asked && asked < trained ? asked : trained;
    if (asked > trained && !config_takes_several(config)) /* else: at most this, of each */
        return error_set(err, ST_INVAL, "--max-model-len %" PRIu32 ": the model was trained for %" PRIu32 " tokens",
                         asked, trained);
    return ST_OK;
}

static enum status open_parts(const struct config *config, const char *path, struct loaded *loaded, struct error *err)
{
    if (is_exact(config) && strcmp(config->kv_cache_dtype, "auto") != 0)
        return error_set(err, ST_INVAL, "--kv-cache-dtype %s: exact numerics keep KV in f32; leave it at auto",
                         config->kv_cache_dtype);
    if (strlen(path) >= sizeof loaded->path)
        return error_set(err, ST_LIMIT, "the path of a model has more than %zu bytes", sizeof loaded->path - 1);
    memcpy(loaded->path, path, strlen(path) + 1);
    TRY(model_open(path, &loaded->model, err));
    TRY(tokenizer_create(&loaded->model->vocab, &loaded->tokenizer, err));
    TRY(compile_template(config, loaded, err));
    return find_context(config, loaded, err);
}

enum status load_open(const struct config *config, const char *path, struct loaded *loaded, struct load_need *need,
                      struct error *err)
{
    memset(loaded, 0, sizeof *loaded);
    *need = (struct load_need){0};
    enum status status = choose_device(config, &loaded->on_cuda, err);
    if (status == ST_OK) status = open_parts(config, path, loaded, err);
    if (status != ST_OK) {
        load_free(loaded);
        return status;
    }
    if (loaded->on_cuda) return ST_OK; /* its memory is the GPU's */
    enum numerics numerics = is_exact(config) ? NUMERICS_EXACT : NUMERICS_FAST;
    uint64_t block_bytes = device_ranks_kv_block_bytes(loaded->model, ranks_of(config), stages_of(config), numerics,
                                                       is_kv_int8(config), err);
    if (block_bytes == 0) { /* it does not divide into so many parts */
        load_free(loaded);
        return ST_INVAL;
    }
    need->weights_bytes = loaded->model->file_bytes;
    need->kv_least_bytes = block_bytes * kv_blocks_for(loaded->context_max);
    return ST_OK;
}

static enum status build_ranks(const struct config *config, const struct device_config *settings, struct loaded *loaded,
                               struct progress *progress, struct error *err)
{
    struct device_ranks_config ranks = {
        .device = *settings, .ranks = ranks_of(config), .stages = stages_of(config), .model_path = loaded->path};
    ranks.device.threads = settings->threads / ranks.ranks; /* those of a stage together: stages work by turns */
    if (ranks.device.threads == 0) ranks.device.threads = 1;
    return device_ranks_create(loaded->model, &ranks, show_progress, progress, &loaded->device, err);
}

/* Of a step, for either device. */
struct step_limits {
    uint32_t tokens_max, seqs_max;
};

static struct step_limits step_limits_of(const struct config *config)
{
    struct step_limits step = {.tokens_max = config->max_num_batched_tokens ? config->max_num_batched_tokens : 512,
                               .seqs_max = config->max_num_seqs ? config->max_num_seqs : 1};
    if (step.tokens_max < step.seqs_max) step.tokens_max = step.seqs_max; /* a token for each */
    return step;
}

/* place: filled here, and borrowed by the settings. */
static struct device_cuda_config cuda_settings(const struct config *config, const struct loaded *loaded,
                                               struct matmul_place *place)
{
    const char *dtype = config->dtype;
    struct step_limits step = step_limits_of(config);
    matmul_place_find(place, config->matmul_file, getenv("XDG_CACHE_HOME"), getenv("HOME"));
    if (place->homeless && !config->deterministic)
        log_line(LOG_WARN, "load",
                 "event=no_matmul_file effect=\"each start times cuBLASLt again\" "
                 "reason=\"neither XDG_CACHE_HOME nor HOME names a folder\"");
    return (struct device_cuda_config){
        .ranks = nodes_ranks(config),
        .stages = stages_of(config),
        .dtype = !strcmp(dtype, "fp8")    ? CUDA_DTYPE_FP8
                 : !strcmp(dtype, "bf16") ? CUDA_DTYPE_BF16
                                          : CUDA_DTYPE_AUTO,
        .kv_fp8 = !strcmp(config->kv_cache_dtype, "fp8"),
        .memory_utilization = config->gpu_memory_utilization,
        .graphs = !config->enforce_eager,
        .matmul_file = place->file,
        .matmul_folder = place->folder,
        .deterministic = config->deterministic,
        .tokens_max = step.tokens_max,
        .seqs_max = step.seqs_max,
        .rows_max = step.tokens_max,
        .context_max = loaded->context_max,
    };
}

/* Borrows all that it is given. */
static struct nodes_work work_of(const struct config *config, const struct loaded *loaded,
                                 const struct device_cuda_config *settings, struct progress *progress)
{
    return (struct nodes_work){.config = config,
                               .calls = cuda_calls,
                               .settings = settings,
                               .model = loaded->model,
                               .progress = show_progress,
                               .progress_state = progress};
}

static enum status build_cuda(const struct config *config, struct loaded *loaded, struct progress *progress,
                              struct error *err)
{
    struct matmul_place place;
    struct device_cuda_config settings = cuda_settings(config, loaded, &place);
    struct nodes_work work = work_of(config, loaded, &settings, progress);
    if (config->place.processes > 1) return nodes_lead(&work, &loaded->device, err);
    return cuda_calls->create(loaded->model, &settings, show_progress, progress, &loaded->device, err);
}

enum status load_follow(const struct config *config, struct loaded *loaded, bool (*stop)(void), struct error *err)
{
    struct progress progress = progress_start();
    struct matmul_place place;
    struct device_cuda_config settings = cuda_settings(config, loaded, &place);
    struct nodes_work work = work_of(config, loaded, &settings, &progress);
    work.stop = stop;
    enum status status = nodes_follow(&work, err);
    load_free(loaded);
    return status;
}

static enum status build_device(const struct config *config, uint64_t kv_bytes, struct loaded *loaded,
                                struct error *err)
{
    struct progress progress = progress_start();
    if (loaded->on_cuda) return build_cuda(config, loaded, &progress, err);
    struct step_limits step = step_limits_of(config);
    struct device_config settings = {
        .numerics = is_exact(config) ? NUMERICS_EXACT : NUMERICS_FAST,
        .kv_int8 = is_kv_int8(config),
        .threads = config->threads ? config->threads : machine_cores(),
        .kv_bytes = kv_bytes,
        .tokens_max = step.tokens_max,
        .seqs_max = step.seqs_max,
        .rows_max = step.tokens_max,
        .context_max = loaded->context_max,
    };
    TRY(cpu_path_parse(config->cpu_path, &settings.path, err));
    if (ranks_of(config) * stages_of(config) > 1) return build_ranks(config, &settings, loaded, &progress, err);
    return device_cpu_create(loaded->model, &settings, show_progress, &progress, &loaded->device, err);
}

enum status load_build(const struct config *config, uint64_t kv_bytes, struct loaded *loaded, struct error *err)
{
    uint64_t start_ns = clock_now_ns(clock_system());
    enum status status = build_device(config, kv_bytes, loaded, err);
    if (status != ST_OK) {
        load_free(loaded);
        return status;
    }
    model_release_file(loaded->model);
    const struct device_info *info = &loaded->device->info;
    log_line(LOG_INFO, "load",
             "model=\"%s\" arch=%s device=\"%s\" weights_bytes=%zu kv_blocks=%" PRIu32 " kv_bytes=%zu context=%" PRIu32
             " ms=%" PRIu64,
             loaded->model->spec.name, loaded->model->spec.arch, info->name, info->weights_bytes, info->kv_blocks,
             (size_t)info->kv_blocks * info->kv_block_bytes, loaded->context_max,
             (clock_now_ns(clock_system()) - start_ns) / NS_PER_MS);
    return ST_OK;
}

enum status load_model(const struct config *config, struct loaded *loaded, struct error *err)
{
    struct load_need need;
    TRY(load_open(config, config->model, loaded, &need, err));
    uint64_t kv_bytes = memory_kv_total(config->kv_cache_memory_bytes, load_memory_limit(config), need.weights_bytes,
                                        need.kv_least_bytes);
    enum status status = memory_divide(kv_bytes, &need.kv_least_bytes, 1, &kv_bytes, err);
    if (status == ST_OK) return load_build(config, kv_bytes, loaded, err);
    load_free(loaded);
    return status;
}

void load_free(struct loaded *loaded)
{
    device_destroy(loaded->device);
    chat_template_destroy(loaded->chat_template);
    tokenizer_destroy(loaded->tokenizer);
    model_close(loaded->model);
    memset(loaded, 0, sizeof *loaded);
}
