/* A device of several ranks, threads here: what it gives, and what becomes of it when a rank ends, falls silent, gives
 * up or talks nonsense. Processes: tests/e2e/test_ranks.py. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/device/comm_local.h"
#include "runtime/device/rank_message.h"
#include "tests/support/rank_threads.h"
#include "tests/unit/runtime/tiny_model.h"

#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

enum { V = 597, CONTEXT = 128, BLOCKS = 2 * CONTEXT / KV_BLOCK_TOKENS, TOKENS = 60 };

static const struct model_spec spec = {
    TINY_SPEC,       .heads = 6, .head_size = 16,       .rope_size = 16, .attention_scale = 0.25f,
    .ff_width = 224, .vocab = V, .context_max = CONTEXT};
static const struct sampling_params params = {.top_p = 1, .repetition_penalty = 1, .logprobs = 20};
static struct tiny_model tiny;

static enum status open_tiny(void *state, const char *path, struct model **model, struct error *err)
{
    (void)err;
    assert_string_equal(path, "tiny");
    *model = state;
    return ST_OK;
}

static void close_tiny(void *state, struct model *model)
{
    (void)state;
    (void)model;
}

struct rig {
    struct rank_threads threads;
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    block_id tables[2][CONTEXT / KV_BLOCK_TOKENS];
    uint32_t tokens[CONTEXT];
};

static struct device_ranks_config config_of(struct rig *rig, uint32_t ranks, enum numerics numerics)
{
    return (struct device_ranks_config){.device = {.path = cpu_path_best(),
                                                   .numerics = numerics,
                                                   .threads = 2,
                                                   .tokens_max = CONTEXT,
                                                   .seqs_max = 2,
                                                   .rows_max = CONTEXT,
                                                   .context_max = CONTEXT},
                                        .ranks = ranks,
                                        .model_path = "tiny",
                                        .start = rank_threads_start,
                                        .start_state = &rig->threads,
                                        .silent_ms = 60000}; /* unless a test is about it */
}

static void rig_make(struct rig *rig)
{
    uint64_t seed = 5;
    memset(rig, 0, sizeof *rig);
    tiny_make(&tiny, &spec, TENSOR_Q4_1, false, false);
    rig->threads.config = (struct rank_worker_config){open_tiny, close_tiny, &tiny.model, false};
    assert_true(batch_create(CONTEXT, 2, CONTEXT, &rig->batch) == ST_OK &&
                batch_result_create(CONTEXT, &rig->result) == ST_OK);
    for (uint32_t i = 0; i < CONTEXT; i++) rig->tokens[i] = (uint32_t)(random_next(&seed) % V);
    for (uint32_t b = 0; b < CONTEXT / KV_BLOCK_TOKENS; b++)
        rig->tables[0][b] = BLOCKS - 1 - 2 * b, rig->tables[1][b] = 2 * b;
}

static void rig_free(struct rig *rig)
{
    device_destroy(rig->device);
    rank_threads_join(&rig->threads);
    batch_destroy(rig->batch);
    batch_result_destroy(rig->result);
    tiny_free(&tiny);
}

static void batch_clear(struct rig *rig)
{
    rig->batch->tokens_count = rig->batch->seqs_count = rig->batch->rows_count = 0;
    rig->batch->q_start[0] = 0;
}

/* `count` tokens of sequence s from position on, the last of which has a row. */
static void batch_add(struct rig *rig, uint32_t s, uint32_t position, uint32_t count)
{
    struct batch *batch = rig->batch;
    uint32_t seq = batch->seqs_count++;
    batch->kv_len[seq] = position + count;
    batch->block_table[seq] = rig->tables[s];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n = batch->tokens_count++;
        batch->tokens[n] = rig->tokens[(position + i + 7 * s) % CONTEXT];
        batch->positions[n] = position + i;
        batch->seq_of_token[n] = seq;
    }
    batch->q_start[batch->seqs_count] = batch->tokens_count;
    batch->rows[batch->rows_count++] = (struct batch_row){.token = batch->tokens_count - 1,
                                                          .params = &params,
                                                          .seed = s,
                                                          .position = position + count,
                                                          .seen = rig->tokens};
}

