/* Drives http_check and llhttp over the same bytes; see http_request.h. llhttp is started afresh for each request, so
 * that no state of one can reach the next. */
#include "server/http_request.h"

#include "runtime/base/check.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

#include <string.h>
#include <strings.h>

static struct http_parser *parser_of(llhttp_t *llhttp)
{
    return llhttp->data;
}

static int on_url(llhttp_t *llhttp, const char *at, size_t length)
{
    buf_append(&parser_of(llhttp)->request->head, at, length);
    return 0;
}

static int on_url_complete(llhttp_t *llhttp)
{
    struct http_request *request = parser_of(llhttp)->request;
    request->target_length = request->head.length;
    if (request->target_length > 0) {
        const char *query = memchr(request->head.data, '?', request->head.length);
        request->path_length = query ? (size_t)(query - request->head.data) : request->target_length;
    }
    buf_append_char(&request->head, '\0');
    return 0;
}

static int on_header_field(llhttp_t *llhttp, const char *at, size_t length)
{
    struct http_parser *parser = parser_of(llhttp);
    if (parser->request->head_complete) return 0; /* a trailer: checked, then dropped */
    struct buf *head = &parser->request->head;
    size_t start = head->length;
    buf_append(head, at, length);
    if (!buf_ok(head)) return 0;
    for (size_t i = start; i < head->length; i++)
        if (head->data[i] >= 'A' && head->data[i] <= 'Z') head->data[i] = (char)(head->data[i] + 'a' - 'A');
    return 0;
}

static int on_header_field_complete(llhttp_t *llhttp)
{
    struct http_parser *parser = parser_of(llhttp);
    if (parser->request->head_complete) return 0;
    buf_append_char(&parser->request->head, '\0');
    parser->header_open = true;
    return 0;
}

static int on_header_value(llhttp_t *llhttp, const char *at, size_t length)
{
    struct http_parser *parser = parser_of(llhttp);
    if (!parser->request->head_complete) buf_append(&parser->request->head, at, length);
    return 0;
}

static int on_header_value_complete(llhttp_t *llhttp)
{
    struct http_parser *parser = parser_of(llhttp);
    struct buf *head = &parser->request->head;
    if (parser->request->head_complete || !parser->header_open || !buf_ok(head)) return 0;
    while (head->length > 0 && (head->data[head->length - 1] == ' ' || head->data[head->length - 1] == '\t'))
        head->length--;
    buf_append_char(head, '\0');
    parser->header_open = false;
    return 0;
}

/* Upgrades are not offered: the request is answered as plain HTTP/1.1 (RFC 9110 7.8 allows it). */
static int on_headers_complete(llhttp_t *llhttp)
{
    struct http_request *request = parser_of(llhttp)->request;
    llhttp->upgrade = 0;
    parser_of(llhttp)->head_flags = llhttp->flags;
    parser_of(llhttp)->head_length = llhttp->content_length;
    request->method = llhttp_method_name((llhttp_method_t)llhttp->method);
    request->keep_alive = llhttp_should_keep_alive(llhttp) != 0;
    request->head_complete = true;
    return 0;
}

static int on_body(llhttp_t *llhttp, const char *at, size_t length)
{
    struct http_request *request = parser_of(llhttp)->request;
    request->body_length += length;
    if (!request->discard) buf_append(&request->body, at, length);
    return 0;
}

