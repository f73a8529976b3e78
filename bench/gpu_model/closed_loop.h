/* The real engine on a real device under a closed loop of clients: what the simulator is held against. */
#ifndef BENCH_GPU_MODEL_CLOSED_LOOP_H
#define BENCH_GPU_MODEL_CLOSED_LOOP_H

#include "bench/gpu_model/cluster.h"
#include "runtime/device/device.h"
#include "runtime/text/tokenizer.h"

/* Runs `count` requests with config->clients clients on one engine whose limits are config->sched's. Real time passes.
 * host_s of the report's steps is what the engine's thread needed beside the device. ST_DEVICE, ST_NOMEM, ST_INVAL. */
NODISCARD enum status closed_loop_run(const struct cluster_config *config, struct device *device,
                                      const struct tokenizer *tokenizer, struct cluster_request *requests,
                                      uint32_t count, struct cluster_report *report, struct error *err);

#endif
