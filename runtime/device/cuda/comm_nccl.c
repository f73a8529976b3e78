/* NCCL behind comm.h: see comm_nccl.h. Source of the life cycle: NCCL's user guide, "Fault tolerance". */
#include "runtime/device/cuda/comm_nccl.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <pthread.h>
#include <time.h>

struct comm_nccl {
    struct comm comm; /* first */
    const struct nccl_table *nccl;
    struct nccl_comm *handle;
    pthread_mutex_t mutex; /* guards aborted: abort may meet destroy */
    bool aborted;
};

static struct comm_nccl *of(struct comm *comm)
{
    return (struct comm_nccl *)(void *)comm;
}

static void pause_ms(long ms)
{
    struct timespec pause = {0, ms * 1000000};
    (void)nanosleep(&pause, NULL);
}

static enum status status_of(int result)
{
    return result == NCCL_SUCCESS || result == NCCL_IN_PROGRESS ? ST_OK : ST_DEVICE;
}

static enum status all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type, void *stream)
{
    struct comm_nccl *own = of(comm);
    int nccl_type = type == COMM_F32 ? NCCL_TYPE_F32 : NCCL_TYPE_BF16;
    return status_of(own->nccl->all_reduce(data, data, count, nccl_type, NCCL_OP_SUM, own->handle, stream));
}

static enum status gather(struct comm *comm, const void *part, size_t part_bytes, void *all, uint32_t root,
                          void *stream)
{
    struct comm_nccl *own = of(comm);
    if (root != COMM_ALL) return ST_INVAL;
    return status_of(own->nccl->all_gather(part, all, part_bytes, NCCL_TYPE_UINT8, own->handle, stream));
}

static enum status broadcast(struct comm *comm, void *data, size_t size_bytes, uint32_t root, void *stream)
{
    (void)comm, (void)data, (void)size_bytes, (void)root, (void)stream;
    return ST_INVAL; /* all ranks draw from the same gathered logits */
}

static enum status pass(struct comm *comm, void *data, size_t size_bytes, uint32_t from, uint32_t to, void *stream)
{
    const struct nccl_table *nccl = of(comm)->nccl;
    struct nccl_comm *handle = of(comm)->handle;
    if (comm->rank == from) return status_of(nccl->send(data, size_bytes, NCCL_TYPE_UINT8, (int)to, handle, stream));
    if (comm->rank == to) return status_of(nccl->receive(data, size_bytes, NCCL_TYPE_UINT8, (int)from, handle, stream));
    return ST_OK; /* nothing is asked of the others */
}

static enum status barrier(struct comm *comm)
{
    (void)comm;
    return ST_INVAL;
}

static void give_up(struct comm *comm)
{
    struct comm_nccl *own = of(comm);
    pthread_mutex_lock(&own->mutex);
    if (!own->aborted) (void)own->nccl->abort_comm(own->handle);
    own->aborted = true;
    pthread_mutex_unlock(&own->mutex);
}

static void destroy(struct comm *comm)
{
    struct comm_nccl *own = of(comm);
    pthread_mutex_lock(&own->mutex);
    if (!own->aborted && own->nccl->finalize(own->handle) >= 0) {
        int result = NCCL_IN_PROGRESS;
        for (int i = 0; i < 1000 && result == NCCL_IN_PROGRESS; i++) {
            if (own->nccl->async_error(own->handle, &result) != NCCL_SUCCESS) break;
            if (result == NCCL_IN_PROGRESS) pause_ms(1);
        }
        (void)own->nccl->destroy(own->handle);
    }
    pthread_mutex_unlock(&own->mutex);
    pthread_mutex_destroy(&own->mutex);
    mem_free(own);
}

enum status comm_nccl_check(struct comm *comm, struct error *err)
{
    struct comm_nccl *own = of(comm);
    int result = NCCL_SUCCESS;
    pthread_mutex_lock(&own->mutex);
    if (own->aborted || own->nccl->async_error(own->handle, &result) != NCCL_SUCCESS) result = -1;
    pthread_mutex_unlock(&own->mutex);
    if (status_of(result) == ST_OK) return ST_OK;
    return error_set(err, ST_DEVICE, "NCCL: %s", result < 0 ? "aborted" : own->nccl->error_string(result));
}

/* Waits until every rank has come. */
static enum status meet(struct comm_nccl *own, const atomic_bool *stop, struct error *err)
{
    uint64_t deadline_ns = clock_now_ns(clock_system()) + 120 * NS_PER_S;
    for (;;) {
        int result = NCCL_SUCCESS;
        if (own->nccl->async_error(own->handle, &result) != NCCL_SUCCESS) result = -1;
        if (result == NCCL_SUCCESS) return ST_OK;
        if (result != NCCL_IN_PROGRESS)
            return error_set(err, ST_DEVICE, "NCCL cannot start: %s",
                             result < 0 ? "no state" : own->nccl->error_string(result));
        if (atomic_load(stop)) return error_set(err, ST_DEVICE, "NCCL: another rank failed");
        if (clock_now_ns(clock_system()) >= deadline_ns)
            return error_set(err, ST_DEVICE, "NCCL: not all ranks came within 120 s");
        pause_ms(1);
    }
}

enum status comm_nccl_create(const struct nccl_table *nccl, const struct nccl_id *id, uint32_t rank, uint32_t ranks,
                             const atomic_bool *stop, struct comm **comm, struct error *err)
{
    static const struct comm_ops ops = {all_reduce, gather, broadcast, pass, barrier, give_up, destroy};
    struct nccl_config config = {sizeof config, NCCL_CONFIG_MAGIC, NCCL_CONFIG_VERSION, 0};
    struct comm_nccl *own = mem_alloc(1, sizeof *own);
    if (!own) return error_set(err, ST_NOMEM, "no memory for a communicator");
    own->comm = (struct comm){&ops, rank, ranks};
    own->nccl = nccl;
    int result = nccl->init(&own->handle, (int)ranks, *id, (int)rank, &config);
    enum status status = status_of(result);
    if (status != ST_OK) {
        mem_free(own);
        return error_set(err, status, "NCCL cannot start: %s", nccl->error_string(result));
    }
    pthread_mutex_init(&own->mutex, NULL);
    status = meet(own, stop, err);
    if (status != ST_OK) {
        give_up(&own->comm);
        destroy(&own->comm);
        return status;
    }
    *comm = &own->comm;
    return ST_OK;
}
