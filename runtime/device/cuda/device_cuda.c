/* The CUDA device's life, and its steps as the engine sees them: launch checks a batch, writes it into pinned memory
 * and tells the ranks; collect waits for them. The engine's thread makes no CUDA call here (G1), except that the probe
 * asks how many GPUs there are.
 *
 * A step counts as hung when it takes 20 times what steps like it took, and at least two seconds: then, as after any
 * error of a GPU, the device is lost. A lost device's memory stays as it is, since a thread may be inside a CUDA call
 * for ever; its process is about to end. */
#include "runtime/base/clock.h"
#include "runtime/base/cond.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/device/cuda/comm_nccl.h"
#include "runtime/device/cuda/cuda_ranks.h"
#include "runtime/model/model_stage.h"

#include <stdio.h>
#include <string.h>

enum { SMALL_STEP_TOKENS = 64, DEADLINE_FACTOR = 20 };
#define DEADLINE_NS_MIN (2 * NS_PER_S)
#define SUM_WAIT_NS     (60 * NS_PER_S) /* of a kernel for its peers; the step's deadline comes before */
#define DEADLINE_NS_FIRST                                                                                              \
    (120 * NS_PER_S) /* of a step whose like was not seen: kernels are loaded when first launched */

static struct device_cuda *abandoned; /* lost devices, kept because threads may still be in them */
static pthread_mutex_t abandoned_mutex = PTHREAD_MUTEX_INITIALIZER;

static struct device_cuda *of(struct device *device)
{
    return (struct device_cuda *)(void *)device;
}

enum status device_cuda_probe(uint32_t *gpus, struct error *err)
{
    int count = 0, major = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver)
        return error_set(err, ST_NOTFOUND, "no NVIDIA driver, or one older than CUDA %d.%d needs (CUDA error %d)",
                         CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, (int)error);
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count <= 0))
        return error_set(err, ST_NOTFOUND, "the NVIDIA driver sees no GPU");
    if (error != cudaSuccess)
        return error_set(err, ST_NOTFOUND, "CUDA cannot start: error %d (%s)", (int)error, cudaGetErrorString(error));
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (error != cudaSuccess || major < 8)
        return error_set(err, ST_NOTFOUND, "GPU 0 is too old: compute capability %d, 8.0 is the oldest", major);
    *gpus = (uint32_t)count;
    return ST_OK;
}

/* ---- steps ---- */

struct cuda_step_room cuda_step_room_for(const struct device_cuda *cuda, uint32_t tokens, uint32_t seqs, uint32_t rows)
{
    struct cuda_step_room room = {tokens, seqs, rows, 0};
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        uint32_t items = attention_plan_items_max(&cuda->ranks[r].attention_config, tokens, seqs);
        if (items > room.items) room.items = items;
    }
    return room;
}

static bool is_lost(const struct device_cuda *cuda)
{
    return atomic_load(&cuda->lost_now);
}

/* The same step for another rank, in pinned memory of its own: each rank writes its attention into it. */
static void give_step(struct cuda_generation *to, const struct cuda_generation *from)
{
    to->layout = from->layout;
    to->bytes = from->bytes;
    to->tokens = from->tokens;
    to->rows = from->rows;
    to->bucket = from->bucket;
    memcpy(to->host, from->host, from->bytes);
}

/* Rows that a token may name: of the step before, whose ids the GPUs keep. Whoever gives the steps has that one not
 * collected; a process that follows him may have, while it waited. */
static uint32_t previous_rows(const struct device_cuda *cuda)
{
    bool follows = cuda->config.share && cuda->config.share->rank_first > 0;
    if (cuda->launched == (follows ? 0 : cuda->collected)) return 0;
    return cuda->ranks[0].generations[(cuda->launched - 1) % GENERATIONS].rows;
}

