/* The vocabulary and the chat template of a Hugging Face folder: tokenizer.json, tokenizer_config.json,
 * generation_config.json, config.json, chat_template.jinja. Owner of what is filled: the caller; one thread. */
#ifndef RUNTIME_MODEL_VOCAB_FOLDER_H
#define RUNTIME_MODEL_VOCAB_FOLDER_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"

#include <stddef.h>

/* Fills vocab, which vocab_free (vocab_read.h) releases: the tokeniser from tokenizer.json; BOS, EOS, unknown and
 * padding tokens and whether BOS and EOS are added from tokenizer_config.json; end_ids from generation_config.json's
 * eos_token_id (a number or a list), else config.json's, and the control tokens that end a turn in known families.
 * Only tokenizer.json must be there. Every part of it is understood or refused by name. The vocabulary may be smaller
 * than the model's embedding, whose last rows are often padding. Errors: ST_NOTFOUND: no tokenizer.json; ST_IO;
 * ST_LIMIT: tokenizer_* and json_*; ST_INVAL; ST_NOMEM. err names the file. On failure vocab is as vocab_free leaves
 * it. */
NODISCARD enum status vocab_read_folder(const char *folder, struct vocab *vocab, struct error *err);

/* The chat template, NUL-terminated, released with mem_free: chat_template.jinja, else tokenizer_config.json's
 * chat_template (a string, or a list of {name, template} of which "default" counts). NULL when there is none. Errors as
 * above; ST_INVAL too for text with a NUL or that is not UTF-8. */
NODISCARD enum status vocab_read_folder_template(const char *folder, const char **text, size_t *length,
                                                 struct error *err);

#endif
