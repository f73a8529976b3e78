/* Chat templates: the Jinja subset that models ship, compiled once, rendered per request under a budget.
 *
 * Templates come from model files and are as untrusted as requests: steps, output, nesting and memory are bounded by
 * the template_* limits, there is no file access, no attribute of the host, no recursion of ours on input depth.
 *
 * Output carries its origin: text that came from messages, tools or keyword arguments is marked as content through
 * every filter and concatenation, so that the tokenizer recognises special tokens only in what the template itself
 * wrote.
 *
 * A compiled template is immutable and shared by all threads. The oracle is jinja2 set as in transformers (trim_blocks,
 * lstrip_blocks, loopcontrols, unescaped tojson, raise_exception, strftime_now, namespace, {% generation %}). */
#ifndef RUNTIME_TEXT_CHAT_TEMPLATE_H
#define RUNTIME_TEXT_CHAT_TEMPLATE_H

#include "runtime/base/buf.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/text/tokenizer.h"

#include <stdint.h>

struct chat_template;

/* ST_INVAL: err names the line and the construct; ST_NOMEM. source is copied. */
NODISCARD enum status chat_template_compile(const char *source, size_t length, struct chat_template **tmpl,
                                            struct error *err);
void chat_template_destroy(struct chat_template *tmpl);

/* Whether the role "developer" is among the template's own words. */
bool chat_template_knows_developer(const struct chat_template *tmpl);

/* What a template may read. All borrowed for the call. As in transformers, tools and documents that are NULL are none
 * in the template, arguments that are not given are undefined. */
struct chat_input {
    const struct json *messages;  /* list of objects: content */
    const struct json *tools;     /* list, or NULL: content */
    const struct json *documents; /* list, or NULL: content */
    const struct json *arguments; /* object of chat_template_kwargs, or NULL: content; must not hide the names below */
    const char *bos_token, *eos_token; /* "" when the vocabulary has none: trusted */
    bool add_generation_prompt;
    int64_t now_unix_s; /* for strftime_now */
};

struct span_list {
    struct text_span *spans; /* in order, neighbours differ in `trusted`, the last ends at the output's length */
    size_t count, capacity;
};

void span_list_free(struct span_list *list);

/* Appends the rendered prompt to out and its origin to spans. ST_INVAL: the template raised an exception or used a
 * value wrongly (err has its message: the client's to read); ST_LIMIT: a template_* limit; ST_NOMEM. Any thread. */
NODISCARD enum status chat_template_render(const struct chat_template *tmpl, const struct chat_input *input,
                                           struct buf *out, struct span_list *spans, struct error *err);

#endif
