/* See directory_load.h. The version is asked for before the lines: what is put between them comes with the next one. */
#include "server/billing/directory_load.h"

struct loading {
    struct directory *directory;
    enum status status;
    struct error err;
};

static void take_line(void *visitor, const char *line, size_t length)
{
    struct loading *loading = visitor;
    if (loading->status == ST_OK) loading->status = directory_add(loading->directory, line, length, &loading->err);
}

enum status directory_load(const struct ledger_client *client, bool first, uint64_t *version,
                           struct directory **directory, struct error *err)
{
    uint64_t now = 0, read = 0;
    struct loading loading = {.status = ST_OK};
    TRY(client->calls->directory_version(client->state, &now, err));
    if (!first && now == *version) {
        *directory = NULL;
        return ST_OK;
    }
    if (directory_create(&loading.directory) != ST_OK) return error_set(err, ST_NOMEM, "out of memory");
    enum status status = client->calls->directory_read(client->state, take_line, &loading, &read, err);
    if (status == ST_OK && loading.status != ST_OK) status = error_set(err, loading.status, "%s", loading.err.message);
    if (status == ST_OK) status = directory_seal(loading.directory, err);
    if (status != ST_OK) {
        directory_destroy(loading.directory);
        return status;
    }
    *version = now;
    *directory = loading.directory;
    return ST_OK;
}
