/* Uploads and downloads: bytes between a connection and the disk, in pieces; see batches.h and http_conn.h (C9).
 *
 *   upload:   body -> multipart -> pending -> [pool: write] .. -> [pool: fsync, rename, .meta] -> the file's object
 *   download: [pool: read a piece] -> connection, when it can take it -> the next
 *
 * An upload reads no further while PENDING_MAX bytes wait for the disk, so it holds that and one piece more. */
#include "server/batch/batches_parts.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "server/batch/multipart.h"
#include "server/http_route.h"

#include <stdlib.h>
#include <string.h>

enum { PENDING_MAX = 1048576, PIECE_BYTES = 262144, FIELD_MAX = 63, UPLOADS_MAX = 256 };

enum field { FIELD_NONE, FIELD_FILE, FIELD_PURPOSE, FIELD_ANCHOR, FIELD_SECONDS, FIELDS };

struct upload {
    struct batch_job job; /* first */
    struct upload *next;
    struct batches *set;
    struct http_conn *conn; /* NULL: gone, or answered */
    struct stored_file *file;
    struct multipart multipart;
    enum field field;
    bool ended, busy, paused, had_file, complete, ending; /* ended: of the multipart; complete: of the request */
    int failed_status;
    const char *failed_code, *failed_why;
    char values[FIELDS][FIELD_MAX + 1];
    struct buf pending, writing;
    struct batch_writer writer;
    bool begun;
};

struct download {
    struct batch_job job; /* first */
    struct download *next;
    struct http_conn *conn; /* NULL: gone */
    struct stored_file *file;
    uint64_t offset;
    size_t got;
    bool busy;
    char piece[PIECE_BYTES];
};

/* ---- uploads ---- */

static void upload_free(struct upload *upload)
{
    struct upload **at = &upload->set->uploads;
    while (*at != upload) at = &(*at)->next;
    *at = upload->next;
    batch_write_drop(&upload->writer);
    if (upload->file) batches_drop_file(upload->set, upload->file);
    buf_free(&upload->pending);
    buf_free(&upload->writing);
    mem_free(upload);
}

static void resume(struct upload *upload)
{
    if (upload->paused && upload->conn) http_conn_pause(upload->conn, false);
    upload->paused = false;
}

/* The first reason counts. The rest of the body is dropped by the connection. */
static void upload_fail(struct upload *upload, int status, const char *code, const char *why)
{
    struct http_conn *conn = upload->conn;
    if (!conn) return;
    resume(upload);
    upload->conn = NULL;
    batch_refuse(conn, status, code, "", why);
}

static bool on_part(void *state, const char *name, const char *filename)
{
    static const char *const names[FIELDS] = {[FIELD_FILE] = "file",
                                              [FIELD_PURPOSE] = "purpose",
                                              [FIELD_ANCHOR] = "expires_after[anchor]",
                                              [FIELD_SECONDS] = "expires_after[seconds]"};
    struct upload *upload = state;
    upload->field = FIELD_NONE;
    for (int i = FIELD_FILE; i < FIELDS; i++)
        if (strcmp(names[i], name) == 0) upload->field = (enum field)i;
    if (upload->field == FIELD_NONE) return true;
    if (upload->field != FIELD_FILE) {
        upload->values[upload->field][0] = '\0';
        return true;
    }
    if (upload->had_file) {
        upload->failed_why = "The form has more than one part 'file'.";
        return false;
    }
    upload->had_file = true;
    const char *shown = filename && *filename ? filename : "upload";
    memcpy(upload->file->info.filename, shown, strlen(shown) + 1);
    return true;
}

