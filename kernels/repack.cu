/* Weights from the file's blocks to the device's layouts (cuda_weight.cuh), and back to plain BF16.
 *
 * A thread takes 8 inputs of a row: one word of Q4, two of Q8, 16 bytes of BF16. Codes move as they are; what a block
 * of 32 inputs says about scales goes into its word, unrounded, so every value stays what kernels/dequantize.h says.
 * Blocks of 18 to 210 bytes are read by bytes and 16-bit words: a weight is repacked once. To BF16 go all types,
 * rounded once to nearest; to E4M3 too, with a scale for 128 inputs of a row, their highest magnitude / 448.
 *
 * A NaN among the codes of a file's E4M3 makes its scale NaN: matmuls unpack that code as a number. */
#include "kernels/cuda_weight.cuh"
#include "kernels/tensor_type.h"

namespace
{
using namespace kx;

constexpr uint32_t THREADS = 128;

__device__ __forceinline__ uint32_t byte_at(const uint8_t *p)
{
    return load(p);
}
__device__ __forceinline__ uint32_t half_at(const uint8_t *p)
{
    return load((const uint16_t *)p);
}

/* 8 inputs of a quantised row: codes, signed where the format has a zero, and the words of their block of 32 inputs and
 * of the even and the odd block of its pair, as the device's type keeps them. */
struct piece {
    int code[8];
    uint32_t word, even, odd;
};

/* Low nibbles of 16 bytes are inputs 0..15 of the block, high nibbles 16..31. */
__device__ __forceinline__ void nibbles(const uint8_t *bytes, uint32_t i, int zero, piece &p)
{
    KX_UNROLL
    for (uint32_t j = 0; j < 8; j++) p.code[j] = (int)(byte_at(bytes + i % 16 + j) >> i / 16 * 4 & 15) - zero;
}
__device__ __forceinline__ void fifths(const uint8_t *bits, uint32_t i, piece &p)
{
    const uint32_t high = byte_at(bits + i / 8);
    KX_UNROLL
    for (uint32_t j = 0; j < 8; j++) p.code[j] += (int)(high >> j & 1) << 4;
}

/* Six-bit scale and minimum of a group of Q4_K and Q5_K (dequantize.c draws their 12 bytes), with D or DM. */
__device__ __forceinline__ uint32_t k_word(const uint8_t *block, uint32_t group)
{
    const uint8_t *const s = block + 4;
    uint32_t scale, minimum;
    if (group < 4) {
        scale = byte_at(s + group) & 63;
        minimum = byte_at(s + group + 4) & 63;
    } else {
        scale = (byte_at(s + group + 4) & 15) | byte_at(s + group - 4) >> 6 << 4;
        minimum = byte_at(s + group + 4) >> 4 | byte_at(s + group) >> 6 << 4;
    }
    return scale | minimum << 8 | half_at(block + group % 2 * 2) << 16;
}

__device__ __forceinline__ void k_piece(const uint8_t *block, uint32_t i, bool five, piece &p)
{
    const uint32_t group = i / 32;
    const uint8_t *const codes = block + (five ? 48 : 16) + group / 2 * 32 + i % 32;
    KX_UNROLL
    for (uint32_t j = 0; j < 8; j++) {
        p.code[j] = (int)(byte_at(codes + j) >> group % 2 * 4 & 15);
        if (five) p.code[j] += (int)(byte_at(block + 16 + i % 32 + j) >> group & 1) << 4;
    }
    p.even = k_word(block, group & ~1u);
    p.odd = k_word(block, group | 1);
    p.word = group % 2 ? p.odd : p.even;
}

__device__ __forceinline__ void q6_piece(const uint8_t *block, uint32_t i, piece &p)
{
    const uint32_t half = i / 128, in_half = i % 128;
    KX_UNROLL
    for (uint32_t j = 0; j < 8; j++) {
        const uint32_t at = in_half + j;
        const uint32_t low = byte_at(block + 64 * half + at % 64) >> at / 64 * 4 & 15;
        const uint32_t high = byte_at(block + 128 + 32 * half + at % 32) >> at / 32 * 2 & 3;
        p.code[j] = (int)(low | high << 4) - 32;
    }
    const uint8_t *const scales = block + 192 + i / 32 * 2;
    p.word = byte_at(scales) | byte_at(scales + 1) << 8 | half_at(block + 208) << 16;
}

/* Inputs k .. k + 7 of a row of a quantised type. */
__device__ __forceinline__ void read_piece(uint32_t type, const uint8_t *row, uint32_t k, piece &p)
{
    const uint32_t i = k % 32, block32 = k / 32, block256 = k / 256;
    const uint8_t *b;
    switch (type) {
    case TENSOR_Q4_0:
        b = row + (size_t)block32 * 18;
        nibbles(b + 2, i, 8, p);
        p.word = half_at(b);
        break;
    case TENSOR_Q4_1:
        b = row + (size_t)block32 * 20;
        nibbles(b + 4, i, 0, p);
        p.word = half_at(b) | half_at(b + 2) << 16;
        break;
    case TENSOR_Q5_0:
        b = row + (size_t)block32 * 22;
        nibbles(b + 6, i, 16, p);
        fifths(b + 2, i, p);
        p.word = 0x0101 | half_at(b) << 16;
        break;
    case TENSOR_Q5_1:
        b = row + (size_t)block32 * 24;
        nibbles(b + 8, i, 0, p);
        fifths(b + 4, i, p);
        p.word = half_at(b) | half_at(b + 2) << 16;
        break;
    case TENSOR_Q8_0:
        b = row + (size_t)block32 * 34;
        KX_UNROLL
        for (uint32_t j = 0; j < 8; j++) p.code[j] = (int8_t)byte_at(b + 2 + i + j);
        p.word = 0x0101 | half_at(b) << 16;
        break;
    case TENSOR_Q4_K: k_piece(row + (size_t)block256 * 144, k % 256, false, p); return;
    case TENSOR_Q5_K: k_piece(row + (size_t)block256 * 176, k % 256, true, p); return;
    default: q6_piece(row + (size_t)block256 * 210, k % 256, p); break;
    }
    p.even = p.odd = p.word;
}

/* The type whose words a format's pieces have: of Q4 or Q8. */
__host__ __device__ __forceinline__ uint32_t type_of(uint32_t tensor_type)
{
    switch (tensor_type) {
    case TENSOR_F8: return CUDA_TYPE_E4M3;
    case TENSOR_Q4_0: return CUDA_TYPE_Q4_0;
    case TENSOR_Q4_1: return CUDA_TYPE_Q4_1;
    case TENSOR_Q4_K: return CUDA_TYPE_Q4_K;
    case TENSOR_Q5_0:
    case TENSOR_Q6_K:
    case TENSOR_Q8_0: return CUDA_TYPE_Q8_0;
    case TENSOR_Q5_1: return CUDA_TYPE_Q8_1;
    case TENSOR_Q5_K: return CUDA_TYPE_Q8_K;
    default: return CUDA_TYPE_BF16;
    }
}

/* The values of inputs k .. k + 7 of a row of any type, as kernels/dequantize.h gives them. */
__device__ __forceinline__ void read_values(uint32_t type, const uint8_t *row, uint32_t k, float (&value)[8])
{
    if (type == TENSOR_F32 || type == TENSOR_F16 || type == TENSOR_BF16) {
        KX_UNROLL
        for (uint32_t j = 0; j < 8; j++) {
            if (type == TENSOR_F32)
                value[j] = load((const float *)row + k + j);
            else
                value[j] = type == TENSOR_F16 ? f16_to_f32(load((const uint16_t *)row + k + j))
                                              : bf16_to_f32(load((const uint16_t *)row + k + j));
        }
        return;
    }
    if (type == TENSOR_F8) {
        const uint8_t *const block = row + (size_t)(k / 128) * 132;
        const float scale = load((const float *)block);
        KX_UNROLL
        for (uint32_t j = 0; j < 8; j++) value[j] = e4m3_to_f32(load(block + 4 + k % 128 + j)) * scale;
        return;
    }
    piece p;
    read_piece(type, row, k, p);
    const uint32_t own = type_of(type);
    const block_scale s = weight_is_q4(own) ? weight_block_scale<false>(own, p.word, p.even, p.odd)
                                            : weight_block_scale<true>(own, p.word, p.even, p.odd);
    const float scale = k % 32 < 16 ? s.low : s.high;
    KX_UNROLL
    for (int j = 0; j < 8; j++) value[j] = __fadd_rn(scale * (float)p.code[j], s.minimum);
}

/* What a launch does: `rows` rows of `source`, row_bytes each, become rows of w from `row` on. */
struct repack_job {
    uint32_t tensor_type, row, rows, part;
    bool alternating;
    uint64_t row_bytes;
};
__device__ __forceinline__ uint32_t target_row(const repack_job &job, uint32_t i)
{
    const uint32_t row = job.row + i;
    return job.alternating ? row / 8 * 16 + job.part * 8 + row % 8 : row;
}

/* Thread: row, then 8 inputs. K padded to a whole span; what lies beyond K becomes 0. */
__global__ void __launch_bounds__(THREADS)
    repack_packed(uint32_t *codes, uint32_t *scales, const uint8_t *source, weight_shape w, repack_job job)
{
    const bool q4 = weight_is_q4(w.type);
    const uint32_t span_inputs = q4 ? 128 : 64, spans = weight_spans(w.type, w.K), eights = spans * span_inputs / 8;
    const uint64_t id = (uint64_t)blockIdx.x * THREADS + threadIdx.x, i = id / eights;
    if (i >= job.rows) return;
    const uint32_t k = (uint32_t)(id % eights) * 8, row = target_row(job, (uint32_t)i);
    piece p = {};
    if (k < w.K) read_piece(job.tensor_type, source + i * job.row_bytes, k, p);
    const size_t piece_at = weight_piece(row, k / span_inputs, spans);
    const uint32_t block = k % span_inputs / 32;
    if (k % 32 == 0) store(scales + piece_at * (q4 ? 4 : 2) + block, p.word);
    uint32_t *const at = codes + piece_at * 16;
    if (q4) {
        const int zero = w.type == CUDA_TYPE_Q4_0 ? 8 : 0;
        uint32_t word = 0;
        KX_UNROLL
        for (int j = 0; j < 8; j++) word |= (uint32_t)(p.code[j] + zero) << (j / 2 + j % 2 * 4) * 4;
        store(at + k % 32 / 8 * 4 + block, word);
        return;
    }
    KX_UNROLL
    for (uint32_t half_piece = 0; half_piece < 2; half_piece++) {
        uint32_t word = 0;
        KX_UNROLL
        for (uint32_t j = 0; j < 4; j++) word |= (uint32_t)(p.code[half_piece * 4 + j] + 128) << 8 * j;
        store(at + (k % 16 / 4 + half_piece) * 4 + block * 2 + k % 32 / 16, word);
    }
}

/* Thread: row, then 8 inputs. */
__global__ void __launch_bounds__(THREADS)
    repack_bf16(uint4 *codes, const uint8_t *source, weight_shape w, repack_job job)
{
    const uint32_t eights = w.K / 8;
    const uint64_t id = (uint64_t)blockIdx.x * THREADS + threadIdx.x, i = id / eights;
    if (i >= job.rows) return;
    const uint32_t eighth = (uint32_t)(id % eights);
    float value[8];
    read_values(job.tensor_type, source + i * job.row_bytes, eighth * 8, value);
    store(codes + (size_t)target_row(job, (uint32_t)i) * eights + eighth, bf16x8_pack(value));
}

/* Thread: row, then 128 inputs, which share a scale. */
__global__ void __launch_bounds__(THREADS)
    repack_e4m3(uint8_t *codes, float *scales, const uint8_t *source, weight_shape w, repack_job job)
{
    const uint32_t chunks = (w.K + 127) / 128;
    const uint64_t id = (uint64_t)blockIdx.x * THREADS + threadIdx.x, i = id / chunks;
    if (i >= job.rows) return;
    const uint32_t k0 = (uint32_t)(id % chunks) * 128, end = k0 + 128 < w.K ? k0 + 128 : w.K;
    const uint32_t row = target_row(job, (uint32_t)i);
    const uint8_t *const from = source + i * job.row_bytes;
    uint8_t *const to = codes + (size_t)row * w.K;
    float scale = 0.0f, value[8];
    if (job.tensor_type == TENSOR_F8) {
        const uint8_t *const block = from + (size_t)(k0 / 128) * 132;
        scale = load((const float *)block);
        for (uint32_t k = 0; k < 128; k++) {
            const uint32_t code = byte_at(block + 4 + k);
            if ((code & 127) == 127) scale = NAN;
            store(to + k0 + k, (uint8_t)code);
        }
    } else {
        bool bad = false;
        for (uint32_t k = k0; k < end; k += 8) {
            read_values(job.tensor_type, from, k, value);
            KX_UNROLL
            for (int j = 0; j < 8; j++) {
                scale = fmaxf(scale, fabsf(value[j]));
                bad |= !(fabsf(value[j]) <= 3.0e38f);
            }
        }
        scale = bad ? NAN : scale / 448.0f;
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        for (uint32_t k = k0; k < end; k += 8) {
            read_values(job.tensor_type, from, k, value);
            KX_UNROLL
            for (int j = 0; j < 8; j++) store(to + k + j, f32_to_e4m3(bad ? 0.0f : value[j] * inverse));
        }
    }
    store(scales + (size_t)(k0 / 128) * w.scale_stride + row, scale);
}

/* Thread: row, then 8 inputs. */
__global__ void __launch_bounds__(THREADS)
    unpack_rows(uint4 *out, const void *codes, const void *scales, weight_shape w, uint32_t row, uint32_t rows)
{
    const uint32_t eights = w.K / 8;
    const uint64_t id = (uint64_t)blockIdx.x * THREADS + threadIdx.x, i = id / eights;
    if (i >= rows) return;
    float value[8];
    weight_values(w, codes, scales, row + (uint32_t)i, (uint32_t)(id % eights) * 8, value);
    store(out + id, bf16x8_pack(value));
}

uint32_t blocks_of(uint64_t threads)
{
    return (uint32_t)((threads + THREADS - 1) / THREADS);
}
} // namespace

