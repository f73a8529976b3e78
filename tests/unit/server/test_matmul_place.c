/* Where --matmul-file and the environment put cuBLASLt's algorithms. */
#include "tests/unit/unit.h"

#include "server/config.h"
#include "server/matmul_place.h"
#include "server/options.h"

static void expect(const char *option, const char *cache_home, const char *home, const char *file, const char *folder)
{
    struct matmul_place place;
    memset(&place, 0xee, sizeof place);
    matmul_place_find(&place, option, cache_home, home);
    assert_int_equal(place.homeless, !file && !folder && option && !strcmp(option, "auto"));
    assert_int_equal(place.file != NULL, file != NULL);
    assert_int_equal(place.folder != NULL, folder != NULL);
    if (file) assert_string_equal(place.file, file);
    if (folder) assert_string_equal(place.folder, folder);
}

static void test_matmul_place_follows_option_and_environment(void **state)
{
    (void)state;
    static char longer[5000];
    memset(longer, 'x', sizeof longer - 1);
    longer[0] = '/';
    expect("auto", "/cache", "/home/a", NULL, "/cache/millrace");
    expect("auto", NULL, "/home/a", NULL, "/home/a/.cache/millrace");
    expect("auto", "", "/home/a", NULL, "/home/a/.cache/millrace");
    expect("auto", "relative", "/home/a", NULL, "/home/a/.cache/millrace");
    expect("auto", longer, "/home/a", NULL, "/home/a/.cache/millrace");
    expect("auto", NULL, "home", NULL, NULL);
    expect("auto", NULL, NULL, NULL, NULL);
    expect("none", "/cache", "/home/a", NULL, NULL);
    expect("", "/cache", "/home/a", NULL, NULL);
    expect(NULL, "/cache", "/home/a", NULL, NULL);
    expect("choices.txt", "/cache", "/home/a", "choices.txt", NULL);
}

static void test_matmul_place_is_automatic_by_default(void **state)
{
    (void)state;
    const struct option *option = option_find("matmul-file");
    assert_non_null(option);
    assert_string_equal(option->value_default, "auto");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_place_follows_option_and_environment),
        cmocka_unit_test(test_matmul_place_is_automatic_by_default),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
