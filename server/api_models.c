/* The models of a server as the API sees them: which one a body names, and the list of all. Shapes are vLLM's and
 * OpenAI's, with `state` beside them; see api.h. */
#include "server/api_call.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* All names, as many as fit. */
static void list_names(const struct api_models *models, char *text, size_t size_bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < models->count; i++)
        for (uint32_t k = 0; k < models->items[i]->names_count; k++) {
            const char *name = models->items[i]->names[k];
            if (used + strlen(name) + 8 > size_bytes) {
                (void)snprintf(text + used, size_bytes - used, ", ...");
                return;
            }
            used += (size_t)snprintf(text + used, size_bytes - used, "%s%s", used ? ", " : "", name);
        }
}

bool api_refuse_model(const struct api_models *models, const char *name, struct api_error *error)
{
    char names[256];
    list_names(models, names, sizeof names);
    api_error_set(error, 404, "not_found_error", "model_not_found", "model",
                  "The model `%.150s` does not exist or you do not have access to it. Served here: %s.", name,
                  models->count ? names : "none");
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

bool api_model_pick(const struct fields *fields, struct api_models *models)
{
    const char *name = "";
    size_t length = 0;
    models->picked = models->count;
    if (!field_text(fields, "model", &name, &length)) return false;
    if (length) {
        models->picked = find(models, name);
        if (models->picked == models->count) return api_refuse_model(models, name, fields->error);
    } else if (models->count == 1) { /* as vLLM */
        models->picked = 0;
    } else {
        char names[256];
        list_names(models, names, sizeof names);
        api_error_set(fields->error, 400, "invalid_request_error", "missing_required_parameter", "model",
                      "Missing required parameter: 'model'. Served here: %s.", models->count ? names : "none");
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

int api_models(const struct api_models *models, const char *id_or_null, struct buf *out)
{
    if (id_or_null) {
        struct api_error error;
        uint32_t idx = find(models, id_or_null);
        if (idx < models->count) {
            append_card(models->items[idx], id_or_null, out);
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
    buf_append_text(out, "]}");
    return 200;
}
