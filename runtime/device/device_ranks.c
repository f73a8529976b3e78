/* See device_ranks.h, R1-R3. */
#include "runtime/device/device_ranks.h"

#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "runtime/batch_wire.h"
#include "runtime/device/device_cpu_parts.h"
#include "runtime/device/rank_comms.h"
#include "runtime/device/rank_message.h"
#include "runtime/model/model_stage.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum {
    SLOT_BYTES_MIN = 1 << 16,
    SLOT_BYTES_MOST = 1 << 22, /* larger sums are taken in pieces */
    TURN_MS = 100,             /* of the supervisor */
    LATE_MS = 1000,            /* a turn of it that was so long says nothing about ranks */
    SEND_MS = 2000,            /* a rank that does not read for so long is lost */
    STOP_MS = 3000,            /* for ranks to end by themselves */
    WORKER_FD = 3
};

static const uint64_t deadline_default_ns = 60 * NS_PER_S, spin_ns = 50000;

struct rank {
    int socket;  /* ours; -1: closed */
    int32_t pid; /* 0: no process, or reaped */
    int pid_fd;  /* -1: none */
    uint64_t beat_ns;
    bool ready;
    uint64_t weights_bytes, scratch_bytes;
};

struct device_ranks {
    struct device device; /* first */
    struct device_ranks_config config;
    struct device *inner;   /* rank 0's part */
    uint32_t ranks, stages; /* ranks: of all stages */
    struct rank *others;    /* [ranks], 0 unused. The supervisor's, but for sending on their sockets */
    struct rank_comms comms;
    void *memory, *wire;
    size_t memory_bytes;
    int memory_fd, bell; /* the bell wakes the supervisor */
    struct rank_setup setup;

    size_t kv_block_bytes; /* of all ranks */

    pthread_t supervisor;
    uint64_t looked_ns; /* the supervisor's: for silence */
    bool supervised;
    _Atomic bool lost, stopping;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t condition;
    uint32_t ready;
    enum status loss_status;
    struct error reason; /* of the loss */
};

static struct device_ranks *ranks_of(struct device *device)
{
    return (struct device_ranks *)(void *)device;
}

static void ring(struct device_ranks *d)
{
    uint64_t one = 1;
    ssize_t ignored = write(d->bell, &one, sizeof one);
    (void)ignored;
}

/* ---- the supervisor: ends ---- */

/* Once: what was lost and why. Ends every wait. */
static void lose(struct device_ranks *d, enum status status, const char *format, ...) PRINTF_LIKE(3, 4);
static void lose(struct device_ranks *d, enum status status, const char *format, ...)
{
    va_list args;
    pthread_mutex_lock(&d->mutex);
    if (atomic_load(&d->lost) || atomic_load(&d->stopping)) {
        pthread_mutex_unlock(&d->mutex);
        return;
    }
    va_start(args, format);
    vsnprintf(d->reason.message, sizeof d->reason.message, format, args);
    va_end(args);
    d->loss_status = status;
    atomic_store(&d->lost, true);
    pthread_cond_broadcast(&d->condition);
    pthread_mutex_unlock(&d->mutex);
    rank_comms_abort(&d->comms);
    log_line(LOG_ERROR, "ranks", "lost %s", d->reason.message);
}

/* The process of a rank, if it has ended: reaped. */
static bool reap(struct rank *r, int *how)
{
    if (!r->pid || waitpid(r->pid, how, WNOHANG) != r->pid) return false;
    if (r->pid_fd >= 0) close(r->pid_fd);
    r->pid_fd = -1;
    r->pid = 0;
    return true;
}

static void tell_end(struct device_ranks *d, uint32_t rank, int32_t pid, int how)
{
    if (WIFSIGNALED(how))
        lose(d, ST_DEVICE, "rank=%" PRIu32 " pid=%" PRId32 " signal=%d reason=\"%s\"", rank, pid, WTERMSIG(how),
             strsignal(WTERMSIG(how)));
    else
        lose(d, ST_DEVICE, "rank=%" PRIu32 " pid=%" PRId32 " exit=%d reason=\"it has ended by itself\"", rank, pid,
             WEXITSTATUS(how));
}

static void close_socket(struct rank *r)
{
    if (r->socket >= 0) close(r->socket);
    r->socket = -1;
}