static bool on_bytes(void *state, const char *data, size_t length)
{
    struct upload *upload = state;
    if (upload->field == FIELD_NONE) return true;
    if (upload->field == FIELD_FILE) {
        upload->file->info.bytes += length;
        upload->set->bytes += length;
        if (upload->file->info.bytes > limits.batch_file_bytes) {
            upload->failed_status = 413;
            upload->failed_code = "request_too_large";
            upload->failed_why = "The file is larger than this server takes.";
            return false;
        }
        if (upload->set->bytes > limits.batch_folder_bytes) {
            upload->failed_status = 503;
            upload->failed_code = "resource_unavailable";
            upload->failed_why = "The server has no room for more files.";
            return false;
        }
        buf_append(&upload->pending, data, length);
        return true;
    }
    size_t has = strlen(upload->values[upload->field]);
    if (has + length > FIELD_MAX || memchr(data, '\0', length)) {
        upload->failed_why = "A field of the form is too long.";
        return false;
    }
    memcpy(upload->values[upload->field] + has, data, length);
    upload->values[upload->field][has + length] = '\0';
    return true;
}

static bool take_expiry(struct upload *upload)
{
    const char *anchor = upload->values[FIELD_ANCHOR], *seconds = upload->values[FIELD_SECONDS];
    int64_t after_s = BATCH_EXPIRY_S_MAX;
    if (*anchor || *seconds) {
        size_t length = strlen(seconds);
        if (strcmp(anchor, "created_at") != 0 || length == 0 || length > 9 || strspn(seconds, "0123456789") != length)
            return false;
        after_s = strtol(seconds, NULL, 10);
    }
    upload->file->info.expires_s = upload->file->info.created_s + after_s;
    return after_s >= BATCH_EXPIRY_S_MIN && after_s <= BATCH_EXPIRY_S_MAX;
}

static bool form_is_good(struct upload *upload)
{
    const char *why = !upload->ended      ? "The body is not a whole multipart/form-data form."
                      : !upload->had_file ? "The form has no part 'file'."
                      : strcmp(upload->values[FIELD_PURPOSE], "batch") != 0
                          ? "Invalid 'purpose': this server takes files with purpose 'batch' only."
                      : !take_expiry(upload)
                          ? "Invalid 'expires_after': expected anchor 'created_at' and 3600 to 2592000 seconds."
                          : NULL;
    if (why) upload_fail(upload, 400, "invalid_value", why);
    return !why;
}

static void write_in_pool(struct batch_job *job)
{
    struct upload *upload = (struct upload *)job;
    const struct batch_folder *folder = &job->set->folder;
    if (!upload->begun) job->status = batch_write_begin(&upload->writer, folder, upload->file->info.id, &job->err);
    upload->begun = true;
    if (job->status == ST_OK && upload->writing.length > 0)
        job->status = batch_write(&upload->writer, upload->writing.data, upload->writing.length, &job->err);
    if (job->status != ST_OK || !upload->ending) return;
    job->status = batch_write_end(&upload->writer, &job->err);
    struct buf text;
    buf_init(&text, 0);
    file_info_print(&upload->file->info, true, &text);
    if (job->status == ST_OK) job->status = batch_meta_write(folder, upload->file->info.id, &text, &job->err);
    buf_free(&text);
}

static void upload_step(struct upload *upload);

/* The file is durable: whoever has asked is told, and if nobody is there any more it stays all the same. */
static void stored(struct upload *upload)
{
    struct http_conn *conn = upload->conn;
    struct stored_file *file = upload->file;
    file->ready = true;
    upload->file = NULL;
    if (conn) {
        struct buf body;
        buf_init(&body, 0);
        file_info_print(&file->info, false, &body);
        http_conn_user_set(conn, NULL);
        http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
        buf_free(&body);
    }
    upload_free(upload);
}

static void written(struct batch_job *job)
{
    struct upload *upload = (struct upload *)job;
    upload->busy = false;
    buf_clear(&upload->writing);
    if (job->status != ST_OK) {
        upload_fail(upload, 503, "resource_unavailable", "The file could not be stored.");
        upload_free(upload);
    } else if (upload->ending) {
        stored(upload);
    } else {
        upload_step(upload);
    }
}

