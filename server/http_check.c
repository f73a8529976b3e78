/* A byte-wise state machine; http_check.h has the grammar. Each group of states is one function: request line, header
 * lines, chunk lines; the bytes of a body are skipped in bulk.
 *
 *   START -> METHOD -> TARGET -> VERSION -> LINE_LF -> HEADER_START <-> (NAME -> VALUE_START -> VALUE -> VALUE_LF)
 *   HEADER_START -> HEAD_LF -> HEAD_END -> BODY | CHUNK_SIZE | END
 *   CHUNK_SIZE -> [CHUNK_EXT] -> CHUNK_SIZE_LF -> CHUNK_DATA -> CHUNK_DATA_CR -> CHUNK_DATA_LF -> CHUNK_SIZE
 *   last chunk: CHUNK_SIZE_LF -> HEADER_START (trailing) -> HEAD_LF -> END */
#include "server/http_check.h"

#include "runtime/base/limits.h"

#include <string.h>

enum state {
    START,
    START_LF,
    METHOD,
    TARGET_START,
    TARGET,
    VERSION,
    LINE_LF,
    HEADER_START,
    NAME,
    VALUE_START,
    VALUE,
    VALUE_LF,
    HEAD_LF,
    HEAD_END,
    BODY,
    CHUNK_SIZE,
    CHUNK_EXT,
    CHUNK_SIZE_LF,
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    END,
    REFUSED
};

enum header_kind { HEADER_OTHER, HEADER_LENGTH, HEADER_ENCODING, HEADER_HOST };

enum { METHOD_BYTES_MAX = 20, LENGTH_DIGITS_MAX = 19, CHUNK_DIGITS_MAX = 15 };

void http_check_init(struct http_check *check)
{
    *check = (struct http_check){.state = START, .body_max = limits.http_body_bytes};
}

static bool refuse(struct http_check *check, int http_code, const char *reason)
{
    check->http_code = http_code;
    check->reason = reason;
    check->state = REFUSED;
    return false;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}
