/* One HTTP call of `millrace bill` to a server: libcurl with bounds. No redirect is followed, certificates and host
 * names are verified, the answer has a size limit, and every call has a time limit. Blocking; one thread a struct. */
#ifndef SERVER_BILLING_HTTP_CALL_H
#define SERVER_BILLING_HTTP_CALL_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdint.h>

enum { HTTP_CALL_ANSWER_BYTES_MAX = 64 * 1024 * 1024, HTTP_CALL_TIMEOUT_MS = 30000 };

struct http_call {
    void *curl;                  /* own */
    const char *ca_file;         /* PEM, or NULL: the system's */
    const char *bearer;          /* sent as Authorization, or NULL; must have no control characters */
    const char *idempotency_key; /* sent as Idempotency-Key, or NULL */
    uint32_t timeout_ms;         /* of a whole call; 0: HTTP_CALL_TIMEOUT_MS */
};

/* ST_NOMEM. ca_file, bearer and timeout_ms are the caller's to fill in. */
NODISCARD enum status http_call_open(struct http_call *call, struct error *err);
void http_call_close(struct http_call *call);

/* GET, or POST of json when it is not NULL. base: "http://host:port" or https, path begins with '/'. *answer is cleared
 * and gets the body, *status the HTTP status whatever it is. ST_INVAL: the URL or the key; ST_TIMEOUT; ST_LIMIT: the
 * answer is too long; ST_IO: anything else (err says what), also a certificate that does not fit. */
NODISCARD enum status http_call_run(struct http_call *call, const char *base, const char *path, const char *json,
                                    int *status, struct buf *answer, struct error *err);

#endif
