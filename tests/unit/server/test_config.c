/* Settings: every row of the option table through every source, their order of strength, and bad values. */
#include "tests/unit/unit.h"

#include "runtime/base/limits.h"
#include "server/config.h"
#include "server/options.h"

#include <unistd.h>

static struct error err;

static enum status read_serve(struct config *config, char **environment, int argc, char **argv)
{
    err.message[0] = 0;
    return config_read(config, COMMAND_SERVE, argc, argv, environment, &err);
}

#define READ(config, environment, ...)                                                                                 \
    read_serve(config, environment, (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[]){__VA_ARGS__})

static void test_config_defaults(void **state)
{
    (void)state;
    struct config config;
    assert_int_equal(READ(&config, NULL, "m.gguf"), ST_OK);
    assert_string_equal(config.model, "m.gguf");
    assert_string_equal(config.host, "127.0.0.1");
    assert_int_equal(config.port, 8000);
    assert_true(config.enable_prefix_caching);
    assert_int_equal(config.shutdown_timeout_ms, 120000);
    config_free(&config);
}

static void test_config_order_of_strength(void **state)
{
    (void)state;
    char path[] = "/tmp/millrace-config-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    static const char yaml[] =
        "port: 1\nhost: from-file\nmax_num_seqs: 3\nserved-model-name: [a, b]\nlimit-json-depth: 99\nmodel: [x, y]\n";
    assert_int_equal(write(fd, yaml, sizeof yaml - 1), sizeof yaml - 1);
    close(fd);
    char file[64];
    snprintf(file, sizeof file, "--config=%s", path);
    char *environment[] = {"MILLRACE_PORT=2", "MILLRACE_HOST=from-environment", "HOME=/", NULL};
    struct config config;
    assert_int_equal(READ(&config, environment, file, "m.gguf", "--port", "3"), ST_OK);
    assert_int_equal(config.port, 3);
    assert_string_equal(config.host, "from-environment");
    assert_int_equal(config.max_num_seqs, 3);
    assert_int_equal(config.served_names.count, 2);
    assert_int_equal(limits.json_depth, 99);
    assert_int_equal(config.models.count, 1); /* as with lists: those of the file are replaced */
    assert_string_equal(config.model, "m.gguf");
    config_free(&config);
    assert_int_equal(READ(&config, NULL, file), ST_OK);
    assert_int_equal(config.models.count, 2);
    assert_string_equal(config.models.items[1], "y");
    config_free(&config);
    assert_int_equal(READ(&config, NULL, file, "m.gguf", "--served-model-name", "x"), ST_OK);
    assert_int_equal(config.served_names.count, 1); /* a stronger list replaces the weaker one */
    assert_string_equal(config.served_names.items[0], "x");
    config_free(&config);
    assert_int_equal(limits_set("json_depth", 64, NULL), ST_OK);
    unlink(path);
}

static void test_config_forms(void **state)
{
    (void)state;
    struct config config;
    assert_int_equal(READ(&config, NULL, "m", "--served-model-name", "a", "b", "--no-enable-prefix-caching",
                          "--kv-cache-memory-bytes=512Mi", "--drain-delay", "0.25", "--max_num_seqs", "7"),
                     ST_OK);
    assert_int_equal(config.served_names.count, 2);
    assert_false(config.enable_prefix_caching);
    assert_int_equal(config.kv_cache_memory_bytes, 512u << 20);
    assert_int_equal(config.drain_delay_ms, 250);
    assert_int_equal(config.max_num_seqs, 7);
    config_free(&config);
    char *kubernetes[] = {"MILLRACE_PORT=tcp://10.0.0.1:8000", "MILLRACE_SERVICE_HOST=10.0.0.1", NULL};
    assert_int_equal(READ(&config, kubernetes, "m"), ST_OK);
    assert_int_equal(config.port, 8000);
    config_free(&config);
}

static void test_config_several_models(void **state)
{
    (void)state;
    struct config config;
    char *environment[] = {"MILLRACE_ADMIN_KEY=adm", "MILLRACE_MEMORY_LIMIT=8Gi", NULL};
    assert_int_equal(READ(&config, environment, "m.gguf", "n/", "--served-model-name", "a,b", "c", "--model-dir", "/x",
                          "--no-auto-wake"),
                     ST_OK);
    assert_int_equal(config.models.count, 2);
    assert_string_equal(config.model, "m.gguf");
    assert_string_equal(config.models.items[1], "n/");
    assert_int_equal(config.served_names.count, 2);
    assert_string_equal(config.admin_keys.items[0], "adm");
    assert_string_equal(config.model_dirs.items[0], "/x");
    assert_int_equal(config.memory_limit_bytes, UINT64_C(8) << 30);
    assert_false(config.auto_wake);
    struct buf text = {0};
    config_print(&config, COMMAND_SERVE, &text);
    buf_append_char(&text, '\0');
    assert_non_null(strstr(text.data, "admin-key: (secret)"));
    assert_null(strstr(text.data, "adm\n"));
    buf_free(&text);
    config_free(&config);
    /* a folder is one value: what follows is a model */
    assert_int_equal(READ(&config, NULL, "m", "--model-dir", "/x", "n", "--model-dir", "/y"), ST_OK);
    assert_int_equal(config.models.count, 2);
    assert_string_equal(config.models.items[1], "n");
    assert_int_equal(config.model_dirs.count, 2);
    assert_true(config_takes_several(&config));
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m", "--served-model-name", "a", "n", "--served-model-name", "b"), ST_INVAL);
    assert_non_null(strstr(err.message, "once for each name"));
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m", "n", "--served-model-name", "a", "--served-model-name", "b", "c"),
                     ST_INVAL);
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m", "n", "--served-model-name=a", "--served-model-name", "b"), ST_OK);
    assert_int_equal(config.served_names.count, 2);
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m"), ST_OK);
    assert_false(config_takes_several(&config));
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m", "--admin-key-file", "/x"), ST_OK);
    assert_true(config_takes_several(&config));
    config_free(&config);
    char *alone[] = {"m", "n"};
    assert_int_equal(config_read(&config, COMMAND_INSPECT, 2, alone, NULL, &err), ST_INVAL); /* one at a time */
    config_free(&config);
}

