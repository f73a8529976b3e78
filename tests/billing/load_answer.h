/* What a client can tell from the bytes of an answer, whole or cut: the response's id, how many ids of each choice have
 * arrived, and what `usage` said. Bytes go in as they come; counting is done once, at the end. */
#ifndef TESTS_BILLING_LOAD_ANSWER_H
#define TESTS_BILLING_LOAD_ANSWER_H

#include "runtime/base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum { ANSWER_CHOICES_MAX = 16, ANSWER_IDS_MAX = 2048 };

struct load_answer {
    struct buf raw; /* head and body as received */
    size_t head_bytes;
    uint16_t status; /* 0: no head yet */
    bool chunked, sized, closes;
    size_t body_bytes; /* sized: content-length */
    size_t chunk_at;   /* chunked: where the next chunk's size stands in raw */
    bool complete;     /* the whole answer is there */
};

struct load_counts {
    char id[40];   /* 32 hex digits of the response's id, or "" */
    bool done;     /* a stream's [DONE], or a whole body of status 200 */
    bool failed;   /* an error event in a stream */
    bool ids_seen; /* token_ids were in the answer */
    uint32_t ids[ANSWER_CHOICES_MAX];
    uint32_t ids_total;
    bool usage_seen; /* the final one, with its details */
    uint64_t prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens;
    uint64_t running_tokens; /* the last continuous usage: completion tokens delivered by then */
    char error[48];          /* code or type of an error, or "" */
    uint32_t id_values[ANSWER_CHOICES_MAX][ANSWER_IDS_MAX]; /* last: only what `ids` counts is set */
};

void load_answer_begin(struct load_answer *answer);
/* False: this is no HTTP answer. Sets answer->complete. */
bool load_answer_feed(struct load_answer *answer, const char *bytes, size_t length);
void load_answer_count(const struct load_answer *answer, struct load_counts *counts);

/* The hash that the record of one prompt must hold: SHA-256 over each of its choices' count (u32, little endian) and
 * the SHA-256 of its ids (alike); its first 16 bytes in hex. False: more ids than were kept. */
bool load_answer_hash(const struct load_counts *counts, uint32_t first_choice, uint32_t choices, char out[33]);

#endif
