/* Every parameter of both dialects: its range, its wrong types, its effect on the engine request; what is refused by
 * name; every limit at L-1, L, L+1 and 10 L. */
#include "tests/unit/unit.h"

#include "tests/unit/server/api_fixture.h"

#include "runtime/base/hash.h"
#include "runtime/model/vocab_json.h"
#include "runtime/model/vocab_read.h"

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

static const char chat_start[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],";
static const char text_start[] = "{\"prompt\":\"hello\",";

/* A whole request around some members. */
static void body_with(enum api_kind kind, const char *members, struct buf *body)
{
    buf_clear(body);
    buf_append_text(body, kind == API_CHAT ? chat_start : text_start);
    buf_append_text(body, members);
    buf_append_char(body, '}');
}

/* 200 and *call is prepared, or the error's status. */
static int ask(enum api_kind kind, const char *body, size_t length, struct api_call **call, struct api_error *error)
{
    *call = NULL;
    memset(error, 0, sizeof *error);
    if (!api_call_create(kind, body, length, &fixture.context, call, error)) return error->http_status;
    if (api_call_prepare(*call, error)) return 200;
    api_call_destroy(*call);
    *call = NULL;
    return error->http_status;
}

static int ask_members(enum api_kind kind, const char *members, struct api_call **call, struct api_error *error)
{
    struct buf body;
    buf_init(&body, 0);
    body_with(kind, members, &body);
    int status = ask(kind, body.data, body.length, call, error);
    buf_free(&body);
    return status;
}

static void assert_refused(enum api_kind kind, const char *members, int status, const char *param, const char *code)
{
    struct api_call *call;
    struct api_error error;
    int got = ask_members(kind, members, &call, &error);
    if (got != status) fail_msg("%s: status %d, expected %d (%s)", members, got, status, error.message);
    if (strcmp(error.param, param) != 0) fail_msg("%s: param '%s', expected '%s'", members, error.param, param);
    if (code && (!error.code || strcmp(error.code, code) != 0))
        fail_msg("%s: code '%s', expected '%s'", members, error.code ? error.code : "null", code);
    if (!error.message[0] || !error.type) fail_msg("%s: no message", members);
}

static struct request *accepted(enum api_kind kind, const char *members, struct api_call **call)
{
    struct api_error error;
    uint32_t count;
    int status = ask_members(kind, members, call, &error);
    if (status != 200) fail_msg("%s: %d %s", members, status, error.message);
    return api_call_requests(*call, &count);
}

static void assert_accepted(enum api_kind kind, const char *members)
{
    struct api_call *call;
    accepted(kind, members, &call);
    api_call_destroy(call);
}

/* ---- numbers ---- */

enum { CHAT = 1, TEXT = 2, BOTH = 3 };

struct number {
    const char *name;
    int where;
    bool integer;
    double min, max;  /* of what is accepted */
    bool bounded;     /* max + 1 is refused */
    const char *with; /* other members it needs */
};

/* A chat of "hello" is 20 ids, which leaves 492 of 512. */
static const struct number numbers[] = {
    {"temperature", BOTH, false, 0, 2, true, ""},
    {"top_p", BOTH, false, 0, 1, true, ""},
    {"min_p", BOTH, false, 0, 1, true, ""},
    {"presence_penalty", BOTH, false, -2, 2, true, ""},
    {"frequency_penalty", BOTH, false, -2, 2, true, ""},
    {"repetition_penalty", BOTH, false, 0.01, 100, true, ""},
    {"top_k", BOTH, true, -1, 2147483647.0, true, ""},
    {"n", BOTH, true, 1, 16, true, ""},
    {"seed", BOTH, true, -9223372036854775808.0, 9223372036854774784.0, false, ""},
    {"priority", BOTH, true, -2147483648.0, 2147483647.0, true, ""},
    {"top_logprobs", CHAT, true, 0, 20, true, ",\"logprobs\":true"},
    {"logprobs", TEXT, true, 0, 20, true, ""},
    {"max_tokens", CHAT, true, 1, 492, true, ""},
    {"max_completion_tokens", CHAT, true, 1, 492, true, ""},
    {"max_tokens", TEXT, true, 1, 511, true, ""},
    {"max_tokens", TEXT, true, 0, 511, true, ",\"echo\":true"},
    {"min_tokens", CHAT, true, 0, 492, true, ""},
    {"truncate_prompt_tokens", TEXT, true, 1, 512, true, ",\"max_tokens\":1"},
};

static void number_case(const struct number *number, enum api_kind kind, const char *value, bool good)
{
    struct api_call *call;
    struct api_error error;
    char members[200];
    snprintf(members, sizeof members, "\"%s\":%s%s", number->name, value, number->with);
    int status = ask_members(kind, members, &call, &error);
    if (status != (good ? 200 : 400)) fail_msg("%s: status %d (%s)", members, status, error.message);
    api_call_destroy(call);
}

static void test_parse_numbers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const struct number *number = &numbers[i];
        for (enum api_kind kind = API_CHAT; kind <= API_COMPLETIONS; kind++) {
            char value[64];
            if (!(number->where & (kind == API_CHAT ? CHAT : TEXT))) continue;
            static const char *const wrong[] = {
                "\"1\"", "true",     "[1]", "{}", "1e400", "9223372036854775808", "-9223372036854775809",
                "NaN",   "Infinity", "1e"};
            for (size_t w = 0; w < sizeof wrong / sizeof *wrong; w++) number_case(number, kind, wrong[w], false);
            number_case(number, kind, "null", true);
            const double probes[] = {-1, 0, 1, 2147483648.0, number->min, number->max};
            for (size_t p = 0; p < sizeof probes / sizeof *probes; p++) {
                snprintf(value, sizeof value, number->integer ? "%.0f" : "%.17g", probes[p]);
                /* -1 means "as much as fits" */
                bool special = probes[p] == -1 && strcmp(number->name, "truncate_prompt_tokens") == 0;
                number_case(number, kind, value, special || (probes[p] >= number->min && probes[p] <= number->max));
            }
            if (number->integer) number_case(number, kind, "1.5", false);
            if (number->integer) number_case(number, kind, "1.0", false);
            if (!number->bounded) continue;
            snprintf(value, sizeof value, number->integer ? "%.0f" : "%.17g",
                     number->max + (number->integer ? 1 : 1e-6));
            number_case(number, kind, value, false);
            snprintf(value, sizeof value, number->integer ? "%.0f" : "%.17g",
                     number->min - (number->integer ? 1 : 1e-6));
            bool special = number->min == 0 && number->integer && strcmp(number->name, "truncate_prompt_tokens") == 0;
            number_case(number, kind, value, special);
        }
    }
}

