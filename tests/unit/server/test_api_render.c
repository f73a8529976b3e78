/* Answers from prescribed outputs: order of a stream, every cutting of the same events, UTF-8 over tokens, stop
 * strings, reasoning, several choices, echo, log-probabilities. */
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

static struct api_call *call_of(enum api_kind kind, const char *body, struct request **requests, uint32_t *count)
{
    struct api_call *call;
    struct api_error error = {0};
    if (!api_call_create(kind, body, strlen(body), &fixture.context, &call, &error)) fail_msg("%s", error.message);
    if (!api_call_prepare(call, &error)) fail_msg("%s", error.message);
    *requests = api_call_requests(call, count);
    return call;
}

/* ---- reading answers ---- */

struct stream {
    struct json *chunks[512];
    uint32_t count;
    bool done;
};

static void stream_read(const struct buf *out, struct stream *stream)
{
    *stream = (struct stream){0};
    assert_true(buf_ok(out));
    for (size_t at = 0; at < out->length;) {
        const char *end = memmem(out->data + at, out->length - at, "\n\n", 2);
        assert_non_null(end);
        size_t length = (size_t)(end - out->data) - at;
        assert_false(stream->done);
        assert_memory_equal(out->data + at, "data: ", 6);
        if (length == 12 && memcmp(out->data + at + 6, "[DONE]", 6) == 0) {
            stream->done = true;
        } else {
            struct error err = {{0}};
            if (json_read(out->data + at + 6, length - 6, &stream->chunks[stream->count], &err) != ST_OK)
                fail_msg("%s: %.*s", err.message, (int)length, out->data + at);
            stream->count++;
        }
        at += length + 2;
    }
}

static void stream_release(struct stream *stream)
{
    for (uint32_t i = 0; i < stream->count; i++) json_release(stream->chunks[i]);
}

static const struct json *only_choice(const struct json *chunk)
{
    return json_at(json_member(chunk, "choices"), 0);
}

/* Appends the text under `key` of all chunks of a choice. */
static void join(const struct stream *stream, enum api_kind kind, int64_t idx, const char *key, struct buf *out)
{
    for (uint32_t i = 0; i < stream->count; i++) {
        const struct json *choice = only_choice(stream->chunks[i]);
        if (!choice || json_to_int(json_member(choice, "index")) != idx) continue;
        const struct json *holder = kind == API_CHAT ? json_member(choice, "delta") : choice;
        size_t length = 0;
        const char *text = json_to_text(json_member(holder, key), &length);
        if (text) buf_append(out, text, length);
    }
}

static void assert_text(const struct buf *buf, const char *expected)
{
    struct buf copy;
    buf_init(&copy, 0);
    buf_append(&copy, buf->data, buf->length);
    buf_append_char(&copy, '\0');
    assert_string_equal(copy.data, expected);
    buf_free(&copy);
}

static void assert_json_text(const struct json *value, const char *expected)
{
    const char *text = json_to_text(value, NULL);
    assert_non_null(text);
    assert_string_equal(text, expected);
}

static struct json *body_of(struct api_call *call)
{
    struct buf out;
    struct json *body = NULL;
    struct error err = {{0}};
    buf_init(&out, 0);
    api_call_finish(call, &out);
    assert_true(buf_ok(&out));
    if (json_read(out.data, out.length, &body, &err) != ST_OK)
        fail_msg("%s: %.*s", err.message, (int)out.length, out.data);
    buf_free(&out);
    return body;
}

/* ---- tests ---- */

