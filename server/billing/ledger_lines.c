/* The directory's lines in a file; see ledger_lines.h. Ids need no escapes, so a line is found and cut without a
 * parser:
 * ["ID",LINE] */
#include "server/billing/ledger_lines.h"

#include "server/billing/disk_file.h"

#include <inttypes.h>
#include <string.h>

static const char FILE_NAME[] = "directory.jsonl";
enum { ID_MAX = 200, LINE_MAX_BYTES = 65536, FILE_MAX_BYTES = 1 << 30 };

struct entry {
    const char *id, *line;
    size_t id_length, line_length;
};

static bool id_valid(const char *id)
{
    size_t length = strnlen(id, ID_MAX + 1);
    if (length == 0 || length > ID_MAX) return false;
    for (size_t i = 0; i < length; i++) {
        if (id[i] <= ' ' || id[i] > '~' || id[i] == '"' || id[i] == '\\') return false;
    }
    return true;
}

/* Cuts the next line off; false at the end, *bad when it is none of ours. */
static bool next_entry(const char **rest, const char *end, struct entry *entry, bool *bad)
{
    if (*rest == end) return false;
    const char *line = *rest, *stop = memchr(line, '\n', (size_t)(end - line));
    const char *quote = stop != NULL && stop - line > 4 && line[0] == '[' && line[1] == '"'
                            ? memchr(line + 2, '"', (size_t)(stop - line - 2))
                            : NULL;
    if (quote == NULL || quote[1] != ',' || stop - quote < 4 || stop[-1] != ']') {
        *bad = true;
        return false;
    }
    *entry = (struct entry){.id = line + 2,
                            .id_length = (size_t)(quote - line - 2),
                            .line = quote + 2,
                            .line_length = (size_t)(stop - 1 - (quote + 2))};
    *rest = stop + 1;
    return true;
}

/* The first line, ["",VERSION]. */
static bool read_version(const struct entry *entry, uint64_t *version)
{
    if (entry->id_length != 0 || entry->line_length == 0 || entry->line_length > 18) return false;
    *version = 0;
    for (size_t i = 0; i < entry->line_length; i++) {
        if (entry->line[i] < '0' || entry->line[i] > '9') return false;
        *version = *version * 10 + (uint64_t)(entry->line[i] - '0');
    }
    return true;
}

static enum status damaged(struct error *err, uint64_t line)
{
    return error_set(err, ST_INVAL, "%s: line %" PRIu64 " is damaged", FILE_NAME, line);
}

/* Reads the file into `text` and calls visit with each entry. */
static enum status read_entries(const struct disk *disk, const char *folder, struct buf *text,
                                void (*visit)(void *state, const struct entry *entry), void *state, uint64_t *version,
                                struct error *err)
{
    uint64_t found = 0, line = 0;
    bool bad = false;
    enum status status = disk_file_read(disk, folder, FILE_NAME, FILE_MAX_BYTES, text, err);
    if (status == ST_NOTFOUND) {
        *version = 0;
        return ST_OK;
    }
    if (status != ST_OK) return status;
    const char *rest = text->data, *end = rest + text->length;
    struct entry entry;
    while (next_entry(&rest, end, &entry, &bad)) {
        line++;
        if (line == 1 ? !read_version(&entry, &found) : entry.id_length == 0) return damaged(err, line);
        if (line > 1 && visit != NULL) visit(state, &entry);
    }
    if (bad || line == 0) return damaged(err, line + 1);
    *version = found;
    return ST_OK;
}

enum status ledger_lines_version(const struct disk *disk, const char *folder, uint64_t *version, struct error *err)
{
    struct buf text;
    buf_init(&text, 0);
    enum status status = read_entries(disk, folder, &text, NULL, NULL, version, err);
    buf_free(&text);
    return status;
}

struct reading {
    void (*visit)(void *visitor, const char *line, size_t length);
    void *visitor;
};

static void give_line(void *state, const struct entry *entry)
{
    const struct reading *reading = state;
    reading->visit(reading->visitor, entry->line, entry->line_length);
}

enum status ledger_lines_read(const struct disk *disk, const char *folder,
                              void (*visit)(void *visitor, const char *line, size_t length), void *visitor,
                              uint64_t *version, struct error *err)
{
    struct buf text;
    buf_init(&text, 0);
    uint64_t found;
    enum status status = read_entries(disk, folder, &text, NULL, NULL, &found, err); /* whole or nothing */
    buf_clear(&text);
    struct reading reading = {.visit = visit, .visitor = visitor};
    if (status == ST_OK) status = read_entries(disk, folder, &text, give_line, &reading, version, err);
    buf_free(&text);
    return status;
}

/* The file with one entry put in, after its first line. */
struct change {
    const char *id, *line;
    struct buf lines;
    bool found, same;
};

static void put_entry(struct buf *out, const char *id, size_t id_length, const char *line, size_t line_length)
{
    buf_append_text(out, "[\"");
    buf_append(out, id, id_length);
    buf_append_text(out, "\",");
    buf_append(out, line, line_length);
    buf_append_text(out, "]\n");
}

static void change_entry(void *state, const struct entry *entry)
{
    struct change *change = state;
    if (strlen(change->id) == entry->id_length && memcmp(change->id, entry->id, entry->id_length) == 0) {
        change->found = true;
        change->same =
            strlen(change->line) == entry->line_length && memcmp(change->line, entry->line, entry->line_length) == 0;
        put_entry(&change->lines, change->id, strlen(change->id), change->line, strlen(change->line));
        return;
    }
    put_entry(&change->lines, entry->id, entry->id_length, entry->line, entry->line_length);
}

enum status ledger_lines_put(const struct disk *disk, const char *folder, const char *id, const char *line,
                             struct error *err)
{
    size_t length = strnlen(line, LINE_MAX_BYTES + 1);
    if (!id_valid(id) || length == 0 || length > LINE_MAX_BYTES || strpbrk(line, "\r\n") != NULL) {
        return error_set(err, ST_INVAL, "directory: the id or the line is not valid");
    }
    struct change change = {.id = id, .line = line};
    struct buf text, whole;
    buf_init(&text, 0);
    buf_init(&whole, 0);
    buf_init(&change.lines, 0);
    uint64_t version;
    enum status status = read_entries(disk, folder, &text, change_entry, &change, &version, err);
    if (status == ST_OK && !change.same) {
        if (!change.found) put_entry(&change.lines, id, strlen(id), line, length);
        buf_append_format(&whole, "[\"\",%" PRIu64 "]\n", version + 1);
        buf_append(&whole, change.lines.data, change.lines.length);
        if (!buf_ok(&whole) || !buf_ok(&change.lines)) {
            status = error_set(err, ST_NOMEM, "directory: out of memory");
        } else {
            status = disk_file_replace(disk, folder, FILE_NAME, NULL, whole.data, whole.length, err);
        }
    }
    buf_free(&text);
    buf_free(&whole);
    buf_free(&change.lines);
    return status;
}