static enum status launch(struct device *device, const struct batch *batch)
{
    struct device_cuda *cuda = of(device);
    if (is_lost(cuda)) return ST_DEVICE;
    if (cuda->launched - cuda->collected >= LAUNCHED_MAX) return ST_INVAL;
    uint32_t g = cuda->launched % GENERATIONS;
    struct cuda_rank *first = &cuda->ranks[0];
    struct cuda_generation *own = &first->generations[g];
    TRY(batch_check(&cuda->bounds.batch, batch, previous_rows(cuda), cuda->row_marks));
    uint32_t bucket = cuda_graph_bucket(cuda, batch);
    if (bucket < GRAPH_BUCKETS) {
        own->layout = first->graphs[bucket].layout;
    } else {
        struct cuda_step_room room =
            cuda_step_room_for(cuda, batch->tokens_count, batch->seqs_count, batch->rows_count);
        cuda_step_layout_make(&cuda->bounds, room, &own->layout);
    }
    TRY(cuda_step_fill(&cuda->bounds, &own->layout, batch, own->host, &own->bytes));
    own->tokens = batch->tokens_count;
    own->rows = batch->rows_count;
    own->bucket = bucket;
    for (uint32_t r = 1; r < cuda->ranks_count; r++) give_step(&cuda->ranks[r].generations[g], own);
    cuda->launch_ns[g] = clock_now_ns(clock_system());
    cuda->launched++;
    cuda_ranks_tell(cuda, RANK_LAUNCH, g);
    return ST_OK;
}

/* How long a step may take, from when the one before had finished. */
static uint64_t allowed_ns(const struct device_cuda *cuda, uint32_t tokens)
{
    uint64_t least_ns = cuda->config.step_deadline_ns ? cuda->config.step_deadline_ns : DEADLINE_NS_MIN;
    bool small = tokens <= SMALL_STEP_TOKENS;
    uint64_t known_ns = small ? cuda->step_ns : cuda->token_ns * tokens;
    uint64_t ns = known_ns ? DEADLINE_FACTOR * known_ns : DEADLINE_NS_FIRST;
    return ns > least_ns ? ns : least_ns;
}

/* Rises at once, falls slowly. */
static uint64_t follow(uint64_t known_ns, uint64_t ns)
{
    return ns > known_ns ? ns : known_ns - (known_ns - ns) / 64;
}

static void note_step(struct device_cuda *cuda, uint32_t tokens, uint64_t begin_ns)
{
    cuda->finished_ns = clock_now_ns(clock_system());
    uint64_t took_ns = cuda->finished_ns - begin_ns;
    if (tokens > SMALL_STEP_TOKENS) {
        cuda->token_ns = follow(cuda->token_ns, took_ns / tokens + 1);
    } else if (tokens) {
        cuda->step_ns = follow(cuda->step_ns, took_ns);
    }
}

/* Where ranks of other processes take part: are these still there? */
static void ask_share(void *state)
{
    struct device_cuda *cuda = state;
    const struct device_share *share = cuda->config.share;
    struct error err = {""};
    if (share && !is_lost(cuda) && share->check(share->state, &err) != ST_OK)
        device_cuda_lose(cuda, ST_DEVICE, "%s", err.message);
}

/* NVML's thread may have seen what no step has met yet, or another process be gone. */
static bool has_gone(struct device *device)
{
    ask_share(of(device));
    return is_lost(of(device));
}

/* Every 100 ms of a wait: NCCL, or another process, knows that a rank is gone before the deadline does. */
static void ask_comms(void *state)
{
    struct device_cuda *cuda = state;
    ask_share(cuda);
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        struct error err = {""};
        if (is_lost(cuda) || cuda_rank_check(&cuda->ranks[r], &err) == ST_OK) continue;
        device_cuda_lose(cuda, ST_DEVICE, "%s%s", cuda->ranks[r].label, err.message);
    }
}

