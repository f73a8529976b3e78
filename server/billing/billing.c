/* See billing.h. */
#include "server/billing/billing.h"

#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/billing/journal_reader.h"

#include <stdio.h>
#include <string.h>

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
    const char *t = text;
    bool shaped = strlen(t) == 6 && (t[0] == '+' || t[0] == '-') && t[3] == ':';
    for (int i = 1; shaped && i < 6; i++) shaped = i == 3 || (t[i] >= '0' && t[i] <= '9');
    int32_t hours = shaped ? (t[1] - '0') * 10 + (t[2] - '0') : 99,
            minutes = shaped ? (t[4] - '0') * 10 + t[5] - '0' : 99;
    if (hours > 14 || minutes > 59)
        return error_set(err, ST_INVAL, "--bill-utc-offset: \"%.40s\" is not like +08:00 (at most 14 hours)", text);
    *offset_s = (t[0] == '-' ? -1 : 1) * (hours * 3600 + minutes * 60);
    return ST_OK;
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

/* The ledger that the folder's journal belongs to; a new folder's ledger in the process is a new one (UUID version 4).
 */
static enum status find_uuid(const struct config *config, char uuid[LEDGER_UUID_CHARS + 1], struct error *err)
{
    struct journal_reader *reader;
    enum status status = journal_reader_open(disk_system(), config->journal, config->journal_fallback, 0, &reader, err);
    if (status == ST_OK) {
        memcpy(uuid, journal_reader_segment(reader)->uuid, LEDGER_UUID_CHARS + 1);
        journal_reader_close(reader);
        return ST_OK;
    }
    if (status != ST_NOTFOUND) return status;
    uint8_t bytes[16];
    random_fill(bytes, sizeof bytes);
    bytes[6] = 0x40 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    for (uint32_t i = 0, at = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) uuid[at++] = '-';
        at += (uint32_t)snprintf(uuid + at, 3, "%02x", bytes[i]);
    }
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
    meter.stats = stats;
    meter.journal.uuid = made->uuid;
    meter.wake = wake;
    meter.wake_state = wake_state;
    enum status status = find_uuid(config, made->uuid, err);
    if (status == ST_OK) status = meter_create(&meter, &made->meter, &report, err);
    if (status != ST_OK) {
        mem_free(made);
        return status;
    }
    log_line(LOG_INFO, "billing",
             "journal=\"%s\" mode=%s producer=%016llx epoch=%llu records=%llu closed_after_crash=%u cut_bytes=%llu",
             config->journal, config->journal_mode, (unsigned long long)report.producer,
             (unsigned long long)report.epoch, (unsigned long long)report.records, report.closed,
             (unsigned long long)report.cut_bytes);
    meter_ledger_client(made->meter, &made->ledger);
    *billing = made;
    return ST_OK;
}

void billing_stop(struct billing *billing)
{
    if (billing) meter_stop(billing->meter);
}

void billing_close(struct billing *billing)
{
    if (!billing) return;
    meter_destroy(billing->meter);
    mem_free(billing);
}
