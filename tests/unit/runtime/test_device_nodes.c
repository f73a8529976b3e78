/* Process 0 and its followers, threads here, over loopback, with parts that compute nothing: every follower is given
 * the batches that process 0 is, in order and one step ahead; and whoever goes, gives up, hangs or lies is noticed by
 * all. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/batch_rows_wire.h"
#include "runtime/batch_wire.h"
#include "runtime/device/device_nodes.h"
#include "runtime/device/node_link.h"
#include "tests/support/loopback.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { PROCESSES = 3, TOKENS = 32, SEQS = 4, CONTEXT = 64, V = 100, STEPS_MAX = 400, BLOCKS = 50 };

static const char secret[] = "a launch secret of some length";

/* ---- a part that computes nothing ---- */

struct world;
struct process {
    struct device device; /* the part: first */
    struct world *world;
    uint32_t process;
    pthread_t thread;
    bool started;
    const struct device_share *share;
    uint32_t blocks;                       /* that fit here */
    atomic_uint launched, collected;       /* a step's sums are there when all have launched it */
    uint64_t digests[STEPS_MAX];           /* of each batch */
    atomic_bool lost;                      /* its part says so by itself */
    atomic_bool hangs, breaks, stop, gone; /* never launches; launch fails; leave; its part is destroyed */
    bool fails;                            /* its part cannot be made */
    enum status status;
    struct error err;
    struct device *lead; /* process 0's device */
    uint64_t ended_ns;
};

struct world {
    struct process all[PROCESSES];
    struct rendezvous_config meeting;
    uint32_t take_ms, limit_ms; /* of a wait for the others' parts; 0: none */
};

static struct process *part_of(struct device *device)
{
    return (struct process *)(void *)device;
}

static uint64_t mix(uint64_t digest, const void *data, size_t bytes)
{
    return bytes ? hash_bytes(data, bytes, digest) : digest;
}

/* All that a device reads of a batch. */
static uint64_t digest_of(const struct batch *b)
{
    uint64_t d = 1;
    d = mix(d, &b->tokens_count, 3 * sizeof b->tokens_count);
    d = mix(d, b->tokens, b->tokens_count * sizeof *b->tokens);
    d = mix(d, b->positions, b->tokens_count * sizeof *b->positions);
    d = mix(d, b->seq_of_token, b->tokens_count * sizeof *b->seq_of_token);
    d = mix(d, b->kv_len, b->seqs_count * sizeof *b->kv_len);
    for (uint32_t s = 0; s < b->seqs_count; s++)
        d = mix(d, b->block_table[s], (b->kv_len[s] + 15) / KV_BLOCK_TOKENS * sizeof(block_id));
    for (uint32_t r = 0; r < b->rows_count; r++) {
        const struct batch_row *row = &b->rows[r];
        const struct sampling_params *p = row->params;
        uint32_t words[] = {row->token,  row->position,     row->pending, row->score_only,
                            row->target, row->banned_count, p->top_k};
        d = mix(d, words, sizeof words);
        d = mix(d, &row->seed, sizeof row->seed);
        d = mix(d, &p->temperature, sizeof p->temperature);
        d = mix(d, row->banned, row->banned_count * sizeof *row->banned);
        if (batch_row_wants_seen(row)) d = mix(d, row->seen, row->seen_count * sizeof *row->seen);
    }
    return d;
}

static enum status part_launch(struct device *device, const struct batch *batch)
{
    struct process *p = part_of(device);
    uint32_t n = atomic_load(&p->launched);
    if (atomic_load(&p->breaks)) return ST_DEVICE;
    if (batch->tokens_count > 0 && batch->tokens[0] == V) return ST_INVAL;
    assert_true(n - atomic_load(&p->collected) < LAUNCHED_MAX && n < STEPS_MAX);
    p->digests[n] = digest_of(batch);
    if (!atomic_load(&p->hangs)) atomic_fetch_add(&p->launched, 1);
    return ST_OK;
}

static enum status part_collect(struct device *device, struct batch_result *result)
{
    struct process *p = part_of(device);
    struct world *w = p->world;
    uint32_t n = atomic_load(&p->collected);
    uint64_t begin_ns = clock_now_ns(clock_system());
    for (bool all = false; !all;) {
        struct error err;
        all = true;
        for (uint32_t i = 0; i < w->meeting.processes; i++) all = all && atomic_load(&w->all[i].launched) > n;
        if (!all && p->share->check(p->share->state, &err) != ST_OK) return ST_DEVICE;
        if (!all && w->limit_ms && clock_now_ns(clock_system()) - begin_ns > w->limit_ms * NS_PER_MS) return ST_DEVICE;
        if (!all) usleep(200);
    }
    atomic_fetch_add(&p->collected, 1);
    result->rows[0].id = n;
    return ST_OK;
}

