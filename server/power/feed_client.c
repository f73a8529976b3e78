/* How a provider over HTTP is asked; see feed_client.h. */
#include "server/power/feed_client.h"

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "server/power/feed.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_given(const char *text)
{
    return text && *text;
}

/* F3. Trailing line ends of a file are not part of it. */
static enum status read_secret(struct feed_client *client, struct error *err)
{
    const struct feed_client_config *config = &client->config;
    char *data = NULL;
    const char *text = NULL;
    size_t length = 0;
    if (is_given(config->secret_file)) {
        struct error reason;
        if (file_read(config->secret_file, FEED_SECRET_CHARS_MAX + 2, "a secret's length", &data, &length, &reason) !=
            ST_OK)
            return error_set(err, ST_INVAL, "%.128s: %.200s", config->secret_file, reason.message);
        text = data;
    } else if (is_given(config->secret_env)) {
        text = getenv(config->secret_env);
        if (!text) return error_set(err, ST_INVAL, "the environment has no %.64s", config->secret_env);
        length = strlen(text);
    }
    while (data && length > 0 && (text[length - 1] == '\n' || text[length - 1] == '\r')) length--;
    enum status status = ST_OK;
    if (!text || length == 0 || length > FEED_SECRET_CHARS_MAX || memchr(text, '\0', length))
        status = error_set(err, ST_INVAL,
                           "it needs a secret of 1 to %d bytes: secret_env= or secret_file=", FEED_SECRET_CHARS_MAX);
    else
        memcpy(client->secret, text, length);
    if (status == ST_OK) client->secret[length] = '\0';
    if (data) explicit_bzero(data, length);
    mem_free(data);
    return status;
}

/* Not refused: inside a cluster others may encrypt. */
static void warn_of_plain(const char *url)
{
    static const char *const here[] = {"127.", "localhost", "[::1]"};
    if (!is_given(url) || strncmp(url, "http://", 7) != 0) return;
    for (size_t i = 0; i < sizeof here / sizeof *here; i++)
        if (strncmp(url + 7, here[i], strlen(here[i])) == 0) return;
    log_line(LOG_WARN, "signal", "server=\"%.128s\" note=\"its secret is sent without TLS: use https\"", url);
}

enum status feed_client_open(struct feed_client *client, const struct feed_client_config *config, struct error *err)
{
    char base[256];
    const char *path;
    memset(client, 0, sizeof *client);
    client->config = *config;
    buf_init(&client->answer, 0);
    buf_init(&client->form, 0);
    random_fill(&client->random, sizeof client->random);
    if (config->auth != FEED_AUTH_NONE) TRY(read_secret(client, err));
    if (config->auth == FEED_AUTH_LOGIN || config->auth == FEED_AUTH_OAUTH) {
        if (!is_given(config->user)) return error_set(err, ST_INVAL, "it needs user=, whom the secret belongs to");
        TRY(feed_split_url(config->token_url, base, sizeof base, &path, err));
    }
    if (config->auth != FEED_AUTH_NONE) warn_of_plain(config->url);
    if (config->auth == FEED_AUTH_LOGIN || config->auth == FEED_AUTH_OAUTH) warn_of_plain(config->token_url);
    TRY(http_call_open(&client->call, err));
    client->call.ca_file = is_given(config->ca_file) ? config->ca_file : NULL;
    client->call.cancel = config->stop;
    client->call.answer_bytes_max = FEED_BYTES_MAX;
    return ST_OK;
}

void feed_client_close(struct feed_client *client)
{
    http_call_close(&client->call);
    buf_free(&client->answer);
    if (client->form.data) explicit_bzero(client->form.data, client->form.capacity);
    buf_free(&client->form);
    explicit_bzero(client, sizeof *client);
}

enum status feed_split_url(const char *url, char *base, size_t base_bytes, const char **path, struct error *err)
{
    size_t scheme = strncmp(url, "https://", 8) == 0 ? 8 : strncmp(url, "http://", 7) == 0 ? 7 : 0;
    size_t host = strcspn(url + scheme, "/?#"), length = scheme + host;
    if (!scheme || host == 0 || length >= base_bytes)
        return error_set(err, ST_INVAL, "\"%.64s\" must begin with http:// or https:// and a host", url);
    if (memchr(url, '@', length)) return error_set(err, ST_INVAL, "a name or a password does not belong into a URL");
    memcpy(base, url, length);
    base[length] = '\0';
    *path = url + length;
    return ST_OK;
}

