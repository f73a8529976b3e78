/* A bounded HTTP call; see http_call.h. */
#include "server/billing/http_call.h"

#include <curl/curl.h>
#include <string.h>

enum status http_call_open(struct http_call *call, struct error *err)
{
    *call = (struct http_call){.curl = curl_easy_init()};
    return call->curl ? ST_OK : error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
}

void http_call_close(struct http_call *call)
{
    if (call->curl) curl_easy_cleanup(call->curl);
    call->curl = NULL;
}

static size_t on_bytes(char *data, size_t size, size_t count, void *state)
{
    struct buf *answer = state;
    buf_append(answer, data, size * count);
    return buf_ok(answer) ? size * count : 0; /* ends the call */
}

static enum status status_of(CURLcode code, const struct buf *answer)
{
    switch (code) {
    case CURLE_OPERATION_TIMEDOUT: return ST_TIMEOUT;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL: return ST_INVAL;
    case CURLE_OUT_OF_MEMORY: return ST_NOMEM;
    case CURLE_WRITE_ERROR: return buf_ok(answer) ? ST_IO : ST_LIMIT;
    default: return ST_IO;
    }
}

/* Nothing that could end a header line. */
static bool is_clean(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x21 || *text == 0x7f) return false;
    return true;
}

static enum status add_header(struct curl_slist **headers, const char *line)
{
    struct curl_slist *more = curl_slist_append(*headers, line);
    if (!more) return ST_NOMEM;
    *headers = more;
    return ST_OK;
}

static enum status add_value(struct curl_slist **headers, const char *name, const char *value)
{
    struct buf line;
    buf_init(&line, 0);
    buf_append_text(&line, name);
    buf_append_text(&line, value);
    buf_append_char(&line, '\0');
    enum status status = buf_ok(&line) ? add_header(headers, line.data) : ST_NOMEM;
    if (line.data) memset(line.data, 0, line.capacity);
    buf_free(&line);
    return status;
}

static enum status add_headers(const struct http_call *call, const char *json, struct curl_slist **headers)
{
    if (json) TRY(add_header(headers, "Content-Type: application/json"));
    TRY(add_header(headers, "Expect:")); /* no waiting for 100 */
    if (call->bearer) TRY(add_value(headers, "Authorization: Bearer ", call->bearer));
    return call->idempotency_key ? add_value(headers, "Idempotency-Key: ", call->idempotency_key) : ST_OK;
}

static CURLcode perform(struct http_call *call, const char *url, const char *json, struct curl_slist *headers,
                        struct buf *answer, char *message)
{
    CURL *curl = call->curl;
    long limit_ms = call->timeout_ms ? (long)call->timeout_ms : HTTP_CALL_TIMEOUT_MS;
    curl_easy_reset(curl);
    CURLcode code = curl_easy_setopt(curl, CURLOPT_URL, url);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    code = code ? code : curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_bytes);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, message);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, limit_ms);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_PROXY, ""); /* keys go to the server named, nowhere else */
    code = code ? code : curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
    code = code ? code : curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
    if (call->ca_file) code = code ? code : curl_easy_setopt(curl, CURLOPT_CAINFO, call->ca_file);
    if (json) {
        code = code ? code : curl_easy_setopt(curl, CURLOPT_POSTFIELDS, json);
        code = code ? code : curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)strlen(json));
    }
    return code ? code : curl_easy_perform(curl);
}

enum status http_call_run(struct http_call *call, const char *base, const char *path, const char *json, int *status,
                          struct buf *answer, struct error *err)
{
    char message[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = NULL;
    struct buf url;
    long http_status = 0;
    size_t length = strlen(base);
    if ((call->bearer && !is_clean(call->bearer)) || (call->idempotency_key && !is_clean(call->idempotency_key)))
        return error_set(err, ST_INVAL, "the key has white space or control characters in it");
    while (length > 0 && base[length - 1] == '/') length--;
    buf_init(&url, 0);
    buf_append(&url, base, length);
    buf_append_text(&url, path);
    buf_append_char(&url, '\0');
    buf_clear(answer);
    answer->limit = HTTP_CALL_ANSWER_BYTES_MAX;
    enum status result = buf_ok(&url) ? add_headers(call, json, &headers) : ST_NOMEM;
    if (result == ST_OK) {
        CURLcode code = perform(call, url.data, json, headers, answer, message);
        if (code == CURLE_OK) code = curl_easy_getinfo(call->curl, CURLINFO_RESPONSE_CODE, &http_status);
        if (code != CURLE_OK) {
            result = status_of(code, answer);
            (void)error_set(err, result, "%.200s: %.200s", base, *message ? message : curl_easy_strerror(code));
        }
    } else {
        (void)error_set(err, result, "%s", status_text(result));
    }
    curl_slist_free_all(headers);
    buf_free(&url);
    if (result == ST_OK) *status = (int)http_status;
    return result;
}
