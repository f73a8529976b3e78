/* See rank_worker.h.
 *
 *   main thread   SETUP -> memory, comms, model, part, device -> READY -> STEP .. -> STOP
 *   beat thread   a BEAT each second, from the start, also while the model is being packed
 *
 * The beat proves that the process is scheduled, not that a step goes on: that is the comm's deadline. When rank 0 is
 * gone the beat cannot be sent; then it ends whatever the main thread waits for. */
#include "runtime/device/rank_worker.h"

#include "runtime/base/cond.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "runtime/batch_wire.h"
#include "runtime/device/rank_comms.h"
#include "runtime/device/rank_message.h"
#include "runtime/model/model_stage.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct worker {
    const struct rank_worker_config *config;
    int socket;
    struct rank_setup setup;
    void *memory;
    size_t memory_bytes;
    struct rank_comms comms;
    struct device *device;
    struct batch *batch;
    block_id *entries;
    void *bytes; /* of a batch */

    pthread_t beat_thread;
    pthread_mutex_t mutex; /* guards stopping, and the comms against their beginning */
    pthread_cond_t condition;
    bool stopping, beating;
};

static enum status open_file(void *state, const char *path, struct model **model, struct error *err)
{
    (void)state;
    return model_open(path, model, err);
}

static void close_file(void *state, struct model *model)
{
    (void)state;
    model_close(model);
}

/* ---- the beat ---- */