static bool part_is_lost(struct device *device)
{
    struct process *p = part_of(device);
    struct error err;
    return atomic_load(&p->lost) || p->share->check(p->share->state, &err) != ST_OK;
}

static void part_destroy(struct device *device)
{
    atomic_store(&part_of(device)->gone, true);
}

static enum status part_create(void *state, const struct device_share *share, struct device **device, struct error *err)
{
    static const struct device_ops ops = {
        .destroy = part_destroy, .launch = part_launch, .collect = part_collect, .is_lost = part_is_lost};
    struct process *p = state;
    uint32_t blocks = p->blocks;
    assert_int_equal(share->rank_first, 2 * p->process);
    assert_int_equal(share->ranks_all, 2 * p->world->meeting.processes);
    for (uint32_t i = 0; i < sizeof share->id; i++) assert_int_equal(share->id[i], (uint8_t)(i * 3 + 1));
    if (p->fails) return error_set(err, ST_NOMEM, "no room for \"weights\"\nhere");
    TRY(share->agree(share->state, &blocks, err));
    p->share = share;
    p->device = (struct device){.ops = &ops, .info = {.name = "nothing", .vocab = V, .kv_blocks = blocks}};
    *device = &p->device;
    return ST_OK;
}

/* ---- processes ---- */

static bool told_to_stop(void *state)
{
    return atomic_load(&((struct process *)state)->stop);
}

static void world_make(struct world *w, uint32_t processes)
{
    memset(w, 0, sizeof *w);
    w->meeting = (struct rendezvous_config){.processes = processes,
                                            .address = "127.0.0.1",
                                            .port = free_port(),
                                            .secret = secret,
                                            .secret_bytes = strlen(secret),
                                            .version = "0.1.0",
                                            .join_ns = 60 * NS_PER_S,
                                            .beat_ms = 20,
                                            .lost_ms = 60000};
    for (uint32_t i = 0; i < processes; i++) {
        w->all[i].world = w;
        w->all[i].process = i;
        w->all[i].blocks = BLOCKS - i * 7 % 10;
    }
}

static struct device_nodes_config config_of(struct process *p)
{
    struct device_nodes_config config = {.meeting = p->world->meeting,
                                         .ranks = 2,
                                         .tokens_max = TOKENS,
                                         .seqs_max = SEQS,
                                         .rows_max = TOKENS,
                                         .context_max = CONTEXT,
                                         .vocab = V,
                                         .create = part_create,
                                         .state = p,
                                         .take_ms = p->world->take_ms,
                                         .stop = told_to_stop};
    config.meeting.process = p->process;
    for (uint32_t i = 0; i < sizeof config.id && p->process == 0; i++) config.id[i] = (uint8_t)(i * 3 + 1);
    return config;
}

