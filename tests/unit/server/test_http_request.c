/* Framing: each case of the robustness design 4.1, whole and cut at every byte (H3); the second parser's agreement
 * (H2). */
#include "tests/unit/unit.h"

#include "runtime/base/limits.h"
#include "server/http_request.h"

/* What a message came to: requests read one after another from the same bytes. */
struct outcome {
    int refused_code;   /* of the first refused one, else 0 */
    uint32_t complete;  /* requests before it */
    char summary[4096]; /* method, target, headers, body of each */
    size_t summary_length;
};

static void note(struct outcome *outcome, const char *bytes, size_t length)
{
    size_t room = sizeof outcome->summary - outcome->summary_length;
    if (length > room) length = room;
    if (length > 0) memcpy(outcome->summary + outcome->summary_length, bytes, length);
    outcome->summary_length += length;
}

static void note_request(struct outcome *outcome, const struct http_request *request)
{
    char flags[64];
    int length = snprintf(flags, sizeof flags, "%s %zu %d%d%d%d ", request->method, request->path_length,
                          request->http10, request->keep_alive, request->expects_continue, request->has_body);
    note(outcome, flags, (size_t)length);
    note(outcome, request->head.data, request->head.length);
    note(outcome, request->body.data, request->body.length);
}

/* Feeds bytes in pieces: up to each cut, then the rest. */
static void read_all(const char *bytes, size_t length, const size_t *cuts, size_t cuts_count, struct outcome *outcome)
{
    struct http_parser parser = {0};
    struct http_request *request = NULL;
    memset(outcome, 0, sizeof *outcome);
    size_t at = 0;
    for (size_t piece = 0; piece <= cuts_count && !outcome->refused_code; piece++) {
        size_t end = piece < cuts_count ? cuts[piece] : length;
        size_t rounds = 0;
        while (!outcome->refused_code) {
            assert_true(rounds++ < 10 * (length + 10)); /* bounded */
            if (!request) {
                if (at == end) break;
                request = http_request_create();
                assert_non_null(request);
                http_parser_begin(&parser, request);
            }
            size_t used = 0;
            enum http_progress progress = http_parser_feed(&parser, bytes + at, end - at, &used);
            at += used;
            assert_true(at <= end);
            if (progress == HTTP_MORE) {
                assert_int_equal(at, end);
                break;
            }
            if (progress == HTTP_REFUSED) outcome->refused_code = request->refused_code;
            if (progress == HTTP_HEAD_READ) continue;
            if (progress == HTTP_REQUEST_READ) {
                outcome->complete++;
                note_request(outcome, request);
            }
            http_request_destroy(request);
            request = NULL;
        }
    }
    http_request_destroy(request);
}

static void compare(const char *name, size_t cut, const struct outcome *whole, const struct outcome *pieces)
{
    if (whole->refused_code == pieces->refused_code && whole->complete == pieces->complete &&
        whole->summary_length == pieces->summary_length &&
        !memcmp(whole->summary, pieces->summary, whole->summary_length))
        return;
    fail_msg("%s cut at %zu: refused %d/%d, complete %u/%u, summary %zu/%zu bytes", name, cut, whole->refused_code,
             pieces->refused_code, whole->complete, pieces->complete, whole->summary_length, pieces->summary_length);
}

struct wire {
    const char *name, *bytes;
    size_t length; /* 0: strlen */
    int refused;
    uint32_t complete;
};

#define POST        "POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
#define GET         "GET /health HTTP/1.1\r\nHost: a\r\n"
#define HIDDEN      "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
#define BYTES(text) text, sizeof text - 1

