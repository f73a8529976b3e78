/* Where the ledger is that `millrace bill` works on; see bill.h. */
#include "server/billing/bill.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "server/billing/ledger_http.h"

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

bool bill_names_ledger(const struct bill *bill)
{
    return bill->options->redis || bill->options->journal || bill->options->server;
}

enum status bill_open_ledger(struct bill *bill, struct error *err)
{
    const struct bill_options *options = bill->options;
    if (options->server) return open_server(bill, err);
    return error_set(err, ST_INVAL,
                     "say where the ledger is: --redis URL, --server URL (its admin port) or --journal FOLDER");
}

void bill_close_ledger(struct bill *bill)
{
    if (bill->ledger.calls) bill->ledger.calls->close(bill->ledger.state);
    bill->ledger.calls = NULL;
    memset(bill->secret, 0, sizeof bill->secret);
}
