/* The two sides of a relayed call as bytes: what goes to the upstream, and what of its answer the client gets; garbage
 * in every place. */
#include "tests/unit/unit.h"

#include "runtime/base/json.h"
#include "runtime/base/limits.h"
#include "server/upstream/relay_answer.h"
#include "server/upstream/relay_ask.h"

#include <stdlib.h>

static struct upstream upstream = {.name = (char[]){"far"}, .url = (char[]){"http://h/v1"}};
static struct upstream_model model = {
    .name = (char[]){"org/x"}, .as = (char[]){"x\"1"}, .upstream = &upstream, .context_max = 0, .output_max = 100};

static bool ask(enum api_kind kind, const char *body, struct relay_ask *out, struct api_error *error)
{
    *error = (struct api_error){.http_status = 0};
    return relay_ask_read(out, &model, kind, body, strlen(body), error);
}

static void test_relay_ask_changes_what_it_must(void **state)
{
    (void)state;
    struct relay_ask got;
    struct api_error error;
    assert_true(ask(API_CHAT,
                    "{\"model\":\"org/x\",\"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9\"}],\"stream\":true,"
                    "\"max_completion_tokens\":50,\"max_tokens\":9,\"n\":3,\"seed\":9223372036854775807,"
                    "\"temperature\":0.25,\"unknown\":{\"a\":[null,true]}}",
                    &got, &error));
    assert_true(got.stream);
    assert_false(got.include_usage);
    assert_int_equal(got.choices, 3);
    assert_int_equal(got.max_tokens, 50);
    relay_ask_lower(&got, 7);
    relay_ask_lower(&got, 8);
    assert_int_equal(got.max_tokens, 7);
    buf_append_char(&got.body, '\0');
    assert_string_equal(got.body.data,
                        "{\"model\":\"x\\\"1\",\"max_completion_tokens\":         7,\"stream_options\":"
                        "{\"include_usage\":true},\"messages\":[{\"role\":\"user\",\"content\":\"h\xc3\xa9\"}],"
                        "\"stream\":true,\"n\":3,\"seed\":9223372036854775807,\"temperature\":0.25,"
                        "\"unknown\":{\"a\":[null,true]}}");
    relay_ask_free(&got);
    upstream.continuous = true;
    assert_true(ask(API_COMPLETIONS,
                    "{\"model\":\"m\",\"prompt\":[\"a\",\"b\"],\"n\":2,\"stream\":true,"
                    "\"stream_options\":{\"include_usage\":true,\"x\":1}}",
                    &got, &error));
    upstream.continuous = false;
    assert_true(got.include_usage);
    assert_int_equal(got.choices, 4);
    assert_int_equal(got.max_tokens, 100);
    buf_append_char(&got.body, '\0');
    assert_non_null(strstr(got.body.data, "\"max_tokens\":       100,\"stream_options\":{\"include_usage\":true,"
                                          "\"continuous_usage_stats\":true},\"prompt\":[\"a\",\"b\"]"));
    relay_ask_free(&got);
    model.context_max = 40;
    assert_true(ask(API_COMPLETIONS, "{\"prompt\":[1,2,3]}", &got, &error));
    model.context_max = 0;
    assert_int_equal(got.choices, 1);
    assert_int_equal(got.prompt_max, 40);
    buf_append_char(&got.body, '\0');
    assert_null(strstr(got.body.data, "stream_options"));
    relay_ask_free(&got);
}

