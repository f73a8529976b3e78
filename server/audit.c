/* See audit.h. */
#include "server/audit.h"

#include "runtime/base/buf.h"
#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES_MAX = 65536, REFUSED_EVERY_MS = 1000 };

struct audit {
    const char *path;
    int fd;
    bool torn;        /* the file's last line has no end */
    bool has_refused; /* refused_ms is one */
    int64_t refused_ms;
    uint64_t calls, unwritten, lines, failures;
};

static enum status open_file(const char *path, int *fd, bool *torn, struct error *err)
{
    struct stat about;
    char last = '\n';
    int opened = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
    if (opened < 0) return error_set(err, ST_IO, "--audit-log: %s: %s", path, strerror(errno));
    if (fstat(opened, &about) != 0 || !S_ISREG(about.st_mode)) { /* a pipe whose reader is gone would end the process */
        (void)close(opened);
        return error_set(err, ST_IO, "--audit-log: %s: not a regular file", path);
    }
    *torn = about.st_size > 0 && pread(opened, &last, 1, about.st_size - 1) == 1 && last != '\n';
    *fd = opened;
    return ST_OK;
}

enum status audit_open(const char *path, struct audit **audit, struct error *err)
{
    struct audit *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "out of memory");
    made->path = path;
    enum status status = open_file(path, &made->fd, &made->torn, err);
    if (status != ST_OK)
        mem_free(made);
    else
        *audit = made;
    return status;
}

void audit_close(struct audit *audit)
{
    if (!audit) return;
    (void)fdatasync(audit->fd);
    (void)close(audit->fd);
    mem_free(audit);
}

enum status audit_reopen(struct audit *audit, struct error *err)
{
    int fd;
    bool torn;
    TRY(open_file(audit->path, &fd, &torn, err));
    (void)close(audit->fd);
    audit->fd = fd;
    audit->torn = torn;
    return ST_OK;
}

/* ---- lines ---- */

static void begin_line(const struct audit *audit, struct buf *line, int64_t now_unix_ms, const char *event)
{
    struct tm utc;
    time_t seconds = (time_t)(now_unix_ms / 1000);
    char text[32] = "";
    buf_init(line, LINE_BYTES_MAX);
    if (audit->torn) buf_append_char(line, '\n');
    if (gmtime_r(&seconds, &utc)) (void)strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    buf_append_format(line, "{\"time\":\"%s.%03dZ\",\"event\":\"%s\"", text, (int)(now_unix_ms % 1000), event);
}

static void append_member(struct buf *line, const char *name, const char *text)
{
    buf_append_format(line, ",\"%s\":", name);
    if (text)
        buf_append_json_string(line, text, strlen(text));
    else
        buf_append_text(line, "null");
}

static void append_call(struct buf *line, const struct audit_call *call)
{
    append_member(line, "who", call->who);
    append_member(line, "from", call->from);
    append_member(line, "request", call->request);
    append_member(line, "method", call->method);
    append_member(line, "target", call->target);
}

/* One write. What of it went through when it failed is a torn line. */
static enum status end_line(struct audit *audit, struct buf *line, struct error *err)
{
    enum status status = ST_OK;
    buf_append_text(line, "}\n");
    if (!buf_ok(line)) {
        status = error_set(err, ST_NOMEM, "no memory for a line of the audit log");
    } else {
        ssize_t count = write(audit->fd, line->data, line->length);
        if (count != (ssize_t)line->length)
            status = error_set(err, ST_IO, "--audit-log: %s: %s", audit->path,
                               count < 0 ? strerror(errno) : "no space for a whole line");
        if (count > 0) audit->torn = count != (ssize_t)line->length;
    }
    if (status == ST_OK)
        audit->lines++;
    else
        audit->failures++;
    buf_free(line);
    return status;
}

enum status audit_call(struct audit *audit, int64_t now_unix_ms, const struct audit_call *call, uint64_t *n,
                       struct error *err)
{
    struct buf line;
    size_t length = call->body_length < AUDIT_BODY_BYTES_MAX ? call->body_length : AUDIT_BODY_BYTES_MAX;
    begin_line(audit, &line, now_unix_ms, "call");
    buf_append_format(&line, ",\"n\":%" PRIu64, audit->calls + 1);
    append_call(&line, call);
    if (call->body) {
        buf_append_text(&line, ",\"body\":");
        buf_append_json_string(&line, call->body, length);
        buf_append_format(&line, ",\"body_bytes\":%zu", call->body_length);
    }
    TRY(end_line(audit, &line, err));
    *n = ++audit->calls;
    return ST_OK;
}

void audit_answer(struct audit *audit, int64_t now_unix_ms, uint64_t n, int http_status)
{
    struct buf line;
    begin_line(audit, &line, now_unix_ms, "answer");
    buf_append_format(&line, ",\"n\":%" PRIu64 ",\"status\":%d", n, http_status);
    (void)end_line(audit, &line, NULL);
}

void audit_refused(struct audit *audit, int64_t now_unix_ms, const struct audit_call *call, int http_status)
{
    struct buf line;
    int64_t passed_ms = now_unix_ms - audit->refused_ms; /* below 0: the clock was set back */
    if (audit->has_refused && passed_ms >= 0 && passed_ms < REFUSED_EVERY_MS) {
        audit->unwritten++;
        return;
    }
    begin_line(audit, &line, now_unix_ms, "refused");
    append_call(&line, call);
    buf_append_format(&line, ",\"status\":%d,\"unwritten\":%" PRIu64, http_status, audit->unwritten);
    audit->has_refused = true;
    audit->refused_ms = now_unix_ms;
    if (end_line(audit, &line, NULL) == ST_OK) audit->unwritten = 0;
}

void audit_event(struct audit *audit, int64_t now_unix_ms, const char *event, const char *detail)
{
    struct buf line;
    begin_line(audit, &line, now_unix_ms, event);
    if (detail) append_member(&line, "detail", detail);
    (void)end_line(audit, &line, NULL);
}

uint64_t audit_lines(const struct audit *audit)
{
    return audit->lines;
}

uint64_t audit_failures(const struct audit *audit)
{
    return audit->failures;
}
