/* How a model's vendor means it to be sampled: generation_config.json of its folder. A request's own values win over
 * these, and these over the API's (temperature 1, the rest off). */
#ifndef RUNTIME_MODEL_SAMPLING_DEFAULTS_H
#define RUNTIME_MODEL_SAMPLING_DEFAULTS_H

#include "runtime/base/status.h"

#include <stdint.h>

#define SAMPLING_REPETITION_MIN 0.01
#define SAMPLING_REPETITION_MAX 100.0

struct sampling_defaults {
    double temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k; /* 0: off */
};

/* The API's own: a model that says nothing. */
struct sampling_defaults sampling_defaults_none(void);

/* Reads folder/generation_config.json; without one, or without a key, the API's own stand. do_sample is not heeded: it
 * tells a library which of its methods to use, while a client who wants greedy tokens says temperature 0. ST_INVAL: a
 * value of another kind or out of range; else as json_file_read. */
NODISCARD enum status sampling_defaults_read(const char *folder, struct sampling_defaults *defaults, struct error *err);

#endif