static const struct wire table[] = {
    /* what must pass */
    {"plain get", BYTES(GET "\r\n"), 0, 1},
    {"no headers at all in 1.0", BYTES("GET / HTTP/1.0\r\n\r\n"), 0, 1},
    {"body with length", BYTES(POST "Content-Length: 5\r\n\r\nhello"), 0, 1},
    {"length 0", BYTES(POST "Content-Length: 0\r\n\r\n"), 0, 1},
    {"length with spaces around", BYTES(POST "Content-Length:   5  \r\n\r\nhello"), 0, 1},
    {"length and a tab", BYTES(POST "Content-Length: 5\t\r\n\r\nhello"), 400, 0},
    {"length with leading zeros", BYTES(POST "Content-Length: 0000000005\r\n\r\nhello"), 0, 1},
    {"chunked", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), 0, 1},
    {"many chunks",
     BYTES(POST "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n00A\r\n0123456789\r\n1\r\nb\r\n000\r\n\r\n"), 0, 1},
    {"chunk extension", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5;a=\"b c\";d\r\nhello\r\n0;x\r\n\r\n"), 0, 1},
    {"trailers are dropped", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-T: 1\r\nY:2\r\n\r\n"), 0,
     1},
    {"two in a row", BYTES(GET "\r\n" GET "\r\n"), 0, 2},
    {"body then another", BYTES(POST "Content-Length: 2\r\n\r\nab" GET "\r\n"), 0, 2},
    {"chunked then another", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" GET "\r\n"), 0, 2},
    {"an empty line between", BYTES(GET "\r\n\r\n" GET "\r\n"), 0, 2},
    {"upgrade is ignored",
     BYTES(GET "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n" GET "\r\n"), 0, 2},
    {"empty value", BYTES(GET "X-Empty:\r\nX-Next: 1\r\n\r\n"), 0, 1},
    {"bytes above 0x7f in a value", BYTES(GET "X-Name: \xc3\xa4\r\n\r\n"), 0, 1},
    {"expect", BYTES(POST "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx"), 0, 1},
    {"host with port", BYTES("GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n"), 0, 1},
    {"query", BYTES("GET /health?x=%20y HTTP/1.1\r\nHost: a\r\n\r\n"), 0, 1},
    /* lengths */
    {"length +5", BYTES(POST "Content-Length: +5\r\n\r\nhello"), 400, 0},
    {"length 0x5", BYTES(POST "Content-Length: 0x5\r\n\r\nhello"), 400, 0},
    {"length -1", BYTES(POST "Content-Length: -1\r\n\r\nhello"), 400, 0},
    {"length 5_0", BYTES(POST "Content-Length: 5_0\r\n\r\nhello"), 400, 0},
    {"length 5,5", BYTES(POST "Content-Length: 5,5\r\n\r\nhello"), 400, 0},
    {"length 5, 5", BYTES(POST "Content-Length: 5, 5\r\n\r\nhello"), 400, 0},
    {"length 5 5", BYTES(POST "Content-Length: 5 5\r\n\r\nhello"), 400, 0},
    {"length empty", BYTES(POST "Content-Length:\r\n\r\nhello"), 400, 0},
    {"length blank", BYTES(POST "Content-Length: \r\n\r\nhello"), 400, 0},
    {"length twice", BYTES(POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), 400, 0},
    {"length twice, different", BYTES(POST "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), 400, 0},
    {"length wraps (CVE-2021-40346)", BYTES(POST "Content-Length: 18446744073709551621\r\n\r\nhello"), 400, 0},
    {"length of 20 digits", BYTES(POST "Content-Length: 00000000000000000005\r\n\r\nhello"), 400, 0},
    {"length above the limit", BYTES(POST "Content-Length: 9999999999999999999\r\n\r\n"), 413, 0},
    {"length with an underscore in its name", BYTES(POST "Content_Length: 5\r\n\r\nhello"), 400, 0},
    {"length 5 and vertical tab", BYTES(POST "Content-Length: 5\x0b\r\n\r\nhello"), 400, 0},
    /* encodings */
    {"CL.TE", BYTES(POST "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX" HIDDEN), 400, 0},
    {"TE.CL", BYTES(POST "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" HIDDEN "0\r\n\r\n"), 400, 0},
    {"CL.0: the rest is its own request", BYTES(POST "Content-Length: 0\r\n\r\n" HIDDEN), 0, 2},
    {"chunked and vertical tab", BYTES(POST "Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n"), 400, 0},
    {"vertical tab and chunked",
     BYTES(POST "Transfer-Encoding: \x0b"
                "chunked\r\n\r\n0\r\n\r\n"),
     400, 0},
    {"comma chunked", BYTES(POST "Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n"), 400, 0},
    {"chunked comma", BYTES(POST "Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n"), 400, 0},
    {"xchunked", BYTES(POST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), 400, 0},
    {"gzip, chunked", BYTES(POST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 400, 0},
    {"chunked, identity", BYTES(POST "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), 400, 0},
    {"identity", BYTES(POST "Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\na"), 400, 0},
    {"Chunked", BYTES(POST "Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n"), 400, 0},
    {"quoted", BYTES(POST "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"), 400, 0},
    {"chunked twice", BYTES(POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400, 0},
    {"chunked then identity", BYTES(POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
     400, 0},
    {"empty encoding", BYTES(POST "Transfer-Encoding:\r\n\r\n0\r\n\r\n"), 400, 0},
    {"chunked on 1.0", BYTES("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400, 0},
    {"space before the colon", BYTES(POST "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"), 400, 0},
    {"underscore in its name", BYTES(POST "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n"), 400, 0},
    {"folded encoding", BYTES(POST "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"), 400, 0},
    /* lines */
    {"folded header", BYTES(GET "X-A: 1\r\n 2\r\n\r\n"), 400, 0},
    {"folded by tab", BYTES(GET "X-A: 1\r\n\t2\r\n\r\n"), 400, 0},
    {"first header folded", BYTES("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), 400, 0},
    {"LF after the request line", BYTES("GET / HTTP/1.1\nHost: a\r\n\r\n"), 400, 0},
    {"LF after a header", BYTES("GET / HTTP/1.1\r\nHost: a\n\r\n"), 400, 0},
    {"LF ends the head", BYTES("GET / HTTP/1.1\r\nHost: a\r\n\n"), 400, 0},
    {"CR in a value", BYTES(GET "X-A: 1\r2\r\n\r\n"), 400, 0},
    {"CR after an empty value (CVE-2023-30589)", BYTES(POST "X-A:\rContent-Length: 5\r\n\r\nhello"), 400, 0},
    {"CR CR LF", BYTES(GET "X-A: 1\r\r\n\r\n"), 400, 0},
    {"CR in the request line", BYTES("GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"NUL in a value", BYTES(GET "X-A: 1\0002\r\n\r\n"), 400, 0},
    {"NUL in a name", BYTES(GET "X\000A: 1\r\n\r\n"), 400, 0},
    {"NUL in the target", BYTES("GET /\000 HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"NUL first", BYTES("\000GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"DEL in a value", BYTES(GET "X-A: \x7f\r\n\r\n"), 400, 0},
    {"no name", BYTES(GET ": 1\r\n\r\n"), 400, 0},
    {"no colon", BYTES(GET "X-A\r\n\r\n"), 400, 0},
    {"space in a name", BYTES(GET "X A: 1\r\n\r\n"), 400, 0},
    {"bracket in a name", BYTES(GET "X(A): 1\r\n\r\n"), 400, 0},
    {"byte above 0x7f in a name", BYTES(GET "X\xc3\xa4: 1\r\n\r\n"), 400, 0},
    /* request line */
    {"two spaces", BYTES("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"space after the version", BYTES("GET / HTTP/1.1 \r\nHost: a\r\n\r\n"), 400, 0},
    {"leading space", BYTES(" GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"tab as separator", BYTES("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"version 1.2", BYTES("GET / HTTP/1.2\r\nHost: a\r\n\r\n"), 400, 0},
    {"version 2.0", BYTES("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 400, 0},
    {"version 1.10", BYTES("GET / HTTP/1.10\r\nHost: a\r\n\r\n"), 400, 0},
    {"no version", BYTES("GET /\r\n\r\n"), 400, 0},
    {"lower-case version", BYTES("GET / http/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"HTTP/2 preface", BYTES("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 400, 0},
    {"TLS hello", BYTES("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400, 0},
    {"lower-case method", BYTES("get / HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"unknown method", BYTES("FROB / HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"connect", BYTES("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"absolute form", BYTES("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"asterisk", BYTES("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"fragment", BYTES("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"two empty lines before", BYTES("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    {"LF before", BYTES("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400, 0},
    /* Host (CVE-2026-48746) */
    {"no host", BYTES("GET / HTTP/1.1\r\n\r\n"), 400, 0},
    {"two hosts", BYTES("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), 400, 0},
    {"two hosts on 1.0", BYTES("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), 400, 0},
    {"empty host", BYTES("GET / HTTP/1.1\r\nHost:\r\n\r\n"), 400, 0},
    {"host with a path", BYTES("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), 400, 0},
    {"host with a query", BYTES("GET / HTTP/1.1\r\nHost: a?b\r\n\r\n"), 400, 0},
    {"host with a user", BYTES("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"), 400, 0},
    {"host with a space", BYTES("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), 400, 0},
    /* chunks */
    {"chunk size +5", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"chunk size 0x5", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"chunk size -1", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"chunk size 5_0", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5_0\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"chunk size 5,5", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5,5\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"chunk size empty", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"chunk size with a leading space", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n"), 400,
     0},
    {"chunk size with a trailing space", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n"), 400,
     0},
    {"chunk size wraps", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n"), 400,
     0},
    {"chunk size of 16 digits", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n0000000000000005\r\nhello\r\n0\r\n\r\n"),
     400, 0},
    {"chunk above the limit", BYTES(POST "Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\nhello"), 413, 0},
    {"LF after a size", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"), 400, 0},
    {"LF in an extension (CVE-2025-55315)", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n"),
     400, 0},
    {"CR in an extension", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"NUL in an extension", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5;\000\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"data longer than its size", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"), 400, 0},
    {"data shorter than its size", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n6\r\nhello\r\n0\r\n\r\n"), 400, 0},
    {"LF after data", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n"), 400, 0},
    {"LF ends the last chunk", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\n"), 400, 0},
    {"folded trailer", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n 2\r\n\r\n"), 400, 0},
    {"length as a trailer", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n"), 400, 0},
    {"host as a trailer", BYTES(POST "Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n"), 400, 0},
    {"expect something else", BYTES(POST "Expect: 200-ok\r\nContent-Length: 1\r\n\r\nx"), 400, 0},
};

static void test_http_request_framing_cases(void **state)
{
    (void)state;
    int failures = 0;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct outcome whole;
        read_all(table[i].bytes, table[i].length, NULL, 0, &whole);
        if (whole.refused_code != table[i].refused || whole.complete != table[i].complete)
            print_error("%s: refused %d, expected %d; complete %u, expected %u\n", table[i].name, whole.refused_code,
                        table[i].refused, whole.complete, table[i].complete);
        failures += whole.refused_code != table[i].refused || whole.complete != table[i].complete;
    }
    assert_int_equal(failures, 0);
}

static void test_http_request_every_cut_gives_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct outcome whole, pieces;
        read_all(table[i].bytes, table[i].length, NULL, 0, &whole);
        for (size_t cut = 0; cut <= table[i].length; cut++) {
            read_all(table[i].bytes, table[i].length, &cut, 1, &pieces);
            compare(table[i].name, cut, &whole, &pieces);
        }
        size_t cuts[512];
        assert_true(table[i].length < 512);
        for (size_t cut = 0; cut < table[i].length; cut++) cuts[cut] = cut;
        read_all(table[i].bytes, table[i].length, cuts, table[i].length, &pieces); /* byte by byte */
        compare(table[i].name, SIZE_MAX, &whole, &pieces);
    }
}

/* A request whose part `which` has exactly `size` bytes, into out. */
enum part { REQUEST_LINE, ONE_HEADER, ALL_HEADERS, HEADER_COUNT, BODY_LENGTH, BODY_CHUNKED, EXTENSION };

static void append_repeated(struct buf *out, char c, size_t count)
{
    for (size_t i = 0; i < count; i++) buf_append_char(out, c);
}

static void make_sized(struct buf *out, enum part which, size_t size)
{
    buf_clear(out);
    if (which == REQUEST_LINE) {
        buf_append_text(out, "GET /");
        append_repeated(out, 'a', size - strlen("GET / HTTP/1.1"));
        buf_append_text(out, " HTTP/1.1\r\nHost: a\r\n\r\n");
    } else if (which == ONE_HEADER) {
        buf_append_text(out, GET "X: ");
        append_repeated(out, 'a', size - 3);
        buf_append_text(out, "\r\n\r\n");
    } else if (which == ALL_HEADERS) { /* each line with its CRLF; Host has 9 */
        size_t left = size - 9;
        buf_append_text(out, GET);
        while (left > 0) {
            size_t line = left > 2000 ? 1000 : left;
            buf_append_text(out, "X: ");
            append_repeated(out, 'a', line - 5);
            buf_append_text(out, "\r\n");
            left -= line;
        }
        buf_append_text(out, "\r\n");
    } else if (which == HEADER_COUNT) {
        buf_append_text(out, GET);
        for (size_t i = 1; i < size; i++) buf_append_text(out, "X: a\r\n");
        buf_append_text(out, "\r\n");
    } else if (which == BODY_LENGTH) {
        buf_append_format(out, POST "Content-Length: %zu\r\n\r\n", size);
        append_repeated(out, 'a', size);
    } else if (which == BODY_CHUNKED) {
        buf_append_format(out, POST "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n%zx\r\n", size - 1);
        append_repeated(out, 'a', size - 1);
        buf_append_text(out, "\r\n0\r\n\r\n");
    } else {
        buf_append_text(out, POST "Transfer-Encoding: chunked\r\n\r\n1;");
        append_repeated(out, 'e', size);
        buf_append_text(out, "\r\na\r\n0\r\n\r\n");
    }
    assert_true(buf_ok(out));
}

static void test_http_request_limits_at_their_edges(void **state)
{
    (void)state;
    limits.http_body_bytes = 4096;
    const struct {
        enum part which;
        const uint64_t *limit;
        int code;
    } parts[] = {
        {REQUEST_LINE, &limits.http_request_line_bytes, 414}, {ONE_HEADER, &limits.http_header_bytes, 431},
        {ALL_HEADERS, &limits.http_headers_bytes, 431},       {HEADER_COUNT, &limits.http_headers, 431},
        {BODY_LENGTH, &limits.http_body_bytes, 413},          {BODY_CHUNKED, &limits.http_body_bytes, 413},
        {EXTENSION, &limits.http_chunk_extension_bytes, 400},
    };
    struct buf bytes;
    buf_init(&bytes, 0);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const size_t limit = (size_t)*parts[i].limit, sizes[] = {limit - 1, limit, limit + 1, 10 * limit};
        for (size_t k = 0; k < 4; k++) {
            struct outcome outcome;
            make_sized(&bytes, parts[i].which, sizes[k]);
            read_all(bytes.data, bytes.length, NULL, 0, &outcome);
            int expected = sizes[k] <= limit ? 0 : parts[i].code;
            if (outcome.refused_code != expected)
                fail_msg("part %d of %zu bytes, limit %zu: %d, expected %d", parts[i].which, sizes[k], limit,
                         outcome.refused_code, expected);
        }
    }
    buf_free(&bytes);
    limits.http_body_bytes = 16777216;
}

static void test_http_request_headers_are_found(void **state)
{
    (void)state;
    static const char bytes[] =
        "POST /a/b?c=d HTTP/1.1\r\nHOST: a:1\r\nX-Two: 1\r\nx-two:   2  \r\nEmpty:\r\nContent-Length: 3\r\n\r\nabc";
    struct http_request *request = http_request_create();
    struct http_parser parser;
    size_t used, count = sizeof bytes - 1;
    http_parser_begin(&parser, request);
    assert_int_equal(http_parser_feed(&parser, bytes, count, &used), HTTP_HEAD_READ);
    assert_int_equal(http_parser_feed(&parser, bytes + used, count - used, &used), HTTP_REQUEST_READ);
    uint32_t matches;
    assert_string_equal(request->method, "POST");
    assert_string_equal(http_request_target(request), "/a/b?c=d");
    assert_int_equal(request->path_length, 4);
    assert_string_equal(http_request_header(request, "host", NULL), "a:1");
    assert_string_equal(http_request_header(request, "x-two", &matches), "1");
    assert_int_equal(matches, 2);
    assert_string_equal(http_request_header(request, "empty", &matches), "");
    assert_int_equal(matches, 1);
    assert_null(http_request_header(request, "absent", &matches));
    assert_int_equal(matches, 0);
    assert_int_equal(request->body.length, 3);
    assert_memory_equal(request->body.data, "abc", 3);
    http_request_destroy(request);
}

static void test_http_request_keep_alive(void **state)
{
    (void)state;
    const struct {
        const char *bytes;
        bool keep;
    } cases[] = {
        {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, Close\r\n\r\n", false},
        {"GET / HTTP/1.0\r\n\r\n", false},
        {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct http_request *request = http_request_create();
        struct http_parser parser;
        size_t used;
        http_parser_begin(&parser, request);
        assert_int_equal(http_parser_feed(&parser, cases[i].bytes, strlen(cases[i].bytes), &used), HTTP_HEAD_READ);
        assert_int_equal(request->keep_alive, cases[i].keep);
        http_request_destroy(request);
    }
}

/* A million one-byte chunks: flat stack, memory of the body alone. */
static void test_http_request_one_byte_chunks(void **state)
{
    (void)state;
    struct http_request *request = http_request_create();
    struct http_parser parser;
    size_t used;
    http_parser_begin(&parser, request);
    static const char head[] = POST "Transfer-Encoding: chunked\r\n\r\n";
    assert_int_equal(http_parser_feed(&parser, head, sizeof head - 1, &used), HTTP_HEAD_READ);
    for (int i = 0; i < 1000000; i++) assert_int_equal(http_parser_feed(&parser, "1\r\nx\r\n", 6, &used), HTTP_MORE);
    assert_int_equal(http_parser_feed(&parser, "0\r\n\r\n", 5, &used), HTTP_REQUEST_READ);
    assert_int_equal(request->body.length, 1000000);
    http_request_destroy(request);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_request_framing_cases),
        cmocka_unit_test(test_http_request_every_cut_gives_the_same),
        cmocka_unit_test(test_http_request_limits_at_their_edges),
        cmocka_unit_test(test_http_request_headers_are_found),
        cmocka_unit_test(test_http_request_keep_alive),
        cmocka_unit_test(test_http_request_one_byte_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
