/* Where the CUDA device keeps cuBLASLt's algorithms from start to start (runtime/device/cuda/matmul_choice.h), by
 * --matmul-file and the environment. Pure; any thread.
 *
 *   auto       $XDG_CACHE_HOME/millrace, else $HOME/.cache/millrace: a folder, in which the device names the file
 *   none, ""   nowhere
 *   FILE       there
 *
 * Source of the folder: XDG Base Directory Specification 0.8, which has relative paths ignored. */
#ifndef SERVER_MATMUL_PLACE_H
#define SERVER_MATMUL_PLACE_H

#include <stdbool.h>

struct matmul_place {
    const char *file;   /* NULL, or what the option says */
    const char *folder; /* NULL, or path */
    bool homeless;      /* auto, and the environment names no folder */
    char path[4096];
};

/* cache_home, home: the values of XDG_CACHE_HOME and HOME, or NULL. option: borrowed as long as place is used. */
void matmul_place_find(struct matmul_place *place, const char *option, const char *cache_home, const char *home);

#endif
