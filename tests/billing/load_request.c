/* See load_request.h. */
#include "tests/billing/load_request.h"

#include "runtime/base/random.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { SHARED_PREFIXES = 40 };

static uint32_t below(uint64_t *state, uint32_t count)
{
    return (uint32_t)(random_next(state) % count);
}

static bool chance(uint64_t *state, uint32_t permille)
{
    return below(state, 1000) < permille;
}

static uint32_t choose_tokens(const struct load_mix *mix, uint64_t *state)
{
    if (chance(state, 100)) return 1 + below(state, mix->tokens_max);
    if (chance(state, 150)) return 1;
    return 2 + below(state, 24);
}

static enum load_fault choose_fault(const struct load_mix *mix, uint64_t *state)
{
    if (chance(state, mix->cut_permille)) {
        static const enum load_fault cuts[] = {LOAD_CUT_RESET, LOAD_CUT_CLOSE, LOAD_CUT_HALF, LOAD_CUT_HALF,
                                               LOAD_CUT_HALF,  LOAD_CUT_RESET, LOAD_CUT_SEND};
        return cuts[below(state, sizeof cuts / sizeof *cuts)];
    }
    return chance(state, mix->slow_permille) ? LOAD_SLOW : LOAD_NO_FAULT;
}

void load_request_make(const struct load_mix *mix, uint64_t number, struct load_request *request)
{
    uint64_t state = mix->seed ^ number * UINT64_C(0x9e3779b97f4a7c15);
    *request = (struct load_request){.number = mix->first_number + number, .prompts = 1, .choices = 1};
    (void)snprintf(request->id, sizeof request->id, "%.20s-%" PRIu64, mix->run, request->number);
    request->key = below(&state, mix->keys_count);
    request->model = below(&state, mix->models_count);
    request->chat = chance(&state, 450);
    request->stream = chance(&state, 600);
    request->bad = chance(&state, mix->bad_permille);
    request->ids_told = chance(&state, 900);
    if (chance(&state, 300)) request->choices = 2 + below(&state, LOAD_CHOICES_MAX - 1);
    if (!request->chat && chance(&state, 200)) request->prompts = 2 + below(&state, LOAD_PROMPTS_MAX - 1);
    request->max_tokens = choose_tokens(mix, &state);
    request->fault = choose_fault(mix, &state);
    request->cut_bytes = chance(&state, 200) ? 0 : chance(&state, 500) ? below(&state, 700) : below(&state, 8000);
    request->cut_ms = chance(&state, 500) ? 1 + below(&state, 30) : 0;
    if (chance(&state, mix->retry_permille))
        (void)snprintf(request->retry, sizeof request->retry, "%.20s-once-%" PRIu64, mix->run, request->number);
    request->shape_seed = random_next(&state);
}

void load_request_again(const struct load_mix *mix, uint64_t number, const struct load_request *first,
                        struct load_request *request)
{
    *request = *first;
    request->number = mix->first_number + number;
    request->repeated = true;
    request->fault = LOAD_NO_FAULT;
    (void)snprintf(request->id, sizeof request->id, "%.20s-%" PRIu64, mix->run, request->number);
}

/* ---- the body ---- */

/* A prompt in letters: often with one of a few beginnings, so that the prefix cache of its account has it. */
static uint32_t append_prompt(uint64_t *state, struct buf *out)
{
    size_t before = out->length;
    if (chance(state, 500)) {
        uint64_t shared = below(state, SHARED_PREFIXES);
        uint32_t length = 16 + 16 * (uint32_t)(shared % 10);
        for (uint32_t i = 0; i < length; i++) buf_append_char(out, (char)('a' + random_next(&shared) % 26));
    }
    uint32_t own = 1 + below(state, chance(state, 50) ? 600 : 30);
    for (uint32_t i = 0; i < own; i++) buf_append_char(out, (char)('a' + below(state, 26)));
    return (uint32_t)(out->length - before);
}