/* ---- tokens ---- */

enum status feed_read_token(const char *text, size_t length, char token[FEED_SECRET_CHARS_MAX + 1], uint32_t *life_s,
                            struct error *err)
{
    struct json *root;
    struct error reason; /* may quote the token */
    size_t token_length = 0;
    enum status status = json_read(text, length, &root, &reason);
    if (status != ST_OK) return error_set(err, status, "the answer with a token is no JSON");
    const char *kind = json_to_text(json_member(root, "token_type"), NULL);
    const char *value = json_to_text(json_member(root, "access_token"), &token_length);
    const struct json *life = json_member(root, "expires_in");
    double seconds = json_has_number(life) ? json_to_number(life) : FEED_TOKEN_S;
    if (!value) value = json_to_text(json_member(root, "token"), &token_length);
    if (!value || token_length == 0 || token_length > FEED_SECRET_CHARS_MAX)
        status = error_set(err, ST_INVAL, "the answer has no access_token of 1 to %d bytes", FEED_SECRET_CHARS_MAX);
    else if (kind && strcasecmp(kind, "bearer") != 0)
        status = error_set(err, ST_INVAL, "the token is of the type \"%.32s\", expected Bearer", kind);
    else if (!(seconds >= 1 && seconds <= 366 * 86400.0))
        status = error_set(err, ST_INVAL, "the token lives for %.6g s", seconds);
    if (status == ST_OK) {
        memcpy(token, value, token_length + 1);
        *life_s = (uint32_t)seconds;
    }
    json_release(root);
    return status;
}

