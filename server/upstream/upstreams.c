/* See upstreams.h. The file is read as config_yaml.h reads one: names with lists of scalars, each scalar "field=value".
 */
#include "server/upstream/upstreams.h"

#include "runtime/base/mem.h"
#include "server/config_yaml.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES_MAX = 128, KEY_BYTES_MAX = 4096, URL_BYTES_MAX = 1024 };
enum {
    CONCURRENCY_DEFAULT = 16,
    CONCURRENCY_MAX = 65536,
    TIMEOUT_S_DEFAULT = 600,
    TIMEOUT_S_MAX = 86400,
    TOKENS_MAX = 9000000 /* of a request: record.h */
};

enum field {
    FIELD_URL,
    FIELD_KEY_FILE,
    FIELD_KEY_ENV,
    FIELD_CA_FILE,
    FIELD_CONCURRENCY,
    FIELD_TIMEOUT,
    FIELD_COUNTS,
    FIELD_UPSTREAM,
    FIELD_AS,
    FIELD_CONTEXT,
    FIELD_OUTPUT,
    FIELDS
};

static const char *const field_names[FIELDS] = {"url",    "key_file", "key_env", "ca_file", "concurrency", "timeout",
                                                "counts", "upstream", "as",      "context", "output"};

/* A row as it stands in the file. */
struct row {
    char *name, *values[FIELDS];
};

struct rows {
    struct row items[UPSTREAMS_MAX + UPSTREAM_MODELS_MAX];
    uint32_t count;
};

static enum status take_value(void *state, const char *key, const char *value, struct error *err)
{
    struct rows *rows = state;
    struct row *row = NULL;
    for (uint32_t i = 0; i < rows->count && !row; i++)
        if (strcmp(rows->items[i].name, key) == 0) row = &rows->items[i];
    if (!row) {
        if (rows->count == sizeof rows->items / sizeof *rows->items)
            return error_set(err, ST_LIMIT, "more than %d rows", UPSTREAMS_MAX + UPSTREAM_MODELS_MAX);
        row = &rows->items[rows->count];
        row->name = mem_strdup(key, strlen(key));
        if (!row->name) return error_set(err, ST_NOMEM, "out of memory");
        rows->count++;
    }
    const char *sign = strchr(value, '=');
    for (int i = 0; sign && i < FIELDS; i++) {
        if (strlen(field_names[i]) != (size_t)(sign - value) || strncmp(value, field_names[i], (size_t)(sign - value)))
            continue;
        if (row->values[i]) return error_set(err, ST_INVAL, "\"%s\": %s stands twice", key, field_names[i]);
        if (!sign[1]) return error_set(err, ST_INVAL, "\"%s\": %s is empty", key, field_names[i]);
        row->values[i] = mem_strdup(sign + 1, strlen(sign + 1));
        return row->values[i] ? ST_OK : error_set(err, ST_NOMEM, "out of memory");
    }
    /* what stands there may be a key that was put into the wrong place: it is not quoted */
    return error_set(err, ST_INVAL,
                     "\"%s\": a value is none of url=, key_file=, key_env=, ca_file=, concurrency=, timeout=, counts=; "
                     "upstream=, as=, context=, output=",
                     key);
}

static void rows_free(struct rows *rows)
{
    for (uint32_t i = 0; i < rows->count; i++) {
        mem_free(rows->items[i].name);
        for (int k = 0; k < FIELDS; k++) mem_free(rows->items[i].values[k]);
    }
    mem_free(rows);
}

/* ---- the values ---- */

static enum status read_number(const struct row *row, enum field field, uint32_t floor, uint32_t ceiling,
                               uint32_t otherwise, uint32_t *out, struct error *err)
{
    const char *text = row->values[field];
    uint64_t number = 0;
    *out = otherwise;
    if (!text) return ST_OK;
    for (const char *at = text; *at; at++) {
        if (*at < '0' || *at > '9' || number > ceiling)
            number = UINT64_MAX / 16;
        else
            number = number * 10 + (uint64_t)(*at - '0');
    }
    if (number < floor || number > ceiling)
        return error_set(err, ST_INVAL, "\"%s\": %s must be a whole number from %" PRIu32 " to %" PRIu32, row->name,
                         field_names[field], floor, ceiling);
    *out = (uint32_t)number;
    return ST_OK;
}

