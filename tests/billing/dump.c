/* Prints the ledger of a journal folder at rest, as ledger_dump writes it: what the journal's frames make, from the
 * newest snapshot and from nothing, which must be the same.
 *
 *   dump FOLDER */
#include "server/billing/journal_reader.h"
#include "server/billing/ledger_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEGMENTS_MAX = 65536 };

static int failed(const char *what, const struct error *err)
{
    fprintf(stderr, "dump: %s: %s\n", what, err->message);
    return 1;
}

int main(int argc, char **argv)
{
    static struct segment_info segments[SEGMENTS_MAX];
    uint32_t count;
    struct error err = {""};
    struct ledger_store *store;
    struct ledger_store_report report;
    struct buf text;
    if (argc != 2) return 2;
    if (journal_segments(disk_system(), argv[1], NULL, segments, SEGMENTS_MAX, &count, &err) != ST_OK || !count)
        return failed(argv[1], &err);
    struct ledger_store_config config = {.disk = disk_system(), .folder = argv[1], .uuid = segments[count - 1].uuid};
    if (ledger_store_open(&config, UINT64_MAX, &store, &report, &err) != ST_OK) return failed(argv[1], &err);
    if (!ledger_check(ledger_store_ledger(store), &err)) return failed("invariants", &err);
    buf_init(&text, 0);
    ledger_dump(ledger_store_ledger(store), &text);
    bool written = buf_ok(&text) && fwrite(text.data, 1, text.length, stdout) == text.length && fflush(stdout) == 0;
    buf_free(&text);
    ledger_store_close(store);
    return written ? 0 : 1;
}
