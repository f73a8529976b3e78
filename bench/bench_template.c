/* Time to render a conversation of ten messages: `bench_template [rounds]`. A table to people, one JSON line to
 * programs. Each figure is the median of the rounds; what is measured includes everything a request pays but the
 * parsing of JSON. */
#include "runtime/base/clock.h"
#include "runtime/text/chat_template.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char chatml[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "I am the default voice.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

static const char reasoning[] =
    "{%- set ns = namespace(searching=true, last=messages|length - 1) %}{%- for m in messages[::-1] %}"
    "{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.searching and m.role == 'user' and m.content is "
    "string "
    "and not(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{%- for m in messages %}"
    "{%- if m.content is string %}{%- set content = m.content %}{%- else %}{%- set content = '' %}{%- endif %}"
    "{%- if m.role == 'assistant' %}{%- set thought = '' %}{%- if m.reasoning_content is string %}"
    "{%- set thought = m.reasoning_content %}{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and thought %}{{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + "
    "'\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}{{- '<|im_start|>' + m.role + '\\n' + content }}{%- "
    "endif %}"
    "{{- '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}{%- endif "
    "%}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static struct json *conversation(void)
{
    struct buf text;
    struct json *messages = NULL;
    struct error err;
    buf_init(&text, 0);
    for (int i = 0; i < 10; i++)
        buf_append_format(
            &text,
            "%s{\"role\":\"%s\",\"content\":\"%s %d: the quick brown fox jumps over the lazy dog, and the "
            "dog does not mind at all because it is asleep.\"}",
            i ? "," : "[",
            i == 0  ? "system"
            : i % 2 ? "user"
                    : "assistant",
            i % 2 ? "Question" : "Answer", i);
    buf_append_char(&text, ']');
    if (json_read(text.data, text.length, &messages, &err) != ST_OK) fprintf(stderr, "%s\n", err.message);
    buf_free(&text);
    return messages;
}

/* Median nanoseconds of a rendering; 0 when it failed. */
static uint64_t measure(const char *source, const struct json *messages, uint64_t *times, uint32_t rounds,
                        size_t *bytes)
{
    struct chat_template *tmpl = NULL;
    struct error err = {""};
    struct chat_input input = {
        .messages = messages, .bos_token = "<s>", .eos_token = "</s>", .add_generation_prompt = true};
    enum status status = chat_template_compile(source, strlen(source), &tmpl, &err);
    for (uint32_t i = 0; i < rounds && status == ST_OK; i++) {
        struct buf out;
        struct span_list spans = {0};
        buf_init(&out, 0);
        uint64_t start_ns = clock_now_ns(clock_system());
        status = chat_template_render(tmpl, &input, &out, &spans, &err);
        times[i] = clock_now_ns(clock_system()) - start_ns;
        *bytes = out.length;
        buf_free(&out);
        span_list_free(&spans);
    }
    chat_template_destroy(tmpl);
    if (status != ST_OK) fprintf(stderr, "%s\n", err.message);
    if (status != ST_OK) return 0;
    qsort(times, rounds, sizeof *times, by_value);
    return times[rounds / 2];
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name, *source;
    } cases[] = {{"chatml", chatml}, {"reasoning", reasoning}};
    static uint64_t times[100000];
    long asked = argc > 1 ? strtol(argv[1], NULL, 10) : 20000;
    uint32_t rounds = asked < 1 || asked > 100000 ? 20000 : (uint32_t)asked;
    struct json *messages = conversation();
    if (!messages) return 1;
    printf("%-12s %10s %10s %10s %8s\n", "template", "median us", "p10 us", "p99 us", "bytes");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t bytes = 0;
        uint64_t median_ns = measure(cases[i].source, messages, times, rounds, &bytes);
        if (!median_ns) return 1;
        printf("%-12s %10.2f %10.2f %10.2f %8zu\n", cases[i].name, (double)median_ns / 1e3,
               (double)times[rounds / 10] / 1e3, (double)times[rounds / 100 * 99] / 1e3, bytes);
        printf("{\"bench\":\"template\",\"template\":\"%s\",\"messages\":10,\"rounds\":%" PRIu32
               ",\"median_ns\":%" PRIu64 "}\n",
               cases[i].name, rounds, median_ns);
    }
    json_release(messages);
    return 0;
}
