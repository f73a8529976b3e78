/* Batches over the wire and back; and bytes that are none. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/batch_wire.h"

enum { TOKENS = 64, SEQS = 9, ROWS = 40, ENTRIES = 120, TABLE = 16 };

struct pair {
    struct batch *sent, *got;
    block_id tables[SEQS][TABLE], entries[ENTRIES];
};

static void pair_make(struct pair *p)
{
    memset(p, 0, sizeof *p);
    assert_int_equal(batch_create(TOKENS, SEQS, ROWS, &p->sent), ST_OK);
    assert_int_equal(batch_create(TOKENS, SEQS, ROWS, &p->got), ST_OK);
}

static void pair_free(struct pair *p)
{
    batch_destroy(p->sent);
    batch_destroy(p->got);
}

static void random_batch(struct pair *p, uint64_t *seed)
{
    struct batch *b = p->sent;
    b->tokens_count = b->rows_count = 0;
    b->seqs_count = (uint32_t)(random_next(seed) % (SEQS + 1));
    b->q_start[0] = 0;
    for (uint32_t s = 0; s < b->seqs_count; s++) {
        uint32_t count = 1 + (uint32_t)(random_next(seed) % 7), before = (uint32_t)(random_next(seed) % 150);
        b->kv_len[s] = before + count;
        b->block_table[s] = p->tables[s];
        for (uint32_t i = 0; i < TABLE; i++) p->tables[s][i] = (block_id)random_next(seed);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t n = b->tokens_count++;
            b->tokens[n] = (uint32_t)random_next(seed);
            b->positions[n] = before + i;
            b->seq_of_token[n] = s;
            for (uint32_t r = (uint32_t)(random_next(seed) % 3); r > 1 && b->rows_count < ROWS; r--)
                b->rows[b->rows_count++].token = n;
        }
        b->q_start[s + 1] = b->tokens_count;
    }
}

static void assert_same(const struct pair *p)
{
    const struct batch *a = p->sent, *b = p->got;
    assert_int_equal(a->tokens_count, b->tokens_count);
    assert_int_equal(a->seqs_count, b->seqs_count);
    assert_int_equal(a->rows_count, b->rows_count);
    assert_memory_equal(a->tokens, b->tokens, a->tokens_count * sizeof *a->tokens);
    assert_memory_equal(a->positions, b->positions, a->tokens_count * sizeof *a->positions);
    assert_memory_equal(a->seq_of_token, b->seq_of_token, a->tokens_count * sizeof *a->seq_of_token);
    assert_memory_equal(a->q_start, b->q_start, (a->seqs_count + 1) * sizeof *a->q_start);
    assert_memory_equal(a->kv_len, b->kv_len, a->seqs_count * sizeof *a->kv_len);
    for (uint32_t s = 0; s < a->seqs_count; s++)
        assert_memory_equal(a->block_table[s], b->block_table[s],
                            (a->kv_len[s] + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS * sizeof(block_id));
    for (uint32_t r = 0; r < a->rows_count; r++) {
        assert_int_equal(a->rows[r].token, b->rows[r].token);
        assert_non_null(b->rows[r].params);
    }
}

static void test_batch_wire_round_trip(void **state)
{
    (void)state;
    struct pair p;
    uint64_t seed = 3;
    pair_make(&p);
    size_t most = batch_wire_bytes_max(TOKENS, SEQS, ROWS, ENTRIES);
    for (int round = 0; round < 2000; round++) {
        random_batch(&p, &seed);
        size_t bytes = batch_wire_bytes(p.sent);
        assert_true(bytes <= most);
        uint8_t *wire = malloc(bytes); /* ends where its allocation ends */
        batch_wire_write(p.sent, wire);
        assert_int_equal(batch_wire_read(wire, bytes, p.got, p.entries, ENTRIES), ST_OK);
        assert_same(&p);
        free(wire);
    }
    pair_free(&p);
}

