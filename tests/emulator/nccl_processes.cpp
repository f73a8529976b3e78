/* See nccl_processes.h. */
#include "tests/emulator/nccl_processes.h"
#include "tests/emulator/engine.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace nccl_processes
{
namespace
{
struct Slot {
    std::atomic<uint64_t> sent; /* sequence + 1 */
    Said what;
    alignas(4096) char data[PART_BYTES_MAX];
};
struct Rank {
    std::atomic<uint32_t> joined;
    Slot slots[2];
};
} // namespace

struct Shared {
    std::atomic<uint32_t> ranks;
    Rank all[RANKS_MAX];
};

bool make(char *path, size_t path_bytes)
{
    static std::atomic<unsigned> made;
    const char *folder = getenv("CUSIM_NCCL");
    if (!folder || folder[0] != '/') return false;
    if ((size_t)snprintf(path, path_bytes, "%s/nccl-%d-%u", folder, (int)getpid(), made++) >= path_bytes)
        cs::die("CUSIM_NCCL: the folder's name is too long");
    const int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(Shared))) cs::die("CUSIM_NCCL: cannot make %s", path);
    close(fd);
    return true;
}

Shared *join(const char *path, int rank, int ranks)
{
    if (ranks > RANKS_MAX) cs::die("CUSIM_NCCL: %d ranks, at most %d", ranks, (int)RANKS_MAX);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    void *at = fd < 0 ? MAP_FAILED : mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) cs::die("CUSIM_NCCL: cannot map %s", path);
    close(fd);
    Shared *shared = (Shared *)at;
    shared->ranks.store((uint32_t)ranks);
    shared->all[rank].joined.store(1);
    return shared;
}

bool all_joined(const Shared *shared)
{
    for (uint32_t r = 0; r < shared->ranks.load(); r++)
        if (!shared->all[r].joined.load()) return false;
    return true;
}

void send(Shared *shared, int rank, uint64_t sequence, const Said &said, const void *data, size_t bytes)
{
    Slot &slot = shared->all[rank].slots[sequence % 2];
    if (bytes > PART_BYTES_MAX) cs::die("CUSIM_NCCL: a part of %zu bytes, at most %zu", bytes, PART_BYTES_MAX);
    slot.what = said;
    if (bytes) memcpy(slot.data, data, bytes);
    slot.sent.store(sequence + 1, std::memory_order_release);
}

bool all_sent(const Shared *shared, uint64_t sequence)
{
    for (uint32_t r = 0; r < shared->ranks.load(); r++)
        if (shared->all[r].slots[sequence % 2].sent.load(std::memory_order_acquire) != sequence + 1) return false;
    return true;
}

const Said &said(const Shared *shared, int rank, uint64_t sequence)
{
    return shared->all[rank].slots[sequence % 2].what;
}

const void *part(const Shared *shared, int rank, uint64_t sequence)
{
    return shared->all[rank].slots[sequence % 2].data;
}
} // namespace nccl_processes
