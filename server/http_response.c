/* See http_response.h. Header names are lower case: HTTP/1.1 does not care, and every peer of ours writes them so. */
#include "server/http_response.h"

#include "runtime/base/clock.h"
#include "runtime/base/random.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

const char *http_response_phrase(int status)
{
    static const struct {
        int status;
        const char *phrase;
    } phrases[] = {
        {200, "OK"},
        {204, "No Content"},
        {303, "See Other"},
        {304, "Not Modified"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {402, "Payment Required"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {422, "Unprocessable Content"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
    };
    for (size_t i = 0; i < sizeof phrases / sizeof phrases[0]; i++)
        if (phrases[i].status == status) return phrases[i].phrase;
    return "Unknown";
}

/* RFC 9110 5.6.7; made once a second. */
static const char *http_date(void)
{
    static char text[64];
    static int64_t made_unix_s = -1;
    static const char days[][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    int64_t now_unix_s = clock_unix_us(clock_system()) / 1000000;
    if (now_unix_s != made_unix_s) {
        time_t seconds = (time_t)now_unix_s;
        struct tm utc;
        if (!gmtime_r(&seconds, &utc)) return "Thu, 01 Jan 1970 00:00:00 GMT";
        (void)snprintf(text, sizeof text, "%s, %02d %s %04d %02d:%02d:%02d GMT", days[utc.tm_wday % 7], utc.tm_mday,
                       months[utc.tm_mon % 12], (utc.tm_year + 1900) % 10000, utc.tm_hour, utc.tm_min, utc.tm_sec);
        made_unix_s = now_unix_s;
    }
    return text;
}

void http_response_write(const struct http_response *response, struct buf *out)
{
    size_t length = response->body ? response->body->length : 0;
    buf_append_format(
        out, "HTTP/1.1 %d %s\r\ndate: %s\r\nserver: millrace\r\nx-request-id: %s\r\nopenai-processing-ms: %llu\r\n",
        response->status, http_response_phrase(response->status), http_date(), response->request_id,
        (unsigned long long)(response->processing_ns / NS_PER_MS));
    if (response->stream && response->content_type) {
        buf_append_format(out, "content-type: %s\r\n", response->content_type);
        if (response->chunked) buf_append_text(out, "transfer-encoding: chunked\r\n");
    } else if (response->stream) {
        buf_append_text(out, "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
                             "x-accel-buffering: no\r\n");
        if (response->chunked) buf_append_text(out, "transfer-encoding: chunked\r\n");
    } else if (response->status != 204 && response->status != 304) {
        buf_append_format(out, "content-type: %s\r\ncontent-length: %zu\r\n", response->content_type, length);
    }
    if (response->allow) buf_append_format(out, "allow: %s\r\n", response->allow);
    if (response->retry_after_ms > 0)
        buf_append_format(out, "retry-after: %u\r\nretry-after-ms: %u\r\n", (response->retry_after_ms + 999) / 1000,
                          response->retry_after_ms);
    if (response->authenticate) buf_append_text(out, "www-authenticate: Bearer\r\n");
    if (response->headers) buf_append(out, response->headers->data, response->headers->length);
    if (response->close)
        buf_append_text(out, "connection: close\r\n");
    else if (response->keep_alive_told)
        buf_append_text(out, "connection: keep-alive\r\n");
    buf_append(out, "\r\n", 2);
    if (!response->stream && !response->head_only && length > 0) buf_append(out, response->body->data, length);
}

void http_response_make_id(char *out)
{
    uint8_t bytes[16];
    random_fill(bytes, sizeof bytes);
    memcpy(out, "req_", 4);
    for (size_t i = 0; i < sizeof bytes; i++) {
        out[4 + 2 * i] = "0123456789abcdef"[bytes[i] >> 4];
        out[5 + 2 * i] = "0123456789abcdef"[bytes[i] & 15];
    }
    out[36] = '\0';
}