static void test_chat_stream_order(void **state)
{
    (void)state;
    uint32_t count;
    struct request *request;
    struct stream stream;
    struct buf out;
    struct api_call *call = call_of(API_CHAT,
                                    "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"stream\":true,"
                                    "\"stream_options\":{\"include_usage\":true}}",
                                    &request, &count);
    buf_init(&out, 0);
    api_call_render(call, &out);
    assert_int_equal(out.length, 0); /* nothing before the first token, not even the role */
    struct event scheduled = {.kind = REQUEST_SCHEDULED, .request = request};
    api_call_event(call, &scheduled);
    api_call_render(call, &out);
    assert_int_equal(out.length, 0);
    engine_append(&fixture, request, 0, (uint32_t[]){ID_HELLO, ID_SPACE_WO, ID_IM_END}, 3);
    engine_tell(call, request, 0, 1, 5, FINISH_NONE);
    api_call_render(call, &out);
    engine_tell(call, request, 0, 2, 8, FINISH_NONE);
    engine_end(request, 0, FINISH_STOP, ID_IM_END, STOP_STRING_NONE);
    engine_tell(call, request, 0, 3, 8, FINISH_STOP);
    engine_done(call, request);
    api_call_finish(call, &out);
    stream_read(&out, &stream);
    assert_true(stream.done);
    assert_int_equal(stream.count, 5); /* role, "hello", " wo", finish, usage */
    const struct json *delta = json_member(only_choice(stream.chunks[0]), "delta");
    assert_json_text(json_member(delta, "role"), "assistant");
    assert_json_text(json_member(delta, "content"), "");
    assert_json_text(json_member(json_member(only_choice(stream.chunks[1]), "delta"), "content"), "hello");
    assert_json_text(json_member(json_member(only_choice(stream.chunks[2]), "delta"), "content"), " wo");
    assert_json_text(json_member(only_choice(stream.chunks[3]), "finish_reason"), "stop");
    assert_int_equal(json_kind(json_member(only_choice(stream.chunks[3]), "stop_reason")), JSON_KIND_NULL);
    for (uint32_t i = 0; i < 4; i++) {
        assert_non_null(json_member(stream.chunks[i], "usage"));
        assert_int_equal(json_kind(json_member(stream.chunks[i], "usage")), JSON_KIND_NULL);
    }
    assert_int_equal(json_length(json_member(stream.chunks[4], "choices")), 0);
    const struct json *usage = json_member(stream.chunks[4], "usage");
    assert_int_equal(json_to_int(json_member(usage, "prompt_tokens")), request->prompt_count);
    assert_int_equal(json_to_int(json_member(usage, "completion_tokens")), 3);
    assert_int_equal(json_to_int(json_member(usage, "total_tokens")), request->prompt_count + 3);
    assert_json_text(json_member(stream.chunks[0], "id"), api_call_id(call));
    assert_json_text(json_member(stream.chunks[0], "model"), "api-test");
    assert_json_text(json_member(stream.chunks[0], "object"), "chat.completion.chunk");
    stream_release(&stream);
    buf_free(&out);
    api_call_destroy(call);
}

/* The same output, its events cut after every subset of positions: one text. */
static void test_any_cut_joins_to_the_same_text(void **state)
{
    (void)state;
    /* "h" + an emoji in four byte tokens + a lone continuation byte + "hello" + a character cut off at the end */
    static const uint32_t ids[] = {'h', 0xf0, 0x9f, 0x98, 0x80, 0x80, ID_HELLO, 0xe2, 0x82};
    static const char expected[] = "h\xf0\x9f\x98\x80\xef\xbf\xbdhello\xef\xbf\xbd";
    enum { COUNT = sizeof ids / sizeof *ids };
    static const char *const bodies[] = {"{\"prompt\":\"hello\",\"stream\":true}",
                                         "{\"prompt\":\"hello\",\"stream\":true,\"logprobs\":2}"};
    for (uint32_t mask = 0; mask < 1u << COUNT; mask++) {
        uint32_t count, told_bytes = 0;
        struct request *request;
        struct stream stream;
        struct buf out, text;
        struct api_call *call = call_of(API_COMPLETIONS, bodies[mask & 1], &request, &count);
        buf_init(&out, 0);
        buf_init(&text, 0);
        engine_append(&fixture, request, 0, ids, COUNT);
        for (uint32_t i = 0; i < COUNT; i++) {
            told_bytes += text_length(&fixture, request, ids[i]);
            if (!(mask >> i & 1)) continue;
            engine_tell(call, request, 0, i + 1, told_bytes, FINISH_NONE);
            api_call_render(call, &out);
        }
        engine_done(call, request);
        api_call_finish(call, &out);
        stream_read(&out, &stream);
        join(&stream, API_COMPLETIONS, 0, "text", &text);
        assert_text(&text, expected);
        stream_release(&stream);
        buf_free(&text);
        buf_free(&out);
        api_call_destroy(call);
    }
}

