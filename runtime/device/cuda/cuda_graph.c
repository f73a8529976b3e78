/* Graphs of decode steps: a bucket is a number of tokens, each the only one of its sequence, with a row of logits each.
 *
 * A step of n such sequences is replayed by the smallest bucket that holds it. What lies beyond n in the bucket is not
 * read and writes nothing: kernels read the step's own counts on the device. Steps with more tokens a sequence, or
 * without rows, are launched kernel by kernel: their shapes differ too much to be kept. All ranks replay the same
 * bucket, since sums over ranks are in it. Captured before the device takes its first step: nothing is allocated later.
 * Capture is thread-local, so that ranks may capture side by side. */
#include "runtime/device/cuda/cuda_parts.h"

static bool bucket_fits(const struct device_cuda *cuda, uint32_t bucket)
{
    const struct device_info *info = &cuda->device.info;
    uint32_t tokens = cuda_buckets(bucket);
    return tokens <= info->tokens_max && tokens <= info->seqs_max && tokens <= info->rows_max;
}

uint32_t cuda_graph_bucket(const struct device_cuda *cuda, const struct batch *batch)
{
    uint32_t n = batch->tokens_count;
    if (!cuda->config.graphs || n == 0 || batch->seqs_count != n || batch->rows_count != n) return GRAPH_BUCKETS;
    for (uint32_t i = 0; i < GRAPH_BUCKETS; i++) {
        if (cuda_buckets(i) >= n) return bucket_fits(cuda, i) ? i : GRAPH_BUCKETS;
    }
    return GRAPH_BUCKETS;
}

static enum status capture(struct cuda_rank *rank, struct cuda_graph *graph, struct error *err)
{
    cudaGraph_t captured = NULL;
    CUDA_TRY(cudaStreamBeginCapture(rank->stream, cudaStreamCaptureModeThreadLocal), "beginning a graph", err);
    enum status status = cuda_run_layers(rank, &graph->layout, graph->tokens, graph->tokens, err);
    cudaError_t error = cudaStreamEndCapture(rank->stream, &captured); /* also after a failure: it ends the capture */
    if (status == ST_OK) status = cuda_result(error, "ending a graph", err);
    if (status == ST_OK) status = cuda_result(cudaGraphInstantiate(&graph->exec, captured, 0), "making a graph", err);
    if (captured) (void)cudaGraphDestroy(captured);
    if (status == ST_OK) status = cuda_result(cudaGraphUpload(graph->exec, rank->stream), "loading a graph", err);
    return status;
}

enum status cuda_graphs_capture(struct cuda_rank *rank, struct error *err)
{
    const struct device_cuda *cuda = rank->device;
    for (uint32_t i = GRAPH_BUCKETS; i-- > 0;) { /* the largest first: what it needs, smaller ones find */
        if (!bucket_fits(cuda, i)) continue;
        struct cuda_graph *graph = &rank->graphs[i];
        graph->tokens = cuda_buckets(i);
        cuda_step_layout_make(&cuda->bounds, cuda_step_room_for(cuda, graph->tokens, graph->tokens, graph->tokens),
                              &graph->layout);
        TRY(capture(rank, graph, err));
    }
    return ST_OK;
}

void cuda_graphs_free(struct cuda_rank *rank)
{
    for (uint32_t i = 0; i < GRAPH_BUCKETS; i++) {
        if (rank->graphs[i].exec) (void)cudaGraphExecDestroy(rank->graphs[i].exec);
        rank->graphs[i].exec = NULL;
    }
}