static enum status collect(struct device *device, struct batch_result *result)
{
    struct device_cuda *cuda = of(device);
    if (is_lost(cuda)) return ST_DEVICE;
    if (cuda->launched == cuda->collected) return ST_INVAL;
    uint32_t g = cuda->collected % GENERATIONS;
    const struct cuda_generation *own = &cuda->ranks[0].generations[g];
    uint64_t begin_ns = cuda->launch_ns[g] > cuda->finished_ns ? cuda->launch_ns[g] : cuda->finished_ns;
    uint64_t limit_ns = allowed_ns(cuda, own->tokens);
    cuda_ranks_tell(cuda, RANK_COLLECT, g);
    enum status status = cuda_ranks_wait(cuda, begin_ns + limit_ns, cuda->ranks_all > 1 ? ask_comms : NULL, cuda);
    if (status == ST_TIMEOUT) {
        device_cuda_lose(cuda, ST_DEVICE, "a step of %u tokens did not end within %llu ms", own->tokens,
                         (unsigned long long)(limit_ns / NS_PER_MS));
    }
    if (status != ST_OK) return ST_DEVICE;
    cuda->collected++;
    note_step(cuda, own->tokens, begin_ns);
    memcpy(result->rows, own->results, own->rows * sizeof *own->results);
    return ST_OK;
}

/* ---- life ---- */

static void free_ranks(struct device_cuda *cuda)
{
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        if (cuda->ranks[r].part) model_close(cuda->ranks[r].part);
        cuda->ranks[r].part = NULL;
    }
}

static void destroy(struct device *device)
{
    struct device_cuda *cuda = of(device);
    cuda_watch_stop(cuda);
    if (!is_lost(cuda)) cuda_ranks_tell(cuda, RANK_CLOSE, 0);
    bool ended = cuda_ranks_end(cuda);
    if (!ended || (is_lost(cuda) && cuda->failure == ST_DEVICE)) {
        pthread_mutex_lock(&abandoned_mutex);
        cuda->abandoned_next = abandoned;
        abandoned = cuda;
        pthread_mutex_unlock(&abandoned_mutex);
        return;
    }
    free_ranks(cuda);
    pthread_cond_destroy(&cuda->to_host);
    pthread_cond_destroy(&cuda->to_ranks);
    pthread_mutex_destroy(&cuda->mutex);
    mem_free(cuda->row_marks);
    mem_free(cuda->ranks);
    mem_free(cuda);
}

static enum status check_model(const struct model_spec *s, struct error *err)
{
    TRY(model_spec_check(s, err));
    uint32_t D = s->head_size;
    if (D != 64 && D != 96 && D != 128 && D != 256)
        return error_set(err, ST_INVAL, "heads of %u values: the CUDA device has attention for 64, 96, 128 and 256", D);
    if (s->width % 8) return error_set(err, ST_INVAL, "a width of %u: the CUDA device takes multiples of 8", s->width);
    return ST_OK;
}

/* No stage has ranks both here and in other processes. */
static bool stages_are_here(const struct device_cuda_config *config)
{
    const struct device_share *share = config->share;
    uint32_t ranks = share ? share->ranks_all / (config->stages ? config->stages : 1) : 1;
    return !share || (ranks && share->rank_first % ranks == 0 && config->ranks % ranks == 0);
}

static enum status check_config(const struct device_cuda_config *config, struct error *err)
{
    if (config->ranks == 0 || config->ranks > CUDA_RANKS_MAX)
        return error_set(err, ST_INVAL, "%u GPUs: 1 to %d can work on a model", config->ranks, CUDA_RANKS_MAX);
    if (!config->tokens_max || !config->seqs_max || !config->rows_max || !config->context_max)
        return error_set(err, ST_INVAL, "tokens_max, seqs_max, rows_max and context_max must be at least 1");
    if (!(config->memory_utilization > 0 && config->memory_utilization <= 1))
        return error_set(err, ST_INVAL, "memory utilization is %g, must be in (0, 1]", config->memory_utilization);
    const struct device_share *share = config->share;
    if (share && (share->ranks_all > MODEL_RANKS_MAX || share->rank_first + config->ranks > share->ranks_all))
        return error_set(err, ST_INVAL, "ranks %u to %u of %u: there can be at most %d", share->rank_first,
                         share->rank_first + config->ranks - 1, share->ranks_all, MODEL_RANKS_MAX);
    uint32_t all = share ? share->ranks_all : config->ranks, stages = config->stages ? config->stages : 1;
    if (all % stages) return error_set(err, ST_INVAL, "%u GPUs do not divide into %u stages", all, stages);
    if (config->deterministic && !stages_are_here(config))
        return error_set(err, ST_INVAL,
                         "--deterministic sums over GPUs in one machine's memory; over several processes NCCL adds, in "
                         "an order of its own: leave one of them away");
    return ST_OK;
}