static void kill_all(struct device_ranks *d)
{
    for (uint32_t rank = 1; rank < d->ranks; rank++)
        if (d->others[rank].pid) kill(d->others[rank].pid, SIGKILL);
}

/* Until all have ended, or it is time for force. */
static void end_all(struct device_ranks *d)
{
    struct rank_message stop = rank_message_of(RANK_STOP);
    uint64_t begin_ns = clock_now_ns(clock_system());
    if (atomic_load(&d->lost)) kill_all(d);
    for (uint32_t rank = 1; rank < d->ranks; rank++) {
        struct rank *r = &d->others[rank];
        if (r->socket >= 0 && rank_send(r->socket, &stop, -1) != ST_OK && r->pid) kill(r->pid, SIGKILL);
        if (r->socket >= 0) shutdown(r->socket, SHUT_WR);
    }
    for (uint32_t left = d->ranks; left > 0;) {
        left = 0;
        for (uint32_t rank = 1; rank < d->ranks; rank++) {
            int how;
            if (d->others[rank].pid && !reap(&d->others[rank], &how)) left++;
        }
        if (left == 0) break;
        if (clock_now_ns(clock_system()) - begin_ns > STOP_MS * NS_PER_MS) kill_all(d);
        usleep(2000);
    }
}

/* ---- the supervisor: news ---- */

/* The end of a rank is told by its process if it has one: the signal says more than a closed socket. */
static void take_end(struct device_ranks *d, uint32_t rank)
{
    struct rank *r = &d->others[rank];
    int32_t pid = r->pid;
    int how;
    if (!pid) {
        lose(d, ST_DEVICE, "rank=%" PRIu32 " reason=\"it has ended\"", rank);
        return;
    }
    for (int i = 0; i < 500; i++) { /* its socket closes a moment before it can be reaped */
        if (reap(r, &how)) {
            tell_end(d, rank, pid, how);
            return;
        }
        usleep(1000);
    }
    lose(d, ST_DEVICE, "rank=%" PRIu32 " pid=%" PRId32 " reason=\"it has closed its socket\"", rank, pid);
}

static void take_ready(struct device_ranks *d, struct rank *r, const struct rank_message *message)
{
    if (r->ready) return;
    r->weights_bytes = message->u.ready.weights_bytes;
    r->scratch_bytes = message->u.ready.scratch_bytes;
    pthread_mutex_lock(&d->mutex);
    r->ready = true;
    d->ready++;
    pthread_cond_broadcast(&d->condition);
    pthread_mutex_unlock(&d->mutex);
}

static void take_message(struct device_ranks *d, uint32_t rank)
{
    struct rank *r = &d->others[rank];
    struct rank_message message;
    int fd = -1;
    enum status status = rank_receive(r->socket, &message, &fd);
    if (fd >= 0) close(fd);
    r->beat_ns = clock_now_ns(clock_system());
    if (status == ST_IO)
        take_end(d, rank);
    else if (status != ST_OK)
        lose(d, ST_PROTO, "rank=%" PRIu32 " pid=%" PRId32 " reason=\"it has sent what is no message\"", rank, r->pid);
    else if (message.kind == RANK_FAILED)
        lose(d, message.u.failed.status ? (enum status)message.u.failed.status : ST_DEVICE,
             "rank=%" PRIu32 " pid=%" PRId32 " reason=\"%s\"", rank, r->pid, message.u.failed.text);
    else if (message.kind == RANK_READY)
        take_ready(d, r, &message);
    else if (message.kind != RANK_BEAT)
        lose(d, ST_PROTO, "rank=%" PRIu32 " pid=%" PRId32 " reason=\"message %" PRIu32 " is not for rank 0\"", rank,
             r->pid, message.kind);
}

static void look_for_silence(struct device_ranks *d)
{
    uint64_t now_ns = clock_now_ns(clock_system());
    bool late = now_ns - d->looked_ns > LATE_MS * NS_PER_MS; /* all were stopped, or the machine was: hear them first */
    uint64_t silent_ns = (d->config.silent_ms ? d->config.silent_ms : RANKS_SILENT_MS) * NS_PER_MS;
    for (uint32_t rank = 1; rank < d->ranks; rank++) {
        struct rank *r = &d->others[rank];
        if (late) r->beat_ns = now_ns;
        if (now_ns - r->beat_ns > silent_ns)
            lose(d, ST_DEVICE, "rank=%" PRIu32 " pid=%" PRId32 " reason=\"it was silent for %" PRIu64 " ms\"", rank,
                 r->pid, (now_ns - r->beat_ns) / NS_PER_MS);
    }
    d->looked_ns = now_ns;
}

