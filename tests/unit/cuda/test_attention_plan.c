/* Plans of attention: every row and chunk once, well formed lists, balance, determinism, limits. */
#include "tests/unit/cuda/device_memory.h"

#include "runtime/device/cuda/attention_plan.h"

enum { SEQS_MAX = 300, CHUNK = CUDA_ATTENTION_CHUNK };

struct step {
    uint32_t seqs, q_start[SEQS_MAX + 1], kv_len[SEQS_MAX], window;
};

static uint32_t first_seen(uint32_t position, uint32_t window)
{
    return window && position >= window ? position + 1 - window : 0;
}

/* Tiles of 64 positions from the first to the last that a range of chunks of the group covers, and the constant. */
static uint64_t cost_of(const struct attention_plan_config *c, const struct step *s, const struct attention_item *item)
{
    const uint32_t G = c->H / c->KH, tokens = s->q_start[item->seq + 1] - s->q_start[item->seq];
    const uint32_t base = s->kv_len[item->seq] - tokens;
    uint32_t begin = first_seen(base + item->row / G, s->window);
    uint32_t end = base + (item->row + item->rows - 1) / G + 1;
    if (begin < (uint32_t)item->chunk_begin * CHUNK) begin = (uint32_t)item->chunk_begin * CHUNK;
    if (end > (uint32_t)item->chunk_end * CHUNK) end = (uint32_t)item->chunk_end * CHUNK;
    return (end + 63) / 64 - begin / 64 + 2;
}

/* P1, and the form of the lists; gives the highest load, the sum of loads, and what a group that was not cut costs. */
static void check_plan(const struct attention_plan_config *c, const struct step *s, const struct attention_item *items,
                       uint32_t count, uint64_t *highest, uint64_t *total, uint64_t *whole)
{
    const uint32_t G = c->H / c->KH, workers = cuda_attention_workers(c->grid, c->KH);
    const uint32_t partials_max = cuda_attention_partials(c->tokens_max, c->context_max, c->H, c->KH, c->D);
    uint8_t *reached = calloc(count + 1, 1), *tickets = calloc(cuda_attention_tickets(c->grid, c->KH) + 1, 1);
    uint8_t *partials = calloc((size_t)partials_max + 1, 1);
    *highest = *total = *whole = 0;
    for (uint32_t w = 0; w < workers && w < count; w++) {
        uint64_t load = 0;
        uint32_t at = w;
        do {
            assert_true(at < count);
            assert_int_equal(reached[at]++, 0);
            load += cost_of(c, s, &items[at]);
            at = items[at].next;
        } while (at);
        *total += load;
        if (load > *highest) *highest = load;
    }
    for (uint32_t i = 0; i < count; i++) assert_int_equal(reached[i], 1);

    uint32_t **seen =
        calloc(s->seqs, sizeof *seen); /* chunks done of each row, each in the rising order of its items */
    for (uint32_t q = 0; q < s->seqs; q++)
        seen[q] = calloc((size_t)(s->q_start[q + 1] - s->q_start[q]) * G + 1, sizeof **seen);
    for (uint32_t i = 0; i < count; i++) {
        const struct attention_item *item = &items[i];
        assert_true(item->seq < s->seqs);
        const uint32_t tokens = s->q_start[item->seq + 1] - s->q_start[item->seq], base = s->kv_len[item->seq] - tokens;
        assert_true(item->rows >= 1 && item->rows <= CUDA_ATTENTION_ROWS && item->row + item->rows <= tokens * G);
        assert_int_equal(item->row % CUDA_ATTENTION_ROWS, 0);
        assert_true(item->group_begin <= item->chunk_begin && item->chunk_begin < item->chunk_end &&
                    item->chunk_end <= item->group_end);
        assert_int_equal(item->group_begin, first_seen(base + item->row / G, s->window) / CHUNK);
        assert_int_equal(item->group_end, (base + (item->row + item->rows - 1) / G) / CHUNK + 1);
        for (uint32_t r = 0; r < item->rows; r++)
            seen[item->seq][item->row + r] += (uint32_t)item->chunk_end - item->chunk_begin;
        if (item->pieces == 1) {
            if (cost_of(c, s, item) > *whole) *whole = cost_of(c, s, item);
            assert_true(item->chunk_begin == item->group_begin && item->chunk_end == item->group_end);
            continue;
        }
        if (item->chunk_begin != item->group_begin) { /* behind another piece of its group */
            assert_true(i > 0 && items[i - 1].chunk_end == item->chunk_begin && items[i - 1].ticket == item->ticket);
            assert_true(items[i - 1].seq == item->seq && items[i - 1].row == item->row);
            continue;
        }
        uint32_t pieces = 1;
        while (i + pieces < count && items[i + pieces].pieces > 1 && items[i + pieces].ticket == item->ticket) pieces++;
        assert_int_equal(item->pieces, pieces);
        assert_true(item->ticket < cuda_attention_tickets(c->grid, c->KH));
        assert_int_equal(tickets[item->ticket]++, 0);
        const uint32_t room = (uint32_t)(item->group_end - item->group_begin) * item->rows;
        assert_true((uint64_t)item->partial + room <= partials_max);
        for (uint32_t p = 0; p < room; p++) assert_int_equal(partials[item->partial + p]++, 0);
    }
    for (uint32_t q = 0; q < s->seqs; q++) {
        const uint32_t tokens = s->q_start[q + 1] - s->q_start[q], base = s->kv_len[q] - tokens;
        for (uint32_t r = 0; r < tokens * G; r++) { /* at least the chunks that the row sees, each once: group bounds */
            const uint32_t group = r / CUDA_ATTENTION_ROWS * CUDA_ATTENTION_ROWS;
            const uint32_t left = tokens * G - group, last = group + (left < 64 ? left : 64) - 1;
            const uint32_t wanted = (base + last / G) / CHUNK + 1 - first_seen(base + group / G, s->window) / CHUNK;
            assert_int_equal(seen[q][r], wanted);
        }
        free(seen[q]);
    }
    free(seen), free(reached), free(tickets), free(partials);
}

