/* Models, tokenize, detokenize, errors; and every allocation of a whole request failing once. */
#include "tests/unit/unit.h"

#include "tests/unit/server/api_fixture.h"

static struct fixture fixture;

static int set_up(void **state)
{
    (void)state;
    fixture_init(&fixture);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fixture_free(&fixture);
    return 0;
}

typedef int (*answer_fn)(struct api_models *models, const char *body, size_t length, struct buf *out);

static void assert_answer(answer_fn answer, const char *body, int status, const char *expected)
{
    struct buf out;
    buf_init(&out, 0);
    assert_int_equal(answer(&fixture.models, body, strlen(body), &out), status);
    buf_append_char(&out, '\0');
    if (expected) assert_string_equal(out.data, expected);
    if (status != 200) assert_memory_equal(out.data, "{\"error\":{\"message\":", 20);
    buf_free(&out);
}

static void test_misc_tokenize(void **state)
{
    (void)state;
    assert_answer(api_tokenize, "{\"prompt\":\"hello wo\"}", 200,
                  "{\"count\":2,\"max_model_len\":512,\"tokens\":[259,261],\"token_strs\":null}");
    assert_answer(api_tokenize, "{\"prompt\":\"hello\\n\",\"return_token_strs\":true}", 200,
                  "{\"count\":2,\"max_model_len\":512,\"tokens\":[259,10],\"token_strs\":[\"hello\",\"\\n\"]}");
    assert_answer(api_tokenize, "{\"prompt\":\"\"}", 200,
                  "{\"count\":0,\"max_model_len\":512,\"tokens\":[],\"token_strs\":null}");
    assert_answer(
        api_tokenize, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"add_generation_prompt\":false}", 200,
        "{\"count\":9,\"max_model_len\":512,\"tokens\":[263,117,115,101,114,10,97,264,10],\"token_strs\":null}");
    assert_answer(api_tokenize, "{}", 400, NULL);
    assert_answer(api_tokenize, "{\"prompt\":5}", 400, NULL);
    assert_answer(api_tokenize, "{\"prompt\":\"a\",\"model\":\"x\"}", 404, NULL);
    assert_answer(api_tokenize, "{\"prompt\":\"a\",\"return_token_strs\":1}", 400, NULL);
    assert_answer(api_tokenize, "nonsense", 400, NULL);
}

static void test_misc_detokenize(void **state)
{
    (void)state;
    assert_answer(api_detokenize, "{\"tokens\":[259,261,264]}", 200, "{\"prompt\":\"hello wo<|im_end|>\"}");
    assert_answer(api_detokenize, "{\"tokens\":[]}", 200, "{\"prompt\":\"\"}");
    assert_answer(api_detokenize, "{\"tokens\":[195,169,195]}", 200, "{\"prompt\":\"\xc3\xa9\xef\xbf\xbd\"}");
    assert_answer(api_detokenize, "{\"tokens\":[267]}", 400, NULL);
    assert_answer(api_detokenize, "{\"tokens\":[-1]}", 400, NULL);
    assert_answer(api_detokenize, "{\"tokens\":[1.5]}", 400, NULL);
    assert_answer(api_detokenize, "{\"tokens\":\"a\"}", 400, NULL);
    assert_answer(api_detokenize, "{}", 400, NULL);
}

static void test_misc_models(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, 0);
    assert_int_equal(api_models(&fixture.models, "alias", &out), 200);
    buf_append_char(&out, '\0');
    assert_string_equal(out.data,
                        "{\"id\":\"alias\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"millrace\","
                        "\"root\":\"api-test\",\"parent\":null,\"max_model_len\":512}");
    buf_clear(&out);
    assert_int_equal(api_models(&fixture.models, NULL, &out), 200);
    struct json *list;
    assert_int_equal(json_read(out.data, out.length, &list, NULL), ST_OK);
    assert_int_equal(json_length(json_member(list, "data")), 2);
    json_release(list);
    buf_clear(&out);
    assert_int_equal(api_models(&fixture.models, "gpt-4o", &out), 404);
    buf_free(&out);
}