/* What a library lacks is told once; only NCCL cannot be done without. */
static enum status open_libraries(struct device_cuda *cuda, struct error *err)
{
    struct error reason = {""};
    if (cuda->config.libraries) {
        cuda->libraries = *cuda->config.libraries;
    } else {
        if (!cuda->config.deterministic && cuda_api_cublaslt(&cuda->libraries.cublaslt, &reason) != ST_OK)
            log_line(LOG_WARN, "cuda", "event=no_cublaslt effect=\"prefill by our own kernels\" reason=\"%s\"",
                     reason.message);
        if (nvml_api_open(&cuda->libraries.nvml, &reason) != ST_OK)
            log_line(LOG_WARN, "cuda", "event=no_nvml effect=\"hardware errors show in steps alone\" reason=\"%s\"",
                     reason.message);
        if (cuda->ranks_all > 1) TRY(cuda_api_nccl(&cuda->libraries.nccl, err));
    }
    if (cuda->config.deterministic) cuda->libraries.cublaslt = NULL;
    if (cuda->ranks_all == 1) return ST_OK;
    if (!cuda->libraries.nccl) return error_set(err, ST_NOTFOUND, "several GPUs need NCCL");
    if (cuda->config.share) {
        memcpy(&cuda->nccl_id, cuda->config.share->id, sizeof cuda->nccl_id);
        return ST_OK;
    }
    if (cuda->libraries.nccl->id(&cuda->nccl_id) != NCCL_SUCCESS) return error_set(err, ST_DEVICE, "NCCL gives no id");
    return ST_OK;
}

enum status device_cuda_nccl_id(const struct cuda_libraries *libraries, uint8_t id[DEVICE_SHARE_ID_BYTES],
                                struct error *err)
{
    const struct nccl_table *nccl = libraries ? libraries->nccl : NULL;
    struct nccl_id made;
    if (!libraries) TRY(cuda_api_nccl(&nccl, err));
    if (!nccl) return error_set(err, ST_NOTFOUND, "several GPUs need NCCL");
    if (nccl->id(&made) != NCCL_SUCCESS) return error_set(err, ST_DEVICE, "NCCL gives no id");
    memcpy(id, &made, sizeof made);
    return ST_OK;
}

static enum status divide_model(struct device_cuda *cuda, struct error *err)
{
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        struct cuda_rank *rank = &cuda->ranks[r];
        rank->device = cuda;
        rank->rank = cuda->rank_first + r;
        rank->gpu = (int)(cuda->config.first_gpu + r);
        if (cuda->ranks_count > 1) snprintf(rank->label, sizeof rank->label, "GPU %d: ", rank->gpu);
        rank->model = cuda->model;
        rank->vocab_stride = (cuda->spec.vocab + 63) / 64 * 64;
        rank->experts_end = cuda->spec.experts;
        if (cuda->ranks_all > 1) {
            struct model_place place = model_place_of(rank->rank, cuda_ranks_of_stage(cuda), cuda->stages);
            TRY(model_divide(cuda->model, place, &rank->part, err));
            rank->model = rank->part;
            rank->stage = place.stage;
            rank->vocab_begin = rank->part->part.vocab_begin;
            rank->vocab_stride = rank->part->part.vocab_stride;
            rank->experts_begin = rank->part->part.experts_begin;
            rank->experts_end = rank->part->part.experts_end;
        }
        rank->spec = rank->model->spec;
    }
    return ST_OK;
}

