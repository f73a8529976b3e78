/* Lines of batches in the pool: offered while their part waits for green power, taken back when the plan lets it go,
 * and brought to their end by the result of whoever ran them; see batches.h (J9), server/pool/pool.h (O1-O3).
 *
 *   todo -> away: read (pool thread) -> pool_offer -> open -> taken -> result -> runs, with its answer -> saved
 *             |            \-> refused                  \-> todo: taken back, gone, or a result that does not fit
 *
 * Nothing of this is on disk: after an end of the process a line without a result is todo again, and is offered under
 * the same id, which finds what others have done of it meanwhile. */
#include "server/batch/batches_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/batch/batch_parts.h"
#include "server/pool/pool_plan.h"
#include "server/power/plan.h"

#include <string.h>

enum { TICK_MS = 1000, REFUSED_MS = 10000, READS_MAX = 16, TTL_MORE_MS = 60000 };

struct line_away {
    struct batch_job job; /* first */
    struct line_away *next;
    struct held_batch *batch; /* NULL: taken back while it was read */
    uint32_t line;
    uint8_t id[POOL_ID_BYTES];
    char custom_id[BATCH_CUSTOM_ID_MAX + 1], input_id[BATCH_ID_MAX + 1];
    struct batch_line item;
    struct buf body;
    bool reading, taken, has_result;
    struct pool_result result;
};

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

static void away_free(struct line_away *away)
{
    struct batches *set = away->job.set;
    struct line_away **at = &set->away;
    while (*at != away) at = &(*at)->next;
    *at = away->next;
    set->away_count--;
    buf_free(&away->body);
    pool_result_free(&away->result);
    mem_free(away);
}

/* It is this server's alone again. */
static void back(struct line_away *away)
{
    struct held_batch *batch = away->batch;
    if (batch) {
        batch->lines.items[away->line].state = LINE_TODO;
        batch->todo++;
        batch->away--;
        batch_plan_back(batch, away->line);
    }
    away->batch = NULL;
    if (!away->reading) away_free(away);
}

static void take_back(struct line_away *away)
{
    if (!away->reading && !away->has_result) pool_withdraw(away->job.set->config.pool, away->id);
    back(away);
}

void batch_pool_end(struct held_batch *batch)
{
    for (struct line_away *away = batch->set->away, *next; away; away = next) {
        next = away->next;
        if (away->batch == batch) take_back(away);
    }
}

void batches_pool_free(struct batches *set)
{
    while (set->away) away_free(set->away);
}

void batch_pool_saved(struct held_batch *batch, uint32_t line)
{
    struct batch_line *item = &batch->lines.items[line];
    uint8_t id[POOL_ID_BYTES];
    if (!batch->set->config.pool || !item->pooled) return;
    item->pooled = false;
    batch_line_digest(batch, line, id);
    pool_forget(batch->set->config.pool, id);
}

/* ---- offers ---- */

static struct pool_offer offer_of(const struct held_batch *batch, uint32_t line)
{
    const struct batch_part *part = &batch->parts[line / batch->part_lines];
    struct pool_offer offer = {.now_ms = clock_unix_ms(clock_system()),
                               .deadline_ms = batch->info.times_s[TIME_EXPIRES] * 1000};
    struct plan_explanation why;
    if (part->plan_id && plan_explain(batch->set->config.plan, part->plan_id, offer.now_ms, &why)) {
        offer.span_ms = why.span_ms;
        offer.expected_ms = why.expected_ms;
        offer.waits_green = why.waits_green;
    }
    return offer;
}

static void read_in_pool(struct batch_job *job)
{
    struct line_away *away = (struct line_away *)job;
    job->status =
        batch_line_read(&job->set->folder, away->input_id, &away->item, away->custom_id, &away->body, &job->err);
}

static bool send_line(struct line_away *away)
{
    struct held_batch *batch = away->batch;
    const struct batch_line *item = &away->item;
    struct buf bytes;
    int64_t deadline_ms = batch->info.times_s[TIME_EXPIRES] * 1000;
    const struct pool_entry entry = {.chat = batch->info.chat,
                                     .account = batch->info.caller.account,
                                     .deadline_ms = deadline_ms,
                                     .prompt_tokens = item->prompt_tokens,
                                     .output_tokens = item->output_tokens,
                                     .body = away->body.data,
                                     .body_length = away->body.length};
    buf_init(&bytes, (size_t)limits.pool_entry_bytes);
    pool_entry_print(&entry, &bytes);
    if (!buf_ok(&bytes)) { /* too large */
        buf_free(&bytes);
        return false;
    }
    return pool_offer(batch->set->config.pool, away->id, &bytes,
                      (uint64_t)(deadline_ms - clock_unix_ms(clock_system()) + TTL_MORE_MS));
}

static void was_read(struct batch_job *job)
{
    struct line_away *away = (struct line_away *)job;
    struct held_batch *batch = away->batch;
    away->reading = false;
    bool late = batch && batch->info.times_s[TIME_EXPIRES] * 1000 <= clock_unix_ms(clock_system());
    bool sent = batch && !late && !job->set->over && job->status == ST_OK && send_line(away);
    if (batch && !sent) batch->lines.items[away->line].kept = true; /* it runs here, which also finds what is wrong */
    buf_free(&away->body);
    if (!sent) back(away);
}

