/* The serving process: loop, listener, models, time, signals and the end of it all.
 *
 *   LOADING --all up--> READY --SIGTERM--> DRAINING --delay--> REFUSING --no call left, or time-out--> CLOSING -> exit
 *      |                  |                                                                             ^
 *      +--load failed-----|--engine lost (exit code 3)---------------------------------------------------+
 *
 * The port listens before a model is loaded, so that health checks have an answer from the start. LOADING ends when
 * all models of the start have come up; those that are up serve before. Main thread. */
#ifndef SERVER_SERVE_H
#define SERVER_SERVE_H

#include "server/config.h"
#include "server/models.h"

#include <stdint.h>

struct serve_setup {
    const struct config *config;
    struct models_hooks hooks;     /* how models are opened, built and freed. Tests bring a null device here */
    uint64_t stream_head_after_ns; /* 0: 10 s */
    uint64_t stream_keep_alive_ns; /* 0: 15 s */
};

/* Serves until told to stop. Returns the process's exit code (cmd.h). */
int serve_run(const struct serve_setup *setup);

#endif
