/* A batch's states, its jobs one after another, and its lines; see batches.h (J1-J4, J6, J7).
 *
 *   batch_step: results to the log | .meta | scan and log of the start | outputs   the first that is due
 *
 * What fails on disk is tried again after a second, and told once: a full disk holds a batch up and loses nothing. */
#include "server/batch/batches_parts.h"

#include "server/batch/batch_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/http_response.h"
#include "server/http_route.h"
#include "server/idempotency.h"

#include <stdio.h>
#include <string.h>

enum { SAVED_BYTES_MAX = 67108864, RETRY_MS_MAX = 60000 };

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

void batch_free(struct held_batch *batch)
{
    if (batch->input) batch->input->users--;
    mem_free(batch->parts);
    batch_info_free(&batch->info);
    mem_free(batch->lines.items);
    buf_free(&batch->saved);
    buf_free(&batch->frames);
    buf_free(&batch->text);
    mem_free(batch);
}

static bool job_failed(struct held_batch *batch)
{
    batch->busy = false;
    if (batch->job.status == ST_OK) {
        batch->told_failure = false;
        return false;
    }
    batch->retry_ns = now_ns() + BATCH_RETRY_MS * NS_PER_MS;
    if (!batch->told_failure && batch->job.status != ST_CANCELED)
        log_line(LOG_ERROR, "batch", "batch=%s waits reason=\"%s\"", batch->info.id, batch->job.err.message);
    batch->told_failure = true;
    return true;
}

static void start(struct held_batch *batch, void (*run)(struct batch_job *job), void (*done)(struct batch_job *job))
{
    batch->busy = true;
    batch->job.run = run;
    batch->job.done = done;
    batch_job_start(batch->set, &batch->job);
}

static struct held_batch *of(struct batch_job *job)
{
    return (struct held_batch *)((char *)job - offsetof(struct held_batch, job));
}

/* ---- results to the log ---- */

static void append_in_pool(struct batch_job *job)
{
    struct held_batch *batch = of(job);
    job->status = ST_OK;
    if (batch->log_failed)
        job->status = batch_log_renew(&job->set->folder, batch->info.id, batch->log_length, &job->err);
    if (job->status == ST_OK)
        job->status =
            batch_log_append(&job->set->folder, batch->info.id, &batch->frames, &batch->log_length, &job->err);
}

/* Results that are in the log now need not be in the pool. */
static void forget_pooled(struct held_batch *batch)
{
    struct batch_frame_head head;
    for (size_t at = 0; at + BATCH_FRAME_HEAD <= batch->frames.length; at += BATCH_FRAME_HEAD + head.length) {
        if (!batch_frame_head(batch->frames.data + at, &head)) return;
        if (head.line < batch->lines.count) batch_pool_saved(batch, head.line);
    }
}

static void appended(struct batch_job *job)
{
    struct held_batch *batch = of(job);
    batch->log_failed = job->status != ST_OK;
    if (job_failed(batch)) return;
    batch->info.completed += batch->frames_done;
    batch->info.failed += batch->frames_failed;
    batch->frames_done = batch->frames_failed = 0;
    forget_pooled(batch);
    buf_free(&batch->frames);
    batch_step(batch);
    batches_release(batch->set);
}

static void append(struct held_batch *batch)
{
    if (batch->frames.length == 0) { /* else those of the last try */
        batch->frames = batch->saved;
        batch->frames_done = batch->saved_done;
        batch->frames_failed = batch->saved_failed;
        buf_init(&batch->saved, 0);
        batch->saved_done = batch->saved_failed = 0;
    }
    start(batch, append_in_pool, appended);
}

/* ---- the .meta ---- */

static void meta_in_pool(struct batch_job *job)
{
    struct held_batch *batch = of(job);
    bool log_goes = batch->finalized;
    job->status = batch_meta_write(&job->set->folder, batch->info.id, &batch->text, &job->err);
    if (job->status == ST_OK && log_goes) batch_log_drop(&job->set->folder, batch->info.id);
}

/* It was never there for a client: 503, and gone. */
static void never_made(struct held_batch *batch)
{
    struct batches *set = batch->set;
    struct held_batch **at = &set->batches;
    for (int i = 0; i < BATCH_WAITS_MAX; i++)
        if (batch->waits[i])
            batch_refuse(batch->waits[i], 503, "resource_unavailable", "", "The batch could not be stored.");
    while (*at != batch) at = &(*at)->next;
    *at = batch->next;
    batch_free(batch);
}