/* The engine may also hold back bytes inside a token; every split of the text by bytes joins to the same. */
static void test_any_byte_cut_joins_to_the_same_text(void **state)
{
    (void)state;
    static const uint32_t ids[] = {ID_HELLO, 0xf0, 0x9f, 0x98, 0x80, ID_SPACE_WO, 'x', ID_IM_END};
    static const char expected[] = "hello\xf0\x9f\x98\x80 wox";
    enum { COUNT = sizeof ids / sizeof *ids, BYTES = sizeof expected - 1 };
    for (uint32_t mask = 0; mask < 1u << BYTES; mask++) {
        uint32_t count;
        struct request *request;
        struct buf out, text;
        struct stream stream;
        struct api_call *call =
            call_of(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"stream\":true,\"max_tokens\":9}",
                    &request, &count);
        buf_init(&out, 0);
        buf_init(&text, 0);
        engine_append(&fixture, request, 0, ids, COUNT);
        assert_int_equal(request->choices[0].text_bytes, BYTES);
        for (uint32_t bytes = 1; bytes <= BYTES; bytes++) {
            if (!(mask >> (bytes - 1) & 1)) continue;
            engine_tell(call, request, 0, COUNT, bytes, FINISH_NONE);
            api_call_render(call, &out);
        }
        engine_done(call, request);
        api_call_finish(call, &out);
        stream_read(&out, &stream);
        join(&stream, API_CHAT, 0, "content", &text);
        assert_text(&text, expected);
        stream_release(&stream);
        buf_free(&text);
        buf_free(&out);
        api_call_destroy(call);
    }
}

static void test_body_equals_stream_over_random_outputs(void **state)
{
    (void)state;
    uint64_t seed = 20260731;
    for (uint32_t round = 0; round < 400; round++) {
        uint32_t ids[40], length = 1 + (uint32_t)(random_next(&seed) % 40), count;
        for (uint32_t i = 0; i < length; i++)
            ids[i] = 1 + (uint32_t)(random_next(&seed) % (IDS_COUNT - 1)); /* our reader takes no NUL */
        bool keep = random_next(&seed) & 1, logprobs = random_next(&seed) & 1;
        char body[2][256];
        struct buf joined[2], out;
        struct stream stream;
        struct request *request;
        for (uint32_t i = 0; i < 2; i++)
            snprintf(body[i], sizeof body[i],
                     "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"max_tokens\":40,\"stream\":%s,"
                     "\"skip_special_tokens\":%s,\"logprobs\":%s}",
                     i ? "true" : "false", keep ? "false" : "true", logprobs ? "true" : "false");
        struct api_call *call = call_of(API_CHAT, body[0], &request, &count);
        engine_append(&fixture, request, 0, ids, length);
        uint32_t bytes_all = request->choices[0].text_bytes;
        uint32_t bytes =
            bytes_all ? (uint32_t)(random_next(&seed) % (bytes_all + 1)) : 0; /* a stop string cut the rest */
        request->choices[0].text_bytes = bytes;
        engine_done(call, request);
        struct json *whole = body_of(call);
        const struct json *choice = only_choice(whole), *message = json_member(choice, "message");
        if (logprobs) assert_int_equal(json_length(json_member(json_member(choice, "logprobs"), "content")), length);

        struct api_call *streamed = call_of(API_CHAT, body[1], &request, &count);
        engine_append(&fixture, request, 0, ids, length);
        buf_init(&out, 0);
        uint32_t told = 0, told_bytes = 0, shown = 0;
        while (told < length) {
            uint32_t step = 1 + (uint32_t)(random_next(&seed) % 3);
            for (; step && told < length; step--) told_bytes += text_length(&fixture, request, ids[told++]);
            uint32_t may = told_bytes < bytes ? told_bytes : bytes;
            uint32_t held = (uint32_t)(random_next(&seed) % 4); /* could become a stop string */
            if (may > held && may - held > shown) shown = may - held;
            engine_tell(streamed, request, 0, told, shown, FINISH_NONE);
            api_call_render(streamed, &out);
        }
        request->choices[0].text_bytes = bytes;
        engine_done(streamed, request);
        api_call_finish(streamed, &out);
        stream_read(&out, &stream);
        static const char *const keys[] = {"content", "reasoning"};
        for (uint32_t k = 0; k < 2; k++) {
            buf_init(&joined[k], 0);
            join(&stream, API_CHAT, 0, keys[k], &joined[k]);
            const char *text = json_to_text(json_member(message, keys[k]), NULL);
            assert_text(&joined[k], text ? text : "");
            assert_true(utf8_valid(joined[k].data, joined[k].length, NULL));
            buf_free(&joined[k]);
        }
        uint32_t scored = 0;
        for (uint32_t i = 0; i < stream.count; i++)
            scored +=
                (uint32_t)json_length(json_member(json_member(only_choice(stream.chunks[i]), "logprobs"), "content"));
        assert_int_equal(scored, logprobs ? length : 0);
        stream_release(&stream);
        buf_free(&out);
        json_release(whole);
        api_call_destroy(streamed);
        api_call_destroy(call);
    }
}

