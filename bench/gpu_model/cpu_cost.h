/* What steps of the CPU device cost, measured once and then a pure function:
 *
 *   t(step) = base(tokens) + row_s * rows + kv_s * KV positions read + pair_s * pairs
 *
 * base is measured at some counts of tokens and straight in between (a step is bound by memory at first, later by
 * multiplication). It is how the simulator is held against an engine that can be measured here. */
#ifndef BENCH_GPU_MODEL_CPU_COST_H
#define BENCH_GPU_MODEL_CPU_COST_H

#include "bench/gpu_model/step_shape.h"
#include "runtime/device/device.h"

enum { COST_POINTS = 10 };

struct cpu_cost {
    double tokens[COST_POINTS], base_s[COST_POINTS];
    double row_s, kv_s, pair_s;
};

/* Runs steps for about `seconds`. device: at least 64 sequences of 1,024 positions. ST_DEVICE, ST_NOMEM. */
NODISCARD enum status cpu_cost_measure(struct device *device, double seconds, struct cpu_cost *cost, struct error *err);
/* A cluster_step_fn. */
double cpu_cost_step(const void *state, const struct step_shape *step);

#endif
