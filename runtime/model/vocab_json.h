/* tokenizer.json, the file of the `tokenizers` library, to a vocabulary as plain data. Nothing in the file is passed
 * over in silence: a part or a setting that is not known is refused by its name. Owner: the caller; one thread. */
#ifndef RUNTIME_MODEL_VOCAB_JSON_H
#define RUNTIME_MODEL_VOCAB_JSON_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"

#include <stddef.h>

/* Fills vocab from text[length], which is overwritten; nothing points into it afterwards. bos, eos, padding and end ids
 * stay VOCAB_NO_ID: the file does not say. ST_INVAL, ST_LIMIT, ST_NOMEM. On failure vocab is as vocab_free leaves it.
 */
NODISCARD enum status vocab_read_json(char *text, size_t length, struct vocab *vocab, struct error *err);

/* The id of the token with this text, or VOCAB_NO_ID. Looks at every token. */
uint32_t vocab_find(const struct vocab *vocab, const char *text, size_t length);

#endif
