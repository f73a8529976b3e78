/* Prints answers of the API layer for check_bodies.py, one JSON object a line: {"name":..,"kind":..,"output":".."}.
 * The outputs are prescribed (tests/unit/server/api_fixture.h): text, characters cut by tokens, reasoning, stops. */
#include "tests/unit/server/api_fixture.h"

#include <stdio.h>

static struct fixture fixture;

static void print_line(const char *name, const char *kind, const struct buf *output)
{
    struct buf line;
    buf_init(&line, 0);
    buf_append_format(&line, "{\"name\":\"%s\",\"kind\":\"%s\",\"output\":", name, kind);
    buf_append_json_string(&line, output->data, output->length);
    buf_append_text(&line, "}\n");
    if (!buf_ok(&line) || !buf_ok(output)) abort();
    fwrite(line.data, 1, line.length, stdout);
    buf_free(&line);
}

static const uint32_t plain_ids[] = {ID_HELLO, 0xf0, 0x9f, 0x98, 0x80, ID_SPACE_WO, '"', ID_IM_END};
static const uint32_t thinking_ids[] = {ID_THINK, 'w', ID_THINK_END, ID_HELLO, 0xc3, ID_IM_END};

static void answer(const char *name, enum api_kind kind, const char *body, bool thinks)
{
    static const char *const kinds[2][2] = {{"chat", "chat_stream"}, {"text", "text_stream"}};
    struct api_call *call;
    struct api_error error;
    struct buf out;
    uint32_t count;
    buf_init(&out, 0);
    if (!api_call_create(kind, body, strlen(body), &fixture.context, &call, &error)) {
        api_error_body(&error, &out);
        print_line(name, "error", &out);
        buf_free(&out);
        return;
    }
    if (!api_call_prepare(call, &error)) abort();
    struct request *requests = api_call_requests(call, &count);
    const uint32_t *ids = thinks ? thinking_ids : plain_ids;
    uint32_t ids_count = thinks ? sizeof thinking_ids / sizeof *ids : sizeof plain_ids / sizeof *ids;
    for (uint32_t r = 0; r < count; r++) {
        for (uint32_t i = 1; requests[r].prompt_logprobs && i < requests[r].prompt_count; i++)
            requests[r].prompt_logprobs[i] = (struct token_logprobs){.logprob = -1, .rank = 2};
        for (uint32_t c = 0; c < requests[r].choices_count && requests[r].max_tokens; c++) {
            uint32_t bytes = 0;
            for (uint32_t i = 0; i < ids_count; i++) {
                engine_append(&fixture, &requests[r], c, &ids[i], 1);
                bytes += text_length(&fixture, &requests[r], ids[i]);
                engine_tell(call, &requests[r], c, i + 1, bytes, FINISH_NONE);
                if (api_call_streams(call)) api_call_render(call, &out);
            }
            requests[r].choices[c].reasoning_count = thinks ? 3 : 0;
            engine_end(&requests[r], c, FINISH_STOP, ID_IM_END, STOP_STRING_NONE);
        }
        engine_done(call, &requests[r]);
    }
    api_call_finish(call, &out);
    print_line(name, kinds[kind][api_call_streams(call)], &out);
    buf_free(&out);
    api_call_destroy(call);
}

#define CHAT   "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]"
#define TEXT   "{\"prompt\":\"hello\",\"max_tokens\":9"
#define STREAM ",\"stream\":true,\"stream_options\":{\"include_usage\":true}"

int main(void)
{
    struct buf out;
    fixture_init(&fixture);
    answer("chat", API_CHAT, CHAT "}", false);
    answer("chat n", API_CHAT, CHAT ",\"n\":3,\"service_tier\":\"flex\"}", false);
    answer("chat logprobs", API_CHAT, CHAT ",\"logprobs\":true,\"top_logprobs\":3}", false);
    answer("chat reasoning", API_CHAT, CHAT "}", true);
    answer("chat ids", API_CHAT, CHAT ",\"return_token_ids\":true}", false);
    answer("chat stream", API_CHAT, CHAT STREAM "}", false);
    answer("chat stream n", API_CHAT, CHAT STREAM ",\"n\":2,\"service_tier\":\"auto\"}", false);
    answer("chat stream logprobs", API_CHAT, CHAT STREAM ",\"logprobs\":true,\"top_logprobs\":2}", false);
    answer("chat stream reasoning", API_CHAT, CHAT STREAM "}", true);
    answer("text", API_COMPLETIONS, TEXT "}", false);
    answer("text list", API_COMPLETIONS, "{\"prompt\":[\"hello\",\"a\"],\"n\":2}", false);
    answer("text logprobs", API_COMPLETIONS, TEXT ",\"logprobs\":2}", false);
    answer("text echo", API_COMPLETIONS, TEXT ",\"logprobs\":2,\"echo\":true}", false);
    answer("text echo only", API_COMPLETIONS, "{\"prompt\":\"hello wo\",\"max_tokens\":0,\"echo\":true,\"logprobs\":1}",
           false);
    answer("text stream", API_COMPLETIONS, TEXT STREAM "}", false);
    answer("text stream echo", API_COMPLETIONS, TEXT STREAM ",\"echo\":true,\"logprobs\":1}", false);
    answer("error parse", API_CHAT, "{", false);
    answer("error type", API_CHAT, CHAT ",\"n\":\"a\"}", false);
    answer("error model", API_CHAT, CHAT ",\"model\":\"x\"}", false);
    buf_init(&out, 0);
    api_models(&fixture.models, NULL, &out);
    print_line("models", "models", &out);
    buf_free(&out);
    fixture_free(&fixture);
    return 0;
}
