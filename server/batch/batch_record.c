/* See batch_record.h. Account and key are written as hex: JSON's integers end at int64. */
#include "server/batch/batch_record.h"

#include "runtime/base/random.h"
#include "server/api_call.h"
#include "server/api_fields.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

static const char invalid[] = "invalid_request_error";

static const char *const status_names[BATCH_STATUSES] = {
    [BATCH_VALIDATING] = "validating", [BATCH_IN_PROGRESS] = "in_progress", [BATCH_FINALIZING] = "finalizing",
    [BATCH_CANCELLING] = "cancelling", [BATCH_COMPLETED] = "completed",     [BATCH_FAILED] = "failed",
    [BATCH_EXPIRED] = "expired",       [BATCH_CANCELLED] = "cancelled"};
static const char *const time_names[BATCH_TIMES] = {
    [TIME_CREATED] = "created_at",       [TIME_IN_PROGRESS] = "in_progress_at", [TIME_EXPIRES] = "expires_at",
    [TIME_FINALIZING] = "finalizing_at", [TIME_COMPLETED] = "completed_at",     [TIME_FAILED] = "failed_at",
    [TIME_EXPIRED] = "expired_at",       [TIME_CANCELLING] = "cancelling_at",   [TIME_CANCELLED] = "cancelled_at"};
static const char *const green_names[] = {[GREEN_PREFER] = "prefer", [GREEN_ANY] = "any", [GREEN_ONLY] = "only"};
enum { GREENS = sizeof green_names / sizeof *green_names };

const char *batch_status_name(enum batch_status status)
{
    return status_names[status];
}

bool batch_has_ended(const struct batch_info *info)
{
    return info->status >= BATCH_COMPLETED;
}

const char *batch_endpoint(const struct batch_info *info)
{
    return info->chat ? "/v1/chat/completions" : "/v1/completions";
}

void batch_make_id(const char *prefix, char id[BATCH_ID_MAX + 1])
{
    uint8_t bytes[16];
    size_t at = strlen(prefix);
    random_fill(bytes, sizeof bytes);
    memcpy(id, prefix, at);
    for (size_t i = 0; i < sizeof bytes; i++) {
        id[at++] = "0123456789abcdef"[bytes[i] >> 4];
        id[at++] = "0123456789abcdef"[bytes[i] & 15];
    }
    id[at] = '\0';
}

bool batch_id_ok(const char *prefix, const char *id)
{
    size_t length = strlen(prefix);
    return strncmp(id, prefix, length) == 0 && strlen(id) == length + 32 &&
           strspn(id + length, "0123456789abcdef") == 32;
}

/* ---- printing ---- */

static void print_text(struct buf *out, const char *name, const char *text)
{
    buf_append_format(out, ",\"%s\":", name);
    if (*text)
        buf_append_json_string(out, text, strlen(text));
    else
        buf_append_text(out, "null");
}

static void print_time(struct buf *out, const char *name, int64_t unix_s)
{
    if (unix_s)
        buf_append_format(out, ",\"%s\":%" PRId64, name, unix_s);
    else
        buf_append_format(out, ",\"%s\":null", name);
}

void file_info_print(const struct file_info *info, bool full, struct buf *out)
{
    buf_append_format(out, "{\"id\":\"%s\",\"object\":\"file\",\"bytes\":%" PRIu64 ",\"created_at\":%" PRId64, info->id,
                      info->bytes, info->created_s);
    print_time(out, "expires_at", info->expires_s);
    print_text(out, "filename", info->filename);
    buf_append_format(out, ",\"purpose\":\"%s\",\"status\":\"processed\",\"status_details\":null",
                      info->output ? "batch_output" : "batch");
    if (full) buf_append_format(out, ",\"account\":\"%016" PRIx64 "\"", info->account);
    buf_append_char(out, '}');
}

