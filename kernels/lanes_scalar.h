/* struct lanes in plain C: the meaning of every operation. Included by lanes.h alone. */
#ifndef KERNELS_LANES_SCALAR_H
#define KERNELS_LANES_SCALAR_H

#ifndef LANES_INLINE
#error "include kernels/lanes.h"
#endif

#define LANES_PATH scalar
struct lanes {
    float v[16];
};
#define LANES_EACH_ for (int j = 0; j < 16; j++)
LANES_INLINE struct lanes lanes_set(float x)
{
    struct lanes y;
    LANES_EACH_ y.v[j] = x;
    return y;
}
LANES_INLINE struct lanes lanes_load_n(const float *p, uint32_t n)
{
    struct lanes y;
    LANES_EACH_ y.v[j] = (uint32_t)j < n ? p[j] : 0;
    return y;
}
LANES_INLINE struct lanes lanes_load(const float *p)
{
    return lanes_load_n(p, 16);
}
LANES_INLINE void lanes_store_n(float *p, struct lanes x, uint32_t n)
{
    memcpy(p, x.v, n * sizeof *p);
}
LANES_INLINE void lanes_store(float *p, struct lanes x)
{
    lanes_store_n(p, x, 16);
}
#define LANES_EACH_LANE_(name, expression)                                                                             \
    LANES_INLINE struct lanes name(struct lanes x, struct lanes y)                                                     \
    {                                                                                                                  \
        LANES_EACH_ x.v[j] = (expression);                                                                             \
        return x;                                                                                                      \
    }
LANES_EACH_LANE_(lanes_add, x.v[j] + y.v[j])
LANES_EACH_LANE_(lanes_sub, x.v[j] - y.v[j])
LANES_EACH_LANE_(lanes_mul, x.v[j] * y.v[j])
LANES_EACH_LANE_(lanes_div, x.v[j] / y.v[j])
/* b where either is NaN; so is lanes_min */
LANES_EACH_LANE_(lanes_max, x.v[j] > y.v[j] ? x.v[j] : y.v[j])
LANES_EACH_LANE_(lanes_min, x.v[j] < y.v[j] ? x.v[j] : y.v[j])
LANES_INLINE struct lanes lanes_fma(struct lanes x, struct lanes y, struct lanes z)
{
    LANES_EACH_ x.v[j] = fmaf(x.v[j], y.v[j], z.v[j]);
    return x;
}
/* lanes below n from x, the others from y */
LANES_INLINE struct lanes lanes_first(uint32_t n, struct lanes x, struct lanes y)
{
    LANES_EACH_ if ((uint32_t)j >= n) x.v[j] = y.v[j];
    return x;
}
/* y, but 0 where x < limit */
LANES_INLINE struct lanes lanes_zero_below(struct lanes x, struct lanes limit, struct lanes y)
{
    LANES_EACH_ if (x.v[j] < limit.v[j]) y.v[j] = 0;
    return y;
}
/* lane 2i with lane 2i + 1 */
LANES_INLINE struct lanes lanes_swap_pairs(struct lanes x)
{
    struct lanes y;
    LANES_EACH_ y.v[j] = x.v[j ^ 1];
    return y;
}
/* 2^n, for t = n + LANES_ROUND and n in -126..127 */
LANES_INLINE struct lanes lanes_power_of_two(struct lanes t)
{
    uint32_t bits[16];
    memcpy(bits, t.v, sizeof bits);
    LANES_EACH_ bits[j] = (bits[j] << 23) + 0x3f800000u;
    memcpy(t.v, bits, sizeof bits);
    return t;
}
/* bit j: x[j] >= y[j], x[j] > y[j], x[j] == y[j] */
LANES_INLINE uint32_t lanes_mask_ge(struct lanes x, struct lanes y)
{
    uint32_t mask = 0;
    LANES_EACH_ mask |= (uint32_t)(x.v[j] >= y.v[j]) << j;
    return mask;
}
LANES_INLINE uint32_t lanes_mask_gt(struct lanes x, struct lanes y)
{
    uint32_t mask = 0;
    LANES_EACH_ mask |= (uint32_t)(x.v[j] > y.v[j]) << j;
    return mask;
}
LANES_INLINE uint32_t lanes_mask_eq(struct lanes x, struct lanes y)
{
    uint32_t mask = 0;
    LANES_EACH_ mask |= (uint32_t)(x.v[j] == y.v[j]) << j;
    return mask;
}
/* sixteen double lanes, to sum f32 lanes in */
struct lanes_double {
    double v[16];
};
LANES_INLINE struct lanes_double lanes_double_zero(void)
{
    struct lanes_double zero;
    LANES_EACH_ zero.v[j] = 0;
    return zero;
}
LANES_INLINE struct lanes_double lanes_double_add(struct lanes_double sum, struct lanes x)
{
    LANES_EACH_ sum.v[j] = sum.v[j] + (double)x.v[j];
    return sum;
}
LANES_INLINE void lanes_double_store(double *p, struct lanes_double x)
{
    memcpy(p, x.v, sizeof x.v);
}

#endif
