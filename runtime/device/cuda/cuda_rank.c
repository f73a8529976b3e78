/* A GPU's thread: it alone calls CUDA for its GPU (G1), command by command, in the order in which they were told.
 *
 *   engine    launch 1   launch 2   collect 1          launch 3   collect 2
 *   rank      LAUNCH 1   LAUNCH 2   COLLECT 1 (waits)  LAUNCH 3   COLLECT 2
 *
 * The engine's thread waits on a condition variable with a deadline, so a GPU that hangs costs a thread and not the
 * server. A command that fails loses the device; after that a rank's thread frees what it has only if the GPU is sound
 * (memory that did not fit while loading), and otherwise makes no further call (G4). */
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/cond.h"
#include "runtime/device/cuda/comm_nccl.h"
#include "runtime/device/cuda/cuda_ranks.h"

#include <stdio.h>
#include <string.h>

enum { IDLE_NS = 100000000, END_WAIT_NS = 1000000000 };

enum status cuda_rank_check(const struct cuda_rank *rank, struct error *err)
{
    if (rank->comm) TRY(comm_nccl_check(rank->comm, err));
    return rank->line ? comm_nccl_check(rank->line, err) : ST_OK;
}

/* ---- commands ---- */

/* Learns what the sizes of a step depend on. */
static enum status open_gpu(struct cuda_rank *rank, struct error *err)
{
    struct cudaDeviceProp properties;
    const struct device_cuda_config *config = &rank->device->config;
    CUDA_TRY(cudaSetDevice(rank->gpu), "choosing the GPU", err);
    CUDA_TRY(cudaGetDeviceProperties(&properties, rank->gpu), "asking the GPU", err);
    if (properties.major < 8) {
        return error_set(err, ST_NOTFOUND, "%s is too old: compute capability %d.%d, 8.0 is the oldest",
                         properties.name, properties.major, properties.minor);
    }
    snprintf(rank->name, sizeof rank->name, "%s", properties.name);
    snprintf(rank->pci, sizeof rank->pci, "%04x:%02x:%02x.0", (unsigned)properties.pciDomainID & 0xffff,
             (unsigned)properties.pciBusID & 0xff, (unsigned)properties.pciDeviceID & 0xff);
    rank->sms = (uint32_t)properties.multiProcessorCount;
    rank->attention_config = (struct attention_plan_config){.tokens_max = config->tokens_max,
                                                            .seqs_max = config->seqs_max,
                                                            .context_max = config->context_max,
                                                            .H = rank->spec.heads,
                                                            .KH = rank->spec.kv_heads,
                                                            .D = rank->spec.head_size,
                                                            .grid = 2 * rank->sms};
    CUDA_TRY(cudaStreamCreateWithFlags(&rank->stream, cudaStreamNonBlocking), "making a stream", err);
    return ST_OK;
}

/* Of the comms of this rank's stage and of its line, over the one of all ranks: the first rank of each makes its id. */
static enum status hand_on_ids(struct cuda_rank *rank, struct nccl_id *of_stage, struct nccl_id *of_line,
                               struct error *err)
{
    const struct device_cuda *cuda = rank->device;
    const struct nccl_table *nccl = cuda->libraries.nccl;
    uint32_t ranks = cuda_ranks_of_stage(cuda), place = rank->rank % ranks;
    struct nccl_id own[2];
    uint8_t *memory = NULL;
    memset(own, 0, sizeof own);
    if ((place == 0 && nccl->id(&own[0]) != NCCL_SUCCESS) || (rank->stage == 0 && nccl->id(&own[1]) != NCCL_SUCCESS))
        return error_set(err, ST_DEVICE, "NCCL gives no id");
    CUDA_TRY(cudaMalloc((void **)&memory, (cuda->ranks_all + 1) * sizeof own), "taking memory for ids", err);
    const uint8_t *of_place = memory + (1 + place) * sizeof own;
    const uint8_t *of_first = memory + (1 + rank->stage * ranks) * sizeof own;
    CUDA_TRY(cudaMemcpyAsync(memory, own, sizeof own, cudaMemcpyHostToDevice, rank->stream), "copying ids", err);
    if (comm_gather(rank->all, memory, sizeof own, memory + sizeof own, COMM_ALL, rank->stream) != ST_OK)
        return error_set(err, ST_DEVICE, "the ranks do not meet");
    CUDA_TRY(cudaMemcpyAsync(of_stage, of_first, sizeof *of_stage, cudaMemcpyDeviceToHost, rank->stream), "copying ids",
             err);
    CUDA_TRY(
        cudaMemcpyAsync(of_line, of_place + sizeof *of_stage, sizeof *of_line, cudaMemcpyDeviceToHost, rank->stream),
        "copying ids", err);
    CUDA_TRY(cudaStreamSynchronize(rank->stream), "copying ids", err);
    CUDA_TRY(cudaFree(memory), "giving memory back", err);
    return ST_OK;
}

