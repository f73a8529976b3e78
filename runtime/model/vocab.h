/* A vocabulary as plain data: what a model file says about text, before anything is built from it. Filled by
 * runtime/model, read by runtime/text. GGUF names a tokeniser (model, pre); tokenizer.json spells one out, step by step
 * (pipeline). Strings are borrowed from the model and valid as long as it. Immutable after loading; any thread. */
#ifndef RUNTIME_MODEL_VOCAB_H
#define RUNTIME_MODEL_VOCAB_H

#include <stdbool.h>
#include <stdint.h>

struct arena;

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

/* The parts of tokenizer.json's normalisers, pre-tokenisers and decoders, by the library's names. */
#define VOCAB_STEPS(X)                                                                                                 \
    X(STEP_NFC, "NFC")                                                                                                 \
    X(STEP_NFD, "NFD")                                                                                                 \
    X(STEP_NFKC, "NFKC")                                                                                               \
    X(STEP_NFKD, "NFKD")                                                                                               \
    X(STEP_NMT, "Nmt")                                                                                                 \
    X(STEP_LOWERCASE, "Lowercase")                                                                                     \
    X(STEP_STRIP, "Strip")                                                                                             \
    X(STEP_STRIP_ACCENTS, "StripAccents")                                                                              \
    X(STEP_PREPEND, "Prepend")                                                                                         \
    X(STEP_REPLACE, "Replace")                                                                                         \
    X(STEP_PRECOMPILED, "Precompiled")                                                                                 \
    X(STEP_BERT_NORMALIZER, "BertNormalizer")                                                                          \
    X(STEP_BYTE_LEVEL, "ByteLevel")                                                                                    \
    X(STEP_SPLIT, "Split")                                                                                             \
    X(STEP_DIGITS, "Digits")                                                                                           \
    X(STEP_METASPACE, "Metaspace")                                                                                     \
    X(STEP_WHITESPACE, "Whitespace")                                                                                   \
    X(STEP_WHITESPACE_SPLIT, "WhitespaceSplit")                                                                        \
    X(STEP_PUNCTUATION, "Punctuation")                                                                                 \
    X(STEP_BERT_PRE_TOKENIZER, "BertPreTokenizer")                                                                     \
    X(STEP_CHAR_DELIMITER, "CharDelimiterSplit")                                                                       \
    X(STEP_BYTE_FALLBACK, "ByteFallback")                                                                              \
    X(STEP_FUSE, "Fuse")                                                                                               \
    X(STEP_WORDPIECE, "WordPiece")                                                                                     \
    X(STEP_BPE_DECODER, "BPEDecoder")

enum vocab_step_type {
#define X(name, text) name,
    VOCAB_STEPS(X)
#undef X
};

/* What a split does with the places that its pattern matches. */
enum vocab_behavior {
    BEHAVIOR_REMOVED,
    BEHAVIOR_ISOLATED,
    BEHAVIOR_MERGED_WITH_PREVIOUS,
    BEHAVIOR_MERGED_WITH_NEXT,
    BEHAVIOR_CONTIGUOUS
};

enum vocab_prepend { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };

struct vocab_step {
    enum vocab_step_type type;
    enum vocab_behavior behavior;     /* Split, Punctuation */
    enum vocab_prepend prepend;       /* Metaspace */
    struct vocab_string pattern;      /* Split, Replace, CharDelimiterSplit; a decoder's prefix or suffix */
    struct vocab_string content;      /* Replace, Prepend, Append, Metaspace's replacement, Precompiled's map */
    uint32_t start, stop;             /* the decoder Strip: how many at each end */
    bool regex;                       /* pattern is a regular expression */
    bool invert;                      /* Split: the pattern is what stands between the matches */
    bool add_prefix_space, use_regex; /* ByteLevel */
    bool individual;                  /* Digits */
    bool split;                       /* Metaspace */
    bool left, right;                 /* the normaliser Strip */
    bool clean_text, chinese, accents, lowercase; /* BertNormalizer */
    bool cleanup;                                 /* the decoder WordPiece */
};

struct vocab_added { /* an added token; its text and kind (control or user-defined) are those of its id */
    uint32_t id;
    bool normalized, lstrip, rstrip, single_word;
};

struct vocab_merge {
    uint32_t left, right, product;
};

struct vocab_pipeline {
    struct vocab_step *normalizers, *pretokenizers, *decoders; /* in order, sequences laid flat */
    uint32_t normalizers_count, pretokenizers_count, decoders_count;
    struct vocab_added *added;
    uint32_t added_count;
    uint32_t *prefix_ids, *suffix_ids; /* the post-processor: what stands around one text */
    uint32_t prefix_count, suffix_count;
    struct vocab_merge *merges; /* (vocab.merges_count) by rank */
    double *scores;             /* (vocab.count) Unigram's, else NULL */
    struct vocab_string continuing_prefix, word_suffix;
    uint32_t word_chars_max; /* WordPiece: a longer word is unknown */
    bool byte_fallback, fuse_unknown, ignore_merges;
    struct arena *arena; /* holds all of the above */
};

struct vocab {
    char model[32]; /* GGUF: tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (SentencePiece), "t5" (unigram).
                       tokenizer.json: model.type: "BPE", "Unigram", "WordPiece", "WordLevel" */
    char pre[64];   /* tokenizer.ggml.pre: the pre-tokeniser's name, "" when absent */
    uint32_t count;
    struct vocab_string *tokens; /* (count) in the file's form: byte-level for gpt2 */
    uint8_t *kinds;              /* (count) enum vocab_kind */
    float *scores;               /* (count) or NULL */
    uint32_t merges_count;
    struct vocab_string *merges;                     /* GGUF: "left right", in order of rank */
    uint32_t bos_id, eos_id, unknown_id, padding_id; /* VOCAB_NO_ID when absent */
    uint32_t
        end_ids[VOCAB_END_IDS_MAX]; /* every id that ends a generation: eos, eot, eom, and the families' end of turn */
    uint32_t end_ids_count;
    bool add_bos, add_eos, add_space_prefix;
    struct vocab_pipeline *pipeline; /* NULL for GGUF */
};

#endif
