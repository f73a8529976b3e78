/* generation_config.json as defaults of requests: what it says, what it leaves out, and what it may not say. */
#include "tests/unit/unit.h"

#include "tests/unit/runtime/tiny_folder.h"

#include "runtime/model/sampling_defaults.h"

static enum status read_text(const char *text, struct sampling_defaults *defaults, struct error *err)
{
    struct tiny_folder folder;
    tiny_folder_create(&folder);
    if (text) tiny_folder_write(&folder, "generation_config.json", text, strlen(text));
    enum status status = sampling_defaults_read(folder.path, defaults, err);
    tiny_folder_destroy(&folder);
    return status;
}

static void assert_none(const struct sampling_defaults *d)
{
    assert_true(d->temperature == 1 && d->top_p == 1 && d->min_p == 0 && d->repetition_penalty == 1 && d->top_k == 0);
}

static void test_sampling_defaults_reads_what_is_there(void **state)
{
    (void)state;
    struct sampling_defaults d;
    struct error err;
    assert_int_equal(read_text(NULL, &d, &err), ST_OK);
    assert_none(&d);
    assert_int_equal(read_text("{\"eos_token_id\": [1, 2], \"temperature\": null, \"top_k\": -1}", &d, &err), ST_OK);
    assert_none(&d);
    assert_int_equal(read_text("{\"do_sample\": true, \"temperature\": 0.6, \"top_k\": 20, \"top_p\": 0.95, "
                               "\"min_p\": 0.05, \"repetition_penalty\": 1.05}",
                               &d, &err),
                     ST_OK);
    assert_true(d.temperature == 0.6 && d.top_k == 20 && d.top_p == 0.95 && d.min_p == 0.05 &&
                d.repetition_penalty == 1.05);
}

static void test_sampling_defaults_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } rows[] = {
        {"[]", "generation_config.json"},
        {"{", "generation_config.json"},
        {"{\"temperature\": \"0.6\"}", "number"},
        {"{\"temperature\": -0.1}", "from 0 to 2"},
        {"{\"temperature\": 2.01}", "from 0 to 2"},
        {"{\"top_p\": 1.5}", "top_p"},
        {"{\"top_p\": [1]}", "top_p"},
        {"{\"min_p\": true}", "min_p"},
        {"{\"top_k\": 1.5}", "whole"},
        {"{\"top_k\": 1e300}", "top_k"},
        {"{\"top_k\": {}}", "top_k"},
        {"{\"repetition_penalty\": 0}", "repetition_penalty"},
        {"{\"temperature\": NaN}", "generation_config.json"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sampling_defaults d;
        struct error err = {""};
        enum status status = read_text(rows[i].text, &d, &err);
        if (status != ST_INVAL || !strstr(err.message, rows[i].part)) fail_msg("%s: %s", rows[i].text, err.message);
        assert_none(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sampling_defaults_reads_what_is_there),
                                       cmocka_unit_test(test_sampling_defaults_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