static void print_owner(const struct batch_info *info, struct buf *out)
{
    const struct caller *caller = &info->caller;
    buf_append_format(out, ",\"account\":\"%016" PRIx64 "\",\"key\":\"%016" PRIx64 "\",\"in_directory\":%s",
                      caller->account, caller->key, caller->in_directory ? "true" : "false");
    print_text(out, "account_name", caller->account_name);
    print_text(out, "tenant_name", caller->tenant_name);
    buf_append_format(out, ",\"ends_as\":\"%s\",\"output_expires_after\":%" PRId64, status_names[info->ends_as],
                      info->output_expires_after_s);
}

void batch_info_print(const struct batch_info *info, bool full, struct buf *out)
{
    buf_append_format(out, "{\"id\":\"%s\",\"object\":\"batch\",\"endpoint\":\"%s\"", info->id, batch_endpoint(info));
    if (info->errors.length > 0) {
        buf_append_text(out, ",\"errors\":{\"object\":\"list\",\"data\":[");
        buf_append(out, info->errors.data, info->errors.length);
        buf_append_text(out, "]}");
    } else {
        buf_append_text(out, ",\"errors\":null");
    }
    print_text(out, "input_file_id", info->input_id);
    print_text(out, "completion_window", info->window);
    print_text(out, "status", status_names[info->status]);
    print_text(out, "output_file_id", full || batch_has_ended(info) ? info->output_id : "");
    print_text(out, "error_file_id", full || batch_has_ended(info) ? info->error_id : "");
    for (int i = 0; i < BATCH_TIMES; i++) print_time(out, time_names[i], info->times_s[i]);
    print_text(out, "green", green_names[info->green]);
    buf_append_format(out,
                      ",\"request_counts\":{\"total\":%u,\"completed\":%u,\"failed\":%u},\"metadata\":", info->total,
                      info->completed, info->failed);
    if (info->metadata.length > 0)
        buf_append(out, info->metadata.data, info->metadata.length);
    else
        buf_append_text(out, "null");
    if (full) print_owner(info, out);
    buf_append_char(out, '}');
}

/* ---- reading ---- */

static bool read_text(const struct json *root, const char *name, char *out, size_t size)
{
    size_t length;
    const char *text = json_to_text(json_member(root, name), &length);
    out[0] = '\0';
    if (!text) return true;
    if (length >= size) return false;
    memcpy(out, text, length + 1);
    return true;
}

static bool read_number(const struct json *root, const char *name, uint64_t *number)
{
    size_t length;
    const char *text = json_to_text(json_member(root, name), &length);
    if (!text || length != 16 || strspn(text, "0123456789abcdef") != 16) return false;
    *number = 0;
    for (size_t i = 0; i < 16; i++)
        *number = *number << 4 | (uint64_t)(text[i] <= '9' ? text[i] - '0' : text[i] - 'a' + 10);
    return true;
}

static int index_of(const struct json *value, const char *const *names, int count)
{
    const char *text = json_to_text(value, NULL);
    for (int i = 0; text && i < count; i++)
        if (strcmp(text, names[i]) == 0) return i;
    return -1;
}

bool file_info_read(const char *text, size_t length, struct file_info *info)
{
    struct json *root;
    *info = (struct file_info){.bytes = 0};
    if (json_read(text, length, &root, NULL) != ST_OK) return false;
    const char *purpose = json_to_text(json_member(root, "purpose"), NULL);
    info->output = purpose && strcmp(purpose, "batch_output") == 0;
    info->bytes = (uint64_t)json_to_int(json_member(root, "bytes"));
    info->created_s = json_to_int(json_member(root, "created_at"));
    info->expires_s = json_to_int(json_member(root, "expires_at"));
    bool good = read_text(root, "id", info->id, sizeof info->id) && batch_id_ok("file-", info->id) &&
                read_text(root, "filename", info->filename, sizeof info->filename) &&
                read_number(root, "account", &info->account);
    json_release(root);
    return good;
}

