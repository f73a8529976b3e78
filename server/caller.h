/* Who has sent a request, as its key tells: plain data that outlives a reload of the keys. Filled by auth.c. */
#ifndef SERVER_CALLER_H
#define SERVER_CALLER_H

#include "server/billing/directory.h"

struct caller {
    uint32_t tenant; /* index: queue shares; tenants beyond AUTH_TENANTS_MAX share some */
    char tenant_name[ACCOUNT_NAME_MAX + 1];
    char account_name[ACCOUNT_NAME_MAX + 1];
    uint64_t account; /* account_number of it */
    uint64_t key;     /* key_number; 0: the server asks for none */
    bool in_directory;
    struct key_limits limits; /* the key's, its account's or the server's */
};

#endif
