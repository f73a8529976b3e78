/* From a checked call to engine requests: tokens, the context, the memory for results. Runs on a pool thread.
 *
 * Memory comes after the arithmetic: n x (prompt + max_tokens) ids and, with logprobs, a record for each token, are
 * added up with overflow checks over all prompts and compared with api_request_memory_bytes before anything is taken.
 *
 *   choice->tokens  [ prompt | room for max_tokens ]     choices of a prompt have a copy each; request->prompt is the
 * first's */
#include "server/api_call.h"

#include "runtime/base/check.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* OpenAI's default for /v1/completions; a chat's default is all that the context has left. */
enum { COMPLETION_TOKENS_DEFAULT = 16 };

static bool refuse_result_memory(const struct api_call *call, struct api_error *error)
{
    api_error_set(
        error, 400, "invalid_request_error", NULL, call->max_tokens_param,
        "The results of this request could take more than %" PRIu64 " bytes of memory (choices x max_tokens%s). "
        "Please set a lower '%s', or ask for fewer choices, prompts or log-probabilities.",
        limits.api_request_memory_bytes, call->base.params.logprobs >= 0 ? " x logprobs" : "", call->max_tokens_param);
    return false;
}

/* How many ids each choice may add, by the context. */
static bool plan_length(const struct api_call *call, uint64_t prompt, uint32_t *max_tokens, struct api_error *error)
{
    uint64_t context = call->model->context_max;
    uint64_t left = prompt < context ? context - prompt : 0;
    if (call->max_tokens >= 0) {
        if ((uint64_t)call->max_tokens > left || prompt > context)
            return api_refuse_context(call->model, call->kind, prompt, (uint64_t)call->max_tokens, error);
        *max_tokens = (uint32_t)call->max_tokens;
        return true;
    }
    if (!left) return api_refuse_context(call->model, call->kind, prompt, 0, error);
    uint64_t wanted = call->kind == API_COMPLETIONS ? COMPLETION_TOKENS_DEFAULT : left;
    *max_tokens = (uint32_t)(wanted < left ? wanted : left);
    if (call->base.min_tokens > *max_tokens) {
        api_error_set(error, 400, "invalid_request_error", "invalid_value", "min_tokens",
                      "Invalid 'min_tokens': %" PRIu32 " is more than the %" PRIu32 " tokens of this completion.",
                      call->base.min_tokens, *max_tokens);
        return false;
    }
    return true;
}

static bool wants_scores(const struct api_call *call)
{
    return call->echo && (call->base.params.logprobs >= 0 || call->max_tokens == 0);
}

/* Adds what the results of one prompt need to *total. False: it does not fit into a size_t. */
static bool add_bytes(const struct api_call *call, size_t prompt, size_t max_tokens, size_t *total)
{
    size_t ids, scores = 0, bytes, choice = sizeof(struct choice) + sizeof(struct choice_view) + sizeof(uint32_t) + 64;
    if (!checked_add(prompt, max_tokens, &ids) || !checked_mul(ids, sizeof(uint32_t), &bytes)) return false;
    if (call->base.params.logprobs >= 0 && !checked_mul(max_tokens, sizeof(struct token_logprobs), &scores))
        return false;
    if (!checked_add(bytes, scores, &bytes) || !checked_add(bytes, choice, &bytes)) return false;
    if (!checked_mul(bytes, (size_t)call->n, &bytes) || !checked_add(bytes, sizeof(struct request) + 64, &bytes))
        return false;
    if (wants_scores(call)) {
        if (!checked_mul(prompt, sizeof(struct token_logprobs), &scores) || !checked_add(bytes, scores, &bytes))
            return false;
    }
    return checked_add(*total, bytes, total);
}

static void truncate_prompt(const struct api_call *call, struct token_list *list)
{
    if (!call->truncate) return;
    size_t keep = (size_t)call->truncate;
    if (call->truncate < 0) { /* as much as the context has room for */
        size_t reserve = call->max_tokens > 0 ? (size_t)call->max_tokens : 1;
        keep = reserve < call->model->context_max ? call->model->context_max - reserve : 1;
    }
    if (list->count <= keep) return;
    if (!call->truncate_right) memmove(list->ids, list->ids + (list->count - keep), keep * sizeof *list->ids);
    list->count = keep;
}

static bool fill_choices(struct api_call *call, struct request *request, uint32_t request_idx,
                         const struct token_list *list)
{
    size_t ids = (size_t)request->prompt_count + request->max_tokens;
    for (uint32_t i = 0; i < request->choices_count; i++) {
        struct choice *choice = &request->choices[i];
        struct choice_view *view = &call->views[request_idx * request->choices_count + i];
        choice->tokens = arena_alloc(&call->arena, ids, sizeof *choice->tokens);
        if (!choice->tokens) return false;
        memcpy(choice->tokens, list->ids, list->count * sizeof *list->ids);
        if (call->base.params.logprobs >= 0 && request->max_tokens) {
            choice->logprobs = arena_alloc(&call->arena, request->max_tokens, sizeof *choice->logprobs);
            if (!choice->logprobs) return false;
        }
        if (call->has_seed) { /* choice 0 has the seed itself: n = 1 and n = 4 start with the same text */
            uint64_t state = call->seed + i;
            choice->seed = i ? random_next(&state) : call->seed;
        } else {
            random_fill(&choice->seed, sizeof choice->seed);
        }
        choice->stop_id = VOCAB_NO_ID;
        choice->stop_string = STOP_STRING_NONE;
        *view = (struct choice_view){.request = request, .choice = choice};
        view->idx = request_idx * request->choices_count + i;
        api_view_open(call, view);
    }
    request->prompt = request->choices[0].tokens;
    return true;
}

