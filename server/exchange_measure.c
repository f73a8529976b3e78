/* What calls yet to come will take, for promises about them: read, rendered and tokenised as the calls themselves will
 * be, and dropped. A counter of its own beside api_prepare.c was rejected: the two would part. */
#include "server/exchange_parts.h"

#include "runtime/base/mem.h"

struct measure {
    enum api_kind kind;
    struct caller caller;
    struct served *candidates[MODELS_MAX];
    const struct api_model *models[MODELS_MAX];
    bool ready[MODELS_MAX];
    uint32_t count;
};

struct measure *measure_begin(struct exchanges *set, enum exchange_kind kind, const struct caller *caller)
{
    struct measure *measure = mem_alloc(1, sizeof *measure);
    if (!measure) return NULL;
    measure->kind = kind == EXCHANGE_CHAT ? API_CHAT : API_COMPLETIONS;
    measure->caller = *caller;
    measure->count = set->models->count;
    for (uint32_t i = 0; i < measure->count; i++) {
        struct served *served = set->models->items[i];
        measure->candidates[i] = served;
        measure->models[i] = &served->model;
        measure->ready[i] = served->life.state == MODEL_READY;
        if (measure->ready[i])
            served_use(served);
        else
            served_pin(served);
    }
    return measure;
}

void measure_end(struct measure *measure)
{
    if (!measure) return;
    for (uint32_t i = 0; i < measure->count; i++) {
        if (measure->ready[i])
            served_leave(measure->candidates[i]);
        else
            served_unpin(measure->candidates[i]);
    }
    mem_free(measure);
}

bool measure_body(void *state, const struct buf *body, uint32_t *prompt_tokens, uint32_t *output_tokens)
{
    const struct measure *measure = state;
    struct api_models models = {
        .items = measure->models, .count = measure->count, .ready = measure->ready, .picked = measure->count};
    struct api_context context = {.models = &models,
                                  .tenant = measure->caller.tenant,
                                  .tenant_name = measure->caller.tenant_name,
                                  .now_unix_s = clock_unix_us(clock_system()) / 1000000,
                                  .now_unix_ms = clock_unix_ms(clock_system()),
                                  .now_ns = clock_ns(),
                                  .batch = true};
    struct api_call *call = NULL;
    struct api_error error;
    if (!buf_ok(body) || !api_call_create(measure->kind, body->data, body->length, &context, &call, &error))
        return false;
    bool good = api_call_prepare(call, &error);
    uint64_t prompt = 0, output = 0;
    uint32_t count = 0;
    const struct request *requests = good ? api_call_requests(call, &count) : NULL;
    for (uint32_t i = 0; i < count; i++) {
        prompt += requests[i].prompt_count;
        output += (uint64_t)requests[i].max_tokens * requests[i].choices_count;
    }
    api_call_destroy(call);
    *prompt_tokens = prompt < UINT32_MAX ? (uint32_t)prompt : UINT32_MAX;
    *output_tokens = output < UINT32_MAX ? (uint32_t)output : UINT32_MAX;
    return good;
}