/* Two sequences in chunks beside each other; the results of all rows. */
static uint32_t run(struct rig *rig, struct device *device, struct row_result *rows)
{
    uint32_t count = 0;
    for (uint32_t position = 0; position < TOKENS; position += position < 40 ? 20 : 1) {
        batch_clear(rig);
        batch_add(rig, 0, position, position < 40 ? 20 : 1);
        if (position >= 40) batch_add(rig, 1, position - 40, 1);
        assert_int_equal(device_step(device, rig->batch, rig->result), ST_OK);
        for (uint32_t r = 0; r < rig->batch->rows_count; r++) rows[count++] = rig->result->rows[r];
    }
    return count;
}

static void test_device_ranks_gives_what_the_whole_gives(void **state)
{
    (void)state;
    static struct row_result whole_rows[CONTEXT], rows[CONTEXT];
    struct rig rig;
    struct error err = {""};
    struct device *whole = NULL;
    rig_make(&rig);
    struct device_ranks_config config = config_of(&rig, 2, NUMERICS_EXACT);
    struct device_config alone = config.device;
    alone.kv_bytes = BLOCKS * device_cpu_kv_block_bytes(&spec, NUMERICS_EXACT, false);
    assert_int_equal(device_cpu_create(&tiny.model, &alone, NULL, NULL, &whole, &err), ST_OK);
    uint32_t count = run(&rig, whole, whole_rows);
    for (uint32_t ranks = 2; ranks <= 4; ranks++) {
        config = config_of(&rig, ranks, NUMERICS_EXACT);
        config.device.kv_bytes =
            BLOCKS * device_ranks_kv_block_bytes(&tiny.model, ranks, 1, NUMERICS_EXACT, false, &err);
        if (device_ranks_create(&tiny.model, &config, NULL, NULL, &rig.device, &err) != ST_OK)
            fail_msg("%s", err.message);
        const struct device_info *info = &rig.device->info;
        assert_int_equal(info->kv_blocks, BLOCKS);
        assert_int_equal(info->vocab, V);
        /* from three ranks on KV heads are copied */
        assert_int_equal(info->kv_block_bytes, whole->info.kv_block_bytes * (ranks == 2 ? 2 : ranks) / 2);
        assert_true(info->weights_bytes > whole->info.weights_bytes * 9 / 10);
        assert_false(device_is_lost(rig.device));
        assert_int_equal(run(&rig, rig.device, rows), count);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(rows[i].id, whole_rows[i].id);
            for (uint32_t k = 0; k < 20; k++)
                assert_true(fabsf(rows[i].top_logprobs[k] - whole_rows[i].top_logprobs[k]) < 1e-4f);
        }
        device_empty_kv(rig.device); /* and the same again */
        assert_int_equal(run(&rig, rig.device, rows), count);
        for (uint32_t i = 0; i < count; i++) assert_int_equal(rows[i].id, whole_rows[i].id);
        batch_clear(&rig);
        assert_int_equal(device_step(rig.device, rig.batch, rig.result), ST_OK); /* empty */
        batch_add(&rig, 0, 0, 3);
        rig.batch->tokens[1] = V; /* our bug: refused before any rank began */
        assert_int_equal(device_step(rig.device, rig.batch, rig.result), ST_INVAL);
        assert_int_equal(run(&rig, rig.device, rows), count);
        device_destroy(rig.device);
        rig.device = NULL;
        for (uint32_t i = 0; i < rig.threads.count; i++) pthread_join(rig.threads.threads[i].thread, NULL);
        for (uint32_t i = 0; i < rig.threads.count; i++) assert_int_equal(rig.threads.threads[i].status, ST_OK);
        rig.threads.count = 0;
    }
    device_destroy(whole);
    rig_free(&rig);
}