static void test_relay_ask_refusals(void **state)
{
    (void)state;
    const struct {
        enum api_kind kind;
        const char *body, *param;
    } bad[] = {
        {API_CHAT, "", ""},
        {API_CHAT, "[]", ""},
        {API_CHAT, "{\"messages\":[],\"messages\":[]}", ""},
        {API_CHAT, "{}", "messages"},
        {API_COMPLETIONS, "{}", "prompt"},
        {API_CHAT, "{\"messages\":[],\"n\":0}", "n"},
        {API_CHAT, "{\"messages\":[],\"n\":1000000}", "n"},
        {API_CHAT, "{\"messages\":[],\"max_tokens\":0}", "max_tokens"},
        {API_CHAT, "{\"messages\":[],\"max_tokens\":101}", "max_tokens"},
        {API_CHAT, "{\"messages\":[],\"max_completion_tokens\":9223372036854775807}", "max_completion_tokens"},
        {API_CHAT, "{\"messages\":[],\"max_tokens\":\"5\"}", "max_tokens"},
        {API_CHAT, "{\"messages\":[],\"stream\":1}", "stream"},
        {API_CHAT, "{\"messages\":[],\"stream_options\":{\"include_usage\":true}}", "stream_options"},
        {API_CHAT, "{\"messages\":[],\"stream\":true,\"stream_options\":7}", "stream_options"},
        {API_CHAT, "{\"messages\":[],\"stream\":true,\"stream_options\":{\"include_usage\":7}}", "include_usage"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct relay_ask got;
        struct api_error error;
        if (ask(bad[i].kind, bad[i].body, &got, &error)) fail_msg("was read: %s", bad[i].body);
        assert_int_equal(error.http_status, 400);
        assert_string_equal(error.param, bad[i].param);
        relay_ask_free(&got);
    }
    struct relay_ask got;
    struct api_error error;
    char *many = test_malloc(2 * 5000 + 32), *at = many;
    at += sprintf(at, "{\"prompt\":[");
    for (int i = 0; i < 300; i++) at += sprintf(at, "%s\"a\"", i ? "," : "");
    sprintf(at, "]}");
    assert_false(ask(API_COMPLETIONS, many, &got, &error));
    assert_string_equal(error.param, "prompt");
    relay_ask_free(&got);
    test_free(many);
}

/* ---- answers ---- */

static void begin(struct relay_answer *answer, bool stream)
{
    relay_answer_init(answer);
    answer->id = "chatcmpl-1";
    answer->model = "org/x";
    answer->kind = API_CHAT;
    answer->stream = stream;
    answer->created_unix_s = 9;
}

static enum answer_verdict feed(struct relay_answer *answer, const char *text, size_t step)
{
    size_t length = strlen(text);
    for (size_t at = 0; at < length; at += step) {
        enum answer_verdict verdict = relay_answer_feed(answer, text + at, at + step < length ? step : length - at);
        if (verdict != ANSWER_FINE) return verdict;
    }
    return relay_answer_end(answer);
}

static const char good_stream[] =
    ": hello\r\nevent: x\r\ndata: {\"id\":\"far-1\",\"object\":\"chat.completion.chunk\",\"model\":\"x1\","
    "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],"
    "\"usage\":null}\r\n\r\n"
    "data:{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}],\"model\":\"x1\",\"id\":\"far-1\"}\n\n"
    "data: {\"choices\":[{\"index\":0,\ndata: \"delta\":{\"reasoning_content\":\"b\"}},"
    "{\"index\":1,\"delta\":{\"content\":\"\xc3\xa9\"}}]}\n\n"
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"},"
    "{\"index\":1,\"delta\":{},\"finish_reason\":\"stop\"}]}\r\r"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7,"
    "\"prompt_tokens_details\":{\"cached_tokens\":5},\"completion_tokens_details\":{\"reasoning_tokens\":3}}}\n\n"
    "data: [DONE]\n\ndata: garbage behind the end\n\n";

static void test_relay_answer_stream_cut_anywhere(void **state)
{
    (void)state;
    for (size_t step = 1; step < sizeof good_stream; step++) {
        struct relay_answer answer;
        begin(&answer, true);
        answer.include_usage = step & 1;
        assert_int_equal(feed(&answer, good_stream, step), ANSWER_FINE);
        assert_int_equal(answer.deltas, 3);
        assert_int_equal(answer.finished, 2);
        assert_true(answer.has_length_end);
        assert_int_equal(answer.counts.in_total, 11);
        assert_int_equal(answer.counts.in_hit, 5);
        assert_int_equal(answer.counts.out, 7);
        assert_int_equal(answer.counts.out_reasoning, 3);
        relay_answer_close_text(&answer, &(struct usage){.in_total = 11, .in_hit = 5, .out = 7, .out_reasoning = 3},
                                &answer.text);
        buf_append_char(&answer.text, '\0');
        const char *text = answer.text.data;
        assert_null(strstr(text, "far-1"));
        assert_null(strstr(text, "x1"));
        assert_non_null(strstr(text,
                               "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"org/x\","
                               "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\""));
        assert_int_equal(strstr(text, "\"usage\"") != NULL, step & 1);
        if (step & 1)
            assert_non_null(strstr(text, ",\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"total_tokens\":18,"
                                         "\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":5},"));
        assert_string_equal(text + strlen(text) - 14, "data: [DONE]\n\n");
        relay_answer_free(&answer);
    }
}

static void test_relay_answer_body(void **state)
{
    (void)state;
    struct relay_answer answer;
    begin(&answer, false);
    assert_int_equal(feed(&answer,
                          "{\"id\":\"f\",\"model\":\"x1\",\"choices\":[{\"message\":{\"content\":\"a\"},"
                          "\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}",
                          5),
                     ANSWER_FINE);
    relay_answer_close_text(&answer, &(struct usage){.in_total = 1, .out = 2}, &answer.text);
    buf_append_char(&answer.text, '\0');
    assert_string_equal(answer.text.data,
                        "{\"id\":\"chatcmpl-1\",\"model\":\"org/x\",\"choices\":[{\"message\":{\"content\":\"a\"},"
                        "\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":1,\"total_tokens\":3,"
                        "\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":0},"
                        "\"completion_tokens_details\":{\"reasoning_tokens\":0}}}");
    assert_true(answer.has_length_end);
    relay_answer_free(&answer);
}

#define CHOICE "\"choices\":[{\"delta\":{\"content\":\"a\"}}]"

static void test_relay_answer_garbage(void **state)
{
    (void)state;
    const struct {
        bool stream;
        const char *text;
        enum answer_verdict verdict;
    } bad[] = {
        {true, "", ANSWER_CUT},
        {true, "data: {" CHOICE "}\n\n", ANSWER_CUT},
        {true, "data: {" CHOICE "}\n\ndata: [DONE]", ANSWER_CUT},
        {true, "data: {" CHOICE "}\n\ndata: [DONE]\n\n", ANSWER_NO_USAGE},
        {true, "<html>hello</html>\n\n", ANSWER_CUT},
        {true, "data: hello\n\n", ANSWER_GARBAGE},
        {true, "data: []\n\n", ANSWER_GARBAGE},
        {true, "data: {}\n\n", ANSWER_GARBAGE},
        {true, "data: {\"choices\":{}}\n\n", ANSWER_GARBAGE},
        {true, "data: {\"choices\":[1]}\n\n", ANSWER_GARBAGE},
        {true, "data: {\"error\":{\"message\":\"m\"}}\n\n", ANSWER_ERROR},
        {true, "data: {\"choices\":[],\"usage\":{}}\n\n", ANSWER_GARBAGE},
        {true, "data: {\"choices\":[],\"usage\":7}\n\n", ANSWER_GARBAGE},
        {true, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":-1}}\n\n", ANSWER_GARBAGE},
        {true, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9000001}}\n\n", ANSWER_GARBAGE},
        {true, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9000000,\"completion_tokens\":1}}\n\n",
         ANSWER_GARBAGE},
        {true, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1.5}}\n\n", ANSWER_GARBAGE},
        {true, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":\"2\"}}\n\n",
         ANSWER_GARBAGE},
        {true,
         "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"prompt_tokens_details\":{\"cached_tokens\":2}}}\n\n",
         ANSWER_GARBAGE},
        {true, "data: {" CHOICE ",\"x\":1e999}\n\n", ANSWER_GARBAGE},
        {true, "data: {" CHOICE ",\"x\":\"\xff\"}\n\n", ANSWER_GARBAGE},
        {false, "", ANSWER_GARBAGE},
        {false, "<html>", ANSWER_GARBAGE},
        {false, "{\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}", ANSWER_GARBAGE},
        {false, "{" CHOICE "}", ANSWER_NO_USAGE},
        {false, "{" CHOICE ",\"usage\":null}", ANSWER_NO_USAGE},
        {false, "{\"error\":\"x\"}", ANSWER_ERROR},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (size_t step = 1; step < 64; step += 21) {
            struct relay_answer answer;
            begin(&answer, bad[i].stream);
            enum answer_verdict verdict = feed(&answer, bad[i].text, step);
            if (verdict != bad[i].verdict) fail_msg("%s: verdict %d, not %d", bad[i].text, verdict, bad[i].verdict);
            relay_answer_free(&answer);
        }
}