static void test_stop_string_cuts_text(void **state)
{
    (void)state;
    uint32_t count;
    struct request *request;
    struct api_call *call =
        call_of(API_COMPLETIONS, "{\"prompt\":\"a\",\"stop\":[\"zz\",\"lo w\"],\"logprobs\":0}", &request, &count);
    assert_int_equal(request->stops_count, 2);
    engine_append(&fixture, request, 0, (uint32_t[]){ID_HELLO, ID_SPACE_WO}, 2);
    request->choices[0].text_bytes = 3; /* "hel" */
    engine_end(request, 0, FINISH_STOP, VOCAB_NO_ID, 1);
    engine_done(call, request);
    struct json *body = body_of(call);
    const struct json *choice = only_choice(body), *logprobs = json_member(choice, "logprobs");
    assert_json_text(json_member(choice, "text"), "hel");
    assert_json_text(json_member(choice, "finish_reason"), "stop");
    assert_json_text(json_member(choice, "stop_reason"), "lo w");
    assert_int_equal(json_length(json_member(logprobs, "tokens")), 2); /* as many as are counted */
    assert_int_equal(json_to_int(json_at(json_member(logprobs, "text_offset"), 1)), 3);
    json_release(body);
    api_call_destroy(call);
}

static void test_stop_token_id_is_told(void **state)
{
    (void)state;
    uint32_t count;
    struct request *request;
    struct api_call *call =
        call_of(API_CHAT,
                "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"stop_token_ids\":[259,259,3],"
                "\"return_token_ids\":true}",
                &request, &count);
    assert_int_equal(request->stop_ids_count, 2);
    engine_append(&fixture, request, 0, (uint32_t[]){'a', ID_HELLO}, 2);
    request->choices[0].text_bytes = 1;
    engine_end(request, 0, FINISH_STOP, ID_HELLO, STOP_STRING_NONE);
    engine_done(call, request);
    struct json *body = body_of(call);
    const struct json *choice = only_choice(body);
    assert_json_text(json_member(json_member(choice, "message"), "content"), "a");
    assert_int_equal(json_to_int(json_member(choice, "stop_reason")), ID_HELLO);
    assert_int_equal(json_length(json_member(choice, "token_ids")), 2);
    assert_int_equal(json_length(json_member(body, "prompt_token_ids")), request->prompt_count);
    json_release(body);
    api_call_destroy(call);
}

/* What ends for lack of units, or with its account, is a whole answer with finish_reason length. */
static void test_end_of_a_package_is_told(void **state)
{
    (void)state;
    const struct {
        enum finish finish;
        const char *why;
    } cases[] = {{FINISH_QUOTA, "quota_exhausted"}, {FINISH_ACCOUNT, "account_stopped"}};
    for (size_t i = 0; i < 4; i++) {
        uint32_t count;
        struct request *request;
        struct stream stream;
        struct buf out;
        bool streams = i >= 2;
        buf_init(&out, 0);
        struct api_call *call = call_of(API_CHAT,
                                        streams ? "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                                                  "\"stream\":true}"
                                                : "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}",
                                        &request, &count);
        engine_append(&fixture, request, 0, (uint32_t[]){ID_HELLO}, 1);
        engine_end(request, 0, cases[i % 2].finish, VOCAB_NO_ID, STOP_STRING_NONE);
        engine_done(call, request);
        struct json *body = NULL;
        const struct json *choice;
        if (streams) {
            api_call_finish(call, &out);
            stream_read(&out, &stream);
            assert_true(stream.done);
            choice = only_choice(stream.chunks[stream.count - 1]);
        } else {
            body = body_of(call);
            choice = only_choice(body);
            assert_json_text(json_member(json_member(choice, "message"), "content"), "hello");
        }
        assert_json_text(json_member(choice, "finish_reason"), "length");
        assert_json_text(json_member(choice, "stop_reason"), cases[i % 2].why);
        assert_json_text(json_member(json_member(choice, "finish_details"), "type"), cases[i % 2].why);
        if (streams) stream_release(&stream);
        json_release(body);
        buf_free(&out);
        api_call_destroy(call);
    }
}

