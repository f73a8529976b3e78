/* Refusals as OpenAI writes them. The table of types and codes is in the design "api-and-ecosystem", section 2; see
 * api.h. */
#include "server/api.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int api_error_set(struct api_error *error, int http_status, const char *type, const char *code, const char *param,
                  const char *format, ...)
{
    *error = (struct api_error){.http_status = http_status, .type = type, .code = code};
    if (param) snprintf(error->param, sizeof error->param, "%s", param);
    va_list args;
    va_start(args, format);
    vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    return http_status;
}

void api_error_body(const struct api_error *error, struct buf *out)
{
    buf_append_text(out, "{\"error\":{\"message\":");
    buf_append_json_string(out, error->message, strlen(error->message));
    buf_append_text(out, ",\"type\":");
    buf_append_json_string(out, error->type, strlen(error->type));
    buf_append_text(out, ",\"param\":");
    if (error->param[0])
        buf_append_json_string(out, error->param, strlen(error->param));
    else
        buf_append_text(out, "null");
    buf_append_text(out, ",\"code\":");
    if (error->code)
        buf_append_json_string(out, error->code, strlen(error->code));
    else
        buf_append_text(out, "null");
    buf_append_text(out, "}}");
}

void api_error_from_status(enum status status, uint32_t retry_after_ms, struct api_error *error)
{
    static const char server[] = "server_error";
    switch (status) {
    case ST_QUOTA:
        api_error_set(error, 429, "requests", "rate_limit_exceeded", NULL,
                      "Rate limit reached: too many requests of this account are waiting. Please try again later.");
        break;
    case ST_INVAL:
        api_error_set(
            error, 400, "invalid_request_error", NULL, NULL,
            "The request needs more KV cache than this server has. Please reduce the prompt, max_tokens or n.");
        return;
    case ST_TIMEOUT:
        api_error_set(error, 504, server, "deadline_exceeded", NULL, "The request did not finish before its deadline.");
        return;
    case ST_CANCELED:
        api_error_set(error, 503, server, "draining", NULL, "The server is shutting down. Please try again.");
        break;
    case ST_LIMIT:
    case ST_AGAIN:
    case ST_NOMEM:
        api_error_set(error, 503, server, "overloaded", NULL, "The server is overloaded. Please try again later.");
        break;
    case ST_OK:
    case ST_PROTO:
    case ST_IO:
    case ST_NOTFOUND:
    case ST_DEVICE:
        api_error_set(error, 500, server, "internal_error", NULL,
                      "The server had an error while processing the request.");
        return;
    }
    error->retry_after_ms = retry_after_ms ? retry_after_ms : 1000;
}
