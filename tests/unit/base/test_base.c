/* The small parts of runtime/base: memory, arena, ring, hashes, random numbers, limits, errors. */
#include "tests/unit/unit.h"

#include "runtime/base/arena.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/base/ring.h"

#include <pthread.h>

static void test_base_mem_overflow(void **state)
{
    (void)state;
    assert_null(mem_alloc(SIZE_MAX, 2));
    assert_null(mem_alloc(SIZE_MAX / 2 + 2, 2));
    assert_null(mem_alloc(1, SIZE_MAX));
    assert_null(mem_resize(NULL, SIZE_MAX, 16));
    uint64_t before = mem_allocations_of_thread();
    unsigned char *memory = mem_alloc(100, 1);
    assert_int_equal((uintptr_t)memory % 64, 0);
    for (int i = 0; i < 100; i++) assert_int_equal(memory[i], 0);
    assert_int_equal(mem_allocations_of_thread() - before, 1);
    mem_free(memory);
}

static void test_base_arena(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 100000);
    size_t used = 0;
    for (size_t n = 1; used + 512 < 100000; n = n * 7 % 501 + 1) {
        unsigned char *memory = arena_alloc(&arena, n, 1);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 16, 0);
        for (size_t i = 0; i < n; i++) assert_int_equal(memory[i], 0);
        memset(memory, 0xff, n);
        used = arena.used_bytes;
    }
    assert_null(arena_alloc(&arena, 100000, 1));
    assert_null(arena_alloc(&arena, SIZE_MAX, 2));
    assert_string_equal(arena_strdup(&arena, "abc", 2), "ab");
    arena_free(&arena);
    assert_int_equal(arena.used_bytes, 0);
    assert_non_null(arena_alloc(&arena, 90000, 1));
    arena_free(&arena);
}

enum { RING_RECORDS = 200000 };

static void *push_all(void *argument)
{
    struct ring *ring = argument;
    for (uint64_t i = 0; i < RING_RECORDS;)
        if (ring_push(ring, &i)) i++;
    return NULL;
}

static void test_base_ring_between_threads(void **state)
{
    (void)state;
    struct ring ring;
    assert_int_equal(ring_init(&ring, 0, 8), ST_INVAL);
    assert_int_equal(ring_init(&ring, 5, 8), ST_OK);
    assert_int_equal(ring_room(&ring), 8);
    pthread_t pusher;
    assert_int_equal(pthread_create(&pusher, NULL, push_all, &ring), 0);
    for (uint64_t expected = 0; expected < RING_RECORDS;) {
        uint64_t got;
        if (!ring_pop(&ring, &got)) continue;
        assert_int_equal(got, expected);
        expected++;
    }
    pthread_join(pusher, NULL);
    uint64_t rest;
    assert_false(ring_pop(&ring, &rest));
    for (uint64_t i = 0; i < 8; i++) assert_true(ring_push(&ring, &i));
    assert_false(ring_push(&ring, &rest));
    assert_int_equal(ring_count(&ring), 8);
    ring_free(&ring);
}

/* Vectors: FIPS 180-4 "abc"; RFC 4231 case 2; Random123's kat_vectors for philox4x32-10. */
static void test_base_known_answers(void **state)
{
    (void)state;
    uint8_t digest[32];
    sha256("abc", 3, digest);
    static const uint8_t abc[4] = {0xba, 0x78, 0x16, 0xbf};
    assert_memory_equal(digest, abc, 4);
    hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, digest);
    static const uint8_t jefe[4] = {0x5b, 0xdc, 0xc1, 0x46};
    assert_memory_equal(digest, jefe, 4);
    uint32_t out[4];
    philox4x32(0, 0, 0, out);
    assert_int_equal(out[0], 0x6627e8d5);
    assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c);
    assert_int_equal(out[3], 0x9b00dbd8);
    philox4x32(UINT64_MAX, UINT64_MAX, UINT64_MAX, out);
    assert_int_equal(out[0], 0x408f276d);
    assert_int_equal(out[1], 0x41c83b0e);
    assert_int_equal(out[2], 0xa20bc7c6);
    assert_int_equal(out[3], 0x6d5451fd);
}

static void test_base_random_uniform(void **state)
{
    (void)state;
    double sum = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        double x = random_uniform(42, i);
        assert_true(x >= 0 && x < 1);
        sum += x;
    }
    assert_true(sum / 100000 > 0.495 && sum / 100000 < 0.505); /* 5 standard deviations */
    assert_true(random_uniform(42, 7) == random_uniform(42, 7));
    assert_true(random_uniform(42, 7) != random_uniform(43, 7));
}

static void test_base_limits_table(void **state)
{
    (void)state;
    struct error err;
    for (size_t i = 0; i < limits_count; i++) {
        const struct limit_row *row = &limits_table[i];
        assert_int_equal(*row->value, row->value_default);
        assert_int_equal(limits_set(row->name, row->floor, &err), ST_OK);
        assert_int_equal(limits_set(row->name, row->ceiling, &err), ST_OK);
        assert_int_equal(*row->value, row->ceiling);
        assert_int_equal(limits_set(row->name, row->ceiling + 1, &err), ST_INVAL);
        if (row->floor) assert_int_equal(limits_set(row->name, row->floor - 1, &err), ST_INVAL);
        assert_int_equal(*row->value, row->ceiling);
        assert_int_equal(limits_set(row->name, row->value_default, &err), ST_OK);
    }
    assert_int_equal(limits_set("no_such", 1, &err), ST_NOTFOUND);
}

static void test_base_error_text(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(error_set(&err, ST_INVAL, "key \"%s\"", "a\nb\x1b[31m"), ST_INVAL);
    assert_string_equal(err.message, "key \"a?b?[31m\"");
    assert_int_equal(error_set(NULL, ST_LIMIT, "x"), ST_LIMIT);
    assert_string_equal(status_name(ST_QUOTA), "ST_QUOTA");
    assert_string_equal(status_text(ST_NOMEM), "out of memory");
}

static void fill_with_ones(void *state, void *out, size_t length)
{
    (void)state;
    memset(out, 0xff, length);
}

static void test_base_random_uuid(void **state)
{
    (void)state;
    char uuid[UUID_CHARS + 1];
    random_hook_set(fill_with_ones, NULL);
    random_uuid(uuid);
    random_hook_set(NULL, NULL);
    assert_string_equal(uuid, "ffffffff-ffff-4fff-bfff-ffffffffffff");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_random_uuid),   cmocka_unit_test(test_base_mem_overflow),
        cmocka_unit_test(test_base_arena),         cmocka_unit_test(test_base_ring_between_threads),
        cmocka_unit_test(test_base_known_answers), cmocka_unit_test(test_base_random_uniform),
        cmocka_unit_test(test_base_limits_table),  cmocka_unit_test(test_base_error_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