static void upload_step(struct upload *upload)
{
    if (upload->busy) return;
    if (!upload->conn) {
        upload_free(upload);
        return;
    }
    if (upload->pending.length < PENDING_MAX) resume(upload);
    if (upload->complete && !upload->ending) {
        if (!form_is_good(upload)) {
            upload_free(upload);
            return;
        }
        upload->ending = true;
    }
    if (upload->pending.length == 0 && !upload->ending) return;
    struct buf swap = upload->writing;
    upload->writing = upload->pending;
    upload->pending = swap;
    upload->busy = true;
    upload->job.run = write_in_pool;
    upload->job.done = written;
    batch_job_start(upload->set, &upload->job);
}

static struct upload *upload_of(struct batches *set, const struct http_conn *conn)
{
    for (struct upload *upload = set->uploads; upload; upload = upload->next)
        if (upload->conn == conn) return upload;
    return NULL;
}

/* What has come of the body. */
static void take_body(struct upload *upload)
{
    static const struct multipart_reader reader = {.part = on_part, .bytes = on_bytes};
    struct multipart_reader own = reader;
    struct http_conn *conn = upload->conn;
    struct buf body;
    own.state = upload;
    http_conn_take_body(conn, &body);
    enum multipart_result result =
        body.length > 0 ? multipart_feed(&upload->multipart, body.data, body.length, &own) : MULTIPART_MORE;
    http_server_body_freed(upload->set->config.http, body.length);
    buf_free(&body);
    if (result == MULTIPART_END) upload->ended = true;
    if (result == MULTIPART_BAD)
        upload_fail(upload, 400, "invalid_multipart",
                    upload->multipart.reason ? upload->multipart.reason : "It is over.");
    else if (result == MULTIPART_STOPPED)
        upload_fail(upload, upload->failed_status ? upload->failed_status : 400,
                    upload->failed_code ? upload->failed_code : "invalid_value", upload->failed_why);
    else if (!buf_ok(&upload->pending))
        upload_fail(upload, 503, "resource_unavailable", "The server is out of memory.");
    if (upload->conn && !upload->paused && upload->pending.length >= PENDING_MAX) {
        http_conn_pause(upload->conn, true);
        upload->paused = true;
    }
}

void batches_body(struct batches *set, struct http_conn *conn)
{
    struct upload *upload = upload_of(set, conn);
    if (!upload) return;
    take_body(upload);
    upload_step(upload);
}

void upload_finish(struct batches *set, struct http_conn *conn, struct http_request *request)
{
    struct upload *upload = upload_of(set, conn);
    if (!upload) { /* a body of no bytes has no head of its own */
        batch_refuse(conn, 400, "invalid_multipart", "", "The request has no body; a form is needed.");
        return;
    }
    (void)request;
    take_body(upload);
    upload->complete = true;
    upload_step(upload);
}

static bool has_room(const struct batches *set, uint64_t account)
{
    uint64_t files = 0, uploads = 0;
    for (const struct stored_file *file = set->files; file; file = file->next)
        files += file->info.account == account && !file->info.output;
    for (const struct upload *upload = set->uploads; upload; upload = upload->next) uploads++;
    return files < limits.batch_files && uploads < UPLOADS_MAX;
}

void batches_head(struct batches *set, struct http_conn *conn, struct http_request *request)
{
    struct multipart multipart;
    if (!request->has_body || !multipart_begin(&multipart, http_request_header(request, "content-type", NULL))) {
        batch_refuse(conn, 400, "invalid_multipart", "", "The body must be a form: Content-Type multipart/form-data.");
        return;
    }
    if (!has_room(set, request->caller.account)) {
        batch_refuse(conn, 429, "rate_limit_exceeded", "", "The account has too many files; delete some of them.");
        return;
    }
    struct file_info info = {.account = request->caller.account, .created_s = batches_now_s()};
    batch_make_id("file-", info.id);
    struct upload *upload = mem_alloc(1, sizeof *upload);
    if (upload) upload->file = batches_add_file(set, &info);
    if (!upload || !upload->file) {
        mem_free(upload);
        batch_refuse(conn, 503, "resource_unavailable", "", "The server is out of memory.");
        return;
    }
    upload->set = set;
    upload->conn = conn;
    upload->multipart = multipart;
    upload->writer.fd = -1;
    upload->next = set->uploads;
    set->uploads = upload;
    request->streams = true;
    http_conn_user_set(conn, upload);
}

