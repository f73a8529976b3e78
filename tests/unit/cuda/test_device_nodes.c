/* One CUDA device over several processes, which are threads here, over loopback: the same ids and bits as one process
 * with as many GPUs, continuous batches, one step ahead; and what happens when somebody goes, lies or hangs. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/device/device_cuda.h"
#include "runtime/device/device_nodes.h"
#include "tests/emulator/faults.h"
#include "tests/support/loopback.h"
#include "tests/unit/cuda/fake_libraries.h"
#include "tests/unit/runtime/tiny_model.h"

#include <stdlib.h>
#include <unistd.h>

enum {
    V = 597,
    SEQS = 3,
    CONTEXT = 128,
    BLOCKS = SEQS * CONTEXT / KV_BLOCK_TOKENS,
    TOKENS_MAX = 80,
    PROCESSES_MAX = 4
};

static const struct model_spec base_spec = {
    TINY_SPEC,       .heads = 4, .head_size = 64,       .rope_size = 64, .attention_scale = 0.125f,
    .ff_width = 128, .vocab = V, .context_max = CONTEXT};
static const char secret[] = "a launch secret of some length";

/* ---- processes ---- */

struct world;
struct process {
    struct world *world;
    uint32_t process;
    pthread_t thread;
    bool started;
    enum status status;
    struct error err;
    struct device *device; /* process 0's */
    atomic_bool stop, ready;
};

struct world {
    struct tiny_model tiny;
    uint32_t processes, ranks; /* ranks of each */
    struct rendezvous_config meeting;
    struct device_cuda_config cuda;
    struct process all[PROCESSES_MAX];
    uint32_t small; /* process 1 has less room: 1 some, 2 none */
};

static enum status create_part(void *state, const struct device_share *share, struct device **device, struct error *err)
{
    struct process *p = state;
    struct device_cuda_config config = p->world->cuda;
    config.ranks = p->world->ranks;
    config.first_gpu = p->process * p->world->ranks;
    config.share = share;
    if (p->process == 1 && p->world->small == 1) config.memory_utilization -= 0.01;
    if (p->process == 1 && p->world->small == 2) config.memory_utilization = 0.0005;
    return device_cuda_create(&p->world->tiny.model, &config, NULL, NULL, device, err);
}

static bool told_to_stop(void *state)
{
    return atomic_load(&((struct process *)state)->stop);
}

static void on_ready(void *state, const struct device_info *info)
{
    assert_true(info->kv_blocks >= BLOCKS);
    atomic_store(&((struct process *)state)->ready, true);
}

static struct device_nodes_config config_of(struct process *p)
{
    struct world *w = p->world;
    struct device_nodes_config config = {.meeting = w->meeting,
                                         .ranks = w->ranks,
                                         .tokens_max = TOKENS_MAX,
                                         .seqs_max = SEQS,
                                         .rows_max = TOKENS_MAX,
                                         .context_max = CONTEXT,
                                         .vocab = V,
                                         .create = create_part,
                                         .state = p,
                                         .stop = told_to_stop};
    config.meeting.process = p->process;
    return config;
}

static void *process_main(void *state)
{
    struct process *p = state;
    struct device_nodes_config config = config_of(p);
    if (p->process == 0) {
        assert_int_equal(device_cuda_nccl_id(&fake_libraries, config.id, &p->err), ST_OK);
        p->status = device_nodes_lead(&config, &p->device, &p->err);
    } else {
        p->status = device_nodes_follow(&config, on_ready, &p->err);
    }
    return NULL;
}

static void world_make(struct world *w, uint32_t processes, uint32_t ranks)
{
    size_t free_bytes, total_bytes;
    memset(w, 0, sizeof *w);
    tiny_make(&w->tiny, &base_spec, TENSOR_Q8_0, false, false);
    w->processes = processes;
    w->ranks = ranks;
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    w->cuda = (struct device_cuda_config){.memory_utilization =
                                              0.06 + (double)(total_bytes - free_bytes) / (double)total_bytes,
                                          .spare_bytes = 1 << 20,
                                          .step_deadline_ns = 600000000000u,
                                          .tokens_max = TOKENS_MAX,
                                          .seqs_max = SEQS,
                                          .rows_max = TOKENS_MAX,
                                          .context_max = CONTEXT,
                                          .libraries = &fake_libraries};
    w->meeting = (struct rendezvous_config){.processes = processes,
                                            .address = "127.0.0.1",
                                            .port = free_port(),
                                            .secret = secret,
                                            .secret_bytes = strlen(secret),
                                            .version = "0.1.0",
                                            .join_ns = 60 * NS_PER_S,
                                            .beat_ms = 20,
                                            .lost_ms = 60000};
    for (uint32_t i = 0; i < processes; i++) w->all[i] = (struct process){.world = w, .process = i};
}

