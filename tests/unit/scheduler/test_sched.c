/* The scheduler by hand: small scenes whose plans, events and counts can be worked out on paper, and the growth law by
 * counting touched records. What random loads can show is left to tests/sim. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/model/vocab.h"
#include "scheduler/power_port.h"
#include "scheduler/sched_internal.h"

#include <math.h>

enum { VOCAB = 32, END = 31, SPECIAL = 30, THINK = 29, THINK_END = 28, CONTEXT = 4096, SCRIPT = 64 };

struct scene {
    struct sched_config config;
    struct sched_text texts[VOCAB];
    struct sched *sched;
    struct batch_result *result;
    const struct batch *batch; /* the last plan */
    const struct batch *open[SCHED_STEPS_MAX];
    uint64_t now_ns;
    uint32_t script[SCRIPT], script_at; /* ids that rows get, in turn; the last one repeats */
    uint32_t script_count;
    struct event last[8]; /* by kind */
    uint32_t counts[8];
};

struct one {
    struct request request;
    struct choice choices[4];
    uint32_t tokens[4][CONTEXT];
    uint32_t prompt[CONTEXT];
    struct token_logprobs scores[CONTEXT];
};

static const uint32_t end_ids[] = {END};

/* Id i is the letter 'a' + i; the last four are special. */
static struct scene *scene_make(void)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz01<>[]";
    struct scene *s = mem_alloc(1, sizeof *s);
    for (uint32_t i = 0; i < VOCAB; i++)
        s->texts[i] = (struct sched_text){.bytes = &letters[i], .length = 1, .special = i >= THINK_END};
    s->config = (struct sched_config){.context_max = CONTEXT,
                                      .running_max = 8,
                                      .step_tokens_max = 64,
                                      .rows_max = 16,
                                      .kv_blocks = 512,
                                      .queue_requests_max = 16,
                                      .queue_tokens_max = 10000,
                                      .tenants_max = 4,
                                      .tenant_share_percent = 50,
                                      .prefix_cache = true,
                                      .think_start_id = THINK,
                                      .think_end_id = THINK_END,
                                      .texts = s->texts,
                                      .texts_count = VOCAB,
                                      .end_ids = end_ids,
                                      .end_ids_count = 1};
    s->now_ns = 1000;
    return s;
}

