/* Which matmul a product takes: the skinny kernel while it may (a weight is read once, whatever M), beyond it cuBLASLt,
 * and the tiled kernel where there is no cuBLASLt, where it refuses, and where bits must not depend on M. */
#include "runtime/base/log.h"
#include "runtime/device/cuda/cuda_parts.h"

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

cudaError_t cuda_multiply(struct cuda_rank *rank, const struct cuda_product *product, uint32_t M)
{
    const struct cuda_weight *weight = product->weight;
    bool gelu = rank->spec.activation == ACTIVATION_GELU_TANH;
    struct cuda_matmul matmul = {.weight = weight,
                                 .x = product->x,
                                 .y = product->y,
                                 .y_stride = product->y_stride,
                                 .y_f32 = product->y_f32,
                                 .gelu = gelu,
                                 .scratch = rank->space.matmul};
    if (M <= cuda_matmul_skinny_max(weight->type)) return cuda_matmul_skinny(&matmul, M, rank->sms, rank->stream);
    if (rank->library && matmul_library_takes(rank->library, weight, product->y_f32)) {
        if (weight->alternating) matmul.y = rank->space.gu;
        cudaError_t error = matmul_library_multiply(rank->library, &matmul, M, rank->stream);
        if (error == cudaSuccess && weight->alternating)
            error = cuda_glu(product->y, rank->space.gu, weight->N / 2, gelu, true, product->live, M, rank->stream);
        if (error != cudaErrorNotSupported) return error;
        matmul.y = product->y;
    }
    return cuda_matmul_tiled(&matmul, M, rank->sms, rank->stream);
}

enum status cuda_matmul_open(struct cuda_rank *rank, struct error *err)
{
    const struct device_cuda *cuda = rank->device;
    struct matmul_library_config config = {.table = cuda->libraries.cublaslt,
                                           .gpu = rank->name,
                                           .file = cuda->config.matmul_file,
                                           .folder = cuda->config.matmul_folder};
    if (!config.table) return ST_OK;
    CUDA_TRY(cudaDriverGetVersion(&config.driver), "asking for the driver's version", err);
    return matmul_library_create(&config, &rank->library, err);
}

/* Measures a product for all numbers of tokens that the skinny kernel does not take. */
static enum status prepare(struct cuda_rank *rank, const struct cuda_weight *weight, bool y_f32, void *y,
                           uint32_t M_max, struct error *err)
{
    uint32_t M_min = cuda_matmul_skinny_max(weight->type) + 1;
    if (weight->N == 0 || M_max < M_min) return ST_OK;
    return matmul_library_prepare(rank->library, weight, y_f32, M_min, M_max, rank->space.act, y, rank->stream, err);
}

enum status cuda_matmul_prepare(struct cuda_rank *rank, struct error *err)
{
    const struct cuda_space *s = &rank->space;
    uint32_t M = rank->device->device.info.tokens_max;
    if (!rank->library) return ST_OK;
    struct matmul_space space = {s->cublaslt, MATMUL_WORKSPACE_BYTES, s->panel, MATMUL_PANEL_BYTES};
    matmul_library_set_space(rank->library, &space);
    for (uint32_t l = 0; l < rank->spec.layers; l++) {
        const struct cuda_layer *layer = &rank->weights.layers[l];
        for (uint32_t i = 0; i < layer->qkv_parts; i++) TRY(prepare(rank, &layer->qkv[i], false, s->qkv, M, err));
        TRY(prepare(rank, &layer->o, false, s->y, M, err));
        for (uint32_t i = 0; i < layer->gated_parts; i++) TRY(prepare(rank, &layer->gated[i], false, s->gu, M, err));
        TRY(prepare(rank, &layer->down, false, s->y, M, err));
        TRY(prepare(rank, &layer->router, true, s->router_logits, M, err));
    }
    M = least(rank->device->device.info.rows_max, LOGIT_ROWS);
    TRY(prepare(rank, &rank->weights.head, true, s->logits, M, err));
    struct error reason = {""};
    if (rank == &rank->device->ranks[0] && matmul_library_save(rank->library, &reason) != ST_OK)
        log_line(LOG_WARN, "cuda",
                 "event=matmul_file_not_written effect=\"each start times cuBLASLt again\" reason=\"%s\"",
                 reason.message);
    return ST_OK;
}

void cuda_matmul_close(struct cuda_rank *rank)
{
    matmul_library_destroy(rank->library);
    rank->library = NULL;
}