static bool fill_request(struct api_call *call, uint32_t idx, const struct token_list *list, uint32_t max_tokens)
{
    struct request *request = &call->requests[idx];
    *request = call->base;
    request->prompt_count = (uint32_t)list->count;
    request->max_tokens = max_tokens;
    request->choices_count = (uint32_t)call->n;
    request->choices = arena_alloc(&call->arena, request->choices_count, sizeof *request->choices);
    if (!request->choices) return false;
    request->score_prompt = wants_scores(call);
    if (request->score_prompt) {
        if (request->params.logprobs < 0) request->params.logprobs = 0;
        request->prompt_logprobs = arena_alloc(&call->arena, list->count, sizeof *request->prompt_logprobs);
        if (!request->prompt_logprobs) return false;
    }
    return fill_choices(call, request, idx, list);
}

/* Everything of an answer up to its choices is the same in each chunk, so it is made once. */
static bool make_prefix(struct api_call *call)
{
    static const char *const tiers[] = {NULL, "default", "flex", "priority", "batch"};
    const char *object = call->kind == API_COMPLETIONS ? "text_completion"
                         : call->stream                ? "chat.completion.chunk"
                                                       : "chat.completion";
    struct buf out;
    buf_init(&out, 0);
    buf_append_format(&out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":", call->id, object,
                      call->now_unix_s);
    buf_append_json_string(&out, call->model->names[0], strlen(call->model->names[0]));
    buf_append_text(&out, ",\"system_fingerprint\":");
    buf_append_json_string(&out, call->model->fingerprint,
                           strnlen(call->model->fingerprint, sizeof call->model->fingerprint));
    if (call->tier != TIER_NONE) buf_append_format(&out, ",\"service_tier\":\"%s\"", tiers[call->tier]);
    buf_append_text(&out, ",\"choices\":[");
    call->prefix = buf_ok(&out) ? arena_strdup(&call->arena, out.data, out.length) : NULL;
    call->prefix_length = out.length;
    buf_free(&out);
    return call->prefix != NULL;
}

static bool plan_prompt(struct api_call *call, uint32_t idx, struct token_list *list, uint32_t *max_tokens,
                        size_t *total, struct api_error *error)
{
    /* Prompts are kept until all are known to fit; the bound is what their results may take anyway. */
    list->limit = call->truncate ? limits.api_request_memory_bytes / sizeof(uint32_t) : call->model->context_max;
    bool good = call->kind == API_CHAT ? api_chat_tokens(call->model, &call->chat, call->now_unix_s, list, error)
                                       : api_prompt_tokens(call, idx, list, error);
    if (!good) return false;
    truncate_prompt(call, list);
    if (!plan_length(call, list->count, max_tokens, error)) return false;
    if (!add_bytes(call, list->count, *max_tokens, total) || *total > limits.api_request_memory_bytes)
        return refuse_result_memory(call, error);
    return true;
}

static bool take_memory(struct api_call *call, const struct token_list *lists, const uint32_t *max_tokens,
                        struct api_error *error)
{
    call->views_count = call->requests_count * (uint32_t)call->n;
    call->requests = arena_alloc(&call->arena, call->requests_count, sizeof *call->requests);
    call->views = arena_alloc(&call->arena, call->views_count, sizeof *call->views);
    call->dirty = arena_alloc(&call->arena, call->views_count, sizeof *call->dirty);
    bool good = call->requests && call->views && call->dirty && make_prefix(call);
    for (uint32_t i = 0; good && i < call->requests_count; i++) good = fill_request(call, i, &lists[i], max_tokens[i]);
    return good || refuse_memory(error);
}

bool api_call_prepare(struct api_call *call, struct api_error *error)
{
    CHECK(call->body && !call->requests);         /* prepared once */
    size_t total = call->arena.used_bytes + 4096; /* and the prefix */
    struct token_list *lists = mem_alloc(call->requests_count, sizeof *lists);
    uint32_t *max_tokens = mem_alloc(call->requests_count, sizeof *max_tokens);
    bool good = (lists && max_tokens) || refuse_memory(error);
    for (uint32_t i = 0; good && i < call->requests_count; i++)
        good = plan_prompt(call, i, &lists[i], &max_tokens[i], &total, error);
    if (good) good = take_memory(call, lists, max_tokens, error);
    for (uint32_t i = 0; lists && i < call->requests_count; i++) token_list_free(&lists[i]);
    mem_free(max_tokens);
    mem_free(lists);
    json_release(call->body); /* what is still needed of it was copied */
    call->body = NULL;
    return good;
}