static void *process_main(void *state)
{
    struct process *p = state;
    struct device_nodes_config config = config_of(p);
    p->status =
        p->process ? device_nodes_follow(&config, NULL, &p->err) : device_nodes_lead(&config, &p->lead, &p->err);
    p->ended_ns = clock_now_ns(clock_system());
    return NULL;
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

static void expect(struct process *p, enum status status, const char *word)
{
    finish(p);
    if (p->status != status || !strstr(p->err.message, word))
        fail_msg("process %u: %s: %s; expected %s: %s", p->process, status_name(p->status), p->err.message,
                 status_name(status), word);
}

static struct device *world_start(struct world *w)
{
    for (uint32_t i = w->meeting.processes; i-- > 0;) start(&w->all[i]);
    finish(&w->all[0]);
    if (w->all[0].status != ST_OK) fail_msg("process 0: %s", w->all[0].err.message);
    return w->all[0].lead;
}

/* ---- batches ---- */

struct steps {
    struct batch *batch;
    struct batch_result *result;
    block_id tables[SEQS][CONTEXT / KV_BLOCK_TOKENS];
    struct sampling_params params[SEQS];
    uint32_t ids[SEQS][CONTEXT];
};

static void steps_make(struct steps *s)
{
    memset(s, 0, sizeof *s);
    assert_int_equal(batch_create(TOKENS, SEQS, TOKENS, &s->batch), ST_OK);
    assert_int_equal(batch_result_create(TOKENS, &s->result), ST_OK);
}

static void steps_free(struct steps *s)
{
    batch_destroy(s->batch);
    batch_result_destroy(s->result);
}

static void random_batch(struct steps *s, uint64_t *seed)
{
    struct batch *b = s->batch;
    b->tokens_count = b->rows_count = 0;
    b->seqs_count = 1 + (uint32_t)(random_next(seed) % SEQS);
    b->q_start[0] = 0;
    for (uint32_t i = 0; i < b->seqs_count; i++) {
        uint32_t count = 1 + (uint32_t)(random_next(seed) % 7), before = (uint32_t)(random_next(seed) % 50);
        b->kv_len[i] = before + count;
        b->block_table[i] = s->tables[i];
        for (uint32_t k = 0; k < CONTEXT / KV_BLOCK_TOKENS; k++)
            s->tables[i][k] = (block_id)(random_next(seed) % BLOCKS);
        for (uint32_t k = 0; k < CONTEXT; k++) s->ids[i][k] = (uint32_t)(random_next(seed) % V);
        for (uint32_t k = 0; k < count; k++, b->tokens_count++) {
            b->tokens[b->tokens_count] = (uint32_t)(random_next(seed) % V);
            b->positions[b->tokens_count] = before + k;
            b->seq_of_token[b->tokens_count] = i;
        }
        b->q_start[i + 1] = b->tokens_count;
        s->params[i] = (struct sampling_params){.temperature = (float)(random_next(seed) % 9),
                                                .repetition_penalty = random_next(seed) % 2 ? 1 : 2,
                                                .logprobs = -1};
        b->rows[b->rows_count++] = (struct batch_row){.token = b->tokens_count - 1,
                                                      .params = &s->params[i],
                                                      .seed = random_next(seed),
                                                      .position = before + count,
                                                      .seen = s->ids[i],
                                                      .seen_count = before,
                                                      .banned = s->ids[i],
                                                      .banned_count = (uint32_t)(random_next(seed) % 3)};
    }
}

static enum status random_step(struct steps *s, struct device *device, uint64_t *seed)
{
    random_batch(s, seed);
    return device_step(device, s->batch, s->result);
}

/* ---- tests ---- */

static void test_device_nodes_give_every_process_the_same_batches(void **state)
{
    (void)state;
    static struct world w;
    static struct steps s;
    uint64_t seed = 4;
    world_make(&w, PROCESSES);
    steps_make(&s);
    struct device *device = world_start(&w);
    assert_int_equal(device->info.kv_blocks, BLOCKS - 7);
    for (uint32_t i = 0; i < PROCESSES; i++)
        if (i == 0) assert_int_equal(w.all[i].device.info.kv_blocks, BLOCKS - 7);
    uint32_t launched = 0;
    for (uint32_t collected = 0; collected < 300; collected++) {
        while (launched < 300 && launched - collected < LAUNCHED_MAX) {
            random_batch(&s, &seed);
            assert_int_equal(device_launch(device, s.batch), ST_OK);
            memset(s.params, 0xee, sizeof s.params); /* L2 */
            memset(s.ids, 0xee, sizeof s.ids);
            memset(s.tables, 0xee, sizeof s.tables);
            launched++;
            s.batch->tokens_count = 1;
            s.batch->tokens[0] = V; /* our bug: nobody else may see it */
            if (launched == 50) assert_int_equal(device_launch(device, s.batch), ST_INVAL);
        }
        assert_int_equal(device_collect(device, s.result), ST_OK);
        assert_int_equal(s.result->rows[0].id, collected);
        if (collected % 100 == 50) usleep(60000); /* followers collect what is under way */
    }
    assert_false(device_is_lost(device));
    device_destroy(device);
    for (uint32_t i = 1; i < PROCESSES; i++) {
        expect(&w.all[i], ST_OK, "");
        assert_true(atomic_load(&w.all[i].gone));
        assert_int_equal(atomic_load(&w.all[i].launched), 300);
        assert_memory_equal(w.all[i].digests, w.all[0].digests, 300 * sizeof(uint64_t));
    }
    steps_free(&s);
}

enum harm { LEAVES, BREAKS, HANGS, LEADER_BREAKS, HARMS }; /* hangs: the sum of its part never comes */

/* One process of three goes in one of several ways while steps run; all end, and say who it was. */
static void test_device_nodes_notice_a_loss(void **state)
{
    (void)state;
    static struct world w;
    static struct steps s;
    for (enum harm harm = 0; harm < HARMS; harm++) {
        uint64_t seed = 5, begin_ns;
        world_make(&w, PROCESSES);
        if (harm == HANGS) w.limit_ms = 300;
        steps_make(&s);
        struct device *device = world_start(&w);
        for (int i = 0; i < 20; i++) assert_int_equal(random_step(&s, device, &seed), ST_OK);
        struct process *victim = &w.all[harm == LEADER_BREAKS ? 0 : 1];
        atomic_store(harm == LEAVES ? &victim->stop : harm == HANGS ? &victim->hangs : &victim->breaks, true);
        begin_ns = clock_now_ns(clock_system());
        enum status status = ST_OK;
        for (int i = 0; i < 20 && status == ST_OK; i++) status = random_step(&s, device, &seed);
        assert_int_equal(status, ST_DEVICE);
        assert_true(device_is_lost(device));
        assert_int_equal(device_launch(device, s.batch), ST_DEVICE);
        assert_int_equal(device_collect(device, s.result), ST_DEVICE);
        device_destroy(device);
        for (uint32_t i = 1; i < PROCESSES; i++) finish(&w.all[i]);
        struct process *witness = &w.all[2];
        assert_int_equal(witness->status, ST_DEVICE);
        if (harm == LEADER_BREAKS) expect(witness, ST_DEVICE, "process 0 has given up: its part");
        if (harm == LEAVES) expect(&w.all[1], ST_CANCELED, "told to stop");
        print_message("harm %d: %s; after %llu ms\n", harm, witness->err.message,
                      (unsigned long long)((witness->ended_ns - begin_ns) / NS_PER_MS));
        for (uint32_t i = 0; i < PROCESSES; i++) assert_true(atomic_load(&w.all[i].gone));
        steps_free(&s);
    }
}

/* Nothing is asked of it, and it tells: another process has gone, a part is lost, its own or another's. */
static void test_device_nodes_notice_a_loss_while_idle(void **state)
{
    (void)state;
    static struct world w;
    for (int what = 0; what < 3; what++) {
        world_make(&w, 2);
        struct device *device = world_start(&w);
        usleep(80000);
        assert_false(device_is_lost(device));
        atomic_store(what == 0 ? &w.all[1].stop : &w.all[what - 1].lost, true);
        bool lost = false;
        for (int i = 0; i < 30000 && !lost; i++) {
            usleep(1000);
            lost = device_is_lost(device);
        }
        assert_true(lost);
        device_destroy(device);
        expect(&w.all[1], what == 0 ? ST_CANCELED : ST_DEVICE, what == 1 ? "process 0 has given up: its part" : "");
    }
}

static void test_device_nodes_start_together_or_not_at_all(void **state)
{
    (void)state;
    static struct world w;
    for (uint32_t failing = 0; failing < 2; failing++) {
        world_make(&w, PROCESSES);
        w.all[failing].fails = true;
        for (uint32_t i = 0; i < PROCESSES; i++) start(&w.all[i]);
        for (uint32_t i = 0; i < PROCESSES; i++) finish(&w.all[i]);
        expect(&w.all[failing], ST_NOMEM, "no room for");
        for (uint32_t i = 0; i < PROCESSES; i++)
            if (i != failing) assert_int_equal(w.all[i].status, ST_DEVICE);
        if (failing == 1) expect(&w.all[0], ST_DEVICE, "process 1 has given up: no room for 'weights'?here");
        print_message("%s | %s\n", w.all[0].err.message, w.all[2].err.message);
    }
    world_make(&w, 2); /* another secret, other settings: rendezvous.h says which */
    w.meeting.join_ns = NS_PER_S;
    struct device_nodes_config config = config_of(&w.all[1]);
    config.meeting.secret = "another secret of some length";
    start(&w.all[0]);
    assert_int_equal(device_nodes_follow(&config, NULL, &w.all[1].err), ST_INVAL);
    assert_non_null(strstr(w.all[1].err.message, "secrets differ"));
    expect(&w.all[0], ST_TIMEOUT, "missing: 1; one was refused: the launch secrets differ");
    config = config_of(&w.all[1]);
    config.seqs_max = 1 << 20;
    config.context_max = 1 << 24;
    assert_int_equal(device_nodes_follow(&config, NULL, &w.all[1].err), ST_INVAL);
    assert_non_null(strstr(w.all[1].err.message, "--max-num-seqs"));
}

/* ---- a process 0 that lies ---- */

struct liar {
    struct rendezvous *rendezvous;
    struct node_link *link;
};

static void liar_meet(struct liar *l, struct world *w)
{
    uint8_t blob[RENDEZVOUS_BLOB_BYTES];
    struct error err = {""};
    struct rendezvous_config meeting = w->meeting;
    struct node_link_peer peer = {.process = 1};
    struct node_link_config config = {
        .first = true, .peers = &peer, .peers_count = 1, .out_bytes_max = 1 << 16, .in_bytes_max = 400};
    for (uint32_t i = 0; i < sizeof blob; i++) blob[i] = (uint8_t)(i * 3 + 1);
    meeting.channels = true;
    if (rendezvous_open(&meeting, blob, &l->rendezvous, &err) != ST_OK) fail_msg("%s", err.message);
    rendezvous_take_channel(l->rendezvous, 0, &peer.fd, peer.key);
    assert_int_equal(node_link_create(&config, &l->link), ST_OK);
}

static void say(struct liar *l, uint8_t kind, const void *payload, size_t length)
{
    uint8_t *to;
    if (node_link_reserve(l->link, &to) != ST_OK) return;
    memcpy(to, payload, length);
    node_link_post(l->link, kind, length);
}

/* Proven frames that are no steps, or none yet: the follower ends and says so. Kinds: 2 AGREED, 4 FAILED, 5 STEP. */
static void test_device_nodes_follow_no_nonsense(void **state)
{
    (void)state;
    static struct world w;
    uint64_t seed = 31;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 60; round++) {
        struct liar liar = {0};
        uint8_t bytes[300];
        world_make(&w, 2);
        start(&w.all[1]);
        liar_meet(&liar, &w);
        for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)random_next(&seed);
        uint8_t blocks[4] = {(uint8_t)(round == 1 ? BLOCKS + 1 : round == 2 ? 0 : 5)};
        say(&liar, round == 0 ? 5 : 2, blocks, round == 3 ? 3 : 4);
        if (round >= 4) {
            size_t length = round == 4 ? 0 : round == 5 ? 3 : (size_t)(random_next(&seed) % sizeof bytes);
            if (round % 3 == 0) memset(bytes, 0, 4); /* an empty batch, then rows */
            if (round % 3 == 1 && length >= 8) memcpy(bytes + 4, "MLB1", 4);
            if (round % 3 == 1 && length >= 28) memset(bytes + 8, 0, 20), bytes[0] = 20, memset(bytes + 1, 0, 3);
            say(&liar, round % 10 == 9 ? 9 : 5, bytes, length);
        }
        finish(&w.all[1]);
        if (w.all[1].status == ST_OK || !w.all[1].err.message[0]) fail_msg("round %d: it followed", round);
        assert_int_equal(atomic_load(&w.all[1].launched), 0);
        node_link_destroy(liar.link);
        rendezvous_abandon(liar.rendezvous);
    }
}

