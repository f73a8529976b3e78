/* See billing.h. */
#include "server/billing/billing.h"

#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/bill_text.h"
#include "server/billing/energy_record.h"
#include "server/billing/journal_reader.h"
#include "server/billing/ledger_redis.h"

#include <stdio.h>
#include <string.h>

#define FLUSH_NS (5 * NS_PER_S)

enum status billing_read_mode(const char *text, enum commit_mode *mode, uint32_t *group_ms, struct error *err)
{
    *group_ms = 0;
    if (!strcmp(text, "step") || !strcmp(text, "write")) {
        *mode = !strcmp(text, "step") ? COMMIT_STEP : COMMIT_WRITE;
        return ST_OK;
    }
    const char *digits = !strncmp(text, "group:", 6) ? text + 6 : "";
    uint32_t value = 0;
    size_t length = strspn(digits, "0123456789");
    for (size_t i = 0; i < length && i < 5; i++) value = value * 10 + (uint32_t)(digits[i] - '0');
    if (!length || length > 4 || digits[length] || value < 1 || value > 1000)
        return error_set(err, ST_INVAL, "--journal-mode: \"%.40s\" is none of step, group:MS (MS 1 to 1000), write",
                         text);
    *mode = COMMIT_GROUP;
    *group_ms = value;
    return ST_OK;
}

enum status billing_read_offset(const char *text, int32_t *offset_s, struct error *err)
{
    if (*text != 'Z' && bill_parse_offset(text, offset_s, NULL) == ST_OK) return ST_OK; /* "Z" is of times alone */
    return error_set(err, ST_INVAL, "--bill-utc-offset: \"%.40s\" is not like +08:00 (at most 14 hours)", text);
}

static enum status check_settings(const struct config *config, struct error *err)
{
    if (!config->journal && (config->redis || config->enforce))
        return error_set(err, ST_INVAL,
                         "--redis and --enforce need --journal FOLDER: what is billed is written there first");
    if (config->redis && !config->enforce)
        return error_set(
            err, ST_INVAL,
            "--redis: say --enforce prepaid (requests are served while packages last) or --enforce off (count "
            "only)");
    return ST_OK;
}

enum status billing_check_models(const struct config *config, uint32_t models, struct error *err)
{
    uint64_t least = journal_segment_least(2 * config->max_num_seqs * models); /* running and preempted */
    if (!config->journal || config->journal_segment_bytes >= least) return ST_OK;
    return error_set(err, ST_INVAL, "--journal-segment-bytes: %u models with --max-num-seqs %u need at least %llu",
                     models, config->max_num_seqs, (unsigned long long)least);
}

static enum status read_settings(const struct config *config, struct meter_config *meter, struct error *err)
{
    *meter = (struct meter_config){.journal = {.disk = disk_system(),
                                               .clock = clock_system(),
                                               .folder = config->journal,
                                               .fallback = config->journal_fallback,
                                               .segment_bytes = config->journal_segment_bytes,
                                               .free_permille_min = 100},
                                   .clock = clock_system(),
                                   .enforce = config->enforce && !strcmp(config->enforce, "prepaid"),
                                   .remote = config->redis != NULL,
                                   .unseen_waived = !strcmp(config->unseen, "waive"),
                                   .keep_ms = config->journal_keep_ms};
    TRY(billing_read_mode(config->journal_mode, &meter->journal.mode, &meter->journal.group_ms, err));
    TRY(billing_read_offset(config->bill_utc_offset, &meter->journal.utc_offset_s, err));
    TRY(billing_check_models(config, config->models.count, err));
    uint64_t window = config->outage_window_tokens * UINT64_C(1000000);
    meter->leases = (struct lease_config){.valid_ns = 120 * NS_PER_S,
                                          .rate_window_ns = 30 * NS_PER_S,
                                          .idle_ns = 60 * NS_PER_S,
                                          .retry_ns = 10 * NS_PER_S,
                                          .answer_ns = 5 * NS_PER_S,
                                          .dry_ns = 50 * NS_PER_MS,
                                          .window_units = window,
                                          .outage = !strcmp(config->on_outage, "continue") ? OUTAGE_CONTINUE
                                                    : !strcmp(config->on_outage, "retry")  ? OUTAGE_RETRY_REJECT
                                                                                           : OUTAGE_REJECT};
    return ST_OK;
}

/* The ledger that the folder's journal belongs to. */
static enum status uuid_of_folder(const struct config *config, char uuid[LEDGER_UUID_CHARS + 1], bool *found,
                                  struct error *err)
{
    struct segment_info newest;
    enum status status = journal_newest(disk_system(), config->journal, config->journal_fallback, &newest, err);
    *found = status == ST_OK;
    if (status == ST_OK) memcpy(uuid, newest.uuid, LEDGER_UUID_CHARS + 1);
    return status == ST_NOTFOUND ? ST_OK : status;
}

/* A new folder's ledger in the process is a new one: a UUID of version 4. */
static enum status find_uuid(const struct config *config, char uuid[LEDGER_UUID_CHARS + 1], struct error *err)
{
    bool found;
    TRY(uuid_of_folder(config, uuid, &found, err));
    if (found) return ST_OK;
    random_uuid(uuid);
    return ST_OK;
}

/* ---- Redis ---- */

/* The ledger's uuid as Redis has it. A Redis that does not answer keeps a node with a journal from nothing but new
 * leases; a new folder needs to know whose records it will hold. */
