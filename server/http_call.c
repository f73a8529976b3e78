/* A bounded HTTP call; see http_call.h. */
#include "server/http_call.h"

#include <curl/curl.h>
#include <stdio.h>
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
    case CURLE_ABORTED_BY_CALLBACK: return ST_CANCELED;
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

static enum status add_headers(const struct http_call *call, const char *body, struct curl_slist **headers)
{
    if (body) TRY(add_value(headers, "Content-Type: ", call->content_type ? call->content_type : "application/json"));
    TRY(add_header(headers, "Expect:")); /* no waiting for 100 */
    if (call->bearer) TRY(add_value(headers, "Authorization: Bearer ", call->bearer));
    if (call->etag) TRY(add_value(headers, "If-None-Match: ", call->etag));
    if (call->header) {
        char name[128];
        if (snprintf(name, sizeof name, "%s: ", call->header) >= (int)sizeof name) return ST_INVAL;
        TRY(add_value(headers, name, call->value));
    }
    return call->idempotency_key ? add_value(headers, "Idempotency-Key: ", call->idempotency_key) : ST_OK;
}

static int on_progress(void *state, curl_off_t down_total, curl_off_t down, curl_off_t up_total, curl_off_t up)
{
    const atomic_bool *cancel = state;
    (void)down_total, (void)down, (void)up_total, (void)up;
    return atomic_load(cancel); /* not 0 ends the call */
}

static CURLcode set_who(struct http_call *call)
{
    CURLcode code = CURLE_OK;
    if (call->user && !call->bearer) {
        code = curl_easy_setopt(call->curl, CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
        code = code ? code : curl_easy_setopt(call->curl, CURLOPT_USERNAME, call->user);
        code = code ? code : curl_easy_setopt(call->curl, CURLOPT_PASSWORD, call->password ? call->password : "");
    }
    if (call->cancel) {
        code = code ? code : curl_easy_setopt(call->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
        code = code ? code : curl_easy_setopt(call->curl, CURLOPT_XFERINFODATA, call->cancel);
        code = code ? code : curl_easy_setopt(call->curl, CURLOPT_NOPROGRESS, 0L);
    }
    return code;
}

static CURLcode perform(struct http_call *call, const char *url, const char *body, struct curl_slist *headers,
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
    if (body) {
        code = code ? code : curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
        code = code ? code : curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)strlen(body));
    }
    code = code ? code : set_who(call);
    return code ? code : curl_easy_perform(curl);
}

static CURLcode read_head(struct http_call *call, long *http_status)
{
    curl_off_t retry_after_s = 0;
    struct curl_header *etag;
    CURLcode code = curl_easy_getinfo(call->curl, CURLINFO_RESPONSE_CODE, http_status);
    code = code ? code : curl_easy_getinfo(call->curl, CURLINFO_RETRY_AFTER, &retry_after_s);
    if (code == CURLE_OK && retry_after_s > 0) call->retry_after_s = retry_after_s;
    if (curl_easy_header(call->curl, "ETag", 0, CURLH_HEADER, -1, &etag) == CURLHE_OK) {
        size_t length = strlen(etag->value);
        if (length < sizeof call->answer_etag && is_clean(etag->value))
            memcpy(call->answer_etag, etag->value, length + 1);
    }
    return code;
}

static bool values_are_clean(const struct http_call *call)
{
    const char *values[] = {call->bearer, call->idempotency_key, call->header ? call->value : NULL, call->etag};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (values[i] && !is_clean(values[i])) return false;
    return true;
}

enum status http_call_run(struct http_call *call, const char *base, const char *path, const char *body, int *status,
                          struct buf *answer, struct error *err)
{
    char message[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = NULL;
    struct buf url;
    long http_status = 0;
    size_t length = strlen(base);
    call->retry_after_s = 0;
    call->answer_etag[0] = '\0';
    if (!values_are_clean(call)) return error_set(err, ST_INVAL, "the key has white space or control characters in it");
    while (*path && length > 0 && base[length - 1] == '/') length--;
    buf_init(&url, 0);
    buf_append(&url, base, length);
    buf_append_text(&url, path);
    buf_append_char(&url, '\0');
    buf_clear(answer);
    answer->limit = call->answer_bytes_max ? call->answer_bytes_max : HTTP_CALL_ANSWER_BYTES_MAX;
    enum status result = buf_ok(&url) ? add_headers(call, body, &headers) : ST_NOMEM;
    if (result == ST_OK) {
        CURLcode code = perform(call, url.data, body, headers, answer, message);
        if (code == CURLE_OK) code = read_head(call, &http_status);
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
