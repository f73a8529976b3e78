/* What is done to the journal of a node that is not running: replay, rebuild, adopt, repair; see bill.h. */
#include "server/billing/bill.h"

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "server/billing/bill_directory.h"
#include "server/billing/bill_json.h"
#include "server/billing/bill_rebuild_log.h"
#include "server/billing/bill_send.h"
#include "server/billing/bill_text.h"
#include "server/billing/journal_reader.h"
#include "server/billing/journal_repair.h"
#include "server/billing/ledger_redis.h"
#include "server/billing/ledger_store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { PATH_BYTES_MAX = 4096 };
#define ORDERS_BYTES_MAX (UINT64_C(256) << 20)

/* ---- adopt, repair ---- */

enum status bill_adopt(struct bill *bill, int *exit_code, struct error *err)
{
    char uuid[LEDGER_UUID_CHARS + 1];
    struct journal_config config;
    uint64_t producer;
    TRY(bill_journal_config(bill, bill->options->names[0], NULL, uuid, &config, err));
    if (bill->options->uuid) config.uuid = bill->options->uuid;
    TRY(journal_adopt(&config, &producer, err));
    if (bill->options->json)
        buf_append_format(bill->out, "{\"object\":\"billing.adopt\",\"producer\":\"%016" PRIx64 "\",\"uuid\":\"%s\"}\n",
                          producer, config.uuid);
    else
        buf_append_format(bill->out, "%s: producer %016" PRIx64 " of ledger %s from now on\n", config.folder, producer,
                          config.uuid);
    *exit_code = BILL_DONE;
    return ST_OK;
}

/* Reads to the end, or to the damage: where it is, is in err. */
static enum status find_damage(const struct bill *bill, const char *folder, uint64_t *tail, struct error *err)
{
    struct journal_reader *reader;
    struct frame frame;
    TRY(journal_reader_open(bill->disk, folder, bill->options->fallback, 0, &reader, err));
    enum status status = ST_OK;
    while (status == ST_OK) status = journal_reader_next(reader, UINT64_MAX, &frame, err);
    if (status == ST_AGAIN) *tail = journal_reader_tail(reader);
    journal_reader_close(reader);
    return status == ST_AGAIN ? ST_OK : status;
}

/* Without --force it only tells. */
static enum status tell_damage(struct bill *bill, int *exit_code, struct error *err)
{
    const char *folder = bill->options->names[0];
    struct error damage = {""};
    uint64_t tail = 0;
    enum status status = find_damage(bill, folder, &tail, &damage);
    if (status != ST_OK && status != ST_INVAL) return error_set(err, status, "%s", damage.message);
    *exit_code = status == ST_OK ? BILL_DONE : BILL_DAMAGED;
    if (bill->options->json) {
        buf_append_format(bill->out,
                          "{\"object\":\"billing.repair\",\"damaged\":%s,\"torn_bytes\":%" PRIu64 ",\"text\":",
                          status == ST_OK ? "false" : "true", tail);
        buf_append_json_string(bill->out, damage.message, strlen(damage.message));
        buf_append_text(bill->out, "}\n");
    } else if (status == ST_INVAL) {
        buf_append_format(bill->out, "%s\nWith --force it is cut there; what is cut is kept in a file beside it.\n",
                          damage.message);
    } else if (tail > 0) {
        buf_append_format(bill->out,
                          "%s: a write of %" PRIu64 " bytes is torn at its end: the next start cuts it by itself\n",
                          folder, tail);
    } else {
        buf_append_format(bill->out, "%s: there is no damage that cutting would mend\n", folder);
    }
    return ST_OK;
}

