/* The names under which a model is served, from --served-model-name or from its path. Pure.
 *
 * One model: every value of the option is a name of it (as with vLLM). Several: the n-th value belongs to the n-th
 * model, with its names separated by commas. Without the option a model has the name of its file without folder and
 * .gguf, or of its folder. Two equal names are refused. */
#ifndef SERVER_MODEL_NAMES_H
#define SERVER_MODEL_NAMES_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct config;

enum { MODEL_NAMES_MAX = 64, MODEL_NAME_BYTES_MAX = 255 };

struct model_names {
    char *items[MODEL_NAMES_MAX]; /* owned */
    uint32_t count;
};

/* Names from text: one name, or with `list` several between commas. Appends. ST_INVAL: empty, too long, a control
 * character; ST_LIMIT; ST_NOMEM. */
NODISCARD enum status model_names_add(struct model_names *names, const char *text, bool list, struct error *err);
/* The name that a path gives. */
NODISCARD enum status model_names_of_path(struct model_names *names, const char *path, struct error *err);
/* The names of the model with that index in config->models. */
NODISCARD enum status model_names_of_config(struct model_names *names, const struct config *config, uint32_t idx,
                                            struct error *err);
void model_names_free(struct model_names *names);

bool model_names_have(const struct model_names *names, const char *name);

/* Whether every model of the configuration has names, and no two the same. ST_INVAL says which. */
NODISCARD enum status model_names_check(const struct config *config, struct error *err);

#endif
