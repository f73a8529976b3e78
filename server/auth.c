/* See auth.h. In the key file a line's tenant is what stands before its first colon; a key that has a colon itself is
 * written as "default:KEY". Keys of --api-key are taken as they are. In the admin key file a line may have a name before
 * its key, with white space between: for the audit log. */
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
    uint64_t number; /* key_number */
    char *name;      /* of an admin key; NULL: none */
};

struct key_list {
    struct auth_key *keys;
    uint32_t count, capacity;
};

enum { TENANT_PLACES = 2 * AUTH_TENANTS_MAX };
_Static_assert((int)AUTH_TENANT_BYTES_MAX == (int)ACCOUNT_NAME_MAX, "a tenant's name is an account's");

struct auth {
    uint8_t secret[32];
    struct key_list keys, admin_keys;
    char tenants[AUTH_TENANTS_MAX][AUTH_TENANT_BYTES_MAX + 1];
    uint32_t tenants_count;
    uint16_t tenant_places[TENANT_PLACES]; /* index by name: 0: free, else tenant + 1 */
    struct key_limits limits;              /* the server's */
    bool has_directory;
    struct directory *directory; /* NULL with has_directory: not yet */
};

static void digest_of(const struct auth *auth, const char *key, size_t length, uint8_t digest[32])
{
    hmac_sha256(auth->secret, sizeof auth->secret, key, length, digest);
}

/* The tenant of a name that is good; false: it is new, and there are AUTH_TENANTS_MAX. */
static bool tenant_of(struct auth *auth, const char *name, size_t length, uint32_t *tenant)
{
    uint64_t at = hash_bytes(name, length, 0) % TENANT_PLACES;
    for (; auth->tenant_places[at]; at = (at + 1) % TENANT_PLACES) {
        uint32_t idx = auth->tenant_places[at] - 1u;
        if (strlen(auth->tenants[idx]) != length || memcmp(auth->tenants[idx], name, length) != 0) continue;
        *tenant = idx;
        return true;
    }
    if (auth->tenants_count == AUTH_TENANTS_MAX) return false;
    memcpy(auth->tenants[auth->tenants_count], name, length);
    *tenant = auth->tenants_count++;
    auth->tenant_places[at] = (uint16_t)auth->tenants_count;
    return true;
}

static enum status tenant_index(struct auth *auth, const char *name, size_t length, uint32_t *tenant, struct error *err)
{
    if (!account_name_ok(name, length))
        return error_set(err, ST_INVAL, "a tenant's name must have 1 to 64 letters, digits and -_.@");
    if (tenant_of(auth, name, length, tenant)) return ST_OK;
    return error_set(err, ST_LIMIT, "more than %d tenants", AUTH_TENANTS_MAX);
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
    uint8_t hash[KEY_HASH_BYTES];
    key_hash(key, key_length, hash);
    list->keys[list->count].number = key_number(hash);
    list->keys[list->count].name = NULL;
    digest_of(auth, key, key_length, list->keys[list->count].digest);
    list->keys[list->count++].tenant = tenant;
    return ST_OK;
}

/* "KEY" or "NAME KEY". */
static enum status add_admin_key(struct auth *auth, struct key_list *list, const char *text, size_t length,
                                 struct error *err)
{
    size_t name_length = 0;
    while (name_length < length && !strchr(" \t", text[name_length])) name_length++;
    if (name_length == length) return add_key(auth, list, text, length, false, err);
    const char *key = text + name_length;
    while (strchr(" \t", *key)) key++; /* there is one: white space at the line's end is gone */
    if (!account_name_ok(text, name_length))
        return error_set(err, ST_INVAL, "the name before a key must have 1 to 64 letters, digits and -_.@");
    TRY(add_key(auth, list, key, length - (size_t)(key - text), false, err));
    list->keys[list->count - 1].name = mem_strdup(text, name_length);
    return list->keys[list->count - 1].name ? ST_OK : error_set(err, ST_NOMEM, "out of memory");
}

static void free_keys(struct key_list *list)
{
    for (uint32_t i = 0; i < list->count; i++) mem_free(list->keys[i].name);
    mem_free(list->keys);
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
        enum status status = has_tenant ? add_key(auth, list, from, length, true, &reason)
                                        : add_admin_key(auth, list, from, length, &reason);
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
        free_keys(&auth->keys);
        free_keys(&auth->admin_keys);
        auth->keys = keys;
        auth->admin_keys = admin_keys;
        return ST_OK;
    }
    free_keys(&keys);
    free_keys(&admin_keys);
    return status;
}

enum status auth_create(const struct config *config, struct auth **auth, struct error *err)
{
    struct auth *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "out of memory");
    random_fill(made->secret, sizeof made->secret);
    uint32_t first;
    (void)tenant_of(made, "default", strlen("default"), &first);
    made->limits =
        (struct key_limits){.rpm = config->key_rpm, .concurrency = config->key_concurrency, .tpm = config->key_tpm};
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
    free_keys(&auth->keys);
    free_keys(&auth->admin_keys);
    directory_destroy(auth->directory);
    mem_free(auth);
}

enum status auth_reload(struct auth *auth, const struct config *config, struct error *err)
{
    return read_all_keys(auth, config, err);
}

void auth_directory_expect(struct auth *auth)
{
    auth->has_directory = true;
}

void auth_directory_set(struct auth *auth, struct directory *directory)
{
    directory_destroy(auth->directory);
    auth->directory = directory;
    auth->has_directory = true;
}

const struct directory *auth_directory(const struct auth *auth)
{
    return auth->directory;
}

