/* Requests and results of the pool as bytes: what is written is read again, and nothing else is. */
#include "tests/unit/unit.h"

#include "runtime/base/crc32c.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/pool/pool_entry.h"
#include "server/pool/pool_redis.h"

static const uint32_t ids[] = {1, 70000, UINT32_MAX};
static const struct pool_result made = {.run = {1, 2, 3, 4, 5, 6, 7, 8},
                                        .prompt = {9},
                                        .in_total = 40,
                                        .answer = {.ids = ids,
                                                   .count = 3,
                                                   .in_hit = 16,
                                                   .text_bytes = 11,
                                                   .reasoning_count = 1,
                                                   .trimmed_count = 2,
                                                   .finish = FINISH_STOP,
                                                   .stop_id = 2,
                                                   .stop_string = STOP_STRING_NONE}};
static const char body[] = "{\"model\":\"m\",\"prompt\":\"\\u0000 and more\"}";

static struct buf entry_bytes(void)
{
    struct buf out;
    const struct pool_entry entry = {.chat = true,
                                     .account = UINT64_MAX - 1,
                                     .deadline_ms = 1795472000123,
                                     .prompt_tokens = 12,
                                     .output_tokens = 345,
                                     .body = body,
                                     .body_length = sizeof body - 1};
    buf_init(&out, 0);
    pool_entry_print(&entry, &out);
    assert_true(buf_ok(&out));
    return out;
}

static struct buf result_bytes(void)
{
    struct buf out;
    buf_init(&out, 0);
    pool_result_print(&made, &out);
    assert_true(buf_ok(&out));
    return out;
}

static void test_pool_entry_round_trip(void **state)
{
    (void)state;
    struct error err;
    struct pool_entry entry;
    struct pool_result result;
    struct buf bytes = entry_bytes();
    assert_int_equal(pool_entry_read(bytes.data, bytes.length, &entry, &err), ST_OK);
    assert_true(entry.chat);
    assert_true(entry.account == UINT64_MAX - 1 && entry.deadline_ms == 1795472000123);
    assert_true(entry.prompt_tokens == 12 && entry.output_tokens == 345);
    assert_int_equal(entry.body_length, sizeof body - 1);
    assert_memory_equal(entry.body, body, sizeof body - 1);
    buf_free(&bytes);
    bytes = result_bytes();
    assert_int_equal(pool_result_read(bytes.data, bytes.length, &result, &err), ST_OK);
    assert_memory_equal(result.run, made.run, sizeof made.run);
    assert_memory_equal(result.prompt, made.prompt, sizeof made.prompt);
    assert_int_equal(result.in_total, 40);
    assert_memory_equal(result.answer.ids, ids, sizeof ids);
    struct given_answer answer = result.answer;
    answer.ids = made.answer.ids;
    assert_true(answer.count == 3 && answer.in_hit == 16 && answer.text_bytes == 11 && answer.reasoning_count == 1);
    assert_true(answer.trimmed_count == 2 && answer.finish == FINISH_STOP && answer.stop_id == 2 &&
                answer.stop_string == STOP_STRING_NONE);
    pool_result_free(&result);
    buf_free(&bytes);
}

/* Every bit, every length; and each once more with a sum that is right, as whoever writes to Redis can make it. */
static void try_one(uint8_t *copy, size_t length, bool result)
{
    struct error err;
    struct pool_entry entry;
    struct pool_result read;
    if (!result) {
        if (pool_entry_read(copy, length, &entry, &err) != ST_OK) return;
        assert_true((const uint8_t *)entry.body >= copy && entry.body_length > 0);
        assert_true((const uint8_t *)entry.body + entry.body_length == copy + length);
        return;
    }
    if (pool_result_read(copy, length, &read, &err) == ST_OK) {
        assert_true(read.answer.count > 0 && read.answer.in_hit < read.in_total);
        assert_true(read.answer.reasoning_count <= read.answer.count && read.answer.trimmed_count <= read.answer.count);
        assert_true(length >= (size_t)read.answer.count * 4);
    }
    pool_result_free(&read);
}

static void sum_again(uint8_t *copy, size_t length)
{
    if (length < 8) return;
    uint32_t crc = crc32c(copy + 8, length - 8);
    for (int i = 0; i < 4; i++) copy[4 + i] = (uint8_t)(crc >> 8 * i);
}