static enum status make_locks(struct device_cuda *cuda, struct error *err)
{
    bool made = !pthread_mutex_init(&cuda->mutex, NULL) && cond_init(&cuda->to_ranks) && cond_init(&cuda->to_host);
    return made ? ST_OK : error_set(err, ST_NOMEM, "no memory for the device");
}

struct loading_progress {
    struct device_cuda *cuda;
    device_progress_fn progress;
    void *state;
};

/* Every 100 ms while the ranks are at it. */
static void show_progress(void *state)
{
    const struct loading_progress *loading = state;
    ask_share(loading->cuda);
    size_t done_bytes = 0, total_bytes = loading->cuda->model->file_bytes;
    for (uint32_t r = 0; r < loading->cuda->ranks_count; r++)
        done_bytes += atomic_load_explicit(&loading->cuda->ranks[r].loaded_bytes, memory_order_relaxed);
    if (done_bytes > total_bytes) total_bytes = done_bytes;
    if (loading->progress) loading->progress(loading->state, done_bytes, total_bytes);
}

/* Tells the ranks and waits; their reason becomes ours. */
static enum status have_done(struct device_cuda *cuda, enum rank_command command, struct loading_progress *loading,
                             struct error *err)
{
    cuda_ranks_tell(cuda, command, 0);
    enum status status = loading ? cuda_ranks_wait(cuda, UINT64_MAX, show_progress, loading)
                                 : cuda_ranks_wait(cuda, UINT64_MAX, ask_share, cuda);
    return status == ST_OK ? ST_OK : error_set(err, status, "%s", cuda->reason.message);
}

static void describe(struct device_cuda *cuda)
{
    struct device_info *info = &cuda->device.info;
    const struct cuda_rank *first = &cuda->ranks[0];
    info->kv_blocks = first->kv_blocks_fit;
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        const struct cuda_rank *rank = &cuda->ranks[r];
        if (rank->kv_blocks_fit < info->kv_blocks) info->kv_blocks = rank->kv_blocks_fit;
        info->kv_block_bytes += rank->block_bytes;
        info->weights_bytes += rank->weights.bytes;
        info->scratch_bytes += rank->space_bytes;
    }
    if (cuda->stages > 1) {
        snprintf(info->name, sizeof info->name, "cuda %.20s, %u GPUs, %u stages", first->name, cuda->ranks_count,
                 cuda->stages);
    } else if (cuda->ranks_count > 1) {
        snprintf(info->name, sizeof info->name, "cuda %.40s, %u GPUs", first->name, cuda->ranks_count);
    } else {
        snprintf(info->name, sizeof info->name, "cuda %.40s", first->name);
    }
}

/* Tells every rank where the others' parts of sums are pushed; without peer access NCCL makes all sums. */
static void join_peers(struct device_cuda *cuda)
{
    bool all = true;
    uint32_t ranks = cuda_ranks_of_stage(cuda);
    if (!cuda->stages_here || ranks == 1) return; /* other machines' memory cannot be reached */
    for (uint32_t r = 0; r < cuda->ranks_count; r++) all = all && cuda->ranks[r].reaches_peers;
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        struct cuda_rank *rank = &cuda->ranks[r];
        struct cuda_all_reduce *reduce = &rank->reduce;
        const struct cuda_rank *peers = &cuda->ranks[r / ranks * ranks]; /* its stage's */
        reduce->rank = r % ranks;
        reduce->ranks = ranks;
        reduce->epochs = rank->space.part_epochs;
        reduce->stop = rank->stop;
        reduce->wait_ns_max = SUM_WAIT_NS;
        if (!all) reduce->slot_values = 0;
        for (uint32_t peer = 0; peer < ranks; peer++) {
            reduce->buffers[peer] = peers[peer].space.parts;
            reduce->flags[peer] = peers[peer].space.part_flags;
        }
    }
}

