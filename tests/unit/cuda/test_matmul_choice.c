/* The file of matmul algorithms: what is written is read back, and nothing else is ever taken from it. */
#include "tests/unit/cuda/device_memory.h"

#include "runtime/base/mem.h"
#include "runtime/device/cuda/matmul_choice.h"

static uint64_t seed = 20261125;
enum { ENOUGH = 1 << 30 };

static struct matmul_choice choice_of(uint32_t i)
{
    struct matmul_choice c = {
        .key = {.N = i + 1, .K = 4096, .M = matmul_bucket(i % 999 + 1), .y_f32 = i % 2, .bias = i % 3 == 0},
        .workspace_bytes = i * 1000ull,
        .ns = i ? UINT64_C(0xfffffffff) - i : 0};
    for (int j = 0; j < 8; j++) c.algo.data[j] = random_bits(&seed);
    if (i == 0) c.algo.data[0] = UINT64_MAX, c.algo.data[1] = 0;
    return c;
}

static struct matmul_choices *table(uint32_t count)
{
    struct matmul_choices *const t = mem_alloc(1, sizeof *t);
    matmul_choices_init(t, "NVIDIA H100 80GB HBM3", 13000, 130100);
    for (uint32_t i = 0; i < count; i++) {
        const struct matmul_choice c = choice_of(i);
        assert_true(matmul_choices_put(t, &c));
    }
    return t;
}

static void test_buckets_rise_and_are_near(void **state)
{
    (void)state;
    uint32_t before = 0;
    for (uint32_t M = 1; M < 100000; M++) {
        const uint32_t bucket = matmul_bucket(M);
        assert_true(bucket >= M && bucket >= before && bucket <= M + M / 2);
        assert_int_equal(matmul_bucket(bucket), bucket);
        before = bucket;
    }
    assert_true(matmul_bucket(UINT32_MAX) == UINT32_C(1) << 31);
}

static void test_what_is_written_is_read(void **state)
{
    (void)state;
    static const uint32_t counts[] = {0, 1, 7, MATMUL_CHOICES_MAX};
    char *const text = mem_alloc(MATMUL_FILE_MAX, 1);
    for (unsigned i = 0; i < 4; i++) {
        struct matmul_choices *const from = table(counts[i]), *const to = table(0);
        const size_t length = matmul_choices_print(from, text);
        assert_int_equal(length, strlen(text));
        assert_int_equal(matmul_choices_parse(to, text, length, ENOUGH), counts[i]);
        for (uint32_t j = 0; j < counts[i]; j++) {
            const struct matmul_choice *const c = matmul_choices_find(to, &from->at[j].key);
            assert_non_null(c);
            assert_memory_equal(&c->algo, &from->at[j].algo, sizeof c->algo);
            assert_true(c->ns == from->at[j].ns && c->workspace_bytes == from->at[j].workspace_bytes);
        }
        /* what needs more than the workspace is not taken */
        struct matmul_choices *const small = table(0);
        assert_int_equal(matmul_choices_parse(small, text, length, 2500), counts[i] < 3 ? counts[i] : 3);
        mem_free(from);
        mem_free(to);
        mem_free(small);
    }
    mem_free(text);
}

static void test_a_full_table_stays_as_it_is(void **state)
{
    (void)state;
    struct matmul_choices *const t = table(MATMUL_CHOICES_MAX);
    struct matmul_choice c = choice_of(MATMUL_CHOICES_MAX);
    assert_false(matmul_choices_put(t, &c));
    assert_null(matmul_choices_find(t, &c.key));
    c.key = t->at[5].key;
    assert_true(matmul_choices_put(t, &c)); /* replaced */
    assert_int_equal(t->count, MATMUL_CHOICES_MAX);
    assert_memory_equal(&t->at[5].algo, &c.algo, sizeof c.algo);
    mem_free(t);
}

