/* Where the ledger is that `millrace bill` works on; see bill.h. */
#include "server/billing/bill.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "server/billing/journal_reader.h"
#include "server/billing/ledger_http.h"
#include "server/billing/ledger_redis.h"
#include "server/billing/ledger_store.h"

#include <string.h>

enum status bill_secret(const char *file, const char *environment, const char *what, char *out, struct error *err)
{
    char *data;
    size_t length;
    struct error reason = {""};
    if (!file) {
        if (!environment || strlen(environment) >= BILL_SECRET_BYTES_MAX)
            return error_set(err, ST_INVAL, "%s is needed, from the environment or a file; \"--help\" names both",
                             what);
        memcpy(out, environment, strlen(environment) + 1);
        return ST_OK;
    }
    enum status status = file_read(file, 65536, "64 KiB", &data, &length, &reason);
    if (status != ST_OK) return error_set(err, status, "%s: %.200s: %.200s", what, file, reason.message);
    size_t line = strcspn(data, "\r\n");
    bool good = line > 0 && line < BILL_SECRET_BYTES_MAX && line <= length;
    if (good) memcpy(out, data, line), out[line] = '\0';
    memset(data, 0, length);
    mem_free(data);
    return good ? ST_OK
                : error_set(err, ST_INVAL, "%s: the first line of %.200s is empty or longer than %d bytes", what, file,
                            BILL_SECRET_BYTES_MAX - 1);
}

static enum status open_server(struct bill *bill, struct error *err)
{
    const struct bill_options *options = bill->options;
    if (strncmp(options->server, "http://", 7) != 0 && strncmp(options->server, "https://", 8) != 0)
        return error_set(err, ST_INVAL, "--server: \"%.100s\" is no URL like http://127.0.0.1:9000", options->server);
    TRY(bill_secret(options->admin_key_file, options->admin_key,
                    "the admin key (MILLRACE_ADMIN_KEY or --admin-key-file)", bill->secret, err));
    return ledger_http_open(options->server, bill->secret, options->ca_file, &bill->ledger, err);
}

enum status bill_redis_target(const struct bill *bill, struct redis_target **target, struct error *err)
{
    const struct bill_options *options = bill->options;
    struct redis_settings settings = {.url = options->redis,
                                      .password = options->redis_password,
                                      .password_file = options->redis_password_file,
                                      .ca_file = options->redis_ca_file,
                                      .cert_file = options->redis_cert_file,
                                      .key_file = options->redis_key_file};
    struct redis_target *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    enum status status = redis_target_read(&settings, made, err);
    if (status == ST_OK)
        *target = made;
    else
        mem_free(made);
    return status;
}

static enum status open_redis(struct bill *bill, struct error *err)
{
    if (!bill->redis) TRY(bill_redis_target(bill, &bill->redis, err));
    return ledger_redis_open(bill->redis, &bill->ledger, err);
}

enum { SEGMENT_BYTES_DEFAULT = 64 << 20 };

enum status bill_journal_config(const struct bill *bill, const char *folder, const char *uuid,
                                char own_uuid[LEDGER_UUID_CHARS + 1], struct journal_config *config, struct error *err)
{
    struct segment_info newest;
    *config = (struct journal_config){.disk = bill->disk,
                                      .clock = bill->clock,
                                      .folder = folder,
                                      .fallback = bill->options->fallback,
                                      .uuid = uuid,
                                      .mode = COMMIT_STEP,
                                      .segment_bytes = SEGMENT_BYTES_DEFAULT,
                                      .utc_offset_s = bill->options->utc_offset_s};
    enum status status = journal_newest(bill->disk, folder, bill->options->fallback, &newest, err);
    if (status == ST_NOTFOUND && uuid) return ST_OK; /* it will be made */
    if (status != ST_OK) return status;
    config->segment_bytes = newest.bytes;
    if (!uuid) memcpy(own_uuid, newest.uuid, LEDGER_UUID_CHARS + 1), config->uuid = own_uuid;
    return ST_OK;
}

static enum status open_journal(struct bill *bill, struct error *err)
{
    char uuid[LEDGER_UUID_CHARS + 1];
    struct journal_config config;
    TRY(bill_journal_config(bill, bill->options->journal, bill->new_uuid, uuid, &config, err));
    enum status status = ledger_store_client_open(&config, &bill->ledger, err);
    if (status == ST_AGAIN)
        return error_set(err, ST_AGAIN, "%.300s: a server has this folder open: use its admin port (--server URL)",
                         bill->options->journal);
    return status;
}

bool bill_names_ledger(const struct bill *bill)
{
    return bill->options->redis || bill->options->journal || bill->options->server;
}

enum status bill_open_ledger(struct bill *bill, struct error *err)
{
    const struct bill_options *options = bill->options;
    if (options->server) return open_server(bill, err);
    if (options->redis) return open_redis(bill, err);
    if (options->journal) return open_journal(bill, err);
    return error_set(err, ST_INVAL,
                     "say where the ledger is: --redis URL, --server URL (its admin port) or --journal FOLDER");
}

void bill_close_ledger(struct bill *bill)
{
    if (bill->ledger.calls) bill->ledger.calls->close(bill->ledger.state);
    bill->ledger.calls = NULL;
    mem_free(bill->redis);
    bill->redis = NULL;
    memset(bill->secret, 0, sizeof bill->secret);
}
