/* The table against an array that is searched from end to end. */
#include "tests/unit/unit.h"

#include "runtime/base/id_table.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

enum { IDS = 100, TURNS = 20000 };

static void test_id_table_is_an_array(void **state)
{
    (void)state;
    struct id_table table = {NULL, 0};
    uint64_t held[IDS] = {0}, rng = 5;
    assert_int_equal(id_table_init(&table, IDS), ST_OK);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        uint32_t number = (uint32_t)(random_next(&rng) % IDS);
        if (held[number]) {
            assert_int_equal(id_table_find(&table, held[number]), number);
            id_table_remove(&table, held[number]);
            assert_int_equal(id_table_find(&table, held[number]), ID_NONE);
            held[number] = 0;
        } else {
            held[number] = turn % 3 ? random_next(&rng) | 1 : 2 * (uint64_t)turn + 2; /* of all bits, and in order */
            id_table_add(&table, held[number], number);
        }
        for (uint32_t i = 0; i < IDS && turn % 64 == 0; i++)
            if (held[i]) assert_int_equal(id_table_find(&table, held[i]), i);
    }
    id_table_free(&table);
    id_table_free(&table);
}

static bool refuse(void *state, size_t size_bytes)
{
    (void)state;
    (void)size_bytes;
    return false;
}

static void test_id_table_without_memory(void **state)
{
    (void)state;
    struct id_table table = {NULL, 0};
    mem_hook_set(refuse, NULL);
    assert_int_equal(id_table_init(&table, IDS), ST_NOMEM);
    mem_hook_set(NULL, NULL);
    id_table_free(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_id_table_is_an_array),
        cmocka_unit_test(test_id_table_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
