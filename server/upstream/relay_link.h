/* Calls to upstreams on the loop's own thread: libcurl's multi interface over uv_poll, so that a stream's bytes need
 * neither a thread nor a lock. As http_call.h: no redirect is followed, no proxy asked, certificates and host names are
 * verified, every call has a time limit. HTTP/1.1. How much an answer may have is its reader's to say.
 *
 * Callbacks come from the loop, never from inside a function of this file, and each may cancel any call. */
#ifndef SERVER_UPSTREAM_RELAY_LINK_H
#define SERVER_UPSTREAM_RELAY_LINK_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <uv.h>

#include <stdbool.h>
#include <stdint.h>

struct relay_link; /* all calls of a process */
struct relay_call;

enum relay_end { RELAY_ENDED, RELAY_UNREACHABLE, RELAY_TIMEOUT, RELAY_BROKEN /* in the midst of the answer */ };

struct relay_wish {
    const char *url, *path;       /* path: what comes behind the url */
    const char *bearer, *ca_file; /* or NULL */
    const struct buf *body;       /* borrowed until the end */
    uint64_t timeout_ms;
    void *state;
    void (*bytes)(void *state, int http_status, const char *bytes, size_t length);
    /* The last word; http_status 0: no answer began. The call is freed after it. */
    void (*ended)(void *state, enum relay_end end, int http_status, int64_t retry_after_s);
};

NODISCARD enum status relay_link_create(uv_loop_t *loop, struct relay_link **link);
void relay_link_close(struct relay_link *link);   /* its handles; no call is left. NULL is fine */
void relay_link_destroy(struct relay_link *link); /* after the loop has closed them */

/* NULL: no memory. */
struct relay_call *relay_call_start(struct relay_link *link, const struct relay_wish *wish);
/* Nothing more comes of it; its connection is closed. */
void relay_call_cancel(struct relay_call *call);
/* No more bytes until told false; those on their way still come. */
void relay_call_pause(struct relay_call *call, bool paused);

#endif