static bool is_alpha(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* RFC 9110 5.6.2 */
static bool is_token(char c)
{
    return is_digit(c) || is_alpha(c) || (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

/* RFC 3986 3.2.2 and 3.2.3, without user information */
static bool is_host(char c)
{
    return is_digit(c) || is_alpha(c) || (c != '\0' && strchr("-._~%!$&'()*+,;=:[]", c) != NULL);
}

static bool is_value(char c)
{
    return c == '\t' || (unsigned char)c >= 0x80 || (c >= 0x20 && c != 0x7f);
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 'a' - 'A') : c;
}

static bool line_byte(struct http_check *check, char c)
{
    static const char version[] = "HTTP/1.";
    if (++check->line_bytes > limits.http_request_line_bytes + 2)
        return refuse(check, 414, "the request line is too long");
    switch ((enum state)check->state) {
    case METHOD:
        if (c == ' ' && check->line_bytes > 1)
            check->state = TARGET_START;
        else if (!((c >= 'A' && c <= 'Z') || c == '-') || check->line_bytes > METHOD_BYTES_MAX)
            return refuse(check, 400, "the method is not one");
        break;
    case TARGET_START:
        if (c != '/') return refuse(check, 400, "the request target must start with a slash");
        check->state = TARGET;
        break;
    case TARGET:
        if (c == ' ') {
            check->state = VERSION;
            check->digits = 0;
        } else if ((unsigned char)c <= 0x20 || (unsigned char)c >= 0x7f || c == '#')
            return refuse(check, 400, "the request target has a character that must be encoded");
        break;
    case VERSION:
        if (check->digits < sizeof version - 1) {
            if (c != version[check->digits++])
                return refuse(check, 400, "the protocol version must be HTTP/1.1 or 1.0");
        } else if (check->digits == sizeof version - 1) {
            if (c != '0' && c != '1') return refuse(check, 400, "the protocol version must be HTTP/1.1 or 1.0");
            check->http10 = c == '0';
            check->digits++;
        } else {
            if (c != '\r') return refuse(check, 400, "the request line does not end after its version");
            check->state = LINE_LF;
        }
        break;
    default: /* LINE_LF */
        if (c != '\n') return refuse(check, 400, "a carriage return without a line feed");
        check->state = HEADER_START;
        break;
    }
    return true;
}

static bool header_name_end(struct http_check *check)
{
    static const struct {
        const char *name;
        uint8_t kind;
    } known[] = {{"content-length", HEADER_LENGTH}, {"transfer-encoding", HEADER_ENCODING}, {"host", HEADER_HOST}};
    check->header_kind = HEADER_OTHER;
    check->value_length = 0;
    check->value_spaced = check->value_full = false;
    check->state = VALUE_START;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        size_t length = strlen(known[i].name);
        if (check->name_length != length) continue;
        bool same = true, alike = true;
        for (size_t k = 0; k < length; k++) {
            same = same && check->name[k] == known[i].name[k];
            alike = alike && (check->name[k] == '_' ? '-' : check->name[k]) == known[i].name[k];
        }
        if (alike && !same) return refuse(check, 400, "a header looks like a framing header");
        if (same) check->header_kind = known[i].kind;
    }
    if (check->header_kind != HEADER_OTHER && check->trailing)
        return refuse(check, 400, "a framing header among the trailers");
    return true;
}

static bool length_header(struct http_check *check)
{
    if (check->has_length) return refuse(check, 400, "more than one Content-Length");
    if (check->value_length == 0 || check->value_length > LENGTH_DIGITS_MAX || check->value_full || check->value_spaced)
        return refuse(check, 400, "Content-Length must be 1 to 19 digits");
    uint64_t length = 0;
    for (uint8_t i = 0; i < check->value_length; i++) {
        if (!is_digit(check->value[i])) return refuse(check, 400, "Content-Length must be 1 to 19 digits");
        length = length * 10 + (uint64_t)(check->value[i] - '0'); /* 19 digits fit 64 bits */
    }
    check->has_length = true;
    check->content_length = length;
    return true;
}

static bool encoding_header(struct http_check *check)
{
    if (check->chunked) return refuse(check, 400, "more than one Transfer-Encoding");
    if (check->value_full || check->value_spaced || check->value_length != 7 || memcmp(check->value, "chunked", 7) != 0)
        return refuse(check, 400, "Transfer-Encoding must be exactly chunked");
    check->chunked = true;
    return true;
}

static bool header_value_end(struct http_check *check)
{
    check->state = HEADER_START;
    if (check->header_kind == HEADER_LENGTH) return length_header(check);
    if (check->header_kind == HEADER_ENCODING) return encoding_header(check);
    if (check->header_kind == HEADER_HOST) {
        if (check->seen_host) return refuse(check, 400, "more than one Host");
        if (check->value_length == 0) return refuse(check, 400, "Host is empty");
        check->seen_host = true;
    }
    return true;
}

/* A byte of a value: kept for the framing headers; anything after inner white space is marked. */
static bool value_byte(struct http_check *check, char c)
{
    if (!is_value(c)) return refuse(check, 400, "a header value has a control character");
    if (check->header_kind == HEADER_OTHER) return true;
    if (c == ' ' || c == '\t') {
        check->value_gap = 1; /* white space that is legal only at the end */
        return true;
    }
    if (check->value_gap) check->value_spaced = true;
    if (check->header_kind == HEADER_HOST && (!is_host(c) || check->value_spaced))
        return refuse(check, 400, "Host is not a host and a port");
    if (check->value_length < sizeof check->value)
        check->value[check->value_length++] = c;
    else
        check->value_full = true;
    return true;
}

static bool head_end(struct http_check *check)
{
    check->state = check->trailing ? END : HEAD_END;
    if (check->trailing) return true;
    if (!check->seen_host && !check->http10) return refuse(check, 400, "Host is missing");
    if (check->chunked && check->has_length) return refuse(check, 400, "Content-Length beside Transfer-Encoding");
    if (check->chunked && check->http10) return refuse(check, 400, "Transfer-Encoding needs HTTP/1.1");
    if (check->has_length && check->content_length > check->body_max)
        return refuse(check, 413, "the request body is too large");
    return true;
}

static bool header_byte(struct http_check *check, char c)
{
    if (++check->headers_bytes > limits.http_headers_bytes + 2) return refuse(check, 431, "the headers are too large");
    check->line_bytes++;
    switch ((enum state)check->state) {
    case HEADER_START:
        check->line_bytes = 1;
        check->name_length = 0;
        if (c == '\r') {
            check->state = HEAD_LF;
            return true;
        }
        if (c == ' ' || c == '\t') return refuse(check, 400, "a header line is folded");
        if (++check->headers > limits.http_headers) return refuse(check, 431, "there are too many headers");
        check->state = NAME;
        /* fall through */
    case NAME:
        if (c == ':') {
            if (check->line_bytes == 1) return refuse(check, 400, "a header has no name");
            return header_name_end(check);
        }
        if (!is_token(c)) return refuse(check, 400, "a header name has a character that names may not have");
        if (check->name_length < sizeof check->name) check->name[check->name_length] = lower(c);
        if (check->name_length < UINT8_MAX) check->name_length++;
        break;
    case VALUE_START:
        if (c == ' ' || c == '\t') break;
        check->state = VALUE;
        check->value_gap = 0;
        /* fall through */
    case VALUE:
        if (c == '\r')
            check->state = VALUE_LF;
        else if (!value_byte(check, c))
            return false;
        break;
    case VALUE_LF:
        if (c != '\n') return refuse(check, 400, "a carriage return without a line feed");
        return header_value_end(check);
    default: /* HEAD_LF */
        if (c != '\n') return refuse(check, 400, "a carriage return without a line feed");
        return head_end(check);
    }
    if (check->state != VALUE_LF && check->line_bytes > limits.http_header_bytes)
        return refuse(check, 431, "a header is too large");
    return true;
}

static int hex_value(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool chunk_size_byte(struct http_check *check, char c)
{
    int digit = hex_value(c);
    if (digit >= 0) {
        if (++check->digits > CHUNK_DIGITS_MAX) return refuse(check, 400, "a chunk size is too long");
        check->remaining = check->remaining << 4 | (uint64_t)digit;
        return true;
    }
    if (check->digits == 0) return refuse(check, 400, "a chunk size must be hex digits");
    check->extension_bytes = 0;
    if (c == ';')
        check->state = CHUNK_EXT;
    else if (c == '\r')
        check->state = CHUNK_SIZE_LF;
    else
        return refuse(check, 400, "a chunk size must be hex digits");
    return true;
}

static bool chunk_byte(struct http_check *check, char c)
{
    switch ((enum state)check->state) {
    case CHUNK_SIZE: return chunk_size_byte(check, c);
    case CHUNK_EXT:
        if (c == '\r')
            check->state = CHUNK_SIZE_LF;
        else if (c != '\t' && (c < 0x20 || c == 0x7f)) /* also refuses bytes above 0x7f */
            return refuse(check, 400, "a chunk extension has a character that it may not have");
        else if (++check->extension_bytes > limits.http_chunk_extension_bytes)
            return refuse(check, 400, "a chunk extension is too long");
        return true;
    case CHUNK_SIZE_LF:
        if (c != '\n') return refuse(check, 400, "a carriage return without a line feed");
        if (check->remaining > check->body_max - check->body_bytes)
            return refuse(check, 413, "the request body is too large");
        check->state = check->remaining > 0 ? CHUNK_DATA : HEADER_START;
        check->trailing = check->remaining == 0;
        return true;
    case CHUNK_DATA_CR:
        if (c != '\r') return refuse(check, 400, "chunk data does not end where its size says");
        check->state = CHUNK_DATA_LF;
        return true;
    default: /* CHUNK_DATA_LF */
        if (c != '\n') return refuse(check, 400, "chunk data does not end where its size says");
        check->state = CHUNK_SIZE;
        check->digits = 0;
        check->remaining = 0;
        return true;
    }
}

/* The byte before a message: one empty line is tolerated between requests (RFC 9112 2.2). */
static bool start_byte(struct http_check *check, char c)
{
    if (check->state == START_LF) {
        if (c != '\n') return refuse(check, 400, "a carriage return without a line feed");
        check->state = METHOD;
        return true;
    }
    if (c == '\r') {
        check->state = START_LF;
        return true;
    }
    check->state = METHOD;
    return line_byte(check, c);
}

static size_t body_bytes(struct http_check *check, size_t available)
{
    size_t take = available < check->remaining ? available : (size_t)check->remaining;
    check->remaining -= take;
    check->body_bytes += take;
    if (check->remaining == 0) check->state = check->state == BODY ? END : CHUNK_DATA_CR;
    return take;
}

static void leave_head(struct http_check *check)
{
    check->remaining = check->has_length ? check->content_length : 0;
    check->digits = 0;
    if (check->chunked)
        check->state = CHUNK_SIZE;
    else
        check->state = check->remaining > 0 ? BODY : END;
}

enum http_check_result http_check_feed(struct http_check *check, const char *data, size_t length, size_t *consumed)
{
    size_t i = 0;
    if (check->state == HEAD_END) leave_head(check);
    while (i < length && check->state < END && check->state != HEAD_END) {
        enum state state = (enum state)check->state;
        if (state == BODY || state == CHUNK_DATA) {
            i += body_bytes(check, length - i);
            continue;
        }
        bool ok;
        if (state <= START_LF)
            ok = start_byte(check, data[i]);
        else if (state <= LINE_LF)
            ok = line_byte(check, data[i]);
        else if (state <= HEAD_LF)
            ok = header_byte(check, data[i]);
        else
            ok = chunk_byte(check, data[i]);
        if (!ok) break;
        i++;
    }
    *consumed = i;
    if (check->state == REFUSED) return HTTP_CHECK_REFUSED;
    if (check->state == HEAD_END) return HTTP_CHECK_HEAD_END;
    return check->state == END ? HTTP_CHECK_MESSAGE_END : HTTP_CHECK_MORE;
}