enum status bill_repair(struct bill *bill, int *exit_code, struct error *err)
{
    char uuid[LEDGER_UUID_CHARS + 1];
    struct journal_config config;
    struct repair_report report = {.saved = ""};
    if (!bill->options->force) return tell_damage(bill, exit_code, err);
    TRY(bill_journal_config(bill, bill->options->names[0], NULL, uuid, &config, err));
    TRY(journal_repair(&config, &report, err));
    if (bill->options->json)
        buf_append_format(bill->out,
                          "{\"object\":\"billing.repair\",\"cut_bytes\":%" PRIu64 ",\"frames_lost\":%" PRIu32
                          ",\"last_lsn\":%" PRIu64 "}\n",
                          report.cut_bytes, report.frames_lost, report.last_lsn);
    else if (!report.saved[0])
        buf_append_format(bill->out, "%s: nothing was cut\n", config.folder);
    else
        buf_append_format(bill->out,
                          "%s: cut %" PRIu64 " bytes behind LSN %" PRIu64 ", among them %" PRIu32
                          " whole frames; they are kept in %s\n",
                          report.segment, report.cut_bytes, report.last_lsn, report.frames_lost, report.saved);
    *exit_code = BILL_DONE;
    return ST_OK;
}

/* ---- replay ---- */

static void print_report(struct bill *bill, const struct journal_report *report, uint64_t sent, uint64_t left)
{
    if (bill->options->json)
        buf_append_format(bill->out,
                          "{\"object\":\"billing.replay\",\"producer\":\"%016" PRIx64 "\",\"closed\":%" PRIu32
                          ",\"cut_bytes\":%" PRIu64 ",\"applied\":%" PRIu64 ",\"unapplied\":%" PRIu64 "}\n",
                          report->producer, report->closed, report->cut_bytes, sent, left);
    else
        buf_append_format(bill->out,
                          "producer %016" PRIx64 ": %" PRIu32 " requests closed that a crash had left open, %" PRIu64
                          " bytes of a torn write cut\nrecords applied now: %" PRIu64 ", left: %" PRIu64 "\n",
                          report->producer, report->closed, report->cut_bytes, sent, left);
}

/* The marks that a replay has reached go into the journal, so that the next start knows them. */
static enum status put_marks(struct journal *journal, const struct bill_sent *sent)
{
    for (uint16_t i = 0; i < PARTITIONS; i++)
        if (sent->hwm[i] > 0) TRY(journal_put_ack(journal, i, sent->hwm[i], sent->hash8[i]));
    return journal_commit(journal);
}

static enum status replay_to_redis(struct bill *bill, struct journal *journal, const struct journal_config *config,
                                   uint64_t *left, uint64_t *applied, struct error *err)
{
    struct bill_sent *sent = mem_alloc(1, sizeof *sent);
    if (!sent) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    struct bill_send send = {.folder = config->folder,
                             .more = bill->options->archive ? bill->options->archive : bill->options->fallback,
                             .uuid = config->uuid,
                             .producer = journal_producer(journal),
                             .epoch = journal_epoch(journal),
                             .durable_lsn = journal_durable_lsn(journal)};
    enum status status = bill_send_records(bill, &send, sent, err);
    *left = sent->left;
    *applied = sent->applied;
    enum status marked = put_marks(journal, sent);
    mem_free(sent);
    return status == ST_OK && marked != ST_OK ? error_set(err, marked, "the journal could not be written") : status;
}

