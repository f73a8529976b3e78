/* How rows are chosen, over the wire and back; and bytes that are none. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/batch_rows_wire.h"

enum { ROWS = 24, LISTS = 400, KINDS = 6, SEEN = 40, LIST = 9 };

struct pair {
    struct batch *sent, *got;
    struct batch_rows_memory memory;
    struct sampling_params params[KINDS];
    uint32_t ids[KINDS][LIST], seen[KINDS][SEEN];
    struct logit_bias biases[KINDS][LIST];
};

static void pair_make(struct pair *p)
{
    memset(p, 0, sizeof *p);
    assert_int_equal(batch_create(ROWS, ROWS, ROWS, &p->sent), ST_OK);
    assert_int_equal(batch_create(ROWS, ROWS, ROWS, &p->got), ST_OK);
    assert_int_equal(batch_rows_memory_take(&p->memory, ROWS, LISTS), ST_OK);
}

static void pair_free(struct pair *p)
{
    batch_destroy(p->sent);
    batch_destroy(p->got);
    batch_rows_memory_free(&p->memory);
}

static uint32_t below(uint64_t *seed, uint32_t n)
{
    return (uint32_t)(random_next(seed) % n);
}

static void random_params(struct pair *p, uint32_t k, uint64_t *seed)
{
    for (uint32_t i = 0; i < LIST; i++) {
        p->ids[k][i] = (uint32_t)random_next(seed);
        p->biases[k][i] = (struct logit_bias){(uint32_t)random_next(seed), (float)below(seed, 100) - 50};
    }
    for (uint32_t i = 0; i < SEEN; i++) p->seen[k][i] = (uint32_t)random_next(seed);
    p->params[k] = (struct sampling_params){.temperature = (float)below(seed, 5) / 3,
                                            .top_p = 0.5f,
                                            .min_p = 0.25f,
                                            .top_k = below(seed, 3),
                                            .repetition_penalty = below(seed, 2) ? 1 : 1.5f,
                                            .frequency_penalty = below(seed, 3) ? 0 : -0.5f,
                                            .presence_penalty = below(seed, 3) ? 0 : 0.5f,
                                            .bias = p->biases[k],
                                            .bias_count = below(seed, LIST),
                                            .allowed = below(seed, 2) ? p->ids[k] : NULL,
                                            .logprobs = (int32_t)below(seed, LOGPROBS_MAX + 1) - 1};
    if (p->params[k].allowed) p->params[k].allowed_count = below(seed, LIST); /* none may be allowed too */
}

/* Rows side by side often share their params and their list of seen ids. */
static void random_rows(struct pair *p, uint64_t *seed)
{
    struct batch *b = p->sent;
    uint32_t kind = 0;
    for (uint32_t k = 0; k < KINDS; k++) random_params(p, k, seed);
    b->rows_count = below(seed, 11);
    b->tokens_count = p->got->tokens_count = b->rows_count;
    for (uint32_t r = 0; r < b->rows_count; r++) {
        struct batch_row *row = &b->rows[r];
        if (below(seed, 2)) kind = below(seed, KINDS);
        *row = (struct batch_row){.token = r,
                                  .params = &p->params[kind],
                                  .seed = random_next(seed),
                                  .position = below(seed, 1000),
                                  .seen = p->seen[kind],
                                  .seen_count = below(seed, SEEN),
                                  .banned = p->ids[(kind + 1) % KINDS],
                                  .banned_count = below(seed, 3),
                                  .pending = below(seed, 2),
                                  .score_only = !below(seed, 4),
                                  .target = below(seed, 500)};
        row->seen_prompt = row->seen_count / 2;
        if (row->score_only) row->pending = false;
        p->got->rows[r].token = r; /* as batch_wire_read leaves it */
    }
    p->got->rows_count = b->rows_count;
}