static bool read_owner(const struct json *root, struct caller *caller)
{
    caller->in_directory = json_to_bool(json_member(root, "in_directory"));
    return read_number(root, "account", &caller->account) && read_number(root, "key", &caller->key) &&
           read_text(root, "account_name", caller->account_name, sizeof caller->account_name) &&
           read_text(root, "tenant_name", caller->tenant_name, sizeof caller->tenant_name);
}

static void read_counts(const struct json *root, struct batch_info *info)
{
    const struct json *counts = json_member(root, "request_counts");
    info->total = (uint32_t)json_to_int(json_member(counts, "total"));
    info->completed = (uint32_t)json_to_int(json_member(counts, "completed"));
    info->failed = (uint32_t)json_to_int(json_member(counts, "failed"));
}

static void read_errors(const struct json *root, struct buf *out)
{
    const struct json *data = json_member(json_member(root, "errors"), "data");
    for (size_t i = 0; i < json_length(data); i++) {
        if (i > 0) buf_append_char(out, ',');
        json_print(json_at(data, i), out);
    }
}

bool batch_info_read(const char *text, size_t length, struct batch_info *info)
{
    struct json *root;
    *info = (struct batch_info){.total = 0};
    if (json_read(text, length, &root, NULL) != ST_OK) return false;
    int status = index_of(json_member(root, "status"), status_names, BATCH_STATUSES);
    int ends_as = index_of(json_member(root, "ends_as"), status_names, BATCH_STATUSES);
    int green = index_of(json_member(root, "green"), green_names, GREENS);
    const char *endpoint = json_to_text(json_member(root, "endpoint"), NULL);
    info->chat = endpoint && strcmp(endpoint, "/v1/chat/completions") == 0;
    for (int i = 0; i < BATCH_TIMES; i++) info->times_s[i] = json_to_int(json_member(root, time_names[i]));
    info->output_expires_after_s = json_to_int(json_member(root, "output_expires_after"));
    if (json_kind(json_member(root, "metadata")) == JSON_KIND_OBJECT)
        json_print(json_member(root, "metadata"), &info->metadata);
    read_counts(root, info);
    read_errors(root, &info->errors);
    bool good = status >= 0 && ends_as >= 0 && green >= 0 && endpoint &&
                read_text(root, "id", info->id, sizeof info->id) && batch_id_ok("batch_", info->id) &&
                read_text(root, "input_file_id", info->input_id, sizeof info->input_id) &&
                read_text(root, "output_file_id", info->output_id, sizeof info->output_id) &&
                read_text(root, "error_file_id", info->error_id, sizeof info->error_id) &&
                read_text(root, "completion_window", info->window, sizeof info->window) &&
                read_owner(root, &info->caller) && buf_ok(&info->metadata) && buf_ok(&info->errors);
    if (good) {
        info->status = (enum batch_status)status;
        info->ends_as = (enum batch_status)ends_as;
        info->green = (enum batch_green)green;
    }
    json_release(root);
    return good;
}

void batch_info_free(struct batch_info *info)
{
    buf_free(&info->metadata);
    buf_free(&info->errors);
}

/* ---- times ---- */

