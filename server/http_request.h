/* One HTTP request from bytes: http_check says where it ends, llhttp what it says, and both must agree.
 *
 *   bytes -> http_check (grammar, framing, limits) -> llhttp (method, target, headers, body) -> struct http_request
 *
 * H1  llhttp never sees a byte that http_check has not passed.
 * H2  At the head's end both name the same length or coding; at the message's end both stand on the same byte.
 *     Otherwise the request is refused with 400 and the connection closed.
 * H3  A request means the same wherever its bytes are cut into reads.
 *
 * Pure: no sockets, no clock. Memory: the head at most http_headers_bytes + http_request_line_bytes, the body as it
 * arrives up to http_body_bytes. One thread at a time. */
#ifndef SERVER_HTTP_REQUEST_H
#define SERVER_HTTP_REQUEST_H

#include "runtime/base/buf.h"
#include "server/caller.h"
#include "server/http_check.h"

#include <llhttp.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HTTP_REQUEST_ID_MAX = 128, ANSWER_HEADERS_BYTES_MAX = 2048 };

struct http_request {
    struct http_request *next; /* the connection's: requests read ahead */
    const char *method;        /* "GET"; static */
    struct buf head;           /* target NUL, then name NUL value NUL for each header; names in lower case */
    size_t target_length;      /* of it the path is up to the first '?' */
    size_t path_length;
    bool http10, keep_alive, expects_continue;
    bool has_body; /* a length above 0, or chunked */
    bool head_complete, complete;
    bool streams;         /* set by the handler of a head: its body goes to handler.body as it comes */
    bool discard;         /* set by the server: further body bytes are counted, not kept */
    uint64_t body_length; /* received so far */
    struct buf body;
    int refused_code;           /* HTTP status when the bytes were refused, else 0 */
    const char *refused_reason; /* static */
    char id[HTTP_REQUEST_ID_MAX +
            1];                /* x-request-id: the client's if sane, else the server's; filled by the connection */
    uint64_t start_ns;         /* when its head was complete; the connection's */
    bool head_seen, body_seen; /* the connection's: handed to the handler */
    const void *route;         /* the handler's */
    struct buf answer_headers; /* the handler's: lines with CRLF that its answer gets, whatever it is */
    struct caller caller;      /* the handler's */
    uint64_t audit_n;          /* the handler's: audit_call's, 0: none */
};

struct http_parser {
    struct http_check check;
    llhttp_t llhttp;
    struct http_request *request; /* the one being read, or NULL */
    bool message_complete;        /* llhttp's word */
    uint16_t head_flags;          /* llhttp's, at the head's end: it clears them when a message ends there */
    uint64_t head_length;         /* llhttp's Content-Length, at the head's end */
    bool header_open;             /* a name has been stored, its value not yet */
};

enum http_progress {
    HTTP_MORE,         /* all bytes consumed */
    HTTP_HEAD_READ,    /* head_complete is set; feed the rest */
    HTTP_REQUEST_READ, /* complete is set; the parser has let go of the request */
    HTTP_REFUSED       /* refused_code is set; the parser has let go of the request */
};

/* A request with empty buffers; NULL: no memory. */
struct http_request *http_request_create(void);
void http_request_destroy(struct http_request *request); /* NULL is fine */

/* Starts reading `request` (borrowed until it is complete or refused). */
void http_parser_begin(struct http_parser *parser, struct http_request *request);
bool http_parser_begun(const struct http_parser *parser); /* more than the empty line before a request has been read */
enum http_progress http_parser_feed(struct http_parser *parser, const char *data, size_t length, size_t *consumed);

/* The first header of that name (lower case), or NULL. NUL-terminated, without white space around it; valid as long as
 * the request. count, if not NULL: how many there are. */
const char *http_request_header(const struct http_request *request, const char *name, uint32_t *count);
const char *http_request_target(const struct http_request *request); /* NUL-terminated */

#endif
