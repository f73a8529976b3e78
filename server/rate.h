/* Rate limits of API keys: requests a minute, tokens a minute, requests at a time.
 *
 *   rate_admit (tokens estimated: prompt + what may be generated) -> running -> rate_end (tokens as counted)
 *
 * Token buckets with exact integers: a bucket holds one minute's worth and fills evenly, by the millisecond; what a
 * division leaves over is kept for the next one, so nothing is lost or won however often a key asks. An estimate above
 * the whole bucket passes when the bucket is full, and leaves it in debt: else a large request could never run. What
 * was estimated too much goes back at the end; what was counted above goes off, and may leave a debt.
 *
 * Keys are known by number. A key that is full again and runs nothing is forgotten, so memory is bounded by the keys
 * that asked in the last minute or two, at most `keys_max`; beyond that a new key is refused (RATE_FULL).
 *
 * Pure: now_ns (monotonic) goes in. One thread. Headers: OpenAI's, platform.openai.com/docs/guides/rate-limits. */
#ifndef SERVER_RATE_H
#define SERVER_RATE_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct rates;

struct rate_limits {
    uint32_t rpm, concurrency; /* 0: not limited */
    uint64_t tpm;              /* above RATE_TPM_MAX: that */
};
#define RATE_TPM_MAX UINT64_C(100000000000000)

enum rate_verdict {
    RATE_OK,
    RATE_REQUESTS,    /* 429, type "requests" */
    RATE_TOKENS,      /* 429, type "tokens" */
    RATE_CONCURRENCY, /* 429, type "requests" */
    RATE_FULL         /* 503: too many keys at a time, or no memory */
};

NODISCARD enum status rates_create(uint32_t keys_max, struct rates **rates);
void rates_destroy(struct rates *rates);

/* Takes one request and `tokens` from the key's buckets and one of its places, or says what is short; then
 * *retry_after_ms is when it will not be (concurrency: a guess of a second). Nothing is taken then. Limits are those of
 * now: a raise adds its difference at once, a cut takes only what no longer fits. */
enum rate_verdict rate_admit(struct rates *rates, uint64_t key, const struct rate_limits *limits, uint64_t tokens,
                             uint64_t now_ns, uint32_t *retry_after_ms);
/* The request has ended, having used `used` of the `estimated` tokens; refused before it ran: used 0, and its request
 * still counts. */
void rate_end(struct rates *rates, uint64_t key, uint64_t estimated, uint64_t used, uint64_t now_ns);

/* What a key's client is told. remaining of a limit that is none: 0; reset: until the bucket is full. */
struct rate_view {
    uint64_t requests_limit, requests_left, requests_reset_ns;
    uint64_t tokens_limit, tokens_left, tokens_reset_ns;
    uint32_t running;
};
void rate_look(const struct rates *rates, uint64_t key, const struct rate_limits *limits, uint64_t now_ns,
               struct rate_view *view);

/* "x-ratelimit-limit-requests: 60\r\n" and its five fellows, each only if its limit is set. */
void rate_headers(const struct rate_view *view, struct buf *out);
/* "1s", "6m0s", "120ms", as OpenAI writes them; rounded up to ms, from a second on to seconds. */
void rate_duration(uint64_t ns, struct buf *out);

#endif