static enum status open_redis(struct billing *billing, struct error *err)
{
    const struct config *config = billing->config;
    const struct redis_settings settings = {.url = config->redis,
                                            .password = config->redis_password,
                                            .password_file = config->redis_password_file,
                                            .ca_file = config->redis_ca_file,
                                            .cert_file = config->redis_cert_file,
                                            .key_file = config->redis_key_file};
    TRY(redis_target_read(&settings, &billing->redis, err));
    TRY(ledger_redis_create(&billing->redis, &billing->ledger, err));
    struct error reason = {""};
    enum status status = billing->ledger.calls->uuid(billing->ledger.state, billing->uuid, &reason);
    if (status == ST_OK && billing->uuid[0]) return ST_OK;
    if (status == ST_OK)
        return error_set(err, ST_INVAL, "Redis holds no ledger yet: make one with `millrace bill init --redis URL`");
    if (status != ST_IO && status != ST_TIMEOUT) return error_set(err, status, "%s", reason.message);
    bool found = false;
    TRY(uuid_of_folder(config, billing->uuid, &found, err));
    if (!found) return error_set(err, status, "%s; without Redis a new journal cannot know its ledger", reason.message);
    log_line(LOG_WARN, "billing", "redis does not answer, going on with the journal reason=\"%s\"", reason.message);
    return ST_OK;
}

static void on_granted(void *state, uint64_t account, uint8_t mclass, uint64_t pseq, uint64_t leased, bool open)
{
    meter_granted(((struct billing *)state)->meter, account, mclass, pseq, leased, open);
}

static void on_ledger_state(void *state, bool reachable, bool refuses, const char *reason)
{
    (void)reason; /* the emitter has logged it */
    meter_ledger_state(((struct billing *)state)->meter, reachable, refuses);
}

static void on_applied(void *state, uint16_t partition, uint64_t hwm, const char *hash8)
{
    meter_applied(((struct billing *)state)->meter, partition, hwm, hash8);
}

static void on_durable(void *state, uint64_t lsn)
{
    emitter_durable(((struct billing *)state)->emitter, lsn);
}

static enum status start_emitter(struct billing *billing, const struct journal_report *report,
                                 struct billing_stats *stats, struct error *err)
{
    const struct config *config = billing->config;
    struct emitter_config emitter = {
        .target = &billing->redis,
        .disk = disk_system(),
        .folder = config->journal,
        .fallback = config->journal_fallback,
        .uuid = billing->uuid,
        .producer = report->producer,
        .epoch = report->epoch,
        .durable_lsn = meter_durable_lsn(billing->meter),
        .clock = clock_system(),
        .hooks = {.state = billing, .granted = on_granted, .ledger_state = on_ledger_state, .applied = on_applied},
        .stats = stats};
    if (emitter_create(&emitter, &billing->emitter) != ST_OK)
        return error_set(err, ST_NOMEM, "no memory for the emitter");
    meter_durable_hook(billing->meter, on_durable, billing);
    emitter_durable(billing->emitter, meter_durable_lsn(billing->meter));
    return ST_OK;
}

enum status billing_open(const struct config *config, struct billing_stats *stats, void (*wake)(void *state),
                         void *wake_state, struct billing **billing, struct error *err)
{
    *billing = NULL;
    TRY(check_settings(config, err));
    if (!config->journal) return ST_OK;
    struct meter_config meter;
    struct journal_report report;
    TRY(read_settings(config, &meter, err));
    struct billing *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "no memory for billing");
    made->config = config;
    made->stats = stats;
    meter.stats = stats;
    meter.journal.uuid = made->uuid;
    meter.wake = wake;
    meter.wake_state = wake_state;
    enum status status = config->redis ? open_redis(made, err) : find_uuid(config, made->uuid, err);
    if (status == ST_OK) status = meter_create(&meter, &made->meter, &report, err);
    if (status == ST_OK && config->redis) status = start_emitter(made, &report, stats, err);
    if (status != ST_OK) {
        if (made->ledger.calls) made->ledger.calls->close(made->ledger.state);
        meter_destroy(made->meter);
        mem_free(made);
        return status;
    }
    made->producer = report.producer;
    made->utc_offset_s = meter.journal.utc_offset_s;
    made->leases = meter.leases;
    log_line(LOG_INFO, "billing",
             "journal=\"%s\" mode=%s producer=%016llx epoch=%llu records=%llu closed_after_crash=%u cut_bytes=%llu",
             config->journal, config->journal_mode, (unsigned long long)report.producer,
             (unsigned long long)report.epoch, (unsigned long long)report.records, report.closed,
             (unsigned long long)report.cut_bytes);
    if (!config->redis) meter_ledger_client(made->meter, &made->ledger);
    *billing = made;
    return ST_OK;
}

enum status billing_note_energy(struct billing *billing, const struct energy_note *note)
{
    return billing == NULL ? ST_OK : meter_note_energy(billing->meter, note);
}

void billing_close(struct billing *billing)
{
    if (!billing) return;
    meter_finish(billing->meter);
    if (billing->emitter) {
        meter_durable_hook(billing->meter, NULL, NULL);
        uint64_t left = emitter_stop(billing->emitter, FLUSH_NS);
        if (left > 0)
            log_line(LOG_WARN, "billing",
                     "unapplied records=%llu: they go to Redis at the next start, or by "
                     "`millrace bill replay`",
                     (unsigned long long)left);
    }
    if (billing->ledger.calls) billing->ledger.calls->close(billing->ledger.state);
    meter_destroy(billing->meter);
    mem_free(billing);
}
