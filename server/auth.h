/* Who asks: API keys and the tenants behind them.
 *
 * Keys are kept as HMAC-SHA-256 under a random key of this process; a given key is compared with all of them in
 * constant time, so time tells neither which key was close nor how many there are before it. Without any key everybody
 * is tenant "default". A tenant keeps its index for the life of the process (queue shares and cache domains hang on
 * it), also when a reload drops its keys.
 *
 * A billing server has a directory of accounts and keys as well (billing/directory.h): a key is looked for in both. The
 * tenant of a key file's line is the name of the account that pays. Until the directory is there, keys of files and
 * arguments are let in, and nobody else.
 * io thread only. */
#ifndef SERVER_AUTH_H
#define SERVER_AUTH_H

#include "runtime/base/status.h"
#include "server/caller.h"
#include "server/config.h"

#include <stdbool.h>
#include <stdint.h>

enum { AUTH_TENANTS_MAX = 8192, AUTH_KEYS_MAX = 65536, AUTH_KEY_BYTES_MAX = 512, AUTH_TENANT_BYTES_MAX = 64 };

struct auth;

/* Keys of config->api_keys (tenant "default") and of config->api_key_file (lines "key" or "tenant:key", '#' comments).
 * ST_IO: the file; ST_INVAL: a line, err names its number, never its content; ST_LIMIT; ST_NOMEM. */
NODISCARD enum status auth_create(const struct config *config, struct auth **auth, struct error *err);
void auth_destroy(struct auth *auth);

/* Reads the key files again (SIGHUP). On failure the old keys stay. */
NODISCARD enum status auth_reload(struct auth *auth, const struct config *config, struct error *err);

/* From now on there is a directory, if not yet: AUTH_NOT_YET until auth_directory_set. */
void auth_directory_expect(struct auth *auth);
/* A new one takes the place of the last, at once; auth owns it. */
void auth_directory_set(struct auth *auth, struct directory *directory);
const struct directory *auth_directory(const struct auth *auth); /* NULL: none yet */

enum auth_result {
    AUTH_OK,
    AUTH_MISSING,
    AUTH_WRONG,
    AUTH_OFF,
    AUTH_REVOKED, /* the key was good once */
    AUTH_CLOSED,  /* its account is closed */
    AUTH_NOT_YET
};

/* authorization, x_api_key: header values or NULL. AUTH_OK fills *caller. */
enum auth_result auth_check(struct auth *auth, const char *authorization, const char *x_api_key, struct caller *caller);

/* Whether a caller that was let in is one no longer: its key revoked, or its account closed. Keys that a reload of the
 * key file drops end nothing that runs. */
bool auth_has_stopped(const struct auth *auth, const struct caller *caller);

/* What holds now for a caller of an earlier time, or an earlier process: its tenant's index and its limits. AUTH_WRONG:
 * no file or argument has its key any more. */
enum auth_result auth_resume(struct auth *auth, struct caller *caller);

/* The same for admin calls, against config->admin_keys and config->admin_key_file alone. Without any such key nobody is
 * let in: AUTH_OFF. AUTH_OK sets *name to what stands before the key in its line, else "admin"; valid until the next
 * reload. */
enum auth_result auth_check_admin(const struct auth *auth, const char *authorization, const char *x_api_key,
                                  const char **name);

uint32_t auth_tenants(const struct auth *auth); /* seen so far */

#endif