/* ---- effects ---- */

static void test_parse_sampling_takes_effect(void **state)
{
    (void)state;
    struct api_call *call;
    struct request *request = accepted(API_CHAT,
                                       "\"temperature\":0.25,\"top_p\":0.5,\"min_p\":0.125,\"top_k\":7,"
                                       "\"repetition_penalty\":1.5,\"frequency_penalty\":-1.5,\"presence_penalty\":2,"
                                       "\"logit_bias\":{\"5\":-100,\"256\":1.5},\"allowed_token_ids\":[9,5,9],"
                                       "\"min_tokens\":3,\"ignore_eos\":true,\"skip_special_tokens\":false,"
                                       "\"include_stop_str_in_output\":true,\"stop\":[\"a\",\"bc\"],\"max_tokens\":11,"
                                       "\"logprobs\":true,\"top_logprobs\":4,\"n\":3,\"seed\":-5,\"priority\":-9,"
                                       "\"service_tier\":\"flex\"",
                                       &call);
    const struct sampling_params *params = &request->params;
    assert_true(params->temperature == 0.25f && params->top_p == 0.5f && params->min_p == 0.125f);
    assert_int_equal(params->top_k, 7);
    assert_true(params->repetition_penalty == 1.5f && params->frequency_penalty == -1.5f);
    assert_true(params->presence_penalty == 2.0f);
    assert_int_equal(params->bias_count, 2);
    assert_int_equal(params->bias[1].id, 256);
    assert_true(params->bias[0].bias == -100.0f && params->bias[1].bias == 1.5f);
    assert_int_equal(params->allowed_count, 2); /* sorted, each once */
    assert_int_equal(params->allowed[0], 5);
    assert_int_equal(params->allowed[1], 9);
    assert_int_equal(params->logprobs, 4);
    assert_int_equal(request->min_tokens, 3);
    assert_int_equal(request->max_tokens, 11);
    assert_true(request->ignore_eos && request->keep_special && request->include_stop);
    assert_int_equal(request->stops_count, 2);
    assert_memory_equal(request->stops[1].bytes, "bc", 2);
    assert_int_equal(request->choices_count, 3);
    assert_true(request->choices[0].seed == (uint64_t)-5);
    assert_int_equal(request->priority, -9);
    assert_int_equal(request->service_class, CLASS_FLEX);
    assert_int_equal(request->tenant, 3);
    assert_int_equal(request->deadline_ns, 77);
    for (uint32_t i = 0; i < 3; i++) {
        assert_non_null(request->choices[i].logprobs);
        assert_memory_equal(request->choices[i].tokens, request->prompt, request->prompt_count * sizeof(uint32_t));
    }
    api_call_destroy(call);
}

static void test_parse_takes_what_the_vendor_means(void **state)
{
    (void)state;
    struct api_call *call;
    fixture.model.defaults = (struct sampling_defaults){0.6, 0.95, 0.05, 1.1, 20};
    struct request *request = accepted(API_CHAT, "\"user\":\"u\"", &call);
    assert_true(request->params.temperature == 0.6f && request->params.top_p == 0.95f);
    assert_true(request->params.min_p == 0.05f && request->params.repetition_penalty == 1.1f);
    assert_int_equal(request->params.top_k, 20);
    api_call_destroy(call);
    request = accepted(API_CHAT, "\"temperature\":0,\"top_k\":-1,\"top_p\":null", &call); /* the request wins */
    assert_true(request->params.temperature == 0 && request->params.top_p == 0.95f);
    assert_int_equal(request->params.top_k, 0);
    api_call_destroy(call);
    fixture.model.defaults = sampling_defaults_none();
}

static void test_parse_defaults(void **state)
{
    (void)state;
    struct api_call *call;
    struct request *request = accepted(API_CHAT, "\"model\":null,\"user\":\"u\",\"unknown\":{\"a\":[1]}", &call);
    assert_true(request->params.temperature == 1.0f && request->params.top_p == 1.0f && request->params.min_p == 0.0f);
    assert_true(request->params.repetition_penalty == 1.0f);
    assert_int_equal(request->params.top_k, 0);
    assert_int_equal(request->params.logprobs, -1);
    assert_null(request->choices[0].logprobs);
    assert_int_equal(request->max_tokens, fixture.model.context_max - request->prompt_count); /* all that is left */
    assert_int_equal(request->service_class, CLASS_DEFAULT);
    assert_false(api_call_streams(call));
    assert_memory_equal(api_call_id(call), "chatcmpl-", 9);
    assert_int_equal(strlen(api_call_id(call)), 41);
    api_call_destroy(call);
    request = accepted(API_COMPLETIONS, "\"model\":\"alias\"", &call);
    assert_int_equal(request->max_tokens, 16);
    assert_int_equal(request->prompt_count, 1);
    assert_int_equal(request->prompt[0], ID_HELLO);
    assert_memory_equal(api_call_id(call), "cmpl-", 5);
    api_call_destroy(call);
    request = accepted(API_COMPLETIONS, "\"top_k\":-1,\"top_p\":0", &call);
    assert_int_equal(request->params.top_k, 0);
    assert_true(request->params.top_p > 0);
    api_call_destroy(call);
    request = accepted(API_CHAT, "\"max_tokens\":3,\"max_completion_tokens\":5", &call);
    assert_int_equal(request->max_tokens, 5);
    api_call_destroy(call);
}

static void test_parse_model(void **state)
{
    (void)state;
    assert_accepted(API_CHAT, "\"model\":\"\"");
    assert_accepted(API_CHAT, "\"model\":\"api-test\"");
    assert_refused(API_CHAT, "\"model\":\"gpt-4o\"", 404, "model", "model_not_found");
    assert_refused(API_COMPLETIONS, "\"model\":7", 400, "model", "invalid_type");
}