static void scene_start(struct scene *s)
{
    struct error err = {{0}};
    if (sched_create(&s->config, &s->sched, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(batch_result_create(s->config.rows_max, &s->result), ST_OK);
}

static void scene_end(struct scene *s)
{
    batch_result_destroy(s->result);
    sched_destroy(s->sched);
    mem_free(s);
}

static void events(struct scene *s)
{
    uint32_t count;
    const struct event *e = sched_events(s->sched, &count);
    for (uint32_t i = 0; i < count; i++) {
        s->last[e[i].kind] = e[i];
        s->counts[e[i].kind]++;
    }
    sched_events_taken(s->sched);
}

/* The oldest open step. */
static void commit(struct scene *s)
{
    const struct batch *batch = s->open[0];
    for (uint32_t r = 0; r < batch->rows_count; r++) {
        const struct batch_row *row = &batch->rows[r];
        uint32_t id = row->target;
        if (!row->score_only) {
            id = s->script_count ? s->script[s->script_at] : 0;
            if (s->script_at + 1 < s->script_count) s->script_at++;
        }
        s->result->rows[r] = (struct row_result){.id = id, .rank = 1, .logprob = -1, .top_count = 1, .top_ids = {id}};
    }
    s->now_ns += 1000;
    sched_commit(s->sched, s->result, s->now_ns);
    s->open[0] = s->open[1];
    events(s);
}

static const struct batch *plan(struct scene *s)
{
    uint32_t open = sched_steps_open(s->sched);
    s->batch = s->open[open] = sched_plan(s->sched, s->now_ns);
    events(s);
    return s->batch;
}

static void run(struct scene *s)
{
    for (uint32_t i = 0; i < 10000 && sched_has_work(s->sched); i++)
        if (plan(s)->tokens_count) commit(s);
    assert_false(sched_has_work(s->sched));
}

static void one_make(struct one *o, uint64_t id, uint32_t prompt_count, uint32_t max_tokens, uint32_t choices)
{
    memset(o, 0, sizeof *o);
    for (uint32_t i = 0; i < prompt_count; i++) o->prompt[i] = (uint32_t)(id * 5 + i * i) % 26;
    for (uint32_t c = 0; c < choices; c++) {
        memcpy(o->tokens[c], o->prompt, prompt_count * sizeof *o->prompt);
        o->choices[c] = (struct choice){.tokens = o->tokens[c], .seed = c};
    }
    o->request = (struct request){.id = id,
                                  .service_class = CLASS_DEFAULT,
                                  .prompt = o->prompt,
                                  .prompt_count = prompt_count,
                                  .choices = o->choices,
                                  .choices_count = choices,
                                  .params = {.logprobs = -1},
                                  .max_tokens = max_tokens};
}

/* Two requests of one choice, submitted; mem_free. */
static struct one *submit_two(struct scene *s, uint32_t prompt_count, uint32_t max_tokens, bool ignore_eos)
{
    struct one *o = mem_alloc(2, sizeof *o);
    for (uint32_t i = 0; i < 2; i++) {
        one_make(&o[i], i + 1, prompt_count, max_tokens, 1);
        o[i].request.ignore_eos = ignore_eos;
        assert_int_equal(sched_submit(s->sched, &o[i].request, 1), ST_OK);
    }
    return o;
}

static void script(struct scene *s, uint32_t count, const uint32_t *ids)
{
    memcpy(s->script, ids, count * sizeof *ids);
    s->script_count = count;
    s->script_at = 0;
}

/* ---- refusals ---- */

static void test_sched_refusals(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    s->config.kv_blocks = 4; /* 64 positions */
    s->config.queue_requests_max = 4;
    scene_start(s);
    struct one *o = mem_alloc(8, sizeof *o);
    one_make(&o[0], 1, 40, 26, 1); /* 65 positions need KV */
    assert_int_equal(sched_submit(s->sched, &o[0].request, 1), ST_INVAL);
    one_make(&o[0], 1, 40, 25, 1); /* 64: the last id needs none */
    o[0].prompt[3] = VOCAB;
    assert_int_equal(sched_submit(s->sched, &o[0].request, 1), ST_INVAL);
    o[0].prompt[3] = 1;
    o[0].request.deadline_ns = 1;
    assert_int_equal(sched_submit(s->sched, &o[0].request, 1), ST_TIMEOUT);
    o[0].request.deadline_ns = 0;
    assert_int_equal(sched_submit(s->sched, &o[0].request, 1), ST_OK);
    assert_int_equal(sched_submit(s->sched, &o[0].request, 1), ST_INVAL); /* the id is in use */
    for (uint32_t i = 1; i < 8; i++) one_make(&o[i], i + 1, 4, 4, 1);
    assert_int_equal(sched_submit(s->sched, &o[1].request, 1), ST_OK); /* nobody else waits: over its half is fine */
    assert_int_equal(sched_submit(s->sched, &o[2].request, 1), ST_OK);
    o[3].request.tenant = 1;
    assert_int_equal(sched_submit(s->sched, &o[3].request, 1), ST_OK);
    o[4].request.tenant = 2;
    assert_int_equal(sched_submit(s->sched, &o[4].request, 1), ST_LIMIT);
    events(s);
    assert_int_equal(s->counts[REQUEST_REFUSED], 5);
    sched_end_all(s->sched, CAUSE_PLATFORM_CANCEL, ST_CANCELED, 2);
    events(s);
    assert_int_equal(sched_submit(s->sched, &o[1].request, 1), ST_OK);
    assert_int_equal(sched_submit(s->sched, &o[2].request, 1), ST_OK);
    assert_int_equal(sched_submit(s->sched, &o[3].request, 1), ST_OK);
    assert_int_equal(sched_submit(s->sched, &o[5].request, 1), ST_QUOTA); /* half of four, while another waits */
    scene_end(s);
    mem_free(o);
}

/* ---- given answers ---- */

static void test_sched_given(void **state)
{
    (void)state;
    static const uint32_t ids[] = {4, 5, END};
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(2, sizeof *o);
    one_make(&o[0], 1, 40, 4, 1);
    one_make(&o[1], 2, 40, 8, 1);
    struct given_answer given = {.ids = ids,
                                 .count = 3,
                                 .in_hit = 16,
                                 .text_bytes = 2,
                                 .finish = FINISH_STOP,
                                 .stop_id = END,
                                 .stop_string = STOP_STRING_NONE};
    assert_int_equal(sched_submit(s->sched, &o[1].request, 1), ST_OK); /* another, beside it */
    o[0].request.given = &given;
    assert_int_equal(sched_submit(s->sched, &o[0].request, 7), ST_OK);
    uint32_t count;
    const struct event *e = sched_events(s->sched, &count);
    assert_int_equal(count, 3); /* at once, in the order of one that runs */
    assert_true(e[0].kind == REQUEST_SCHEDULED && e[1].kind == CHOICE_TOKENS && e[2].kind == REQUEST_DONE);
    assert_true(e[1].output_count == 3 && e[1].text_bytes == 2 && e[1].finish == FINISH_STOP && e[2].status == ST_OK);
    sched_events_taken(s->sched);
    const struct usage *usage = &o[0].request.usage;
    assert_true(usage->in_total == 40 && usage->in_hit == 16 && usage->out == 3 && usage->cause == CAUSE_STOP);
    assert_memory_equal(o[0].tokens[0] + 40, ids, sizeof ids);
    assert_int_equal(o[0].choices[0].stop_id, END);
    assert_false(sched_cancel(s->sched, 1, CAUSE_PLATFORM_CANCEL)); /* it has ended */
    assert_int_equal(plan(s)->tokens_count, 40);                    /* of the other alone */
    commit(s);
    run(s);
    assert_int_equal(s->counts[REQUEST_DONE], 1);
    /* What cannot be an answer to it is refused, and copied nowhere. */
    const struct given_answer right = given;
    for (int i = 0; i < 9; i++) {
        uint32_t bad[] = {4, VOCAB, 5};
        one_make(&o[0], 3, 40, 3, 1);
        given = right;
        o[0].request.given = &given;
        if (i == 0) given.count = 0;
        if (i == 1) o[0].request.max_tokens = 2;
        if (i == 2) given.in_hit = 40;
        if (i == 3) given.reasoning_count = 4;
        if (i == 4) given.trimmed_count = 4;
        if (i == 5) given.ids = bad;
        if (i == 6) given.finish = FINISH_ERROR;
        if (i == 7) o[0].request.choices_count = 2;
        if (i == 8) o[0].choices[0].logprobs = o[0].scores;
        assert_int_equal(sched_submit(s->sched, &o[0].request, 1), ST_INVAL);
        events(s);
        assert_int_equal(s->counts[REQUEST_REFUSED], i + 1);
        assert_int_equal(o[0].tokens[0][40], 0);
    }
    scene_end(s);
    mem_free(o);
}

/* ---- chunks ---- */

static void test_sched_chunks(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(3, sizeof *o);
    one_make(&o[0], 1, 100, 4, 1);
    assert_int_equal(sched_submit(s->sched, &o[0].request, 1), ST_OK);
    assert_int_equal(plan(s)->tokens_count, 64); /* alone: the whole budget */
    commit(s);
    one_make(&o[1], 2, 300, 4, 1);
    one_make(&o[2], 3, 300, 4, 1);
    for (uint32_t i = 1; i < 3; i++) assert_int_equal(sched_submit(s->sched, &o[i].request, 1), ST_OK);
    const struct batch *b = plan(s); /* 36 left, not long: all of it; 28 for the next, in whole blocks */
    assert_int_equal(b->tokens_count, 36 + 16);
    assert_int_equal(b->seqs_count, 2);
    assert_int_equal(b->q_start[1], 36);
    assert_int_equal(b->rows_count, 1);
    commit(s);
    b = plan(s); /* 63 beside the first one's row; the long ones take half of it each, 16, and then what is left */
    assert_int_equal(b->q_start[1], 1);
    assert_int_equal(b->seqs_count, 3);
    assert_int_equal(b->q_start[2], 1 + 32);
    assert_int_equal(b->q_start[3], 1 + 32 + 16);
    assert_int_equal(b->rows_count, 1);
    assert_int_equal(b->kv_len[0], 101);
    for (uint32_t i = 1; i < b->seqs_count; i++) assert_int_equal(b->kv_len[i] % KV_BLOCK_TOKENS, 0);
    commit(s);
    run(s);
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(o[i].request.usage.out, 4);
    scene_end(s);
    mem_free(o);
}

/* A gap target that decode alone passes still leaves 16 tokens a step to prefill. */
static void test_sched_gap_target(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    s->config.itl_target_ns = 1000;
    s->config.weights_bytes = 1000000000;
    scene_start(s);
    struct one *o = mem_alloc(2, sizeof *o);
    one_make(&o[0], 1, 10, 100, 1);
    assert_int_equal(sched_submit(s->sched, &o[0].request, 1), ST_OK);
    assert_int_equal(plan(s)->tokens_count, 10);
    commit(s);
    one_make(&o[1], 2, 200, 4, 1);
    assert_int_equal(sched_submit(s->sched, &o[1].request, 1), ST_OK);
    assert_int_equal(plan(s)->tokens_count, 1 + 16);
    commit(s);
    run(s);
    scene_end(s);
    mem_free(o);
}

/* A short prompt that comes later gets half of each step, however many long ones were there before. */
static void test_sched_long_prompts_leave_room(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(4, sizeof *o);
    for (uint32_t i = 0; i < 4; i++) one_make(&o[i], i + 1, i < 3 ? 480 : 48, 1, 1);
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(sched_submit(s->sched, &o[i].request, 1), ST_OK);
    const struct batch *b = plan(s);
    assert_int_equal(b->tokens_count, 64); /* nothing is left unused */
    assert_int_equal(b->seqs_count, 2);
    commit(s);
    assert_int_equal(sched_submit(s->sched, &o[3].request, 1), ST_OK);
    uint32_t first_share = 0;
    for (uint32_t steps = 0; !o[3].request.usage.out; steps++) {
        assert_true(steps < 2);
        b = plan(s);
        assert_int_equal(b->tokens_count, 64);
        first_share += b->q_start[1];
        commit(s);
    }
    assert_true(first_share >= 2 * 32); /* and the oldest got its half */
    run(s);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(o[i].request.usage.out, 1);
    scene_end(s);
    mem_free(o);
}

/* With a gap target a chunk shrinks as the positions before it grow: the step takes as long. */
static void test_sched_chunks_shrink_with_position(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    s->config.itl_target_ns = 1000000;
    s->config.weights_bytes = 4000000; /* 31,250 ns a token at first: 31 fit beside base_ns */
    scene_start(s);
    s->sched->cost.ns_per_pair = 31250.0 / 128; /* at 128 a token is twice as dear */
    struct one *o = mem_alloc(1, sizeof *o);
    one_make(o, 1, 490, 1, 1);
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    uint32_t computed = 0;
    while (computed < 490) {
        const struct batch *b = plan(s);
        uint32_t tokens = b->tokens_count;
        assert_true(tokens >= 10);
        double cost = tokens * (1 + (computed + tokens / 2) / 128.0);
        if (tokens > KV_BLOCK_TOKENS)
            assert_true(cost <= 31 + 8 * (1 + (computed + 16) / 128.0)); /* to the nearest border */
        if (computed == 0) assert_int_equal(tokens, 32);
        if (computed > 256) assert_true(tokens <= 16);
        computed += tokens;
        commit(s);
    }
    run(s);
    assert_int_equal(o->request.usage.out, 1);
    scene_end(s);
    mem_free(o);
}

/* ---- choices ---- */

static void choices_share(bool cache)
{
    struct scene *s = scene_make();
    s->config.prefix_cache = cache;
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    one_make(o, 1, 40, 5, 3);
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    assert_int_equal(plan(s)->seqs_count, 1); /* the leader alone */
    assert_int_equal(s->batch->tokens_count, 40);
    commit(s);
    const struct batch *b = plan(s); /* its row, and two tails of 8 */
    assert_int_equal(b->seqs_count, 3);
    assert_int_equal(b->tokens_count, 1 + 8 + 8);
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(b->block_table[i][0], b->block_table[0][0]);
        assert_int_equal(b->block_table[i][1], b->block_table[0][1]);
        assert_int_not_equal(b->block_table[i][2], b->block_table[0][2]);
    }
    commit(s);
    run(s);
    assert_int_equal(o->request.usage.in_total, 40);
    assert_int_equal(o->request.usage.in_hit, 0);
    assert_int_equal(o->request.usage.out, 15);
    assert_int_equal(o->request.usage.choices, 3);
    assert_int_equal(o->request.usage.recomputed, 0);
    assert_int_equal(o->request.usage.cause, CAUSE_LENGTH);
    assert_int_equal(s->counts[REQUEST_DONE], 1);
    struct sched_stats stats;
    sched_stats_read(s->sched, &stats);
    assert_int_equal(stats.kv_blocks_used, 0);
    assert_int_equal(stats.kv_blocks_cached > 0, cache); /* nothing of it outlives the request without the cache */
    one_make(o, 2, 40, 1, 1);
    for (uint32_t i = 0; i < 40; i++) o->tokens[0][i] = o->prompt[i] = (5 + i * i) % 26; /* the first prompt again */
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    run(s);
    assert_int_equal(o->request.usage.in_hit, cache ? 32 : 0);
    scene_end(s);
    mem_free(o);
}

static void test_sched_choices_share(void **state)
{
    (void)state;
    choices_share(true);
    choices_share(false);
}

/* ---- ends ---- */

static void test_sched_min_tokens_bans(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    one_make(o, 1, 4, 10, 1);
    const uint32_t stop_ids[] = {7};
    o->request.stop_ids = stop_ids;
    o->request.stop_ids_count = 1;
    o->request.min_tokens = 2;
    script(s, 3, (const uint32_t[]){1, 2, 7});
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    for (uint32_t i = 0; i < 3; i++) {
        const struct batch_row *row = &plan(s)->rows[0];
        assert_int_equal(row->banned_count, i < 2 ? 2 : 0);
        if (i < 2) {
            assert_int_equal(row->banned[0], END);
            assert_int_equal(row->banned[1], 7);
        }
        assert_int_equal(row->position, 4 + i);
        assert_int_equal(row->seen_count, 4 + i);
        commit(s);
    }
    assert_int_equal(o->choices[0].finish, FINISH_STOP);
    assert_int_equal(o->choices[0].stop_id, 7);
    assert_int_equal(o->choices[0].output_count, 3);
    assert_int_equal(o->choices[0].text_bytes, 2); /* the terminal id gives no text */
    assert_int_equal(o->request.usage.cause, CAUSE_STOP);
    scene_end(s);
    mem_free(o);
}

static void test_sched_stop_string(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    const struct stop_string stops[] = {{.bytes = "cde", .length = 3}};
    for (uint32_t include = 0; include < 2; include++) {
        one_make(o, 1 + include, 4, 10, 1);
        o->request.stops = stops;
        o->request.stops_count = 1;
        o->request.include_stop = include;
        script(s, 6, (const uint32_t[]){0, SPECIAL, 2, 3, SPECIAL, 4}); /* a <special> c d <special> e */
        assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
        static const uint32_t shown[] = {1, 1, 1, 1, 1};
        for (uint32_t i = 0; i < 5; i++) {
            plan(s);
            commit(s);
            assert_int_equal(s->last[CHOICE_TOKENS].text_bytes, shown[i]); /* c and d are held back */
        }
        plan(s);
        commit(s);
        assert_int_equal(s->last[CHOICE_TOKENS].finish, FINISH_STOP);
        assert_int_equal(o->choices[0].stop_string, 0);
        assert_int_equal(o->choices[0].text_bytes, include ? 4 : 1);
        assert_int_equal(o->request.usage.out, 6);
        assert_int_equal(o->request.usage.out_trimmed, include ? 0 : 3);
    }
    scene_end(s);
    mem_free(o);
}

/* Text that was held back is given when the choice ends by length. */
static void test_sched_held_text_is_released(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    const struct stop_string stops[] = {{.bytes = "cde", .length = 3}};
    one_make(o, 1, 4, 3, 1);
    o->request.stops = stops;
    o->request.stops_count = 1;
    o->request.keep_special = true;
    script(s, 3, (const uint32_t[]){SPECIAL, 2, 3});
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    run(s);
    assert_int_equal(o->choices[0].finish, FINISH_LENGTH);
    assert_int_equal(o->choices[0].text_bytes, 3); /* with the special token, which is kept */
    scene_end(s);
    mem_free(o);
}

/* R21: at its limit a choice pauses and keeps its place; raised, it goes on; ended there, all it has may be shown. */
static void test_sched_output_limit(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    static const struct stop_string stops[] = {{"bcd", 3}};
    one_make(o, 7, 20, 10, 1);
    o->request.out_limit = 3;
    o->request.stops = stops;
    o->request.stops_count = 1;
    script(s, 5, (const uint32_t[]){0, 0, 0, 1, 2}); /* a a a b c: "bc" may become the stop string */
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    for (int i = 0; i < 3; i++) {
        assert_true(plan(s)->tokens_count > 0);
        commit(s);
    }
    assert_int_equal(o->choices[0].output_count, 3);
    for (int i = 0; i < 3; i++) assert_int_equal(plan(s)->tokens_count, 0);
    assert_true(sched_has_work(s->sched));
    assert_true(sched_raise(s->sched, 7, 5));
    assert_true(sched_raise(s->sched, 7, 4)); /* never lower */
    assert_false(sched_raise(s->sched, 8, 9));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(plan(s)->tokens_count, 1);
        commit(s);
    }
    assert_int_equal(plan(s)->tokens_count, 0);
    assert_int_equal(o->choices[0].text_bytes, 3);
    assert_int_equal(s->counts[REQUEST_DONE], 0);
    assert_true(sched_cancel(s->sched, 7, CAUSE_QUOTA_END));
    (void)plan(s);
    assert_int_equal(s->counts[REQUEST_DONE], 1);
    assert_int_equal(s->last[REQUEST_DONE].status, ST_OK);
    assert_int_equal(o->request.usage.cause, CAUSE_QUOTA_END);
    assert_int_equal(o->request.usage.out, 5);
    assert_false(o->request.usage.mismatch);
    assert_int_equal(o->choices[0].finish, FINISH_QUOTA);
    assert_int_equal(o->choices[0].text_bytes, 5);
    scene_end(s);
    mem_free(o);
}