static void watch(struct device_ranks *d)
{
    struct pollfd fds[2 * MODEL_RANKS_MAX + 1];
    uint32_t rank_of_fd[2 * MODEL_RANKS_MAX + 1];
    nfds_t count = 0;
    fds[count++] = (struct pollfd){.fd = d->bell, .events = POLLIN};
    for (uint32_t rank = 1; rank < d->ranks; rank++) {
        rank_of_fd[count] = rank;
        fds[count++] = (struct pollfd){.fd = d->others[rank].socket, .events = POLLIN};
        if (d->others[rank].pid_fd < 0) continue;
        rank_of_fd[count] = rank;
        fds[count++] = (struct pollfd){.fd = d->others[rank].pid_fd, .events = POLLIN};
    }
    if (poll(fds, count, TURN_MS) < 0) return;
    uint64_t ignored;
    if (fds[0].revents && read(d->bell, &ignored, sizeof ignored) < 0) return;
    for (nfds_t i = 1; i < count && !atomic_load(&d->lost); i++) {
        const struct rank *r = &d->others[rank_of_fd[i]];
        if (!fds[i].revents) continue;
        if (fds[i].fd == r->socket)
            take_message(d, rank_of_fd[i]); /* what it said before it ended comes first */
        else
            take_end(d, rank_of_fd[i]);
    }
    look_for_silence(d);
}

/* ---- the supervisor: start ---- */

static enum status start_process(uint32_t rank, int socket, int32_t *pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    char fd_text[16];
    char *arguments[] = {"millrace", "rank-worker", fd_text, NULL};
    pid_t child = 0;
    (void)rank;
    snprintf(fd_text, sizeof fd_text, "%d", WORKER_FD);
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, socket, WORKER_FD); /* also where it is 3 already: no longer CLOEXEC */
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int error = posix_spawn(&child, "/proc/self/exe", &actions, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (error == 0) close(socket);
    *pid = child;
    return error == 0 ? ST_OK : error == EAGAIN || error == ENOMEM ? ST_NOMEM : ST_IO;
}

static void set_send_limit(int socket)
{
    struct timeval limit = {SEND_MS / 1000, SEND_MS % 1000 * 1000};
    (void)setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static enum status start_rank(struct device_ranks *d, uint32_t rank)
{
    struct rank *r = &d->others[rank];
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) return ST_LIMIT;
    set_send_limit(pair[0]);
    set_send_limit(pair[1]);
    r->socket = pair[0];
    r->beat_ns = clock_now_ns(clock_system());
    enum status status = d->config.start ? d->config.start(d->config.start_state, rank, pair[1], &r->pid)
                                         : start_process(rank, pair[1], &r->pid);
    if (status != ST_OK) {
        close(pair[1]);
        return status;
    }
    if (r->pid) r->pid_fd = (int)syscall(SYS_pidfd_open, r->pid, 0); /* without one the socket tells */
    struct rank_message message = rank_message_of(RANK_SETUP);
    message.u.setup = d->setup;
    message.u.setup.rank = rank;
    status = rank_send(r->socket, &message, d->memory_fd);
    return status == ST_IO ? ST_OK : status; /* it has ended already, and will be heard of */
}

static void *supervise(void *state)
{
    struct device_ranks *d = state;
    for (uint32_t rank = 1; rank < d->ranks && !atomic_load(&d->lost); rank++) {
        enum status status = start_rank(d, rank);
        if (status != ST_OK)
            lose(d, status, "rank=%" PRIu32 " reason=\"it could not be started: %s\"", rank, status_text(status));
    }
    d->looked_ns = clock_now_ns(clock_system());
    while (!atomic_load(&d->stopping) && !atomic_load(&d->lost)) watch(d);
    if (atomic_load(&d->lost)) kill_all(d);
    while (!atomic_load(&d->stopping)) { /* nothing to hear any more */
        struct pollfd bell = {.fd = d->bell, .events = POLLIN};
        uint64_t ignored;
        if (poll(&bell, 1, TURN_MS) > 0 && read(d->bell, &ignored, sizeof ignored) < 0) break;
        for (uint32_t rank = 1; rank < d->ranks; rank++) (void)reap(&d->others[rank], &(int){0});
    }
    end_all(d);
    return NULL;
}