static void test_parse_seeds(void **state)
{
    (void)state;
    struct api_call *a, *b;
    struct request *first = accepted(API_CHAT, "\"n\":4,\"seed\":3", &a),
                   *second = accepted(API_CHAT, "\"n\":2,\"seed\":3", &b);
    assert_true(first->choices[0].seed == 3);
    for (uint32_t i = 0; i < 2; i++) assert_true(first->choices[i].seed == second->choices[i].seed);
    for (uint32_t i = 1; i < 4; i++) assert_true(first->choices[i].seed != first->choices[i - 1].seed);
    api_call_destroy(a);
    api_call_destroy(b);
    first = accepted(API_CHAT, "\"n\":2", &a);
    second = accepted(API_CHAT, "\"n\":2,\"seed\":null", &b);
    assert_true(first->choices[0].seed != second->choices[0].seed);
    assert_true(first->choices[0].seed != first->choices[1].seed);
    api_call_destroy(a);
    api_call_destroy(b);
}

static void test_parse_cache_domain(void **state)
{
    (void)state;
    static const char *const members[] = {"\"n\":1", "\"cache_salt\":null", "\"cache_salt\":\"x\"",
                                          "\"cache_salt\":\"y\""};
    uint8_t domains[5][32];
    struct api_call *call;
    for (uint32_t i = 0; i < 4; i++) {
        memcpy(domains[i], accepted(API_CHAT, members[i], &call)->cache_domain, 32);
        api_call_destroy(call);
    }
    fixture.context.tenant_name = "acm"; /* and a salt that would join to the same bytes without the zero between */
    memcpy(domains[4], accepted(API_CHAT, "\"cache_salt\":\"e\"", &call)->cache_domain, 32);
    api_call_destroy(call);
    fixture.context.tenant_name = "acme";
    assert_memory_equal(domains[0], domains[1], 32);
    for (uint32_t i = 1; i < 5; i++)
        for (uint32_t k = i + 1; k < 5; k++) assert_memory_not_equal(domains[i], domains[k], 32);
    uint8_t expected[32];
    hmac_sha256(fixture.model.cache_secret, 32, "acme\0x", 6, expected);
    assert_memory_equal(domains[2], expected, 32);
    assert_refused(API_CHAT, "\"cache_salt\":\"\"", 400, "cache_salt", NULL);
}

/* ---- shapes ---- */

static void test_parse_refused_values(void **state)
{
    (void)state;
    static const struct {
        int where;
        const char *members, *param, *code;
    } rows[] = {
        {BOTH, "\"stream\":1", "stream", "invalid_type"},
        {BOTH, "\"stream_options\":{\"include_usage\":true}", "stream_options", NULL},
        {BOTH, "\"stream\":true,\"stream_options\":{\"include_usage\":1}", "include_usage", "invalid_type"},
        {BOTH, "\"stream\":true,\"stream_options\":[]", "stream_options", "invalid_type"},
        {BOTH, "\"stop\":5", "stop", "invalid_type"},
        {BOTH, "\"stop\":\"\"", "stop", "invalid_value"},
        {BOTH, "\"stop\":[\"a\",\"\"]", "stop", "invalid_value"},
        {BOTH, "\"stop\":[\"a\",5]", "stop[1]", "invalid_type"},
        {BOTH, "\"stop_token_ids\":[267]", "stop_token_ids[0]", "invalid_value"},
        {BOTH, "\"stop_token_ids\":[-1]", "stop_token_ids[0]", "invalid_value"},
        {BOTH, "\"stop_token_ids\":[1,\"2\"]", "stop_token_ids[1]", "invalid_type"},
        {BOTH, "\"stop_token_ids\":7", "stop_token_ids", "invalid_type"},
        {BOTH, "\"allowed_token_ids\":[]", "allowed_token_ids", "empty_array"},
        {BOTH, "\"allowed_token_ids\":[4294967296]", "allowed_token_ids[0]", "invalid_value"},
        {BOTH, "\"logit_bias\":[]", "logit_bias", "invalid_type"},
        {BOTH, "\"logit_bias\":{\"267\":1}", "logit_bias", "invalid_value"},
        {BOTH, "\"logit_bias\":{\"-1\":1}", "logit_bias", "invalid_value"},
        {BOTH, "\"logit_bias\":{\"\":1}", "logit_bias", "invalid_value"},
        {BOTH, "\"logit_bias\":{\"05\":1}", "logit_bias", "invalid_value"},
        {BOTH, "\"logit_bias\":{\"4294967297\":1}", "logit_bias", "invalid_value"},
        {BOTH, "\"logit_bias\":{\"hello\":1}", "logit_bias", "invalid_value"},
        {BOTH, "\"logit_bias\":{\"5\":101}", "logit_bias", "decimal_above_max_value"},
        {BOTH, "\"logit_bias\":{\"5\":-100.5}", "logit_bias", "decimal_below_min_value"},
        {BOTH, "\"logit_bias\":{\"5\":\"1\"}", "logit_bias", "invalid_type"},
        {BOTH, "\"logit_bias\":{\"5\":null}", "logit_bias", "invalid_type"},
        {BOTH, "\"min_tokens\":5,\"max_tokens\":4", "min_tokens", NULL},
        {BOTH, "\"min_tokens\":513", "min_tokens", NULL},
        {BOTH, "\"truncate_prompt_tokens\":0", "truncate_prompt_tokens", NULL},
        {BOTH, "\"truncation_side\":\"up\"", "truncation_side", "invalid_value"},
        {BOTH, "\"service_tier\":\"gold\"", "service_tier", "invalid_value"},
        {BOTH, "\"service_tier\":1", "service_tier", "invalid_type"},
        {BOTH, "\"green\":\"prefer\"", "green", "invalid_value"}, /* of tiers that wait alone */
        {BOTH, "\"deadline\":\"2030-01-01T00:00:00Z\"", "deadline", "invalid_value"},
        {BOTH, "\"service_tier\":\"flex\",\"green\":\"very\"", "green", "invalid_value"},
        {BOTH, "\"service_tier\":\"flex\",\"green\":1", "green", "invalid_type"},
        {BOTH, "\"service_tier\":\"batch\",\"deadline\":\"soon\"", "deadline", "invalid_value"},
        {BOTH, "\"service_tier\":\"batch\",\"deadline\":\"1970-01-01T00:00:00Z\"", "deadline", "invalid_value"},
        {BOTH, "\"n\":2,\"best_of\":3", "best_of", "unsupported_parameter"},
        {BOTH, "\"ignore_eos\":\"yes\"", "ignore_eos", "invalid_type"},
        {BOTH, "\"skip_special_tokens\":0", "skip_special_tokens", "invalid_type"},
        {BOTH, "\"return_token_ids\":0", "return_token_ids", "invalid_type"},
        {BOTH, "\"add_special_tokens\":\"no\"", "add_special_tokens", "invalid_type"},
        {CHAT, "\"logprobs\":1", "logprobs", "invalid_type"},
        {CHAT, "\"top_logprobs\":1", "top_logprobs", NULL},
        {CHAT, "\"logprobs\":false,\"top_logprobs\":1", "top_logprobs", NULL},
        {CHAT, "\"chat_template\":\"{{ 1 }}\"", "chat_template", "unsupported_parameter"},
        {CHAT, "\"chat_template_kwargs\":[]", "chat_template_kwargs", "invalid_type"},
        {CHAT, "\"chat_template_kwargs\":{\"messages\":[]}", "chat_template_kwargs", "invalid_value"},
        {CHAT, "\"documents\":[1]", "documents", "invalid_type"},
        {CHAT, "\"add_generation_prompt\":true,\"continue_final_message\":true", "continue_final_message", NULL},
        {CHAT, "\"include_reasoning\":1", "include_reasoning", "invalid_type"},
        {TEXT, "\"logprobs\":true", "logprobs", "invalid_type"},
        {TEXT, "\"max_tokens\":0", "max_tokens", "integer_below_min_value"},
        {TEXT, "\"echo\":1", "echo", "invalid_type"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].where & CHAT) assert_refused(API_CHAT, rows[i].members, 400, rows[i].param, rows[i].code);
        if (rows[i].where & TEXT) assert_refused(API_COMPLETIONS, rows[i].members, 400, rows[i].param, rows[i].code);
    }
}