static void test_sched_reasoning(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    one_make(o, 1, 4, 6, 1);
    o->tokens[0][3] = o->prompt[3] = THINK; /* it starts inside */
    script(s, 6, (const uint32_t[]){1, THINK_END, 2, THINK, 3, END});
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    run(s);
    assert_int_equal(o->request.usage.out, 6);
    assert_int_equal(o->request.usage.out_reasoning, 5); /* all but the 2 outside */
    scene_end(s);
    mem_free(o);
}

static void test_sched_deadlines(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    s->config.running_max = 1;
    s->config.rows_max = 1;
    scene_start(s);
    struct one *o = mem_alloc(2, sizeof *o);
    for (uint32_t i = 0; i < 2; i++) {
        one_make(&o[i], i + 1, 4, 100, 1);
        o[i].request.deadline_ns = 50000 + i;
        assert_int_equal(sched_submit(s->sched, &o[i].request, 1), ST_OK);
    }
    plan(s);
    commit(s);
    s->now_ns = 50000;
    assert_int_equal(plan(s)->seqs_count, 1); /* the first is late, the second takes its place */
    assert_int_equal(s->last[REQUEST_DONE].status, ST_TIMEOUT);
    assert_int_equal(o[0].choices[0].finish, FINISH_ERROR);
    assert_int_equal(o[0].request.usage.cause, CAUSE_PLATFORM_CANCEL);
    assert_int_equal(o[0].request.usage.out, 1);
    sched_end_all(s->sched, CAUSE_PLATFORM_CANCEL, ST_CANCELED, s->now_ns);
    scene_end(s);
    mem_free(o);
}

