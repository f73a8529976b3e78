/* What kernels did to memory under the emulator: for tests that hold a kernel to its traffic.
 *
 *   counters_start();
 *   counters_watch("weights", weights, bytes);
 *   ... launch, synchronise ...
 *   counters_stop();
 *   counters_range("weights", &r);    r.read_sectors == bytes / 32, r.sectors_touched == r.read_sectors: each byte once
 *
 * Counted: accesses through vec.cuh (load, store, load_once), __ldg and its kin, kx::cp_async*, ldmatrix, mma. NOT
 * counted: plain pointers (p[i]), atomics, copies of the runtime, cuBLASLt. The lanes of a warp that make the same
 * access (same line, same turn of the loop) are one request, as on a GPU: a 32-byte sector that several of them touch
 * counts once. There is no cache: a sector that two requests touch counts twice.
 *
 * Shared memory: 32 banks of 4 bytes; a request of 16-byte accesses goes in phases of 8 lanes, of 8-byte in 16, else in
 * 32; each phase costs as many wavefronts as the worst bank has different words; conflicts are the wavefronts beyond
 * one. Source: CUDA C++ Programming Guide, "Global Memory", "Shared Memory" (compute capability 5 and later).
 *
 * One thread starts and stops; counts are exact when everything that was launched has been waited for. */
#ifndef TESTS_EMULATOR_COUNTERS_H
#define TESTS_EMULATOR_COUNTERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kernel_counts {
    uint64_t launches;
    uint64_t read_bytes, written_bytes;     /* that lanes asked for, of global memory */
    uint64_t read_sectors, written_sectors; /* of 32 bytes */
    uint64_t read_requests, write_requests; /* a warp's accesses */
    uint64_t shared_requests, shared_wavefronts, shared_conflicts;
    uint64_t mma;
};

struct range_counts {
    uint64_t read_bytes, written_bytes, read_sectors, written_sectors;
    uint64_t sectors_touched;         /* different sectors read */
    uint64_t sectors_touched_written; /* different sectors written */
};

/* Forgets all counts and ranges; counts from now on. */
void counters_start(void);
void counters_stop(void);
/* Counts accesses of [p, p + bytes) under a name as well (64 ranges at most). Sectors are cut at multiples of 32 of p.
 */
void counters_watch(const char *name, const void *p, size_t bytes);
/* Sums over all kernels whose name begins with prefix ("" means all); false if none ran. */
bool counters_kernel(const char *prefix, struct kernel_counts *counts);
bool counters_range(const char *name, struct range_counts *counts);
/* One line a kernel and a range on stderr. */
void counters_print(void);
/* Graphs launched since the program began, on all devices; counted always. Any thread. */
uint64_t counters_graphs(void);

#ifdef __cplusplus
}
#endif
#endif