static void start(struct process *p)
{
    assert_int_equal(pthread_create(&p->thread, NULL, process_main, p), 0);
    p->started = true;
}

static void finish(struct process *p)
{
    if (p->started) pthread_join(p->thread, NULL);
    p->started = false;
}

/* All meet; process 0's device stands when this returns. */
static struct device *world_start(struct world *w)
{
    for (uint32_t i = w->processes; i-- > 0;) start(&w->all[i]);
    finish(&w->all[0]);
    if (w->all[0].status != ST_OK) fail_msg("process 0: %s", w->all[0].err.message);
    for (uint32_t i = 1; i < w->processes; i++)
        while (!atomic_load(&w->all[i].ready)) usleep(1000);
    return w->all[0].device;
}

static void expect(struct process *p, enum status status, const char *word)
{
    finish(p);
    if (p->status != status || !strstr(p->err.message, word))
        fail_msg("process %u: %s: %s; expected %s: %s", p->process, status_name(p->status), p->err.message,
                 status_name(status), word);
    print_message("process %u: %s %s\n", p->process, status_name(p->status), p->err.message);
}

static void world_free(struct world *w)
{
    tiny_free(&w->tiny);
}

/* ---- steps ---- */

struct fixture {
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    block_id tables[SEQS][CONTEXT / KV_BLOCK_TOKENS];
};

static const uint32_t lengths[SEQS] = {40, 23, 9};
static const uint32_t few[] = {3, 77, 127, 128, 255, 596};
static const struct logit_bias bias[] = {{5, 2}, {200, -3}};
static const struct sampling_params kinds[SEQS] = {
    {.temperature = 0.9f, .top_p = 0.9f, .repetition_penalty = 1.3f, .frequency_penalty = 0.4f, .logprobs = 20},
    {.top_p = 1, .repetition_penalty = 1.2f, .presence_penalty = 0.5f, .bias = bias, .bias_count = 2, .logprobs = 3},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .allowed = few, .allowed_count = 6, .logprobs = 20},
};

static void fixture_make(struct fixture *f, struct device *device)
{
    f->device = device;
    assert_true(device->info.kv_blocks >= BLOCKS);
    assert_true(batch_create(TOKENS_MAX, SEQS, TOKENS_MAX, &f->batch) == ST_OK &&
                batch_result_create(TOKENS_MAX, &f->result) == ST_OK);
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t b = 0; b < CONTEXT / KV_BLOCK_TOKENS; b++) f->tables[s][b] = (b * SEQS + s) * 7 % BLOCKS;
}

static void fixture_free(struct fixture *f)
{
    batch_destroy(f->batch);
    batch_result_destroy(f->result);
}

static void add(struct fixture *f, uint32_t s, uint32_t position, uint32_t count, const uint32_t *tokens)
{
    struct batch *batch = f->batch;
    uint32_t seq = batch->seqs_count++;
    batch->q_start[seq] = batch->tokens_count;
    batch->kv_len[seq] = position + count;
    batch->block_table[seq] = f->tables[s];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n = batch->tokens_count++;
        batch->tokens[n] = tokens[i];
        batch->positions[n] = position + i;
        batch->seq_of_token[n] = seq;
    }
    batch->q_start[batch->seqs_count] = batch->tokens_count;
}

/* Sequences come one after the other (s in step s), in chunks of 13, then generate `new` ids each; every step is
 * launched before the one before is collected, pause_ms after it. Gives the rows of all new ids. */