/* AUTH_OK: *key is what was sent. */
static enum auth_result find_key(const char *authorization, const char *x_api_key, const char **key)
{
    *key = x_api_key;
    if (authorization) {
        if (strncasecmp(authorization, "bearer ", 7) != 0) return AUTH_WRONG;
        *key = authorization + 7;
        while (**key == ' ') ++*key;
    }
    return *key && **key ? AUTH_OK : AUTH_MISSING;
}

static const struct auth_key *find_in_list(const struct auth *auth, const struct key_list *keys, const char *key)
{
    uint8_t digest[32];
    uint32_t found = UINT32_MAX;
    digest_of(auth, key, strlen(key), digest);
    for (uint32_t i = 0; i < keys->count; i++) { /* all of them, whatever matches */
        bool same = equal_constant_time(digest, keys->keys[i].digest, sizeof digest);
        found = same ? i : found;
    }
    return found == UINT32_MAX ? NULL : &keys->keys[found];
}

static void take_name(char out[ACCOUNT_NAME_MAX + 1], const char *name)
{
    memcpy(out, name, strlen(name) + 1); /* names are at most that long */
}

/* Who has a key of a file or an argument, or none at all: the account of the tenant's name. */
static enum auth_result fill_plain(const struct auth *auth, uint32_t tenant, uint64_t number, struct caller *caller)
{
    const char *name = auth->tenants[tenant];
    *caller = (struct caller){.tenant = tenant, .account = account_number(name), .key = number, .limits = auth->limits};
    take_name(caller->tenant_name, name);
    take_name(caller->account_name, name);
    const struct directory_account *account =
        auth->directory ? directory_find_account(auth->directory, caller->account) : NULL;
    if (!account) return AUTH_OK;
    if (strcmp(account->name, name) != 0) return AUTH_WRONG; /* two names, one number: nobody pays for another */
    caller->limits = directory_limits(&(struct directory_key){.account = account}, &auth->limits);
    return account->open ? AUTH_OK : AUTH_CLOSED;
}

static enum auth_result fill_from_directory(struct auth *auth, const struct directory_key *key, struct caller *caller)
{
    const struct directory_account *account = key->account;
    size_t length = strlen(account->tenant);
    *caller = (struct caller){.account = account->number, .key = key->number, .in_directory = true};
    if (!tenant_of(auth, account->tenant, length, &caller->tenant))
        caller->tenant = (uint32_t)(hash_bytes(account->tenant, length, 0) % AUTH_TENANTS_MAX);
    take_name(caller->tenant_name, account->tenant);
    take_name(caller->account_name, account->name);
    caller->limits = directory_limits(key, &auth->limits);
    if (!key->active) return AUTH_REVOKED;
    return account->open ? AUTH_OK : AUTH_CLOSED;
}

enum auth_result auth_check(struct auth *auth, const char *authorization, const char *x_api_key, struct caller *caller)
{
    const char *key;
    bool not_yet = auth->has_directory && !auth->directory;
    if (not_yet && auth->keys.count == 0) return AUTH_NOT_YET;
    if (auth->keys.count == 0 && (!auth->directory || directory_keys(auth->directory) == 0))
        return fill_plain(auth, 0, 0, caller);
    enum auth_result result = find_key(authorization, x_api_key, &key);
    if (result != AUTH_OK) return result;
    const struct directory_key *known = auth->directory ? directory_find_key(auth->directory, key, strlen(key)) : NULL;
    const struct auth_key *plain = find_in_list(auth, &auth->keys, key);
    if (known) return fill_from_directory(auth, known, caller);
    if (plain) return fill_plain(auth, plain->tenant, plain->number, caller);
    return not_yet ? AUTH_NOT_YET : AUTH_WRONG;
}

bool auth_has_stopped(const struct auth *auth, const struct caller *caller)
{
    if (!auth->directory) return false;
    const struct directory_account *account = directory_find_account(auth->directory, caller->account);
    if (account && !account->open) return true;
    if (!caller->in_directory) return false;
    const struct directory_key *key = directory_find_number(auth->directory, caller->key);
    return !key || !key->active;
}

enum auth_result auth_resume(struct auth *auth, struct caller *caller)
{
    uint32_t tenant;
    if (auth->has_directory && !auth->directory) return AUTH_NOT_YET;
    if (caller->in_directory) {
        const struct directory_key *key = auth->directory ? directory_find_number(auth->directory, caller->key) : NULL;
        return key ? fill_from_directory(auth, key, caller) : AUTH_REVOKED;
    }
    bool known = caller->key == 0 && auth->keys.count == 0;
    for (uint32_t i = 0; i < auth->keys.count; i++) known = known || auth->keys.keys[i].number == caller->key;
    size_t length = strlen(caller->tenant_name);
    if (!known || !account_name_ok(caller->tenant_name, length) ||
        !tenant_of(auth, caller->tenant_name, length, &tenant))
        return AUTH_WRONG;
    return fill_plain(auth, tenant, caller->key, caller);
}

enum auth_result auth_check_admin(const struct auth *auth, const char *authorization, const char *x_api_key,
                                  const char **name)
{
    const char *key;
    if (auth->admin_keys.count == 0) return AUTH_OFF;
    enum auth_result result = find_key(authorization, x_api_key, &key);
    if (result != AUTH_OK) return result;
    const struct auth_key *known = find_in_list(auth, &auth->admin_keys, key);
    if (!known) return AUTH_WRONG;
    *name = known->name ? known->name : "admin";
    return AUTH_OK;
}

uint32_t auth_tenants(const struct auth *auth)
{
    return auth->tenants_count;
}
