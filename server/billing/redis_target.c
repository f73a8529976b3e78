/* Where a ledger in Redis is: URLs and their settings to struct redis_target; see redis_link.h. */
#include "server/billing/redis_link.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *prefix;
    enum redis_kind kind;
    bool tls, path;
    uint16_t port;
} schemes[] = {
    {"redis://", REDIS_SINGLE, false, false, 6379},
    {"rediss://", REDIS_SINGLE, true, false, 6379},
    {"redis+unix://", REDIS_SINGLE, false, true, 0},
    {"redis-sentinel://", REDIS_SENTINEL, false, false, 26379},
    {"rediss-sentinel://", REDIS_SENTINEL, true, false, 26379},
    {"redis-cluster://", REDIS_CLUSTER, false, false, 6379},
    {"rediss-cluster://", REDIS_CLUSTER, true, false, 6379},
};

static enum status copy(char *out, size_t room, const char *text, size_t length, const char *what, struct error *err)
{
    if (length >= room) return error_set(err, ST_INVAL, "--redis: %s is longer than %zu bytes", what, room - 1);
    memcpy(out, text, length);
    out[length] = '\0';
    return ST_OK;
}

/* "host", "host:port", "[ipv6]:port" between text and end. */
static enum status read_address(const char *text, const char *end, uint16_t port_default, struct redis_address *address,
                                struct error *err)
{
    const char *host = text, *host_end, *port = NULL;
    if (text < end && *text == '[') {
        host++;
        host_end = memchr(text, ']', (size_t)(end - text));
        if (host_end == NULL) return error_set(err, ST_INVAL, "--redis: '[' without ']'");
        if (host_end + 1 < end && host_end[1] == ':')
            port = host_end + 2;
        else if (host_end + 1 != end)
            return error_set(err, ST_INVAL, "--redis: after ']' only :PORT may stand");
    } else {
        host_end = memchr(text, ':', (size_t)(end - text));
        if (host_end != NULL)
            port = host_end + 1;
        else
            host_end = end;
    }
    if (host == host_end) return error_set(err, ST_INVAL, "--redis: a host is missing; the form is HOST:PORT");
    for (const char *c = host; c < host_end; c++)
        if ((unsigned char)*c <= ' ' || strchr("/@%?#\\\"", *c) != NULL || *c == 127)
            return error_set(err, ST_INVAL, "--redis: a host name cannot hold '%c'", *c);
    TRY(copy(address->host, sizeof address->host, host, (size_t)(host_end - host), "a host", err));
    address->port = port_default;
    if (port == NULL) return ST_OK;
    uint32_t n = 0;
    for (const char *c = port; c < end; c++) {
        if (*c < '0' || *c > '9' || n > UINT16_MAX) return error_set(err, ST_INVAL, "--redis: a port is no number");
        n = n * 10 + (uint32_t)(*c - '0');
    }
    if (n == 0 || n > UINT16_MAX) return error_set(err, ST_INVAL, "--redis: a port is 1 to 65535");
    address->port = (uint16_t)n;
    return ST_OK;
}

/* What stands before '@'. K4: no password. Its text is not repeated in the message. */
static enum status read_user(const char **text, const char *end, struct redis_target *target, struct error *err)
{
    const char *at = NULL;
    for (const char *c = *text; c < end; c++)
        if (*c == '@') at = c;
    if (at == NULL) return ST_OK;
    if (memchr(*text, ':', (size_t)(at - *text)) != NULL)
        return error_set(err, ST_INVAL,
                         "--redis: no password in the URL, where every list of processes shows it: use "
                         "MILLRACE_REDIS_PASSWORD or --redis-password-file, and keep USER@");
    for (const char *c = *text; c < at; c++)
        if ((unsigned char)*c <= ' ' || *c == '/' || *c == '%')
            return error_set(err, ST_INVAL, "--redis: a user's name cannot hold '%c'", *c);
    TRY(copy(target->user, sizeof target->user, *text, (size_t)(at - *text), "the user's name", err));
    *text = at + 1;
    return ST_OK;
}