static void generate(struct fixture *f, uint32_t new, uint32_t pause_ms, struct row_result rows[SEQS][CONTEXT],
                     uint32_t ids[SEQS][CONTEXT])
{
    uint64_t seed = 19;
    uint32_t done[SEQS] = {0}, made[SEQS] = {0}, row_of[2][SEQS], steps = 0, under_way = 0;
    bool has_row[2][SEQS];
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t i = 0; i < lengths[s]; i++) ids[s][i] = (uint32_t)(random_next(&seed) % V);
    for (bool more = true; more || under_way;) {
        struct batch *b = f->batch;
        static struct sampling_params params[SEQS];
        uint32_t g = steps % 2;
        b->tokens_count = b->seqs_count = b->rows_count = 0;
        memset(has_row[g], 0, sizeof has_row[g]);
        for (uint32_t s = 0; s < SEQS && s <= steps; s++) {
            uint32_t left = lengths[s] - (done[s] < lengths[s] ? done[s] : lengths[s]);
            if (!left && done[s] >= lengths[s] + new - 1) continue;
            uint32_t count = left ? (left < 13 ? left : 13) : 1, token = left ? 0 : TOKEN_OF_ROW | row_of[1 - g][s];
            add(f, s, done[s], count, left ? ids[s] + done[s] : &token);
            done[s] += count;
            if (done[s] < lengths[s]) continue;
            params[s] = kinds[s];
            row_of[g][s] = b->rows_count;
            has_row[g][s] = true;
            b->rows[b->rows_count++] = (struct batch_row){.token = b->tokens_count - 1,
                                                          .params = &params[s],
                                                          .seed = 77 + s,
                                                          .position = done[s],
                                                          .seen = ids[s],
                                                          .seen_prompt = lengths[s],
                                                          .seen_count = lengths[s] + made[s],
                                                          .pending = !left};
        }
        more = b->tokens_count > 0;
        if (more) {
            usleep(1000 * pause_ms);
            assert_int_equal(device_launch(f->device, b), ST_OK);
            memset(params, 0xee, sizeof params); /* L2 */
            memset(b->tokens, 0xee, b->tokens_max * sizeof *b->tokens);
            steps++;
            if (++under_way < 2) continue;
        }
        if (!under_way) break;
        uint32_t before = (steps - under_way) % 2;
        assert_int_equal(device_collect(f->device, f->result), ST_OK);
        under_way--;
        for (uint32_t s = 0; s < SEQS; s++) {
            if (!has_row[before][s]) continue;
            struct row_result *row = &rows[s][made[s]];
            *row = f->result->rows[row_of[before][s]];
            for (uint32_t k = row->top_count; k < LOGPROBS_MAX; k++) row->top_ids[k] = 0, row->top_logprobs[k] = 0;
            ids[s][lengths[s] + made[s]++] = row->id;
        }
    }
    for (uint32_t s = 0; s < SEQS; s++) assert_int_equal(made[s], new);
}

/* A few tokens, and what the device says to them. */
static enum status one_step(struct fixture *f)
{
    static const uint32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    f->batch->tokens_count = f->batch->seqs_count = f->batch->rows_count = 0;
    add(f, 1, 0, 9, tokens);
    f->batch->rows[f->batch->rows_count++] = (struct batch_row){.token = 8, .params = &greedy, .position = 9};
    return device_step(f->device, f->batch, f->result);
}

/* ---- the same as one process ---- */

static void test_device_nodes_equal_one_process(void **state)
{
    (void)state;
    enum { NEW = 6 };
    static const struct {
        uint32_t processes, ranks, stages;
    } shapes[] = {{2, 2, 1}, {2, 1, 1}, {4, 1, 1}, {2, 2, 2}, {4, 1, 2}}; /* stages of a process, and over two */
    static struct world w;
    static struct row_result rows[2][SEQS][CONTEXT];
    static uint32_t ids[2][SEQS][CONTEXT];
    for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct fixture f = {0};
        struct error err = {""};
        struct device *alone = NULL;
        world_make(&w, shapes[i].processes, shapes[i].ranks);
        w.cuda.graphs = i != 1;
        w.cuda.stages = shapes[i].stages;
        w.cuda.deterministic = w.cuda.stages == w.processes; /* where each process has a stage */
        struct device_cuda_config config = w.cuda;
        config.ranks = w.processes * w.ranks;
        config.one_shot_bytes = 1; /* NCCL makes all sums, or with deterministic none */
        if (device_cuda_create(&w.tiny.model, &config, NULL, NULL, &alone, &err) != ST_OK) fail_msg("%s", err.message);
        fixture_make(&f, alone);
        generate(&f, NEW, 0, rows[0], ids[0]);
        device_destroy(alone);
        fixture_free(&f);
        fixture_make(&f, world_start(&w));
        assert_non_null(strstr(f.device->info.name, "processes of cuda"));
        generate(&f, NEW, i == 0 ? 60 : 0, rows[1], ids[1]); /* so long that others have collected what they have */
        for (uint32_t s = 0; s < SEQS; s++)
            for (uint32_t n = 0; n < NEW; n++)
                if (memcmp(&rows[0][s][n], &rows[1][s][n], sizeof rows[0][s][n]) != 0)
                    fail_msg("%u x %u, sequence %u, id %u: %u, not %u", w.processes, w.ranks, s, n, rows[1][s][n].id,
                             rows[0][s][n].id);
        assert_int_equal(one_step(&f), ST_OK);
        assert_false(device_is_lost(f.device));
        device_destroy(f.device);
        for (uint32_t p = 1; p < w.processes; p++) expect(&w.all[p], ST_OK, "");
        fixture_free(&f);
        world_free(&w);
    }
}

