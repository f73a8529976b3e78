/* See plain_tokenizer.h. */
#include "tests/support/plain_tokenizer.h"

#include "runtime/base/check.h"

#include <stdio.h>
#include <string.h>

static struct vocab_string tokens[PLAIN_VOCAB_MAX]; /* tokenizers refer to them */
static uint8_t kinds[PLAIN_VOCAB_MAX];
static char texts[PLAIN_VOCAB_MAX][8];

static void fill(uint32_t vocab)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    for (uint32_t i = 0; i < vocab; i++) {
        if (i < sizeof letters - 1) {
            texts[i][0] = letters[i];
        } else {
            snprintf(texts[i], sizeof texts[i], "w%u", i);
        }
        kinds[i] = VOCAB_NORMAL;
    }
    strcpy(texts[vocab - 2], "<s>");
    strcpy(texts[vocab - 1], "</s>");
    kinds[vocab - 2] = kinds[vocab - 1] = VOCAB_CONTROL;
    for (uint32_t i = 0; i < vocab; i++)
        tokens[i] = (struct vocab_string){.text = texts[i], .length = (uint32_t)strlen(texts[i])};
}

enum status plain_tokenizer_create(uint32_t vocab, struct tokenizer **tokenizer, struct error *err)
{
    static uint32_t made;
    CHECK(vocab >= 3 && vocab <= PLAIN_VOCAB_MAX && (made == 0 || made == vocab));
    if (made == 0) fill(vocab);
    made = vocab;
    struct vocab plain = {.model = "gpt2",
                          .pre = "gpt-2",
                          .count = vocab,
                          .tokens = tokens,
                          .kinds = kinds,
                          .bos_id = VOCAB_NO_ID,
                          .eos_id = vocab - 1,
                          .unknown_id = VOCAB_NO_ID,
                          .padding_id = VOCAB_NO_ID,
                          .end_ids = {vocab - 1},
                          .end_ids_count = 1};
    return tokenizer_create(&plain, tokenizer, err);
}