/* ---- downloads ---- */

static void download_free(struct batches *set, struct download *download)
{
    struct download **at = &set->downloads;
    while (*at != download) at = &(*at)->next;
    *at = download->next;
    download->file->users--;
    mem_free(download);
}

static void read_in_pool(struct batch_job *job)
{
    struct download *download = (struct download *)job;
    uint64_t left = download->file->info.bytes - download->offset;
    size_t want = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
    job->status = batch_read_at(&job->set->folder, download->file->info.id, download->offset, download->piece, want,
                                &download->got, &job->err);
    if (job->status == ST_OK && download->got < want) job->status = ST_IO;
}

static void piece_read(struct batch_job *job);

static void read_piece(struct batches *set, struct download *download)
{
    download->busy = true;
    download->job.run = read_in_pool;
    download->job.done = piece_read;
    batch_job_start(set, &download->job);
}

static void piece_read(struct batch_job *job)
{
    struct download *download = (struct download *)job;
    struct http_conn *conn = download->conn;
    download->busy = false;
    if (!conn) {
        download_free(job->set, download);
        return;
    }
    bool good = job->status == ST_OK;
    if (good) {
        buf_append(http_conn_out(conn), download->piece, download->got);
        download->offset += download->got;
        http_conn_send(conn);
    }
    if (!good || download->offset == download->file->info.bytes) {
        http_conn_user_set(conn, NULL);
        http_conn_stream_end(conn, good);
        download_free(job->set, download);
    } else if (http_conn_writable(conn)) {
        read_piece(job->set, download);
    }
}

void download_start(struct batches *set, struct http_conn *conn, struct stored_file *file)
{
    struct download *download = strcmp(http_conn_request(conn)->method, "HEAD") ? mem_alloc(1, sizeof *download) : NULL;
    if (!download) {
        if (strcmp(http_conn_request(conn)->method, "HEAD") == 0)
            http_conn_reply(conn, &(struct http_reply){.status = 200, .content_type = "application/octet-stream"});
        else
            batch_refuse(conn, 503, "resource_unavailable", "", "The server is out of memory.");
        return;
    }
    download->conn = conn;
    download->file = file;
    file->users++;
    download->next = set->downloads;
    set->downloads = download;
    http_conn_user_set(conn, download);
    http_conn_stream_begin_as(conn, "application/octet-stream");
    read_piece(set, download);
}

bool batches_writable(struct batches *set, struct http_conn *conn)
{
    for (struct download *download = set ? set->downloads : NULL; download; download = download->next) {
        if (download->conn != conn) continue;
        if (!download->busy) read_piece(set, download);
        return true;
    }
    return false;
}

/* ---- both ---- */

bool transfers_gone(struct batches *set, const struct http_conn *conn)
{
    struct upload *upload = upload_of(set, conn);
    if (upload) {
        upload->conn = NULL;
        if (!upload->busy) upload_free(upload);
        return true;
    }
    for (struct download *download = set->downloads; download; download = download->next) {
        if (download->conn != conn) continue;
        download->conn = NULL;
        if (!download->busy) download_free(set, download);
        return true;
    }
    return false;
}

void transfers_free(struct batches *set)
{
    while (set->uploads) {
        set->uploads->file = NULL; /* the index is gone */
        upload_free(set->uploads);
    }
    while (set->downloads) {
        struct download *download = set->downloads;
        set->downloads = download->next;
        mem_free(download);
    }
}