/* The smallest room of all processes counts; a stage of layers may be another process's; bits stay. */
static void test_device_nodes_agree_on_blocks_and_take_stages(void **state)
{
    (void)state;
    enum { NEW = 3 };
    static struct world w;
    static struct row_result rows[2][SEQS][CONTEXT];
    static uint32_t ids[2][SEQS][CONTEXT];
    uint32_t blocks[2];
    for (uint32_t i = 0; i < 2; i++) {
        struct fixture f = {0};
        world_make(&w, 2, 1);
        w.cuda.stages = 2;
        w.cuda.deterministic = true; /* no stage is divided over processes */
        w.small = i;
        fixture_make(&f, world_start(&w));
        blocks[i] = f.device->info.kv_blocks;
        generate(&f, NEW, 0, rows[i], ids[i]);
        device_destroy(f.device);
        expect(&w.all[1], ST_OK, "");
        fixture_free(&f);
        world_free(&w);
    }
    if (blocks[1] >= blocks[0]) fail_msg("%u blocks beside a smaller process, %u without", blocks[1], blocks[0]);
    for (uint32_t s = 0; s < SEQS; s++) assert_memory_equal(rows[0][s], rows[1][s], NEW * sizeof rows[0][s][0]);
}

static void test_device_nodes_refuse_what_cannot_be_made(void **state)
{
    (void)state;
    static struct world w;
    world_make(&w, 2, 1);
    w.cuda.deterministic = true; /* sums over processes are NCCL's */
    for (uint32_t i = 0; i < 2; i++) start(&w.all[i]);
    for (uint32_t i = 0; i < 2; i++) finish(&w.all[i]);
    for (uint32_t i = 0; i < 2; i++)
        if (!strstr(w.all[i].err.message, "--deterministic")) fail_msg("%s", w.all[i].err.message);
    world_free(&w);
    world_make(&w, 2, 1);
    w.small = 2; /* process 1 has room for nothing */
    for (uint32_t i = 0; i < 2; i++) start(&w.all[i]);
    expect(&w.all[1], ST_NOMEM, "--max-model-len");
    expect(&w.all[0], ST_DEVICE, "process 1 has given up: ");
    world_free(&w);
}

enum harm { FOLLOWER_LEAVES, COLLECTIVE_HANGS, FOLLOWER_BREAKS, HARMS };

/* While steps run; every process ends by itself, within the deadline of a step. */
static void test_device_nodes_end_with_a_lost_process(void **state)
{
    (void)state;
    static struct world w;
    for (enum harm harm = 0; harm < HARMS; harm++) {
        struct fixture f = {0};
        world_make(&w, 2, 1);
        w.cuda.step_deadline_ns = harm == COLLECTIVE_HANGS ? NS_PER_S : 600 * NS_PER_S;
        fixture_make(&f, world_start(&w));
        for (int i = 0; i < 3; i++) assert_int_equal(one_step(&f), ST_OK);
        uint64_t begin_ns = clock_now_ns(clock_system());
        if (harm == FOLLOWER_LEAVES) atomic_store(&w.all[1].stop, true);
        if (harm == COLLECTIVE_HANGS) fault_hang_collective(3);
        if (harm == FOLLOWER_BREAKS) fault_nccl_async(6, 2);
        enum status status = ST_OK;
        for (int i = 0; i < 100 && status == ST_OK; i++) status = one_step(&f);
        assert_int_equal(status, ST_DEVICE);
        assert_true(device_is_lost(f.device));
        assert_int_equal(device_launch(f.device, f.batch), ST_DEVICE);
        assert_int_equal(device_collect(f.device, f.result), ST_DEVICE);
        device_destroy(f.device);
        expect(&w.all[1], harm == FOLLOWER_LEAVES ? ST_CANCELED : ST_DEVICE, "");
        print_message("harm %d: %llu ms\n", harm,
                      (unsigned long long)((clock_now_ns(clock_system()) - begin_ns) / NS_PER_MS));
        faults_clear();
        fixture_free(&f);
        world_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_nodes_equal_one_process),
        cmocka_unit_test(test_device_nodes_agree_on_blocks_and_take_stages),
        cmocka_unit_test(test_device_nodes_refuse_what_cannot_be_made),
        cmocka_unit_test(test_device_nodes_end_with_a_lost_process),
    };
    (void)setenv("CUSIM_DEVICES", "4", 1);
    if (getenv("MILLRACE_TEST_FILTER")) cmocka_set_test_filter(getenv("MILLRACE_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
