/* From a configuration to a model that can serve: file, vocabulary, template, device. Shared by serve and generate. */
#ifndef SERVER_LOAD_H
#define SERVER_LOAD_H

#include "runtime/device/device.h"
#include "runtime/model/model.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "server/config.h"

struct loaded {
    struct model *model;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template; /* NULL: the model has none */
    struct device *device;
    uint32_t context_max;
};

/* Opens, checks, packs (with a progress bar on a terminal, else a line at the end), releases the file. The caller's
 * thread: the server runs it on a thread of its own, so that it already answers /health while loading. ST_*: err is one
 * line. */
NODISCARD enum status load_model(const struct config *config, struct loaded *loaded, struct error *err);
void load_free(struct loaded *loaded);

#endif
