/* The normaliser of tokenizer.json: what becomes of text before anything is looked up. Steps run one after another, as
 * the `tokenizers` library's do, over one part of a text at a time.
 *
 * Trust goes along: where the caller has a byte of it for each byte of text, there is one for each byte that comes out,
 * set only if everything it was made of was trusted. Bytes that are no UTF-8 pass unchanged. Work grows with n (NFC and
 * its kin order marks by counting, so long runs of them do not square). Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_NORMALISE_H
#define RUNTIME_TEXT_NORMALISE_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/model/vocab.h"

#include <stddef.h>

struct normaliser;

/* Copies the steps. *normaliser is NULL where there are none. ST_INVAL: an expression or a map that is malformed or not
 * supported; ST_NOMEM. */
NODISCARD enum status normaliser_create(const struct vocab_step *steps, uint32_t count, struct normaliser **normaliser,
                                        struct error *err);
void normaliser_destroy(struct normaliser *normaliser); /* NULL is fine */

/* Two texts that change places: where a step reads and where it writes. Zeroed = empty; kept over calls. */
struct normal_text {
    struct buf text, trust; /* trust: a byte for each of text's, or empty */
    struct buf next_text, next_trust;
};

void normal_text_free(struct normal_text *text);

/* Normalises text[length] into out->text and, with trust (length bytes), out->trust. ST_LIMIT: a regular expression
 * took too many steps, or a step would make more than 64 bytes of each of text's and 64 KiB; ST_NOMEM. */
NODISCARD enum status normaliser_run(const struct normaliser *normaliser, const char *text, size_t length,
                                     const unsigned char *trust, struct normal_text *out);

#endif
