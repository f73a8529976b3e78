/* The pre-tokeniser of tokenizer.json, step by step, where no single lexer does all of it: each step cuts the pieces of
 * the one before, and may rewrite them. Equal to the `tokenizers` library's, whose names the steps carry.
 *
 * A ByteLevel step writes bytes as printable characters. For a model over bytes that is done only if more steps follow,
 * and the pieces that come out at the end are bytes again. Work grows with n for the steps written here; for a regular
 * expression with the steps of its engine, which are bounded (regex.h). Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_PRETOKENIZE_STEPS_H
#define RUNTIME_TEXT_PRETOKENIZE_STEPS_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/model/vocab.h"
#include "runtime/text/unicode_class.h"

#include <stdbool.h>
#include <stddef.h>

struct cutter;

/* classes must live as long as the cutter. mapped: the normaliser has written bytes as characters already.
 * bytes: the pieces shall be bytes. ST_INVAL: a step that is malformed or not supported; ST_NOMEM. */
NODISCARD enum status cutter_create(const struct vocab_step *steps, uint32_t count, bool mapped, bool bytes,
                                    const struct unicode_classes *classes, struct cutter **cutter, struct error *err);
void cutter_destroy(struct cutter *cutter); /* NULL is fine */

struct piece_range {
    size_t start, end;
    bool match;
};

struct piece_list {
    struct buf text; /* the pieces, one behind another */
    size_t *ends;    /* (count) where each ends in text */
    size_t count, capacity;
    bool starts; /* the first piece stands at the start of the whole text */
    bool failed; /* no memory */
};

/* Zeroed = empty; kept over calls. `now` holds the result. */
struct cutting {
    struct piece_list now, next;
    struct piece_range *ranges;
    size_t ranges_count, ranges_capacity;
    bool failed;
};

void cutting_free(struct cutting *cutting);

/* Cuts text[length]; at_start: nothing of the whole text stands before it. ST_LIMIT: a regular expression took too many
 * steps; ST_NOMEM. */
NODISCARD enum status cutter_run(const struct cutter *cutter, const char *text, size_t length, bool at_start,
                                 struct cutting *cutting);

#endif
