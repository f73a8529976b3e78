/* Calls about files and batches that the index answers, or a job changes; see batches.h (J1, J5). */
#include "server/batch/batches_parts.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "server/serve_parts.h"

#include <stdlib.h>
#include <string.h>

enum { BODY_BYTES_MAX = 65536, LIST_DEFAULT = 20 };

/* DELETE of a file. */
struct file_call {
    struct batch_job job; /* first */
    struct file_call *next;
    struct http_conn *conn; /* NULL: gone */
    struct stored_file *file;
};

void batch_refuse(struct http_conn *conn, int status, const char *code, const char *param, const char *message)
{
    struct api_error error;
    const char *type = status == 404   ? "not_found_error"
                       : status == 429 ? "requests"
                       : status >= 500 ? "server_error"
                                       : "invalid_request_error";
    api_error_set(&error, status, type, code, param, "%s", message);
    if (status == 429 || status == 503) error.retry_after_ms = BATCH_RETRY_MS;
    http_conn_user_set(conn, NULL);
    reply_error(conn, &error, NULL, false);
}

static void reply_ok(struct http_conn *conn, struct buf *body)
{
    http_conn_user_set(conn, NULL);
    if (buf_ok(body))
        http_conn_reply(conn, &(struct http_reply){.status = 200, .body = body});
    else
        batch_refuse(conn, 503, "resource_unavailable", "", "The server is out of memory.");
    buf_free(body);
}

void batch_reply(struct http_conn *conn, const struct held_batch *batch)
{
    struct buf body;
    buf_init(&body, 0);
    batch_info_print(&batch->info, false, &body);
    reply_ok(conn, &body);
}

/* ---- lists ---- */

struct list {
    const void **items;
    size_t count, capacity;
    bool failed;
};

static void list_add(struct list *list, const void *item)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 64;
        const void **items = mem_resize(list->items, capacity, sizeof *items);
        if (!items) {
            list->failed = true;
            return;
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
}

static const char *id_of(const void *item, bool files)
{
    return files ? ((const struct stored_file *)item)->info.id : ((const struct held_batch *)item)->info.id;
}

/* The query's limit, after and order. false: the limit is none. */
static bool read_page(const struct http_request *request, uint32_t most, uint32_t *count,
                      char after[PATH_ARGUMENT_BYTES_MAX], bool *ascending)
{
    char text[PATH_ARGUMENT_BYTES_MAX];
    if (!query_value(request, "after", after)) after[0] = '\0';
    *ascending = query_value(request, "order", text) && strcmp(text, "asc") == 0;
    if (!query_value(request, "limit", text)) return true;
    size_t length = strlen(text);
    if (length == 0 || length > 6 || strspn(text, "0123456789") != length) return false;
    *count = (uint32_t)strtoul(text, NULL, 10);
    return *count >= 1 && *count <= most;
}

static void print_page(const struct list *list, bool files, const char *after, uint32_t count, bool ascending,
                       struct buf *out)
{
    size_t start = 0;
    const char *first = NULL, *last = NULL;
    for (size_t i = 0; *after && i < list->count; i++) {
        size_t at = ascending ? list->count - 1 - i : i;
        if (strcmp(id_of(list->items[at], files), after) == 0) start = i + 1;
    }
    buf_append_text(out, "{\"object\":\"list\",\"data\":[");
    size_t i = start;
    for (; i < list->count && i - start < count; i++) {
        const void *item = list->items[ascending ? list->count - 1 - i : i];
        if (i > start) buf_append_char(out, ',');
        if (files)
            file_info_print(&((const struct stored_file *)item)->info, false, out);
        else
            batch_info_print(&((const struct held_batch *)item)->info, false, out);
        last = id_of(item, files);
        if (!first) first = last;
    }
    buf_append_text(out, "],\"first_id\":");
    buf_append_format(out, first ? "\"%s\"" : "null", first);
    buf_append_text(out, ",\"last_id\":");
    buf_append_format(out, last ? "\"%s\"" : "null", last);
    buf_append_format(out, ",\"has_more\":%s}", i < list->count ? "true" : "false");
}