/* ---- scoring ---- */

static void test_sched_score_prompt(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    s->config.running_max = 4;
    s->config.rows_max = 7; /* fewer than a chunk has positions */
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    for (uint32_t max_tokens = 0; max_tokens < 3; max_tokens++) {
        one_make(o, 1, 50, max_tokens, 2);
        o->request.score_prompt = true;
        o->request.prompt_logprobs = o->scores;
        o->request.params.logprobs = 1;
        assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
        run(s);
        assert_int_equal(o->request.usage.in_hit, 0); /* the cache is not read */
        assert_int_equal(o->request.usage.out, 2 * max_tokens);
        assert_int_equal(o->choices[1].finish, FINISH_LENGTH);
        assert_int_equal(s->last[REQUEST_DONE].status, ST_OK);
        for (uint32_t p = 1; p < 50; p++) assert_int_equal(o->scores[p].top_ids[0], o->prompt[p]);
        assert_int_equal(o->scores[0].rank, 0);
    }
    scene_end(s);
    mem_free(o);
}

/* ---- counting ---- */

static void test_sched_mismatch_takes_the_lowest(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    one_make(o, 1, 4, 5, 1);
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    for (uint32_t i = 0; i < 3; i++) {
        plan(s);
        commit(s);
    }
    s->sched->jobs[s->sched->seqs[s->sched->hot[0].slot].job].out = 1; /* one of three counts goes wrong */
    run(s);
    assert_true(o->request.usage.mismatch);
    assert_int_equal(o->request.usage.out, 3); /* 1 + 2, the others say 5 */
    scene_end(s);
    mem_free(o);
}

