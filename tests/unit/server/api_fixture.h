/* What the tests of the API share: a vocabulary small enough to know by heart, a model made of it, and an engine that
 * plays prescribed outputs.
 *
 *   0..255  one token a byte       256..  merges: "he" "ll" "hell" "hello" " w" " wo"
 *   then <s> <|im_start|> <|im_end|> (control) <think> </think> (user-defined)
 *
 * The engine here copies what scheduler/request.h promises: ids appended to choice->tokens, counts told by events,
 * special tokens outside text_bytes unless kept. */
#ifndef TESTS_UNIT_SERVER_API_FIXTURE_H
#define TESTS_UNIT_SERVER_API_FIXTURE_H

#include "runtime/base/json.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/base/utf8.h"
#include "server/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ID_HE = 256,
    ID_LL,
    ID_HELL,
    ID_HELLO,
    ID_SPACE_W,
    ID_SPACE_WO,
    ID_BOS,
    ID_IM_START,
    ID_IM_END,
    ID_THINK,
    ID_THINK_END,
    IDS_COUNT
};

static const char chatml[] = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                             "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

struct fixture {
    struct vocab vocab;
    struct vocab_string tokens[IDS_COUNT], merges[6];
    uint8_t kinds[IDS_COUNT];
    char text[IDS_COUNT][16];
    struct tokenizer *tokenizer;
    struct chat_template *chat_template;
    struct api_model model;
    const struct api_model *items[1];
    struct api_models models;
    struct api_context context;
};

/* A byte as GPT-2's vocabulary files write it: printable ones as themselves, the others from U+0100 on. */
static uint32_t byte_symbol(uint32_t byte)
{
    uint32_t hidden = 0;
    for (uint32_t b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte) return printable ? b : 256 + hidden;
        hidden += !printable;
    }
    return 0;
}

static inline void fixture_token(struct fixture *fixture, uint32_t id, const char *text, uint8_t kind)
{
    snprintf(fixture->text[id], sizeof fixture->text[id], "%s", text);
    fixture->tokens[id] = (struct vocab_string){fixture->text[id], (uint32_t)strlen(text)};
    fixture->kinds[id] = kind;
}

static inline void fixture_init(struct fixture *fixture)
{
    static const char *const names[] = {"api-test", "alias"};
    static const struct vocab_string merges[] = {{"h e", 3},    {"l l", 3},        {"he ll", 5},
                                                 {"hell o", 6}, {"\xc4\xa0 w", 4}, {"\xc4\xa0w o", 5}};
    memset(fixture, 0, sizeof *fixture);
    for (uint32_t id = 0; id < 256; id++) {
        char symbol[8] = {0};
        utf8_encode(byte_symbol(id), symbol);
        fixture_token(fixture, id, symbol, VOCAB_NORMAL);
    }
    fixture_token(fixture, ID_HE, "he", VOCAB_NORMAL);
    fixture_token(fixture, ID_LL, "ll", VOCAB_NORMAL);
    fixture_token(fixture, ID_HELL, "hell", VOCAB_NORMAL);
    fixture_token(fixture, ID_HELLO, "hello", VOCAB_NORMAL);
    fixture_token(fixture, ID_SPACE_W, "\xc4\xa0w", VOCAB_NORMAL);
    fixture_token(fixture, ID_SPACE_WO, "\xc4\xa0wo", VOCAB_NORMAL);
    fixture_token(fixture, ID_BOS, "<s>", VOCAB_CONTROL);
    fixture_token(fixture, ID_IM_START, "<|im_start|>", VOCAB_CONTROL);
    fixture_token(fixture, ID_IM_END, "<|im_end|>", VOCAB_CONTROL);
    fixture_token(fixture, ID_THINK, "<think>", VOCAB_USER_DEFINED);
    fixture_token(fixture, ID_THINK_END, "</think>", VOCAB_USER_DEFINED);
    memcpy(fixture->merges, merges, sizeof merges);
    fixture->vocab = (struct vocab){.model = "gpt2",
                                    .pre = "gpt-2",
                                    .count = IDS_COUNT,
                                    .tokens = fixture->tokens,
                                    .kinds = fixture->kinds,
                                    .merges_count = 6,
                                    .merges = fixture->merges,
                                    .bos_id = ID_BOS,
                                    .eos_id = ID_IM_END,
                                    .unknown_id = VOCAB_NO_ID,
                                    .padding_id = VOCAB_NO_ID,
                                    .end_ids = {ID_IM_END},
                                    .end_ids_count = 1};
    struct error err = {{0}};
    if (tokenizer_create(&fixture->vocab, &fixture->tokenizer, &err) != ST_OK ||
        chat_template_compile(chatml, sizeof chatml - 1, &fixture->chat_template, &err) != ST_OK) {
        fprintf(stderr, "fixture: %s\n", err.message);
        abort();
    }
    fixture->model = (struct api_model){.names = names,
                                        .defaults = sampling_defaults_none(),
                                        .names_count = 2,
                                        .tokenizer = fixture->tokenizer,
                                        .chat_template = fixture->chat_template,
                                        .context_max = 512,
                                        .think_start_id = ID_THINK,
                                        .think_end_id = ID_THINK_END,
                                        .created_unix_s = 1700000000,
                                        .fingerprint = "fp_test"};
    fixture->items[0] = &fixture->model;
    fixture->models = (struct api_models){.items = fixture->items, .count = 1};
    fixture->context = (struct api_context){.models = &fixture->models,
                                            .tenant = 3,
                                            .tenant_name = "acme",
                                            .now_unix_s = 1700000001,
                                            .now_ns = 5,
                                            .deadline_ns = 77};
}

