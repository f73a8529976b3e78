/* Billing of one server process, from its settings: the journal and its thread, the ledger wherever it is, and what a
 * charge is made of. io thread.
 *
 *   --journal FOLDER                      meter with the ledger in this process
 *   --journal FOLDER --redis URL          meter, and the emitter that brings its records to Redis
 *   --enforce prepaid                     with leases: requests are served while packages last */
#ifndef SERVER_BILLING_BILLING_H
#define SERVER_BILLING_BILLING_H

#include "server/billing/billing_stats.h"
#include "server/billing/emitter.h"
#include "server/billing/meter.h"
#include "server/billing/redis_link.h"
#include "server/config.h"

struct billing {
    const struct config *config;
    struct billing_stats *stats; /* borrowed */
    struct meter *meter;
    struct redis_target redis;   /* --redis */
    struct emitter *emitter;     /* NULL: the ledger is in this process */
    struct ledger_client ledger; /* for admin calls and /v1/usage; may block */
    char uuid[LEDGER_UUID_CHARS + 1];
    uint64_t producer;    /* of the journal */
    int32_t utc_offset_s; /* --bill-utc-offset */
    struct lease_config leases;
};

/* ST_INVAL: a setting (err says which); else as meter_create. *billing is NULL on ST_OK without --journal. stats is
 * borrowed. wake: any thread, when io has something to take. */
NODISCARD enum status billing_open(const struct config *config, struct billing_stats *stats, void (*wake)(void *state),
                                   void *wake_state, struct billing **billing, struct error *err);
/* When the engines are gone and the ports closed: leases go back, everything is committed, and what is durable has
 * some seconds to reach Redis; the rest is the next start's. */
void billing_close(struct billing *billing);

/* Whether the journal's segments can hold the open requests of so many models. ST_INVAL. */
NODISCARD enum status billing_check_models(const struct config *config, uint32_t models, struct error *err);

/* Settings as numbers, for tests: ST_INVAL (err). */
NODISCARD enum status billing_read_mode(const char *text, enum commit_mode *mode, uint32_t *group_ms,
                                        struct error *err);
NODISCARD enum status billing_read_offset(const char *text, int32_t *offset_s, struct error *err);

#endif
