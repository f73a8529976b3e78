/* What attention means, in double, by two passes over the scores; see attention.h. */
#include "kernels/attention.h"
#include "kernels/dequantize.h"

#include <math.h>

static const uint8_t *head_of(const struct attention_args *args, uint32_t t)
{
    return args->kv + args->blocks[t / KV_TOKENS] * args->kv_block_bytes;
}

/* codes: of this part, K or V, for the place of its scales. */
static double item(const struct kv_layout *layout, const uint8_t *base, size_t idx, uint32_t slot, size_t codes)
{
    if (layout->type == KV_I8) {
        const float *scales = (const float *)(const void *)(base + kv_i8_scales(codes));
        return (double)bf16_to_f32(f32_to_bf16((float)((const int8_t *)base)[idx] * scales[slot]));
    }
    if (layout->type == KV_F32) return (double)((const float *)(const void *)base)[idx];
    return (double)bf16_to_f32(((const uint16_t *)(const void *)base)[idx]);
}

static double score(const struct attention_args *args, const float *q, uint32_t t)
{
    const struct kv_layout *layout = &args->layout;
    double sum = 0;
    uint32_t slot = t % KV_TOKENS;
    for (uint32_t d = 0; d < layout->D; d++) {
        sum += (double)q[d] *
               item(layout, head_of(args, t), kv_k_index(layout, slot, d), slot, (size_t)KV_TOKENS * layout->D);
    }
    return sum * (double)args->scale;
}

static void attend(const struct attention_args *args, const float *q, float *out, uint32_t position)
{
    uint32_t first = attention_first(position, args->window);
    double peak = -INFINITY, total = 0;
    for (uint32_t t = first; t <= position; t++) peak = fmax(peak, score(args, q, t));
    for (uint32_t t = first; t <= position; t++) total += exp(score(args, q, t) - peak);
    for (uint32_t d = 0; d < args->layout.D; d++) {
        double sum = 0;
        for (uint32_t t = first; t <= position; t++) {
            const uint8_t *v = head_of(args, t) + args->layout.v_offset_bytes;
            size_t idx = kv_v_index(&args->layout, t % KV_TOKENS, d), codes = (size_t)KV_TOKENS * args->layout.P;
            sum += exp(score(args, q, t) - peak) * item(&args->layout, v, idx, t % KV_TOKENS, codes);
        }
        out[d] = (float)(sum / total);
    }
}

void attention_ref(const struct attention_args *args)
{
    for (uint32_t r = 0; r < args->rows; r++) {
        for (uint32_t g = 0; g < args->G; g++) {
            size_t offset = g * (size_t)args->layout.D;
            attend(args, args->q + r * args->q_stride + offset, args->out + r * args->out_stride + offset,
                   args->position + r);
        }
    }
}