static void test_config_refuses(void **state)
{
    (void)state;
    static const struct {
        char *flag, *value;
        const char *message;
    } cases[] = {
        {"--prot", "1", "did you mean --port"},
        {"--port", "70000", "outside"},
        {"--port", "-1", "whole number"},
        {"--port", "0x10", "whole number"},
        {"--port", "18446744073709551616", "whole number"},
        {"--kv-cache-memory-bytes", "1Xi", "size"},
        {"--kv-cache-memory-bytes", "999999999999T", "size"},
        {"--drain-delay", "nan", "number"},
        {"--drain-delay", "1e999", "number"},
        {"--numerics", "exactly", "none of fast, exact"},
        {"--limit-json-depth", "1", "outside"},
        {"--limit-no-such", "1", "no such option"},
        {"--prompt", "x", "no such option"}, /* generate's, not serve's */
        {"--config", "/does/not/exist.yaml", "No such file"},
    };
    struct config config;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum status status = READ(&config, NULL, "m", cases[i].flag, cases[i].value);
        if (status == ST_OK || !strstr(err.message, cases[i].message))
            fail_msg("%s %s: status %d, message \"%s\"", cases[i].flag, cases[i].value, status, err.message);
        config_free(&config);
    }
    assert_int_equal(READ(&config, NULL, "--port", "1"), ST_INVAL); /* no model */
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m", "--port"), ST_INVAL); /* no value */
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m", "m"), ST_INVAL); /* two of one name */
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m", "n", "--served-model-name", "x"), ST_INVAL);
    config_free(&config);
    assert_int_equal(READ(&config, NULL, "m", "--help"), ST_CANCELED);
    config_free(&config);
}

/* What option_write prints, option_set takes back: for every row but secrets. */
static void test_config_write_and_read_back(void **state)
{
    (void)state;
    struct config config, copy;
    assert_int_equal(READ(&config, NULL, "m", "--api-key", "hidden", "--host", "::", "--drain-delay", "1.5"), ST_OK);
    memset(&copy, 0, sizeof copy);
    struct buf first, second;
    buf_init(&first, 0);
    buf_init(&second, 0);
    for (size_t i = 0; i < option_count; i++) {
        const struct option *option = &option_table[i];
        buf_clear(&first);
        buf_clear(&second);
        option_write(&config, option, &first);
        buf_append_char(&first, 0);
        assert_null(strstr(first.data, "hidden"));
        if (option->secret || option->kind == OPTION_LIST || first.length == 1) continue;
        if (option->floor > 0 && !strcmp(first.data, "0")) continue; /* generate's, not set here */
        assert_int_equal(option_set(&copy, option, option->name, first.data, &err), ST_OK);
        option_write(&copy, option, &second);
        buf_append_char(&second, 0);
        assert_string_equal(first.data, second.data);
    }
    buf_free(&first);
    buf_free(&second);
    config_free(&config);
    config_free(&copy);
}

static void test_config_yaml_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "port: {a: 1}\n", "- port\n", "port: &x 1\nhost: *x\n", "port: 1\n---\nport: 2\n", "port: [1, [2]]\n",
        "no-such: 1\n",   "\"port\n", "port: 1\n\tport: 2\n",   "config: other.yaml\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[] = "/tmp/millrace-config-XXXXXX", file[64];
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, bad[i], strlen(bad[i])), strlen(bad[i]));
        close(fd);
        snprintf(file, sizeof file, "--config=%s", path);
        struct config config;
        enum status status = READ(&config, NULL, "m", file);
        if (status == ST_OK || !err.message[0]) fail_msg("taken: %s", bad[i]);
        config_free(&config);
        unlink(path);
    }
}

static void test_config_help_names_everything(void **state)
{
    (void)state;
    struct buf help;
    buf_init(&help, 0);
    config_help(COMMAND_SERVE, &help);
    buf_append_char(&help, 0);
    for (size_t i = 0; i < option_count; i++)
        if ((option_table[i].commands & COMMAND_SERVE) && !strstr(help.data, option_table[i].name))
            fail_msg("--help does not tell of %s", option_table[i].name);
    buf_free(&help);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_defaults),     cmocka_unit_test(test_config_order_of_strength),
        cmocka_unit_test(test_config_forms),        cmocka_unit_test(test_config_several_models),
        cmocka_unit_test(test_config_refuses),      cmocka_unit_test(test_config_write_and_read_back),
        cmocka_unit_test(test_config_yaml_refuses), cmocka_unit_test(test_config_help_names_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