enum status bill_replay(struct bill *bill, int *exit_code, struct error *err)
{
    char uuid[LEDGER_UUID_CHARS + 1];
    struct journal_config config;
    struct journal *journal;
    struct journal_report report;
    uint64_t left = 0, applied = 0;
    if (bill->options->server ||
        (bill->options->journal && strcmp(bill->options->journal, bill->options->names[0]) != 0))
        return error_set(err, ST_INVAL,
                         "replay applies a folder to --redis URL, or to the ledger in the folder itself");
    TRY(bill_journal_config(bill, bill->options->names[0], NULL, uuid, &config, err));
    TRY(journal_open(&config, &journal, &report, err));
    enum status status = ST_OK;
    if (bill->options->redis) {
        status = replay_to_redis(bill, journal, &config, &left, &applied, err);
        journal_close(journal);
    } else {
        struct ledger_store *store;
        struct ledger_store_report stored;
        const struct ledger_store_config store_config = {bill->disk, config.folder, config.fallback, config.uuid};
        status = ledger_store_open(&store_config, journal_durable_lsn(journal), &store, &stored, err);
        if (status == ST_OK) {
            applied = stored.frames;
            status = ledger_store_snapshot(store, journal, err);
            ledger_store_close(store);
        }
        journal_close(journal);
    }
    if (status == ST_OK) print_report(bill, &report, applied, left);
    *exit_code = status == ST_OK && left == 0 ? BILL_DONE : BILL_REFUSED;
    return status;
}

/* ---- rebuild, in a folder ---- */

static const char *const snapshot_names[] = {"ledger.snap", "ledger.snap.old"};

static enum status path_of(const char *folder, const char *name, const char *ending, char path[PATH_BYTES_MAX])
{
    int length = snprintf(path, PATH_BYTES_MAX, "%s/%s%s", folder, name, ending);
    return length > 0 && length < PATH_BYTES_MAX ? ST_OK : ST_LIMIT;
}

/* Snapshots out of the way, or back. */
static void move_snapshots(const struct bill *bill, const char *folder, bool away)
{
    char plain[PATH_BYTES_MAX], aside[PATH_BYTES_MAX];
    for (size_t i = 0; i < 2; i++)
        if (path_of(folder, snapshot_names[i], "", plain) == ST_OK &&
            path_of(folder, snapshot_names[i], ".before", aside) == ST_OK)
            (void)bill->disk->rename(bill->disk->state, away ? plain : aside, away ? aside : plain);
}

static enum status save(const struct ledger_store_config *config, uint64_t lsn, struct ledger_store **store,
                        struct buf *bytes, struct error *err)
{
    struct ledger_store_report report;
    TRY(ledger_store_open(config, lsn, store, &report, err));
    ledger_save(ledger_store_ledger(*store), bytes);
    return buf_ok(bytes) ? ST_OK : error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
}

/* The ledger from frames alone, in place of its snapshots; told whether it is the one that was there. */
static enum status rebuild_folder(struct bill *bill, struct journal *journal, const struct journal_config *config,
                                  int *exit_code, struct error *err)
{
    const struct ledger_store_config store_config = {bill->disk, config->folder, config->fallback, config->uuid};
    struct ledger_store *before = NULL, *after = NULL;
    struct buf bytes_before, bytes_after;
    struct error reason = {""};
    uint64_t lsn = journal_durable_lsn(journal);
    buf_init(&bytes_before, 0);
    buf_init(&bytes_after, 0);
    bool had = save(&store_config, lsn, &before, &bytes_before, &reason) == ST_OK;
    ledger_store_close(before);
    move_snapshots(bill, config->folder, true);
    enum status status = save(&store_config, lsn, &after, &bytes_after, err);
    if (status == ST_OK && !ledger_check(ledger_store_ledger(after), err)) status = ST_INVAL;
    if (status == ST_OK) status = ledger_store_snapshot(after, journal, err);
    if (status != ST_OK) {
        move_snapshots(bill, config->folder, false);
    } else {
        bool same = had && bytes_before.length == bytes_after.length &&
                    memcmp(bytes_before.data, bytes_after.data, bytes_after.length) == 0;
        *exit_code = same || !had ? BILL_DONE : BILL_DIFFERENT;
        if (bill->options->json)
            buf_append_format(bill->out, "{\"object\":\"billing.rebuild\",\"lsn\":%" PRIu64 ",\"identical\":%s}\n", lsn,
                              same ? "true" : "false");
        else
            buf_append_format(bill->out, "ledger rebuilt up to LSN %" PRIu64 ": %s\n", lsn,
                              same  ? "identical to the one that was there"
                              : had ? "it DIFFERS from the one that was there, which is kept in *.before"
                                    : "the one that was there could not be read");
    }
    ledger_store_close(after);
    buf_free(&bytes_before);
    buf_free(&bytes_after);
    return status;
}