static void *beat_main(void *state)
{
    struct worker *w = state;
    struct rank_message beat = rank_message_of(RANK_BEAT);
    pthread_mutex_lock(&w->mutex);
    while (!w->stopping) {
        if (rank_send(w->socket, &beat, -1) == ST_IO) {
            if (w->comms.memory) rank_comms_abort(&w->comms);
            break;
        }
        uint64_t until_ns = clock_now_ns(clock_system()) + RANK_BEAT_MS * NS_PER_MS;
        while (!w->stopping && cond_wait_until(&w->condition, &w->mutex, until_ns)) continue;
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

static enum status beat_start(struct worker *w)
{
    enum status status = thread_start(&w->beat_thread, beat_main, w);
    w->beating = status == ST_OK;
    return status;
}

static void beat_stop(struct worker *w)
{
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_cond_signal(&w->condition);
    pthread_mutex_unlock(&w->mutex);
    if (w->beating) pthread_join(w->beat_thread, NULL);
}

/* ---- the setup ---- */

static enum status join(struct worker *w, int fd, struct error *err)
{
    const struct rank_setup *s = &w->setup;
    struct comm_local_config config = {.rank = s->rank,
                                       .ranks = s->ranks,
                                       .slot_bytes = s->slot_bytes,
                                       .deadline_ns = s->deadline_ns,
                                       .spin_ns = s->spin_ns,
                                       .clock = clock_system()};
    struct rank_comms comms;
    w->memory_bytes = rank_comms_bytes(s->ranks / s->stages, s->stages, s->slot_bytes);
    if (comm_memory_map(fd, w->memory_bytes, &w->memory) != ST_OK)
        return error_set(err, ST_PROTO, "the ranks' shared memory is not what rank 0 says");
    enum status status = rank_comms_join(w->memory, &config, s->stages, &comms);
    if (status != ST_OK) return error_set(err, ST_PROTO, "the ranks' shared memory was not prepared");
    pthread_mutex_lock(&w->mutex);
    w->comms = comms;
    pthread_mutex_unlock(&w->mutex);
    return ST_OK;
}

static enum status make_device(struct worker *w, const struct model *whole, struct error *err)
{
    const struct rank_setup *s = &w->setup;
    struct model *part = NULL;
    if (whole->file_bytes != s->file_bytes || whole->spec.parameters != s->parameters)
        return error_set(err, ST_INVAL, "%.160s is another model than rank 0 has opened: was it replaced?",
                         s->model_path);
    struct model_place place = model_place_of(s->rank, s->ranks / s->stages, s->stages);
    TRY(model_divide(whole, place, &part, err));
    struct device_config config = {.path = (enum cpu_path)s->path,
                                   .numerics = (enum numerics)s->numerics,
                                   .kv_int8 = s->kv_int8,
                                   .threads = s->threads,
                                   .tokens_max = s->tokens_max,
                                   .seqs_max = s->seqs_max,
                                   .rows_max = s->rows_max,
                                   .context_max = s->context_max,
                                   .comm = w->comms.peers,
                                   .stages = w->comms.line};
    config.kv_bytes = s->kv_blocks * device_cpu_kv_block_bytes(&part->spec, config.numerics, config.kv_int8);
    enum status status = device_cpu_create(part, &config, NULL, NULL, &w->device, err);
    model_close(part);
    if (status == ST_OK && w->device->info.kv_blocks != s->kv_blocks)
        status = error_set(err, ST_INVAL, "%" PRIu32 " KV blocks, rank 0 has %" PRIu32, w->device->info.kv_blocks,
                           s->kv_blocks);
    return status;
}

static enum status make_buffers(struct worker *w, struct error *err)
{
    const struct rank_setup *s = &w->setup;
    w->bytes = mem_alloc(s->batch_bytes_max, 1);
    w->entries = mem_alloc(s->entries_max, sizeof *w->entries);
    if (!w->bytes || !w->entries || batch_create(s->tokens_max, s->seqs_max, s->rows_max, &w->batch) != ST_OK)
        return error_set(err, ST_NOMEM, "no memory for a rank's steps");
    return ST_OK;
}

/* Everything up to READY. */
static enum status set_up(struct worker *w, struct error *err)
{
    struct rank_message message;
    struct model *whole = NULL;
    int fd = -1;
    enum status status = rank_receive(w->socket, &message, &fd);
    if (status != ST_OK) return error_set(err, status, "no setup came from rank 0: %s", status_text(status));
    if (message.kind == RANK_SETUP && fd >= 0) {
        w->setup = message.u.setup;
        status = join(w, fd, err);
    } else if (message.kind == RANK_STOP) {
        status = error_set(err, ST_CANCELED, "rank 0 stopped before its setup");
    } else {
        status = error_set(err, ST_PROTO, "rank 0 began with message %" PRIu32, message.kind);
    }
    if (fd >= 0) close(fd);
    TRY(status);
    if (w->config->own_process && (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != w->setup.parent_pid))
        return error_set(err, ST_IO, "rank 0 is gone");
    TRY(make_buffers(w, err));
    TRY((w->config->open ? w->config->open : open_file)(w->config->state, w->setup.model_path, &whole, err));
    status = make_device(w, whole, err);
    (w->config->close ? w->config->close : close_file)(w->config->state, whole);
    TRY(status);
    message = rank_message_of(RANK_READY);
    message.u.ready.weights_bytes = w->device->info.weights_bytes;
    message.u.ready.scratch_bytes = w->device->info.scratch_bytes;
    return rank_send(w->socket, &message, -1);
}

/* ---- steps ---- */

static enum status run_step(struct worker *w, uint64_t bytes, struct error *err)
{
    struct batch_result none = {NULL}; /* rank 0 has them */
    if (bytes > w->setup.batch_bytes_max)
        return error_set(err, ST_PROTO, "a batch of %" PRIu64 " bytes: at most %" PRIu64 " were agreed on", bytes,
                         w->setup.batch_bytes_max);
    enum status status = comm_broadcast(w->comms.all, w->bytes, bytes, 0, NULL);
    if (status != ST_OK) return error_set(err, status, "a batch did not arrive: %s", status_text(status));
    status = batch_wire_read(w->bytes, bytes, w->batch, w->entries, w->setup.entries_max);
    if (status != ST_OK) return error_set(err, status, "%" PRIu64 " bytes came that are no batch", bytes);
    status = device_step(w->device, w->batch, &none);
    if (status != ST_OK) return error_set(err, status, "a step failed: %s", status_text(status));
    return ST_OK;
}

static enum status serve(struct worker *w, struct error *err)
{
    for (;;) {
        struct rank_message message;
        int fd = -1;
        enum status status = rank_receive(w->socket, &message, &fd);
        if (fd >= 0) close(fd);
        if (status == ST_IO) return error_set(err, ST_IO, "rank 0 is gone");
        if (status != ST_OK) return error_set(err, status, "what came from rank 0 is no message");
        switch (message.kind) {
        case RANK_STEP: TRY(run_step(w, message.u.step_bytes, err)); break;
        case RANK_EMPTY_KV: device_empty_kv(w->device); break;
        case RANK_STOP: return ST_OK;
        default: return error_set(err, ST_PROTO, "message %" PRIu32 " is not for a rank", message.kind);
        }
    }
}

/* Rank 0's business: a rank ends when rank 0 does. */
static void leave_signals(void)
{
    static const int left[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) sigaction(left[i], &ignore, NULL);
}

enum status rank_worker_run(int socket, const struct rank_worker_config *config, struct error *err)
{
    struct worker w = {.config = config, .socket = socket};
    if (config->own_process) leave_signals();
    pthread_mutex_init(&w.mutex, NULL);
    (void)cond_init(&w.condition);
    enum status status = beat_start(&w);
    if (status != ST_OK) error_set(err, status, "no thread for the beat");
    if (status == ST_OK) status = set_up(&w, err);
    if (status == ST_OK) status = serve(&w, err);
    if (status != ST_OK && status != ST_IO) {
        struct rank_message message = rank_message_failed(status, err->message);
        if (rank_send(socket, &message, -1) != ST_OK) status = ST_IO;
    }
    if (status != ST_OK && w.comms.memory) rank_comms_abort(&w.comms); /* after the reason: nobody guesses */
    beat_stop(&w);
    device_destroy(w.device);
    rank_comms_leave(&w.comms);
    if (w.memory) comm_memory_unmap(w.memory, w.memory_bytes);
    batch_destroy(w.batch);
    mem_free(w.entries);
    mem_free(w.bytes);
    pthread_cond_destroy(&w.condition);
    pthread_mutex_destroy(&w.mutex);
    close(socket);
    return status;
}
