/* What a choice yields alone: ids from the null device's hash, stops by plain search over the whole text. None of the
 * scheduler's code is used, on purpose. */
#include "tests/sim/sim.h"

#include "runtime/model/vocab.h"

#include <string.h>

static bool listed(const uint32_t *ids, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

/* The match that ends first in text (from byte `from` on), the longest of those. */
static bool find_stop(const struct request *q, const char *text, uint32_t from, uint32_t length, uint32_t *start,
                      uint32_t *end, uint32_t *index)
{
    for (uint32_t e = from + 1; e <= length; e++) {
        uint32_t longest = 0;
        for (uint32_t i = 0; i < q->stops_count; i++) {
            uint32_t n = q->stops[i].length;
            if (n <= longest || n > e || memcmp(text + e - n, q->stops[i].bytes, n) != 0) continue;
            longest = n;
            *index = i;
        }
        if (!longest) continue;
        *start = e - longest;
        *end = e;
        return true;
    }
    return false;
}

static bool prompt_thinks(const struct request *q)
{
    bool thinking = false;
    for (uint32_t i = 0; i < q->prompt_count; i++) {
        if (q->prompt[i] == SIM_THINK_START) thinking = true;
        if (q->prompt[i] == SIM_THINK_END) thinking = false;
    }
    return thinking;
}

static void expect_choice(const struct sim *sim, const struct sim_request *r, const struct choice *choice,
                          struct sim_choice *out)
{
    const struct request *q = &r->request;
    uint32_t banned[8], banned_count = 0, ends[SIM_CONTEXT_MAX], length = 0;
    char text[SIM_CONTEXT_MAX * 4];
    bool thinking = prompt_thinks(q);
    uint64_t failure = null_device_seed_failing(NULL_FAILURE_NOT_FINITE, 0) >> 48;
    if (!q->ignore_eos) banned[banned_count++] = sim->config.end_ids[0];
    for (uint32_t i = 0; i < q->stop_ids_count; i++) banned[banned_count++] = q->stop_ids[i];
    uint64_t prefix = null_device_prefix(q->prompt, q->prompt_count);
    out->expected_finish = FINISH_LENGTH;
    out->expected_stop_id = VOCAB_NO_ID;
    out->expected_stop_string = STOP_STRING_NONE;
    for (uint32_t n = 0; n < q->max_tokens;) {
        uint32_t position = q->prompt_count + n;
        if (choice->seed >> 48 == failure && (uint32_t)choice->seed == position) {
            out->expected_finish = FINISH_ERROR;
            break;
        }
        uint32_t id =
            null_device_next(prefix, choice->seed, position, SIM_VOCAB, banned, n < q->min_tokens ? banned_count : 0);
        prefix = null_device_extend(prefix, id);
        out->expected[n++] = id;
        out->expected_count = n;
        if (id == SIM_THINK_START) thinking = true;
        out->expected_reasoning += thinking;
        if (id == SIM_THINK_END) thinking = false;
        ends[n - 1] = length;
        out->expected_text = length;
        if (n > q->min_tokens && ((!q->ignore_eos && id == SIM_END_ID) || listed(q->stop_ids, q->stop_ids_count, id))) {
            out->expected_finish = FINISH_STOP;
            out->expected_stop_id = id;
            break;
        }
        uint32_t before = length, start, end, index;
        if (!sim_texts[id].special || q->keep_special) {
            memcpy(text + length, sim_texts[id].bytes, sim_texts[id].length);
            length += sim_texts[id].length;
        }
        ends[n - 1] = out->expected_text = length;
        if (n <= q->min_tokens || !find_stop(q, text, before, length, &start, &end, &index)) continue;
        out->expected_finish = FINISH_STOP;
        out->expected_stop_string = index;
        out->expected_text = q->include_stop ? end : start;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t begin = i ? ends[i - 1] : 0;
            out->expected_trimmed += begin >= out->expected_text && ends[i] > begin;
        }
        break;
    }
}

void sim_expect(const struct sim *sim, struct sim_request *r)
{
    for (uint32_t c = 0; c < r->request.choices_count; c++) expect_choice(sim, r, &r->choices[c], &r->sim[c]);
}
