/* The requests of a node and their joules: who each one is, from its submission until the last window of the meter over
 * its steps is closed, and what it used in each price slot.
 *
 *   io thread:    begin (who) ... look (provisional, for usage) ... end
 *   power thread: update: the books' end and take, what they show of those that run, the cut between two slots
 *                 -> take: one note for each slot that the request touched
 *
 * A window belongs to the slot in which it is closed. The end of a request is told to the books when every step that
 * began before it has been told, so that a row of it that came to nothing is still its own. Memory is taken at the
 * start; where there is no place, a request's joules are in the node's books and in no note, and `unkept` counts it.
 * The caller locks. */
#ifndef SERVER_POWER_REQUEST_ENERGY_H
#define SERVER_POWER_REQUEST_ENERGY_H

#include "runtime/power/attribution.h"
#include "server/billing/energy_record.h"

#include <stdbool.h>
#include <stdint.h>

enum { REQUEST_ENERGY_SLOTS = 6 /* of a request; in later ones it counts in the last */, REQUEST_SLOT_MS = 900000 };

struct request_energy;

struct request_energy_who {
    uint32_t tenant;             /* index, below tenants_max of create */
    const char *tenant_name;     /* copied */
    const struct charge *charge; /* copied; NULL: nobody is billed for it */
};

/* What holds in the slot, for its notes. */
struct request_energy_terms {
    int64_t now_ms;   /* Unix time */
    uint32_t pue_ppm; /* PUE_PPM_MIN .. PUE_PPM_MAX */
    uint16_t flags;   /* of energy_note_flag, that hold for all */
};

/* So far, as last shown. */
struct request_energy_shown {
    uint64_t uj;            /* in closed windows */
    double open_j;          /* told and in none, by the model */
    uint64_t prompts, rows; /* tokens and decode rows told */
};

/* Since the start, of requests that have ended. */
struct tenant_energy {
    char name[ACCOUNT_NAME_MAX + 1];
    uint64_t requests, prefill_uj, decode_uj, idle_share_uj;
    struct carbon carbon;
};

struct request_energy_counts {
    uint32_t alive;                   /* known, and not yet taken */
    uint64_t ended, unkept, unbooked; /* with joules; that had no place; that had none */
};

/* ST_NOMEM, ST_INVAL. */
NODISCARD enum status request_energy_create(uint32_t requests_max, uint32_t tenants_max, struct request_energy **out,
                                            struct error *err);
void request_energy_destroy(struct request_energy *re); /* NULL is fine */

void request_energy_begin(struct request_energy *re, uint64_t id, const struct request_energy_who *who);
/* deferral_ms: how long it was held back for green or cheap hours. */
void request_energy_end(struct request_energy *re, uint64_t id, uint64_t deferral_ms, uint64_t now_ns);
/* False: not known. */
bool request_energy_look(const struct request_energy *re, uint64_t id, struct request_energy_shown *shown);

/* known_ns: as attribution_known was told. */
void request_energy_update(struct request_energy *re, struct attribution *at, uint64_t known_ns,
                           const struct request_energy_terms *terms);
/* The next note of a billed request that has ended. False: none. */
bool request_energy_take(struct request_energy *re, struct energy_note *note);

void request_energy_counts(const struct request_energy *re, struct request_energy_counts *counts);
/* The tenants that have used any, from *next on; false: no more. */
bool request_energy_tenant(const struct request_energy *re, uint32_t *next, struct tenant_energy *tenant);

#endif
