/* A ledger_client on a ledger of ledger.c in memory, for tests of what is written against ledger_client.h: its clock
 * and its failures are the test's. */
#ifndef TESTS_SUPPORT_MEMORY_LEDGER_H
#define TESTS_SUPPORT_MEMORY_LEDGER_H

#include "server/billing/ledger_client.h"

struct memory_ledger {
    struct ledger *ledger;
    uint64_t now_ms;
    uint32_t calls; /* made */
    uint32_t fails; /* the next so many end with ST_TIMEOUT, after they have done their work (lost answers) */
    struct {
        char id[80], line[2048];
    } lines[256];
    uint32_t lines_count;
    uint64_t version;
};

/* uuid NULL: without an identity. */
void memory_ledger_init(struct memory_ledger *memory, const char *uuid, struct ledger_client *client);
void memory_ledger_free(struct memory_ledger *memory);

#endif