static enum status supervise_start(struct device_ranks *d)
{
    enum status status = thread_start(&d->supervisor, supervise, d);
    d->supervised = status == ST_OK;
    return status;
}

/* ---- the device ---- */

static enum status tell_all(struct device_ranks *d, const struct rank_message *message)
{
    for (uint32_t rank = 1; rank < d->ranks; rank++) {
        enum status status = rank_send(d->others[rank].socket, message, -1);
        if (status == ST_OK) continue;
        if (status == ST_TIMEOUT) lose(d, ST_DEVICE, "rank=%" PRIu32 " reason=\"it takes no messages\"", rank);
        return ST_DEVICE; /* of an end the supervisor hears */
    }
    return ST_OK;
}

static enum status step_of_all(struct device_ranks *d, const struct batch *batch, struct batch_result *result)
{
    struct rank_message message = rank_message_of(RANK_STEP);
    size_t bytes = batch_wire_bytes(batch);
    message.u.step_bytes = bytes;
    batch_wire_write(batch, d->wire);
    TRY(tell_all(d, &message));
    if (comm_broadcast(d->comms.all, d->wire, bytes, 0, NULL) != ST_OK) return ST_DEVICE;
    return device_step(d->inner, batch, result);
}

static enum status step(struct device *device, const struct batch *batch, struct batch_result *result)
{
    struct device_ranks *d = ranks_of(device);
    if (atomic_load(&d->lost)) return ST_DEVICE;
    TRY(device_cpu_check((const struct device_cpu *)(const void *)d->inner, batch)); /* before others begin */
    if (batch->tokens_count == 0) return ST_OK;
    enum status status = step_of_all(d, batch, result);
    memcpy(device->phase_ticks, d->inner->phase_ticks, sizeof device->phase_ticks);
    if (status == ST_OK) return ST_OK;
    rank_comms_abort(&d->comms);
    for (int i = 0; i < 1000 && !atomic_load(&d->lost); i++) usleep(1000); /* the supervisor may know why */
    lose(d, ST_DEVICE, "rank=0 reason=\"the ranks did not meet within %" PRIu64 " ms\"",
         d->setup.deadline_ns / NS_PER_MS);
    return ST_DEVICE;
}

static void empty_kv(struct device *device)
{
    struct device_ranks *d = ranks_of(device);
    struct rank_message message = rank_message_of(RANK_EMPTY_KV);
    if (atomic_load(&d->lost) || tell_all(d, &message) != ST_OK) return; /* the next step tells */
    device_empty_kv(d->inner);
}

static bool is_lost(struct device *device)
{
    return atomic_load(&ranks_of(device)->lost);
}

static void destroy(struct device *device)
{
    struct device_ranks *d = ranks_of(device);
    atomic_store(&d->stopping, true);
    if (d->supervised) {
        ring(d);
        pthread_join(d->supervisor, NULL);
    }
    device_destroy(d->inner);
    rank_comms_leave(&d->comms);
    if (d->memory) comm_memory_unmap(d->memory, d->memory_bytes);
    if (d->memory_fd >= 0) close(d->memory_fd);
    if (d->bell >= 0) close(d->bell);
    for (uint32_t rank = 1; d->others && rank < d->ranks; rank++) {
        close_socket(&d->others[rank]);
        if (d->others[rank].pid_fd >= 0) close(d->others[rank].pid_fd);
    }
    mem_free(d->others);
    mem_free(d->wire);
    pthread_cond_destroy(&d->condition);
    pthread_mutex_destroy(&d->mutex);
    mem_free(d);
}

/* ---- creation ---- */