/* A comm of the ranks of each stage, and one of each rank's stages: one of all where there is nothing else. */
static enum status open_comms(struct cuda_rank *rank, struct error *err)
{
    struct device_cuda *cuda = rank->device;
    const struct nccl_table *nccl = cuda->libraries.nccl;
    uint32_t ranks = cuda_ranks_of_stage(cuda);
    struct comm **first = cuda->stages == 1 ? &rank->comm : ranks == 1 ? &rank->line : &rank->all;
    struct nccl_id of_stage, of_line;
    if (cuda->ranks_all == 1) return ST_OK;
    TRY(comm_nccl_create(nccl, &cuda->nccl_id, rank->rank, cuda->ranks_all, &cuda->lost_now, first, err));
    if (!rank->all) return ST_OK;
    TRY(hand_on_ids(rank, &of_stage, &of_line, err));
    TRY(comm_nccl_create(nccl, &of_stage, rank->rank % ranks, ranks, &cuda->lost_now, &rank->comm, err));
    return comm_nccl_create(nccl, &of_line, rank->stage, cuda->stages, &cuda->lost_now, &rank->line, err);
}

/* Opens the memory of the stage's other GPUs to this one. */
static enum status open_peers(struct cuda_rank *rank, struct error *err)
{
    const struct device_cuda *cuda = rank->device;
    rank->reaches_peers = true;
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        int can = 0;
        if (&cuda->ranks[r] == rank || cuda->ranks[r].stage != rank->stage) continue;
        CUDA_TRY(cudaDeviceCanAccessPeer(&can, rank->gpu, cuda->ranks[r].gpu), "asking for peers", err);
        if (!can) rank->reaches_peers = false;
        if (!can) continue;
        cudaError_t error = cudaDeviceEnablePeerAccess(cuda->ranks[r].gpu, 0);
        if (error == cudaErrorPeerAccessAlreadyEnabled) {
            (void)cudaGetLastError();
            error = cudaSuccess;
        }
        CUDA_TRY(error, "opening a peer's memory", err);
    }
    return ST_OK;
}

static enum status load(struct cuda_rank *rank, struct error *err)
{
    struct device_cuda *cuda = rank->device;
    TRY(open_comms(rank, err));
    if (rank->comm && cuda->stages_here) TRY(open_peers(rank, err));
    TRY(cuda_weights_load(rank, err));
    TRY(cuda_matmul_open(rank, err));
    enum status status = attention_plan_create(&rank->attention_config, &rank->attention);
    if (status != ST_OK) return error_set(err, status, "planning attention: %s", status_text(status));
    TRY(cuda_memory_take_space(rank, err));
    TRY(cuda_matmul_prepare(rank, err));
    return cuda_memory_fit_kv(rank, err);
}

static enum status prepare(struct cuda_rank *rank, struct error *err)
{
    TRY(cuda_memory_take_kv(rank, rank->device->device.info.kv_blocks, err));
    if (rank->device->config.graphs) TRY(cuda_graphs_capture(rank, err));
    CUDA_TRY(cudaStreamSynchronize(rank->stream), "preparing", err);
    return ST_OK;
}

/* This rank's share of attention, in the step's middle. */
static void plan_attention(struct cuda_rank *rank, struct cuda_generation *generation)
{
    const struct cuda_step_layout *layout = &generation->layout;
    struct cuda_step step = cuda_step_at(layout, generation->host);
    struct cuda_step_header *header = (struct cuda_step_header *)(void *)generation->host;
    for (uint32_t i = 0; i < (rank->device->windowed ? 2 : 1); i++) {
        header->items[i] =
            attention_plan_make(rank->attention, header->seqs, step.q_start, step.kv_len, i ? rank->spec.window : 0,
                                (struct attention_item *)(void *)(generation->host + layout->items[i]));
        CHECK(header->items[i] <= layout->room.items);
    }
}

