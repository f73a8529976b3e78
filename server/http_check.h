/* Strict framing of HTTP/1.1 requests: where a message starts and ends, and nothing else.
 *
 * Request smuggling is two parsers that disagree about an end. This module is the second opinion: it reads every byte
 * before llhttp does, knows only the narrow grammar below, and refuses what is outside of it ("any doubt is 400"). The
 * driver (http_request.c) then requires that llhttp finds the same length, the same coding and the same last byte.
 *
 *   [CRLF] METHOD SP /target SP HTTP/1.(0|1) CRLF  *( token ":" OWS value OWS CRLF )  CRLF  body
 *
 *   Content-Length     1-19 digits, once                        Transfer-Encoding  exactly "chunked", once, only 1.1,
 *   Host               once (1.1), at most once (1.0),                             never beside a length
 *                      a host and a port, no path               CRLF only; no folding, no control characters, no NUL
 *   chunk              1-15 hex digits [";" extension] CRLF data CRLF; trailers are checked like headers and dropped
 *
 * Narrower than RFC 9112 on purpose: absolute-form and "*" targets, identical repeated lengths, empty Host and
 * upper-case codings are refused; no client of an inference API sends them, and proxies differ on each. Pure; plain
 * data in the caller's memory; one thread at a time. Cases: robustness design 4.1. */
#ifndef SERVER_HTTP_CHECK_H
#define SERVER_HTTP_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum http_check_result {
    HTTP_CHECK_MORE,        /* all bytes are consumed, the message goes on */
    HTTP_CHECK_HEAD_END,    /* the empty line after the headers is consumed; framing is known */
    HTTP_CHECK_MESSAGE_END, /* the last byte of the message is consumed */
    HTTP_CHECK_REFUSED      /* http_code and reason say why; the connection cannot be used any more */
};

struct http_check {
    /* results, valid from HTTP_CHECK_HEAD_END on */
    bool has_length, chunked, http10;
    uint64_t content_length;
    uint64_t body_bytes; /* of the body seen so far, without chunk framing */
    uint64_t body_max;   /* bytes; limits.http_body_bytes unless set after init, or anew at the head's end */
    /* results of HTTP_CHECK_REFUSED */
    int http_code;      /* 400, 413, 414 or 431 */
    const char *reason; /* static */
    /* inner state */
    uint8_t state, header_kind;
    bool trailing, value_gap, value_spaced, value_full, seen_host;
    uint8_t name_length, value_length;
    uint8_t digits; /* of a chunk size */
    char name[20], value[24];
    uint32_t line_bytes, extension_bytes;
    uint64_t headers_bytes, headers, remaining;
};

void http_check_init(struct http_check *check);

/* Reads bytes up to the next boundary or the end of data; *consumed says how many. Limits come from `limits`. After
 * HTTP_CHECK_HEAD_END call it again (also with no bytes left): a message without a body then ends at once. */
enum http_check_result http_check_feed(struct http_check *check, const char *data, size_t length, size_t *consumed);

#endif
