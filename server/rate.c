/* See rate.h. A table of keys by number; each has two buckets. The table is swept a bucket of it at each admission, so
 * keys that are at rest go without a walk over all of them. */
#include "server/rate.h"

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"

#include <inttypes.h>

enum { PLACES = 16384, MINUTE_MS = 60000 };

struct bucket {
    uint64_t limit;  /* 0: none */
    int64_t left;    /* below 0: debt */
    uint64_t rest;   /* of the filling so far, in 1/MINUTE_MS */
    uint64_t now_ms; /* filled up to here */
};

struct rate_key {
    struct rate_key *next;
    uint64_t number;
    uint32_t running;
    struct bucket requests, tokens;
};

struct rates {
    uint32_t keys_max, keys_count, cursor;
    struct rate_key *places[PLACES];
};

enum status rates_create(uint32_t keys_max, struct rates **rates)
{
    struct rates *made = mem_alloc(1, sizeof *made);
    if (!made) return ST_NOMEM;
    made->keys_max = keys_max;
    *rates = made;
    return ST_OK;
}

void rates_destroy(struct rates *rates)
{
    if (!rates) return;
    for (int i = 0; i < PLACES; i++)
        for (struct rate_key *key = rates->places[i], *next; key; key = next) {
            next = key->next;
            mem_free(key);
        }
    mem_free(rates);
}

/* ---- a bucket ---- */

/* limit * MINUTE_MS fits: limit is at most RATE_TPM_MAX, below 2^47. */
static void fill(struct bucket *bucket, uint64_t now_ms)
{
    uint64_t passed_ms = now_ms > bucket->now_ms ? now_ms - bucket->now_ms : 0;
    if (now_ms > bucket->now_ms) bucket->now_ms = now_ms;
    while (passed_ms > 0 && bucket->left < (int64_t)bucket->limit) {
        uint64_t part_ms = passed_ms < MINUTE_MS ? passed_ms : MINUTE_MS;
        uint64_t more = part_ms * bucket->limit + bucket->rest;
        bucket->left += (int64_t)(more / MINUTE_MS);
        bucket->rest = more % MINUTE_MS;
        passed_ms -= part_ms;
    }
    if (bucket->left < (int64_t)bucket->limit) return;
    bucket->left = (int64_t)bucket->limit;
    bucket->rest = 0;
}

static void set_limit(struct bucket *bucket, uint64_t limit, uint64_t now_ms)
{
    if (bucket->limit) fill(bucket, now_ms);
    if (bucket->limit == limit) return;
    if (!bucket->limit)
        bucket->left = (int64_t)limit;
    else if (limit > bucket->limit)
        bucket->left += (int64_t)(limit - bucket->limit);
    else if (bucket->left > (int64_t)limit || !limit) /* no limit, no debt: such a bucket would never be full again */
        bucket->left = (int64_t)limit;
    bucket->limit = limit;
    bucket->rest = 0;
    bucket->now_ms = now_ms;
}

/* Until `left` is `level`, rounded up. */
static uint64_t wait_ms(const struct bucket *bucket, int64_t level)
{
    if (!bucket->limit || bucket->left >= level) return 0;
    uint64_t missing = (uint64_t)(level - bucket->left);
    uint64_t whole = missing / bucket->limit * MINUTE_MS; /* of debts above a minute's worth */
    uint64_t part = missing % bucket->limit * MINUTE_MS;
    if (part < bucket->rest) return whole;
    return whole + (part - bucket->rest + bucket->limit - 1) / bucket->limit;
}

/* What must be there for `wanted` to be taken: all of it, or a full bucket. */
static int64_t level_for(const struct bucket *bucket, uint64_t wanted)
{
    return wanted < bucket->limit ? (int64_t)wanted : (int64_t)bucket->limit;
}

/* ---- keys ---- */

static struct rate_key **place_of(struct rates *rates, uint64_t key)
{
    return &rates->places[hash_bytes(&key, sizeof key, 0) % PLACES];
}

static struct rate_key *find(const struct rates *rates, uint64_t key)
{
    struct rate_key *found = rates->places[hash_bytes(&key, sizeof key, 0) % PLACES];
    while (found && found->number != key) found = found->next;
    return found;
}

static bool at_rest(struct rate_key *key, uint64_t now_ms)
{
    if (key->running) return false;
    fill(&key->requests, now_ms);
    fill(&key->tokens, now_ms);
    return key->requests.left >= (int64_t)key->requests.limit && key->tokens.left >= (int64_t)key->tokens.limit;
}

static void sweep(struct rates *rates, uint32_t places, uint64_t now_ms)
{
    for (; places > 0; places--) {
        struct rate_key **link = &rates->places[rates->cursor];
        rates->cursor = (rates->cursor + 1) % PLACES;
        while (*link) {
            struct rate_key *key = *link;
            if (at_rest(key, now_ms)) {
                *link = key->next;
                mem_free(key);
                rates->keys_count--;
            } else {
                link = &key->next;
            }
        }
    }
}