static enum status launch(struct cuda_rank *rank, uint32_t g, struct error *err)
{
    struct cuda_generation *own = &rank->generations[g];
    if (own->tokens) {
        plan_attention(rank, own);
        CUDA_TRY(cudaMemcpyAsync(rank->space.step, own->host, own->bytes, cudaMemcpyHostToDevice, rank->stream),
                 "copying a step to the GPU", err);
        if (own->bucket < GRAPH_BUCKETS) {
            CUDA_TRY(cudaGraphLaunch(rank->graphs[own->bucket].exec, rank->stream), "launching a graph", err);
        } else {
            TRY(cuda_run_layers(rank, &own->layout, own->tokens, own->rows, err));
        }
        if (own->rows && rank == &rank->device->ranks[0]) {
            CUDA_TRY(cudaMemcpyAsync(own->results, rank->space.results, own->rows * sizeof *own->results,
                                     cudaMemcpyDeviceToHost, rank->stream),
                     "copying results", err);
        }
    }
    CUDA_TRY(cudaEventRecord(own->done, rank->stream), "recording a step's end", err);
    return ST_OK;
}

static enum status collect(struct cuda_rank *rank, uint32_t g, struct error *err)
{
    CUDA_TRY(cudaEventSynchronize(rank->generations[g].done), "waiting for a step", err);
    uint32_t stop = rank->stop ? __atomic_load_n(rank->stop, __ATOMIC_ACQUIRE) : 0;
    if (stop) return error_set(err, ST_DEVICE, "rank %u did not come to a sum", stop - 1);
    return cuda_rank_check(rank, err);
}

static enum status obey(struct cuda_rank *rank, enum rank_command command, uint32_t generation, struct error *err)
{
    switch (command) {
    case RANK_OPEN: return open_gpu(rank, err);
    case RANK_LOAD: return load(rank, err);
    case RANK_PREPARE: return prepare(rank, err);
    case RANK_LAUNCH: return launch(rank, generation, err);
    case RANK_COLLECT: return collect(rank, generation, err);
    case RANK_CLOSE: break;
    }
    return ST_OK;
}

static void free_all(struct cuda_rank *rank)
{
    comm_destroy(rank->line);
    comm_destroy(rank->comm);
    comm_destroy(rank->all);
    rank->line = rank->comm = rank->all = NULL;
    cuda_graphs_free(rank);
    cuda_memory_free(rank);
    cuda_matmul_close(rank);
    cuda_weights_free(rank);
    attention_plan_destroy(rank->attention);
    rank->attention = NULL;
    if (rank->stream) (void)cudaStreamDestroy(rank->stream);
    rank->stream = NULL;
}

/* ---- the thread ---- */

/* The next command; false: the device is lost. */
static bool next_command(struct cuda_rank *rank, enum rank_command *command, uint32_t *generation)
{
    struct device_cuda *cuda = rank->device;
    pthread_mutex_lock(&cuda->mutex);
    while (!cuda->lost && rank->done == rank->told) pthread_cond_wait(&cuda->to_ranks, &cuda->mutex);
    bool sound = !cuda->lost;
    if (sound) {
        *command = rank->ring[rank->done % RANK_COMMANDS].command;
        *generation = rank->ring[rank->done % RANK_COMMANDS].generation;
    }
    pthread_mutex_unlock(&cuda->mutex);
    return sound;
}

static void note_done(struct cuda_rank *rank)
{
    struct device_cuda *cuda = rank->device;
    pthread_mutex_lock(&cuda->mutex);
    rank->done++;
    pthread_cond_broadcast(&cuda->to_host);
    pthread_mutex_unlock(&cuda->mutex);
}