static void assert_same_row(const struct batch_row *a, const struct batch_row *b)
{
    const struct sampling_params *x = a->params, *y = b->params;
    assert_int_equal(a->token, b->token);
    assert_true(a->seed == b->seed && a->position == b->position && a->target == b->target);
    assert_true(a->pending == b->pending && a->score_only == b->score_only);
    assert_true(x->temperature == y->temperature && x->top_p == y->top_p && x->min_p == y->min_p);
    assert_true(x->top_k == y->top_k && x->logprobs == y->logprobs);
    assert_true(x->repetition_penalty == y->repetition_penalty && x->frequency_penalty == y->frequency_penalty &&
                x->presence_penalty == y->presence_penalty);
    if (a->score_only) return;
    assert_int_equal(x->allowed != NULL, y->allowed != NULL);
    assert_int_equal(x->bias_count, y->bias_count);
    assert_int_equal(x->allowed ? x->allowed_count : 0, y->allowed_count);
    assert_int_equal(a->banned_count, b->banned_count);
    if (y->bias_count) assert_memory_equal(x->bias, y->bias, y->bias_count * sizeof *x->bias);
    if (y->allowed_count) assert_memory_equal(x->allowed, y->allowed, y->allowed_count * sizeof *x->allowed);
    if (b->banned_count) assert_memory_equal(a->banned, b->banned, b->banned_count * sizeof *a->banned);
    if (!batch_row_wants_seen(a)) return;
    assert_true(a->seen_prompt == b->seen_prompt && a->seen_count == b->seen_count);
    if (b->seen_count) assert_memory_equal(a->seen, b->seen, b->seen_count * sizeof *a->seen);
}

static void test_batch_rows_wire_round_trip(void **state)
{
    (void)state;
    struct pair p;
    uint64_t seed = 5;
    uint32_t shared = 0;
    pair_make(&p);
    for (int round = 0; round < 5000; round++) {
        random_rows(&p, &seed);
        size_t bytes = batch_rows_wire_bytes(p.sent);
        uint8_t *wire = malloc(bytes); /* ends where its allocation ends */
        assert_true(bytes <= batch_rows_wire_bytes_max(ROWS, LISTS));
        batch_rows_wire_write(p.sent, wire);
        assert_int_equal(batch_rows_wire_read(wire, bytes, p.got, &p.memory), ST_OK);
        assert_int_equal(p.got->rows_count, p.sent->rows_count);
        for (uint32_t r = 0; r < p.got->rows_count; r++) {
            assert_same_row(&p.sent->rows[r], &p.got->rows[r]);
            if (!r || p.sent->rows[r].params != p.sent->rows[r - 1].params) continue;
            bool same = p.sent->rows[r].score_only == p.sent->rows[r - 1].score_only;
            assert_int_equal(p.got->rows[r].params == p.got->rows[r - 1].params, same);
            shared += same;
        }
        free(wire);
    }
    assert_true(shared > 1000);
    pair_free(&p);
}

/* Every id that a list names is read, as a device would: a sanitizer sees what lies outside. */
static uint64_t read_all(const struct batch *b)
{
    uint64_t sum = 0;
    for (uint32_t r = 0; r < b->rows_count; r++) {
        const struct batch_row *row = &b->rows[r];
        const struct sampling_params *p = row->params;
        assert_true(p->logprobs >= -1 && p->logprobs < LOGPROBS_MAX && row->seen_prompt <= row->seen_count);
        for (uint32_t i = 0; i < row->seen_count; i++) sum += row->seen[i];
        for (uint32_t i = 0; i < row->banned_count; i++) sum += row->banned[i];
        for (uint32_t i = 0; p->allowed && i < p->allowed_count; i++) sum += p->allowed[i];
        for (uint32_t i = 0; i < p->bias_count; i++) sum += p->bias[i].id;
    }
    return sum;
}

static void test_batch_rows_wire_any_bytes(void **state)
{
    (void)state;
    struct pair p;
    uint64_t seed = 20261123;
    uint32_t read = 0, refused = 0;
    uint64_t sum = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    pair_make(&p);
    for (int round = 0; round < 40000; round++) {
        random_rows(&p, &seed);
        size_t bytes = batch_rows_wire_bytes(p.sent), length = bytes;
        uint8_t *whole = malloc(bytes);
        batch_rows_wire_write(p.sent, whole);
        if (round % 4 == 0) length = below(&seed, (uint32_t)bytes);
        for (uint32_t i = below(&seed, 3); round % 4 && i < 3; i++) {
            uint32_t word = below(&seed, 4) ? below(&seed, 50) : (uint32_t)random_next(&seed);
            memcpy(whole + below(&seed, (uint32_t)(bytes / 4)) * 4, &word, 4);
        }
        uint8_t *wire = malloc(length + 1);
        memcpy(wire, whole, length);
        free(whole);
        enum status status = batch_rows_wire_read(wire, length, p.got, &p.memory);
        assert_true(status == ST_OK || status == ST_PROTO);
        status == ST_OK ? read++ : refused++;
        if (status != ST_OK) assert_int_equal(p.got->rows_count, 0);
        sum += read_all(p.got);
        free(wire);
    }
    print_message("%u read, %u refused, %llu\n", read, refused, (unsigned long long)sum);
    assert_true(read > 1000 && refused > 10000);
    pair_free(&p);
}

