/* See comm_local.h. */
#include "runtime/device/comm_local.h"

#include "runtime/base/mem.h"
#include "runtime/base/pause.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAGIC = 0x636f6d6d, LINE = 64 };

enum kind { KIND_ALL_REDUCE = 1, KIND_GATHER, KIND_BROADCAST, KIND_PASS, KIND_BARRIER };

struct shared { /* the header; shared by processes */
    uint32_t magic, ranks;
    uint64_t slot_bytes;
    _Alignas(LINE) _Atomic uint32_t aborted;
    _Alignas(LINE) _Atomic uint32_t arrived;  /* ranks at the barrier in hand */
    _Alignas(LINE) _Atomic uint32_t meetings; /* barriers completed; waiters sleep on it */
    _Atomic uint32_t sleepers;
};

struct note { /* what a rank thinks is being done */
    _Alignas(LINE) uint32_t kind;
    uint32_t root;
    uint64_t offset, size_bytes;
};

struct local {
    struct comm comm; /* first */
    struct shared *shared;
    struct note *notes;
    uint8_t *slots;
    size_t slot_bytes;
    uint64_t deadline_ns, spin_ns;
    const struct clock *clock;
    uint32_t set; /* of slots and notes: 0 or 1 */
};

_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "shared between processes");
_Static_assert(sizeof(struct shared) % LINE == 0 && sizeof(struct note) == LINE, "lines of their own");

static struct local *local_of(struct comm *comm)
{
    return (struct local *)(void *)comm;
}

static void advance(struct shared *shared)
{
    atomic_fetch_add(&shared->meetings, 1);
    if (atomic_load(&shared->sleepers)) syscall(SYS_futex, &shared->meetings, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void comm_local_abort(void *memory)
{
    struct shared *shared = memory;
    atomic_store(&shared->aborted, 1);
    advance(shared); /* a barrier that is not complete ends: all look at `aborted` behind it */
}

static void abort_all(struct comm *comm)
{
    comm_local_abort(local_of(comm)->shared);
}

static bool is_aborted(const struct local *local)
{
    return atomic_load_explicit(&local->shared->aborted, memory_order_acquire);
}

/* Until `meetings` is no longer `old`. False: the deadline passed. */
static bool wait_meeting(struct local *local, uint32_t old)
{
    struct shared *shared = local->shared;
    uint64_t begin_ns = clock_now_ns(local->clock), waited_ns = 0;
    while (waited_ns < local->spin_ns) {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&shared->meetings, memory_order_acquire) != old) return true;
            pause_cpu();
        }
        waited_ns = clock_now_ns(local->clock) - begin_ns;
    }
    bool met = false;
    atomic_fetch_add(&shared->sleepers, 1); /* before the value is read again: see advance */
    while (!(met = atomic_load(&shared->meetings) != old) && waited_ns < local->deadline_ns) {
        uint64_t left_ns = local->deadline_ns - waited_ns;
        struct timespec left = {(time_t)(left_ns / NS_PER_S), (long)(left_ns % NS_PER_S)};
        syscall(SYS_futex, &shared->meetings, FUTEX_WAIT, old, &left, NULL, 0);
        waited_ns = clock_now_ns(local->clock) - begin_ns;
    }
    atomic_fetch_sub(&shared->sleepers, 1);
    return met;
}

/* All ranks meet. What they wrote before is seen by all after it. */
static enum status meet(struct local *local)
{
    struct shared *shared = local->shared;
    uint32_t meeting = atomic_load_explicit(&shared->meetings, memory_order_acquire);
    if (is_aborted(local)) return ST_CANCELED;
    if (atomic_fetch_add(&shared->arrived, 1) + 1 == local->comm.ranks) {
        atomic_store_explicit(&shared->arrived, 0, memory_order_relaxed);
        advance(shared);
    } else if (!wait_meeting(local, meeting)) {
        abort_all(&local->comm);
        return ST_TIMEOUT;
    }
    return is_aborted(local) ? ST_CANCELED : ST_OK;
}

static struct note *note_of(const struct local *local, uint32_t rank)
{
    return &local->notes[local->set * local->comm.ranks + rank];
}

static uint8_t *slot_of(const struct local *local, uint32_t rank)
{
    return local->slots + (local->set * local->comm.ranks + rank) * local->slot_bytes;
}

/* Puts a piece into this rank's slot, meets the others and makes sure that they are about the same thing. data NULL:
 * this rank brings none. */
static enum status exchange(struct local *local, struct note note, const void *data)
{
    if (is_aborted(local)) return ST_CANCELED;
    *note_of(local, local->comm.rank) = note;
    if (data) memcpy(slot_of(local, local->comm.rank), data, note.size_bytes);
    TRY(meet(local));
    for (uint32_t rank = 0; rank < local->comm.ranks; rank++) {
        const struct note *other = note_of(local, rank);
        if (other->kind == note.kind && other->root == note.root && other->offset == note.offset &&
            other->size_bytes == note.size_bytes)
            continue;
        abort_all(&local->comm);
        return ST_PROTO;
    }
    return ST_OK;
}

/* The piece is read: the next one goes to the other set. */
static void turn_over(struct local *local)
{
    local->set ^= 1;
}

static size_t piece_of(const struct local *local, size_t left_bytes)
{
    return left_bytes < local->slot_bytes ? left_bytes : local->slot_bytes;
}

static void add(float *restrict sum, const float *restrict other, size_t count)
{
    for (size_t i = 0; i < count; i++) sum[i] = sum[i] + other[i];
}

