/* The models of a server as the API sees them: which one a body names, and the list of all. Shapes are vLLM's and
 * OpenAI's, with `state` beside them; see api.h. */
#include "server/api_call.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct name_list {
    char text[256];
    size_t used;
    bool full;
};

static void list_name(struct name_list *list, const char *name)
{
    size_t room = sizeof list->text - list->used;
    list->full = list->full || strlen(name) + 8 > room;
    if (list->full) {
        (void)snprintf(list->text + list->used, room, ", ...");
        return;
    }
    list->used += (size_t)snprintf(list->text + list->used, room, "%s%s", list->used ? ", " : "", name);
}

/* All names, as many as fit. */
static const char *list_names(const struct api_models *models, struct name_list *list)
{
    *list = (struct name_list){.used = 0};
    for (uint32_t i = 0; i < models->count; i++)
        for (uint32_t k = 0; k < models->items[i]->names_count; k++) list_name(list, models->items[i]->names[k]);
    for (uint32_t i = 0; i < models->far_count; i++) list_name(list, models->far[i].name);
    return models->count + models->far_count ? list->text : "none";
}

bool api_refuse_model(const struct api_models *models, const char *name, struct api_error *error)
{
    struct name_list names;
    api_error_set(error, 404, "not_found_error", "model_not_found", "model",
                  "The model `%.150s` does not exist or you do not have access to it. Served here: %s.", name,
                  list_names(models, &names));
    return false;
}

/* The model of that name, or count. */
static uint32_t find(const struct api_models *models, const char *name)
{
    for (uint32_t i = 0; i < models->count; i++)
        for (uint32_t k = 0; k < models->items[i]->names_count; k++)
            if (strcmp(models->items[i]->names[k], name) == 0) return i;
    return models->count;
}

/* The far model of that name, or far_count. */
static uint32_t find_far(const struct api_models *models, const char *name)
{
    uint32_t i = 0;
    while (i < models->far_count && strcmp(models->far[i].name, name) != 0) i++;
    return i;
}

static bool pick_far(const struct fields *fields, struct api_models *models, uint32_t idx)
{
    models->far_picked = idx + 1;
    api_error_set(fields->error, 400, "invalid_request_error", "model_is_upstream", "model",
                  "The model `%.150s` is served by another server, to which only chat completions and completions are "
                  "relayed, one by one.",
                  models->far[idx].name);
    return false;
}

bool api_model_pick(const struct fields *fields, struct api_models *models)
{
    const char *name = "";
    size_t length = 0;
    models->picked = models->count;
    models->far_picked = 0;
    if (!field_text(fields, "model", &name, &length)) return false;
    if (length) {
        models->picked = find(models, name);
        uint32_t far = models->picked == models->count ? find_far(models, name) : models->far_count;
        if (far < models->far_count) return pick_far(fields, models, far);
        if (models->picked == models->count) return api_refuse_model(models, name, fields->error);
    } else if (models->count + models->far_count == 1) { /* as vLLM */
        models->picked = 0;
        if (models->count == 0) return pick_far(fields, models, 0);
    } else {
        struct name_list names;
        api_error_set(fields->error, 400, "invalid_request_error", "missing_required_parameter", "model",
                      "Missing required parameter: 'model'. Served here: %s.", list_names(models, &names));
        return false;
    }
    if (!models->ready || models->ready[models->picked]) return true;
    api_error_set(fields->error, 503, "server_error", "model_loading", "model", "The model `%.200s` is not ready.",
                  models->items[models->picked]->names[0]);
    return false;
}

static void append_card(const struct api_model *model, const char *name, struct buf *out)
{
    const char *root = model->names[0];
    buf_append_text(out, "{\"id\":");
    buf_append_json_string(out, name, strlen(name));
    buf_append_format(out, ",\"object\":\"model\",\"created\":%" PRId64 ",\"owned_by\":\"millrace\",\"root\":",
                      model->created_unix_s);
    buf_append_json_string(out, root, strlen(root));
    buf_append_text(out, ",\"parent\":null,\"max_model_len\":");
    if (model->context_max)
        buf_append_format(out, "%" PRIu32, model->context_max);
    else
        buf_append_text(out, "null");
    if (model->state) buf_append_format(out, ",\"state\":\"%s\"", model->state);
    buf_append_char(out, '}');
}

static void append_far_card(const struct api_far *far, struct buf *out)
{
    buf_append_text(out, "{\"id\":");
    buf_append_json_string(out, far->name, strlen(far->name));
    buf_append_format(out, ",\"object\":\"model\",\"created\":%" PRId64 ",\"owned_by\":", far->created_unix_s);
    buf_append_json_string(out, far->owner, strlen(far->owner));
    buf_append_text(out, ",\"root\":");
    buf_append_json_string(out, far->name, strlen(far->name));
    buf_append_text(out, ",\"parent\":null,\"max_model_len\":");
    if (far->context_max)
        buf_append_format(out, "%" PRIu32 "}", far->context_max);
    else
        buf_append_text(out, "null}");
}

int api_models(const struct api_models *models, const char *id_or_null, struct buf *out)
{
    if (id_or_null) {
        struct api_error error;
        uint32_t idx = find(models, id_or_null);
        if (idx < models->count) {
            append_card(models->items[idx], id_or_null, out);
            return 200;
        }
        idx = find_far(models, id_or_null);
        if (idx < models->far_count) {
            append_far_card(&models->far[idx], out);
            return 200;
        }
        (void)api_refuse_model(models, id_or_null, &error);
        api_error_body(&error, out);
        return error.http_status;
    }
    bool first = true;
    buf_append_text(out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < models->count; i++)
        for (uint32_t k = 0; k < models->items[i]->names_count; k++, first = false) {
            if (!first) buf_append_char(out, ',');
            append_card(models->items[i], models->items[i]->names[k], out);
        }
    for (uint32_t i = 0; i < models->far_count; i++) {
        if (find(models, models->far[i].name) < models->count) continue;
        if (!first) buf_append_char(out, ',');
        append_far_card(&models->far[i], out);
        first = false;
    }
    buf_append_text(out, "]}");
    return 200;
}
