/* From a configuration to a model that can serve: file, vocabulary, template, device. Shared by serve and generate.
 *
 *   load_open:  file, vocabulary, template -> what the model needs
 *   load_build: device, packed weights; the file is let go
 *
 * In between the memory of several models can be divided (memory_plan.h). */
#ifndef SERVER_LOAD_H
#define SERVER_LOAD_H

#include "runtime/device/device.h"
#include "runtime/device/device_share.h"
#include "runtime/model/model.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "server/config.h"

struct loaded {
    struct model *model;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template; /* NULL: the model has none */
    struct device *device;               /* NULL before load_build */
    bool on_cuda;                        /* decided by load_open */
    uint32_t context_max;
    char path[1024]; /* for ranks, which open the model again */
};

struct load_need {
    uint64_t weights_bytes;  /* of the file; packed they may differ */
    uint64_t kv_least_bytes; /* KV of one sequence of full context */
};

/* The CUDA device (runtime/device/device_cuda.h), for binaries that have it: main.c sets it before anything is loaded,
 * NULL takes it away again. Without it --device cuda is refused, and auto is the CPU. */
struct device_cuda_config;
struct cuda_libraries;
struct load_cuda {
    enum status (*probe)(uint32_t *gpus, struct error *err);
    enum status (*create)(const struct model *model, const struct device_cuda_config *config,
                          device_progress_fn progress, void *progress_state, struct device **device, struct error *err);
    enum status (*id)(const struct cuda_libraries *libraries, uint8_t id[DEVICE_SHARE_ID_BYTES], struct error *err);
};
void load_set_cuda(const struct load_cuda *calls);

/* Opens and checks a model, and decides which device it will run on. The caller's thread: the server runs it on a
 * thread of its own, so that it already answers /health while loading. ST_*: err is one line, and *loaded is empty;
 * ST_NOTFOUND, ST_INVAL also when --device cuda cannot be had, or does not go with another option. */
NODISCARD enum status load_open(const struct config *config, const char *path, struct loaded *loaded,
                                struct load_need *need, struct error *err);
/* Packs the weights (with a progress bar on a terminal, else a line at the end) and takes kv_bytes for KV blocks, at
 * least what load_open found to be needed. On failure *loaded is empty. */
NODISCARD enum status load_build(const struct config *config, uint64_t kv_bytes, struct loaded *loaded,
                                 struct error *err);
/* In place of load_build, as a process of several that is not the first: its part of the device, and process 0's steps
 * until it says goodbye (nodes.h). *loaded is empty afterwards. */
NODISCARD enum status load_follow(const struct config *config, struct loaded *loaded, bool (*stop)(void),
                                  struct error *err);
/* Both, for the configuration's first model and with the KV memory that it sets. */
NODISCARD enum status load_model(const struct config *config, struct loaded *loaded, struct error *err);
void load_free(struct loaded *loaded);

/* What all models of the process may take: the option, or nine tenths of what the machine or the cgroup gives. */
uint64_t load_memory_limit(const struct config *config);

#endif
