/* pool.lua as it stood when this binary was built; see billing/ledger_lua.h. Any thread. */
#ifndef SERVER_POOL_POOL_LUA_H
#define SERVER_POOL_POOL_LUA_H

#include <stddef.h>

enum { POOL_LUA_VERSION = 1 }; /* VERSION in pool.lua: grows with every change of it */

extern const char pool_lua[]; /* ends with a NUL that pool_lua_bytes does not count */
extern const size_t pool_lua_bytes;

#endif