static void append_form(struct buf *form, const char *name, const char *value)
{
    static const char hex[] = "0123456789ABCDEF", plain[] = "-._~";
    if (!is_given(value)) return;
    if (form->length) buf_append_char(form, '&');
    buf_append_text(form, name);
    buf_append_char(form, '=');
    for (const unsigned char *at = (const unsigned char *)value; *at; at++) {
        bool keep = (*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') ||
                    strchr(plain, *at);
        if (!keep) buf_append_char(form, '%');
        if (!keep) buf_append_char(form, hex[*at >> 4]);
        buf_append_char(form, keep ? (char)*at : hex[*at & 15]);
    }
}

/* One call within what is left of the look's time. */
static enum status call_once(struct feed_client *client, const char *base, const char *path, const char *body,
                             int *http_status, struct error *err)
{
    uint64_t now_ns = clock_now_ns(client->config.clock);
    if (now_ns + NS_PER_MS > client->deadline_ns) return error_set(err, ST_TIMEOUT, "%.128s: too slow", base);
    client->call.timeout_ms = (uint32_t)((client->deadline_ns - now_ns) / NS_PER_MS);
    enum status status = http_call_run(&client->call, base, path, body, http_status, &client->answer, err);
    if (client->call.retry_after_s > 0) client->retry_after_s = client->call.retry_after_s;
    return status;
}

/* What an answer counts as. */
static enum status judge(enum status status, const char *base, int http_status, bool etag, enum signal_why *why,
                         struct error *err)
{
    *why = SIGNAL_UNREACHABLE;
    if (status == ST_LIMIT) *why = SIGNAL_UNREADABLE;
    if (status != ST_OK) return status;
    if ((http_status >= 200 && http_status <= 299) || (http_status == 304 && etag)) return ST_OK;
    if (http_status == 401 || http_status == 403) *why = SIGNAL_DENIED;
    if (http_status >= 300 && http_status <= 399) *why = SIGNAL_UNREADABLE;
    return error_set(err, ST_IO, "%.128s answered %d%s", base, http_status,
                     *why == SIGNAL_UNREADABLE ? ", and redirects are not followed" : "");
}

static enum status fetch_token(struct feed_client *client, enum signal_why *why, struct error *err)
{
    const struct feed_client_config *config = &client->config;
    struct http_call *call = &client->call;
    const char *path, *etag = call->etag, *body = NULL;
    char base[256];
    int http_status = 0;
    uint32_t life_s = 0;
    TRY(feed_split_url(config->token_url, base, sizeof base, &path, err));
    call->bearer = call->etag = NULL;
    if (config->auth == FEED_AUTH_LOGIN) {
        call->user = config->user;
        call->password = client->secret;
    } else {
        buf_clear(&client->form);
        append_form(&client->form, "grant_type", "client_credentials");
        append_form(&client->form, "client_id", config->user);
        append_form(&client->form, "client_secret", client->secret);
        append_form(&client->form, "scope", config->scope);
        buf_append_char(&client->form, '\0');
        if (!buf_ok(&client->form)) return error_set(err, ST_NOMEM, "%s", status_text(ST_NOMEM));
        call->content_type = "application/x-www-form-urlencoded";
        body = client->form.data;
    }
    enum status status = call_once(client, base, path, body, &http_status, err);
    call->user = call->password = call->content_type = NULL;
    call->etag = etag;
    status = judge(status, base, http_status, false, why, err);
    if (status == ST_IO && http_status == 400) *why = SIGNAL_DENIED; /* RFC 6749, 5.2: invalid_client and the like */
    if (status != ST_OK) return status;
    *why = SIGNAL_UNREADABLE;
    TRY(feed_read_token(client->answer.data, client->answer.length, client->token, &life_s, err));
    uint64_t margin_ns = life_s * NS_PER_S / 10; /* F4 */
    if (margin_ns > 60 * NS_PER_S) margin_ns = 60 * NS_PER_S;
    client->token_until_ns = clock_now_ns(config->clock) + life_s * NS_PER_S - margin_ns;
    client->tokens++;
    return ST_OK;
}

/* ---- a look ---- */

void feed_client_begin(struct feed_client *client)
{
    uint32_t look_ms = client->config.look_ms ? client->config.look_ms : FEED_LOOK_MS;
    client->deadline_ns = clock_now_ns(client->config.clock) + look_ms * NS_PER_MS;
    client->retry_after_s = 0;
}

static enum status run_once(struct feed_client *client, const char *base, const char *path, const char *body,
                            int *http_status, enum signal_why *why, struct error *err)
{
    struct http_call *call = &client->call;
    enum feed_auth auth = client->config.auth;
    bool tokens = auth == FEED_AUTH_LOGIN || auth == FEED_AUTH_OAUTH;
    if (tokens && clock_now_ns(client->config.clock) >= client->token_until_ns) TRY(fetch_token(client, why, err));
    call->header = auth == FEED_AUTH_HEADER ? "auth-token" : NULL;
    call->value = client->secret;
    call->bearer = tokens ? client->token : auth == FEED_AUTH_BEARER ? client->secret : NULL;
    enum status status = call_once(client, base, path, body, http_status, err);
    call->header = call->value = call->bearer = NULL;
    return judge(status, base, *http_status, call->etag != NULL, why, err);
}

enum status feed_client_run(struct feed_client *client, const char *base, const char *path, const char *body,
                            int *http_status, enum signal_why *why, struct error *err)
{
    bool had_token = clock_now_ns(client->config.clock) < client->token_until_ns;
    *http_status = 0;
    *why = SIGNAL_UNREACHABLE;
    enum status status = run_once(client, base, path, body, http_status, why, err);
    if (status == ST_OK || *why != SIGNAL_DENIED || client->config.auth == FEED_AUTH_NONE) return status;
    client->token_until_ns = 0;
    (void)!read_secret(client, NULL); /* F3; the old one stays where it cannot be read */
    if (!had_token || *http_status != 401) return status;
    status = run_once(client, base, path, body, http_status, why, err);
    if (status != ST_OK && *why == SIGNAL_DENIED) client->token_until_ns = 0;
    return status;
}

uint32_t feed_wait_ms(uint32_t period_ms, uint32_t failures, int64_t retry_after_s, double uniform)
{
    double wait_ms = period_ms, most_ms = period_ms > FEED_BACKOFF_MS_MAX ? period_ms : FEED_BACKOFF_MS_MAX;
    if (failures == 0) return period_ms;
    for (uint32_t i = 0; i < failures && wait_ms < most_ms; i++) wait_ms *= 2;
    if (wait_ms > most_ms) wait_ms = most_ms;
    wait_ms *= 0.5 + 0.5 * uniform;
    if (retry_after_s > FEED_RETRY_AFTER_S_MAX) retry_after_s = FEED_RETRY_AFTER_S_MAX;
    return (uint32_t)(wait_ms < (double)retry_after_s * 1e3 ? (double)retry_after_s * 1e3 : wait_ms);
}

uint32_t feed_client_end(struct feed_client *client, bool good)
{
    client->failures = good ? 0 : client->failures + (client->failures < 100);
    return feed_wait_ms(client->config.period_ms, client->failures, client->retry_after_s,
                        random_next_uniform(&client->random));
}
