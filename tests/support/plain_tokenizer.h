/* A vocabulary for engines on the null device, whose ids mean nothing: ids 0 to 61 are letters and digits, those beyond
 * "w62", "w63" ..; the last but one is the control token "<s>", the last one "</s>", which ends a text. */
#ifndef TESTS_SUPPORT_PLAIN_TOKENIZER_H
#define TESTS_SUPPORT_PLAIN_TOKENIZER_H

#include "runtime/text/tokenizer.h"

enum { PLAIN_VOCAB_MAX = 1024 };

/* One size a process: its texts are static. ST_NOMEM; vocab is 3 to PLAIN_VOCAB_MAX. */
NODISCARD enum status plain_tokenizer_create(uint32_t vocab, struct tokenizer **tokenizer, struct error *err);

#endif
