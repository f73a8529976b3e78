/* What an event becomes in the journal: scheduled -> OPEN, tokens -> STEP, done -> FINAL. See meter.h.
 *
 * Here the counts meet for the last time: the scheduler's (usage.out, itself checked against the batches' positions)
 * and the stream's, the sum of what events have told. When they differ the lowest is charged and the record is marked;
 * the request's own usage is set to it, so that the client reads the number that it pays for. */
#include "server/billing/meter_parts.h"

#include "runtime/base/hash.h"
#include "runtime/base/log.h"

#include <string.h>

enum { CHOICES_HASHED = 128, CHOICE_HASH_BYTES = 36 };

/* SHA-256 over, for each choice in order, its count and the SHA-256 of its ids. */
static void hash_ids(const struct request *request, uint8_t h_ids[16])
{
    uint8_t parts[CHOICES_HASHED * CHOICE_HASH_BYTES], digest[32];
    size_t length = 0;
    for (uint32_t i = 0; i < request->choices_count; i++) {
        const struct choice *choice = &request->choices[i];
        if (length + CHOICE_HASH_BYTES > sizeof parts) { /* more choices than fit are folded */
            sha256(parts, length, digest);
            memcpy(parts, digest, sizeof digest);
            length = sizeof digest;
        }
        for (uint32_t byte = 0; byte < 4; byte++) parts[length + byte] = (uint8_t)(choice->output_count >> 8 * byte);
        sha256(choice->tokens + request->prompt_count, (size_t)choice->output_count * sizeof(uint32_t),
               parts + length + 4);
        length += CHOICE_HASH_BYTES;
    }
    sha256(parts, length, digest);
    memcpy(h_ids, digest, 16);
}

static enum status count_ids(struct meter *meter, struct metered *metered, uint32_t choice, uint32_t ids)
{
    struct metered_choice *at = &metered->choices[choice];
    if (ids <= at->counted) return ST_OK;
    if (meter->steps_count == STEP_COUNTS_MAX) TRY(meter_flush_steps(meter));
    meter->steps[meter->steps_count++] = (struct step_count){metered->handle, ids - at->counted};
    at->counted = ids;
    at->round = meter->round;
    return ST_OK;
}

/* When it was on the wall; 0: never. */
static int64_t wall_of(uint64_t at_ns, uint64_t now_ns, int64_t now_us)
{
    return at_ns ? now_us - (int64_t)((now_ns - at_ns) / 1000) : 0;
}

static enum status note_scheduled(struct meter *meter, struct request *request, struct metered *metered)
{
    const struct clock *clock = meter->config.clock;
    uint64_t now_ns = clock_now_ns(clock);
    metered->opened = (struct open_counts){.in_total = request->usage.in_total,
                                           .in_hit = request->usage.in_hit,
                                           .choices = request->choices_count,
                                           .opened_us = wall_of(request->scheduled_ns, now_ns, clock_unix_us(clock)),
                                           .opened_ns = request->scheduled_ns};
    TRY(journal_put_open(meter->journal, &metered->charge, &metered->opened, &metered->handle));
    metered->open = true;
    for (uint32_t i = 0; i < request->choices_count && request->max_tokens > 0; i++)
        TRY(count_ids(meter, metered, i, 1));
    return ST_OK;
}

/* The ids told, and while the choice goes on the one that the device computes next. */
static enum status note_tokens(struct meter *meter, const struct event *event, struct metered *metered, bool *counted)
{
    struct metered_choice *at = &metered->choices[event->choice];
    if (!metered->open) return ST_OK;
    *counted = event->output_count <= at->counted && at->round < meter->round;
    at->told = event->output_count;
    return count_ids(meter, metered, event->choice, event->output_count + (event->finish == FINISH_NONE));
}

enum status meter_flush_steps(struct meter *meter)
{
    if (meter->steps_count == 0) return ST_OK;
    TRY(journal_put_step(meter->journal, meter->steps, meter->steps_count));
    meter->steps_count = 0;
    return ST_OK;
}

