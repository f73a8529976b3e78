/* Which matmul a product takes: the skinny kernel while it may (weights are read once, whatever M), then cuBLASLt, or
 * the tiled kernel where bits must not depend on M or there is no cuBLASLt. */
#include "runtime/device/cuda/cuda_parts.h"

cudaError_t cuda_multiply(struct cuda_rank *rank, const struct cuda_product *product, uint32_t M)
{
    struct cuda_matmul matmul = {.weight = product->weight,
                                 .x = product->x,
                                 .y = product->y,
                                 .y_stride = product->y_stride,
                                 .y_f32 = product->y_f32,
                                 .gelu = rank->spec.activation == ACTIVATION_GELU_TANH,
                                 .scratch = rank->space.matmul};
    if (M <= cuda_matmul_skinny_max(product->weight->type))
        return cuda_matmul_skinny(&matmul, M, rank->sms, rank->stream);
    return cuda_matmul_tiled(&matmul, M, rank->sms, rank->stream);
}

enum status cuda_matmul_open(struct cuda_rank *rank, struct error *err)
{
    (void)rank, (void)err;
    return ST_OK;
}

void cuda_matmul_close(struct cuda_rank *rank)
{
    (void)rank;
}