static int on_message_complete(llhttp_t *llhttp)
{
    parser_of(llhttp)->message_complete = true;
    return 0;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_url_complete = on_url_complete,
    .on_header_field = on_header_field,
    .on_header_field_complete = on_header_field_complete,
    .on_header_value = on_header_value,
    .on_header_value_complete = on_header_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

struct http_request *http_request_create(void)
{
    struct http_request *request = mem_alloc(1, sizeof *request);
    if (!request) return NULL;
    buf_init(&request->head, (size_t)(limits.http_headers_bytes + limits.http_request_line_bytes));
    buf_init(&request->body, (size_t)limits.http_body_bytes);
    buf_init(&request->answer_headers, ANSWER_HEADERS_BYTES_MAX);
    return request;
}

void http_request_destroy(struct http_request *request)
{
    if (!request) return;
    buf_free(&request->head);
    buf_free(&request->body);
    buf_free(&request->answer_headers);
    mem_free(request);
}

void http_parser_begin(struct http_parser *parser, struct http_request *request)
{
    CHECK(request != NULL);
    http_check_init(&parser->check);
    llhttp_init(&parser->llhttp, HTTP_REQUEST, &settings);
    parser->llhttp.data = parser;
    parser->request = request;
    parser->message_complete = false;
    parser->head_flags = 0;
    parser->head_length = 0;
    parser->header_open = false;
}

bool http_parser_begun(const struct http_parser *parser)
{
    return parser->check.line_bytes > 0 || parser->check.headers_bytes > 0;
}

static enum http_progress refuse(struct http_parser *parser, int http_code, const char *reason)
{
    parser->request->refused_code = http_code;
    parser->request->refused_reason = reason;
    parser->request = NULL;
    return HTTP_REFUSED;
}

/* H2 at the head's end. */
static bool heads_agree(const struct http_parser *parser)
{
    const struct http_check *check = &parser->check;
    const llhttp_t *llhttp = &parser->llhttp;
    bool chunked = (parser->head_flags & F_CHUNKED) != 0, has_length = (parser->head_flags & F_CONTENT_LENGTH) != 0;
    if (chunked != check->chunked || has_length != check->has_length) return false;
    if (llhttp->http_major != 1 || (llhttp->http_minor == 0) != check->http10) return false;
    if (parser->head_length != check->content_length) return false;
    bool ends = !chunked && check->content_length == 0;
    return ends == parser->message_complete;
}

static enum http_progress head_end(struct http_parser *parser)
{
    struct http_request *request = parser->request;
    if (!request->head_complete || !heads_agree(parser))
        return refuse(parser, 400, "the request's framing is ambiguous");
    if (!buf_ok(&request->head)) return refuse(parser, 503, "out of memory");
    request->http10 = parser->check.http10;
    request->has_body = parser->check.chunked || parser->check.content_length > 0;
    const char *expect = http_request_header(request, "expect", NULL);
    if (expect && !request->http10) {
        if (strcasecmp(expect, "100-continue") != 0) return refuse(parser, 400, "Expect can only be 100-continue");
        request->expects_continue = request->has_body;
    }
    return HTTP_HEAD_READ;
}

enum http_progress http_parser_feed(struct http_parser *parser, const char *data, size_t length, size_t *consumed)
{
    CHECK(parser->request != NULL);
    enum http_check_result result = http_check_feed(&parser->check, data, length, consumed);
    if (result == HTTP_CHECK_REFUSED) return refuse(parser, parser->check.http_code, parser->check.reason);
    if (*consumed > 0) {
        if (llhttp_execute(&parser->llhttp, data, *consumed) != HPE_OK) /* H1 */
            return refuse(parser, 400, "the request is not valid HTTP/1.1");
    }
    if (result == HTTP_CHECK_HEAD_END) return head_end(parser);
    struct http_request *request = parser->request;
    bool ended = result == HTTP_CHECK_MESSAGE_END;
    if (request->head_complete && request->body_length != parser->check.body_bytes)
        return refuse(parser, 400, "the request's framing is ambiguous"); /* H2 */
    if (request->head_complete && ended != parser->message_complete)
        return refuse(parser, 400, "the request's framing is ambiguous"); /* H2 */
    if (!request->discard && !buf_ok(&request->body)) return refuse(parser, 503, "out of memory");
    if (!ended) return HTTP_MORE;
    request->complete = true;
    parser->request = NULL;
    return HTTP_REQUEST_READ;
}

const char *http_request_target(const struct http_request *request)
{
    return request->head.length > 0 ? request->head.data : "";
}

const char *http_request_header(const struct http_request *request, const char *name, uint32_t *count)
{
    const char *found = NULL;
    uint32_t matches = 0;
    size_t i = request->target_length + 1;
    while (i < request->head.length) {
        const char *key = request->head.data + i;
        const char *value = key + strlen(key) + 1;
        if (strcmp(key, name) == 0) {
            if (!found) found = value;
            matches++;
        }
        i = (size_t)(value + strlen(value) + 1 - request->head.data);
    }
    if (count) *count = matches;
    return found;
}