static void damage(const struct buf *bytes, bool result)
{
    struct error err;
    struct pool_entry entry;
    struct pool_result read;
    for (size_t bit = 0; bit < bytes->length * 8; bit++) {
        uint8_t *copy = mem_alloc(bytes->length, 1);
        memcpy(copy, bytes->data, bytes->length);
        copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(result ? pool_result_read(copy, bytes->length, &read, &err)
                                : pool_entry_read(copy, bytes->length, &entry, &err),
                         ST_PROTO);
        sum_again(copy, bytes->length);
        try_one(copy, bytes->length, result);
        mem_free(copy);
    }
    for (size_t length = 0; length < bytes->length; length++) {
        uint8_t *copy = mem_alloc(length ? length : 1, 1); /* its end is the sanitizers' to watch */
        memcpy(copy, bytes->data, length);
        sum_again(copy, length);
        assert_int_equal(result ? pool_result_read(copy, length, &read, &err)
                                : pool_entry_read(copy, length, &entry, &err),
                         ST_PROTO);
        mem_free(copy);
    }
}

static void test_pool_entry_damage(void **state)
{
    (void)state;
    struct buf bytes = entry_bytes();
    damage(&bytes, false);
    buf_free(&bytes);
    bytes = result_bytes();
    damage(&bytes, true);
    buf_free(&bytes);
}

static void test_pool_entry_garbage(void **state)
{
    (void)state;
    uint8_t chance[256];
    random_fill(chance, sizeof chance);
    uint64_t seed = chance[0] | (uint64_t)chance[1] << 8;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (uint32_t i = 0; i < 100000; i++) {
        size_t length = 8 + (seed >> 33) % (sizeof chance - 8);
        for (size_t k = 0; k < length; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            chance[k] = (uint8_t)(seed >> 40);
            if (k >= 8 && seed >> 62) chance[k] = 0; /* small numbers pass more checks */
        }
        memcpy(chance, i % 2 ? "MRR1" : "MRP1", 4);
        uint8_t *copy = mem_alloc(length, 1);
        memcpy(copy, chance, length);
        sum_again(copy, length);
        try_one(copy, length, i % 2);
        mem_free(copy);
    }
}

static void test_pool_entry_limits(void **state)
{
    (void)state;
    struct error err;
    struct pool_entry entry;
    struct pool_result result;
    struct buf bytes = entry_bytes(), answer = result_bytes();
    const uint64_t entry_bytes_max = limits.pool_entry_bytes, result_bytes_max = limits.pool_result_bytes;
    limits.pool_entry_bytes = bytes.length;
    limits.pool_result_bytes = answer.length;
    assert_int_equal(pool_entry_read(bytes.data, bytes.length, &entry, &err), ST_OK);
    assert_int_equal(pool_result_read(answer.data, answer.length, &result, &err), ST_OK);
    pool_result_free(&result);
    limits.pool_entry_bytes--;
    limits.pool_result_bytes--;
    assert_int_equal(pool_entry_read(bytes.data, bytes.length, &entry, &err), ST_PROTO);
    assert_int_equal(pool_result_read(answer.data, answer.length, &result, &err), ST_PROTO);
    limits.pool_entry_bytes = entry_bytes_max;
    limits.pool_result_bytes = result_bytes_max;
    buf_free(&bytes);
    buf_free(&answer);
}

static void test_pool_entry_ids(void **state)
{
    (void)state;
    uint8_t id[POOL_ID_BYTES];
    const char *good = "00112233445566778899aabbccddeeff";
    assert_true(pool_id_read(good, 32, id));
    assert_true(id[0] == 0 && id[1] == 0x11 && id[15] == 0xff);
    assert_false(pool_id_read(good, 31, id));
    assert_false(pool_id_read("00112233445566778899AABBCCDDEEFF", 32, id));
    assert_false(pool_id_read("00112233445566778899aabbccddee}:", 32, id));
    assert_false(pool_id_read("", 0, id));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_entry_round_trip), cmocka_unit_test(test_pool_entry_damage),
        cmocka_unit_test(test_pool_entry_garbage),    cmocka_unit_test(test_pool_entry_limits),
        cmocka_unit_test(test_pool_entry_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