size_t device_ranks_kv_block_bytes(const struct model *whole, uint32_t ranks, uint32_t stages, enum numerics numerics,
                                   bool kv_int8, struct error *err)
{
    size_t sum = 0;
    if (ranks == 1 && stages == 1) return device_cpu_kv_block_bytes(&whole->spec, numerics, kv_int8);
    for (uint32_t number = 0; number < ranks * stages; number++) {
        struct model *part = NULL;
        if (model_divide(whole, model_place_of(number, ranks, stages), &part, err) != ST_OK) return 0;
        sum += device_cpu_kv_block_bytes(&part->spec, numerics, kv_int8);
        model_close(part);
    }
    return sum;
}

static size_t slot_bytes_of(const struct model_spec *spec, const struct device_config *config)
{
    size_t sum = (size_t)config->tokens_max * (spec->width * sizeof(float) + 1); /* marks go with the rows of stages */
    size_t bytes = sum < SLOT_BYTES_MIN ? SLOT_BYTES_MIN : sum > SLOT_BYTES_MOST ? SLOT_BYTES_MOST : sum;
    return (bytes + 63) & ~(size_t)63;
}

/* KV blocks of all ranks, and everything that they must agree on. */
static enum status plan(struct device_ranks *d, const struct model *whole, struct error *err)
{
    const struct device_config *config = &d->config.device;
    size_t block_bytes =
        device_ranks_kv_block_bytes(whole, d->ranks / d->stages, d->stages, config->numerics, config->kv_int8, err);
    if (!block_bytes) return ST_INVAL;
    d->kv_block_bytes = block_bytes;
    size_t sequence = kv_blocks_for(config->context_max);
    size_t blocks = config->kv_bytes / block_bytes;
    if (blocks < sequence) blocks = sequence;
    if (blocks > UINT32_MAX - 1) blocks = UINT32_MAX - 1;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    size_t entries = sequence * config->seqs_max;
    d->setup = (struct rank_setup){
        .ranks = d->ranks,
        .stages = d->stages,
        .parent_pid = getpid(),
        .path = config->path,
        .numerics = config->numerics,
        .kv_int8 = config->kv_int8,
        .threads = config->threads,
        .kv_blocks = (uint32_t)blocks,
        .tokens_max = config->tokens_max,
        .seqs_max = config->seqs_max,
        .rows_max = config->rows_max,
        .context_max = config->context_max,
        .slot_bytes = slot_bytes_of(&whole->spec, config),
        .deadline_ns = d->config.deadline_ns ? d->config.deadline_ns : deadline_default_ns,
        .spin_ns = (uint64_t)d->ranks * config->threads <= (uint64_t)cpus ? spin_ns : 0,
        .batch_bytes_max = batch_wire_bytes_max(config->tokens_max, config->seqs_max, config->rows_max, entries),
        .entries_max = entries,
        .file_bytes = whole->file_bytes,
        .parameters = whole->spec.parameters,
    };
    if (strlen(d->config.model_path) >= sizeof d->setup.model_path)
        return error_set(err, ST_LIMIT, "the path of the model has more than %zu bytes",
                         sizeof d->setup.model_path - 1);
    memcpy(d->setup.model_path, d->config.model_path, strlen(d->config.model_path));
    d->setup.rank = 1; /* any, for the check */
    if (!rank_setup_is_sound(&d->setup))
        return error_set(err, ST_INVAL, "%" PRIu32 " ranks with these settings are more than is provided for",
                         d->ranks);
    return ST_OK;
}

static enum status make_memory(struct device_ranks *d, struct error *err)
{
    const struct rank_setup *s = &d->setup;
    struct comm_local_config config = {.rank = 0,
                                       .ranks = d->ranks,
                                       .slot_bytes = s->slot_bytes,
                                       .deadline_ns = s->deadline_ns,
                                       .spin_ns = s->spin_ns,
                                       .clock = clock_system()};
    d->memory_bytes = rank_comms_bytes(d->ranks / d->stages, d->stages, s->slot_bytes);
    d->wire = mem_alloc(s->batch_bytes_max, 1);
    d->others = mem_alloc(d->ranks, sizeof *d->others);
    d->bell = eventfd(0, EFD_CLOEXEC);
    for (uint32_t rank = 0; d->others && rank < d->ranks; rank++) d->others[rank].socket = d->others[rank].pid_fd = -1;
    if (!d->wire || !d->others || d->bell < 0 ||
        comm_memory_create(d->memory_bytes, &d->memory_fd, &d->memory) != ST_OK)
        return error_set(err, ST_NOMEM, "no memory for what %" PRIu32 " ranks share", d->ranks);
    rank_comms_prepare(d->memory, d->ranks / d->stages, d->stages, s->slot_bytes);
    enum status status = rank_comms_join(d->memory, &config, d->stages, &d->comms);
    return status == ST_OK ? ST_OK : error_set(err, status, "no memory for what %" PRIu32 " ranks share", d->ranks);
}

