/* Events of OpenADR 3, read into what a node may draw. Pure; any thread. Source: the OpenAPI documents and user guides
 * of 3.0.1 and 3.1.1 (OpenADR Alliance).
 *
 *   pages of /events --openadr_read--> pieces (a field, from .. to, a value, a priority) --openadr_compose--> slots
 *
 * A1. An interval starts where its own period says, else where the one before ends, the first one where the event says.
 *     "0001-01-01" (and 3.0's "0000-..") is now: when the event was last changed. No duration, and P9999Y: for ever.
 *     A duration of nothing: cancelled; in 3.0, where that is also the default, only with the start "now".
 * A2. randomizeStart shifts by a number from the VEN's name and the event's id: the same at each poll. Starts that
 * follow it, and absolute ones without their own, shift alike. A3. An event's duration (3.1) cuts its intervals, or
 * repeats them. Several values in one PRICE, GHG (3.1) or OLS part the interval evenly. A4. Where events overlap, the
 * lower priority number decides for each field, none is last; of equals the lower cap and target, the higher level. An
 * alert is never hidden by a priority: the highest level wins. A5. An event with a refused value keeps what was read of
 * it before, so that garbage does not lift a limit.
 *
 * Payloads: SIMPLE, ALERT_GRID_EMERGENCY (3), ALERT_FLEX_ALERT (1) -> shed_level; PRICE; GHG; IMPORT_CAPACITY_LIMIT ->
 * a hard cap; DISPATCH_SETPOINT -> target; of the plan P: DISPATCH_SETPOINT_RELATIVE v -> P + v,
 * CONTROL_LEVEL_OFFSET_PERCENT v -> P (1 - v), OLS v -> P v. Other payloads are no concern of ours. */
#ifndef SERVER_POWER_OPENADR_H
#define SERVER_POWER_OPENADR_H

#include "server/power/feed.h"

enum openadr_version { OPENADR_3_0, OPENADR_3_1 };

enum {
    OPENADR_PIECES_MAX = 1024,
    OPENADR_REQUESTS_MAX = 16,
    OPENADR_ID_CHARS_MAX = 128,
    OPENADR_PAGE_EVENTS = 50, /* the most that a VTN gives at once */
    OPENADR_AHEAD_MS = 44 * 3600 * 1000
};

enum openadr_report { OPENADR_DEMAND = 1, OPENADR_OPERATING_STATE = 2, OPENADR_DOWN_REGULATION = 4 };

struct openadr_config {
    enum openadr_version version;
    const char *ven;      /* our name at the VTN */
    const char *currency; /* the one that prices must have; NULL: any */
    double plan_w;        /* what the hub draws by plan; 0: unknown, shares of it are refused */
};

struct openadr_piece {
    uint64_t event;       /* hash of its id */
    int64_t t0_ms, t1_ms; /* INT64_MAX: without an end */
    uint32_t priority;    /* UINT32_MAX: none */
    uint32_t field;       /* one of power_slot_field */
    double value;
    bool alert;
    bool from_now; /* t0_ms is when it was first seen */
};

/* An event that asks for reports of ours. */
struct openadr_request {
    char event[OPENADR_ID_CHARS_MAX + 1], program[OPENADR_ID_CHARS_MAX + 1];
    uint32_t reports; /* of openadr_report */
    int64_t t0_ms, t1_ms;
};

struct openadr_events {
    struct openadr_piece pieces[OPENADR_PIECES_MAX];
    uint32_t count;
    struct openadr_request requests[OPENADR_REQUESTS_MAX];
    uint32_t requests_count;
};

void openadr_clear(struct openadr_events *events);
/* Adds a page of /events. before: what the last poll gave (A5), or NULL. Refusals go to feed, whose slots are left
 * alone. *on_page is the number of events there. ST_INVAL: no JSON, or not a list; ST_LIMIT; ST_NOMEM: nothing was
 * added. */
NODISCARD enum status openadr_read(const struct openadr_config *config, const char *text, size_t length, int64_t now_ms,
                                   const struct openadr_events *before, struct openadr_events *events,
                                   struct feed *feed, uint32_t *on_page, struct error *err);
/* Adds slots without overlap, from the quarter of an hour of now_ms on for OPENADR_AHEAD_MS. */
void openadr_compose(const struct openadr_events *events, int64_t now_ms, struct feed *feed);

#endif
