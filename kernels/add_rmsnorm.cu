/* Residual and RMSNorm: cuda_add_rmsnorm of cuda_ops.h. A block a row, the row in registers (norm_row.cuh), which is
 * read and written once: 4 + 2 bytes a value in, 4 + 2 out.
 *
 * Several rows a block, or several blocks a row for one token, were not taken: a row of 8192 is 48 KB, which one SM
 * moves in about the time of a launch, and at more tokens than SMs blocks fill the machine by themselves. */
#include "kernels/norm_row.cuh"

template <int UNITS>
__global__ void __launch_bounds__(NORM_THREADS_MAX)
    add_rmsnorm(float *x, const uint16_t *y, const float *post_weight, const float *weight, void *out,
                float *out_scales, const uint32_t *rows, float *gathered, uint32_t *bad, const uint32_t *live,
                norm_row_numbers n)
{
    const uint32_t m = blockIdx.x;
    if (m >= kx::load(live)) return; /* the whole block */
    const uint32_t row = rows ? kx::load(rows + m) : m;
    float4 add[UNITS];
    KX_UNROLL
    for (int u = 0; u < UNITS; u++) {
        const uint32_t group = norm_row_group(u);
        uint2 packed = make_uint2(0u, 0u);
        if (y && group < n.E / 4) packed = kx::load((const uint2 *)(y + (size_t)row * n.E) + group);
        const float2 low = kx::bf16x2_unpack(packed.x), high = kx::bf16x2_unpack(packed.y);
        add[u] = make_float4(low.x, low.y, high.x, high.y);
    }
    norm_row r;
    r.x = x + (size_t)row * n.E;
    r.x_out = !rows ? r.x : gathered ? gathered + (size_t)m * n.E : nullptr;
    r.post_weight = post_weight;
    r.weight = weight;
    r.out = (uint8_t *)out + (size_t)m * n.E * (out_scales ? 1 : 2);
    r.scale = out_scales ? out_scales + m : nullptr;
    r.bad = bad + row;
    r.added = y != nullptr;
    r.n = n;
    norm_row_finish(r, add);
}

/* Grid: a block a row of the launch; those beyond *live return. */
extern "C" cudaError_t cuda_add_rmsnorm(const struct cuda_norm *norm, const uint32_t *live, uint32_t M,
                                        cudaStream_t stream)
{
    if (norm->E == 0 || norm->E % 4 || norm->E > NORM_E_MAX) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    const norm_row_shape shape = norm_row_shape_of(norm->E);
    const auto kernel = shape.units == 1   ? add_rmsnorm<1>
                        : shape.units == 2 ? add_rmsnorm<2>
                        : shape.units == 4 ? add_rmsnorm<4>
                                           : add_rmsnorm<8>;
    const norm_row_numbers numbers = {norm->E, norm->residual_scale, norm->eps};
    return kx::launch(kernel, M, shape.threads, 0, stream, norm->x, norm->y, norm->post_weight, norm->weight, norm->out,
                      norm->out_scales, norm->rows, norm->gathered, norm->bad, live, numbers);
}