static void *rank_main(void *state)
{
    struct cuda_rank *rank = state;
    struct device_cuda *cuda = rank->device;
    enum rank_command command = RANK_OPEN;
    uint32_t generation = 0;
    while (next_command(rank, &command, &generation) && command != RANK_CLOSE) {
        struct error err = {""};
        enum status status = obey(rank, command, generation, &err);
        if (status != ST_OK) {
            device_cuda_lose(cuda, status, "%s%s", rank->label, err.message);
            break;
        }
        note_done(rank);
    }
    pthread_mutex_lock(&cuda->mutex);
    bool sound = !cuda->lost || cuda->failure != ST_DEVICE;
    pthread_mutex_unlock(&cuda->mutex);
    if (sound) free_all(rank);
    pthread_mutex_lock(&cuda->mutex);
    rank->ended = true;
    pthread_cond_broadcast(&cuda->to_host);
    pthread_mutex_unlock(&cuda->mutex);
    return NULL;
}

/* ---- from the engine's thread ---- */

enum status cuda_ranks_start(struct device_cuda *cuda, struct error *err)
{
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        if (pthread_create(&cuda->ranks[r].thread, NULL, rank_main, &cuda->ranks[r]))
            return error_set(err, ST_NOMEM, "cannot start a thread for GPU %d", cuda->ranks[r].gpu);
        cuda->ranks[r].started = true;
    }
    return ST_OK;
}

void cuda_ranks_tell(struct device_cuda *cuda, enum rank_command command, uint32_t generation)
{
    pthread_mutex_lock(&cuda->mutex);
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        struct cuda_rank *rank = &cuda->ranks[r];
        CHECK(rank->told - rank->done < RANK_COMMANDS || cuda->lost);
        rank->ring[rank->told % RANK_COMMANDS].command = command;
        rank->ring[rank->told % RANK_COMMANDS].generation = generation;
        rank->told++;
    }
    pthread_cond_broadcast(&cuda->to_ranks);
    pthread_mutex_unlock(&cuda->mutex);
}

static bool all_done(const struct device_cuda *cuda)
{
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        if (cuda->ranks[r].done != cuda->ranks[r].told) return false;
    }
    return true;
}

enum status cuda_ranks_wait(struct device_cuda *cuda, uint64_t deadline_ns, void (*idle)(void *state), void *state)
{
    enum status status = ST_OK;
    pthread_mutex_lock(&cuda->mutex);
    while (!cuda->lost && !all_done(cuda)) {
        uint64_t now_ns = clock_now_ns(clock_system());
        if (now_ns >= deadline_ns) {
            status = ST_TIMEOUT;
            break;
        }
        uint64_t until_ns = idle && now_ns + IDLE_NS < deadline_ns ? now_ns + IDLE_NS : deadline_ns;
        if (until_ns == UINT64_MAX) {
            pthread_cond_wait(&cuda->to_host, &cuda->mutex);
        } else {
            (void)cond_wait_until(&cuda->to_host, &cuda->mutex, until_ns);
        }
        if (!idle) continue;
        pthread_mutex_unlock(&cuda->mutex);
        idle(state);
        pthread_mutex_lock(&cuda->mutex);
    }
    if (cuda->lost) status = cuda->failure;
    pthread_mutex_unlock(&cuda->mutex);
    return status;
}

bool cuda_ranks_end(struct device_cuda *cuda)
{
    uint64_t deadline_ns = clock_now_ns(clock_system()) + END_WAIT_NS;
    bool all = true;
    pthread_mutex_lock(&cuda->mutex);
    bool patient = !cuda->lost || cuda->failure != ST_DEVICE; /* a sound GPU finishes what it is at */
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        while (cuda->ranks[r].started && !cuda->ranks[r].ended) {
            if (patient) {
                pthread_cond_wait(&cuda->to_host, &cuda->mutex);
            } else if (!cond_wait_until(&cuda->to_host, &cuda->mutex, deadline_ns)) {
                break;
            }
        }
        all = all && (!cuda->ranks[r].started || cuda->ranks[r].ended);
    }
    pthread_mutex_unlock(&cuda->mutex);
    for (uint32_t r = 0; r < cuda->ranks_count; r++) {
        if (!cuda->ranks[r].started) continue;
        if (all) {
            (void)pthread_join(cuda->ranks[r].thread, NULL);
        } else {
            (void)pthread_detach(cuda->ranks[r].thread);
        }
    }
    return all;
}