/* An empty step is one; under another name it is none. */
static void test_device_nodes_follow_steps_alone(void **state)
{
    (void)state;
    static struct world w;
    static struct steps s;
    for (uint8_t kind = 5; kind < 7; kind++) {
        struct liar liar = {0};
        uint8_t bytes[100] = {0}, blocks[4] = {5};
        world_make(&w, 2);
        steps_make(&s);
        w.limit_ms = 60000;
        atomic_store(&w.all[0].launched, 1); /* as if its sums were there */
        start(&w.all[1]);
        liar_meet(&liar, &w);
        say(&liar, 2, blocks, 4);
        size_t length = batch_wire_bytes(s.batch);
        bytes[0] = (uint8_t)length;
        batch_wire_write(s.batch, bytes + 4);
        batch_rows_wire_write(s.batch, bytes + 4 + length);
        say(&liar, kind, bytes, 4 + length + batch_rows_wire_bytes(s.batch));
        for (int i = 0; i < 20000 && kind == 5 && atomic_load(&w.all[1].collected) == 0; i++) usleep(1000);
        if (kind == 5) rendezvous_close(liar.rendezvous);
        expect(&w.all[1], kind == 5 ? ST_OK : ST_DEVICE, kind == 5 ? "" : "a step that is none");
        assert_int_equal(atomic_load(&w.all[1].collected), kind == 5);
        node_link_destroy(liar.link);
        if (kind != 5) rendezvous_abandon(liar.rendezvous);
        steps_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_nodes_give_every_process_the_same_batches),
        cmocka_unit_test(test_device_nodes_notice_a_loss),
        cmocka_unit_test(test_device_nodes_notice_a_loss_while_idle),
        cmocka_unit_test(test_device_nodes_start_together_or_not_at_all),
        cmocka_unit_test(test_device_nodes_follow_no_nonsense),
        cmocka_unit_test(test_device_nodes_follow_steps_alone),
    };
    if (getenv("MILLRACE_TEST_FILTER")) cmocka_set_test_filter(getenv("MILLRACE_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