/* The third entry; see the head of this file. */
static void check_counts(struct request *request, const struct metered *metered)
{
    uint64_t told = 0;
    for (uint32_t i = 0; i < request->choices_count; i++) told += metered->choices[i].told;
    if (told == request->usage.out) return;
    request->usage.mismatch = true;
    if (told >= request->usage.out) return;
    struct usage *usage = &request->usage;
    usage->out = (uint32_t)told;
    if (usage->out_reasoning > usage->out) usage->out_reasoning = usage->out; /* parts of it */
    if (usage->out_trimmed > usage->out) usage->out_trimmed = usage->out;
}

static void fill_final(const struct meter *meter, const struct request *request, const struct metered *metered,
                       struct record *record)
{
    const struct usage *usage = &request->usage;
    const struct clock *clock = meter->config.clock;
    uint64_t now_ns = clock_now_ns(clock);
    int64_t now_us = clock_unix_us(clock);
    bool unseen = usage->cause == CAUSE_CLIENT_GONE && request->unseen; /* io wrote it before it cancelled */
    bool charged = cause_is_charged(usage->cause, unseen, meter->config.unseen_waived);
    *record = (struct record){.kind = charged ? RECORD_CHARGED : RECORD_WAIVED,
                              .cause = usage->cause,
                              .opened_us = metered->opened.opened_us,
                              .first_us = wall_of(request->first_token_ns, now_ns, now_us),
                              .ended_us = wall_of(request->done_ns, now_ns, now_us),
                              .duration_us = (int64_t)((request->done_ns - request->scheduled_ns) / 1000),
                              .in_total = usage->in_total,
                              .in_hit = usage->in_hit,
                              .out = usage->out,
                              .out_reasoning = usage->out_reasoning,
                              .out_trimmed = usage->out_trimmed,
                              .choices = usage->choices,
                              .recomputed = usage->recomputed};
    if (usage->mismatch) record->flags |= RECORD_MISMATCH;
    if (unseen) record->flags |= RECORD_UNSEEN;
    if (usage->estimated) record->flags |= RECORD_ESTIMATED;
    if (charged)
        record->units = charge_units(&metered->charge, usage->in_total - usage->in_hit, usage->in_hit, usage->out);
    hash_ids(request, record->h_ids);
}

static enum status note_done(struct meter *meter, struct request *request, struct metered *metered)
{
    struct record record;
    if (!metered->open) return ST_OK;
    TRY(meter_flush_steps(meter));
    check_counts(request, metered);
    fill_final(meter, request, metered, &record);
    TRY(journal_put_final(meter->journal, metered->handle, &record));
    metered->open = false;
    metered->units = record.units;
    if (meter->leases) {
        pthread_mutex_lock(&meter->leases_mutex);
        lease_charged(meter->leases, record.account, record.mclass, record.units, metered->held);
        metered->held = 0;
        pthread_mutex_unlock(&meter->leases_mutex);
    }
    struct billing_stats *stats = meter->config.stats;
    billing_stats_add(record.kind == RECORD_CHARGED ? &stats->records_charged : &stats->records_waived, 1);
    billing_stats_add(&stats->units_charged, record.units);
    if (record.cause == CAUSE_QUOTA_END) billing_stats_add(&stats->quota_ends, 1);
    if (request->usage.mismatch) {
        billing_stats_add(&stats->mismatches, 1);
        log_line(LOG_ERROR, "billing", "mismatch account=%llu pseq=%llu out=%u: the counts of one request disagreed",
                 (unsigned long long)record.account, (unsigned long long)record.pseq, record.out);
    }
    meter->ledger_due = true;
    return ST_OK;
}

enum status meter_note_event(struct meter *meter, const struct event *event, bool *counted)
{
    struct request *request = event->request;
    struct metered *metered = (struct metered *)request->charge;
    *counted = !atomic_load(&meter->let_go); /* else behind what waits since the failure */
    if (!metered || !*counted) return ST_OK;
    switch (event->kind) {
    case REQUEST_SCHEDULED: return note_scheduled(meter, request, metered);
    case CHOICE_TOKENS: return note_tokens(meter, event, metered, counted);
    case REQUEST_DONE: *counted = false; return note_done(meter, request, metered);
    case REQUEST_REFUSED: break; /* no record; io gives the hold back */
    }
    return ST_OK;
}
