/* A model over several processes with GPUs (--nnodes, or a launcher's environment): which of them this is, the secret
 * that they share, and what must be the same everywhere. Process 0 serves; the others run its steps
 * (runtime/device/device_nodes.h). */
#ifndef SERVER_NODES_H
#define SERVER_NODES_H

#include "runtime/device/device.h"
#include "runtime/model/model.h"
#include "server/config.h"

struct device_cuda_config;
struct load_cuda;

/* Fills config->place from the options and the environment. ST_INVAL: err is one line. */
NODISCARD enum status nodes_find_place(struct config *config, char *const *environment, struct error *err);
/* Before anything is opened: do the options go with several processes, and is there a secret? ST_INVAL, ST_NOTFOUND,
 * ST_IO. */
NODISCARD enum status nodes_check(const struct config *config, struct error *err);
/* GPUs of this process: its part of --tensor-parallel-size times --pipeline-parallel-size. */
uint32_t nodes_ranks(const struct config *config);

struct nodes_work {
    const struct config *config;
    const struct load_cuda *calls;
    const struct device_cuda_config *settings; /* of this process's part; first_gpu and share are set here */
    struct model *model;
    device_progress_fn progress;
    void *progress_state;
    bool (*stop)(void); /* followers: leave now? NULL: never */
};

/* Process 0: waits for the others (--join-timeout) and makes the device of all. Errors of device_nodes_lead. */
NODISCARD enum status nodes_lead(const struct nodes_work *work, struct device **device, struct error *err);
/* The others: until process 0 says goodbye. Lets go of the model's file when its weights are loaded. Results of
 * device_nodes_follow. */
NODISCARD enum status nodes_follow(const struct nodes_work *work, struct error *err);

#endif
