/* ledger.lua as it stood when this binary was built, for FUNCTION LOAD REPLACE: the build makes ledger_lua.c of it
 * (server/billing/embed.cmake). A master whose library is missing ("ERR Function not found" to FCALL mr_version 0), or
 * whose mr_version is below LEDGER_LUA_VERSION, is to be loaded; a higher one serves this binary too. Any thread. */
#ifndef SERVER_BILLING_LEDGER_LUA_H
#define SERVER_BILLING_LEDGER_LUA_H

#include <stddef.h>

enum { LEDGER_LUA_VERSION = 4 }; /* VERSION in ledger.lua: grows with every change of it */

extern const char ledger_lua[]; /* ends with a NUL that ledger_lua_bytes does not count */
extern const size_t ledger_lua_bytes;

#endif
