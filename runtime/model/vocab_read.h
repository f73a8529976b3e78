/* The vocabulary and the chat template of a GGUF file, copied out of it: they outlive the mapping. A folder's:
 * vocab_folder.h. Owner: the caller; one thread. */
#ifndef RUNTIME_MODEL_VOCAB_READ_H
#define RUNTIME_MODEL_VOCAB_READ_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"

#include <stddef.h>

struct gguf;

/* Reads tokenizer.ggml.*. ST_INVAL: a key that is missing, of the wrong type or length, or an id outside the
 * vocabulary; ST_LIMIT; ST_NOMEM. On failure vocab is as vocab_free leaves it. */
NODISCARD enum status vocab_read(const struct gguf *file, struct vocab *vocab, struct error *err);
void vocab_free(struct vocab *vocab); /* releases what any reader took; a zeroed vocab is fine */

/* Adds an id to those that end a generation, if it is one and not there yet. False: no room. */
bool vocab_add_end(struct vocab *vocab, uint32_t id);
/* Adds the control tokens that end a turn in the families that have such. */
void vocab_add_turn_ends(struct vocab *vocab);

/* tokenizer.chat_template, NUL-terminated, released with mem_free; NULL when there is none. ST_INVAL: not UTF-8, or a
 * NUL inside; ST_NOMEM. */
NODISCARD enum status vocab_read_template(const struct gguf *file, const char **text, size_t *length,
                                          struct error *err);

#endif