static void test_other_platforms_count_for_nothing(void **state)
{
    (void)state;
    static const struct {
        const char *gpu;
        int driver;
        size_t library;
    } others[] = {{"NVIDIA H100 80GB HBM3 ", 13000, 130100},
                  {"NVIDIA H200", 13000, 130100},
                  {"NVIDIA H100 80GB HBM3", 13010, 130100},
                  {"NVIDIA H100 80GB HBM3", 13000, 130101},
                  {"", 0, 0}};
    struct matmul_choices *const from = table(9), *const to = table(0);
    char *const text = mem_alloc(MATMUL_FILE_MAX, 1);
    const size_t length = matmul_choices_print(from, text);
    for (unsigned i = 0; i < sizeof others / sizeof *others; i++) {
        matmul_choices_init(to, others[i].gpu, others[i].driver, others[i].library);
        assert_int_equal(matmul_choices_parse(to, text, length, ENOUGH), 0);
    }
    matmul_choices_init(to, "a\nb\x01\xff", 1, 2); /* a name cannot break a line */
    assert_string_equal(to->platform, "a?b??; driver 1; cublaslt 2");
    mem_free(text);
    mem_free(from);
    mem_free(to);
}

/* Every cut, every changed byte, and noise: what is taken is a choice that was written, or nothing. */
static void test_nonsense_is_not_taken(void **state)
{
    (void)state;
    enum { COUNT = 3 };
    struct matmul_choices *const from = table(COUNT), *const to = mem_alloc(1, sizeof *to);
    char *const text = mem_alloc(MATMUL_FILE_MAX, 1);
    const size_t length = matmul_choices_print(from, text);
    for (size_t cut = 0; cut <= length; cut++) {
        char *const part = mem_alloc(cut + 1, 1); /* ASan sees what is read beyond */
        char *const exact = mem_resize(part, cut ? cut : 1, 1);
        memcpy(exact, text, cut);
        matmul_choices_init(to, "NVIDIA H100 80GB HBM3", 13000, 130100);
        const uint32_t taken = matmul_choices_parse(to, exact, cut, ENOUGH);
        uint32_t lines = 0;
        for (size_t i = 0; i < cut; i++) lines += text[i] == '\n';
        assert_int_equal(taken, lines ? lines - 1 : 0);
        mem_free(exact);
    }
    for (size_t at = 0; at < length; at++)
        for (int bit = 0; bit < 8; bit++) {
            text[at] = (char)(text[at] ^ 1 << bit);
            matmul_choices_init(to, "NVIDIA H100 80GB HBM3", 13000, 130100);
            (void)matmul_choices_parse(to, text, length, ENOUGH);
            text[at] = (char)(text[at] ^ 1 << bit);
            assert_true(to->count < COUNT);
            for (uint32_t i = 0; i < to->count; i++) {
                const struct matmul_choice *const c = matmul_choices_find(from, &to->at[i].key);
                assert_non_null(c);
                assert_memory_equal(&c->algo, &to->at[i].algo, sizeof c->algo);
            }
        }
    for (int round = 0; round < 2000; round++) {
        const size_t noise = random_bits(&seed) % 300;
        memcpy(text, "millrace-matmul 1 ", 18);
        for (size_t i = round % 2 ? 18 : 0; i < noise; i++)
            text[i] = round % 3 ? "0123456789abcdef \n-+"[random_bits(&seed) % 20] : (char)random_bits(&seed);
        matmul_choices_init(to, "NVIDIA H100 80GB HBM3", 13000, 130100);
        assert_int_equal(matmul_choices_parse(to, text, noise, ENOUGH), 0);
    }
    mem_free(text);
    mem_free(from);
    mem_free(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buckets_rise_and_are_near),   cmocka_unit_test(test_what_is_written_is_read),
        cmocka_unit_test(test_a_full_table_stays_as_it_is), cmocka_unit_test(test_other_platforms_count_for_nothing),
        cmocka_unit_test(test_nonsense_is_not_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
