/* The log of what operators do (--audit-log FILE): one JSON object a line.
 *
 *   {"time":"2026-11-24T12:00:00.000Z","event":"call","n":7,"who":"ada","from":"10.0.0.9","request":"..","method":"POST",
 *    "target":"/models/load","body":"{..}","body_bytes":57}
 *   {"time":"..","event":"answer","n":7,"status":200}
 *
 * D1  Calls that change something (any admin call but GET and HEAD) are written before they begin; one that cannot be
 *     written is refused with 503. Then its answer's status; none if its client left first, which stops nothing.
 * D2  Callers without an admin key: "refused", one line a second at most, with how many went unwritten.
 * D3  Also: start, stop, and keys read again or kept (SIGHUP). SIGHUP opens the file anew, as for logrotate.
 * D4  Lines are appended, each in one write: what is written survives the process. When it reaches the disk is the
 *     system's choice (the io thread must not wait for one). A line that a full disk cut off is ended before the next.
 * D5  Bodies are cut at AUDIT_BODY_BYTES_MAX; none of the admin calls takes a secret. "who" is the name in the admin
 *     key's line of --admin-key-file, "admin" without one. What is done with Redis' password alone, past this server,
 *     is not seen here.
 *
 * One thread; time is handed in. */
#ifndef SERVER_AUDIT_H
#define SERVER_AUDIT_H

#include "runtime/base/status.h"

#include <stddef.h>
#include <stdint.h>

enum { AUDIT_BODY_BYTES_MAX = 4096 };

struct audit;

struct audit_call {
    const char *who; /* NULL: without a key */
    const char *from, *request, *method, *target;
    const char *body; /* NULL: none */
    size_t body_length;
};

/* Makes the file (mode 0600) or appends to it. ST_IO: err says which file and why; ST_NOMEM. path is borrowed. */
NODISCARD enum status audit_open(const char *path, struct audit **audit, struct error *err);
void audit_close(struct audit *audit); /* NULL is fine */

/* D3. On failure the old file is gone on with. */
NODISCARD enum status audit_reopen(struct audit *audit, struct error *err);

/* D1; *n is what audit_answer wants. ST_IO: do not make the call. */
NODISCARD enum status audit_call(struct audit *audit, int64_t now_unix_ms, const struct audit_call *call, uint64_t *n,
                                 struct error *err);
void audit_answer(struct audit *audit, int64_t now_unix_ms, uint64_t n, int http_status);
void audit_refused(struct audit *audit, int64_t now_unix_ms, const struct audit_call *call, int http_status);
/* detail: of a name without quotes, or NULL. */
void audit_event(struct audit *audit, int64_t now_unix_ms, const char *event, const char *detail);

uint64_t audit_lines(const struct audit *audit);    /* written since the start */
uint64_t audit_failures(const struct audit *audit); /* lines that were not */

#endif