static void make_and_check(const struct attention_plan_config *c, const struct step *s, double *imbalance)
{
    struct attention_plan *plan = NULL;
    assert_int_equal(attention_plan_create(c, &plan), ST_OK);
    const uint32_t most = attention_plan_items_max(c, s->q_start[s->seqs], s->seqs);
    struct attention_item *items = calloc(most + 1, sizeof *items), *again = calloc(most + 1, sizeof *again);
    const uint32_t count = attention_plan_make(plan, s->seqs, s->q_start, s->kv_len, s->window, items);
    assert_true(count <= most);
    uint64_t highest, total, whole;
    check_plan(c, s, items, count, &highest, &total, &whole);
    assert_int_equal(attention_plan_make(plan, s->seqs, s->q_start, s->kv_len, s->window, again), count);
    assert_memory_equal(items, again, count * sizeof *items); /* P2 */
    const uint64_t workers = cuda_attention_workers(c->grid, c->KH), share = (total + workers - 1) / workers;
    const uint64_t piece = CHUNK / 64 + 2; /* P3 */
    if (highest > share + share / 16 + (whole > piece ? whole : piece))
        fail_msg("load %llu, share %llu, longest whole group %llu", (unsigned long long)highest,
                 (unsigned long long)share, (unsigned long long)whole);
    if (imbalance) *imbalance = (double)highest / (double)(share ? share : 1);
    free(items), free(again);
    attention_plan_destroy(plan);
}

static const struct attention_plan_config h100 = {8192, 256, 131072, 32, 8, 128, 264};

static void test_every_row_and_chunk_once(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{32, 8}, {9, 3}, {16, 16}, {71, 1}, {40, 2}};
    uint64_t seed = 11;
    for (int round = 0; round < 300; round++) {
        const uint32_t *shape = shapes[random_bits(&seed) % 5];
        struct attention_plan_config c = h100;
        c.H = shape[0], c.KH = shape[1];
        c.grid = c.KH + (uint32_t)(random_bits(&seed) % 270);
        struct step s = {.seqs = (uint32_t)(random_bits(&seed) % 40)};
        s.window = random_bits(&seed) % 3 ? 0 : 1 + (uint32_t)(random_bits(&seed) % 5000);
        for (uint32_t q = 0; q < s.seqs; q++) {
            const uint64_t kind = random_bits(&seed) % 4;
            const uint32_t tokens = kind == 0 ? (uint32_t)(random_bits(&seed) % 200) : 1;
            const uint32_t before = (uint32_t)(random_bits(&seed) % (kind == 1 ? 60000 : 1500));
            s.q_start[q + 1] = s.q_start[q] + tokens;
            s.kv_len[q] = before + tokens;
        }
        make_and_check(&c, &s, NULL);
    }
}

/* What steps of an engine look like on an H100: the highest load over the even share. */
static void test_balance(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t seqs, tokens, kv_len;
        double most;
    } cases[] = {{"1 x 131,072", 1, 1, 131072, 1.35},        {"64 x 128", 64, 1, 128, 1.1},
                 {"64 x 1,024", 64, 1, 1024, 1.1},           {"34 x 32,768", 34, 1, 32768, 1.1},
                 {"256 x 2,048", 256, 1, 2048, 1.1},         {"prefill 2,048", 1, 2048, 2048, 1.1},
                 {"40 tokens at 32,768", 1, 40, 32768, 1.35}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct step s = {.seqs = cases[i].seqs};
        for (uint32_t q = 0; q < s.seqs; q++) {
            s.q_start[q + 1] = s.q_start[q] + cases[i].tokens;
            s.kv_len[q] = cases[i].kv_len;
        }
        double imbalance = 0;
        make_and_check(&h100, &s, &imbalance);
        printf("%-20s highest load %.3f of the even share\n", cases[i].name, imbalance);
        assert_true(imbalance <= cases[i].most);
    }
}

static void test_nothing_to_do(void **state)
{
    (void)state;
    make_and_check(&h100, &(struct step){.seqs = 0}, NULL);
    make_and_check(&h100, &(struct step){.seqs = 2, .q_start = {0, 0, 1}, .kv_len = {5, 1}}, NULL);
}

static void test_settings_are_checked(void **state)
{
    (void)state;
    struct attention_plan *plan;
    struct attention_plan_config c = h100;
    c.grid = 7;
    assert_int_equal(attention_plan_create(&c, &plan), ST_INVAL);
    c = h100, c.H = 33;
    assert_int_equal(attention_plan_create(&c, &plan), ST_INVAL);
    c = h100, c.KH = 0;
    assert_int_equal(attention_plan_create(&c, &plan), ST_INVAL);
    c = h100, c.context_max = UINT16_MAX * (uint32_t)CHUNK;
    assert_int_equal(attention_plan_create(&c, &plan), ST_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row_and_chunk_once),
        cmocka_unit_test(test_balance),
        cmocka_unit_test(test_nothing_to_do),
        cmocka_unit_test(test_settings_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
