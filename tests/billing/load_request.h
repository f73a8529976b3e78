/* Requests of the load: what is sent, and what its sender knows of the bill before any answer.
 *
 * Everything follows from a seed. Prompts are plain text over the null server's vocabulary of single bytes, so that the
 * number of input ids can be counted here: a byte is an id, a chat message costs its template besides. Nothing of this
 * comes from the code that counts for money. */
#ifndef TESTS_BILLING_LOAD_REQUEST_H
#define TESTS_BILLING_LOAD_REQUEST_H

#include "runtime/base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum { LOAD_PROMPTS_MAX = 4, LOAD_CHOICES_MAX = 4, LOAD_MODELS_MAX = 8 };

/* What the client does to the connection. A cut: when cut_bytes of the answer have come, or after cut_ms. */
enum load_fault {
    LOAD_NO_FAULT,
    LOAD_CUT_RESET, /* closes with a reset */
    LOAD_CUT_CLOSE, /* closes */
    LOAD_CUT_HALF,  /* ends its own side, and reads what still comes */
    LOAD_CUT_SEND,  /* closes before the request is complete: never billed */
    LOAD_SLOW       /* reads a little now and then */
};

struct load_mix {
    uint64_t seed, first_number; /* requests are numbered from here: their ids are unique over several runs */
    const char *run;             /* part of the requests' ids */
    char **keys, **accounts;     /* the n-th key belongs to the n-th account */
    uint32_t keys_count;
    const char *models[LOAD_MODELS_MAX];
    uint32_t models_count;
    uint32_t tokens_max; /* long answers have up to this many ids */
    uint32_t cut_permille, slow_permille, bad_permille, retry_permille;
    bool text_only; /* a model whose ids cannot be counted here */
};

struct load_request {
    uint64_t number;
    char id[48];    /* x-request-id */
    char retry[48]; /* Idempotency-Key, or "" */
    uint32_t key, model;
    bool chat, stream, bad, ids_told, repeated;
    uint32_t prompts, choices, max_tokens; /* choices: of each prompt */
    uint32_t in_total;                     /* input ids of all prompts; 0: not known */
    enum load_fault fault;
    uint64_t cut_bytes;
    uint32_t cut_ms;     /* since it was sent; 0: only bytes count */
    uint64_t shape_seed; /* what the body is made from: a retry sends the same */
};

/* The request with the number; the same for the same mix. */
void load_request_make(const struct load_mix *mix, uint64_t number, struct load_request *request);
/* The same once more under the same Idempotency-Key, as a request of its own. */
void load_request_again(const struct load_mix *mix, uint64_t number, const struct load_request *first,
                        struct load_request *request);
/* Head and body. Fills in_total. */
void load_request_write(const struct load_mix *mix, struct load_request *request, struct buf *out);

#endif