static void reply_list(struct batches *set, struct http_conn *conn, const struct http_request *request, bool files)
{
    char after[PATH_ARGUMENT_BYTES_MAX], purpose[PATH_ARGUMENT_BYTES_MAX];
    uint32_t most = files ? BATCH_LIST_MAX : BATCH_LIST_BATCHES_MAX, count = files ? most : LIST_DEFAULT;
    bool ascending, has_purpose = query_value(request, "purpose", purpose);
    uint64_t account = request->caller.account;
    if (!read_page(request, most, &count, after, &ascending)) {
        batch_refuse(conn, 400, "invalid_value", "limit", "Invalid 'limit': it is not a number, or out of range.");
        return;
    }
    struct list list = {0};
    for (const struct stored_file *file = set->files; files && file; file = file->next) {
        if (!file->ready || file->leaves || file->info.account != account) continue; /* J5 */
        if (!has_purpose || strcmp(purpose, file->info.output ? "batch_output" : "batch") == 0) list_add(&list, file);
    }
    for (const struct held_batch *batch = set->batches; !files && batch; batch = batch->next)
        if (batch->durable && !batch->leaves && batch->info.caller.account == account) list_add(&list, batch);
    struct buf body;
    buf_init(&body, 0);
    print_page(&list, files, after, count, ascending, &body);
    if (list.failed) body.failed = true;
    mem_free(list.items);
    reply_ok(conn, &body);
}

/* ---- files ---- */

static void remove_in_pool(struct batch_job *job)
{
    struct file_call *call = (struct file_call *)job;
    job->status = batch_remove(&job->set->folder, call->file->info.id, &job->err);
}

static void removed(struct batch_job *job)
{
    struct file_call *call = (struct file_call *)job, **at = &job->set->file_calls;
    while (*at != call) at = &(*at)->next;
    *at = call->next;
    call->file->leaves = false;
    if (job->status == ST_OK && call->conn) {
        struct buf body;
        buf_init(&body, 0);
        buf_append_format(&body, "{\"id\":\"%s\",\"object\":\"file\",\"deleted\":true}", call->file->info.id);
        reply_ok(call->conn, &body);
    } else if (call->conn) {
        batch_refuse(call->conn, 503, "resource_unavailable", "", "The file could not be deleted.");
    }
    if (job->status == ST_OK) batches_drop_file(job->set, call->file);
    mem_free(call);
}

bool file_calls_gone(struct batches *set, const struct http_conn *conn)
{
    for (struct file_call *call = set->file_calls; call; call = call->next) {
        if (call->conn != conn) continue;
        call->conn = NULL;
        return true;
    }
    return false;
}

static void delete_file(struct batches *set, struct http_conn *conn, struct stored_file *file)
{
    if (file->users > 0) {
        batch_refuse(conn, 409, "file_in_use", "", "A batch that has not ended, or a download, uses this file.");
        return;
    }
    struct file_call *call = mem_alloc(1, sizeof *call);
    if (!call) {
        batch_refuse(conn, 503, "resource_unavailable", "", "The server is out of memory.");
        return;
    }
    call->conn = conn;
    call->file = file;
    file->leaves = true;
    call->next = set->file_calls;
    set->file_calls = call;
    http_conn_user_set(conn, call);
    call->job.run = remove_in_pool;
    call->job.done = removed;
    batch_job_start(set, &call->job);
}

/* The path's rest: "ID" or "ID/what". */
static void split(const struct http_request *request, size_t skip, char id[PATH_ARGUMENT_BYTES_MAX], const char **what)
{
    path_argument(http_request_target(request) + skip, request->path_length - skip, id);
    char *slash = strchr(id, '/');
    *what = slash ? slash + 1 : "";
    if (slash) *slash = '\0';
}

static void file_request(struct batches *set, struct http_conn *conn, const struct http_request *request, size_t skip)
{
    char id[PATH_ARGUMENT_BYTES_MAX];
    const char *what;
    split(request, skip, id, &what);
    struct stored_file *file = batches_find_file(set, id, request->caller.account);
    bool content = strcmp(what, "content") == 0, deletes = strcmp(request->method, "DELETE") == 0;
    if (*what && !content) {
        batch_refuse(conn, 404, "unknown_url", "", "There is nothing at this URL.");
    } else if (!file) {
        batch_refuse(conn, 404, "file_not_found", "id", "No such File object.");
    } else if (deletes && content) {
        batch_refuse(conn, 405, "method_not_supported", "", "This URL does not take that method.");
    } else if (deletes) {
        delete_file(set, conn, file);
    } else if (content) {
        download_start(set, conn, file);
    } else {
        struct buf body;
        buf_init(&body, 0);
        file_info_print(&file->info, false, &body);
        reply_ok(conn, &body);
    }
}

/* ---- batches ---- */

static bool has_room(const struct batches *set, uint64_t account)
{
    uint64_t unfinished = 0;
    for (const struct held_batch *batch = set->batches; batch; batch = batch->next)
        unfinished += batch->info.caller.account == account && !batch_has_ended(&batch->info);
    return unfinished < limits.batch_unfinished;
}

