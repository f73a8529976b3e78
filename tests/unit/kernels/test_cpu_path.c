/* The choice of instruction set: names, "auto", and refusals. */
#include "tests/unit/unit.h"

#include "kernels/cpu_path.h"
#include "kernels/cpu_path_dot.h"

static void test_cpu_path_names_round_trip(void **state)
{
    (void)state;
    for (enum cpu_path path = CPU_PATH_SCALAR; path < CPU_PATH_COUNT; path++) {
        enum cpu_path parsed = CPU_PATH_COUNT;
        struct error err = {""};
        const enum status status = cpu_path_parse(cpu_path_name(path), &parsed, &err);
        if (cpu_path_supported(path)) {
            assert_int_equal(status, ST_OK);
            assert_int_equal(parsed, path);
        } else {
            assert_int_equal(status, ST_DEVICE);
            assert_int_equal(parsed, CPU_PATH_COUNT); /* written on success only */
            assert_non_null(strstr(err.message, cpu_path_name(path)));
        }
    }
}

/* Only the BF16 path may be passed over though the CPU has it: where its dots do not pay. */
static void test_cpu_path_auto_is_best(void **state)
{
    (void)state;
    enum cpu_path parsed = CPU_PATH_COUNT;
    assert_int_equal(cpu_path_parse("auto", &parsed, NULL), ST_OK);
    assert_true(cpu_path_supported(parsed));
    for (enum cpu_path path = parsed + 1; path < CPU_PATH_AVX512BF16; path++) assert_false(cpu_path_supported(path));
}

static void test_cpu_path_dot_pays_per_multiply(void **state)
{
    (void)state;
    assert_true(cpu_path_dot_pays(1000, 1000));  /* Zen 4: as many dots as FMAs, each of two multiplies */
    assert_false(cpu_path_dot_pays(4000, 1000)); /* a quarter as many: half the multiplies */
    assert_false(cpu_path_dot_pays(2000, 1000)); /* no gain */
    assert_true(cpu_path_dot_pays(1999, 1000));
    assert_false(cpu_path_dot_pays(UINT64_MAX, 1));
}

/* 4096 instructions a slice, two a tick at most on any CPU so far. */
static void test_cpu_path_dot_measure_counts_ticks(void **state)
{
    (void)state;
    if (!cpu_path_supported(CPU_PATH_AVX512BF16)) skip();
    uint64_t dot_ticks = 0, fma_ticks = 0;
    cpu_path_dot_measure(&dot_ticks, &fma_ticks);
    assert_in_range(dot_ticks, 512, UINT32_MAX);
    assert_in_range(fma_ticks, 512, UINT32_MAX);
}

static void test_cpu_path_scalar_is_everywhere(void **state)
{
    (void)state;
    assert_true(cpu_path_supported(CPU_PATH_SCALAR));
    assert_false(cpu_path_supported(CPU_PATH_COUNT));
}

static void test_cpu_path_unknown_name(void **state)
{
    (void)state;
    static const char *const names[] = {"", "AVX2", "avx", "avx512 ", "best"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        enum cpu_path parsed = CPU_PATH_COUNT;
        struct error err = {""};
        assert_int_equal(cpu_path_parse(names[i], &parsed, &err), ST_INVAL);
        assert_int_equal(parsed, CPU_PATH_COUNT);
        assert_non_null(strstr(err.message, "avx2, avxvnni, avx512 or avx512bf16"));
    }
}

/* With MILLRACE_TEST_CPU_MAX a path above it counts as missing, and those up to it are as before. */
static void test_cpu_path_max_masks_better_ones(void **state)
{
    (void)state;
    const char *variable = getenv("MILLRACE_TEST_CPU_MAX");
    char saved[64];
    snprintf(saved, sizeof saved, "%s", variable ? variable : ""); /* empty counts as unset */
    int supported[CPU_PATH_COUNT];
    assert_int_equal(unsetenv("MILLRACE_TEST_CPU_MAX"), 0);
    for (enum cpu_path path = 0; path < CPU_PATH_COUNT; path++) supported[path] = cpu_path_supported(path);
    for (enum cpu_path max = 0; max < CPU_PATH_COUNT; max++) {
        assert_int_equal(setenv("MILLRACE_TEST_CPU_MAX", cpu_path_name(max), 1), 0);
        for (enum cpu_path path = 0; path < CPU_PATH_COUNT; path++)
            assert_int_equal(cpu_path_supported(path), path <= max && supported[path]);
        assert_true(cpu_path_best() <= max);
    }
    assert_int_equal(setenv("MILLRACE_TEST_CPU_MAX", "avx3", 1), 0);
    assert_int_equal(cpu_path_best(), CPU_PATH_SCALAR);
    assert_int_equal(setenv("MILLRACE_TEST_CPU_MAX", "", 1), 0);
    for (enum cpu_path path = 0; path < CPU_PATH_COUNT; path++)
        assert_int_equal(cpu_path_supported(path), supported[path]);
    assert_int_equal(setenv("MILLRACE_TEST_CPU_MAX", saved, 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_path_names_round_trip),      cmocka_unit_test(test_cpu_path_auto_is_best),
        cmocka_unit_test(test_cpu_path_dot_pays_per_multiply), cmocka_unit_test(test_cpu_path_dot_measure_counts_ticks),
        cmocka_unit_test(test_cpu_path_scalar_is_everywhere),  cmocka_unit_test(test_cpu_path_unknown_name),
        cmocka_unit_test(test_cpu_path_max_masks_better_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