/* ---- rebuild, in Redis ---- */

static enum status send_order(struct bill *bill, const struct json *json, uint64_t line, struct error *err)
{
    struct order order;
    struct error reason = {""};
    enum ledger_answer answer = LEDGER_OK;
    if (bill_read_order(json, &order, &reason) != ST_OK)
        return error_set(err, ST_INVAL, "--orders: line %" PRIu64 ": %.300s", line, reason.message);
    order.created_ms = (uint64_t)clock_unix_ms(bill->clock);
    TRY(bill->ledger.calls->order(bill->ledger.state, &order, &answer, err));
    if (answer == LEDGER_OK || answer == LEDGER_DUP) return ST_OK;
    return error_set(err, ST_INVAL, "--orders: line %" PRIu64 ": %s (%s)", line, bill_answer_text(answer),
                     ledger_answer_name(answer));
}

static enum status send_orders(struct bill *bill, const char *path, uint64_t *count, struct error *err)
{
    char *data;
    size_t length;
    struct error reason = {""};
    enum status status = file_read(path, ORDERS_BYTES_MAX, "256 MiB", &data, &length, &reason);
    if (status != ST_OK) return error_set(err, status, "--orders: %.200s: %.200s", path, reason.message);
    uint64_t line = 0;
    for (char *at = data; at < data + length && status == ST_OK;) {
        struct json *json = NULL;
        size_t bytes = strcspn(at, "\n");
        line++;
        if (bytes > 0) {
            status = json_read(at, bytes, &json, &reason);
            status = status == ST_OK
                         ? send_order(bill, json, line, err)
                         : error_set(err, status, "--orders: line %" PRIu64 ": %.300s", line, reason.message);
            *count += status == ST_OK;
        }
        json_release(json);
        at += bytes + 1;
    }
    mem_free(data);
    return status;
}

/* Every producer that wrote into the folder, each with its last epoch and LSN. */
static enum status send_folder(struct bill *bill, const char *folder, const char *uuid, uint64_t *applied,
                               struct error *err)
{
    const char *more = bill->options->archive;
    uint32_t count = 0;
    struct segment_info *segments = mem_alloc(BILL_SEGMENTS_MAX, sizeof *segments);
    struct bill_sent *sent = mem_alloc(1, sizeof *sent);
    enum status status = segments && sent ? ST_OK : ST_NOMEM;
    if (status == ST_OK) status = journal_segments(bill->disk, folder, more, segments, BILL_SEGMENTS_MAX, &count, err);
    for (uint32_t i = 0; i < count && status == ST_OK; i++) {
        bool last = i + 1 == count || segments[i + 1].producer != segments[i].producer;
        if (!last) continue;
        struct bill_send send = {
            .folder = folder, .more = more, .uuid = uuid, .producer = segments[i].producer, .epoch = segments[i].epoch};
        uint64_t tail;
        send.durable_lsn = i + 1 == count ? 0 : segments[i + 1].base_lsn - 1;
        if (send.durable_lsn == 0) status = bill_last_lsn(bill, folder, more, &send.durable_lsn, &tail, err);
        if (status == ST_OK) status = bill_send_records(bill, &send, sent, err);
        if (status == ST_OK && sent->left > 0)
            status = error_set(err, ST_TIMEOUT, "%.200s: %" PRIu64 " records are not applied; run it again", folder,
                               sent->left);
        *applied += sent->applied;
    }
    mem_free(segments);
    mem_free(sent);
    return status;
}