static void test_relay_answer_is_bounded(void **state)
{
    (void)state;
    struct relay_answer answer;
    char block[4096];
    memset(block, 'a', sizeof block);
    begin(&answer, true); /* a line without end */
    enum answer_verdict verdict = ANSWER_FINE;
    uint64_t fed = 0;
    for (; verdict == ANSWER_FINE; fed += sizeof block) verdict = relay_answer_feed(&answer, block, sizeof block);
    assert_int_equal(verdict, ANSWER_TOO_LONG);
    assert_true(fed <= limits.upstream_event_bytes + 2 * sizeof block);
    relay_answer_free(&answer);
    begin(&answer, true); /* an event without end */
    for (verdict = ANSWER_FINE, fed = 0; verdict == ANSWER_FINE; fed += 10)
        verdict = relay_answer_feed(&answer, "data: abc\n", 10);
    assert_int_equal(verdict, ANSWER_TOO_LONG);
    assert_true(fed <= 3 * limits.upstream_event_bytes);
    relay_answer_free(&answer);
    begin(&answer, false);
    for (verdict = ANSWER_FINE, fed = 0; verdict == ANSWER_FINE; fed += sizeof block)
        verdict = relay_answer_feed(&answer, block, sizeof block);
    assert_int_equal(verdict, ANSWER_TOO_LONG);
    assert_true(fed <= limits.upstream_answer_bytes + 2 * sizeof block);
    relay_answer_free(&answer);
}

