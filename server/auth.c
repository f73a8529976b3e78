/* See auth.h. In the key file a line's tenant is what stands before its first colon; a key that has a colon itself is
 * written as "default:KEY". Keys of --api-key are taken as they are. */
#include "server/auth.h"

#include "runtime/base/buf.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

struct auth_key {
    uint8_t digest[32];
    uint32_t tenant;
};

struct key_list {
    struct auth_key *keys;
    uint32_t count, capacity;
};

struct auth {
    uint8_t secret[32];
    struct key_list keys, admin_keys;
    char tenants[AUTH_TENANTS_MAX][AUTH_TENANT_BYTES_MAX + 1];
    uint32_t tenants_count;
};

static void digest_of(const struct auth *auth, const char *key, size_t length, uint8_t digest[32])
{
    hmac_sha256(auth->secret, sizeof auth->secret, key, length, digest);
}

static enum status tenant_index(struct auth *auth, const char *name, size_t length, uint32_t *tenant, struct error *err)
{
    if (length == 0 || length > AUTH_TENANT_BYTES_MAX)
        return error_set(err, ST_INVAL, "a tenant's name must have 1 to 64 bytes");
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("-_.@", c);
        if (!plain) return error_set(err, ST_INVAL, "a tenant's name may have letters, digits and -_.@ only");
    }
    for (uint32_t i = 0; i < auth->tenants_count; i++)
        if (strlen(auth->tenants[i]) == length && memcmp(auth->tenants[i], name, length) == 0) {
            *tenant = i;
            return ST_OK;
        }
    if (auth->tenants_count == AUTH_TENANTS_MAX)
        return error_set(err, ST_LIMIT, "more than %d tenants", AUTH_TENANTS_MAX);
    memcpy(auth->tenants[auth->tenants_count], name, length);
    *tenant = auth->tenants_count++;
    return ST_OK;
}

static enum status add_key(struct auth *auth, struct key_list *list, const char *text, size_t length, bool has_tenant,
                           struct error *err)
{
    const char *colon = has_tenant ? memchr(text, ':', length) : NULL;
    const char *key = colon ? colon + 1 : text;
    size_t key_length = length - (size_t)(key - text);
    if (key_length == 0 || key_length > AUTH_KEY_BYTES_MAX)
        return error_set(err, ST_INVAL, "a key must have 1 to %d bytes", AUTH_KEY_BYTES_MAX);
    for (size_t i = 0; i < key_length; i++)
        if ((unsigned char)key[i] <= 0x20 || (unsigned char)key[i] == 0x7f)
            return error_set(err, ST_INVAL, "a key must not have spaces or control characters");
    uint32_t tenant = 0;
    if (colon) TRY(tenant_index(auth, text, (size_t)(colon - text), &tenant, err));
    if (list->count == AUTH_KEYS_MAX) return error_set(err, ST_LIMIT, "more than %d keys", AUTH_KEYS_MAX);
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? list->capacity * 2 : 16;
        struct auth_key *keys = mem_resize(list->keys, capacity, sizeof *keys);
        if (!keys) return error_set(err, ST_NOMEM, "out of memory");
        list->keys = keys;
        list->capacity = capacity;
    }
    digest_of(auth, key, key_length, list->keys[list->count].digest);
    list->keys[list->count++].tenant = tenant;
    return ST_OK;
}

static enum status read_file(const char *path, struct buf *text, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error_set(err, ST_IO, "%s: %s", path, strerror(errno));
    char piece[4096];
    ssize_t count;
    while ((count = read(fd, piece, sizeof piece)) > 0) buf_append(text, piece, (size_t)count);
    int failed = errno;
    (void)close(fd);
    if (count < 0) return error_set(err, ST_IO, "%s: %s", path, strerror(failed));
    if (!buf_ok(text)) return error_set(err, ST_LIMIT, "%s: too large (limit config_bytes)", path);
    return ST_OK;
}

static enum status add_lines(struct auth *auth, struct key_list *list, const char *path, const struct buf *text,
                             bool has_tenant, struct error *err)
{
    uint32_t line = 0;
    for (size_t start = 0; start < text->length; line++) {
        const char *from = text->data + start;
        const char *newline = memchr(from, '\n', text->length - start);
        size_t length = newline ? (size_t)(newline - from) : text->length - start;
        start += length + 1;
        while (length > 0 && strchr(" \t\r", from[length - 1])) length--;
        while (length > 0 && strchr(" \t", *from)) from++, length--;
        if (length == 0 || *from == '#') continue;
        struct error reason = {""};
        enum status status = add_key(auth, list, from, length, has_tenant, &reason);
        if (status != ST_OK) return error_set(err, status, "%s line %u: %s", path, line + 1, reason.message);
    }
    return ST_OK;
}

