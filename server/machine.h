/* What this process may use of the machine: cores and memory, container limits included. Reads /proc and /sys; any
 * thread. */
#ifndef SERVER_MACHINE_H
#define SERVER_MACHINE_H

#include <stdint.h>

/* Physical cores this process may run on: the affinity mask without second hyperthreads, at most the cgroup's CPU quota
 * (rounded up). At least 1. */
uint32_t machine_cores(void);

/* Bytes of memory this process may use: the machine's, or the cgroup's limit where that is lower. */
uint64_t machine_memory_bytes(void);

#endif