static bool is_clean(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x21 || (unsigned char)*text >= 0x7f) return false;
    return true;
}

/* http or https, a host, no user, no query: what is logged of it must be no secret. */
static bool url_ok(const char *url)
{
    size_t length = strlen(url), scheme = strncmp(url, "http://", 7) == 0    ? 7
                                          : strncmp(url, "https://", 8) == 0 ? 8
                                                                             : 0;
    return scheme && length > scheme && length <= URL_BYTES_MAX && is_clean(url) && !strpbrk(url, "@?#\\\"") &&
           url[scheme] != '/' && url[scheme] != ':' && url[length - 1] != '/';
}

static enum status take_key(const struct row *row, const char *where, const char *text, char **key, struct error *err)
{
    size_t length = strcspn(text, "\r\n");
    char *copy = length ? mem_strdup(text, length) : NULL;
    if (length && !copy) return error_set(err, ST_NOMEM, "out of memory");
    if (!copy || length > KEY_BYTES_MAX || !is_clean(copy)) {
        if (copy) memset(copy, 0, length);
        mem_free(copy);
        return error_set(err, ST_INVAL,
                         "\"%s\": the key of %s is empty, longer than %d bytes, or has other characters "
                         "than visible ASCII",
                         row->name, where, KEY_BYTES_MAX);
    }
    *key = copy;
    return ST_OK;
}

static enum status read_key(const struct row *row, char **key, struct error *err)
{
    const char *path = row->values[FIELD_KEY_FILE], *variable = row->values[FIELD_KEY_ENV];
    if (path && variable) return error_set(err, ST_INVAL, "\"%s\": key_file and key_env, one too many", row->name);
    if (variable) {
        const char *value = getenv(variable);
        if (!value) return error_set(err, ST_INVAL, "\"%s\": there is no variable %s", row->name, variable);
        return take_key(row, variable, value, key, err);
    }
    if (!path) return ST_OK;
    char text[KEY_BYTES_MAX + 4] = "";
    FILE *file = fopen(path, "rb");
    size_t length = file ? fread(text, 1, sizeof text - 1, file) : 0;
    bool good = file && !ferror(file);
    if (file) (void)fclose(file);
    text[length] = '\0';
    enum status status =
        good ? take_key(row, path, text, key, err) : error_set(err, ST_IO, "\"%s\": cannot read %s", row->name, path);
    memset(text, 0, sizeof text);
    return status;
}

static char *take_text(struct row *row, enum field field)
{
    char *text = row->values[field];
    row->values[field] = NULL;
    return text;
}

static enum status add_upstream(struct upstreams *made, struct row *row, struct error *err)
{
    const char *counts = row->values[FIELD_COUNTS];
    for (int i = FIELD_UPSTREAM; i < FIELDS; i++)
        if (row->values[i])
            return error_set(err, ST_INVAL, "\"%s\" is an upstream (url=) and has %s=, which models have", row->name,
                             field_names[i]);
    if (!url_ok(row->values[FIELD_URL]))
        return error_set(err, ST_INVAL,
                         "\"%s\": url must be as https://host/v1: http or https, without user, query or final slash",
                         row->name);
    if (counts && strcmp(counts, "continuous") != 0)
        return error_set(err, ST_INVAL, "\"%s\": counts may be \"continuous\"", row->name);
    if (made->count == UPSTREAMS_MAX) return error_set(err, ST_LIMIT, "more than %d upstreams", UPSTREAMS_MAX);
    struct upstream *upstream = mem_alloc(1, sizeof *upstream);
    if (!upstream) return error_set(err, ST_NOMEM, "out of memory");
    made->items[made->count++] = upstream;
    upstream->continuous = counts != NULL;
    upstream->name = row->name;
    row->name = NULL;
    upstream->url = take_text(row, FIELD_URL);
    upstream->ca_file = take_text(row, FIELD_CA_FILE);
    struct row named = *row;
    named.name = upstream->name;
    TRY(read_number(&named, FIELD_CONCURRENCY, 1, CONCURRENCY_MAX, CONCURRENCY_DEFAULT, &upstream->concurrency, err));
    TRY(read_number(&named, FIELD_TIMEOUT, 1, TIMEOUT_S_MAX, TIMEOUT_S_DEFAULT, &upstream->timeout_s, err));
    return read_key(&named, &upstream->key, err);
}

