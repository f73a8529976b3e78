/* What ranks of several processes hand each other for the fake NCCL: a file that all of them map. Its name is the id of
 * the communicator, in the folder that CUSIM_NCCL names; without it ranks are threads of one process.
 *
 * A rank has two slots that it writes in turn, one a collective. It writes the next but one only after it has finished
 * the next, for which every other rank must have finished this one: so two are enough. A slot holds what the rank
 * sends. */
#ifndef TESTS_EMULATOR_NCCL_PROCESSES_H
#define TESTS_EMULATOR_NCCL_PROCESSES_H

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace nccl_processes
{
enum { RANKS_MAX = 16 };
const size_t PART_BYTES_MAX = (size_t)64 << 20; /* the file is sparse */

struct Said { /* what a rank says it does; all must say the same */
    int kind, type, op, root;
    uint64_t count;
};

struct Shared;

/* Writes the path of a new file of this process into path. False: no CUSIM_NCCL. */
bool make(char *path, size_t path_bytes);
/* The file of that path, mapped; once a rank. */
Shared *join(const char *path, int rank, int ranks);
bool all_joined(const Shared *shared);
void send(Shared *shared, int rank, uint64_t sequence, const Said &said, const void *data, size_t bytes);
/* Has every rank sent it? */
bool all_sent(const Shared *shared, uint64_t sequence);
const Said &said(const Shared *shared, int rank, uint64_t sequence);
const void *part(const Shared *shared, int rank, uint64_t sequence);
} // namespace nccl_processes

#endif