static void ended(struct held_batch *batch)
{
    if (batch->input) batch->input->users--;
    batch->input = NULL;
    batch_plan_end(batch);
    mem_free(batch->lines.items);
    batch->lines = (struct batch_lines){0};
    log_line(LOG_INFO, "batch", "batch=%s status=%s completed=%u failed=%u", batch->info.id,
             batch_status_name(batch->info.status), batch->info.completed, batch->info.failed);
}

static void meta_written(struct batch_job *job)
{
    struct held_batch *batch = of(job);
    buf_free(&batch->text);
    if (job_failed(batch)) {
        batch->meta_due = true;
        if (!batch->durable) never_made(batch);
        return;
    }
    batch->durable = true;
    for (int i = 0; i < BATCH_WAITS_MAX; i++)
        if (batch->waits[i]) batch_reply(batch->waits[i], batch);
    memset(batch->waits, 0, sizeof batch->waits);
    if (batch_has_ended(&batch->info) && !batch->meta_due) ended(batch);
    batch_step(batch);
    batches_release(batch->set);
}

static void write_meta(struct held_batch *batch)
{
    batch->meta_due = false;
    buf_init(&batch->text, 0);
    batch_info_print(&batch->info, true, &batch->text);
    start(batch, meta_in_pool, meta_written);
}

/* ---- the start: its lines, and what the log has of them ---- */

static void opened(struct batch_job *job);

static void open_in_pool(struct batch_job *job)
{
    struct held_batch *batch = of(job);
    const struct batch_folder *folder = &job->set->folder;
    buf_init(&batch->text, 0); /* of errors */
    struct batch_gauge gauge = {.measure = measure_body, .state = batch->measure};
    job->status =
        batch->input ? batch_scan(folder, &batch->info, &gauge, &batch->lines, &batch->text, &job->err) : ST_OK;
    if (job->status == ST_OK && batch->text.length == 0)
        job->status = batch_log_load(folder, batch->info.id, &batch->lines, &batch->log_length, &job->err);
}

static void open_batch(struct held_batch *batch)
{
    enum exchange_kind kind = batch->info.chat ? EXCHANGE_CHAT : EXCHANGE_COMPLETIONS;
    batch->measure = measure_begin(batch->set->config.exchanges, kind, &batch->info.caller);
    if (batch->measure)
        start(batch, open_in_pool, opened);
    else
        batch->retry_ns = now_ns() + BATCH_RETRY_MS * NS_PER_MS;
}

static void opened(struct batch_job *job)
{
    struct held_batch *batch = of(job);
    struct batch_info *info = &batch->info;
    measure_end(batch->measure);
    batch->measure = NULL;
    if (job_failed(batch)) {
        buf_free(&batch->text);
        return;
    }
    if (batch->input && batch->text.length == 0) {
        enum status status = batch_plan_begin(batch, batch->info.status != BATCH_VALIDATING, &batch->text);
        if (status != ST_OK && status != ST_LIMIT) {
            batch->retry_ns = now_ns() + BATCH_RETRY_MS * NS_PER_MS;
            buf_free(&batch->text);
            return;
        }
    }
    batch->opened = true;
    if (!batch->input)
        buf_append_text(&batch->text, "{\"code\":\"input_file_gone\",\"line\":null,\"message\":"
                                      "\"The input file is not there any more.\",\"param\":\"input_file_id\"}");
    if (batch->text.length > 0) {
        info->errors = batch->text;
        buf_init(&batch->text, 0);
        info->status = info->ends_as = BATCH_FAILED;
        info->times_s[TIME_FAILED] = batches_now_s();
        batch->finalized = batch->meta_due = true;
        batch_step(batch);
        return;
    }
    info->total = batch->lines.count;
    info->completed = info->failed = batch->todo = 0;
    for (uint32_t i = 0; i < batch->lines.count; i++) {
        uint8_t state = batch->lines.items[i].state;
        batch->todo += state == LINE_TODO;
        info->completed += state == LINE_DONE;
        info->failed += state == LINE_FAILED;
    }
    if (info->status == BATCH_VALIDATING) {
        info->status = BATCH_IN_PROGRESS;
        info->times_s[TIME_IN_PROGRESS] = batches_now_s();
        batch->meta_due = true;
    }
    batch_step(batch);
    batches_release(batch->set);
}