int64_t batch_window_s(const char *text)
{
    static const struct {
        char unit;
        int64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    int64_t count = 0;
    size_t i = 0;
    for (; text[i] >= '0' && text[i] <= '9' && i < 8; i++) count = count * 10 + (text[i] - '0');
    if (i == 0 || text[i] == '\0' || text[i + 1] != '\0') return 0;
    for (size_t k = 0; k < sizeof units / sizeof *units; k++)
        if (units[k].unit == text[i])
            return count * units[k].seconds <= BATCH_WINDOW_S_MAX ? count * units[k].seconds : 0;
    return 0;
}

/* Digits of a fixed count; false: they are not. */
static bool digits(const char **text, size_t count, int64_t *number)
{
    *number = 0;
    for (size_t i = 0; i < count; i++, ++*text) {
        if (**text < '0' || **text > '9') return false;
        *number = *number * 10 + (**text - '0');
    }
    return true;
}

static bool mark(const char **text, const char *any_of)
{
    if (**text == '\0' || !strchr(any_of, **text)) return false;
    ++*text;
    return true;
}

/* Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil. */
static int64_t days_of(int64_t year, int64_t month, int64_t day)
{
    year -= month <= 2;
    int64_t era = year / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static int64_t days_in(int64_t year, int64_t month)
{
    static const int8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return days[month - 1] + (month == 2 && leap);
}

bool batch_time_read(const char *text, int64_t *unix_s)
{
    int64_t year, month, day, hour, minute, second, off_hour = 0, off_minute = 0, sign = 0;
    const char *at = text;
    if (!digits(&at, 4, &year) || !mark(&at, "-") || !digits(&at, 2, &month) || !mark(&at, "-") ||
        !digits(&at, 2, &day) || !mark(&at, "Tt ") || !digits(&at, 2, &hour) || !mark(&at, ":") ||
        !digits(&at, 2, &minute) || !mark(&at, ":") || !digits(&at, 2, &second))
        return false;
    if (*at == '.') {
        size_t fraction = strspn(++at, "0123456789");
        if (fraction == 0) return false;
        at += fraction;
    }
    if (*at == '+' || *at == '-') {
        sign = *at++ == '+' ? 1 : -1;
        if (!digits(&at, 2, &off_hour) || !mark(&at, ":") || !digits(&at, 2, &off_minute)) return false;
    } else if (!mark(&at, "Zz")) {
        return false;
    }
    if (*at || year < 1970 || month < 1 || month > 12 || day < 1 || day > days_in(year, month) || hour > 23 ||
        minute > 59 || second > 60 || off_hour > 23 || off_minute > 59)
        return false;
    *unix_s = days_of(year, month, day) * 86400 + hour * 3600 + minute * 60 + second -
              sign * (off_hour * 3600 + off_minute * 60);
    return true;
}

void batch_time_print(int64_t unix_s, char out[BATCH_TIME_CHARS + 1])
{
    struct tm utc;
    time_t seconds = (time_t)unix_s;
    if (!gmtime_r(&seconds, &utc) || strftime(out, BATCH_TIME_CHARS + 1, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0)
        memcpy(out, "9999-12-31T23:59:59Z", BATCH_TIME_CHARS + 1);
}

/* ---- asking for a batch ---- */

static bool refuse(struct api_error *error, const char *param, const char *message)
{
    api_error_set(error, 400, invalid, "invalid_value", param, "%s", message);
    return false;
}

static bool ask_metadata(const struct json *root, struct batch_info *info, struct api_error *error)
{
    const struct json *metadata = json_member(root, "metadata"), *value;
    const char *name;
    void *iterator = NULL;
    if (json_kind(metadata) == JSON_KIND_NULL) return true;
    if (json_kind(metadata) != JSON_KIND_OBJECT || json_length(metadata) > 16)
        return refuse(error, "metadata", "Invalid 'metadata': expected an object of at most 16 strings.");
    while (json_iterate(metadata, &iterator, &name, &value)) {
        size_t length;
        const char *text = json_to_text(value, &length);
        if (!text || length > 512 || strlen(name) > 64)
            return refuse(error, "metadata",
                          "Invalid 'metadata': names have at most 64 characters, values are strings of at most 512.");
    }
    json_print(metadata, &info->metadata);
    return buf_ok(&info->metadata) || refuse(error, "metadata", "Invalid 'metadata': it is too large.");
}

static bool ask_deadline(const struct fields *fields, int64_t now_s, struct batch_info *info)
{
    const char *window = NULL, *deadline = NULL;
    if (!field_text(fields, "completion_window", &window, NULL) || !field_text(fields, "deadline", &deadline, NULL))
        return false;
    if (!deadline) deadline = json_to_text(json_member(json_member(fields->object, "metadata"), "deadline"), NULL);
    int64_t seconds = window && strlen(window) < sizeof info->window ? batch_window_s(window) : 0;
    if (seconds == 0)
        return refuse(
            fields->error, "completion_window",
            "Invalid 'completion_window': expected '24h', or another time of up to 30 days as '90m', '2h', '7d'.");
    memcpy(info->window, window, strlen(window) + 1);
    info->times_s[TIME_EXPIRES] = now_s + seconds;
    if (!deadline) return true;
    int64_t until_s;
    if (!batch_time_read(deadline, &until_s) || until_s <= now_s || until_s > now_s + BATCH_WINDOW_S_MAX)
        return refuse(
            fields->error, "deadline",
            "Invalid 'deadline': expected a time of RFC 3339 in the next 30 days, as '2026-01-31T06:00:00Z'.");
    info->times_s[TIME_EXPIRES] = until_s;
    return true;
}

static bool ask_output_expiry(const struct json *root, struct batch_info *info, struct api_error *error)
{
    const struct json *after = json_member(root, "output_expires_after");
    info->output_expires_after_s = BATCH_EXPIRY_S_MAX;
    if (json_kind(after) == JSON_KIND_NULL) return true;
    const char *anchor = json_to_text(json_member(after, "anchor"), NULL);
    int64_t seconds = json_to_int(json_member(after, "seconds"));
    if (!anchor || strcmp(anchor, "created_at") != 0 || seconds < BATCH_EXPIRY_S_MIN || seconds > BATCH_EXPIRY_S_MAX)
        return refuse(
            error, "output_expires_after",
            "Invalid 'output_expires_after': expected {\"anchor\":\"created_at\",\"seconds\":3600..2592000}.");
    info->output_expires_after_s = seconds;
    return true;
}

static bool ask(const struct fields *fields, int64_t now_s, struct batch_info *info)
{
    const char *endpoint = NULL, *input = NULL;
    struct api_error *error = fields->error;
    if (!field_text(fields, "endpoint", &endpoint, NULL) || !field_text(fields, "input_file_id", &input, NULL))
        return false;
    info->chat = endpoint && strcmp(endpoint, "/v1/chat/completions") == 0;
    if (!endpoint || strcmp(endpoint, batch_endpoint(info)) != 0)
        return refuse(error, "endpoint", "Invalid 'endpoint': expected '/v1/chat/completions' or '/v1/completions'.");
    if (!input || !batch_id_ok("file-", input))
        return refuse(error, "input_file_id", "Invalid 'input_file_id': no such file.");
    memcpy(info->input_id, input, strlen(input) + 1);
    const struct json *green = field_get(fields, "green");
    int mode = index_of(green, green_names, GREENS);
    if (json_kind(green) != JSON_KIND_NULL && mode < 0)
        return refuse(error, "green", "Invalid 'green': expected 'any', 'prefer' or 'only'.");
    info->green = mode < 0 ? GREEN_PREFER : (enum batch_green)mode;
    return ask_metadata(fields->object, info, error) && ask_deadline(fields, now_s, info) &&
           ask_output_expiry(fields->object, info, error);
}

bool batch_info_ask(const char *body, size_t length, int64_t now_s, struct batch_info *info, struct api_error *error)
{
    struct json *root;
    *info = (struct batch_info){.status = BATCH_VALIDATING, .ends_as = BATCH_COMPLETED};
    buf_init(&info->metadata, BATCH_METADATA_BYTES_MAX);
    if (!api_read_object(body, length, &root, error)) return false;
    info->times_s[TIME_CREATED] = now_s;
    struct fields fields = {root, error};
    bool good = ask(&fields, now_s, info);
    json_release(root);
    return good;
}