static inline void fixture_free(struct fixture *fixture)
{
    chat_template_destroy(fixture->chat_template);
    tokenizer_destroy(fixture->tokenizer);
}

/* The bytes of an id that count as output text. */
static inline uint32_t text_length(const struct fixture *fixture, const struct request *request, uint32_t id)
{
    uint32_t length;
    tokenizer_bytes(fixture->tokenizer, id, &length);
    return tokenizer_is_special(fixture->tokenizer, id) && !request->keep_special ? 0 : length;
}

/* The engine appends ids to a choice without telling yet. A stop string or id is the caller's to set. */
static inline void engine_append(const struct fixture *fixture, struct request *request, uint32_t choice_idx,
                                 const uint32_t *ids, uint32_t count)
{
    struct choice *choice = &request->choices[choice_idx];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = choice->output_count++;
        choice->tokens[request->prompt_count + at] = ids[i];
        choice->text_bytes += text_length(fixture, request, ids[i]);
        if (!choice->logprobs) continue;
        struct token_logprobs *score = &choice->logprobs[at];
        *score = (struct token_logprobs){.logprob = -0.5f - (float)at, .rank = 1};
        score->top_count = request->params.logprobs > 0 ? (uint32_t)request->params.logprobs : 0;
        for (uint32_t k = 0; k < score->top_count; k++) {
            score->top_ids[k] = k ? (ids[i] + k) % IDS_COUNT : ids[i];
            score->top_logprobs[k] = -0.5f - (float)at - (float)k;
        }
    }
}

static inline void engine_tell(struct api_call *call, struct request *request, uint32_t choice_idx,
                               uint32_t output_count, uint32_t text_bytes, enum finish finish)
{
    struct event event = {.kind = CHOICE_TOKENS,
                          .request = request,
                          .choice = choice_idx,
                          .output_count = output_count,
                          .text_bytes = text_bytes,
                          .finish = finish};
    api_call_event(call, &event);
}

static inline void engine_end(struct request *request, uint32_t choice_idx, enum finish finish, uint32_t stop_id,
                              uint32_t stop_string)
{
    struct choice *choice = &request->choices[choice_idx];
    choice->finish = finish;
    choice->stop_id = stop_id;
    choice->stop_string = stop_string;
}

/* All choices have ended. */
static inline void engine_done(struct api_call *call, struct request *request)
{
    request->usage = (struct usage){.cause = CAUSE_STOP,
                                    .in_total = request->prompt_count,
                                    .in_hit = 16 % request->prompt_count,
                                    .choices = request->choices_count};
    for (uint32_t i = 0; i < request->choices_count; i++) {
        request->usage.out += request->choices[i].output_count;
        request->usage.out_reasoning += request->choices[i].reasoning_count;
        if (request->choices[i].finish == FINISH_NONE) request->choices[i].finish = FINISH_LENGTH;
    }
    struct event event = {.kind = REQUEST_DONE, .request = request};
    api_call_event(call, &event);
}

#endif