/* ---- the end: its outputs ---- */

static void finalize_in_pool(struct batch_job *job)
{
    struct held_batch *batch = of(job);
    struct batch_info made = batch->info; /* texts are shared, and not touched */
    job->status = batch_finalize(&job->set->folder, &made, &batch->lines, batches_now_s(), &batch->output,
                                 &batch->error_file, &job->err);
    batch->frames_done = made.completed;
    batch->frames_failed = made.failed;
}

static void take_output(struct held_batch *batch, const struct file_info *info, char *id)
{
    if (info->bytes == 0) {
        *id = '\0';
        return;
    }
    struct stored_file *file = batches_add_file(batch->set, info);
    if (file) file->ready = true; /* else the next start finds it */
}

static void finalized(struct batch_job *job)
{
    static const enum batch_time times[BATCH_STATUSES] = {
        [BATCH_COMPLETED] = TIME_COMPLETED, [BATCH_EXPIRED] = TIME_EXPIRED, [BATCH_CANCELLED] = TIME_CANCELLED};
    struct held_batch *batch = of(job);
    struct batch_info *info = &batch->info;
    if (job_failed(batch)) {
        batch->frames_done = batch->frames_failed = 0;
        return;
    }
    info->completed = batch->frames_done;
    info->failed = batch->frames_failed;
    batch->frames_done = batch->frames_failed = 0;
    take_output(batch, &batch->output, info->output_id);
    take_output(batch, &batch->error_file, info->error_id);
    info->status = info->ends_as;
    info->times_s[times[info->status]] = batches_now_s();
    batch->finalized = batch->meta_due = true;
    batch_step(batch);
}

static void advance(struct held_batch *batch)
{
    struct batch_info *info = &batch->info;
    if (info->output_id[0]) { /* the .meta has it */
        start(batch, finalize_in_pool, finalized);
        return;
    }
    if (batch->running > 0 || batch->away > 0 || (batch->todo > 0 && info->ends_as == BATCH_COMPLETED)) return;
    batch_plan_end(batch);
    batch_make_id("file-", info->output_id);
    batch_make_id("file-", info->error_id);
    if (info->status != BATCH_CANCELLING) info->status = BATCH_FINALIZING;
    info->times_s[TIME_FINALIZING] = batches_now_s();
    batch->meta_due = true;
    batch_step(batch);
}

void batch_step(struct held_batch *batch)
{
    struct batches *set = batch->set;
    if (batch->busy || batch->leaves || set->over || batch->retry_ns > now_ns()) return;
    if (batch->frames.length > 0 || batch->saved.length > 0)
        append(batch);
    else if (batch->meta_due)
        write_meta(batch);
    else if (set->stop || batch_has_ended(&batch->info))
        return;
    else if (!batch->opened)
        open_batch(batch);
    else
        advance(batch);
}

/* ---- lines ---- */

void line_run_free(struct line_run *run)
{
    struct batches *set = run->batch->set;
    if (run->previous)
        run->previous->next = run->next;
    else
        set->runs = run->next;
    if (run->next) run->next->previous = run->previous;
    set->running--;
    run->batch->running--;
    buf_free(&run->body);
    if (run->has_given) pool_result_free(&run->given);
    mem_free(run);
}

static void put_back(struct line_run *run)
{
    struct held_batch *batch = run->batch;
    batch->lines.items[run->line].state = LINE_TODO;
    batch->todo++;
    batch_plan_back(batch, run->line);
}

/* The line's result, for the log; its memory is the only thing that can lack. */
static void save(struct line_run *run, int http_status, const struct buf *body)
{
    struct held_batch *batch = run->batch;
    struct buf text;
    bool done = http_status == 200;
    buf_init(&text, 0);
    batch_result_line(run->custom_id, http_status, run->request_id, body, NULL, NULL, &text);
    if (!buf_ok(body) || !buf_ok(&text) || !buf_reserve(&batch->saved, text.length + 64)) {
        buf_free(&text);
        batch->saved.failed = false; /* a reservation that failed took nothing away */
        put_back(run);
        return;
    }
    batch_frame(done ? FRAME_DONE : FRAME_FAILED, run->line, text.data, text.length, &batch->saved);
    batch->lines.items[run->line].state = LINE_SAVED;
    batch_plan_done(batch, run->line);
    if (done)
        batch->saved_done++;
    else
        batch->saved_failed++;
    buf_free(&text);
}

