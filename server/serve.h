/* The serving process: loop, listener, loader thread, engine, time, signals and the end of it all.
 *
 *   LOADING --loaded--> READY --SIGTERM--> DRAINING --delay--> REFUSING --no call left, or time-out--> CLOSING -> exit
 *      |                  |                                                                             ^
 *      +--load failed-----|--engine lost (exit code 3)---------------------------------------------------+
 *
 * The port listens before the model is loaded, so that health checks have an answer from the start. Main thread. */
#ifndef SERVER_SERVE_H
#define SERVER_SERVE_H

#include "server/config.h"
#include "server/load.h"

#include <stdint.h>

struct serve_setup {
    const struct config *config;
    /* Makes the model ready; on a thread of its own. Tests bring a null device here. */
    enum status (*load)(const struct config *config, struct loaded *loaded, struct error *err);
    void (*unload)(struct loaded *loaded);
    uint64_t stream_head_after_ns; /* 0: 10 s */
    uint64_t stream_keep_alive_ns; /* 0: 15 s */
};

/* Serves until told to stop. Returns the process's exit code (cmd.h). */
int serve_run(const struct serve_setup *setup);

#endif
