/* Renders chat templates for the oracle: one JSON object a line in, one a line out.
 *
 * In:  {"template": "...", "input": {"messages": [..], "tools": [..], "documents": [..], "arguments": {..},
 *       "bos_token": "", "eos_token": "", "add_generation_prompt": true, "now_unix_s": 0}}
 * Out: {"output": "...", "spans": [[end, trusted], ...]}  or  {"error": "...", "status": "ST_INVAL", "stage":
 * "compile"} */
#include "runtime/base/buf.h"
#include "runtime/base/json.h"
#include "runtime/text/chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void write_error(struct buf *line, enum status status, const char *stage, const struct error *err)
{
    buf_append_text(line, "{\"error\":");
    buf_append_json_string(line, err->message, strlen(err->message));
    buf_append_format(line, ",\"status\":\"%s\",\"stage\":\"%s\"}", status_name(status), stage);
}

static void write_output(struct buf *line, const struct buf *out, const struct span_list *spans)
{
    buf_append_text(line, "{\"output\":");
    buf_append_json_string(line, out->data ? out->data : "", out->length);
    buf_append_text(line, ",\"spans\":[");
    for (size_t i = 0; i < spans->count; i++)
        buf_append_format(line, "%s[%zu,%s]", i ? "," : "", spans->spans[i].end,
                          spans->spans[i].trusted ? "true" : "false");
    buf_append_text(line, "]}");
}

static void render_one(const struct json *request, struct buf *line)
{
    const struct json *in = json_member(request, "input");
    struct chat_input input = {
        .messages = json_member(in, "messages"),
        .tools = json_member(in, "tools"),
        .documents = json_member(in, "documents"),
        .arguments = json_member(in, "arguments"),
        .bos_token = json_to_text(json_member(in, "bos_token"), NULL),
        .eos_token = json_to_text(json_member(in, "eos_token"), NULL),
        .add_generation_prompt = json_to_bool(json_member(in, "add_generation_prompt")),
        .now_unix_s = json_to_int(json_member(in, "now_unix_s")),
    };
    struct chat_template *tmpl = NULL;
    struct error err = {""};
    struct buf out;
    struct span_list spans = {0};
    size_t length = 0;
    const char *source = json_to_text(json_member(request, "template"), &length);
    buf_init(&out, 0);
    enum status status = chat_template_compile(source ? source : "", length, &tmpl, &err);
    if (status != ST_OK) {
        write_error(line, status, "compile", &err);
    } else {
        status = chat_template_render(tmpl, &input, &out, &spans, &err);
        if (status != ST_OK)
            write_error(line, status, "render", &err);
        else
            write_output(line, &out, &spans);
    }
    chat_template_destroy(tmpl);
    span_list_free(&spans);
    buf_free(&out);
}

int main(void)
{
    char *text = NULL;
    size_t capacity = 0;
    ssize_t length;
    while ((length = getline(&text, &capacity, stdin)) > 0) {
        struct json *request = NULL;
        struct error err = {""};
        struct buf line;
        buf_init(&line, 0);
        enum status status = json_read(text, (size_t)length, &request, &err);
        if (status == ST_OK)
            render_one(request, &line);
        else
            write_error(&line, status, "json", &err);
        json_release(request);
        buf_append_char(&line, '\n');
        fwrite(line.data, 1, line.length, stdout);
        fflush(stdout);
        buf_free(&line);
    }
    free(text);
    return 0;
}
