/* Names of models from the option, from paths, and the refusals. */
#include "tests/unit/unit.h"

#include "server/config.h"
#include "server/model_names.h"

static void assert_path_name(const char *path, const char *expected)
{
    struct model_names names = {.count = 0};
    struct error err = {""};
    enum status status = model_names_of_path(&names, path, &err);
    assert_int_equal(status, expected ? ST_OK : ST_INVAL);
    if (expected) assert_string_equal(names.items[0], expected);
    model_names_free(&names);
}

static void test_model_names_of_paths(void **state)
{
    (void)state;
    assert_path_name("a/b/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1");
    assert_path_name("x.gguf", "x");
    assert_path_name("/models/gemma-3-270m/", "gemma-3-270m");
    assert_path_name("gemma//", "gemma");
    assert_path_name(".gguf", ".gguf"); /* better than none */
    assert_path_name("/", NULL);
    assert_path_name("", NULL);
}

/* What millrace serve says to models and names; NULL: it takes them. */
static void check(uint32_t models, const char *const *paths, uint32_t given, const char *const *names,
                  const char *complaint, uint32_t count_of_second)
{
    struct config config = {.port = 0};
    struct error err = {""};
    for (uint32_t i = 0; i < models; i++) config.models.items[config.models.count++] = (char *)(uintptr_t)paths[i];
    for (uint32_t i = 0; i < given; i++)
        config.served_names.items[config.served_names.count++] = (char *)(uintptr_t)names[i];
    enum status status = model_names_check(&config, &err);
    assert_int_equal(status, complaint ? ST_INVAL : ST_OK);
    if (complaint) {
        if (!strstr(err.message, complaint)) fail_msg("%s", err.message);
        return;
    }
    struct model_names second = {.count = 0};
    assert_int_equal(model_names_of_config(&second, &config, models - 1, &err), ST_OK);
    assert_int_equal(second.count, count_of_second);
    model_names_free(&second);
}

#define LIST(...)                                                                                                      \
    (const char *const[])                                                                                              \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static void test_model_names_of_configurations(void **state)
{
    (void)state;
    check(1, LIST("a.gguf"), 0, NULL, NULL, 1);
    check(1, LIST("a.gguf"), 3, LIST("x", "y,z", "w"), NULL, 3); /* as vLLM: all are names of the one */
    check(1, LIST("a.gguf"), 2, LIST("x", "x"), "\"x\" stands for", 0);
    check(2, LIST("a.gguf", "b.gguf"), 0, NULL, NULL, 1);
    check(2, LIST("p/a.gguf", "q/a.gguf"), 0, NULL, "\"a\" stands for two models", 0);
    check(2, LIST("p/a.gguf", "q/a/"), 0, NULL, "\"a\" stands for two models", 0);
    check(2, LIST("p/a.gguf", "q/a.gguf"), 2, LIST("one", "two,zwei,deux"), NULL, 3);
    check(2, LIST("a.gguf", "b.gguf"), 1, LIST("one"), "1 values for 2 models", 0);
    check(2, LIST("a.gguf", "b.gguf"), 3, LIST("one", "two", "three"), "3 values for 2 models", 0);
    check(2, LIST("a.gguf", "b.gguf"), 2, LIST("one,x", "x"), "\"x\" stands for", 0);
    check(2, LIST("a.gguf", "b.gguf"), 2, LIST("one,", "two"), "1 to 255 bytes", 0);
    check(2, LIST("a.gguf", "b.gguf"), 2, LIST("", "two"), "1 to 255 bytes", 0);
    check(1, LIST("a.gguf"), 1, LIST("a\nb"), "control characters", 0);
    check(1, LIST("/"), 0, NULL, "1 to 255 bytes", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model_names_of_paths),
                                       cmocka_unit_test(test_model_names_of_configurations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
