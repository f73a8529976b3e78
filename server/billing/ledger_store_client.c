/* ledger_client.h over a journal folder that nobody serves: what `millrace bill` uses on a node without Redis whose
 * server is down. Each change is a frame, committed before it is applied, as in a server. */
#include "runtime/base/mem.h"
#include "server/billing/budget_book.h"
#include "server/billing/journal_reader.h"
#include "server/billing/ledger_lines.h"
#include "server/billing/ledger_store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { FOLDER_BYTES = 512 };

struct rest_client {
    const struct disk *disk;
    const struct clock *clock;
    struct journal *journal;
    struct ledger_store *store;
    char folder[FOLDER_BYTES], fallback[FOLDER_BYTES], uuid[LEDGER_UUID_CHARS + 1];
    /* the answer to the frame that was put last */
    uint64_t answer_lsn;
    enum ledger_answer answer;
    uint32_t leases, packages;
};

static uint64_t now_ms(const struct rest_client *client)
{
    return (uint64_t)clock_unix_ms(client->clock);
}

static void on_order(void *state, uint64_t lsn, enum ledger_answer answer, uint32_t leases, uint32_t packages)
{
    struct rest_client *client = state;
    client->answer_lsn = lsn;
    client->answer = answer;
    client->leases = leases;
    client->packages = packages;
}

/* Makes the frame just put durable and applies it. */
static enum status settle(struct rest_client *client, enum status put, enum ledger_answer *answer, struct error *err)
{
    if (put != ST_OK) return error_set(err, put, "the journal takes no order: %s", status_text(put));
    uint64_t lsn = journal_lsn(client->journal);
    enum status status = journal_commit(client->journal);
    if (status != ST_OK) return error_set(err, status, "the journal cannot be written: %s", status_text(status));
    const struct ledger_store_events events = {.state = client, .order = on_order};
    TRY(ledger_store_follow(client->store, lsn, &events, err));
    if (client->answer_lsn != lsn) return error_set(err, ST_IO, "the order at LSN %" PRIu64 " got no answer", lsn);
    *answer = client->answer;
    return ST_OK;
}

static void rest_close(void *state)
{
    struct rest_client *client = state;
    if (client == NULL) return;
    ledger_store_close(client->store);
    if (client->journal != NULL) journal_close(client->journal);
    mem_free(client);
}

static enum status rest_init(void *state, const char *uuid, enum ledger_answer *answer, struct error *err)
{
    (void)err;
    const struct rest_client *client = state;
    *answer = strcmp(client->uuid, uuid) == 0 ? LEDGER_DUP : LEDGER_WRONGLEDGER;
    return ST_OK;
}

static enum status rest_uuid(void *state, char uuid[LEDGER_UUID_CHARS + 1], struct error *err)
{
    (void)err;
    const struct rest_client *client = state;
    memcpy(uuid, client->uuid, sizeof client->uuid);
    return ST_OK;
}

static enum status rest_order(void *state, const struct order *order, enum ledger_answer *answer, struct error *err)
{
    struct rest_client *client = state;
    struct order stamped = *order;
    if (stamped.created_ms == 0 || stamped.op != PACKAGE_ADD) stamped.created_ms = now_ms(client);
    if (!order_valid(&stamped)) {
        *answer = LEDGER_BADARG;
        return ST_OK;
    }
    return settle(client, journal_put_order(client->journal, &stamped), answer, err);
}

static enum status rest_account_set(void *state, uint64_t account, const char *order_id, bool open,
                                    enum ledger_answer *answer, struct error *err)
{
    struct rest_client *client = state;
    if (!order_id_valid(order_id)) {
        *answer = LEDGER_BADARG;
        return ST_OK;
    }
    return settle(client, journal_put_account(client->journal, account, order_id, open), answer, err);
}

static enum status rest_reap(void *state, uint64_t account, uint64_t grace_ms, uint32_t *leases, uint32_t *packages,
                             enum ledger_answer *answer, struct error *err)
{
    struct rest_client *client = state;
    if (grace_ms > PACKAGE_UNITS_MAX) return error_set(err, ST_INVAL, "the grace is too long");
    const struct order order = {
        .id = "reap", .account = account, .op = PACKAGE_REAP, .units = grace_ms, .created_ms = now_ms(client)};
    TRY(settle(client, journal_put_order(client->journal, &order), answer, err));
    *leases = client->leases;
    *packages = client->packages;
    return ST_OK;
}