static enum status all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type, void *stream)
{
    struct local *local = local_of(comm);
    size_t size_bytes = count * sizeof(float);
    (void)stream;
    if (type != COMM_F32) return ST_INVAL;
    for (size_t offset = 0; offset < size_bytes; offset += local->slot_bytes) {
        size_t bytes = piece_of(local, size_bytes - offset);
        float *piece = (float *)(void *)((uint8_t *)data + offset);
        TRY(exchange(local, (struct note){KIND_ALL_REDUCE, 0, offset, bytes}, piece));
        memcpy(piece, slot_of(local, 0), bytes);
        for (uint32_t rank = 1; rank < comm->ranks; rank++)
            add(piece, (const float *)(const void *)slot_of(local, rank), bytes / sizeof(float));
        turn_over(local);
    }
    return ST_OK;
}

static enum status gather(struct comm *comm, const void *part, size_t part_bytes, void *all, uint32_t root,
                          void *stream)
{
    struct local *local = local_of(comm);
    bool wanted = root == COMM_ALL || root == comm->rank;
    (void)stream;
    for (size_t offset = 0; offset < part_bytes; offset += local->slot_bytes) {
        size_t bytes = piece_of(local, part_bytes - offset);
        TRY(exchange(local, (struct note){KIND_GATHER, root, offset, bytes}, (const uint8_t *)part + offset));
        for (uint32_t rank = 0; wanted && rank < comm->ranks; rank++)
            memcpy((uint8_t *)all + rank * part_bytes + offset, slot_of(local, rank), bytes);
        turn_over(local);
    }
    return ST_OK;
}

/* data of rank `from` to those that want it. `whole` says what is done, but for the piece. */
static enum status hand_over(struct local *local, struct note whole, uint32_t from, bool wanted, void *data)
{
    bool own = from == local->comm.rank;
    for (size_t offset = 0; offset < whole.size_bytes; offset += local->slot_bytes) {
        struct note note = {whole.kind, whole.root, offset, piece_of(local, whole.size_bytes - offset)};
        TRY(exchange(local, note, own ? (const uint8_t *)data + offset : NULL));
        if (wanted && !own) memcpy((uint8_t *)data + offset, slot_of(local, from), note.size_bytes);
        turn_over(local);
    }
    return ST_OK;
}

static enum status broadcast(struct comm *comm, void *data, size_t size_bytes, uint32_t root, void *stream)
{
    (void)stream;
    return hand_over(local_of(comm), (struct note){KIND_BROADCAST, root, 0, size_bytes}, root, true, data);
}

static enum status pass(struct comm *comm, void *data, size_t size_bytes, uint32_t from, uint32_t to, void *stream)
{
    struct note note = {KIND_PASS, from * comm->ranks + to, 0, size_bytes};
    (void)stream;
    return hand_over(local_of(comm), note, from, to == comm->rank, data);
}

static enum status barrier(struct comm *comm)
{
    struct local *local = local_of(comm);
    TRY(exchange(local, (struct note){.kind = KIND_BARRIER}, NULL));
    turn_over(local);
    return ST_OK;
}

static void destroy(struct comm *comm)
{
    mem_free(local_of(comm));
}

static size_t notes_bytes(uint32_t ranks)
{
    return (size_t)2 * ranks * sizeof(struct note);
}

size_t comm_local_bytes(uint32_t ranks, size_t slot_bytes)
{
    return sizeof(struct shared) + notes_bytes(ranks) + (size_t)2 * ranks * slot_bytes;
}

void comm_local_prepare(void *memory, uint32_t ranks, size_t slot_bytes)
{
    struct shared *shared = memory;
    shared->ranks = ranks;
    shared->slot_bytes = slot_bytes;
    shared->magic = MAGIC;
}

enum status comm_local_join(void *memory, const struct comm_local_config *config, struct comm **comm)
{
    static const struct comm_ops ops = {all_reduce, gather, broadcast, pass, barrier, abort_all, destroy};
    struct shared *shared = memory;
    if (shared->magic != MAGIC || shared->ranks != config->ranks || shared->slot_bytes != config->slot_bytes ||
        config->rank >= config->ranks || config->slot_bytes == 0 || config->slot_bytes % LINE)
        return ST_INVAL;
    struct local *local = mem_alloc(1, sizeof *local);
    if (!local) return ST_NOMEM;
    *local = (struct local){
        .comm = {&ops, config->rank, config->ranks},
        .shared = shared,
        .notes = (struct note *)(void *)((uint8_t *)memory + sizeof *shared),
        .slots = (uint8_t *)memory + sizeof *shared + notes_bytes(config->ranks),
        .slot_bytes = config->slot_bytes,
        .deadline_ns = config->deadline_ns,
        .spin_ns = config->spin_ns,
        .clock = config->clock,
    };
    *comm = &local->comm;
    return ST_OK;
}

enum status comm_memory_create(size_t size_bytes, int *fd, void **memory)
{
    int made = memfd_create("millrace-ranks", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made < 0) return ST_NOMEM;
    if (ftruncate(made, (off_t)size_bytes) == 0 && fcntl(made, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0 &&
        comm_memory_map(made, size_bytes, memory) == ST_OK) {
        *fd = made;
        return ST_OK;
    }
    close(made);
    return ST_NOMEM;
}

enum status comm_memory_map(int fd, size_t size_bytes, void **memory)
{
    struct stat info;
    if (fstat(fd, &info) || (uint64_t)info.st_size != size_bytes) return ST_IO;
    void *mapped = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) return ST_IO;
    *memory = mapped;
    return ST_OK;
}

void comm_memory_unmap(void *memory, size_t size_bytes)
{
    munmap(memory, size_bytes);
}