/* A stage a layer, of one rank with the bits of the whole, and of two. */
static void test_device_ranks_stages(void **state)
{
    (void)state;
    static struct row_result whole_rows[CONTEXT], rows[CONTEXT];
    static const char *const names[] = {"", "2 stages of cpu", "2 stages of 2 ranks of cpu"};
    struct rig rig;
    struct error err = {""};
    struct device *whole = NULL;
    rig_make(&rig);
    struct device_config alone = config_of(&rig, 1, NUMERICS_FAST).device;
    alone.kv_bytes = BLOCKS * device_cpu_kv_block_bytes(&spec, NUMERICS_FAST, false);
    assert_int_equal(device_cpu_create(&tiny.model, &alone, NULL, NULL, &whole, &err), ST_OK);
    uint32_t count = run(&rig, whole, whole_rows);
    for (uint32_t ranks = 1; ranks <= 2; ranks++) {
        struct device_ranks_config config = config_of(&rig, ranks, NUMERICS_FAST);
        config.stages = 2;
        config.device.kv_bytes =
            BLOCKS * device_ranks_kv_block_bytes(&tiny.model, ranks, 2, NUMERICS_FAST, false, &err);
        if (device_ranks_create(&tiny.model, &config, NULL, NULL, &rig.device, &err) != ST_OK)
            fail_msg("%s", err.message);
        const struct device_info *info = &rig.device->info;
        assert_int_equal(rig.threads.count, 2 * ranks - 1);
        assert_int_equal(strncmp(info->name, names[ranks], strlen(names[ranks])), 0);
        assert_int_equal(info->kv_blocks, BLOCKS);
        assert_int_equal(info->kv_block_bytes, whole->info.kv_block_bytes);
        assert_true(info->weights_bytes < whole->info.weights_bytes * 3 / 2);
        assert_int_equal(run(&rig, rig.device, rows), count);
        if (ranks == 1) assert_memory_equal(rows, whole_rows, count * sizeof *rows);
        device_empty_kv(rig.device);
        assert_int_equal(run(&rig, rig.device, rows), count);
        if (ranks == 1) assert_memory_equal(rows, whole_rows, count * sizeof *rows);
        device_destroy(rig.device);
        rig.device = NULL;
        rank_threads_join(&rig.threads);
    }
    device_destroy(whole);
    rig_free(&rig);
}

/* ---- ranks that fail ---- */

enum fault {
    FAULT_ENDS_AT_ONCE,
    FAULT_ENDS_AFTER_SETUP,
    FAULT_GIVES_UP,
    FAULT_TALKS_NONSENSE,
    FAULT_TALKS_TOO_LONG,
    FAULT_TALKS_LIKE_RANK_0,
    FAULT_SILENT_FROM_THE_START,
    FAULTS_IN_CREATE, /* those after it: when it was ready */
    FAULT_ENDS,
    FAULT_ENDS_IN_A_STEP,
    FAULT_GIVES_UP_LATE,
    FAULT_FALLS_SILENT,
    FAULT_DOES_NOT_MEET, /* beats on, but never takes part in a step */
    FAULTS_COUNT
};

static const char *const words[FAULTS_COUNT] = {
    [FAULT_ENDS_AT_ONCE] = "it has ended",
    [FAULT_ENDS_AFTER_SETUP] = "it has ended",
    [FAULT_GIVES_UP] = "no luck",
    [FAULT_TALKS_NONSENSE] = "no message",
    [FAULT_TALKS_TOO_LONG] = "no message",
    [FAULT_TALKS_LIKE_RANK_0] = "not for rank 0",
    [FAULT_SILENT_FROM_THE_START] = "silent",
};

struct faulty {
    enum fault fault;
    struct rank_threads *good; /* for other ranks */
    pthread_t thread;
    int socket;
    atomic_bool over;
};

static void say(int socket, enum rank_message_kind kind)
{
    struct rank_message message = rank_message_of(kind);
    if (rank_send(socket, &message, -1) != ST_OK) return;
}

static void *faulty_main(void *state)
{
    struct faulty *f = state;
    struct rank_message message;
    int fd = -1;
    char junk[3000];
    if (f->fault == FAULT_ENDS_AT_ONCE) goto end;
    if (rank_receive(f->socket, &message, &fd) != ST_OK || message.kind != RANK_SETUP) goto end;
    memset(junk, 0x5a, sizeof junk);
    message = rank_message_failed(ST_NOMEM, "no luck");
    switch (f->fault) {
    case FAULT_ENDS_AFTER_SETUP: goto end;
    case FAULT_GIVES_UP: (void)!rank_send(f->socket, &message, -1); goto end;
    case FAULT_TALKS_NONSENSE: (void)!write(f->socket, junk, 100); break;
    case FAULT_TALKS_TOO_LONG: (void)!write(f->socket, junk, sizeof junk); break;
    case FAULT_TALKS_LIKE_RANK_0: say(f->socket, RANK_STOP); break;
    case FAULT_SILENT_FROM_THE_START: break;
    default: say(f->socket, RANK_READY); break;
    }
    if (f->fault == FAULT_ENDS) goto end;
    if (f->fault == FAULT_ENDS_IN_A_STEP || f->fault == FAULT_GIVES_UP_LATE) {
        if (fd >= 0) close(fd);
        if (rank_receive(f->socket, &message, &fd) != ST_OK || message.kind != RANK_STEP) goto end;
        message = rank_message_failed(ST_NOMEM, "no luck");
        if (f->fault == FAULT_GIVES_UP_LATE) (void)!rank_send(f->socket, &message, -1);
        goto end;
    }
    while (!atomic_load(&f->over)) {
        if (f->fault == FAULT_DOES_NOT_MEET) say(f->socket, RANK_BEAT);
        usleep(20000);
    }
end:
    if (fd >= 0) close(fd);
    close(f->socket);
    return NULL;
}

