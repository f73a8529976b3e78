/* One HTTP call to a server: of `millrace bill`, of `millrace bench cost` and of the feeds of power. libcurl with
 * bounds. No redirect is followed, certificates and host names are verified, the answer has a size limit, and every
 * call has a time limit, so that neither a flood nor a drip holds the caller. Blocking; one thread a struct. */
#ifndef SERVER_HTTP_CALL_H
#define SERVER_HTTP_CALL_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdatomic.h>
#include <stdint.h>

enum { HTTP_CALL_ANSWER_BYTES_MAX = 64 * 1024 * 1024, HTTP_CALL_TIMEOUT_MS = 30000, HTTP_CALL_ETAG_BYTES = 128 };

/* All but the first and the last members are the caller's to fill in, and borrowed; NULL or 0: not sent, or as said.
 * Values sent as headers must have no control characters and no white space. */
struct http_call {
    void *curl;                  /* own */
    const char *ca_file;         /* PEM, or NULL: the system's */
    const char *bearer;          /* sent as Authorization */
    const char *user, *password; /* sent as Authorization of the kind Basic, where there is no bearer */
    const char *idempotency_key; /* sent as Idempotency-Key */
    const char *header, *value;  /* one more, as "auth-token" and what it says */
    const char *etag;            /* sent as If-None-Match */
    const char *content_type;    /* of what is posted; NULL: application/json */
    uint32_t timeout_ms;         /* of a whole call; 0: HTTP_CALL_TIMEOUT_MS */
    size_t answer_bytes_max;     /* 0: HTTP_CALL_ANSWER_BYTES_MAX */
    const atomic_bool *cancel;   /* set by another thread: the call ends within about a second */
    /* Of the last answer. */
    int64_t retry_after_s;                  /* Retry-After, as seconds or as a date; 0: none */
    char answer_etag[HTTP_CALL_ETAG_BYTES]; /* "": none, or too long */
};

/* ST_NOMEM. The rest of *call is 0. */
NODISCARD enum status http_call_open(struct http_call *call, struct error *err);
void http_call_close(struct http_call *call);

/* GET, or POST of body when it is not NULL. base: "http://host:port" or https; path begins with '/', or is "" when base
 * is the whole URL. *answer is cleared and gets the body, *status the HTTP status whatever it is. ST_INVAL: the URL or
 * a header's value; ST_TIMEOUT; ST_LIMIT: the answer is too long; ST_CANCELED; ST_IO: anything else (err says what),
 * also a certificate that does not fit. */
NODISCARD enum status http_call_run(struct http_call *call, const char *base, const char *path, const char *body,
                                    int *status, struct buf *answer, struct error *err);

#endif