static enum status add_model(struct upstreams *made, struct row *row, struct error *err)
{
    struct upstream_model *model = &made->models[made->models_count];
    for (int i = 0; i < FIELD_UPSTREAM; i++)
        if (row->values[i])
            return error_set(err, ST_INVAL, "\"%s\" is a model (upstream=) and has %s=, which upstreams have",
                             row->name, field_names[i]);
    for (uint32_t i = 0; i < made->count && !model->upstream; i++)
        if (strcmp(made->items[i]->name, row->values[FIELD_UPSTREAM]) == 0) model->upstream = made->items[i];
    if (!model->upstream)
        return error_set(err, ST_INVAL, "\"%s\": there is no upstream \"%.128s\"", row->name,
                         row->values[FIELD_UPSTREAM]);
    if (made->models_count == UPSTREAM_MODELS_MAX)
        return error_set(err, ST_LIMIT, "more than %d models of upstreams", UPSTREAM_MODELS_MAX);
    for (const char *at = row->name; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            return error_set(err, ST_INVAL, "a model's name must not have control characters");
    TRY(read_number(row, FIELD_CONTEXT, 1, TOKENS_MAX, 0, &model->context_max, err));
    TRY(read_number(row, FIELD_OUTPUT, 1, TOKENS_MAX, UPSTREAM_OUTPUT_DEFAULT, &model->output_max, err));
    if (model->context_max && !row->values[FIELD_OUTPUT] && model->output_max > model->context_max)
        model->output_max = model->context_max;
    model->as = row->values[FIELD_AS] ? take_text(row, FIELD_AS) : mem_strdup(row->name, strlen(row->name));
    if (!model->as) return error_set(err, ST_NOMEM, "out of memory");
    model->name = row->name;
    row->name = NULL;
    made->models_count++;
    return ST_OK;
}

static enum status take_rows(struct upstreams *made, struct rows *rows, int64_t now_unix_s, struct error *err)
{
    uint32_t count = rows->count;
    made->models = mem_alloc(count + 1, sizeof *made->models);
    made->far = mem_alloc(count + 1, sizeof *made->far);
    if (!made->models || !made->far) return error_set(err, ST_NOMEM, "out of memory");
    for (uint32_t i = 0; i < count; i++)
        if (rows->items[i].values[FIELD_URL]) TRY(add_upstream(made, &rows->items[i], err));
    for (uint32_t i = 0; i < count; i++) {
        struct row *row = &rows->items[i];
        if (!row->name) continue; /* an upstream */
        if (!row->values[FIELD_UPSTREAM])
            return error_set(err, ST_INVAL, "\"%s\" has neither url= (an upstream) nor upstream= (a model)", row->name);
        TRY(add_model(made, row, err));
    }
    for (uint32_t i = 0; i < made->models_count; i++)
        made->far[i] = (struct api_far){.name = made->models[i].name,
                                        .owner = made->models[i].upstream->name,
                                        .context_max = made->models[i].context_max,
                                        .created_unix_s = now_unix_s};
    return ST_OK;
}

enum status upstreams_read(const char *path, int64_t now_unix_s, struct upstreams **upstreams, struct error *err)
{
    struct error reason = {""};
    struct upstreams *made = mem_alloc(1, sizeof *made);
    struct rows *rows = mem_alloc(1, sizeof *rows);
    enum status status = made && rows ? ST_OK : error_set(&reason, ST_NOMEM, "out of memory");
    if (status == ST_OK) status = config_yaml_read(path, take_value, rows, &reason);
    if (status == ST_OK) status = take_rows(made, rows, now_unix_s, &reason);
    if (rows) rows_free(rows);
    if (status != ST_OK) {
        upstreams_destroy(made);
        bool named = strncmp(reason.message, path, strlen(path)) == 0;
        return error_set(err, status, "%s%s%s", named ? "" : path, named ? "" : ": ", reason.message);
    }
    *upstreams = made;
    return ST_OK;
}

void upstreams_destroy(struct upstreams *upstreams)
{
    if (!upstreams) return;
    for (uint32_t i = 0; i < upstreams->count; i++) {
        struct upstream *upstream = upstreams->items[i];
        if (upstream->key) memset(upstream->key, 0, strlen(upstream->key));
        mem_free(upstream->key);
        mem_free(upstream->name);
        mem_free(upstream->url);
        mem_free(upstream->ca_file);
        mem_free(upstream);
    }
    for (uint32_t i = 0; i < upstreams->models_count; i++) {
        mem_free(upstreams->models[i].name);
        mem_free(upstreams->models[i].as);
    }
    mem_free(upstreams->models);
    mem_free(upstreams->far);
    mem_free(upstreams);
}

/* ---- metrics ---- */

const char *upstream_outcome_name(enum upstream_outcome outcome)
{
    static const char *const names[UPSTREAM_OUTCOMES] = {"done",        "client_gone", "canceled", "full",
                                                         "unreachable", "timeout",     "refused",  "error",
                                                         "garbage",     "too_long",    "cut",      "no_usage"};
    return names[outcome];
}

static void print_label(const char *name, struct buf *out)
{
    buf_append_text(out, "upstream=\"");
    for (; *name; name++) {
        if (*name == '"' || *name == '\\') buf_append_char(out, '\\');
        buf_append_char(out, (unsigned char)*name < 0x20 ? ' ' : *name);
    }
    buf_append_char(out, '"');
}

static void print_one(const char *metric, const struct upstream *upstream, double value, struct buf *out)
{
    buf_append_text(out, metric);
    buf_append_char(out, '{');
    print_label(upstream->name, out);
    buf_append_format(out, "} %.15g\n", value);
}

void upstreams_print_metrics(const struct upstreams *upstreams, struct buf *out)
{
    if (!upstreams) return;
    buf_append_text(out, "# HELP mr_upstream_requests_total Calls for models of an upstream, by how they ended\n"
                         "# TYPE mr_upstream_requests_total counter\n");
    for (uint32_t i = 0; i < upstreams->count; i++)
        for (enum upstream_outcome k = 0; k < UPSTREAM_OUTCOMES; k++) {
            buf_append_text(out, "mr_upstream_requests_total{");
            print_label(upstreams->items[i]->name, out);
            buf_append_format(out, ",outcome=\"%s\"} %" PRIu64 "\n", upstream_outcome_name(k),
                              upstreams->items[i]->outcomes[k]);
        }
    buf_append_text(out, "# HELP mr_upstream_seconds Time of calls that an upstream was sent, until their end\n"
                         "# TYPE mr_upstream_seconds summary\n");
    for (uint32_t i = 0; i < upstreams->count; i++) {
        const struct upstream *upstream = upstreams->items[i];
        print_one("mr_upstream_seconds_sum", upstream, (double)upstream->took_ns / 1e9, out);
        print_one("mr_upstream_seconds_count", upstream, (double)upstream->calls, out);
    }
    buf_append_text(out, "# HELP mr_upstream_running Calls that are under way\n# TYPE mr_upstream_running gauge\n");
    for (uint32_t i = 0; i < upstreams->count; i++)
        print_one("mr_upstream_running", upstreams->items[i], upstreams->items[i]->running, out);
}