/* Rank 1 is well, rank 2 is not. */
static enum status faulty_start(void *state, uint32_t rank, int socket, int32_t *pid)
{
    struct faulty *f = state;
    if (rank == 1) return rank_threads_start(f->good, rank, socket, pid);
    *pid = 0;
    f->socket = socket;
    return pthread_create(&f->thread, NULL, faulty_main, f) ? ST_LIMIT : ST_OK;
}

static void check_fault(enum fault fault)
{
    struct rig rig;
    struct error err = {""};
    rig_make(&rig);
    struct faulty faulty = {.fault = fault, .good = &rig.threads};
    struct device_ranks_config config = config_of(&rig, 3, NUMERICS_FAST);
    config.start = faulty_start;
    config.device.kv_bytes = BLOCKS * device_ranks_kv_block_bytes(&tiny.model, 3, 1, NUMERICS_FAST, false, &err);
    config.start_state = &faulty;
    if (fault == FAULT_SILENT_FROM_THE_START || fault == FAULT_FALLS_SILENT) config.silent_ms = 1500;
    config.deadline_ns = fault == FAULT_DOES_NOT_MEET ? 50 * NS_PER_MS : 3600 * NS_PER_S;
    uint64_t begin_ns = clock_now_ns(clock_system());
    enum status status = device_ranks_create(&tiny.model, &config, NULL, NULL, &rig.device, &err);
    if (fault < FAULTS_IN_CREATE) {
        assert_true(status != ST_OK && !rig.device);
        if (!strstr(err.message, words[fault]) || !strstr(err.message, "rank=2"))
            fail_msg("fault %d: \"%s\"", (int)fault, err.message);
        if (fault == FAULT_GIVES_UP) assert_int_equal(status, ST_NOMEM);
    } else {
        if (status != ST_OK && fault != FAULT_ENDS && fault != FAULT_FALLS_SILENT) /* that may be soon enough */
            fail_msg("fault %d: %s", (int)fault, err.message);
        if (status == ST_OK && (fault == FAULT_ENDS || fault == FAULT_FALLS_SILENT))
            for (int i = 0; i < 30000 && !device_is_lost(rig.device); i++) usleep(1000); /* without any step */
        for (int i = 0; status == ST_OK && i < 3; i++) {
            batch_clear(&rig);
            batch_add(&rig, 0, 0, 9);
            assert_int_equal(device_step(rig.device, rig.batch, rig.result), ST_DEVICE);
            assert_true(device_is_lost(rig.device));
            device_empty_kv(rig.device);
        }
    }
    uint64_t took_ns = clock_now_ns(clock_system()) - begin_ns;
    if (took_ns > 30 * NS_PER_S) fail_msg("fault %d: noticed after %.1f s", (int)fault, (double)took_ns / 1e9);
    device_destroy(rig.device);
    rig.device = NULL;
    atomic_store(&faulty.over, true);
    pthread_join(faulty.thread, NULL);
    rig_free(&rig);
}

static void test_device_ranks_lost_ranks(void **state)
{
    (void)state;
    for (int fault = 0; fault < FAULTS_COUNT; fault++)
        if (fault != FAULTS_IN_CREATE) check_fault((enum fault)fault);
}

static enum status start_refused(void *state, uint32_t rank, int socket, int32_t *pid)
{
    struct rank_threads *threads = state;
    return rank == 2 ? ST_NOMEM : rank_threads_start(threads, rank, socket, pid);
}