static struct rate_key *find_or_make(struct rates *rates, uint64_t number, uint64_t now_ms)
{
    struct rate_key *key = find(rates, number);
    if (key) return key;
    if (rates->keys_count >= rates->keys_max) sweep(rates, PLACES, now_ms);
    if (rates->keys_count >= rates->keys_max) return NULL;
    key = mem_alloc(1, sizeof *key);
    if (!key) return NULL;
    struct rate_key **place = place_of(rates, number);
    key->number = number;
    key->next = *place;
    *place = key;
    rates->keys_count++;
    return key;
}

static uint64_t tpm_of(const struct rate_limits *limits)
{
    return limits->tpm < RATE_TPM_MAX ? limits->tpm : RATE_TPM_MAX;
}

enum rate_verdict rate_admit(struct rates *rates, uint64_t key, const struct rate_limits *limits, uint64_t tokens,
                             uint64_t now_ns, uint32_t *retry_after_ms)
{
    uint64_t now_ms = now_ns / NS_PER_MS, missing_ms = 1000;
    *retry_after_ms = 1000;
    sweep(rates, 1, now_ms);
    struct rate_key *at = find_or_make(rates, key, now_ms);
    if (!at) return RATE_FULL;
    set_limit(&at->requests, limits->rpm, now_ms);
    set_limit(&at->tokens, tpm_of(limits), now_ms);
    enum rate_verdict verdict = RATE_OK;
    if (limits->concurrency && at->running >= limits->concurrency)
        verdict = RATE_CONCURRENCY;
    else if ((missing_ms = wait_ms(&at->requests, level_for(&at->requests, 1))) > 0)
        verdict = RATE_REQUESTS;
    else if ((missing_ms = wait_ms(&at->tokens, level_for(&at->tokens, tokens))) > 0)
        verdict = RATE_TOKENS;
    if (verdict != RATE_OK) {
        *retry_after_ms = missing_ms < UINT32_MAX ? (uint32_t)missing_ms : UINT32_MAX;
        return verdict;
    }
    at->running++;
    if (at->requests.limit) at->requests.left--;
    if (at->tokens.limit) at->tokens.left -= (int64_t)tokens;
    return RATE_OK;
}

void rate_end(struct rates *rates, uint64_t key, uint64_t estimated, uint64_t used, uint64_t now_ns)
{
    struct rate_key *at = find(rates, key);
    CHECK(at && at->running > 0);
    at->running--;
    if (!at->tokens.limit) return;
    fill(&at->tokens, now_ns / NS_PER_MS);
    at->tokens.left += (int64_t)estimated - (int64_t)used;
    if (at->tokens.left > (int64_t)at->tokens.limit) at->tokens.left = (int64_t)at->tokens.limit;
}

/* ---- what clients are told ---- */

static void look(const struct bucket *bucket, uint64_t limit, uint64_t now_ms, uint64_t *left, uint64_t *reset_ns)
{
    struct bucket now = *bucket;
    set_limit(&now, limit, now_ms);
    *left = now.left > 0 ? (uint64_t)now.left : 0;
    *reset_ns = wait_ms(&now, (int64_t)limit) * NS_PER_MS;
}

void rate_look(const struct rates *rates, uint64_t key, const struct rate_limits *limits, uint64_t now_ns,
               struct rate_view *view)
{
    static const struct rate_key fresh;
    const struct rate_key *at = find(rates, key);
    if (!at) at = &fresh;
    *view = (struct rate_view){.requests_limit = limits->rpm, .tokens_limit = tpm_of(limits), .running = at->running};
    look(&at->requests, view->requests_limit, now_ns / NS_PER_MS, &view->requests_left, &view->requests_reset_ns);
    look(&at->tokens, view->tokens_limit, now_ns / NS_PER_MS, &view->tokens_left, &view->tokens_reset_ns);
}

void rate_duration(uint64_t ns, struct buf *out)
{
    uint64_t ms = (ns + NS_PER_MS - 1) / NS_PER_MS;
    if (ms < 1000) {
        if (ms)
            buf_append_format(out, "%" PRIu64 "ms", ms);
        else
            buf_append_text(out, "0s");
        return;
    }
    uint64_t s = (ms + 999) / 1000;
    if (s >= 3600) buf_append_format(out, "%" PRIu64 "h", s / 3600);
    if (s >= 60) buf_append_format(out, "%" PRIu64 "m", s / 60 % 60);
    buf_append_format(out, "%" PRIu64 "s", s % 60);
}

void rate_headers(const struct rate_view *view, struct buf *out)
{
    const struct {
        const char *name;
        uint64_t limit, left, reset_ns;
    } rows[] = {{"requests", view->requests_limit, view->requests_left, view->requests_reset_ns},
                {"tokens", view->tokens_limit, view->tokens_left, view->tokens_reset_ns}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!rows[i].limit) continue;
        buf_append_format(
            out, "x-ratelimit-limit-%s: %" PRIu64 "\r\nx-ratelimit-remaining-%s: %" PRIu64 "\r\nx-ratelimit-reset-%s: ",
            rows[i].name, rows[i].limit, rows[i].name, rows[i].left, rows[i].name);
        rate_duration(rows[i].reset_ns, out);
        buf_append_text(out, "\r\n");
    }
}
