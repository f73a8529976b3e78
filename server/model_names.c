/* See model_names.h. */
#include "server/model_names.h"

#include "runtime/base/mem.h"
#include "server/config.h"

#include <string.h>

static enum status add_one(struct model_names *names, const char *text, size_t length, struct error *err)
{
    if (length == 0 || length > MODEL_NAME_BYTES_MAX)
        return error_set(err, ST_INVAL, "a model's name must have 1 to %d bytes", MODEL_NAME_BYTES_MAX);
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] < 0x20 || (unsigned char)text[i] == 0x7f)
            return error_set(err, ST_INVAL, "a model's name must not have control characters");
    if (names->count == MODEL_NAMES_MAX)
        return error_set(err, ST_LIMIT, "a model has more than %d names", MODEL_NAMES_MAX);
    char *copy = mem_strdup(text, length);
    if (!copy) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    names->items[names->count++] = copy;
    return ST_OK;
}

enum status model_names_add(struct model_names *names, const char *text, bool list, struct error *err)
{
    for (;;) {
        size_t length = list ? strcspn(text, ",") : strlen(text);
        TRY(add_one(names, text, length, err));
        if (!text[length]) return ST_OK;
        text += length + 1;
    }
}

enum status model_names_of_path(struct model_names *names, const char *path, struct error *err)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--; /* of a folder */
    size_t begin = length;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    if (length - begin > 5 && strncmp(path + length - 5, ".gguf", 5) == 0) length -= 5;
    if (length - begin > MODEL_NAME_BYTES_MAX) length = begin + MODEL_NAME_BYTES_MAX;
    return add_one(names, path + begin, length - begin, err);
}

enum status model_names_of_config(struct model_names *names, const struct config *config, uint32_t idx,
                                  struct error *err)
{
    const struct config_list *given = &config->served_names;
    if (given->count == 0) return model_names_of_path(names, config->models.items[idx], err);
    if (config->models.count > 1) return model_names_add(names, given->items[idx], true, err);
    for (uint32_t i = 0; i < given->count; i++) TRY(model_names_add(names, given->items[i], false, err));
    return ST_OK;
}

void model_names_free(struct model_names *names)
{
    for (uint32_t i = 0; i < names->count; i++) mem_free(names->items[i]);
    names->count = 0;
}

bool model_names_have(const struct model_names *names, const char *name)
{
    for (uint32_t i = 0; i < names->count; i++)
        if (strcmp(names->items[i], name) == 0) return true;
    return false;
}

/* Whether the name at (model, idx) stands before it already. */
static bool stands_before(const struct model_names *all, uint32_t model, uint32_t idx)
{
    const char *name = all[model].items[idx];
    for (uint32_t i = 0; i < model; i++)
        if (model_names_have(&all[i], name)) return true;
    for (uint32_t i = 0; i < idx; i++)
        if (strcmp(all[model].items[i], name) == 0) return true;
    return false;
}

enum status model_names_check(const struct config *config, struct error *err)
{
    uint32_t models = config->models.count, given = config->served_names.count;
    if (models > 1 && given > 0 && given != models)
        return error_set(err, ST_INVAL,
                         "--served-model-name: %u values for %u models; give one for each, with more names of a model "
                         "after commas",
                         given, models);
    struct model_names *all = mem_alloc(models, sizeof *all);
    if (!all) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    enum status status = ST_OK;
    struct error reason = {""};
    for (uint32_t i = 0; i < models && status == ST_OK; i++) {
        status = model_names_of_config(&all[i], config, i, &reason);
        if (status != ST_OK) {
            error_set(err, status, "%.200s: %s", given ? "--served-model-name" : config->models.items[i],
                      reason.message);
            break;
        }
        for (uint32_t k = 0; k < all[i].count && status == ST_OK; k++)
            if (stands_before(all, i, k))
                status = error_set(err, ST_INVAL,
                                   "the name \"%.200s\" stands for two models or twice; give each its own with "
                                   "--served-model-name",
                                   all[i].items[k]);
    }
    for (uint32_t i = 0; i < models; i++) model_names_free(&all[i]);
    mem_free(all);
    return status;
}