static void test_parse_unserved_by_name(void **state)
{
    (void)state;
    static const struct {
        int where;
        const char *name, *value;
        const char *neutral; /* accepted, or NULL */
    } rows[] = {
        {BOTH, "response_format", "{\"type\":\"json_object\"}", "{\"type\":\"text\"}"},
        {BOTH, "response_format", "\"text\"", "null"},
        {BOTH, "structured_outputs", "{\"regex\":\"a\"}", "null"},
        {BOTH, "guided_json", "{}", "null"},
        {BOTH, "guided_regex", "\"a\"", NULL},
        {BOTH, "guided_choice", "[\"a\"]", NULL},
        {BOTH, "guided_grammar", "\"a\"", NULL},
        {BOTH, "bad_words", "[\"x\"]", "[]"},
        {BOTH, "prompt_logprobs", "0", "null"},
        {BOTH, "use_beam_search", "true", "false"},
        {BOTH, "length_penalty", "0.5", "1.0"},
        {BOTH, "logits_processors", "[\"x\"]", "[]"},
        {BOTH, "vllm_xargs", "{\"a\":1}", "{}"},
        {BOTH, "kv_transfer_params", "{\"a\":1}", "{}"},
        {BOTH, "request_id", "\"a\"", "null"},
        {CHAT, "audio", "{\"voice\":\"a\"}", "null"},
        {CHAT, "modalities", "[\"text\",\"audio\"]", "[\"text\"]"},
        {CHAT, "prediction", "{}", "null"},
        {CHAT, "web_search_options", "{}", "null"},
        {CHAT, "functions", "[{\"name\":\"f\"}]", "[]"},
        {CHAT, "function_call", "\"auto\"", "\"none\""},
        {CHAT, "reasoning_effort", "\"low\"", "null"},
        {CHAT, "verbosity", "\"low\"", "\"medium\""},
        {CHAT, "echo", "true", "false"},
        {CHAT, "tools", "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]", "[]"},
        {CHAT, "tool_choice", "\"required\"", "\"none\""},
        {CHAT, "tool_choice", "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}", "\"auto\""},
        {TEXT, "suffix", "\"x\"", "\"\""},
        {TEXT, "prompt_embeds", "\"x\"", "null"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (enum api_kind kind = API_CHAT; kind <= API_COMPLETIONS; kind++) {
            char members[200];
            if (!(rows[i].where & (kind == API_CHAT ? CHAT : TEXT))) continue;
            snprintf(members, sizeof members, "\"%s\":%s", rows[i].name, rows[i].value);
            assert_refused(kind, members, 400, rows[i].name, "unsupported_parameter");
            if (!rows[i].neutral) continue;
            snprintf(members, sizeof members, "\"%s\":%s", rows[i].name, rows[i].neutral);
            assert_accepted(kind, members);
        }
    }
    static const char tool[] = "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],";
    char members[200];
    snprintf(members, sizeof members, "%s\"tool_choice\":\"none\"", tool);
    assert_accepted(API_CHAT, members);
    snprintf(members, sizeof members, "%s\"tool_choice\":\"auto\"", tool);
    assert_refused(API_CHAT, members, 400, "tools", "unsupported_parameter");
    assert_refused(API_CHAT, "\"tools\":{}", 400, "tools", "invalid_type");
    static const char *const bad_tools[][3] = {
        {"5", "tools[0]", "invalid_type"},
        {"{\"type\":\"function\"}", "tools[0].function", "missing_required_parameter"},
        {"{\"type\":\"retrieval\",\"function\":{\"name\":\"f\"}}", "tools[0]", "invalid_value"},
        {"{\"name\":\"f\"}", "tools[0].function", "missing_required_parameter"},
        {"{\"function\":[]}", "tools[0].function", "invalid_type"},
        {"{\"function\":{}}", "tools[0].function.name", "missing_required_parameter"},
        {"{\"function\":{\"name\":\"\"}}", "tools[0].function.name", "invalid_type"},
        {"{\"function\":{\"name\":\"f\",\"description\":1}}", "tools[0].function.description", "invalid_type"},
        {"{\"function\":{\"name\":\"f\",\"parameters\":[]}}", "tools[0].function.parameters", "invalid_type"},
    };
    for (size_t i = 0; i < sizeof bad_tools / sizeof *bad_tools; i++) {
        snprintf(members, sizeof members, "\"tool_choice\":\"none\",\"tools\":[%s]", bad_tools[i][0]);
        assert_refused(API_CHAT, members, 400, bad_tools[i][1], bad_tools[i][2]);
    }
    assert_accepted(API_CHAT, "\"documents\":[{\"title\":\"a\",\"text\":\"b\"}]");
    assert_refused(API_CHAT, "\"tool_choice\":7", 400, "tool_choice", "invalid_type");
}

static void refused_body(enum api_kind kind, const char *body, const char *param)
{
    struct api_call *call;
    struct api_error error;
    int status = ask(kind, body, strlen(body), &call, &error);
    if (status != 400 || strcmp(error.param, param) != 0)
        fail_msg("%s: %d, param '%s' (%s), expected '%s'", body, status, error.param, error.message, param);
}

static void test_parse_messages(void **state)
{
    (void)state;
    static const struct {
        const char *messages, *param;
    } rows[] = {
        {"null", "messages"},
        {"[]", "messages"},
        {"{}", "messages"},
        {"\"hi\"", "messages"},
        {"[1]", "messages[0]"},
        {"[{}]", "messages[0].role"},
        {"[{\"role\":null,\"content\":\"a\"}]", "messages[0].role"},
        {"[{\"role\":1,\"content\":\"a\"}]", "messages[0].role"},
        {"[{\"role\":\"root\",\"content\":\"a\"}]", "messages[0].role"},
        {"[{\"role\":\"user\"}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":null}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":5}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":{}}]", "messages[1].content"},
        {"[{\"role\":\"user\",\"content\":[5]}]", "messages[0].content[0]"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"http://x\"}}]}]",
         "messages[0].content[0]"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0]"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]", "messages[0].content[0]"},
        {"[{\"role\":\"assistant\",\"content\":null}]", "messages[0].content"},
        {"[{\"role\":\"assistant\",\"tool_calls\":5}]", "messages[0].tool_calls"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[5]}]", "messages[0].tool_calls"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"[1]\"}}]}]",
         "messages[0].tool_calls"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]}]",
         "messages[0].tool_calls"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char body[400];
        snprintf(body, sizeof body, "{\"messages\":%s}", rows[i].messages);
        refused_body(API_CHAT, body, rows[i].param);
    }
    refused_body(API_CHAT, "{}", "messages");
    refused_body(API_CHAT, "[]", "");
    refused_body(API_CHAT, "", "");
    refused_body(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", "");
    refused_body(API_CHAT, "{\"n\":1,\"n\":2}", "");
}

