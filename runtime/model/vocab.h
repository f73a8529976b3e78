/* A vocabulary as plain data: what a model file says about text, before anything is built from it. Filled by
 * runtime/model (from GGUF metadata, later from tokenizer.json), read by runtime/text. Strings are borrowed from the
 * model and valid as long as it. Immutable after loading; any thread. */
#ifndef RUNTIME_MODEL_VOCAB_H
#define RUNTIME_MODEL_VOCAB_H

#include <stdbool.h>
#include <stdint.h>

enum vocab_kind {
    VOCAB_NORMAL = 1,
    VOCAB_UNKNOWN,
    VOCAB_CONTROL,
    VOCAB_USER_DEFINED,
    VOCAB_UNUSED,
    VOCAB_BYTE
}; /* GGUF's */

struct vocab_string {
    const char *text; /* not NUL-terminated */
    uint32_t length;
};

enum { VOCAB_NO_ID = UINT32_MAX, VOCAB_END_IDS_MAX = 16 };

struct vocab {
    char model[32]; /* tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (SentencePiece) ... */
    char pre[64];   /* tokenizer.ggml.pre: the pre-tokeniser's name, "" when absent */
    uint32_t count;
    struct vocab_string *tokens; /* (count) in the file's form: byte-level for gpt2 */
    uint8_t *kinds;              /* (count) enum vocab_kind */
    float *scores;               /* (count) or NULL */
    uint32_t merges_count;
    struct vocab_string *merges;                     /* "left right", in order of rank */
    uint32_t bos_id, eos_id, unknown_id, padding_id; /* VOCAB_NO_ID when absent */
    uint32_t
        end_ids[VOCAB_END_IDS_MAX]; /* every id that ends a generation: eos, eot, eom, and the families' end of turn */
    uint32_t end_ids_count;
    bool add_bos, add_eos, add_space_prefix;
};

#endif