/* The ledger of --log; uuid becomes the log's if it is "". */
static enum status fill_from_log(struct bill *bill, char uuid[LEDGER_UUID_CHARS + 1], uint64_t *entries,
                                 struct error *err)
{
    struct ledger *ledger = NULL;
    if (!bill->redis) TRY(bill_redis_target(bill, &bill->redis, err));
    TRY(bill_rebuild_log(bill, bill->options->log, uuid[0] ? uuid : NULL, &ledger, entries, err));
    (void)snprintf(uuid, LEDGER_UUID_CHARS + 1, "%s", ledger_uuid(ledger));
    enum status status = ledger_redis_fill(bill->redis, ledger, err);
    ledger_destroy(ledger);
    return status;
}

static enum status rebuild_redis(struct bill *bill, char uuid[LEDGER_UUID_CHARS + 1], struct error *err)
{
    char there[LEDGER_UUID_CHARS + 1];
    enum ledger_answer answer = LEDGER_OK;
    uint64_t orders = 0, applied = 0, entries = 0;
    if (bill->options->log) TRY(fill_from_log(bill, uuid, &entries, err));
    TRY(bill_open_ledger(bill, err));
    TRY(bill->ledger.calls->uuid(bill->ledger.state, there, err));
    if (there[0] && strcmp(there, uuid) != 0)
        return error_set(err, ST_INVAL, "there is another ledger in it already: %s; rebuild into an empty Redis",
                         there);
    TRY(bill->ledger.calls->init(bill->ledger.state, uuid, &answer, err));
    if (bill->options->orders) TRY(send_orders(bill, bill->options->orders, &orders, err));
    for (uint32_t i = 0; i < bill->options->names_count; i++)
        TRY(send_folder(bill, bill->options->names[i], uuid, &applied, err));
    if (bill->options->json)
        buf_append_format(bill->out,
                          "{\"object\":\"billing.rebuild\",\"uuid\":\"%s\",\"log_entries\":%" PRIu64
                          ",\"orders\":%" PRIu64 ",\"applied\":%" PRIu64 "}\n",
                          uuid, entries, orders, applied);
    else
        buf_append_format(bill->out,
                          "ledger %s: %" PRIu64 " entries of a log, %" PRIu64 " orders, %" PRIu64 " records applied\n",
                          uuid, entries, orders, applied);
    return ST_OK;
}

enum status bill_rebuild(struct bill *bill, int *exit_code, struct error *err)
{
    char uuid[LEDGER_UUID_CHARS + 1] = "";
    struct journal_config config;
    struct journal *journal;
    struct journal_report report;
    const struct bill_options *options = bill->options;
    *exit_code = BILL_USAGE_ERROR;
    if (options->log && !options->redis) return error_set(err, ST_INVAL, "--log fills a Redis: name it, --redis URL");
    if (!options->log && options->names_count == 0)
        return error_set(err, ST_INVAL, "from what? Name the journal folders, or a log (--log FILE)");
    if (options->uuid && strlen(options->uuid) > LEDGER_UUID_CHARS)
        return error_set(err, ST_INVAL, "--uuid: \"%.60s\" is too long", options->uuid);
    *exit_code = BILL_REFUSED;
    if (options->names_count > 0) TRY(bill_journal_config(bill, options->names[0], NULL, uuid, &config, err));
    if (options->uuid) (void)snprintf(uuid, sizeof uuid, "%s", options->uuid);
    if (options->redis) {
        TRY(rebuild_redis(bill, uuid, err));
        *exit_code = BILL_DONE;
        return ST_OK;
    }
    if (bill->options->server || bill->options->orders || bill->options->names_count > 1)
        return error_set(err, ST_INVAL,
                         "without --redis the ledger of one folder is rebuilt from it alone; its orders are in it");
    config.fallback = bill->options->archive;
    TRY(journal_open(&config, &journal, &report, err));
    enum status status = rebuild_folder(bill, journal, &config, exit_code, err);
    journal_close(journal);
    return status;
}
