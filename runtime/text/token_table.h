/* The tokens of a vocabulary by id: their bytes and kinds. Two such tables stand in a tokenizer: of what is looked up
 * in text, and of what an id stands for in an answer. For byte-level vocabularies, whose files write a byte as a
 * printable character (GPT-2's map: "Ġ" is a space), tokens are plain bytes from creation on. Immutable after creation;
 * any thread. */
#ifndef RUNTIME_TEXT_TOKEN_TABLE_H
#define RUNTIME_TEXT_TOKEN_TABLE_H

#include "runtime/base/arena.h"
#include "runtime/base/status.h"
#include "runtime/model/vocab.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct token_table {
    uint32_t count, length_max;
    uint32_t *starts; /* (count + 1) offsets into bytes */
    char *bytes;
    uint8_t *kinds; /* (count) enum vocab_kind */
    bool *plain;    /* (count) the name is in the byte-level alphabet: merges may name it */
};

/* What is looked up: byte_level: of normal tokens the bytes they stand for, of special and user-defined ones their
 * name; else the file's text (and all are plain). ST_INVAL: no tokens, an unknown kind, more than 4 GiB of text;
 * ST_NOMEM. On failure the table needs no free. */
NODISCARD enum status token_table_init(struct token_table *table, const struct vocab *vocab, bool byte_level,
                                       struct error *err);

/* What ids stand for in text, by the steps of tokenizer.json's decoder (the library's rules: no step at all puts a
 * space between tokens). Control tokens keep their name. *start_spaces: how many spaces at the very start of a text are
 * not meant. Errors as above; ST_INVAL too for steps that cannot be told token by token, ST_LIMIT for those that
 * make more than 1 MiB of a token. */
NODISCARD enum status token_table_init_output(struct token_table *table, const struct vocab *vocab,
                                              const struct vocab_step *steps, uint32_t steps_count,
                                              uint32_t *start_spaces, struct error *err);
void token_table_free(struct token_table *table); /* fine on zeroed memory */

static inline const char *token_table_get(const struct token_table *table, uint32_t id, uint32_t *length)
{
    *length = table->starts[id + 1] - table->starts[id];
    return table->bytes + table->starts[id];
}

/* Tokens with a name of their own, which stands as it is in a byte-level vocabulary too. */
static inline bool token_table_is_name(uint8_t kind)
{
    return kind == VOCAB_CONTROL || kind == VOCAB_UNKNOWN || kind == VOCAB_USER_DEFINED;
}

/* The tokens that stand for bytes, named "<0x41>": byte_ids[b], VOCAB_NO_ID where there is none. */
void token_table_bytes(const struct token_table *table, uint32_t byte_ids[256]);

/* GPT-2's map: byte_of[c] is the byte of character c, or -1; char_of[b] the character of byte b. */
enum { BYTE_CHARACTERS = 0x100 + 68 };
void byte_level_map(int16_t byte_of[BYTE_CHARACTERS], uint16_t char_of[256]);
/* Byte-level text to bytes; false when a character is not of that alphabet. out has room for length bytes;
 * what it holds then is not defined. */
bool byte_level_decode(const int16_t byte_of[BYTE_CHARACTERS], const char *text, size_t length, char *out,
                       size_t *out_length);

/* Copies the texts of a step of tokenizer.json, which its maker keeps, into the arena. ST_NOMEM. */
NODISCARD enum status step_texts_copy(struct arena *arena, struct vocab_step *step);

#endif