extern "C" enum cuda_type cuda_type_of(uint32_t tensor_type)
{
    return (enum cuda_type)type_of(tensor_type);
}

extern "C" void cuda_weight_bytes(enum cuda_type type, uint32_t N, uint32_t K, size_t *codes_bytes,
                                  size_t *scales_bytes)
{
    const size_t values = (size_t)N * K, pieces = ((size_t)N + 15) / 16 * 16 * weight_spans(type, K);
    *codes_bytes = type == CUDA_TYPE_BF16 ? 2 * values : type == CUDA_TYPE_E4M3 ? values : pieces * 64;
    *scales_bytes = type == CUDA_TYPE_BF16   ? 0
                    : type == CUDA_TYPE_E4M3 ? ((size_t)K + 127) / 128 * N * sizeof(float)
                                             : pieces * (weight_is_q4(type) ? 16 : 8);
}

extern "C" cudaError_t cuda_repack_rows(const struct cuda_weight *weight, uint32_t tensor_type, const void *source,
                                        uint32_t row, uint32_t rows, uint32_t part, cudaStream_t stream)
{
    const weight_shape w = weight_shape_of(*weight);
    const struct tensor_block {
        uint32_t type, items, bytes;
    } blocks[] = {
#define X(name, id, items, bytes) {id, items, bytes},
        TENSOR_TYPE_MAP(X)
#undef X
    };
    repack_job job = {tensor_type, row, rows, part, weight->alternating, 0};
    uint32_t items = 0;
    for (const tensor_block &block : blocks)
        if (block.type == tensor_type) {
            items = block.items;
            job.row_bytes = (uint64_t)w.K / items * block.bytes;
        }
    if (!items || w.K % items || w.K % 8 || (weight->alternating && (w.N % 16 || part > 1)))
        return cudaErrorInvalidValue;
    if (rows == 0 || w.K == 0) return cudaSuccess;
    const uint8_t *const from = (const uint8_t *)source;
    if (w.type == CUDA_TYPE_BF16)
        return launch(repack_bf16, blocks_of((uint64_t)rows * w.K / 8), THREADS, 0, stream, (uint4 *)weight->codes,
                      from, w, job);
    if (w.type == CUDA_TYPE_E4M3) {
        if (w.scale_rows != 1 || w.scale_cols != 128 || w.K % 16) return cudaErrorInvalidValue;
        return launch(repack_e4m3, blocks_of((uint64_t)rows * ((w.K + 127) / 128)), THREADS, 0, stream,
                      (uint8_t *)weight->codes, (float *)weight->scales, from, w, job);
    }
    if (type_of(tensor_type) != w.type) return cudaErrorInvalidValue;
    const uint32_t padded = weight_spans(w.type, w.K) * (weight_is_q4(w.type) ? 128 : 64);
    return launch(repack_packed, blocks_of((uint64_t)rows * padded / 8), THREADS, 0, stream, (uint32_t *)weight->codes,
                  (uint32_t *)weight->scales, from, w, job);
}

extern "C" cudaError_t cuda_unpack_rows(uint16_t *out, const struct cuda_weight *weight, uint32_t row, uint32_t rows,
                                        cudaStream_t stream)
{
    const weight_shape w = weight_shape_of(*weight);
    if (rows == 0 || w.K == 0) return cudaSuccess;
    if (w.K % 8 || row + rows > w.N) return cudaErrorInvalidValue;
    return launch(unpack_rows, blocks_of((uint64_t)rows * w.K / 8), THREADS, 0, stream, (uint4 *)out, weight->codes,
                  weight->scales, w, row, rows);
}