static enum status rest_balance(void *state, uint64_t account, struct account_balance *balance, struct error *err)
{
    (void)err;
    const struct rest_client *client = state;
    ledger_balance(ledger_store_ledger(client->store), account, balance);
    return ST_OK;
}

static enum status rest_month(void *state, uint64_t account, uint32_t month, struct month_total totals[MODEL_CLASSES],
                              uint32_t *count, struct error *err)
{
    (void)err;
    const struct rest_client *client = state;
    *count = ledger_month(ledger_store_ledger(client->store), account, month, totals);
    return ST_OK;
}

static enum status rest_marks(void *state, uint16_t partition, ledger_mark_fn visit, void *visitor, struct error *err)
{
    (void)err;
    const struct rest_client *client = state;
    ledger_marks(ledger_store_ledger(client->store), partition, visit, visitor);
    return ST_OK;
}

static enum status rest_directory_version(void *state, uint64_t *version, struct error *err)
{
    const struct rest_client *client = state;
    return ledger_lines_version(client->disk, client->folder, version, err);
}

static enum status rest_directory_read(void *state, void (*visit)(void *visitor, const char *line, size_t length),
                                       void *visitor, uint64_t *version, struct error *err)
{
    const struct rest_client *client = state;
    return ledger_lines_read(client->disk, client->folder, visit, visitor, version, err);
}

static enum status rest_directory_put(void *state, const char *id, const char *line, struct error *err)
{
    const struct rest_client *client = state;
    return ledger_lines_put(client->disk, client->folder, id, line, err);
}

static enum status rest_budget(void *state, const struct budget_ask *ask, struct budget_answer *answer,
                               struct error *err)
{
    const struct rest_client *client = state;
    return budget_book_ask(client->disk, client->folder, (int64_t)(now_ms(client) / 1000), ask, answer, err);
}

static const struct ledger_client_calls CALLS = {
    .close = rest_close,
    .init = rest_init,
    .uuid = rest_uuid,
    .order = rest_order,
    .account_set = rest_account_set,
    .reap = rest_reap,
    .balance = rest_balance,
    .month = rest_month,
    .marks = rest_marks,
    .directory_version = rest_directory_version,
    .directory_read = rest_directory_read,
    .directory_put = rest_directory_put,
    .budget = rest_budget,
};

static enum status open_parts(struct rest_client *client, const struct journal_config *config, struct error *err)
{
    if (snprintf(client->folder, FOLDER_BYTES, "%s", config->folder) >= FOLDER_BYTES ||
        snprintf(client->fallback, FOLDER_BYTES, "%s", config->fallback != NULL ? config->fallback : "") >=
            FOLDER_BYTES) {
        return error_set(err, ST_INVAL, "%s: the path is too long", config->folder);
    }
    struct journal_config mine = *config;
    mine.folder = client->folder;
    mine.fallback = config->fallback != NULL ? client->fallback : NULL;
    if (config->uuid == NULL) {
        struct segment_info newest;
        TRY(journal_newest(config->disk, config->folder, config->fallback, &newest, err));
        memcpy(client->uuid, newest.uuid, sizeof client->uuid);
    } else if (snprintf(client->uuid, sizeof client->uuid, "%s", config->uuid) > LEDGER_UUID_CHARS) {
        return error_set(err, ST_INVAL, "the ledger's uuid is too long");
    }
    mine.uuid = client->uuid;
    struct journal_report opened;
    TRY(journal_open(&mine, &client->journal, &opened, err));
    const struct ledger_store_config store = {
        .disk = config->disk, .folder = client->folder, .fallback = mine.fallback, .uuid = client->uuid};
    struct ledger_store_report report;
    return ledger_store_open(&store, journal_durable_lsn(client->journal), &client->store, &report, err);
}

enum status ledger_store_client_open(const struct journal_config *config, struct ledger_client *client,
                                     struct error *err)
{
    struct rest_client *opened = mem_alloc(1, sizeof *opened);
    if (opened == NULL) return error_set(err, ST_NOMEM, "out of memory for a ledger");
    opened->disk = config->disk;
    opened->clock = config->clock;
    enum status status = open_parts(opened, config, err);
    if (status != ST_OK) {
        rest_close(opened);
        return status;
    }
    *client = (struct ledger_client){.calls = &CALLS, .state = opened};
    return ST_OK;
}