/* ---- a watt budget (R25, R26) ---- */

/* A row of class default, one of flex and a prompt: the row is always in, the prompt gets a block at least, and flex
 * waits until there is room or its class limit has passed. */
static void test_sched_room(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    s->config.class_limit_ns[CLASS_FLEX] = 1000000;
    scene_start(s);
    struct one *o = mem_alloc(3, sizeof *o);
    for (uint32_t i = 0; i < 3; i++) one_make(&o[i], i + 1, i < 2 ? 10 : 200, 50, 1);
    o[1].request.service_class = CLASS_FLEX;
    for (uint32_t i = 0; i < 2; i++) assert_int_equal(sched_submit(s->sched, &o[i].request, 1), ST_OK);
    plan(s);
    commit(s);
    assert_int_equal(plan(s)->rows_count, 2); /* no limit */
    commit(s);
    struct sched_power power = {.room_j = 2.5, .model.joules = {0, 0.1, 0, 1, 0}};
    sched_set_power(s->sched, &power);
    assert_int_equal(plan(s)->rows_count, 2); /* both fit */
    commit(s);
    assert_int_equal(sched_submit(s->sched, &o[2].request, 1), ST_OK);
    assert_int_equal(plan(s)->tokens_count, 2 + 16); /* 0.5 J left; a block is the least */
    commit(s);
    const struct batch *b = plan(s);
    assert_int_equal(b->seqs_count, 2); /* the prompt runs: flex waits */
    assert_int_equal(b->tokens_count, 1 + 16);
    commit(s);
    struct energy_work work;
    power.room_j = 5.9;
    sched_set_power(s->sched, &power);
    assert_int_equal(plan(s)->tokens_count, 1 + 48); /* 4.9 J, to the nearest border */
    assert_true(sched_plan_joules(s->sched, &work) > 5.7 && work.prefill_tokens == 48 && work.decode_rows == 1);
    commit(s);
    power.range_w = 1e-3; /* what the device can draw bounds what a model says */
    sched_set_power(s->sched, &power);
    plan(s);
    assert_true(sched_plan_joules(s->sched, &work) < 0.001);
    commit(s);
    power.range_w = 0;
    power.room_j = 0;
    sched_set_power(s->sched, &power);
    assert_int_equal(plan(s)->tokens_count, 0);
    power.room_j = 1;
    sched_set_power(s->sched, &power);
    s->now_ns += 2000000; /* flex has had nothing for longer than its limit */
    assert_int_equal(plan(s)->tokens_count, 2 + 16);
    commit(s);
    power = (struct sched_power){.room_j = INFINITY, .holds_deferrable = true};
    sched_set_power(s->sched, &power);
    b = plan(s);
    assert_int_equal(b->seqs_count, 2);
    commit(s);
    power.holds_deferrable = false;
    sched_set_power(s->sched, &power);
    run(s);
    scene_end(s);
    mem_free(o);
}