/* <|im_start|>role\ncontent<|im_end|>\n for each, then <|im_start|>assistant\n; a special token is one id. */
static uint32_t append_messages(uint64_t *state, struct buf *out)
{
    uint32_t ids = 1 + 10;
    buf_append_text(out, "\"messages\":[");
    if (chance(state, 300)) {
        buf_append_text(out, "{\"role\":\"system\",\"content\":\"");
        ids += append_prompt(state, out) + 10;
        buf_append_text(out, "\"},");
    }
    buf_append_text(out, "{\"role\":\"user\",\"content\":\"");
    ids += append_prompt(state, out) + 8;
    buf_append_text(out, "\"}]");
    return ids;
}

static uint32_t append_prompts(uint64_t *state, uint32_t prompts, struct buf *out)
{
    uint32_t ids = 0;
    buf_append_text(out, prompts > 1 ? "\"prompt\":[" : "\"prompt\":");
    for (uint32_t i = 0; i < prompts; i++) {
        buf_append_text(out, i ? ",\"" : "\"");
        ids += append_prompt(state, out);
        buf_append_char(out, '"');
    }
    if (prompts > 1) buf_append_char(out, ']');
    return ids;
}

static void append_stops(uint64_t *state, struct buf *out)
{
    static const char *const stops[] = {"e", "th", "0", "a!", "Q", " ", "z1", "\\n"};
    uint32_t count = 1 + below(state, 4);
    buf_append_text(out, ",\"stop\":[");
    for (uint32_t i = 0; i < count; i++)
        buf_append_format(out, "%s\"%s\"", i ? "," : "", stops[below(state, sizeof stops / sizeof *stops)]);
    buf_append_char(out, ']');
}

static void append_options(const struct load_request *request, uint64_t *state, struct buf *out)
{
    buf_append_format(out, ",\"max_tokens\":%" PRIu32, request->max_tokens);
    if (request->choices > 1) buf_append_format(out, ",\"n\":%" PRIu32, request->choices);
    if (chance(state, 500)) buf_append_text(out, ",\"ignore_eos\":true");
    if (chance(state, 300)) append_stops(state, out);
    if (chance(state, 100)) buf_append_format(out, ",\"stop_token_ids\":[%" PRIu32 "]", below(state, 256));
    if (request->ids_told) buf_append_text(out, ",\"return_token_ids\":true");
    if (!request->stream) return;
    buf_append_text(out, ",\"stream\":true");
    /* Three of four ask for the usage; of the others only the ids are known. */
    if (chance(state, 250)) return;
    buf_append_text(out, chance(state, 200)
                             ? ",\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}"
                             : ",\"stream_options\":{\"include_usage\":true}");
}

/* Mistakes of a client, each refused before anything is computed. */
static void append_mistake(uint64_t *state, struct buf *out)
{
    static const char *const mistakes[] = {
        ",\"n\":-1",        ",\"max_tokens\":0",    ",\"temperature\":9",          ",\"model\":\"nobody\"",
        ",\"stop\":[\"\"]", ",\"prompt\":\"x\",,}", ",\"max_tokens\":99999999999", ",\"logit_bias\":{\"99999\":1}"};
    buf_append_text(out, mistakes[below(state, sizeof mistakes / sizeof *mistakes)]);
}

void load_request_write(const struct load_mix *mix, struct load_request *request, struct buf *out)
{
    uint64_t state = request->shape_seed;
    struct buf body;
    buf_init(&body, 0);
    buf_append_format(&body, "{\"model\":\"%s\",", mix->models[request->model]);
    uint32_t ids = request->chat ? append_messages(&state, &body) : append_prompts(&state, request->prompts, &body);
    request->in_total = mix->text_only ? 0 : ids;
    append_options(request, &state, &body);
    if (request->bad) append_mistake(&state, &body);
    buf_append_char(&body, '}');
    buf_append_format(out,
                      "POST /v1/%s HTTP/1.1\r\nhost: load\r\nauthorization: Bearer %s\r\nx-request-id: %s\r\n"
                      "content-type: application/json\r\ncontent-length: %zu\r\n",
                      request->chat ? "chat/completions" : "completions", mix->keys[request->key], request->id,
                      body.length);
    if (request->retry[0]) buf_append_format(out, "idempotency-key: %s\r\n", request->retry);
    buf_append(out, "\r\n", 2);
    buf_append(out, body.data, body.length);
    if (!buf_ok(&body)) out->failed = true;
    buf_free(&body);
}
