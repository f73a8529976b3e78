/* See memory_plan.h, M1-M3. */
#include "server/memory_plan.h"

#include <inttypes.h>
#include <stdio.h>

static const uint64_t kv_default_max = UINT64_C(4) << 30;

static uint64_t add(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

uint64_t memory_of_row(const struct memory_row *row)
{
    return add(add(row->weights_bytes, row->scratch_bytes), row->kv_bytes);
}

uint64_t memory_kv_total(uint64_t option_bytes, uint64_t limit_bytes, uint64_t weights_bytes, uint64_t least_bytes)
{
    if (option_bytes) return option_bytes;
    uint64_t quarter = limit_bytes / 4 < kv_default_max ? limit_bytes / 4 : kv_default_max;
    uint64_t left = limit_bytes > weights_bytes ? limit_bytes - weights_bytes : 0;
    left -= left / 16; /* for scratch, which is known only when the device is made */
    if (quarter > left) quarter = left;
    return quarter < least_bytes && least_bytes <= left ? least_bytes : quarter;
}

enum status memory_divide(uint64_t kv_bytes, const uint64_t *least, uint32_t count, uint64_t *shares, struct error *err)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++) sum = add(sum, least[i]);
    if (sum > kv_bytes)
        return error_set(err, ST_INVAL,
                         "KV cache: one sequence of full context of each model needs %" PRIu64 " bytes, %" PRIu64
                         " are given; lower --max-model-len or raise --kv-cache-memory-bytes",
                         sum, kv_bytes);
    for (uint32_t i = 0; i < count; i++) { /* in 128 bits: bytes times bytes */
        uint64_t share = sum ? (uint64_t)((unsigned __int128)kv_bytes * least[i] / sum) : kv_bytes / count;
        shares[i] = share > least[i] ? share : least[i];
    }
    return ST_OK;
}

/* "a (1000 bytes), b (..)", largest first, as many as fit; `kv`: of their KV alone. */
static void list_rows(const struct memory_row *rows, uint32_t count, bool kv, char *text, size_t size_bytes)
{
    uint64_t below = UINT64_MAX;
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t listed = 0; listed < count;) {
        uint64_t most = 0;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t bytes = kv ? rows[i].kv_bytes : memory_of_row(&rows[i]);
            if (bytes < below && bytes > most) most = bytes;
        }
        if (!most) return;
        for (uint32_t i = 0; i < count; i++) {
            if ((kv ? rows[i].kv_bytes : memory_of_row(&rows[i])) != most) continue;
            listed++;
            int length = snprintf(text + used, size_bytes - used, "%s%.64s (%" PRIu64 " bytes)", used ? ", " : "",
                                  rows[i].name, most);
            if (length < 0 || used + (size_t)length >= size_bytes) {
                text[used] = '\0'; /* whole entries only */
                return;
            }
            used += (size_t)length;
        }
        below = most;
    }
}

enum status memory_share(uint64_t kv_total, bool strict, const struct memory_row *rows, uint32_t count,
                         const char *name, uint64_t least, uint64_t asked_bytes, uint64_t *share, struct error *err)
{
    uint64_t taken = 0;
    for (uint32_t i = 0; i < count; i++) taken = add(taken, rows[i].kv_bytes);
    uint64_t left = kv_total > taken ? kv_total - taken : 0;
    uint64_t wanted = asked_bytes ? asked_bytes : left > least ? left : least;
    if (asked_bytes && asked_bytes < least)
        return error_set(err, ST_INVAL,
                         "KV cache: one sequence of full context of %.64s needs %" PRIu64 " bytes, %" PRIu64
                         " are asked for",
                         name, least, asked_bytes);
    if (strict && wanted > left) {
        char others[256];
        list_rows(rows, count, true, others, sizeof others);
        return error_set(err, ST_NOMEM,
                         "KV cache: %.64s needs %" PRIu64 " bytes, %" PRIu64 " of %" PRIu64
                         " are left; unload or put to sleep one of: %s",
                         name, wanted, left, kv_total, others[0] ? others : "none is loaded");
    }
    *share = wanted;
    return ST_OK;
}

enum status memory_check(uint64_t limit_bytes, const struct memory_row *rows, uint32_t count,
                         const struct memory_row *more, struct error *err)
{
    uint64_t taken = 0, wanted = memory_of_row(more);
    for (uint32_t i = 0; i < count; i++) taken = add(taken, memory_of_row(&rows[i]));
    if (add(taken, wanted) <= limit_bytes) return ST_OK;
    char others[200];
    list_rows(rows, count, false, others, sizeof others);
    return error_set(err, ST_NOMEM,
                     "memory: %.64s needs %" PRIu64 " bytes (weights %" PRIu64 ", KV %" PRIu64 ", scratch %" PRIu64
                     "), %" PRIu64 " of %" PRIu64 " are left; %s%s",
                     more->name, wanted, more->weights_bytes, more->kv_bytes, more->scratch_bytes,
                     limit_bytes > taken ? limit_bytes - taken : 0, limit_bytes,
                     others[0] ? "unload or put to sleep one of: " : "raise --memory-limit or lower the KV cache",
                     others);
}