/* A bucket in debt: interactive work goes on within the overdraft, flex waits; beyond it nothing is planned (W4). */
static void test_sched_overdraft(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    static struct power_port port;
    scene_start(s);
    struct one *o = mem_alloc(2, sizeof *o);
    for (uint32_t i = 0; i < 2; i++) one_make(&o[i], i + 1, 10, 50, 1);
    o[1].request.service_class = CLASS_FLEX;
    for (uint32_t i = 0; i < 2; i++) assert_int_equal(sched_submit(s->sched, &o[i].request, 1), ST_OK);
    plan(s);
    commit(s);
    assert_int_equal(power_port_init(&port), ST_OK);
    struct power_order order = {.allowance_w = 100, .overdraft_j = 2, .model.joules = {0, 0.1, 0, 0.1, 0}};
    power_port_order(&port, &order);
    assert_int_equal(power_port_begin(&port, s->sched, NS_PER_S), 0);
    assert_int_equal(plan(s)->rows_count, 2);
    commit(s);
    joule_bucket_pay(&port.bucket, 3); /* of which 2 J were credit */
    assert_true(power_port_begin(&port, s->sched, NS_PER_S) > 0);
    const struct batch *b = plan(s);
    assert_int_equal(b->rows_count, 1);
    assert_ptr_equal(b->rows[0].seen, o[0].request.choices[0].tokens);
    commit(s);
    joule_bucket_pay(&port.bucket, 1);
    assert_true(power_port_begin(&port, s->sched, NS_PER_S) > 0);
    assert_int_equal(plan(s)->tokens_count, 0); /* 2 J ahead */
    order.overdraft_j = 0;
    power_port_order(&port, &order);
    port.bucket.credit_j = -0.1;
    assert_true(power_port_begin(&port, s->sched, NS_PER_S) > 0);
    assert_int_equal(plan(s)->tokens_count, 0); /* no overdraft: nobody goes on */
    order.overdraft_j = 2;
    power_port_order(&port, &order);
    assert_true(sched_cancel(s->sched, 2, CAUSE_CLIENT_GONE));
    assert_int_equal(plan(s)->tokens_count, 0); /* it is ended */
    assert_false(sched_runs_deferrable(s->sched));
    port.bucket.credit_j = -0.1;
    assert_true(power_port_begin(&port, s->sched, NS_PER_S) > 0);
    assert_int_equal(plan(s)->tokens_count, 0); /* nobody is there to pay it back */
    power_port_free(&port);
    scene_end(s);
    mem_free(o);
}

/* Without credit a prompt of priority is planned up to its own bound, and nothing else; it is booked apart, flex waits
 * until that is paid, default does not (W5, R28). */
static void test_sched_ahead(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    static struct power_port port;
    struct power_step step = {.start_ns = 0};
    uint32_t count;
    s->config.tells_shares = true;
    scene_start(s);
    struct one *o = mem_alloc(4, sizeof *o);
    for (uint32_t i = 0; i < 4; i++) one_make(&o[i], i + 1, i < 2 ? 10 : 48, 50, 1);
    o[0].request.service_class = CLASS_FLEX;
    o[2].request.service_class = CLASS_PRIORITY;
    o[1].request.books_as = CLASS_BATCH;
    for (uint32_t i = 0; i < 2; i++) assert_int_equal(sched_submit(s->sched, &o[i].request, 1), ST_OK);
    plan(s);
    commit(s);
    assert_int_equal(power_port_init(&port), ST_OK);
    struct power_order order = {.allowance_w = 10, .ahead_j = 20, .model.joules = {0, 0.1, 0, 0.1, 0}};
    power_port_order(&port, &order);
    assert_int_equal(power_port_begin(&port, s->sched, NS_PER_S), 0);
    joule_bucket_pay(&port.bucket, 0.3); /* 0.2 were there */
    assert_true(power_port_begin(&port, s->sched, NS_PER_S) > 0);
    assert_int_equal(plan(s)->tokens_count, 0); /* nobody of priority */
    assert_int_equal(sched_submit(s->sched, &o[3].request, 1), ST_OK);
    assert_int_equal(sched_submit(s->sched, &o[2].request, 1), ST_OK);
    assert_true(power_port_begin(&port, s->sched, NS_PER_S) > 0);
    const struct batch *b = plan(s);
    assert_int_equal(b->tokens_count, 1 + 48); /* the row of default cannot wait; no prompt of default, no flex */
    assert_int_equal(b->seqs_count, 2);
    step.joules = sched_plan_joules(s->sched, &step.work);
    const struct energy_share *shares = sched_plan_shares(s->sched, &count);
    assert_true(shares[0].group == CLASS_BATCH && shares[1].group == CLASS_PRIORITY);
    power_port_launched(&port, NS_PER_S, &step, shares, count);
    assert_true(fabs(step.urgent - 48.0 / 49) < 1e-9 && fabs(step.joules - 4.9) < 1e-9);
    assert_true(fabs(port.bucket.ahead_j - 4.8) < 1e-9 && fabs(port.bucket.credit_j + 0.2) < 1e-9);
    commit(s);
    assert_int_equal(power_port_begin(&port, s->sched, NS_PER_S + 40 * NS_PER_MS),
                     0); /* 0.4 J, of them 0.1 for the debt */
    b = plan(s);
    for (uint32_t i = 0; i < b->rows_count; i++)
        assert_ptr_not_equal(b->rows[i].seen, o[0].request.choices[0].tokens); /* held until it is paid */
    assert_true(b->tokens_count >= 2 + 16);                                    /* default's prompt gets on */
    commit(s);
    assert_int_equal(power_port_begin(&port, s->sched, 2 * NS_PER_S), 0);
    assert_true(port.bucket.ahead_j == 0);
    for (uint64_t id = 3; id <= 4; id++) assert_true(sched_cancel(s->sched, id, CAUSE_CLIENT_GONE));
    b = plan(s);
    bool flex = false;
    for (uint32_t i = 0; i < b->rows_count; i++) flex = flex || b->rows[i].seen == o[0].request.choices[0].tokens;
    assert_true(flex);
    commit(s);
    order.ahead_j = 0;
    power_port_order(&port, &order);
    joule_bucket_pay(&port.bucket, 1);
    assert_true(power_port_begin(&port, s->sched, 2 * NS_PER_S) > 0);
    assert_int_equal(plan(s)->tokens_count, 0); /* not under a cap */
    power_port_free(&port);
    scene_end(s);
    mem_free(o);
}

/* ---- the growth law (R15) ---- */

