/* Parameters of OpenAI or vLLM that would change the answer and are not served: each is refused by its name, unless its
 * value asks for nothing. A table, so that the list can be read and tested. Unknown names are ignored, as everywhere.
 */
#include "server/api_call.h"

#include <string.h>

/* Which values ask for nothing and pass. null always passes. */
enum neutral {
    NEUTRAL_NONE,
    NEUTRAL_FALSE,      /* false */
    NEUTRAL_TRUE,       /* true */
    NEUTRAL_EMPTY,      /* "", [], {} */
    NEUTRAL_ONE,        /* 1 */
    NEUTRAL_TYPE_TEXT,  /* {"type":"text"} */
    NEUTRAL_LIST_TEXT,  /* ["text"] */
    NEUTRAL_WORD_NONE,  /* "none" */
    NEUTRAL_WORD_MEDIUM /* "medium" */
};

enum { IN_CHAT = 1 << API_CHAT, IN_COMPLETIONS = 1 << API_COMPLETIONS, IN_BOTH = IN_CHAT | IN_COMPLETIONS };

struct unserved {
    const char *name;
    unsigned where;
    enum neutral neutral;
};

static const struct unserved unserved_table[] = {
    {"response_format", IN_BOTH, NEUTRAL_TYPE_TEXT},
    {"structured_outputs", IN_BOTH, NEUTRAL_NONE},
    {"structural_tag", IN_BOTH, NEUTRAL_NONE},
    {"guided_json", IN_BOTH, NEUTRAL_NONE},
    {"guided_regex", IN_BOTH, NEUTRAL_NONE},
    {"guided_choice", IN_BOTH, NEUTRAL_NONE},
    {"guided_grammar", IN_BOTH, NEUTRAL_NONE},
    {"guided_json_object", IN_BOTH, NEUTRAL_FALSE},
    {"guided_decoding_backend", IN_BOTH, NEUTRAL_NONE},
    {"guided_whitespace_pattern", IN_BOTH, NEUTRAL_NONE},
    {"bad_words", IN_BOTH, NEUTRAL_EMPTY},
    {"prompt_logprobs", IN_BOTH, NEUTRAL_NONE},
    {"logprob_token_ids", IN_BOTH, NEUTRAL_NONE},
    {"use_beam_search", IN_BOTH, NEUTRAL_FALSE},
    {"length_penalty", IN_BOTH, NEUTRAL_ONE},
    {"early_stopping", IN_BOTH, NEUTRAL_FALSE},
    {"watermarking", IN_BOTH, NEUTRAL_FALSE},
    {"logits_processors", IN_BOTH, NEUTRAL_EMPTY},
    {"repetition_detection", IN_BOTH, NEUTRAL_NONE},
    {"vllm_xargs", IN_BOTH, NEUTRAL_EMPTY},
    {"kv_transfer_params", IN_BOTH, NEUTRAL_EMPTY},
    {"ec_transfer_params", IN_BOTH, NEUTRAL_EMPTY},
    {"mm_processor_kwargs", IN_BOTH, NEUTRAL_EMPTY},
    {"media_io_kwargs", IN_BOTH, NEUTRAL_EMPTY},
    {"request_id", IN_BOTH, NEUTRAL_NONE},
    {"audio", IN_CHAT, NEUTRAL_NONE},
    {"modalities", IN_CHAT, NEUTRAL_LIST_TEXT},
    {"prediction", IN_CHAT, NEUTRAL_NONE},
    {"web_search_options", IN_CHAT, NEUTRAL_NONE},
    {"moderation", IN_CHAT, NEUTRAL_NONE},
    {"functions", IN_CHAT, NEUTRAL_EMPTY},
    {"function_call", IN_CHAT, NEUTRAL_WORD_NONE},
    {"reasoning_effort", IN_CHAT, NEUTRAL_NONE},
    {"thinking_token_budget", IN_CHAT, NEUTRAL_NONE},
    {"verbosity", IN_CHAT, NEUTRAL_WORD_MEDIUM},
    {"echo", IN_CHAT, NEUTRAL_FALSE},
    {"return_prompt_text", IN_CHAT, NEUTRAL_FALSE},
    {"suffix", IN_COMPLETIONS, NEUTRAL_EMPTY},
    {"prompt_embeds", IN_COMPLETIONS, NEUTRAL_NONE},
};

static bool is_word(const struct json *value, const char *word)
{
    const char *text = json_to_text(value, NULL);
    return text && strcmp(text, word) == 0;
}

static bool asks_for_nothing(const struct json *value, enum neutral neutral)
{
    enum json_kind kind = json_kind(value);
    size_t length = 1;
    switch (neutral) {
    case NEUTRAL_NONE: return false;
    case NEUTRAL_FALSE: return kind == JSON_KIND_BOOL && !json_to_bool(value);
    case NEUTRAL_TRUE: return kind == JSON_KIND_BOOL && json_to_bool(value);
    case NEUTRAL_EMPTY:
        if (json_to_text(value, &length)) return length == 0;
        return (kind == JSON_KIND_LIST || kind == JSON_KIND_OBJECT) && json_length(value) == 0;
    case NEUTRAL_ONE: return json_has_number(value) && json_to_number(value) == 1.0;
    case NEUTRAL_TYPE_TEXT: return is_word(json_member(value, "type"), "text");
    case NEUTRAL_LIST_TEXT:
        return kind == JSON_KIND_LIST && json_length(value) == 1 && is_word(json_at(value, 0), "text");
    case NEUTRAL_WORD_NONE: return is_word(value, "none");
    case NEUTRAL_WORD_MEDIUM: return is_word(value, "medium");
    }
    return false;
}

/* Tool calls need a parser of the model's output, which does not exist yet. Tools that the model may not call are shown
 * to it (vLLM's meaning of tool_choice "none"); the default with tools is "auto", so it is refused too. */
static bool refuse_tool_calls(const struct fields *fields)
{
    const struct json *tools = field_get(fields, "tools"), *choice = field_get(fields, "tool_choice");
    if (tools && json_kind(tools) != JSON_KIND_LIST) return refuse_type(fields->error, "tools", "an array", tools);
    bool has_tools = json_length(tools) > 0;
    if (!choice) {
        if (!has_tools) return true;
    } else if (is_word(choice, "none")) {
        return true;
    } else if (is_word(choice, "auto") && !has_tools) {
        return true;
    } else if (json_kind(choice) != JSON_KIND_TEXT && json_kind(choice) != JSON_KIND_OBJECT) {
        return refuse_type(fields->error, "tool_choice", "a string or an object", choice);
    } else if (!is_word(choice, "auto")) {
        return refuse_unserved(
            fields->error, "tool_choice",
            "is served only as \"none\": this server has no parser for the calls that a model writes");
    }
    return refuse_unserved(
        fields->error, "tools",
        "is served only with \"tool_choice\": \"none\", which shows the tools to the model and answers "
        "with its text as it is: this server has no parser for the calls that a model writes");
}

bool api_refuse_unserved(const struct fields *fields, enum api_kind kind)
{
    for (size_t i = 0; i < sizeof unserved_table / sizeof *unserved_table; i++) {
        const struct unserved *row = &unserved_table[i];
        if (!(row->where & 1u << kind)) continue;
        const struct json *value = field_get(fields, row->name);
        if (value && !asks_for_nothing(value, row->neutral))
            return refuse_unserved(fields->error, row->name, "is not served by this server");
    }
    return kind != API_CHAT || refuse_tool_calls(fields);
}