static enum status build(struct device_cuda *cuda, device_progress_fn progress, void *progress_state, struct error *err)
{
    struct device_info *info = &cuda->device.info;
    struct loading_progress loading = {cuda, progress, progress_state};
    const struct device_cuda_config *config = &cuda->config;
    *info = (struct device_info){.vocab = cuda->spec.vocab,
                                 .tokens_max = config->tokens_max,
                                 .seqs_max = config->seqs_max,
                                 .rows_max = config->rows_max};
    struct batch_bounds bounds = {.tokens_max = config->tokens_max,
                                  .seqs_max = config->seqs_max,
                                  .rows_max = config->rows_max,
                                  .context_max = config->context_max,
                                  .vocab = cuda->spec.vocab};
    cuda->bounds = (struct cuda_step_bounds){bounds, LOGIT_ROWS, cuda_step_lists_max(&bounds)};
    for (uint32_t l = 0; l < cuda->spec.layers; l++) {
        if (cuda->spec.layer_flags[l] & LAYER_WINDOWED) cuda->windowed = true;
    }
    TRY(open_libraries(cuda, err));
    TRY(divide_model(cuda, err));
    TRY(cuda_ranks_start(cuda, err));
    TRY(have_done(cuda, RANK_OPEN, NULL, err));
    TRY(cuda_watch_start(cuda, err));
    TRY(have_done(cuda, RANK_LOAD, &loading, err));
    describe(cuda);
    if (config->share) TRY(config->share->agree(config->share->state, &info->kv_blocks, err));
    cuda->bounds.batch.kv_blocks = info->kv_blocks;
    join_peers(cuda);
    TRY(have_done(cuda, RANK_PREPARE, NULL, err));
    free_ranks(cuda);
    show_progress(&loading);
    return ST_OK;
}

enum status device_cuda_create(const struct model *model, const struct device_cuda_config *config,
                               device_progress_fn progress, void *progress_state, struct device **device,
                               struct error *err)
{
    static const struct device_ops ops = {
        .destroy = destroy, .launch = launch, .collect = collect, .is_lost = has_gone};
    uint32_t gpus = 0;
    TRY(check_config(config, err));
    TRY(check_model(&model->spec, err));
    TRY(device_cuda_probe(&gpus, err));
    if (config->ranks > gpus || config->first_gpu > gpus - config->ranks)
        return error_set(err, ST_NOTFOUND, "GPUs %u to %u were asked for, and there are %u", config->first_gpu,
                         config->first_gpu + config->ranks - 1, gpus);
    struct device_cuda *cuda = mem_alloc(1, sizeof *cuda);
    struct cuda_rank *ranks = mem_alloc(config->ranks, sizeof *ranks);
    uint8_t *marks = mem_alloc(config->rows_max, 1);
    if (!cuda || !ranks || !marks || make_locks(cuda, err) != ST_OK) {
        mem_free(marks);
        mem_free(ranks);
        mem_free(cuda);
        return error_set(err, ST_NOMEM, "no memory for the device");
    }
    cuda->device.ops = &ops;
    cuda->config = *config;
    cuda->model = model;
    cuda->spec = model->spec;
    cuda->ranks_count = cuda->ranks_all = config->ranks;
    if (config->share) cuda->rank_first = config->share->rank_first;
    if (config->share) cuda->ranks_all = config->share->ranks_all;
    cuda->stages = config->stages ? config->stages : 1;
    cuda->stages_here = stages_are_here(config);
    cuda->ranks = ranks;
    cuda->row_marks = marks;
    enum status status = build(cuda, progress, progress_state, err);
    cuda->model = NULL;
    if (status != ST_OK) {
        destroy(&cuda->device);
        return status;
    }
    *device = &cuda->device;
    return ST_OK;
}