static enum status make_inner(struct device_ranks *d, const struct model *whole, device_progress_fn progress,
                              void *progress_state, struct error *err)
{
    struct model *part = NULL;
    struct device_config config = d->config.device;
    TRY(model_divide(whole, model_place_of(0, d->ranks / d->stages, d->stages), &part, err));
    config.comm = d->comms.peers;
    config.stages = d->comms.line;
    config.kv_bytes = d->setup.kv_blocks * device_cpu_kv_block_bytes(&part->spec, config.numerics, config.kv_int8);
    enum status status = device_cpu_create(part, &config, progress, progress_state, &d->inner, err);
    model_close(part);
    return status;
}

static enum status wait_ready(struct device_ranks *d, struct error *err)
{
    pthread_mutex_lock(&d->mutex);
    while (d->ready < d->ranks - 1 && !atomic_load(&d->lost)) pthread_cond_wait(&d->condition, &d->mutex);
    enum status status = ST_OK;
    if (atomic_load(&d->lost)) status = error_set(err, d->loss_status, "a rank is lost: %.400s", d->reason.message);
    pthread_mutex_unlock(&d->mutex);
    return status;
}

static void describe(struct device_ranks *d)
{
    static const struct device_ops ops = {.step = step, .destroy = destroy, .empty_kv = empty_kv, .is_lost = is_lost};
    struct device_info *info = &d->device.info;
    d->device.ops = &ops;
    if (!d->inner) return;
    *info = d->inner->info;
    info->kv_block_bytes = d->kv_block_bytes;
    for (uint32_t rank = 1; rank < d->ranks; rank++) {
        info->weights_bytes += d->others[rank].weights_bytes;
        info->scratch_bytes += d->others[rank].scratch_bytes;
    }
    info->scratch_bytes += d->memory_bytes;
    const char *inner = d->inner->info.name;
    unsigned char stages = (unsigned char)d->stages, ranks = (unsigned char)(d->ranks / d->stages); /* at most 64 */
    if (stages == 1)
        snprintf(info->name, sizeof info->name, "%hhu ranks of %.40s", ranks, inner);
    else if (ranks == 1)
        snprintf(info->name, sizeof info->name, "%hhu stages of %.40s", stages, inner);
    else
        snprintf(info->name, sizeof info->name, "%hhu stages of %hhu ranks of %.34s", stages, ranks, inner);
}

enum status device_ranks_create(const struct model *whole, const struct device_ranks_config *config,
                                device_progress_fn progress, void *progress_state, struct device **device,
                                struct error *err)
{
    uint32_t stages = config->stages ? config->stages : 1;
    uint64_t ranks = (uint64_t)config->ranks * stages;
    if (ranks < 2 || ranks > MODEL_RANKS_MAX)
        return error_set(err, ST_INVAL, "%" PRIu64 " ranks: must be 2 to %d", ranks, MODEL_RANKS_MAX);
    struct device_ranks *d = mem_alloc(1, sizeof *d);
    if (!d) return error_set(err, ST_NOMEM, "no memory for the device");
    d->config = *config;
    d->ranks = (uint32_t)ranks;
    d->stages = stages;
    d->memory_fd = d->bell = -1;
    pthread_mutex_init(&d->mutex, NULL);
    pthread_cond_init(&d->condition, NULL);
    describe(d);
    enum status status = plan(d, whole, err);
    if (status == ST_OK) status = make_memory(d, err);
    if (status == ST_OK && (status = supervise_start(d)) != ST_OK) error_set(err, status, "no thread for the ranks");
    if (status == ST_OK) status = make_inner(d, whole, progress, progress_state, err);
    if (status == ST_OK) status = wait_ready(d, err);
    if (status != ST_OK) {
        destroy(&d->device);
        return status;
    }
    describe(d);
    d->config.model_path = NULL; /* the caller's */
    *device = &d->device;
    return ST_OK;
}