/* Any word changed, any length cut: refused, or a batch that keeps the contract. */
static void test_batch_wire_any_bytes(void **state)
{
    (void)state;
    struct pair p;
    uint64_t seed = 20261123;
    uint32_t read = 0, refused = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    pair_make(&p);
    for (int round = 0; round < 20000; round++) {
        random_batch(&p, &seed);
        size_t bytes = batch_wire_bytes(p.sent), length = bytes;
        uint8_t *whole = malloc(bytes);
        batch_wire_write(p.sent, whole);
        if (round % 4 == 0) length = (size_t)(random_next(&seed) % bytes);
        for (uint64_t i = random_next(&seed) % 3; round % 4 && i < 3; i++) {
            uint32_t word = (uint32_t)(random_next(&seed) % 4 ? random_next(&seed) % 200 : random_next(&seed));
            memcpy(whole + random_next(&seed) % (bytes / 4) * 4, &word, 4);
        }
        uint8_t *wire = malloc(length + 1);
        memcpy(wire, whole, length);
        free(whole);
        enum status status = batch_wire_read(wire, length, p.got, p.entries, ENTRIES);
        assert_true(status == ST_OK || status == ST_PROTO);
        status == ST_OK ? read++ : refused++;
        const struct batch *b = p.got;
        if (status != ST_OK) assert_int_equal(b->tokens_count + b->seqs_count + b->rows_count, 0);
        for (uint32_t s = 0; s < b->seqs_count; s++) {
            assert_true(b->q_start[s] < b->q_start[s + 1] && b->q_start[s + 1] <= b->tokens_count);
            for (uint32_t n = b->q_start[s]; n < b->q_start[s + 1]; n++) assert_true(b->positions[n] < b->kv_len[s]);
            size_t entries = (b->kv_len[s] + (size_t)KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
            assert_true(b->block_table[s] >= p.entries && b->block_table[s] + entries <= p.entries + ENTRIES);
        }
        for (uint32_t r = 0; r < b->rows_count; r++) assert_true(b->rows[r].token < b->tokens_count);
        free(wire);
    }
    assert_true(read > 100 && refused > 1000);
    pair_free(&p);
}

/* Word by word: 5 of header, 2 of the sequence, 5 tokens, 2 rows, 1 table entry. */
static void test_batch_wire_refuses(void **state)
{
    (void)state;
    static const struct {
        uint32_t at, word;
    } changes[] = {{0, 0}, {1, 4},  {1, 6},          {1, TOKENS + 1}, {2, 2},  {2, 0},
                   {3, 3}, {4, 2},  {5, 0},          {5, 4},          {5, 6},  {6, 4},
                   {6, 0}, {6, 17}, {6, 0xffffffff}, {12, 5},         {13, 0}, {13, 0xffffffff}};
    struct pair p;
    pair_make(&p);
    struct batch *b = p.sent;
    b->tokens_count = b->kv_len[0] = b->q_start[1] = 5;
    b->seqs_count = 1;
    b->rows_count = 2;
    b->rows[0].token = 2;
    b->rows[1].token = 4;
    b->block_table[0] = p.tables[0];
    size_t bytes = batch_wire_bytes(b);
    assert_int_equal(bytes, 15 * 4);
    for (size_t i = 0; i <= sizeof changes / sizeof *changes; i++) {
        uint8_t wire[15 * 4];
        batch_wire_write(b, wire);
        if (i) memcpy(wire + changes[i - 1].at * 4, &changes[i - 1].word, 4);
        enum status status = batch_wire_read(wire, bytes, p.got, p.entries, ENTRIES);
        if (status != (i ? ST_PROTO : ST_OK))
            fail_msg("word %u as %u: %s", changes[i - 1].at, changes[i - 1].word, status_name(status));
    }
    uint8_t longer[16 * 4] = {0};
    batch_wire_write(b, longer);
    assert_int_equal(batch_wire_read(longer, bytes + 4, p.got, p.entries, ENTRIES), ST_PROTO);
    assert_int_equal(batch_wire_read(longer, bytes - 4, p.got, p.entries, ENTRIES), ST_PROTO);
    assert_int_equal(batch_wire_read(longer, bytes, p.got, p.entries, 0), ST_PROTO);
    pair_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_wire_round_trip),
        cmocka_unit_test(test_batch_wire_any_bytes),
        cmocka_unit_test(test_batch_wire_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