static void create_batch(struct batches *set, struct http_conn *conn, const struct http_request *request)
{
    struct api_error error;
    struct held_batch *batch = mem_alloc(1, sizeof *batch);
    if (!batch) {
        batch_refuse(conn, 503, "resource_unavailable", "", "The server is out of memory.");
        return;
    }
    if (!batch_info_ask(request->body.data ? request->body.data : "", request->body.length, batches_now_s(),
                        &batch->info, &error)) {
        reply_error(conn, &error, NULL, false);
        batch_free(batch);
        return;
    }
    struct stored_file *input = batches_find_file(set, batch->info.input_id, request->caller.account);
    const char *why = !input               ? "Invalid 'input_file_id': no such file."
                      : input->info.output ? "Invalid 'input_file_id': its purpose is not 'batch'."
                                           : NULL;
    if (why || !has_room(set, request->caller.account)) {
        if (why)
            batch_refuse(conn, input ? 400 : 404, input ? "invalid_value" : "file_not_found", "input_file_id", why);
        else
            batch_refuse(conn, 429, "rate_limit_exceeded", "", "The account has too many batches that have not ended.");
        batch_free(batch);
        return;
    }
    batch_make_id("batch_", batch->info.id);
    batch->set = set;
    batch->info.caller = request->caller;
    batch->input = input;
    input->users++;
    batch->next = set->batches;
    set->batches = batch;
    batch->waits[0] = conn;
    batch->meta_due = true;
    http_conn_user_set(conn, batch);
    batch_step(batch);
}

static void cancel_batch(struct held_batch *batch, struct http_conn *conn)
{
    int place = 0;
    if (batch_has_ended(&batch->info)) {
        batch_refuse(conn, 409, "batch_has_ended", "", "The batch has ended; it cannot be cancelled any more.");
        return;
    }
    while (place < BATCH_WAITS_MAX && batch->waits[place]) place++;
    batch_cancel(batch);
    if (place == BATCH_WAITS_MAX || !batch->meta_due) {
        batch_reply(conn, batch);
        return;
    }
    batch->waits[place] = conn;
    http_conn_user_set(conn, batch);
    batch_step(batch);
}

static void batch_request(struct batches *set, struct http_conn *conn, const struct http_request *request, size_t skip)
{
    char id[PATH_ARGUMENT_BYTES_MAX];
    const char *what;
    split(request, skip, id, &what);
    bool posted = strcmp(request->method, "POST") == 0, cancels = strcmp(what, "cancel") == 0;
    struct held_batch *batch = batches_find(set, id, request->caller.account);
    if (*what && !cancels)
        batch_refuse(conn, 404, "unknown_url", "", "There is nothing at this URL.");
    else if (posted != cancels)
        batch_refuse(conn, 405, "method_not_supported", "", "This URL does not take that method.");
    else if (!batch)
        batch_refuse(conn, 404, "batch_not_found", "id", "No such Batch object.");
    else if (cancels)
        cancel_batch(batch, conn);
    else
        batch_reply(conn, batch);
}

void batches_request(struct batches *set, struct http_conn *conn, struct http_request *request,
                     const struct route *route)
{
    bool posted = strcmp(request->method, "POST") == 0;
    switch (route->id) {
    case ROUTE_FILES:
        if (posted)
            upload_finish(set, conn, request);
        else
            reply_list(set, conn, request, true);
        break;
    case ROUTE_FILE: file_request(set, conn, request, strlen(route->path)); break;
    case ROUTE_BATCHES:
        if (!posted)
            reply_list(set, conn, request, false);
        else if (!media_type_is_json(http_request_header(request, "content-type", NULL)))
            batch_refuse(conn, 415, "unsupported_media_type", "",
                         "The body must be JSON: Content-Type application/json.");
        else if (request->body.length > BODY_BYTES_MAX)
            batch_refuse(conn, 413, "request_too_large", "", "The body of this call has at most 65536 bytes.");
        else
            create_batch(set, conn, request);
        break;
    default: batch_request(set, conn, request, strlen(route->path)); break;
    }
}

bool batches_gone(struct batches *set, const struct http_conn *conn)
{
    if (!set) return false;
    for (struct held_batch *batch = set->batches; batch; batch = batch->next)
        for (int i = 0; i < BATCH_WAITS_MAX; i++)
            if (batch->waits[i] == conn) {
                batch->waits[i] = NULL;
                return true;
            }
    return file_calls_gone(set, conn) || transfers_gone(set, conn);
}
