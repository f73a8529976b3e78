/* The CUDA device: device.h on one GPU or several. Built where a CUDA toolkit is (MILLRACE_CUDA); its libraries are
 * opened when it is created, so the binary starts on machines without a GPU. */
#ifndef RUNTIME_DEVICE_DEVICE_CUDA_H
#define RUNTIME_DEVICE_DEVICE_CUDA_H

#include "runtime/device/device.h"
#include "runtime/device/device_share.h"

struct cuda_libraries; /* runtime/device/cuda/cuda_api.h: cuBLASLt, NCCL, NVML; NULL: opened with dlopen */

enum cuda_dtype { CUDA_DTYPE_AUTO /* as the file */, CUDA_DTYPE_BF16, CUDA_DTYPE_FP8 };

struct device_cuda_config {
    uint32_t ranks;            /* GPUs of this process: --tensor-parallel-size, or its part of it */
    uint32_t stages;           /* of layers, over which all ranks are divided: --pipeline-parallel-size; 0: 1 */
    uint32_t first_gpu;        /* their ids are first_gpu .. first_gpu + ranks - 1 */
    enum cuda_dtype dtype;     /* of the weights of matmuls */
    bool kv_fp8;               /* KV in E4M3 with a scale a token and head, in place of BF16 */
    double memory_utilization; /* share of a GPU's memory that all of this may take, (0, 1] */
    bool graphs;               /* decode steps are replayed as CUDA graphs */
    bool deterministic;        /* no cuBLASLt, no NCCL sums: bits depend on nothing but the request */
    uint32_t tokens_max, seqs_max, rows_max, context_max; /* as struct device_config */
    uint64_t step_deadline_ns; /* least time after which a step counts as hung; 0: 2 s. Slow steps get 20 times what
                                  their like took */
    size_t spare_bytes;        /* memory of a GPU left for the driver and graphs; 0: 256 MiB */
    size_t one_shot_bytes;   /* sums over GPUs of at most so many bytes are our own kernel's, others NCCL's; 0: 512 KiB.
                                With deterministic all are ours */
    const char *matmul_file; /* where algorithms of cuBLASLt are kept from start to start (matmul_choice.h), or NULL */
    const char *matmul_folder; /* where, without it, one file a GPU's name and library is kept for them, or NULL */
    const struct cuda_libraries *libraries;
    const struct device_share *share; /* where other processes have more ranks (device_nodes.h), else NULL; outlives
                                         the device. All sums are then NCCL's: not with deterministic */
};

/* How many GPUs there are, in *gpus (at least 1), or why none can be used: ST_NOTFOUND, err is one line. */
NODISCARD enum status device_cuda_probe(uint32_t *gpus, struct error *err);

/* The id by which GPUs of several processes find each other, made by one of them. libraries as in the config.
 * ST_NOTFOUND: no NCCL; ST_DEVICE. */
NODISCARD enum status device_cuda_nccl_id(const struct cuda_libraries *libraries, uint8_t id[DEVICE_SHARE_ID_BYTES],
                                          struct error *err);

/* Loads the model's weights onto the GPUs and takes all memory the device will ever need; KV gets what is left of
 * memory_utilization. ST_NOTFOUND: no GPU, driver or library; ST_NOMEM: err names what did not fit, what is free and
 * the option to lower; ST_INVAL: the model or setting cannot be split or run so; ST_DEVICE. The caller owns the device.
 */
NODISCARD enum status device_cuda_create(const struct model *model, const struct device_cuda_config *config,
                                         device_progress_fn progress, void *progress_state, struct device **device,
                                         struct error *err);

#endif