static void test_misc_error_of_each_status(void **state)
{
    (void)state;
    static const struct {
        enum status status;
        int http;
        const char *code;
        bool retry;
    } rows[] = {{ST_LIMIT, 503, "overloaded", true},  {ST_QUOTA, 429, "rate_limit_exceeded", true},
                {ST_INVAL, 400, NULL, false},         {ST_TIMEOUT, 504, "deadline_exceeded", false},
                {ST_CANCELED, 503, "draining", true}, {ST_DEVICE, 500, "internal_error", false},
                {ST_NOMEM, 503, "overloaded", true},  {ST_AGAIN, 503, "overloaded", true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct api_error error;
        api_error_from_status(rows[i].status, 250, &error);
        assert_int_equal(error.http_status, rows[i].http);
        assert_int_equal(error.retry_after_ms, rows[i].retry ? 250 : 0);
        if (rows[i].code) assert_string_equal(error.code, rows[i].code);
    }
}

/* ---- torture ---- */

struct failing {
    uint64_t count, fail_at; /* the fail_at-th allocation fails, counted from 1; 0: none */
    bool from_then_on;
};

static bool allow(void *state, size_t size_bytes)
{
    struct failing *failing = state;
    (void)size_bytes;
    failing->count++;
    if (!failing->fail_at) return true;
    return failing->from_then_on ? failing->count < failing->fail_at : failing->count != failing->fail_at;
}

/* One request from body to answer. True when it got one; every failure must be a 503, or a buffer that says so. */
static bool scenario(enum api_kind kind, const char *body)
{
    struct api_call *call = NULL;
    struct api_error error = {0};
    uint32_t count;
    struct buf out;
    if (!api_call_create(kind, body, strlen(body), &fixture.context, &call, &error)) {
        assert_int_equal(error.http_status, 503);
        return false;
    }
    if (!api_call_prepare(call, &error)) {
        assert_int_equal(error.http_status, 503);
        api_call_destroy(call);
        return false;
    }
    struct request *requests = api_call_requests(call, &count);
    buf_init(&out, 0);
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t c = 0; c < requests[i].choices_count; c++) {
            engine_append(&fixture, &requests[i], c, (uint32_t[]){ID_HELLO, 0xc3, ID_SPACE_WO}, 3);
            engine_tell(call, &requests[i], c, 2, 6, FINISH_NONE);
            if (api_call_streams(call)) api_call_render(call, &out);
        }
        engine_done(call, &requests[i]);
    }
    api_call_finish(call, &out);
    bool good = buf_ok(&out);
    buf_free(&out);
    api_call_destroy(call);
    return good;
}

static void test_misc_every_allocation_fails(void **state)
{
    (void)state;
    static const struct {
        enum api_kind kind;
        const char *body;
    } rows[] = {
        {API_CHAT,
         "{\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"hello\"}]},"
         "{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}}]}],"
         "\"stop\":[\"zz\",\"y\"],\"logit_bias\":{\"5\":1},\"stop_token_ids\":[5],\"allowed_token_ids\":[1,2],"
         "\"logprobs\":true,\"top_logprobs\":2,\"n\":2,\"cache_salt\":\"s\",\"max_tokens\":9}"},
        {API_CHAT,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"stream\":true,\"return_token_ids\":true}"},
        {API_COMPLETIONS, "{\"prompt\":[\"hello\",\"b\"],\"echo\":true,\"logprobs\":2,\"n\":2}"},
        {API_COMPLETIONS, "{\"prompt\":[[5,6],[7]],\"stream\":true,\"echo\":true,\"logprobs\":1}"},
    };
    uint64_t points = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (uint32_t mode = 0; mode < 2; mode++) {
            for (uint64_t k = 1;; k++) {
                struct failing failing = {.fail_at = k, .from_then_on = mode};
                mem_hook_set(allow, &failing);
                bool good = scenario(rows[i].kind, rows[i].body);
                mem_hook_set(NULL, NULL);
                if (failing.count < k) { /* past the last allocation: it must have worked */
                    assert_true(good);
                    break;
                }
                assert_false(good);
                points++;
            }
        }
    }
    print_message("%d points of failure\n", (int)points);
}

static void test_misc_tokenize_allocations_fail(void **state)
{
    (void)state;
    static const char *const bodies[] = {"{\"prompt\":\"hello wo\",\"return_token_strs\":true}",
                                         "{\"messages\":[{\"role\":\"developer\",\"content\":\"a\"}]}",
                                         "{\"tokens\":[259,261,264]}"};
    for (size_t i = 0; i < 3; i++) {
        for (uint64_t k = 1;; k++) {
            struct failing failing = {.fail_at = k};
            struct buf out;
            buf_init(&out, 0);
            if (!buf_reserve(&out, 65536)) fail();
            mem_hook_set(allow, &failing);
            int status = (i < 2 ? api_tokenize : api_detokenize)(&fixture.models, bodies[i], strlen(bodies[i]), &out);
            mem_hook_set(NULL, NULL);
            assert_int_equal(status, failing.count < k ? 200 : 503);
            buf_free(&out);
            if (failing.count < k) break;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_misc_tokenize),
        cmocka_unit_test(test_misc_detokenize),
        cmocka_unit_test(test_misc_models),
        cmocka_unit_test(test_misc_error_of_each_status),
        cmocka_unit_test(test_misc_every_allocation_fails),
        cmocka_unit_test(test_misc_tokenize_allocations_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
