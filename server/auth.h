/* Who asks: API keys and the tenants behind them.
 *
 * Keys are kept as HMAC-SHA-256 under a random key of this process; a given key is compared with all of them in
 * constant time, so time tells neither which key was close nor how many there are before it. Without any key everybody
 * is tenant "default". A tenant keeps its index for the life of the process (queue shares and cache domains hang on
 * it), also when a reload drops its keys. io thread only. */
#ifndef SERVER_AUTH_H
#define SERVER_AUTH_H

#include "runtime/base/status.h"
#include "server/config.h"

#include <stdbool.h>
#include <stdint.h>

enum { AUTH_TENANTS_MAX = 1024, AUTH_KEYS_MAX = 65536, AUTH_KEY_BYTES_MAX = 512, AUTH_TENANT_BYTES_MAX = 64 };

struct auth;

/* Keys of config->api_keys (tenant "default") and of config->api_key_file (lines "key" or "tenant:key", '#' comments).
 * ST_IO: the file; ST_INVAL: a line, err names its number, never its content; ST_LIMIT; ST_NOMEM. */
NODISCARD enum status auth_create(const struct config *config, struct auth **auth, struct error *err);
void auth_destroy(struct auth *auth);

/* Reads the key files again (SIGHUP). On failure the old keys stay. */
NODISCARD enum status auth_reload(struct auth *auth, const struct config *config, struct error *err);

enum auth_result { AUTH_OK, AUTH_MISSING, AUTH_WRONG, AUTH_OFF };

/* authorization, x_api_key: header values or NULL. AUTH_OK fills *tenant. */
enum auth_result auth_check(const struct auth *auth, const char *authorization, const char *x_api_key,
                            uint32_t *tenant);

/* The same for admin calls, against config->admin_keys and config->admin_key_file alone. Without any such key nobody is
 * let in: AUTH_OFF. */
enum auth_result auth_check_admin(const struct auth *auth, const char *authorization, const char *x_api_key);

const char *auth_tenant_name(const struct auth *auth, uint32_t tenant); /* valid as long as auth */
uint32_t auth_tenants(const struct auth *auth);

#endif
