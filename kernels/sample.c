/* The passes over logits: keys, sorting, the scalar path and the choice of path; see sample.h. */
#include "kernels/sample_body.h"

static const struct sample_ops *ops_of(enum cpu_path path)
{
    static const struct sample_ops *const ops[CPU_PATH_COUNT] = {[CPU_PATH_SCALAR] = &sample_ops_scalar,
                                                                 [CPU_PATH_AVX2] = &sample_ops_avx2,
                                                                 [CPU_PATH_AVX512] = &sample_ops_avx512};
    return ops[cpu_path_base(path)];
}

void sample_scan(enum cpu_path path, const float *logits, uint32_t count, float *highest)
{
    ops_of(path)->scan(logits, count, highest);
}

void sample_set(enum cpu_path path, const struct logit_row *row, uint32_t id, float value)
{
    ops_of(path)->set(row, id, value);
}

struct logit_peak sample_peak(enum cpu_path path, const struct logit_row *row)
{
    return ops_of(path)->peak(row);
}

double sample_weight_sum(enum cpu_path path, const struct logit_row *row, const struct logit_weights *weights)
{
    return ops_of(path)->weight_sum(row, weights);
}

uint32_t sample_gather(enum cpu_path path, const struct logit_row *row, float low, float high, uint64_t *keys)
{
    return ops_of(path)->gather(row, low, high, keys);
}

void sample_weigh(enum cpu_path path, const uint64_t *keys, uint32_t count, const struct logit_weights *weights,
                  float *out)
{
    ops_of(path)->weigh(keys, count, weights, out);
}

uint32_t sample_count_before(enum cpu_path path, const struct logit_row *row, float value, uint32_t id)
{
    return ops_of(path)->count_before(row, value, id);
}

float sample_dot(enum cpu_path path, const float *a, const float *b, uint32_t count)
{
    return ops_of(path)->dot(a, b, count);
}

static uint64_t key_byte(uint64_t key, uint32_t pass)
{
    return key >> (32 + 8 * pass) & 255;
}

void sample_sort(uint64_t *keys, uint64_t *spare, uint32_t count)
{
    if (count <= 24) { /* insertion */
        for (uint32_t i = 1; i < count; i++) {
            uint64_t key = keys[i];
            uint32_t j = i;
            for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
            keys[j] = key;
        }
        return;
    }
    /* Stable radix passes over the logit's four bytes; ids are in order already. A byte that all share needs no pass.
     */
    uint32_t starts[4][256] = {{0}};
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t pass = 0; pass < 4; pass++) starts[pass][key_byte(keys[i], pass)]++;
    }
    uint64_t *from = keys, *to = spare;
    for (uint32_t pass = 0; pass < 4; pass++) {
        if (starts[pass][key_byte(from[0], pass)] == count) continue;
        uint32_t next = 0;
        for (uint32_t value = 0; value < 256; value++) {
            uint32_t here = starts[pass][value];
            starts[pass][value] = next;
            next += here;
        }
        for (uint32_t i = 0; i < count; i++) to[starts[pass][key_byte(from[i], pass)]++] = from[i];
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys) memcpy(keys, from, count * sizeof *keys);
}