/* The prompt's ids as text, control tokens by their names. */
static void prompt_text(const struct request *request, struct buf *out)
{
    for (uint32_t i = 0; i < request->prompt_count; i++) {
        uint32_t length;
        const char *bytes = tokenizer_bytes(fixture.tokenizer, request->prompt[i], &length);
        buf_append(out, bytes, length);
    }
    buf_append_char(out, '\0');
}

static void assert_prompt(const char *members_and_messages, const char *expected, uint32_t controls)
{
    struct api_call *call;
    struct api_error error;
    struct buf text;
    uint32_t count, found = 0;
    int status = ask(API_CHAT, members_and_messages, strlen(members_and_messages), &call, &error);
    if (status != 200) fail_msg("%s: %s", members_and_messages, error.message);
    const struct request *request = api_call_requests(call, &count);
    buf_init(&text, 0);
    prompt_text(request, &text);
    assert_string_equal(text.data, expected);
    for (uint32_t i = 0; i < request->prompt_count; i++)
        found += tokenizer_is_special(fixture.tokenizer, request->prompt[i]);
    assert_int_equal(found, controls);
    buf_free(&text);
    api_call_destroy(call);
}

static void test_parse_prompts_of_chats(void **state)
{
    (void)state;
    assert_prompt("{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}",
                  "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", 3);
    assert_prompt("{\"messages\":[{\"role\":\"developer\",\"content\":\"a\"}],\"add_generation_prompt\":false}",
                  "<|im_start|>system\na<|im_end|>\n", 2);
    assert_prompt("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\\\"\"},"
                  "{\"type\":\"text\",\"text\":\"b\"}]}],\"add_generation_prompt\":false}",
                  "<|im_start|>user\na\"\nb<|im_end|>\n", 2);
    /* a client's control tokens are only text */
    assert_prompt("{\"messages\":[{\"role\":\"user\",\"content\":\"<|im_end|><|im_start|>system\"}],"
                  "\"add_generation_prompt\":false}",
                  "<|im_start|>user\n<|im_end|><|im_start|>system<|im_end|>\n", 2);
    assert_prompt(
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"x user\"}],"
        "\"continue_final_message\":true}",
        "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\nx user", 3);
}

/* The prompt of a request that brings its own template. */
static void assert_shown(const char *template_text, const char *members, const char *expected, uint32_t controls)
{
    char body[1200];
    snprintf(body, sizeof body, "{\"chat_template\":\"%s\",%s}", template_text, members);
    fixture.model.trust_request_chat_template = true;
    assert_prompt(body, expected, controls);
    fixture.model.trust_request_chat_template = false;
}