static enum status read_url(const char *url, struct redis_target *target, struct error *err)
{
    size_t s = 0, schemes_count = sizeof schemes / sizeof *schemes;
    while (s < schemes_count && strncmp(url, schemes[s].prefix, strlen(schemes[s].prefix)) != 0) s++;
    if (s == schemes_count)
        return error_set(err, ST_INVAL,
                         "--redis: the URL must begin with redis://, rediss://, redis+unix://, redis-sentinel://, "
                         "rediss-sentinel://, redis-cluster:// or rediss-cluster://");
    target->kind = schemes[s].kind;
    target->tls.on = schemes[s].tls;
    const char *text = url + strlen(schemes[s].prefix), *end = text + strlen(text);
    TRY(read_user(&text, schemes[s].path && strchr(text, '/') != NULL ? strchr(text, '/') : end, target, err));
    if (schemes[s].path) {
        if (*text != '/')
            return error_set(err, ST_INVAL, "--redis: redis+unix:// takes a whole path: redis+unix:///run/..");
        target->addresses_count = 1;
        return copy(target->addresses[0].path, sizeof target->addresses[0].path, text, (size_t)(end - text), "the path",
                    err);
    }
    const char *slash = memchr(text, '/', (size_t)(end - text));
    const char *hosts_end = slash != NULL ? slash : end;
    const char *rest = slash != NULL ? slash + 1 : end;
    if (target->kind == REDIS_SENTINEL) {
        if (rest == end || strpbrk(rest, "/?# ") != NULL)
            return error_set(err, ST_INVAL, "--redis: the master's name is missing: redis-sentinel://HOST:PORT/MASTER");
        TRY(copy(target->master, sizeof target->master, rest, (size_t)(end - rest), "the master's name", err));
    } else if (rest != end && strcmp(rest, "0") != 0) {
        return error_set(err, ST_INVAL, "--redis: after the host only /0 may stand: the ledger is in database 0");
    }
    for (;;) {
        const char *comma = memchr(text, ',', (size_t)(hosts_end - text));
        if (target->addresses_count == REDIS_ADDRESSES_MAX)
            return error_set(err, ST_INVAL, "--redis: more than %d hosts", REDIS_ADDRESSES_MAX);
        TRY(read_address(text, comma != NULL ? comma : hosts_end, schemes[s].port,
                         &target->addresses[target->addresses_count], err));
        target->addresses_count++;
        if (comma == NULL) break;
        text = comma + 1;
    }
    if (target->kind == REDIS_SINGLE && target->addresses_count > 1)
        return error_set(err, ST_INVAL, "--redis: several hosts need redis-sentinel:// or redis-cluster://");
    return ST_OK;
}

static enum status read_password_file(const char *path, struct redis_target *target, struct error *err)
{
    char *text = NULL;
    size_t length = 0;
    TRY(file_read(path, 65536, "a password file", &text, &length, err));
    size_t n = 0;
    while (n < length && text[n] != '\n' && text[n] != '\r' && text[n] != '\0') n++;
    enum status status = ST_OK;
    if (n == 0 || n > REDIS_PASSWORD_MAX)
        status = error_set(err, ST_INVAL,
                           "--redis-password-file: the first line of the file holds no password of 1 to "
                           "%d bytes",
                           REDIS_PASSWORD_MAX);
    else
        memcpy(target->password, text, n);
    explicit_bzero(text, length);
    mem_free(text);
    return status;
}

enum status redis_target_read(const struct redis_settings *settings, struct redis_target *target, struct error *err)
{
    static struct redis_target zero;
    *target = zero;
    target->timeout_ms = REDIS_TIMEOUT_MS;
    target->wire = redis_wire_system();
    target->clock = clock_system();
    TRY(read_url(settings->url, target, err));
    if (settings->password_file != NULL && settings->password != NULL)
        return error_set(err, ST_INVAL, "Redis' password is given twice: by --redis-password-file and by its value");
    if (settings->password_file != NULL) TRY(read_password_file(settings->password_file, target, err));
    if (settings->password != NULL)
        TRY(copy(target->password, sizeof target->password, settings->password, strlen(settings->password),
                 "the password", err));
    if (target->user[0] != '\0' && target->password[0] == '\0')
        return error_set(err, ST_INVAL,
                         "--redis names a user but there is no password: set MILLRACE_REDIS_PASSWORD or "
                         "--redis-password-file");
    const struct {
        const char *text, *what;
        char *out;
    } files[] = {{settings->ca_file, "--redis-ca-file", target->tls.ca_file},
                 {settings->cert_file, "--redis-cert-file", target->tls.cert_file},
                 {settings->key_file, "--redis-key-file", target->tls.key_file}};
    for (size_t i = 0; i < 3; i++) {
        if (files[i].text == NULL) continue;
        if (!target->tls.on)
            return error_set(err, ST_INVAL, "%s is for TLS; the URL of --redis says none (rediss://)", files[i].what);
        TRY(copy(files[i].out, REDIS_FILE_MAX + 1, files[i].text, strlen(files[i].text), files[i].what, err));
    }
    if (settings->key_file != NULL && settings->cert_file == NULL)
        return error_set(err, ST_INVAL, "--redis-key-file without --redis-cert-file");
    return ST_OK;
}