static void save_refusal(struct line_run *run, enum refusal refusal)
{
    struct api_error error;
    struct buf body;
    refusal_error(refusal, 0, &error);
    buf_init(&body, 0);
    api_error_body(&error, &body);
    save(run, error.http_status, &body);
    buf_free(&body);
}

static void end_run(struct line_run *run)
{
    struct held_batch *batch = run->batch;
    struct batches *set = batch->set;
    line_run_free(run);
    batch_step(batch);
    batches_release(set);
}

static void on_answer(void *state, int http_status, uint32_t retry_after_ms, const struct buf *body)
{
    struct line_run *run = state;
    struct held_batch *batch = run->batch;
    struct batch_line *line = &batch->lines.items[run->line];
    run->exchange = NULL;
    if (batch->set->over) return;                                             /* freed with the rest */
    bool again = http_status == 429 || http_status >= 500;                    /* J3 */
    bool misfit = run->has_given && http_status != 200 && http_status != 429; /* J9: then it is computed here */
    if (misfit) {
        batches_pool_misfit(batch, run->line);
        again = true;
    } else if (http_status == 500 && ++line->tries >= BATCH_TRIES_MAX)
        again = false;
    if (again && !misfit && batch->info.ends_as != BATCH_EXPIRED) {
        uint64_t wait_ms = retry_after_ms < BATCH_RETRY_MS ? BATCH_RETRY_MS : retry_after_ms;
        if (wait_ms > RETRY_MS_MAX) wait_ms = RETRY_MS_MAX;
        batch->resume_ns = now_ns() + wait_ms * NS_PER_MS;
    }
    if (again)
        put_back(run);
    else
        save(run, http_status, body);
    end_run(run);
}

void batch_line_digest(const struct held_batch *batch, uint32_t line, uint8_t digest[16])
{
    char key[BATCH_ID_MAX + 16];
    (void)snprintf(key, sizeof key, "\x01%s:%u", batch->info.id, line); /* no client's key begins so */
    idempotency_digest(batch->info.caller.account, key, digest);
}

static bool begin_line(struct line_run *run)
{
    struct held_batch *batch = run->batch;
    struct batches *set = batch->set;
    uint8_t digest[16];
    int64_t left_s = batch->info.times_s[TIME_EXPIRES] - batches_now_s();
    int64_t held_s = batches_now_s() - batch->info.times_s[TIME_CREATED];
    batch_line_digest(batch, run->line, digest);
    http_response_make_id(run->request_id);
    struct inner_call call = {.kind = batch->info.chat ? EXCHANGE_CHAT : EXCHANGE_COMPLETIONS,
                              .caller = &batch->info.caller,
                              .request_id = run->request_id,
                              .digest = digest,
                              .prepaid = batches_was_paid(set, digest),
                              .forced = run->forced,
                              .deadline_ns = now_ns() + (left_s > 0 ? (uint64_t)left_s : 1) * NS_PER_S,
                              .held_ms = held_s > 0 ? (uint64_t)held_s * 1000 : 0,
                              .given = run->has_given ? &run->given : NULL,
                              .answer = on_answer,
                              .state = run};
    run->exchange = exchange_start_inner(set->config.exchanges, &call, &run->body);
    return run->exchange;
}

static void line_in_pool(struct batch_job *job)
{
    struct line_run *run = (struct line_run *)job;
    job->status = batch_line_read(&job->set->folder, run->batch->info.input_id, &run->batch->lines.items[run->line],
                                  run->custom_id, &run->body, &job->err);
}

static void line_read(struct batch_job *job)
{
    struct line_run *run = (struct line_run *)job;
    struct held_batch *batch = run->batch;
    struct batches *set = batch->set;
    if (job->status != ST_OK || set->stop || batch->info.ends_as != BATCH_COMPLETED ||
        !set->config.may_run(set->config.state)) {
        if (job->status != ST_OK) batch->resume_ns = now_ns() + BATCH_RETRY_MS * NS_PER_MS;
        put_back(run);
        end_run(run);
        return;
    }
    switch (auth_resume(set->config.auth, &batch->info.caller)) { /* J6 */
    case AUTH_OK:
        if (begin_line(run)) return;
        batch->resume_ns = now_ns() + BATCH_RETRY_MS * NS_PER_MS;
        put_back(run);
        break;
    case AUTH_REVOKED: save_refusal(run, REFUSE_KEY_REVOKED); break;
    case AUTH_CLOSED: save_refusal(run, REFUSE_ACCOUNT_CLOSED); break;
    case AUTH_NOT_YET:
        batch->resume_ns = now_ns() + BATCH_RETRY_MS * NS_PER_MS;
        put_back(run);
        break;
    default: save_refusal(run, REFUSE_KEY_WRONG); break;
    }
    end_run(run);
}

