/* From a vocabulary to the plan of a tokenizer: which layers it has. tokenizer.json says so step by step; GGUF gives a
 * name for it, and the steps are those with which the models of that name were made. */
#ifndef RUNTIME_TEXT_TOKENIZER_PLAN_H
#define RUNTIME_TEXT_TOKENIZER_PLAN_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"
#include "runtime/text/pretokenize.h"
#include "runtime/text/tokenizer_bpe.h"

#include <stdbool.h>
#include <stdint.h>

enum plan_model { PLAN_BPE, PLAN_UNIGRAM, PLAN_WORDPIECE, PLAN_WORDLEVEL };
enum { PLAN_STEPS_OWN = 4 };

struct plan {
    enum plan_model model;
    struct bpe_options bpe;
    bool bytes;   /* tokens are bytes, written as characters in the file */
    bool mapped;  /* the normaliser writes bytes as characters */
    bool lexed;   /* one lexer cuts the text */
    bool decoded; /* ids stand for what the decoders make of tokens; else for the tokens */
    enum pretokenize_pattern pattern;
    const struct vocab_step *normalizers, *pretokenizers, *decoders; /* the vocabulary's, or own */
    uint32_t normalizers_count, pretokenizers_count, decoders_count;
    struct vocab_step own[2][PLAN_STEPS_OWN];
};

/* ST_INVAL: a model or pre-tokeniser that is not known (err names those that are). plan must not be moved, and borrows
 * from the vocabulary. */
NODISCARD enum status plan_tokenizer(const struct vocab *vocab, struct plan *plan, struct error *err);

#endif
