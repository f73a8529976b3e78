/* Matmuls of any number of tokens with the bits of matmul_skinny.cu: for --deterministic, and as oracle of cuBLASLt.
 *
 * A block takes 128 rows and 32 tokens over all of K, and adds its sums to a total wherever matmul_skinny would have
 * cut: the same terms in the same order, however many tokens there are. It reads weights M / 32 times (from L2, mostly)
 * and keeps two sets of sums: the price of not depending on M. */
#include "kernels/matmul_tile.cuh"

namespace
{
using namespace kx;

constexpr int NT = 4;

template <class F>
__global__ void __launch_bounds__(MATMUL_THREADS, 2)
    matmul_tiled(void *y, const uint16_t *x, const uint8_t *codes, const void *scales, const uint16_t *bias,
                 weight_shape w, matmul_slicing slices, matmul_output out, uint32_t M)
{
    const matmul_operands o = {x, codes, scales, w, M, blockIdx.y * NT * 8};
    const uint32_t group = blockIdx.x, begin = group * slices.chunks, end = begin + slices.chunks;
    matmul_sums<NT> sums = {}, total = {};
    bool first = true;
    matmul_run<F, NT>(o, slices.chunks, begin, end, sums, [&](uint32_t unit) {
        if (unit + 1 != end && matmul_block_of(slices, unit) == matmul_block_of(slices, unit + 1)) return;
        KX_UNROLL
        for (int i = 0; i < 8 * NT; i++) {
            float &sum = sums[i / (4 * NT)][i / 4 % NT][i % 4], &to = total[i / (4 * NT)][i / 4 % NT][i % 4];
            to = first ? sum : to + sum;
            sum = 0.0f;
        }
        first = false;
    });
    matmul_finish<NT>(o, group, total, bias, y, out);
}
} // namespace

extern "C" cudaError_t cuda_matmul_tiled(const struct cuda_matmul *matmul, uint32_t M, uint32_t sms,
                                         cudaStream_t stream)
{
    const struct cuda_weight &weight = *matmul->weight;
    if (M == 0 || weight.N == 0) return cudaSuccess;
    if (weight.type >= CUDA_TYPES || sms == 0) return cudaErrorInvalidValue;
    const weight_shape w = weight_shape_of(weight);
    const matmul_slicing slices = matmul_slices(w, sms);
    const matmul_output out = {matmul->y_stride     ? matmul->y_stride
                               : weight.alternating ? w.N / 2
                                                    : w.N,
                               matmul->y_f32, matmul->gelu, weight.alternating};
    const auto go = [&](auto kernel, size_t shared_bytes) {
        return launch(kernel, dim3(slices.groups, (M + NT * 8 - 1) / (NT * 8)), MATMUL_THREADS, shared_bytes, stream,
                      matmul->y, matmul->x, (const uint8_t *)weight.codes, weight.scales, weight.bias, w, slices, out,
                      M);
    };
    if (weight_is_q4(w.type)) return go(matmul_tiled<matmul_q4>, matmul_plan<matmul_q4, NT>::bytes());
    if (weight_is_q8(w.type)) return go(matmul_tiled<matmul_q8>, matmul_plan<matmul_q8, NT>::bytes());
    if (w.type == CUDA_TYPE_E4M3) return go(matmul_tiled<matmul_e4m3>, matmul_plan<matmul_e4m3, NT>::bytes());
    return go(matmul_tiled<matmul_bf16>, matmul_plan<matmul_bf16, NT>::bytes());
}
