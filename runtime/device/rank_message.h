/* What rank 0 and the processes of the other ranks tell each other, over a SOCK_SEQPACKET pair: one message a packet.
 * Private to device_ranks.c and rank_worker.c.
 *
 *   rank 0 -> rank   SETUP (with the shared memory's fd), then STEP, EMPTY_KV, .. , STOP
 *   rank -> rank 0   BEAT each second from the start; READY or FAILED after SETUP; FAILED whenever it gives up
 *
 * A STEP tells only how many bytes the batch has: these come by comm_broadcast, through the shared memory. Both ends
 * are of the same binary, so messages are structs; but each end checks what it gets, since one of them may be dying. */
#ifndef RUNTIME_DEVICE_RANK_MESSAGE_H
#define RUNTIME_DEVICE_RANK_MESSAGE_H

#include "runtime/base/status.h"
#include "runtime/device/device.h"

#include <stdbool.h>
#include <stdint.h>

enum rank_message_kind { RANK_SETUP = 1, RANK_STEP, RANK_EMPTY_KV, RANK_STOP, RANK_BEAT, RANK_READY, RANK_FAILED };

enum { RANK_PATH_MAX = 1024, RANK_BEAT_MS = 1000, RANK_SLOT_BYTES_MAX = 1 << 26, RANK_BATCH_BYTES_MAX = 1 << 30 };

struct rank_setup {
    uint32_t rank, ranks; /* numbers of all stages */
    uint32_t stages;      /* ranks / stages divide the matrices of each */
    int32_t parent_pid;
    uint32_t path, numerics, kv_int8, threads; /* as struct device_config */
    uint32_t kv_blocks, tokens_max, seqs_max, rows_max, context_max;
    uint64_t slot_bytes, deadline_ns, spin_ns; /* as struct comm_local_config */
    uint64_t batch_bytes_max, entries_max;     /* of a step */
    uint64_t file_bytes, parameters;           /* of the model, which must be the same */
    char model_path[RANK_PATH_MAX];            /* NUL-terminated */
};

struct rank_message {
    uint32_t magic, kind; /* enum rank_message_kind */
    union {
        struct rank_setup setup;
        uint64_t step_bytes;
        struct {
            uint64_t weights_bytes, scratch_bytes;
        } ready;
        struct {
            uint32_t status;
            char text[400]; /* NUL-terminated */
        } failed;
    } u;
};

/* fd: passed along, -1 for none. ST_IO: the other end is gone; ST_TIMEOUT: it has not read for the socket's time. */
NODISCARD enum status rank_send(int socket, const struct rank_message *message, int fd);
/* One message, and the fd that came with it or -1. Waits. ST_IO: the other end is gone; ST_PROTO: what came is no
 * message (its fds are closed). */
NODISCARD enum status rank_receive(int socket, struct rank_message *message, int *fd);

struct rank_message rank_message_of(enum rank_message_kind kind);
struct rank_message rank_message_failed(enum status status, const char *text);
/* Are the numbers of a setup within what a device and comm take, and the texts texts? */
bool rank_setup_is_sound(const struct rank_setup *setup);

#endif