static void test_reasoning_is_apart(void **state)
{
    (void)state;
    uint32_t count;
    struct request *request;
    /* an unfinished character before the closing marker belongs to the reasoning */
    static const uint32_t ids[] = {ID_THINK, 'w', 0xe2, ID_THINK_END, ID_HELLO, ID_IM_END};
    static const char *const bodies[] = {
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"include_reasoning\":false}",
    };
    for (uint32_t i = 0; i < 2; i++) {
        struct api_call *call = call_of(API_CHAT, bodies[i], &request, &count);
        engine_append(&fixture, request, 0, ids, 6);
        request->choices[0].reasoning_count = 4;
        engine_end(request, 0, FINISH_STOP, ID_IM_END, STOP_STRING_NONE);
        engine_done(call, request);
        struct json *body = body_of(call);
        const struct json *message = json_member(only_choice(body), "message");
        assert_json_text(json_member(message, "content"), "hello");
        if (i)
            assert_null(json_member(message, "reasoning"));
        else
            assert_json_text(json_member(message, "reasoning"), "w\xef\xbf\xbd");
        const struct json *details = json_member(json_member(body, "usage"), "completion_tokens_details");
        assert_int_equal(json_to_int(json_member(details, "reasoning_tokens")), 4);
        json_release(body);
        api_call_destroy(call);
    }
    struct api_call *call = call_of(API_COMPLETIONS, "{\"prompt\":\"a\"}", &request, &count);
    engine_append(&fixture, request, 0, ids, 6);
    engine_done(call, request);
    struct json *body = body_of(call);
    assert_json_text(json_member(only_choice(body), "text"), "<think>w\xef\xbf\xbd</think>hello");
    json_release(body);
    api_call_destroy(call);
}

static void test_choices_and_prompts_have_indices(void **state)
{
    (void)state;
    uint32_t count;
    struct request *requests;
    struct api_call *call =
        call_of(API_COMPLETIONS, "{\"prompt\":[\"hello\",\"a\"],\"n\":2,\"seed\":7,\"max_tokens\":4,\"stream\":true}",
                &requests, &count);
    struct buf out, text;
    struct stream stream;
    assert_int_equal(count, 2);
    assert_true(requests[0].choices[0].seed == 7);
    assert_true(requests[0].choices[1].seed != 7);
    assert_true(requests[0].choices[1].seed == requests[1].choices[1].seed);
    buf_init(&out, 0);
    for (uint32_t i = 4; i--;) {
        struct request *request = &requests[i / 2];
        engine_append(&fixture, request, i % 2, (uint32_t[]){'a' + i}, 1);
        engine_tell(call, request, i % 2, 1, 1, FINISH_NONE);
    }
    api_call_render(call, &out);
    engine_append(&fixture, &requests[1], 1, (uint32_t[]){'!'}, 1);
    engine_done(call, &requests[1]);
    api_call_render(call, &out);
    engine_done(call, &requests[0]);
    api_call_finish(call, &out);
    stream_read(&out, &stream);
    static const char *const expected[] = {"a", "b", "c", "d!"};
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t finishes = 0;
        buf_init(&text, 0);
        join(&stream, API_COMPLETIONS, i, "text", &text);
        assert_text(&text, expected[i]);
        buf_free(&text);
        for (uint32_t c = 0; c < stream.count; c++) {
            const struct json *choice = only_choice(stream.chunks[c]);
            if (json_to_int(json_member(choice, "index")) == i &&
                json_to_text(json_member(choice, "finish_reason"), NULL))
                finishes++;
        }
        assert_int_equal(finishes, 1);
    }
    struct usage usage = api_call_usage(call);
    assert_int_equal(usage.out, 5);
    assert_int_equal(usage.choices, 4);
    assert_int_equal(usage.in_total, requests[0].prompt_count + requests[1].prompt_count);
    stream_release(&stream);
    buf_free(&out);
    api_call_destroy(call);
}

