/* Text to token ids and back, exactly as the model was trained.
 *
 * Special tokens are recognised only where the text came from us: encode takes spans, and only text inside `trusted`
 * spans (chat template, our own prompts) may become a control token. A user's "<|im_end|>" is tokenised as the ordinary
 * characters it is. Ordinary text is still merged across span borders, so that a template with harmless content gives
 * the ids of the rendered string.
 *
 * A tokenizer is immutable after creation and shared by all threads. It copies what it needs from the vocabulary. */
#ifndef RUNTIME_TEXT_TOKENIZER_H
#define RUNTIME_TEXT_TOKENIZER_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* ST_INVAL: the vocabulary contradicts itself or its model or pre-tokeniser is not known (err names the known ones);
 * ST_NOMEM. The caller owns the result. */
NODISCARD enum status tokenizer_create(const struct vocab *vocab, struct tokenizer **tokenizer, struct error *err);
void tokenizer_destroy(struct tokenizer *tokenizer);

/* Consecutive pieces of a text, by the offset where each ends; the last one ends at the text's length. */
struct text_span {
    size_t end;
    bool trusted; /* special tokens are recognised here */
};

struct token_list {
    uint32_t *ids;
    size_t count, capacity;
    size_t limit; /* encode stops with ST_LIMIT beyond this; 0 = no limit */
    bool full;    /* limit was met: tells that ST_LIMIT from those of work */
};

void token_list_free(struct token_list *list);

/* Appends the ids of text to list. text need not be valid UTF-8 (each bad byte is encoded as that byte). add_special:
 * put the vocabulary's BOS/EOS around it where the vocabulary asks for them. spans_count 0: nothing is trusted. Work
 * grows as T5 (README.md) says. ST_LIMIT: list->limit (list->full), or a normaliser or regular expression that goes
 * beyond its bound; ST_NOMEM. Any thread. */
NODISCARD enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length,
                                       const struct text_span *spans, size_t spans_count, bool add_special,
                                       struct token_list *list);

/* The bytes an id stands for: for a special token its name, for a byte-level token the raw bytes (which may be part of
 * a character). Valid as long as the tokenizer. Empty for an id outside the vocabulary. */
const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t id, uint32_t *length);

/* How many spaces at the start of a whole text its first ids carry that are not part of it (SentencePiece writes one
 * before the first word). The text that goes on after a prompt keeps them. */
uint32_t tokenizer_start_spaces(const struct tokenizer *tokenizer);

/* tokenizer_bytes as NUL-terminated text of at most size - 1 bytes; "" for VOCAB_NO_ID and for what does not fit. */
void tokenizer_copy_name(const struct tokenizer *tokenizer, uint32_t id, char *name, size_t size);

/* Control and unknown tokens, which skip_special_tokens leaves out of the text. */
bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id);

/* The id of a special token by its exact name ("<think>"), or VOCAB_NO_ID. User-defined tokens count here too. */
uint32_t tokenizer_special_id(const struct tokenizer *tokenizer, const char *name);

uint32_t tokenizer_count(const struct tokenizer *tokenizer);
uint32_t tokenizer_bos(const struct tokenizer *tokenizer); /* VOCAB_NO_ID when there is none */
uint32_t tokenizer_eos(const struct tokenizer *tokenizer);
bool tokenizer_adds_bos(const struct tokenizer *tokenizer);
/* Ids that end a generation; valid as long as the tokenizer. */
const uint32_t *tokenizer_end_ids(const struct tokenizer *tokenizer, uint32_t *count);

#endif
