/* A batch in the plan of power: parts of its lines are jobs there, which are let go one by one; see batches.h (J8). A
 * job a line was rejected: 50,000 promises in one turn of the loop; one a batch, too: it would be let go as a whole. */
#include "server/batch/batches_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "server/power/plan.h"

#include <string.h>

void batch_plan_end(struct held_batch *batch)
{
    struct plan *plan = batch->set->config.plan;
    for (uint32_t i = 0; i < batch->parts_count; i++)
        if (plan && batch->parts[i].plan_id) plan_remove(plan, batch->parts[i].plan_id, PLAN_CANCELED, -1);
    mem_free(batch->parts);
    batch->parts = NULL;
    batch->parts_count = 0;
}

static double line_work(const struct held_batch *batch, uint32_t line, int64_t *span_ms)
{
    const struct plan *plan = batch->set->config.plan;
    const struct batch_line *item = &batch->lines.items[line];
    struct plan_request request = {
        .prompt_tokens = item->prompt_tokens, .output_tokens = item->output_tokens, .choices = 1};
    if (span_ms) {
        int64_t line_ms = plan_span_ms(plan, &request);
        if (line_ms > *span_ms) *span_ms = line_ms;
    }
    return plan_work(plan, &request);
}

/* Of its lines without a result, each by itself: a mean, rounded, is not what they take. By what steps cost now: what
 * each line was promised with could come to nothing with lines left. */
static double part_work(const struct held_batch *batch, const struct batch_part *part, int64_t *span_ms)
{
    double work = 0;
    for (uint32_t i = part->first; i < part->first + part->count; i++)
        if (batch->lines.items[i].state <= LINE_RUNS) work += line_work(batch, i, span_ms);
    return work;
}

static enum status promise(struct held_batch *batch, struct batch_part *part, bool promised, int64_t *earliest_ms)
{
    static const enum plan_green modes[] = {
        [GREEN_PREFER] = PLAN_GREEN_PREFER, [GREEN_ANY] = PLAN_GREEN_ANY, [GREEN_ONLY] = PLAN_GREEN_ONLY};
    struct plan *plan = batch->set->config.plan;
    struct plan_job job = {.id = exchanges_plan_id(batch->set->config.exchanges),
                           .deadline_ms = batch->info.times_s[TIME_EXPIRES] * 1000,
                           .green = modes[batch->info.green],
                           .tier = PLAN_BATCH};
    job.work = part_work(batch, part, &job.span_ms);
    int64_t now_ms = clock_unix_ms(clock_system());
    enum status status = promised ? plan_enter(plan, &job, now_ms) : plan_admit(plan, &job, now_ms, earliest_ms);
    if (status == ST_OK) part->plan_id = job.id;
    return status;
}

/* When all of it could be done, and not only the part that was refused: asked as one job, beside none of its parts. */
static int64_t earliest_of_all(struct held_batch *batch, int64_t earliest_ms)
{
    struct batch_part all = {.count = batch->lines.count};
    batch_plan_end(batch);
    enum status status = promise(batch, &all, false, &earliest_ms);
    if (status == ST_OK) plan_remove(batch->set->config.plan, all.plan_id, PLAN_CANCELED, 0);
    return earliest_ms;
}

static void tell_infeasible(int64_t earliest_ms, struct buf *errors)
{
    char when[BATCH_TIME_CHARS + 1] = "none is known";
    if (earliest_ms) batch_time_print((earliest_ms + 999) / 1000, when);
    buf_append_format(
        errors,
        "{\"code\":\"deadline_infeasible\",\"line\":null,\"message\":\"The deadline cannot be promised; the "
        "earliest that can be promised: %s.\",\"param\":\"completion_window\"}",
        when);
}

