/* The head of an answer, and ids for requests. Pure but for the wall clock (Date) and random ids; io thread. */
#ifndef SERVER_HTTP_RESPONSE_H
#define SERVER_HTTP_RESPONSE_H

#include "runtime/base/buf.h"

#include <stdbool.h>
#include <stdint.h>

struct http_response {
    int status;
    const char *content_type;
    const struct buf *body;  /* NULL: empty */
    const char *allow;       /* or NULL */
    uint32_t retry_after_ms; /* 0: none */
    bool authenticate;
    bool close, keep_alive_told; /* a Connection header; none is needed for 1.1 that stays open */
    bool head_only;              /* HEAD: the length of the body, not the body */
    bool stream;                 /* server-sent events, or bytes of content_type: no length, no body */
    bool chunked;
    const struct buf *headers; /* more lines, each with its CRLF; NULL: none */
    const char *request_id;
    uint64_t processing_ns;
};

/* Appends head and body (a stream: the head alone) to out. */
void http_response_write(const struct http_response *response, struct buf *out);

/* "req_" and 32 hex digits, NUL-terminated, into at least 37 bytes. */
void http_response_make_id(char *out);

const char *http_response_phrase(int status); /* "Not Found"; static */

#endif
