/* The pipeline of a tokenizer.json: its normaliser, pre-tokeniser, decoder and post-processor as flat lists of steps.
 * Part of vocab_json; one thread. */
#ifndef RUNTIME_MODEL_VOCAB_JSON_STEPS_H
#define RUNTIME_MODEL_VOCAB_JSON_STEPS_H

#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/model/vocab.h"

enum vocab_stage { STAGE_NORMALIZER, STAGE_PRE_TOKENIZER, STAGE_DECODER, STAGE_COUNT };

/* Reads the value of "normalizer", "pre_tokenizer" or "decoder" (null: no steps) into the pipeline, in whose arena all
 * of it lies. ST_INVAL: a part, field or value that is not known, by name; ST_LIMIT: tokenizer_steps; ST_NOMEM. */
NODISCARD enum status vocab_json_steps(const struct json *value, enum vocab_stage stage,
                                       struct vocab_pipeline *pipeline, struct error *err);

/* Reads "post_processor" into prefix_ids and suffix_ids. vocab holds the tokens already. Errors as above. */
NODISCARD enum status vocab_json_post_processor(const struct json *value, const struct vocab *vocab,
                                                struct vocab_pipeline *pipeline, struct error *err);

#endif