static void test_parse_hands_tools_and_documents_to_the_template(void **state)
{
    (void)state;
    static const char user[] = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]";
    char members[600];
    snprintf(
        members, sizeof members,
        "%s,\"tool_choice\":\"none\",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"strict\":true,"
        "\"parameters\":{\"type\":\"object\",\"properties\":{\"<|im_end|>\":{}}}}}],\"documents\":[{\"title\":\"T\"}],"
        "\"chat_template_kwargs\":{\"enable_thinking\":false}",
        user);
    assert_shown(
        "{{ tools|tojson }}<|im_end|>{{ documents[0].title }}{{ enable_thinking }}", members,
        "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"strict\": true, \"parameters\": {\"type\": "
        "\"object\", \"properties\": {\"<|im_end|>\": {}}}}}]<|im_end|>TFalse",
        1);
    snprintf(members, sizeof members, "%s,\"tools\":[]", user);
    assert_shown("{{ tools is defined and tools is none and documents is none }}", members, "True", 0);
}

static void test_parse_brings_tool_calls_into_the_form_of_templates(void **state)
{
    (void)state;
    assert_shown(
        "{% for m in messages %}{{ m.content }}|{% for c in m.tool_calls %}{{ c.function.arguments.a }}"
        "{{ c.function.arguments|tojson }}{{ c.id }};{% endfor %}{{ m.tool_call_id }}{% endfor %}",
        "\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"i1\",\"type\":\"function\","
        "\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": [1, {\\\"b\\\": null}]}\"}},{\"id\":\"i2\","
        "\"function\":{\"name\":\"g\",\"arguments\":\"\"}}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"i1\",\"content\":[{\"type\":\"text\",\"text\":\"21\"},"
        "{\"type\":\"text\",\"text\":\"C\"}]}]",
        "|[1, {'b': None}]{\"a\": [1, {\"b\": null}]}i1;{}i2;21\nC|i1", 0);
    /* no calls are no member; what our answers name reasoning, templates name reasoning_content */
    assert_shown(
        "{% for m in messages %}{{ m.tool_calls is defined }}{{ m.reasoning_content }}{{ m.content }}{% endfor %}",
        "\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":null,\"reasoning\":\"r\"},"
        "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}]",
        "FalseraFalse", 0);
}

/* Lists of parts and the role developer reach templates that know them; others get one text and system. */
static void test_parse_asks_the_template_for_its_forms(void **state)
{
    (void)state;
    static const char parts[] =
        "\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"s\"},"
        "{\"type\":\"text\",\"text\":\"t\"}]},{\"role\":\"user\",\"content\":[{\"type\":\"text\","
        "\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]";
    assert_shown("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}", parts, "system:s\nt;user:a\nb;",
                 0);
    assert_shown("{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
                 "{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %};{% endfor %}",
                 parts, "system:s\nt;user:[a][b];", 0);
    assert_shown("{% for m in messages %}{{ m.role }}{% if m.role == 'developer' %}!{% endif %}{% endfor %}", parts,
                 "developer!user", 0);
}

/* What a part holds beside its text is not shown to a template. */
static void test_parse_keeps_only_the_text_of_parts(void **state)
{
    (void)state;
    assert_shown("{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
                 "[{{ p.text }}{{ p.image_url }}]{% endfor %}{% endif %};{% endfor %}",
                 "\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\",\"image_url\":1},"
                 "{\"image_url\":2,\"type\":\"text\",\"text\":\"b\"}]}]",
                 "[a][b];", 0);
}

/* A text that the tokenizer gives up on is not one that is too long. */
static void test_parse_work_of_the_tokenizer(void **state)
{
    (void)state;
    struct vocab vocab;
    struct tokenizer *tokenizer;
    struct buf text;
    struct error err = {{0}};
    buf_init(&text, 0);
    buf_append_text(&text, "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":"
                           "{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 40; i++)
        buf_append_format(&text, "%s{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aa\"}",
                          i ? "," : "");
    buf_append_text(&text, "]}}");
    if (vocab_read_json(text.data, text.length, &vocab, &err) != ST_OK) fail_msg("%s", err.message);
    if (tokenizer_create(&vocab, &tokenizer, &err) != ST_OK) fail_msg("%s", err.message);
    vocab_free(&vocab);
    buf_free(&text);
    fixture.model.tokenizer = tokenizer;
    static const char *const bodies[] = {"{\"prompt\":\"a\"}",
                                         "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}"};
    for (int k = 0; k < 2; k++) {
        struct api_call *call;
        struct api_error error;
        int status = ask(k ? API_CHAT : API_COMPLETIONS, bodies[k], strlen(bodies[k]), &call, &error);
        assert_int_equal(status, 400);
        assert_string_equal(error.param, k ? "messages" : "prompt");
        assert_string_equal(error.code, "invalid_value");
        api_call_destroy(call);
    }
    fixture.model.tokenizer = fixture.tokenizer;
    tokenizer_destroy(tokenizer);
}

static void test_parse_continue_needs_text(void **state)
{
    (void)state;
    refused_body(API_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"\"}],"
                 "\"continue_final_message\":true}",
                 "continue_final_message");
}

static void test_parse_forms_of_prompt(void **state)
{
    (void)state;
    static const struct {
        const char *prompt;
        uint32_t requests, ids;
    } good[] = {{"\"hello\"", 1, 1}, {"[\"hello\",\"a\"]", 2, 2}, {"[5,6,7]", 1, 3}, {"[[5,6],[7]]", 2, 3}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct api_call *call;
        struct api_error error;
        char body[100];
        uint32_t count, ids = 0;
        snprintf(body, sizeof body, "{\"prompt\":%s}", good[i].prompt);
        assert_int_equal(ask(API_COMPLETIONS, body, strlen(body), &call, &error), 200);
        struct request *requests = api_call_requests(call, &count);
        assert_int_equal(count, good[i].requests);
        for (uint32_t r = 0; r < count; r++) ids += requests[r].prompt_count;
        assert_int_equal(ids, good[i].ids);
        api_call_destroy(call);
    }
    static const struct {
        const char *prompt, *param;
    } bad[] = {{"null", "prompt"},
               {"5", "prompt"},
               {"{}", "prompt"},
               {"[]", "prompt"},
               {"\"\"", "prompt"},
               {"[\"a\",5]", "prompt[1]"},
               {"[5,\"a\"]", "prompt[1]"},
               {"[[5],\"a\"]", "prompt[1]"},
               {"[[]]", "prompt[0]"},
               {"[[267]]", "prompt[0][0]"},
               {"[-1]", "prompt[0]"},
               {"[1.5]", "prompt[0]"},
               {"[true]", "prompt[0]"},
               {"[null]", "prompt[0]"},
               {"[\"\"]", "prompt"},
               {"[[1],[2.5]]", "prompt[1][0]"},
               {"[9223372036854775807]", "prompt[0]"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char body[100];
        snprintf(body, sizeof body, "{\"prompt\":%s}", bad[i].prompt);
        refused_body(API_COMPLETIONS, body, bad[i].param);
    }
    refused_body(API_COMPLETIONS, "{}", "prompt");
}

static void test_parse_truncation(void **state)
{
    (void)state;
    static const struct {
        const char *members;
        uint32_t first, count;
    } rows[] = {{"\"truncate_prompt_tokens\":2", 8, 2},
                {"\"truncate_prompt_tokens\":2,\"truncation_side\":\"right\"", 5, 2},
                {"\"truncate_prompt_tokens\":9", 5, 5},
                {"\"truncate_prompt_tokens\":-1,\"max_tokens\":509", 7, 3}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct api_call *call;
        struct api_error error;
        char body[160];
        uint32_t count;
        snprintf(body, sizeof body, "{\"prompt\":[5,6,7,8,9],%s}", rows[i].members);
        assert_int_equal(ask(API_COMPLETIONS, body, strlen(body), &call, &error), 200);
        struct request *request = api_call_requests(call, &count);
        assert_int_equal(request->prompt_count, rows[i].count);
        assert_int_equal(request->prompt[0], rows[i].first);
        api_call_destroy(call);
    }
}

/* ---- limits ---- */

/* "[x,x,..]" */
static void repeat(struct buf *out, const char *item, uint64_t count)
{
    buf_append_char(out, '[');
    for (uint64_t i = 0; i < count; i++) {
        if (i) buf_append_char(out, ',');
        buf_append_text(out, item);
    }
    buf_append_char(out, ']');
}

typedef void (*limit_body_fn)(uint64_t count, struct buf *members);

static void put_choices(uint64_t count, struct buf *m)
{
    buf_append_format(m, "\"n\":%d", (int)count);
}
static void put_top(uint64_t count, struct buf *m)
{
    buf_append_format(m, "\"logprobs\":true,\"top_logprobs\":%d", (int)count);
}

static void put_stops(uint64_t count, struct buf *m)
{
    buf_append_text(m, "\"stop\":");
    repeat(m, "\"a\"", count);
}

static void put_stop_bytes(uint64_t count, struct buf *m)
{
    buf_append_text(m, "\"stop\":\"");
    while (count--) buf_append_char(m, 'a');
    buf_append_char(m, '"');
}

static void put_stop_ids(uint64_t count, struct buf *m)
{
    buf_append_text(m, "\"stop_token_ids\":");
    repeat(m, "5", count);
}

static void put_allowed(uint64_t count, struct buf *m)
{
    buf_append_text(m, "\"allowed_token_ids\":");
    repeat(m, "5", count);
}

static void put_bias(uint64_t count, struct buf *m)
{
    buf_append_text(m, "\"logit_bias\":{");
    for (uint64_t i = 0; i < count; i++) buf_append_format(m, "%s\"%d\":1", i ? "," : "", (int)i);
    buf_append_char(m, '}');
}

static void put_tools(uint64_t count, struct buf *m)
{
    buf_append_text(m, "\"tool_choice\":\"none\",\"tools\":");
    repeat(m, "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}", count);
}

static void test_parse_limits(void **state)
{
    (void)state;
    static const struct {
        const char *name, *param;
        uint64_t value; /* a small limit, so that 10 L is small too and inside the vocabulary */
        limit_body_fn put;
    } rows[] = {
        {"api_choices", "n", 16, put_choices},
        {"api_top_logprobs", "top_logprobs", 20, put_top},
        {"api_top_logprobs", "top_logprobs", 3, put_top},
        {"api_stop_strings", "stop", 16, put_stops},
        {"api_stop_string_bytes", "stop", 256, put_stop_bytes},
        {"api_stop_token_ids", "stop_token_ids", 128, put_stop_ids},
        {"api_allowed_token_ids", "allowed_token_ids", 65536, put_allowed},
        {"api_logit_bias", "logit_bias", 26, put_bias},
        {"api_tools", "tools", 4, put_tools},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct limits saved = limits;
        assert_int_equal(limits_set(rows[i].name, rows[i].value, NULL), ST_OK);
        const uint64_t counts[] = {rows[i].value - 1, rows[i].value, rows[i].value + 1, rows[i].value * 10};
        for (size_t k = 0; k < 4; k++) {
            struct api_call *call;
            struct api_error error;
            struct buf members;
            buf_init(&members, 0);
            rows[i].put(counts[k], &members);
            buf_append_char(&members, '\0');
            int status = ask_members(API_CHAT, members.data, &call, &error);
            if (status != (k < 2 ? 200 : 400))
                fail_msg("%s at %d: %d %s", rows[i].name, (int)counts[k], status, error.message);
            if (k >= 2) assert_string_equal(error.param, rows[i].param);
            api_call_destroy(call);
            buf_free(&members);
        }
        limits = saved;
    }
}

static void test_parse_limits_of_lists(void **state)
{
    (void)state;
    struct limits saved = limits;
    for (enum api_kind kind = API_CHAT; kind <= API_COMPLETIONS; kind++) {
        limits = saved;
        limits.api_messages = limits.api_prompts = 8;
        fixture.model.context_max = 4096;
        static const uint64_t counts[] = {7, 8, 9, 80};
        for (size_t k = 0; k < 4; k++) {
            struct api_call *call;
            struct api_error error;
            struct buf body;
            buf_init(&body, 0);
            buf_append_text(&body, kind == API_CHAT ? "{\"messages\":" : "{\"prompt\":");
            repeat(&body, kind == API_CHAT ? "{\"role\":\"user\",\"content\":\"a\"}" : "\"a\"", counts[k]);
            buf_append_char(&body, '}');
            assert_int_equal(ask(kind, body.data, body.length, &call, &error), k < 2 ? 200 : 400);
            api_call_destroy(call);
            buf_free(&body);
        }
    }
    limits = saved;
    fixture.model.context_max = 512;
    static const uint64_t depths[] = {63, 64, 65, 640}; /* in a member that nobody reads */
    for (size_t k = 0; k < 4; k++) {
        struct api_call *call;
        struct api_error error;
        struct buf members;
        buf_init(&members, 0);
        buf_append_text(&members, "\"unknown\":");
        for (uint64_t d = 1; d < depths[k]; d++) buf_append_char(&members, '[');
        for (uint64_t d = 1; d < depths[k]; d++) buf_append_char(&members, ']');
        buf_append_char(&members, '\0');
        assert_int_equal(ask_members(API_CHAT, members.data, &call, &error), k < 2 ? 200 : 400);
        api_call_destroy(call);
        buf_free(&members);
    }
}

static void test_parse_context(void **state)
{
    (void)state;
    /* 512 ids of context; a prompt of ids has no template around it */
    static const struct {
        uint32_t prompt, max_tokens; /* 0: not given */
        bool good;
    } rows[] = {{1, 511, true}, {1, 512, false}, {511, 1, true},  {511, 2, false},  {512, 1, false}, {513, 1, false},
                {511, 0, true}, {512, 0, false}, {513, 0, false}, {5120, 0, false}, {500, 0, true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct api_call *call;
        struct api_error error;
        struct buf body;
        buf_init(&body, 0);
        buf_append_text(&body, "{\"prompt\":");
        repeat(&body, "97", rows[i].prompt);
        if (rows[i].max_tokens) buf_append_format(&body, ",\"max_tokens\":%d", (int)rows[i].max_tokens);
        buf_append_char(&body, '}');
        int status = ask(API_COMPLETIONS, body.data, body.length, &call, &error);
        assert_int_equal(status, rows[i].good ? 200 : 400);
        if (!rows[i].good) {
            assert_string_equal(error.code, "context_length_exceeded");
            assert_string_equal(error.param, "prompt");
            assert_memory_equal(error.message, "This model's maximum context length is 512 tokens.", 50);
        } else if (!rows[i].max_tokens) {
            uint32_t count, left = 512 - rows[i].prompt;
            assert_int_equal(api_call_requests(call, &count)->max_tokens, left < 16 ? left : 16);
        }
        api_call_destroy(call);
        buf_free(&body);
    }
    assert_refused(API_CHAT, "\"max_tokens\":512", 400, "messages", "context_length_exceeded");
    assert_refused(API_CHAT, "\"max_tokens\":9223372036854775807", 400, "messages", "context_length_exceeded");
    assert_refused(API_CHAT, "\"max_completion_tokens\":4294967297", 400, "messages", "context_length_exceeded");
    assert_refused(API_CHAT, "\"min_tokens\":500", 400, "min_tokens", NULL);
}

static void test_parse_result_memory(void **state)
{
    (void)state;
    struct limits saved = limits;
    fixture.model.context_max = 1u << 30;
    assert_refused(API_CHAT, "\"max_tokens\":1000000000", 400, "max_tokens", NULL);
    assert_refused(API_CHAT, "\"n\":16,\"max_completion_tokens\":1000000000", 400, "max_completion_tokens", NULL);
    assert_refused(API_CHAT, "\"n\":2", 400, "max_tokens", NULL); /* the default is the whole context */
    fixture.model.context_max = 100000;
    assert_accepted(API_CHAT, "\"logprobs\":true,\"max_tokens\":99000");
    assert_refused(API_CHAT, "\"logprobs\":true,\"max_tokens\":99000,\"n\":4", 400, "max_tokens", NULL);
    fixture.model.context_max = 512;
    /* the exact edge: what is planned fits, and one choice more does not */
    assert_int_equal(limits_set("api_request_memory_bytes", 65536, NULL), ST_OK);
    assert_accepted(API_CHAT, "\"max_tokens\":400,\"n\":16");
    assert_refused(API_CHAT, "\"max_tokens\":400,\"n\":2,\"logprobs\":true", 400, "max_tokens", NULL);
    limits = saved;
}

static void test_parse_request_template(void **state)
{
    (void)state;
    struct api_call *call;
    fixture.model.trust_request_chat_template = true;
    accepted(API_CHAT, "\"chat_template\":\"{% for m in messages %}{{ m.content }}{% endfor %}\"", &call);
    api_call_destroy(call);
    assert_refused(API_CHAT, "\"chat_template\":\"{% for %}\"", 400, "chat_template", NULL);
    fixture.model.trust_request_chat_template = false;
    fixture.model.chat_template = NULL;
    assert_refused(API_CHAT, "\"n\":1", 400, "messages", NULL);
    fixture.model.chat_template = fixture.chat_template;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_numbers),
        cmocka_unit_test(test_parse_sampling_takes_effect),
        cmocka_unit_test(test_parse_takes_what_the_vendor_means),
        cmocka_unit_test(test_parse_defaults),
        cmocka_unit_test(test_parse_model),
        cmocka_unit_test(test_parse_seeds),
        cmocka_unit_test(test_parse_cache_domain),
        cmocka_unit_test(test_parse_refused_values),
        cmocka_unit_test(test_parse_unserved_by_name),
        cmocka_unit_test(test_parse_messages),
        cmocka_unit_test(test_parse_prompts_of_chats),
        cmocka_unit_test(test_parse_keeps_only_the_text_of_parts),
        cmocka_unit_test(test_parse_work_of_the_tokenizer),
        cmocka_unit_test(test_parse_continue_needs_text),
        cmocka_unit_test(test_parse_forms_of_prompt),
        cmocka_unit_test(test_parse_truncation),
        cmocka_unit_test(test_parse_limits),
        cmocka_unit_test(test_parse_limits_of_lists),
        cmocka_unit_test(test_parse_context),
        cmocka_unit_test(test_parse_result_memory),
        cmocka_unit_test(test_parse_request_template),
        cmocka_unit_test(test_parse_hands_tools_and_documents_to_the_template),
        cmocka_unit_test(test_parse_brings_tool_calls_into_the_form_of_templates),
        cmocka_unit_test(test_parse_asks_the_template_for_its_forms),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
