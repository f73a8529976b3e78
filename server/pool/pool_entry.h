/* A deferrable request and its answer as bytes: what one server puts into Redis and another takes out.
 *
 *   entry   "MRP1" | crc32c u32 of all that follows | chat u8, 3 x 0 | account u64 | deadline_ms i64 | prompt_tokens
 * u32 | output_tokens u32 | length u32, the body as the client wrote it result  "MRR1" | crc32c u32 | run 8 | prompt 16
 * | in_total in_hit u32 | text_bytes reasoning trimmed u32 | finish u8, 3 x 0 | stop_id stop_string u32 | count u32,
 * ids u32..
 *
 * Little endian. An answer is its ids, not its text: whoever accepted the request renders and bills them as its own
 * engine's, so that its journal's hash of ids, its response id and its usage are what they would have been.
 * What comes from Redis is anybody's bytes: decoding checks every length and range before memory is taken, and what it
 * cannot check (ids within the vocabulary, the prompt) whoever knows the model does. Pure. */
#ifndef SERVER_POOL_POOL_ENTRY_H
#define SERVER_POOL_POOL_ENTRY_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "scheduler/request.h"

#include <stdbool.h>
#include <stdint.h>

enum { POOL_ID_BYTES = 16, POOL_PROMPT_BYTES = 16, POOL_RUN_BYTES = 8 };

struct pool_entry {
    bool chat;
    uint64_t account; /* whose prefixes it may share */
    int64_t deadline_ms;
    uint32_t prompt_tokens, output_tokens; /* for the plan, as the accepting server has measured them */
    const char *body;
    size_t body_length;
};

struct pool_result {
    uint8_t run[POOL_RUN_BYTES];       /* by chance: tells two runs with the same answer apart */
    uint8_t prompt[POOL_PROMPT_BYTES]; /* pool_prompt_hash of what was computed */
    uint32_t in_total;
    struct given_answer answer; /* ids: of this result */
};

/* Appends; a limit or lack of memory shows in out. */
void pool_entry_print(const struct pool_entry *entry, struct buf *out);
void pool_result_print(const struct pool_result *result, struct buf *out);

/* ST_PROTO: it is none (err). The body stays within bytes. */
NODISCARD enum status pool_entry_read(const void *bytes, size_t length, struct pool_entry *entry, struct error *err);
/* Also ST_NOMEM. Its ids are freed by pool_result_free, which an empty result does not need. */
NODISCARD enum status pool_result_read(const void *bytes, size_t length, struct pool_result *result, struct error *err);
void pool_result_free(struct pool_result *result);

void pool_prompt_hash(const uint32_t *ids, uint32_t count, uint8_t hash[POOL_PROMPT_BYTES]);

#endif
