/* Ranks as threads of the test: the start of a device_ranks_config, for tests that need no processes. */
#ifndef TESTS_SUPPORT_RANK_THREADS_H
#define TESTS_SUPPORT_RANK_THREADS_H

#include "runtime/device/device_ranks.h"
#include "runtime/device/rank_worker.h"
#include "runtime/model/model_shard.h"

#include <pthread.h>

struct rank_thread {
    pthread_t thread;
    const struct rank_worker_config *config;
    int socket;
    enum status status; /* how it ended */
    struct error err;
};

struct rank_threads {
    struct rank_worker_config config; /* of all: open, close, state */
    uint32_t count;
    struct rank_thread threads[MODEL_RANKS_MAX];
};

/* For device_ranks_config.start, with a struct rank_threads as its state. */
enum status rank_threads_start(void *state, uint32_t rank, int socket, int32_t *pid);
/* After device_destroy, or a device_ranks_create that failed: waits for them. */
void rank_threads_join(struct rank_threads *threads);

#endif
