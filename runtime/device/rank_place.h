/* Which of several processes this one is, and where process 0 can be met: from options, or from the environment of
 * whatever started them. One process a node, or a process a GPU: `local` counts those of a machine. Pure.
 *
 *   options           --nnodes --node-rank --master-addr --master-port: nodes 1 turns the rest off
 *   torchrun          RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT
 *   LeaderWorkerSet   LWS_WORKER_INDEX LWS_GROUP_SIZE LWS_LEADER_ADDRESS
 *   Open MPI          OMPI_COMM_WORLD_RANK, .._SIZE, .._LOCAL_RANK; the address from --master-addr or MASTER_ADDR
 *   Slurm             SLURM_PROCID SLURM_NTASKS SLURM_LOCALID and the first of SLURM_JOB_NODELIST, under srun alone: a
 *                     batch script has these variables too, as process 0 of tasks that nobody has started
 *
 * The first that is there decides; address and port of the options go before any launcher's. Sources: PyTorch's
 * torchrun, LeaderWorkerSet's, Open MPI's and Slurm's documentation of these variables. */
#ifndef RUNTIME_DEVICE_RANK_PLACE_H
#define RUNTIME_DEVICE_RANK_PLACE_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { RANK_PLACES_MAX = 1024, RANK_ADDRESS_MAX = 256, RANK_PORT_DEFAULT = 29500 /* torchrun's */ };

struct rank_place {
    uint32_t process, processes; /* processes 1: alone, nothing below is set */
    uint32_t local;              /* among those of this machine */
    char address[RANK_ADDRESS_MAX];
    uint16_t port;
    const char *source; /* "torchrun"; static */
};

struct rank_place_options {
    uint32_t nodes; /* 0: as the environment says */
    bool has_node_rank;
    uint32_t node_rank;
    const char *address; /* NULL: as the environment says */
    uint32_t port;       /* 0: the same */
};

/* environment: "NAME=value" strings and NULL. ST_INVAL: something is missing, no number or does not fit; err names it.
 */
NODISCARD enum status rank_place_find(const struct rank_place_options *options, char *const *environment,
                                      struct rank_place *place, struct error *err);

#endif