static enum status open_refused(void *state, const char *path, struct model **model, struct error *err)
{
    (void)state;
    (void)model;
    return error_set(err, ST_NOTFOUND, "%s: gone", path);
}

static enum status open_another(void *state, const char *path, struct model **model, struct error *err)
{
    static _Thread_local struct model other; /* of each rank's thread */
    (void)path;
    (void)err;
    other = *(struct model *)state;
    other.spec.parameters++;
    *model = &other;
    return ST_OK;
}

static void expect_refusal(struct rig *rig, const struct device_ranks_config *config, enum status wanted,
                           const char *word)
{
    struct error err = {""};
    enum status status = device_ranks_create(&tiny.model, config, NULL, NULL, &rig->device, &err);
    if (status != wanted || !strstr(err.message, word)) fail_msg("%s: %s", status_name(status), err.message);
    assert_null(rig->device);
    rank_threads_join(&rig->threads);
}

static void test_device_ranks_refuses(void **state)
{
    (void)state;
    struct rig rig;
    rig_make(&rig);
    struct device_ranks_config config = config_of(&rig, 7, NUMERICS_FAST);
    expect_refusal(&rig, &config, ST_INVAL, "1-6 do");
    config.ranks = 1;
    expect_refusal(&rig, &config, ST_INVAL, "1 ranks");
    config.ranks = 65;
    expect_refusal(&rig, &config, ST_INVAL, "2 to 64");
    config.ranks = 2;
    config.stages = 33;
    expect_refusal(&rig, &config, ST_INVAL, "66 ranks");
    config.stages = 3;
    expect_refusal(&rig, &config, ST_INVAL, "1-2 do");
    config.stages = 0;
    config.ranks = 3;
    config.start = start_refused;
    expect_refusal(&rig, &config, ST_NOMEM, "rank=2");
    config.start = rank_threads_start;
    config.device.numerics = NUMERICS_EXACT;
    config.device.kv_int8 = true; /* what the device itself refuses */
    expect_refusal(&rig, &config, ST_INVAL, "int8");
    config.device.kv_int8 = false;
    char path[RANK_PATH_MAX + 1];
    memset(path, 'x', sizeof path);
    path[RANK_PATH_MAX] = '\0';
    config.model_path = path;
    expect_refusal(&rig, &config, ST_LIMIT, "the path");
    config.model_path = "tiny";
    rig.threads.config.open = open_refused;
    expect_refusal(&rig, &config, ST_NOTFOUND, "tiny: gone");
    rig.threads.config.open = open_another;
    expect_refusal(&rig, &config, ST_INVAL, "another model");
    rig_free(&rig);
}

/* ---- what comes over a rank's socket ---- */

static struct rank_message setup_message(void)
{
    struct rank_message message = rank_message_of(RANK_SETUP);
    message.u.setup = (struct rank_setup){.rank = 1,
                                          .ranks = 2,
                                          .stages = 1,
                                          .threads = 1,
                                          .numerics = NUMERICS_FAST,
                                          .kv_blocks = 8,
                                          .tokens_max = 16,
                                          .seqs_max = 2,
                                          .rows_max = 16,
                                          .context_max = 128,
                                          .slot_bytes = 4096,
                                          .deadline_ns = NS_PER_MS,
                                          .batch_bytes_max = 4096,
                                          .entries_max = 16,
                                          .model_path = "tiny"};
    return message;
}

/* A worker that has been sent all of it before it begins, and rank 0 is gone behind it. */
static enum status run_worker(const void *const *packets, const size_t *lengths, uint32_t count, int fd,
                              struct error *err)
{
    struct rank_worker_config config = {open_tiny, close_tiny, &tiny.model, false};
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    for (uint32_t i = 0; i < count; i++) {
        if (i == 0 && fd >= 0 && lengths[0] == sizeof(struct rank_message))
            assert_int_equal(rank_send(pair[0], packets[0], fd), ST_OK);
        else
            assert_true(send(pair[0], packets[i], lengths[i], MSG_NOSIGNAL) >= 0);
    }
    shutdown(pair[0], SHUT_WR);
    enum status status = rank_worker_run(pair[1], &config, err);
    close(pair[0]);
    return status;
}