enum status batch_plan_begin(struct held_batch *batch, bool promised, struct buf *errors)
{
    struct plan *plan = batch->set->config.plan;
    uint32_t lines = batch->lines.count;
    int64_t earliest_ms = 0;
    batch->part_lines = (lines + BATCH_PARTS_MAX - 1) / BATCH_PARTS_MAX;
    if (batch->part_lines == 0) return ST_OK;
    batch->parts = mem_alloc(BATCH_PARTS_MAX, sizeof *batch->parts);
    if (!batch->parts) return ST_NOMEM;
    enum status status = ST_OK;
    for (uint32_t first = 0; first < lines && status == ST_OK; first += batch->part_lines) {
        struct batch_part *part = &batch->parts[batch->parts_count++];
        part->first = part->next = first;
        part->count = lines - first < batch->part_lines ? lines - first : batch->part_lines;
        for (uint32_t i = first; i < first + part->count; i++) part->left += batch->lines.items[i].state == LINE_TODO;
        part->released = !plan;
        if (plan && part->left > 0) status = promise(batch, part, promised, &earliest_ms);
        if (status == ST_INVAL) status = ST_OK; /* its deadline has passed: what is left expires */
    }
    if (status == ST_LIMIT) tell_infeasible(earliest_of_all(batch, earliest_ms), errors);
    if (status != ST_OK) batch_plan_end(batch);
    exchanges_plan_news(batch->set->config.exchanges);
    return status;
}

static struct batch_part *part_of(const struct held_batch *batch, uint32_t line)
{
    return batch->parts_count > 0 ? &batch->parts[line / batch->part_lines] : NULL;
}

/* Its next line, or the end of it. */
static uint32_t seek(const struct held_batch *batch, const struct batch_part *part)
{
    uint32_t line = part->next, end = part->first + part->count;
    while (line < end && batch->lines.items[line].state != LINE_TODO) line++;
    return line;
}

bool batch_plan_has_next(const struct held_batch *batch)
{
    for (uint32_t i = 0; i < batch->parts_count; i++) {
        const struct batch_part *part = &batch->parts[i];
        if (part->released && seek(batch, part) < part->first + part->count) return true;
    }
    return false;
}

bool batch_plan_next(struct held_batch *batch, uint32_t *line, bool *forced)
{
    for (uint32_t i = 0; i < batch->parts_count; i++) {
        struct batch_part *part = &batch->parts[i];
        if (!part->released) continue;
        *line = seek(batch, part);
        part->next = *line + 1;
        if (*line >= part->first + part->count) {
            part->next = *line;
            continue;
        }
        *forced = part->forced;
        if (!part->started && part->plan_id) plan_started(batch->set->config.plan, part->plan_id);
        part->started = true;
        return true;
    }
    return false;
}

void batch_plan_back(struct held_batch *batch, uint32_t line)
{
    struct batch_part *part = part_of(batch, line);
    if (part && line < part->next) part->next = line;
}

void batch_plan_done(struct held_batch *batch, uint32_t line)
{
    struct plan *plan = batch->set->config.plan;
    struct batch_part *part = part_of(batch, line);
    if (!part || part->left == 0) return;
    part->left--;
    if (!part->plan_id) return;
    if (part->left > 0) {
        plan_progress(plan, part->plan_id, part_work(batch, part, NULL));
        return;
    }
    uint64_t id = part->plan_id;
    part->plan_id = 0;
    plan_remove(plan, id, PLAN_DONE, -1);
}

void batches_news(struct batches *set, const struct plan_news *news)
{
    for (struct held_batch *batch = set->batches; batch; batch = batch->next)
        for (uint32_t i = 0; i < batch->parts_count; i++) {
            struct batch_part *part = &batch->parts[i];
            if (part->plan_id != news->id) continue;
            part->released = news->kind == PLAN_RELEASED;
            part->forced = news->kind == PLAN_RELEASED && news->forced;
            if (news->kind == PLAN_EXPIRED) part->plan_id = 0; /* the batch's own clock ends it */
            return;
        }
}
