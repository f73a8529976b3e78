/* A request's body, and an engine that answers it with ids made from the same input: never a crash or a leak, every
 * refusal is an error object with a 4xx, every answer is valid UTF-8 and JSON, and the joined stream has as many
 * finishes as choices. The first byte picks dialect and entry; the second cuts the engine's events. */
#include "runtime/base/check.h"
#include "tests/unit/server/api_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* JSON has NUL as \u0000, which our own reader refuses: such answers are only checked as UTF-8. */
static bool check_json(const char *text, size_t length)
{
    struct json *value;
    CHECK(utf8_valid(text, length, NULL));
    if (memmem(text, length, "\\u0000", 6)) return false;
    enum status status = json_read(text, length, &value, NULL);
    CHECK(status == ST_OK || status == ST_LIMIT || status == ST_NOMEM);
    if (status != ST_OK) return false;
    json_release(value);
    return true;
}

static void check_error(const struct api_error *error)
{
    struct buf out;
    CHECK(error->http_status >= 400 && error->http_status < 500 && error->message[0] && error->type);
    buf_init(&out, 0);
    api_error_body(error, &out);
    check_json(out.data, out.length);
    buf_free(&out);
}

static void check_stream(const struct buf *out, uint32_t choices)
{
    static const char finish[] = "\"finish_reason\":\"";
    uint32_t finishes = 0;
    for (size_t at = 0; at < out->length;) {
        const char *start = out->data + at + 6, *end = memmem(start, out->length - at - 6, "\n\n", 2);
        CHECK(end && memcmp(start - 6, "data: ", 6) == 0);
        size_t length = (size_t)(end - start);
        at += 6 + length + 2;
        if (length == 6 && memcmp(start, "[DONE]", 6) == 0) {
            CHECK_EQ(at, out->length);
            break;
        }
        check_json(start, length);
        finishes += memmem(start, length, finish, sizeof finish - 1) != NULL;
    }
    CHECK(finishes >= choices); /* text cannot fake one: its quotes are escaped, but an echoed key may not be counted */
}

/* Every choice gets a few ids; they are told in pieces of `cut`. */
static void play(const struct fixture *fixture, struct api_call *call, struct request *request, uint32_t cut,
                 const uint8_t *data, size_t size, struct buf *out)
{
    for (uint32_t c = 0; c < request->choices_count; c++) {
        uint32_t count = request->max_tokens < 12 ? request->max_tokens : 12, bytes = 0;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t id = (uint32_t)(data[(i * 7 + c) % size] + (data[i % size] & 1 ? 0 : ID_HE)) % IDS_COUNT;
            engine_append(fixture, request, c, &id, 1);
            bytes += text_length(fixture, request, id);
            if ((i + 1) % cut) continue;
            engine_tell(call, request, c, i + 1, bytes, FINISH_NONE);
            if (api_call_streams(call)) api_call_render(call, out);
        }
    }
    engine_done(call, request);
}

static void whole_request(const struct fixture *fixture, enum api_kind kind, uint32_t cut, const uint8_t *data,
                          size_t size)
{
    struct api_call *call;
    struct api_error error;
    struct buf out;
    uint32_t count, choices = 0;
    if (!api_call_create(kind, (const char *)data, size, &fixture->context, &call, &error)) {
        check_error(&error);
        return;
    }
    if (!api_call_prepare(call, &error)) {
        check_error(&error);
        api_call_destroy(call);
        return;
    }
    struct request *requests = api_call_requests(call, &count);
    buf_init(&out, 0);
    for (uint32_t i = 0; i < count; i++) {
        const struct request *request = &requests[i];
        CHECK(request->prompt_count >= 1 && request->choices_count >= 1);
        CHECK(request->prompt_count + (uint64_t)request->max_tokens <= fixture->model.context_max);
        CHECK(request->max_tokens || request->score_prompt);
        choices += request->choices_count;
        play(fixture, call, &requests[i], cut, data, size, &out);
    }
    api_call_finish(call, &out);
    CHECK(buf_ok(&out));
    if (api_call_streams(call))
        check_stream(&out, choices);
    else
        check_json(out.data, out.length);
    buf_free(&out);
    api_call_destroy(call);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fixture fixture;
    static bool ready;
    struct buf out;
    if (!ready) {
        fixture_init(&fixture);
        fixture.model.trust_request_chat_template = true;
        limits.template_steps = 20000; /* the template has a target of its own */
        ready = true;
    }
    if (size < 3) return 0;
    uint8_t entry = data[0] & 3;
    uint32_t cut = 1 + (data[1] & 7);
    data += 2;
    size -= 2;
    if (entry < 2) {
        whole_request(&fixture, entry ? API_COMPLETIONS : API_CHAT, cut, data, size);
        return 0;
    }
    buf_init(&out, 0);
    int status = (entry == 2 ? api_tokenize : api_detokenize)(&fixture.models, (const char *)data, size, &out);
    CHECK(status == 200 || (status >= 400 && status < 500));
    check_json(out.data, out.length);
    buf_free(&out);
    return 0;
}
