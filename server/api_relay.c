/* A call that another server answers (server/upstream): what the server keeps of any call (its id, one request with its
 * counts) without a model, tokens or views. Its text is not rendered here. */
#include "server/api_call.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

bool api_call_create_relayed(const struct api_relayed *what, const struct api_context *context, struct api_call **call,
                             struct api_error *error)
{
    struct api_call *made = mem_alloc(1, sizeof *made);
    if (!made) return refuse_memory(error);
    arena_init(&made->arena, limits.api_request_memory_bytes);
    made->kind = what->kind;
    made->stream = what->stream;
    made->now_unix_s = context->now_unix_s;
    made->wish.service_class = CLASS_DEFAULT;
    made->requests_count = 1;
    made->requests = arena_alloc(&made->arena, 1, sizeof *made->requests);
    struct choice *choices = arena_alloc(&made->arena, what->choices, sizeof *choices);
    uint32_t *none = arena_alloc(&made->arena, 1, sizeof *none);
    if (!made->requests || !choices || !none) {
        api_call_destroy(made);
        return refuse_memory(error);
    }
    for (uint32_t i = 0; i < what->choices; i++) choices[i].tokens = none; /* no ids: output_count stays 0 */
    *made->requests = (struct request){.tenant = context->tenant,
                                       .service_class = CLASS_DEFAULT,
                                       .deadline_ns = context->deadline_ns,
                                       .prompt = none,
                                       .prompt_count = what->prompt_max,
                                       .choices = choices,
                                       .choices_count = what->choices,
                                       .max_tokens = what->max_tokens};
    api_make_id(made, context->now_unix_ms);
    *call = made;
    return true;
}