/* Records touched a step with `running` sequences of prompt_count ids. */
static double touched(uint32_t running, uint32_t waiting, uint32_t blocks, uint32_t prompt_count)
{
    struct scene *s = scene_make();
    s->config.running_max = running;
    s->config.rows_max = running;
    s->config.step_tokens_max = 4096;
    s->config.kv_blocks = blocks;
    s->config.queue_requests_max = running + waiting;
    s->config.queue_tokens_max = 100000000;
    s->config.tenant_share_percent = 100;
    scene_start(s);
    uint32_t total = running + waiting;
    struct one *o = mem_alloc(total, sizeof *o);
    for (uint32_t i = 0; i < total; i++) {
        one_make(&o[i], i + 1, prompt_count, 200, 1);
        o[i].request.tenant = i % 4;
        o[i].request.ignore_eos = true;
        assert_int_equal(sched_submit(s->sched, &o[i].request, 1), ST_OK);
        events(s);
    }
    struct sched_stats stats = {0};
    for (uint32_t i = 0; i < 100 && stats.step_rows < running; i++) {
        plan(s);
        commit(s);
        sched_stats_read(s->sched, &stats);
    }
    assert_int_equal(stats.step_rows, running);
    uint64_t before = stats.touched;
    for (uint32_t i = 0; i < 32; i++) { /* two page crossings each */
        plan(s);
        commit(s);
    }
    sched_stats_read(s->sched, &stats);
    assert_int_equal(stats.running, running);
    assert_int_equal(stats.waiting, waiting);
    sched_end_all(s->sched, CAUSE_PLATFORM_CANCEL, ST_CANCELED, s->now_ns);
    scene_end(s);
    mem_free(o);
    return (double)(stats.touched - before) / 32;
}

static void test_sched_growth_law(void **state)
{
    (void)state;
    double base = touched(16, 0, 1024, 32);
    double few = touched(16, 8, 1024, 32), waiting = touched(16, 800, 1024, 32), blocks = touched(16, 0, 65536, 32),
           prompt = touched(16, 0, 4096, 1000);
    double twice = touched(32, 0, 2048, 32), four = touched(64, 0, 4096, 32);
    print_message("touched a step: %.1f; 8 and 800 waiting %.1f, %.1f; blocks %.1f; prompt %.1f; x2 %.1f; x4 %.1f\n",
                  base, few, waiting, blocks, prompt, twice, four);
    assert_true(base < 16 * 12);
    assert_true(few <= base + 4 * 4);   /* a second heap of at most four tenants to keep */
    assert_true(waiting <= few * 1.05); /* not O(waiting) */
    assert_true(blocks <= base * 1.05); /* not O(blocks) */
    assert_true(prompt <= base * 1.05); /* not O(prompt) */
    assert_true(twice <= base * 2.1 && four <= base * 4.2);
}

/* ---- one step ahead ---- */

static void test_sched_ahead_pending_ids(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    one_make(o, 1, 15, 4, 1);
    o->request.min_tokens = 2;
    script(s, 4, (const uint32_t[]){1, 2, 3, 4});
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    assert_int_equal(plan(s)->tokens_count, 15);
    for (uint32_t i = 1; i < 4; i++) { /* id i - 1 is pending */
        const struct batch *b = plan(s);
        assert_int_equal(sched_steps_open(s->sched), 2);
        assert_int_equal(b->tokens_count, 1);
        assert_int_equal(b->tokens[0], TOKEN_OF_ROW | 0);
        assert_int_equal(b->positions[0], 14 + i);
        assert_int_equal(b->kv_len[0], 15 + i);
        assert_int_equal(b->rows[0].position, 15 + i);
        assert_true(b->rows[0].pending);
        assert_int_equal(b->rows[0].seen_count, 14 + i);
        assert_int_equal(b->rows[0].banned_count, i < 2 ? 1 : 0); /* min_tokens counts the pending one */
        commit(s);
        assert_int_equal(o->choices[0].output_count, i);
        assert_int_equal(o->tokens[0][14 + i], i);
    }
    assert_int_equal(plan(s)->tokens_count, 0); /* the pending id is the last */
    commit(s);
    assert_int_equal(o->choices[0].finish, FINISH_LENGTH);
    assert_int_equal(o->request.usage.out, 4);
    assert_int_equal(s->sched->pool.used_count, 0);
    scene_end(s);
    mem_free(o);
}

static void test_sched_ahead_drops_what_ended(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = submit_two(s, 4, 10, false);
    plan(s);
    assert_int_equal(plan(s)->rows_count, 2);
    assert_int_equal(s->batch->tokens[1], TOKEN_OF_ROW | 1);
    script(s, 2, (const uint32_t[]){END, 5});
    commit(s); /* the first request has ended, its second id is under way */
    assert_int_equal(o[0].request.usage.out, 1);
    assert_int_equal(s->counts[REQUEST_DONE], 1);
    assert_int_equal(s->sched->pool.used_count, 2);
    const struct batch *b = plan(s);
    assert_int_equal(b->tokens_count, 1);
    assert_int_equal(b->tokens[0], TOKEN_OF_ROW | 1); /* where it was in the step before */
    memset(o[0].tokens, 0xff, sizeof o[0].tokens);    /* it is its owner's again */
    commit(s);
    assert_int_equal(s->sched->pool.used_count, 1);
    assert_int_equal(o[0].tokens[0][5], UINT32_MAX);
    assert_int_equal(s->sched->stats.generation_tokens, 3);
    assert_int_equal(o[1].choices[0].output_count, 2);
    plan(s);
    assert_int_equal(s->batch->tokens[0], TOKEN_OF_ROW | 0);
    assert_true(sched_cancel(s->sched, 2, CAUSE_CLIENT_GONE));
    commit(s); /* R14 */
    assert_int_equal(o[1].choices[0].output_count, 2);
    assert_int_equal(plan(s)->tokens_count, 0);
    assert_int_equal(s->counts[REQUEST_DONE], 2);
    assert_int_equal(o[1].request.usage.out, 2);
    assert_int_equal(s->sched->pool.used_count, 1);
    assert_false(sched_has_work(s->sched));
    commit(s);
    assert_int_equal(s->sched->pool.used_count, 0);
    assert_int_equal(s->sched->slots_free, s->sched->slots_max);
    scene_end(s);
    mem_free(o);
}

