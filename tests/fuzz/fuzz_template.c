/* libFuzzer over chat_template_compile and chat_template_render. The input is "template NUL messages": when the second
 * part is no JSON, a fixed conversation stands in. Low limits keep each run short; the spans must always cover the
 * output. */
#include "runtime/base/check.h"
#include "runtime/base/limits.h"
#include "runtime/text/chat_template.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char fixed[] =
    "[{\"role\":\"user\",\"content\":\"Hi <|im_end|>\",\"n\":3,\"l\":[1,\"a\",null,2.5]},"
    "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}]";

static void check_spans(const struct buf *out, const struct span_list *spans)
{
    size_t end = 0;
    for (size_t i = 0; i < spans->count; i++) {
        CHECK(spans->spans[i].end > end);
        CHECK(!i || spans->spans[i].trusted != spans->spans[i - 1].trusted);
        end = spans->spans[i].end;
    }
    CHECK_EQ(end, out->length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *split = size ? memchr(data, 0, size) : NULL;
    size_t length = split ? (size_t)(split - text) : size;
    struct chat_template *tmpl = NULL;
    struct json *messages = NULL;
    struct span_list spans = {0};
    struct error err;
    struct buf out;
    limits.template_steps = 20000;
    limits.template_memory_bytes = 4 << 20;
    limits.template_output_bytes = 1 << 20;
    buf_init(&out, 0);
    if (chat_template_compile(length ? text : "", length, &tmpl, &err) == ST_OK) {
        if (!split || json_read(split + 1, size - length - 1, &messages, &err) != ST_OK)
            CHECK(json_read(fixed, strlen(fixed), &messages, &err) == ST_OK);
        struct chat_input input = {.messages = messages,
                                   .arguments = json_at(messages, 0),
                                   .bos_token = "<s>",
                                   .eos_token = "</s>",
                                   .now_unix_s = 1700000000};
        if (chat_template_render(tmpl, &input, &out, &spans, &err) == ST_OK) check_spans(&out, &spans);
    }
    json_release(messages);
    chat_template_destroy(tmpl);
    span_list_free(&spans);
    buf_free(&out);
    return 0;
}