static bool offer_line(struct held_batch *batch, uint32_t line)
{
    struct batches *set = batch->set;
    struct line_away *away = mem_alloc(1, sizeof *away);
    if (!away) return false;
    away->batch = batch;
    away->line = line;
    away->item = batch->lines.items[line];
    memcpy(away->input_id, batch->info.input_id, sizeof away->input_id);
    batch_line_digest(batch, line, away->id);
    buf_init(&away->body, (size_t)limits.http_body_bytes);
    away->reading = true;
    away->next = set->away;
    set->away = away;
    set->away_count++;
    batch->lines.items[line].state = LINE_AWAY;
    batch->todo--;
    batch->away++;
    away->job.run = read_in_pool;
    away->job.done = was_read;
    batch_job_start(set, &away->job);
    return true;
}

/* Of a part that waits for green; false: as many as may be are away. */
static bool offer_part(struct held_batch *batch, uint32_t part)
{
    struct batches *set = batch->set;
    const struct batch_part *at = &batch->parts[part];
    struct pool_offer offer = offer_of(batch, at->first);
    if (at->released || at->left == 0 || !pool_may_offer(&offer)) return true;
    for (uint32_t i = at->first; i < at->first + at->count; i++) {
        if (batch->lines.items[i].state != LINE_TODO || batch->lines.items[i].kept) continue;
        if (set->away_count >= limits.pool_offers || set->reads++ >= READS_MAX) return false;
        if (!offer_line(batch, i)) return false;
    }
    return true;
}

static void offer_all(struct batches *set)
{
    set->reads = 0;
    for (struct held_batch *batch = set->batches; batch; batch = batch->next) {
        if (!batch->opened || batch->info.status != BATCH_IN_PROGRESS || batch->info.ends_as != BATCH_COMPLETED)
            continue;
        for (uint32_t i = 0; i < batch->parts_count; i++)
            if (!offer_part(batch, i)) return;
    }
}

/* O3 */
static void take_back_all(struct batches *set)
{
    for (struct line_away *away = set->away, *next; away; away = next) {
        next = away->next;
        if (!away->batch || away->has_result) continue;
        const struct batch_part *part = &away->batch->parts[away->line / away->batch->part_lines];
        struct pool_offer offer = offer_of(away->batch, away->line);
        if (pool_takes_back(&offer, part->released, away->taken)) take_back(away);
    }
}

void batches_pool_tick(struct batches *set)
{
    uint64_t time_ns = now_ns();
    if (!set || !set->config.pool || time_ns - set->pool_ns < TICK_MS * NS_PER_MS) return;
    set->pool_ns = time_ns;
    take_back_all(set);
    bool may = !set->stop && !set->over && !set->recalling && pool_serves(set->config.pool) &&
               set->config.exchanges->models->count == 1 && time_ns >= set->pool_pause_ns;
    if (may && set->config.may_run(set->config.state)) offer_all(set);
}

/* ---- results ---- */

static void take_result(struct line_away *away, const struct buf *bytes)
{
    struct error err = {""};
    struct batch_line *item = &away->batch->lines.items[away->line];
    item->pooled = true;
    away->has_result = pool_result_read(bytes->data, bytes->length, &away->result, &err) == ST_OK;
    if (away->has_result) return;
    log_line(LOG_WARN, "pool", "result refused note=\"the line runs here\" reason=\"%s\"", err.message);
    away->job.set->pool_misfits++;
    item->kept = true;
    back(away);
}

void batches_pool_news(struct batches *set, struct pool_news *news)
{
    struct line_away *away = set ? set->away : NULL;
    while (away && (away->reading || memcmp(away->id, news->id, POOL_ID_BYTES) != 0)) away = away->next;
    if (!away || !away->batch) return; /* taken back meanwhile */
    switch (news->kind) {
    case POOL_OFFERED: break;
    case POOL_OPEN:
    case POOL_TAKEN: away->taken = news->kind == POOL_TAKEN; break;
    case POOL_REFUSED:
        set->pool_pause_ns = now_ns() + REFUSED_MS * NS_PER_MS;
        back(away);
        break;
    case POOL_GONE:
        away->batch->lines.items[away->line].kept = true;
        back(away);
        break;
    case POOL_RESULT: take_result(away, &news->bytes); break;
    case POOL_PULLED:
    case POOL_LOST:
    case POOL_FINISHED: break;
    }
    batches_release(set);
}

bool batches_pool_next(struct batches *set, struct held_batch **batch, uint32_t *line, struct pool_result *result)
{
    for (struct line_away *away = set->away; away; away = away->next) {
        if (!away->has_result || !away->batch || !batch_may_begin(away->batch)) continue;
        *batch = away->batch;
        *line = away->line;
        *result = away->result;
        away->result = (struct pool_result){.in_total = 0};
        away->has_result = false;
        away->batch->away--;
        away->batch = NULL;
        away_free(away);
        return true;
    }
    return false;
}

void batches_pool_misfit(struct held_batch *batch, uint32_t line)
{
    batch->lines.items[line].kept = true;
    batch->set->pool_misfits++;
}

uint64_t batches_pool_misfits(const struct batches *set)
{
    return set ? set->pool_misfits : 0;
}