static void test_device_ranks_sound_setups(void **state)
{
    (void)state;
    static const uint32_t sound[][2] = {{2, 1}, {2, 2}, {6, 3}, {64, 64}},
                          unsound[][2] = {{2, 0}, {2, 3}, {6, 4}, {65, 1}};
    struct rank_setup setup = setup_message().u.setup;
    for (size_t i = 0; i < sizeof sound / sizeof *sound; i++) {
        setup.ranks = sound[i][0];
        setup.stages = sound[i][1];
        assert_true(rank_setup_is_sound(&setup));
        setup.ranks = unsound[i][0];
        setup.stages = unsound[i][1];
        assert_false(rank_setup_is_sound(&setup));
    }
}

static void test_device_ranks_nonsense_for_a_rank(void **state)
{
    (void)state;
#ifdef __SANITIZE_THREAD__ /* a device's memory is cleared in its shadow too */
    enum { ROUNDS = 100 };
#else
    enum { ROUNDS = 400 };
#endif
    uint64_t seed = 20261123;
    uint32_t ended[2] = {0};
    print_message("seed %llu\n", (unsigned long long)seed);
    tiny_make(&tiny, &spec, TENSOR_Q4_1, false, false);
    for (int round = 0; round < ROUNDS; round++) {
        struct rank_message messages[3] = {setup_message(), rank_message_of(RANK_STEP), rank_message_of(RANK_STOP)};
        const void *packets[3] = {&messages[0], &messages[1], &messages[2]};
        size_t lengths[3] = {sizeof messages[0], sizeof messages[0], sizeof messages[0]};
        size_t memory_bytes = comm_local_bytes(2, 4096);
        struct error err = {""};
        void *memory = NULL;
        int fd = -1;
        assert_int_equal(comm_memory_create(memory_bytes, &fd, &memory), ST_OK);
        if (round % 3 != 2) comm_local_prepare(memory, 2, 4096);
        messages[1].u.step_bytes = random_next(&seed) % 5000;
        if (round % 2 == 0) messages[1] = rank_message_of(RANK_EMPTY_KV);
        for (uint64_t i = random_next(&seed) % 4; i > 0 && round > 1; i--) { /* round 0 and 1: sound */
            uint32_t which = (uint32_t)(random_next(&seed) % 3), *words_of = (uint32_t *)(void *)&messages[which];
            size_t count = which ? 6 : (offsetof(struct rank_message, u) + offsetof(struct rank_setup, model_path)) / 4;
            words_of[random_next(&seed) % count] = (uint32_t)(random_next(&seed) >> (random_next(&seed) % 64));
            if (random_next(&seed) % 8 == 0) lengths[which] = (size_t)(random_next(&seed) % sizeof messages[0]);
        }
        if (messages[0].u.setup.threads > 64) messages[0].u.setup.threads = 0; /* the machine is not ours alone */
        messages[0].u.setup.deadline_ns %= 2 * NS_PER_MS;                      /* nobody will come */
        messages[0].u.setup.spin_ns %= NS_PER_MS;
        if (messages[0].u.setup.kv_blocks > 1000) messages[0].u.setup.kv_blocks = 7;
        if (messages[0].u.setup.tokens_max > 1000) messages[0].u.setup.tokens_max = 0;
        if (messages[0].u.setup.rows_max > 1000) messages[0].u.setup.rows_max = 0;
        enum status status = run_worker(packets, lengths, 3, round % 7 == 6 ? -1 : fd, &err);
        if (round == 0 && status != ST_OK) fail_msg("%s", err.message);
        if (round == 1) assert_int_equal(status, ST_TIMEOUT); /* rank 0 does not meet it */
        if (status != ST_OK && status != ST_IO) assert_true(err.message[0] != '\0');
        ended[status == ST_OK]++;
        comm_memory_unmap(memory, memory_bytes);
        close(fd);
    }
    print_message("%u stopped, %u refused\n", ended[1], ended[0]);
    assert_true(ended[0] > ROUNDS / 20 && ended[1] > ROUNDS / 80);
    tiny_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_ranks_gives_what_the_whole_gives),
        cmocka_unit_test(test_device_ranks_stages),
        cmocka_unit_test(test_device_ranks_lost_ranks),
        cmocka_unit_test(test_device_ranks_refuses),
        cmocka_unit_test(test_device_ranks_sound_setups),
        cmocka_unit_test(test_device_ranks_nonsense_for_a_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