static void test_echo_with_logprobs(void **state)
{
    (void)state;
    for (uint32_t streams = 0; streams < 2; streams++) {
        uint32_t count;
        struct request *request;
        struct buf out, text;
        struct stream stream = {0};
        char body_text[160];
        snprintf(body_text, sizeof body_text,
                 "{\"prompt\":\"hello\xc3\xa9\",\"echo\":true,\"logprobs\":2,\"max_tokens\":2,\"stream\":%s}",
                 streams ? "true" : "false");
        struct api_call *call = call_of(API_COMPLETIONS, body_text, &request, &count);
        assert_true(request->score_prompt);
        assert_int_equal(request->prompt_count, 3); /* hello, two bytes */
        for (uint32_t i = 1; i < 3; i++)
            request->prompt_logprobs[i] = (struct token_logprobs){
                .logprob = -2, .rank = 9, .top_count = 2, .top_ids = {'x', 'y'}, .top_logprobs = {-0.25f, -1}};
        engine_append(&fixture, request, 0, (uint32_t[]){'a', 'b'}, 2);
        engine_done(call, request);
        struct json *body = NULL;
        const struct json *logprobs;
        buf_init(&text, 0);
        buf_init(&out, 0);
        if (streams) {
            api_call_finish(call, &out);
            stream_read(&out, &stream);
            join(&stream, API_COMPLETIONS, 0, "text", &text);
            logprobs = json_member(only_choice(stream.chunks[0]), "logprobs");
            assert_int_equal(json_length(json_member(logprobs, "tokens")), 3);
            const struct json *next = json_member(only_choice(stream.chunks[1]), "logprobs");
            assert_int_equal(json_to_int(json_at(json_member(next, "text_offset"), 0)), 6);
        } else {
            body = body_of(call);
            size_t length;
            const char *got = json_to_text(json_member(only_choice(body), "text"), &length);
            buf_append(&text, got, length);
            logprobs = json_member(only_choice(body), "logprobs");
            static const char *const lists[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
            for (uint32_t i = 0; i < 4; i++) assert_int_equal(json_length(json_member(logprobs, lists[i])), 5);
            static const int64_t offsets[] = {0, 5, 5, 6,
                                              7}; /* in characters; the second half of the letter begins in it */
            for (uint32_t i = 0; i < 5; i++)
                assert_int_equal(json_to_int(json_at(json_member(logprobs, "text_offset"), i)), offsets[i]);
        }
        assert_text(&text, "hello\xc3\xa9"
                           "ab");
        assert_int_equal(json_kind(json_at(json_member(logprobs, "token_logprobs"), 0)), JSON_KIND_NULL);
        assert_int_equal(json_kind(json_at(json_member(logprobs, "top_logprobs"), 0)), JSON_KIND_NULL);
        assert_true(json_to_number(json_at(json_member(logprobs, "token_logprobs"), 1)) == -2.0);
        assert_int_equal(json_length(json_at(json_member(logprobs, "top_logprobs"), 1)), 3); /* two best and itself */
        assert_json_text(json_at(json_member(logprobs, "tokens"), 1), "\xef\xbf\xbd");
        stream_release(&stream);
        json_release(body);
        buf_free(&out);
        buf_free(&text);
        api_call_destroy(call);
    }
}

static void test_chat_logprobs(void **state)
{
    (void)state;
    uint32_t count;
    struct request *request;
    struct api_call *call = call_of(API_CHAT,
                                    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":true,"
                                    "\"top_logprobs\":3,\"stream\":true}",
                                    &request, &count);
    struct buf out;
    struct stream stream;
    buf_init(&out, 0);
    engine_append(&fixture, request, 0, (uint32_t[]){0xc3, 0xa9}, 2);
    request->choices[0].logprobs[1].logprob = -1e30f;
    engine_done(call, request);
    api_call_finish(call, &out);
    stream_read(&out, &stream);
    assert_int_equal(stream.count, 4); /* role, one a token, finish */
    const struct json *first =
        json_at(json_member(json_member(only_choice(stream.chunks[1]), "logprobs"), "content"), 0);
    const struct json *second =
        json_at(json_member(json_member(only_choice(stream.chunks[2]), "logprobs"), "content"), 0);
    assert_json_text(json_member(json_member(only_choice(stream.chunks[1]), "delta"), "content"), "");
    assert_json_text(json_member(json_member(only_choice(stream.chunks[2]), "delta"), "content"), "\xc3\xa9");
    assert_json_text(json_member(first, "token"), "\xef\xbf\xbd");
    assert_int_equal(json_to_int(json_at(json_member(first, "bytes"), 0)), 0xc3);
    assert_true(json_to_number(json_member(first, "logprob")) == -0.5);
    assert_int_equal(json_length(json_member(first, "top_logprobs")), 3);
    assert_true(json_to_number(json_member(second, "logprob")) == -9999.0);
    stream_release(&stream);
    buf_free(&out);
    api_call_destroy(call);
}

static void test_failed_stream(void **state)
{
    (void)state;
    uint32_t count;
    struct request *request;
    struct api_error error;
    struct buf out;
    struct stream stream;
    struct api_call *call = call_of(API_CHAT,
                                    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"stream\":true,"
                                    "\"stream_options\":{\"include_usage\":true}}",
                                    &request, &count);
    buf_init(&out, 0);
    engine_append(&fixture, request, 0, (uint32_t[]){'a'}, 1);
    engine_tell(call, request, 0, 1, 1, FINISH_NONE);
    api_call_render(call, &out);
    engine_end(request, 0, FINISH_ERROR, VOCAB_NO_ID, STOP_STRING_NONE);
    engine_done(call, request);
    api_error_from_status(ST_DEVICE, 0, &error);
    api_call_fail(call, &error, &out);
    stream_read(&out, &stream);
    assert_false(stream.done);
    assert_int_equal(stream.count, 4); /* role, text, usage, error */
    assert_int_equal(json_to_int(json_member(json_member(stream.chunks[2], "usage"), "completion_tokens")), 1);
    const struct json *inner = json_member(stream.chunks[3], "error");
    assert_json_text(json_member(inner, "type"), "server_error");
    assert_json_text(json_member(inner, "code"), "internal_error");
    assert_non_null(json_member(inner, "param"));
    stream_release(&stream);
    buf_free(&out);
    api_call_destroy(call);
}

static void test_continuous_usage(void **state)
{
    (void)state;
    uint32_t count;
    struct request *request;
    struct buf out;
    struct stream stream;
    struct api_call *call = call_of(API_COMPLETIONS,
                                    "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usage\":true,"
                                    "\"continuous_usage_stats\":true}}",
                                    &request, &count);
    buf_init(&out, 0);
    engine_append(&fixture, request, 0, (uint32_t[]){'a', 'b', 'c'}, 3);
    for (uint32_t i = 1; i <= 3; i++) {
        engine_tell(call, request, 0, i, i, FINISH_NONE);
        api_call_render(call, &out);
    }
    engine_done(call, request);
    api_call_finish(call, &out);
    stream_read(&out, &stream);
    assert_int_equal(stream.count, 5);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(json_to_int(json_member(json_member(stream.chunks[i], "usage"), "completion_tokens")), i + 1);
    stream_release(&stream);
    buf_free(&out);
    api_call_destroy(call);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat_stream_order),
        cmocka_unit_test(test_any_cut_joins_to_the_same_text),
        cmocka_unit_test(test_any_byte_cut_joins_to_the_same_text),
        cmocka_unit_test(test_body_equals_stream_over_random_outputs),
        cmocka_unit_test(test_stop_string_cuts_text),
        cmocka_unit_test(test_stop_token_id_is_told),
        cmocka_unit_test(test_end_of_a_package_is_told),
        cmocka_unit_test(test_reasoning_is_apart),
        cmocka_unit_test(test_choices_and_prompts_have_indices),
        cmocka_unit_test(test_echo_with_logprobs),
        cmocka_unit_test(test_chat_logprobs),
        cmocka_unit_test(test_failed_stream),
        cmocka_unit_test(test_continuous_usage),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