/* Word by word: 3 of header, 20 a row (bits, seed 2, position, target, seen_prompt, seen_count, 6 floats, top_k,
 * logprobs, allowed, biases, banned, seen, 0), then 2 + 2 + 1 + 3 of the first row's lists. */
static void test_batch_rows_wire_refuses(void **state)
{
    (void)state;
    enum { ROW = 3, NEXT = 23, WORDS = 3 + 40 + 8 };
    static const struct {
        uint32_t at, word;
    } changes[] = {{0, 0},         {1, 1},         {1, 3},         {2, 7},
                   {2, 9},         {ROW, 16 | 4},  {ROW, 16 | 8},  {ROW, 16 | 2},
                   {ROW, 16 | 32}, {ROW + 5, 4},   {ROW + 6, 4},   {ROW + 14, 21},
                   {ROW + 14, -2}, {ROW + 15, 3},  {ROW + 15, 1},  {ROW + 16, 2},
                   {ROW + 17, 2},  {ROW + 18, 4},  {ROW + 18, 2},  {ROW + 19, 1},
                   {NEXT, 8 | 2},  {NEXT + 6, 4},  {NEXT + 15, 1}, {NEXT + 18, 1},
                   {NEXT, 0},      {ROW + 15, -1}, {ROW + 16, -1}, {ROW + 16, 1u << 31}};
    struct pair p;
    pair_make(&p);
    struct batch *b = p.sent;
    uint64_t seed = 1;
    for (uint32_t k = 0; k < 2; k++) random_params(&p, k, &seed);
    p.params[0] = (struct sampling_params){.repetition_penalty = 2,
                                           .bias = p.biases[0],
                                           .bias_count = 1,
                                           .allowed = p.ids[0],
                                           .allowed_count = 2,
                                           .logprobs = 20};
    for (uint32_t r = 0; r < 2; r++)
        b->rows[r] = (struct batch_row){.token = r,
                                        .params = &p.params[0],
                                        .seen = p.seen[0],
                                        .seen_prompt = 1,
                                        .seen_count = 2 + r,
                                        .banned = p.ids[1],
                                        .banned_count = 1 - r};
    b->rows_count = 2;
    assert_int_equal(batch_rows_wire_bytes(b), WORDS * 4);
    for (size_t i = 0; i <= sizeof changes / sizeof *changes; i++) {
        uint8_t wire[WORDS * 4];
        batch_rows_wire_write(b, wire);
        p.got->rows_count = 2;
        if (i) memcpy(wire + changes[i - 1].at * 4, &changes[i - 1].word, 4);
        enum status status = batch_rows_wire_read(wire, sizeof wire, p.got, &p.memory);
        if (status != (i ? ST_PROTO : ST_OK))
            fail_msg("word %u as %u: %s", changes[i - 1].at, changes[i - 1].word, status_name(status));
    }
    uint8_t longer[(WORDS + 1) * 4] = {0};
    batch_rows_wire_write(b, longer);
    for (size_t length = 0; length <= sizeof longer; length++) {
        p.got->rows_count = 2;
        enum status status = batch_rows_wire_read(longer, length, p.got, &p.memory);
        assert_int_equal(status, length == WORDS * 4 ? ST_OK : ST_PROTO);
    }
    p.got->rows_count = 2;
    p.memory.lists_max = 7;
    assert_int_equal(batch_rows_wire_read(longer, WORDS * 4, p.got, &p.memory), ST_PROTO);
    p.memory.lists_max = LISTS;
    pair_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_rows_wire_round_trip),
        cmocka_unit_test(test_batch_rows_wire_any_bytes),
        cmocka_unit_test(test_batch_rows_wire_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
