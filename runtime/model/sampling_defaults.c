/* See sampling_defaults.h. */
#include "runtime/model/sampling_defaults.h"

#include "runtime/model/json_file.h"

#include <stddef.h>

static const char file_name[] = "generation_config.json";

static enum status read_number(const struct json *root, const char *key, double min, double max, double *number,
                               struct error *err)
{
    const struct json *value = json_member(root, key);
    if (json_kind(value) == JSON_KIND_NULL) return ST_OK;
    if (!json_has_number(value))
        return error_set(err, ST_INVAL, "%s: %s is of kind %s, it must be a number", file_name, key,
                         json_kind_name(json_kind(value)));
    double found = json_to_number(value);
    if (!(found >= min && found <= max))
        return error_set(err, ST_INVAL, "%s: %s is %g, it must be from %g to %g", file_name, key, found, min, max);
    *number = found;
    return ST_OK;
}

struct sampling_defaults sampling_defaults_none(void)
{
    return (struct sampling_defaults){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

static enum status read_all(const struct json *root, struct sampling_defaults *defaults, struct error *err)
{
    double top_k = 0;
    TRY(read_number(root, "temperature", 0, 2, &defaults->temperature, err));
    TRY(read_number(root, "top_p", 0, 1, &defaults->top_p, err));
    TRY(read_number(root, "min_p", 0, 1, &defaults->min_p, err));
    TRY(read_number(root, "repetition_penalty", SAMPLING_REPETITION_MIN, SAMPLING_REPETITION_MAX,
                    &defaults->repetition_penalty, err));
    TRY(read_number(root, "top_k", -1, INT32_MAX, &top_k, err));
    if (json_kind(json_member(root, "top_k")) == JSON_KIND_FLOAT)
        return error_set(err, ST_INVAL, "%s: top_k is %g, it must be a whole number", file_name, top_k);
    defaults->top_k = top_k < 1 ? 0 : (uint32_t)top_k;
    return ST_OK;
}

enum status sampling_defaults_read(const char *folder, struct sampling_defaults *defaults, struct error *err)
{
    struct json *root = NULL;
    struct sampling_defaults found = sampling_defaults_none();
    *defaults = found;
    enum status status = json_file_read(folder, file_name, &root, err);
    if (status == ST_NOTFOUND) return ST_OK;
    if (status == ST_OK) status = read_all(root, &found, err);
    json_release(root);
    if (status == ST_OK) *defaults = found;
    return status;
}