static void test_sched_ahead_waits_to_preempt(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    s->config.kv_blocks = 6;
    s->config.prefix_cache = false;
    scene_start(s);
    struct one *o = submit_two(s, 14, 60, true);
    bool waited = false;
    plan(s);
    for (uint32_t i = 0; !waited && i < 60; i++) {
        waited = plan(s)->tokens_count == 0;
        assert_int_equal(s->sched->stats.preemptions, 0);
        commit(s);
    }
    assert_true(waited); /* both have three blocks and want a fourth */
    assert_int_equal(o[0].choices[0].output_count, 48 - 14 + 1);
    assert_int_equal(sched_steps_open(s->sched), 0);
    assert_int_equal(plan(s)->tokens_count, 1);
    assert_int_equal(s->sched->stats.preemptions, 1);
    assert_int_equal(s->batch->tokens[0], 0); /* nothing is pending: the id itself */
    for (uint32_t i = 0; i < 1000 && s->counts[REQUEST_DONE] < 2; i++) {
        plan(s);
        commit(s);
    }
    for (uint32_t i = 0; i < 2; i++) assert_int_equal(o[i].request.usage.out, 60);
    scene_end(s);
    mem_free(o);
}

static void test_sched_ahead_output_limit(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = mem_alloc(1, sizeof *o);
    one_make(o, 1, 4, 10, 1);
    o->request.out_limit = 2;
    assert_int_equal(sched_submit(s->sched, &o->request, 1), ST_OK);
    plan(s);
    assert_int_equal(plan(s)->tokens_count, 1);
    commit(s);
    assert_int_equal(plan(s)->tokens_count, 0); /* the second id is pending */
    assert_true(sched_raise(s->sched, 1, 3));
    assert_int_equal(plan(s)->tokens_count, 1); /* the limit rose before it was reached */
    commit(s);
    commit(s);
    assert_int_equal(o->choices[0].output_count, 3);
    assert_int_equal(plan(s)->tokens_count, 0);
    assert_true(sched_raise(s->sched, 1, 4));
    assert_int_equal(plan(s)->tokens[0], 0); /* an id that is known by now */
    sched_end_all(s->sched, CAUSE_PLATFORM_ERROR, ST_DEVICE, s->now_ns);
    events(s);
    assert_int_equal(o->request.usage.out, 3);
    assert_int_equal(s->sched->pool.used_count, 0);
    scene_end(s);
    mem_free(o);
}

/* Two steps under way are discarded, with a sequence that has ended and one that goes on. */
static void test_sched_ahead_discards_both(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    scene_start(s);
    struct one *o = submit_two(s, 4, 10, false);
    plan(s);
    plan(s);
    script(s, 2, (const uint32_t[]){END, 5});
    commit(s);
    plan(s);
    assert_int_equal(sched_steps_open(s->sched), 2);
    sched_end_all(s->sched, CAUSE_PLATFORM_ERROR, ST_DEVICE, s->now_ns);
    events(s);
    assert_int_equal(sched_steps_open(s->sched), 0);
    assert_int_equal(o[1].request.usage.out, 1);
    assert_int_equal(o[1].request.usage.cause, CAUSE_PLATFORM_ERROR);
    assert_int_equal(s->sched->pool.used_count, 0);
    assert_int_equal(s->sched->slots_free, s->sched->slots_max);
    assert_int_equal(s->sched->leaving_count, 0);
    scene_end(s);
    mem_free(o);
}

/* ---- creation ---- */

struct fail_at {
    uint64_t left;
};

static bool fail_hook(void *state, size_t size_bytes)
{
    (void)size_bytes;
    struct fail_at *fail = state;
    return fail->left == 0 || --fail->left > 0;
}

static void test_sched_create_without_memory(void **state)
{
    (void)state;
    struct scene *s = scene_make();
    struct error err;
    uint64_t before = mem_allocations();
    assert_int_equal(sched_create(&s->config, &s->sched, &err), ST_OK);
    uint64_t allocations = mem_allocations() - before;
    sched_destroy(s->sched);
    for (uint64_t k = 1; k <= allocations; k++) {
        struct fail_at fail = {.left = k};
        struct sched *sched = NULL;
        mem_hook_set(fail_hook, &fail);
        enum status status = sched_create(&s->config, &sched, &err);
        mem_hook_set(NULL, NULL);
        assert_int_equal(status, ST_NOMEM);
        assert_null(sched);
    }
    s->config.step_tokens_max = 15;
    assert_int_equal(sched_create(&s->config, &s->sched, &err), ST_INVAL);
    mem_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sched_refusals),
        cmocka_unit_test(test_sched_given),
        cmocka_unit_test(test_sched_chunks),
        cmocka_unit_test(test_sched_gap_target),
        cmocka_unit_test(test_sched_long_prompts_leave_room),
        cmocka_unit_test(test_sched_chunks_shrink_with_position),
        cmocka_unit_test(test_sched_choices_share),
        cmocka_unit_test(test_sched_min_tokens_bans),
        cmocka_unit_test(test_sched_stop_string),
        cmocka_unit_test(test_sched_held_text_is_released),
        cmocka_unit_test(test_sched_output_limit),
        cmocka_unit_test(test_sched_reasoning),
        cmocka_unit_test(test_sched_deadlines),
        cmocka_unit_test(test_sched_score_prompt),
        cmocka_unit_test(test_sched_mismatch_takes_the_lowest),
        cmocka_unit_test(test_sched_room),
        cmocka_unit_test(test_sched_overdraft),
        cmocka_unit_test(test_sched_ahead),
        cmocka_unit_test(test_sched_growth_law),
        cmocka_unit_test(test_sched_ahead_pending_ids),
        cmocka_unit_test(test_sched_ahead_drops_what_ended),
        cmocka_unit_test(test_sched_ahead_waits_to_preempt),
        cmocka_unit_test(test_sched_ahead_output_limit),
        cmocka_unit_test(test_sched_ahead_discards_both),
        cmocka_unit_test(test_sched_create_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