bool batch_may_begin(const struct held_batch *batch)
{
    uint64_t time_ns = now_ns();
    return batch->opened && batch->info.status == BATCH_IN_PROGRESS && batch->info.ends_as == BATCH_COMPLETED &&
           batch->resume_ns <= time_ns && batch->retry_ns <= time_ns && batch->saved.length < SAVED_BYTES_MAX;
}

/* J3 */
static struct held_batch *most_urgent(const struct batches *set)
{
    struct held_batch *first = NULL;
    for (struct held_batch *batch = set->batches; batch; batch = batch->next)
        if (batch->todo > 0 && batch_may_begin(batch) && batch_plan_has_next(batch) &&
            (!first || batch->info.times_s[TIME_EXPIRES] <= first->info.times_s[TIME_EXPIRES]))
            first = batch;
    return first;
}

static void start_run(struct held_batch *batch, struct line_run *run, uint32_t line)
{
    struct batches *set = batch->set;
    batch->lines.items[line].state = LINE_RUNS;
    batch->running++;
    set->running++;
    run->batch = batch;
    run->line = line;
    run->next = set->runs;
    if (run->next) run->next->previous = run;
    set->runs = run;
    buf_init(&run->body, (size_t)limits.http_body_bytes);
    run->job.run = line_in_pool;
    run->job.done = line_read;
    batch_job_start(set, &run->job);
}

static bool release_line(struct held_batch *batch)
{
    struct line_run *run = mem_alloc(1, sizeof *run);
    if (!run) return false;
    uint32_t line;
    if (!batch_plan_next(batch, &line, &run->forced)) {
        mem_free(run);
        return false;
    }
    batch->todo--;
    start_run(batch, run, line);
    return true;
}

/* J9. One that another server has run takes no place in the plan: it costs next to nothing. */
static bool release_result(struct batches *set)
{
    struct held_batch *batch;
    uint32_t line;
    struct line_run *run = set->away ? mem_alloc(1, sizeof *run) : NULL;
    if (!run) return false;
    run->has_given = batches_pool_next(set, &batch, &line, &run->given);
    if (!run->has_given) {
        mem_free(run);
        return false;
    }
    start_run(batch, run, line);
    return true;
}

void batches_release(struct batches *set)
{
    while (!set->stop && !set->over && !set->recalling && set->running < set->config.concurrency &&
           set->config.may_run(set->config.state)) {
        if (release_result(set)) continue;
        struct held_batch *batch = most_urgent(set);
        if (!batch || !release_line(batch)) return;
    }
}

/* ---- cancel, deadline ---- */

void batch_cancel(struct held_batch *batch)
{
    struct batch_info *info = &batch->info;
    if (info->ends_as != BATCH_COMPLETED || info->output_id[0]) return;
    info->status = BATCH_CANCELLING;
    info->ends_as = BATCH_CANCELLED;
    info->times_s[TIME_CANCELLING] = batches_now_s();
    batch->meta_due = true;
    batch_pool_end(batch);
}

/* J4. An answer may come from within the breaking off, and changes the list. */
void batch_expire(struct held_batch *batch)
{
    struct batches *set = batch->set;
    struct api_error error;
    if (batch->info.output_id[0] || batch->info.ends_as == BATCH_EXPIRED) return;
    if (batch->info.ends_as == BATCH_COMPLETED) batch->info.ends_as = BATCH_EXPIRED;
    batch_pool_end(batch);
    api_error_from_status(ST_TIMEOUT, 0, &error);
    for (struct line_run *run = set->runs, *next; run; run = next) {
        next = run->next;
        if (run->batch != batch || !run->exchange || run->deferred) continue;
        run->deferred = true; /* told once */
        exchange_break_inner(run->exchange, &error);
        next = set->runs;
    }
}