/* Bytes of a good stream changed at random: any verdict, no fault (sanitizers look on). */
static void test_relay_answer_mutations(void **state)
{
    (void)state;
    uint64_t seed = 7;
    char text[sizeof good_stream];
    for (int round = 0; round < 3000; round++) {
        struct relay_answer answer;
        memcpy(text, good_stream, sizeof text);
        for (int i = 0; i < 4; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            text[(seed >> 33) % (sizeof text - 1)] = (char)(1 + (seed >> 20) % 255);
        }
        begin(&answer, true);
        (void)feed(&answer, text, 1 + (seed >> 40) % 97);
        assert_true(answer.deltas <= 8);
        relay_answer_free(&answer);
    }
}

static void test_relay_error_messages(void **state)
{
    (void)state;
    const struct {
        const char *body, *message;
    } cases[] = {{"{\"error\":{\"message\":\"too much\"}}", "too much"},
                 {"{\"error\":\"plain\"}", "plain"},
                 {"{\"error\":{\"message\":7}}", ""},
                 {"{\"detail\":[]}", ""},
                 {"<html>", ""},
                 {"", ""},
                 {"{\"error\":{\"message\":\"0123456789abcdefgh\"}}", "0123456789abcde"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[16];
        relay_error_message(cases[i].body, strlen(cases[i].body), out, sizeof out);
        assert_string_equal(out, cases[i].message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_relay_ask_changes_what_it_must),
        cmocka_unit_test(test_relay_ask_refusals),
        cmocka_unit_test(test_relay_answer_stream_cut_anywhere),
        cmocka_unit_test(test_relay_answer_body),
        cmocka_unit_test(test_relay_answer_garbage),
        cmocka_unit_test(test_relay_answer_is_bounded),
        cmocka_unit_test(test_relay_answer_mutations),
        cmocka_unit_test(test_relay_error_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
