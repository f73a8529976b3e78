/* The other end of device_ranks.h: a rank's process, or in tests its thread. */
#ifndef RUNTIME_DEVICE_RANK_WORKER_H
#define RUNTIME_DEVICE_RANK_WORKER_H

#include "runtime/base/status.h"
#include "runtime/model/model.h"

struct rank_worker_config {
    /* Opens the model that rank 0 names; NULL: model_open and model_close. */
    enum status (*open)(void *state, const char *path, struct model **model, struct error *err);
    void (*close)(void *state, struct model *model);
    void *state;
    bool own_process; /* die when the parent does; leave signals of the terminal and of supervisors to it */
};

/* Serves rank 0 over the socket, which it closes, until rank 0 says stop or is gone: takes its part of the model, packs
 * it and runs steps. ST_OK: told to stop. ST_IO: rank 0 is gone. ST_PROTO, ST_NOMEM, ST_INVAL, ..: err; rank 0 has been
 * told. Whatever comes over the socket, it does not crash. */
NODISCARD enum status rank_worker_run(int socket, const struct rank_worker_config *config, struct error *err);

#endif