NODISCARD static enum status read_keys(struct auth *auth, const struct config_list *given, const char *file,
                                       bool has_tenant, struct key_list *list, struct error *err)
{
    for (uint32_t i = 0; i < given->count; i++)
        TRY(add_key(auth, list, given->items[i], strlen(given->items[i]), false, err));
    if (!file) return ST_OK;
    struct buf text;
    buf_init(&text, (size_t)limits.config_bytes);
    enum status status = read_file(file, &text, err);
    if (status == ST_OK) status = add_lines(auth, list, file, &text, has_tenant, err);
    buf_free(&text);
    if (status == ST_OK && list->count == 0)
        return error_set(err, ST_INVAL, "%s has no key; %s", file,
                         has_tenant ? "an empty file would open the server to everybody"
                                    : "without one there are no admin calls: leave the option out if that is meant");
    return status;
}

/* Both lists anew, or neither. */
NODISCARD static enum status read_all_keys(struct auth *auth, const struct config *config, struct error *err)
{
    struct key_list keys = {0}, admin_keys = {0};
    enum status status = read_keys(auth, &config->api_keys, config->api_key_file, true, &keys, err);
    if (status == ST_OK) status = read_keys(auth, &config->admin_keys, config->admin_key_file, false, &admin_keys, err);
    if (status == ST_OK) {
        mem_free(auth->keys.keys);
        mem_free(auth->admin_keys.keys);
        auth->keys = keys;
        auth->admin_keys = admin_keys;
        return ST_OK;
    }
    mem_free(keys.keys);
    mem_free(admin_keys.keys);
    return status;
}

enum status auth_create(const struct config *config, struct auth **auth, struct error *err)
{
    struct auth *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "out of memory");
    random_fill(made->secret, sizeof made->secret);
    memcpy(made->tenants[0], "default", sizeof "default");
    made->tenants_count = 1;
    enum status status = read_all_keys(made, config, err);
    if (status != ST_OK) {
        auth_destroy(made);
        return status;
    }
    *auth = made;
    return ST_OK;
}

void auth_destroy(struct auth *auth)
{
    if (!auth) return;
    mem_free(auth->keys.keys);
    mem_free(auth->admin_keys.keys);
    mem_free(auth);
}

enum status auth_reload(struct auth *auth, const struct config *config, struct error *err)
{
    return read_all_keys(auth, config, err);
}

static enum auth_result check(const struct auth *auth, const struct key_list *keys, const char *authorization,
                              const char *x_api_key, uint32_t *tenant)
{
    const char *key = x_api_key;
    if (authorization) {
        if (strncasecmp(authorization, "bearer ", 7) != 0) return AUTH_WRONG;
        key = authorization + 7;
        while (*key == ' ') key++;
    }
    if (!key || *key == '\0') return AUTH_MISSING;
    uint8_t digest[32];
    digest_of(auth, key, strlen(key), digest);
    bool found = false;
    uint32_t owner = 0;
    for (uint32_t i = 0; i < keys->count; i++) { /* all of them, whatever matches */
        bool same = equal_constant_time(digest, keys->keys[i].digest, sizeof digest);
        found |= same;
        owner = same ? keys->keys[i].tenant : owner;
    }
    if (!found) return AUTH_WRONG;
    *tenant = owner;
    return AUTH_OK;
}

enum auth_result auth_check(const struct auth *auth, const char *authorization, const char *x_api_key, uint32_t *tenant)
{
    if (auth->keys.count > 0) return check(auth, &auth->keys, authorization, x_api_key, tenant);
    *tenant = 0;
    return AUTH_OK;
}

enum auth_result auth_check_admin(const struct auth *auth, const char *authorization, const char *x_api_key)
{
    uint32_t tenant;
    if (auth->admin_keys.count == 0) return AUTH_OFF;
    return check(auth, &auth->admin_keys, authorization, x_api_key, &tenant);
}

const char *auth_tenant_name(const struct auth *auth, uint32_t tenant)
{
    return tenant < auth->tenants_count ? auth->tenants[tenant] : "default";
}

uint32_t auth_tenants(const struct auth *auth)
{
    return auth->tenants_count;
}
