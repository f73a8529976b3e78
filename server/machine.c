/* Cores from sched_getaffinity and sysfs topology, limits from cgroup v2; see machine.h. */
#include "server/machine.h"

#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The first line of a small file, without its newline; "" when it cannot be read. */
static void first_line(const char *path, char *line, int size)
{
    line[0] = 0;
    FILE *file = fopen(path, "r");
    if (!file) return;
    if (!fgets(line, size, file)) line[0] = 0;
    fclose(file);
    line[strcspn(line, "\n")] = 0;
}

/* Whether cpu is the lowest-numbered of the hyperthreads on its core that this process may use. */
static bool leads_its_core(int cpu, const cpu_set_t *allowed)
{
    char path[96], line[256];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    first_line(path, line, sizeof line);
    for (char *at = line; *at;) { /* "0,32" or "0-1" */
        char *end;
        long first = strtol(at, &end, 10), last = first;
        if (end == at) break;
        if (*end == '-') last = strtol(end + 1, &end, 10);
        for (long sibling = first; sibling <= last && sibling < cpu; sibling++)
            if (sibling >= 0 && CPU_ISSET(sibling, allowed)) return false;
        at = *end == ',' ? end + 1 : end + strlen(end);
    }
    return true;
}

static uint32_t quota_cores(void)
{
    char line[64];
    first_line("/sys/fs/cgroup/cpu.max", line, sizeof line); /* "max 100000" or "150000 100000": microseconds */
    uint64_t quota, period;
    if (sscanf(line, "%" SCNu64 " %" SCNu64, &quota, &period) != 2 || !period) return UINT32_MAX;
    return (uint32_t)((quota + period - 1) / period);
}

uint32_t machine_cores(void)
{
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    uint32_t cores = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && leads_its_core(cpu, &allowed)) cores++;
    uint32_t quota = quota_cores();
    if (quota < cores) cores = quota;
    return cores ? cores : 1;
}

uint64_t machine_memory_bytes(void)
{
    uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGE_SIZE), limit;
    char line[64];
    first_line("/sys/fs/cgroup/memory.max", line, sizeof line);
    if (sscanf(line, "%" SCNu64, &limit) == 1 && limit < bytes) bytes = limit;
    return bytes;
}
