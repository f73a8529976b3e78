/* What the node has been told about power: by which sources, how old it is, and what follows from it now.
 *
 *   source: 192 slots of 15 min (a ring over the time) + events with exact times
 *     told --share of the node, checks--> kept    fresh -- 3 periods unheard --> stale -- 15 min --> gone
 *   node at a time = the sources' views merged
 *
 * A value that is refused changes nothing and is counted by why. Watts are the hub's; the node's are times `share`.
 * Cap, target and shed level with borders inside a slot are kept as events with their exact times; of other fields a
 * slot has the mean over the pieces of one offer.
 *
 * S1. A source that falls silent never raises power. Stale: cap and target are the lower of the last one in force and
 *     the one told for that time; gone: the same, and default_cap_w where that is lower. They hold until it is heard.
 * S2. Green power of a silent source is 0 at once; price, CO2 and PUE are the last ones, marked estimated, when gone
 *     those told for that time, else the constant. A shed level holds until its end, heard or not.
 * S3. Cap: the lowest of all sources. Shed level: the highest, because an emergency may not be hidden by rank. Target:
 *     of the best rank that tells one. Other fields: of the best rank among fresh sources, then stale, then gone ones.
 *
 * Times are Unix milliseconds and arguments. One lock inside: any thread, but for create, register and destroy. */
#ifndef SERVER_POWER_SIGNAL_H
#define SERVER_POWER_SIGNAL_H

#include "runtime/base/status.h"
#include "server/power/slot.h"

enum {
    SIGNAL_SLOT_MS = 900000,
    SIGNAL_SLOTS = 192,
    SIGNAL_SLOTS_PAST = 16, /* of them, before now */
    SIGNAL_EVENTS_MAX = 16, /* of a source at a time */
    SIGNAL_SOURCES_MAX = 16,
    SIGNAL_NAME_BYTES = 64,
    SIGNAL_GONE_MS = 900000,
    SIGNAL_SHED_MAX = 3
};

/* Why something was not taken: label of mr_signal_rejected_total. */
#define SIGNAL_WHY_MAP(X)                                                                                              \
    X(SIGNAL_NAN, "nan")                                                                                               \
    X(SIGNAL_INFINITE, "infinite")                                                                                     \
    X(SIGNAL_NEGATIVE, "negative")         /* all but a price */                                                       \
    X(SIGNAL_NAMEPLATE, "above_nameplate") /* over 10 times what the node draws at most */                             \
    X(SIGNAL_CLOCK, "clock")               /* off by more than a slot, or before all slots that are kept */            \
    X(SIGNAL_OLD, "old")                   /* told before what is held */                                              \
    X(SIGNAL_IMPOSSIBLE, "impossible")     /* shed level above 3, PUE below 1, no length .. */                         \
    X(SIGNAL_FULL, "full")                 /* more events than there is room for */                                    \
    X(SIGNAL_UNREADABLE, "unreadable")     /* not of the form it should have */                                        \
    X(SIGNAL_UNREACHABLE, "unreachable")   /* no answer, or no file */                                                 \
    X(SIGNAL_DENIED, "denied")             /* key or rights are missing */

enum signal_why {
#define X(name, text) name,
    SIGNAL_WHY_MAP(X)
#undef X
        SIGNAL_WHYS
};

enum signal_age { SIGNAL_FRESH, SIGNAL_STALE, SIGNAL_GONE };

struct signals;

struct signal_config {
    double default_cap_w;        /* held when a source of caps is gone; 0: none */
    struct power_slot constants; /* price_kwh, gco2_kwh, pue by `have`: where no source tells them */
};

struct signal_source {
    const char *name;   /* copied; labels of metrics */
    uint32_t rank;      /* 0 before 1 */
    uint32_t period_ms; /* how often it should be heard; 1 .. 12 hours */
    double share;       /* of the hub's watts, above 0, at most 1 */
    bool limits;        /* tells caps or targets: until it was heard, default_cap_w holds */
};

struct signal_state {
    char name[SIGNAL_NAME_BYTES];
    uint32_t rank, period_ms;
    double share;
    enum signal_age age;
    int64_t heard_ms; /* 0: never */
    uint64_t taken, rejected[SIGNAL_WHYS];
    char message[256]; /* of the last failure or refusal; "" after something was taken */
};

const char *signal_why_text(enum signal_why why);
const char *signal_age_text(enum signal_age age); /* "fresh", "stale", "gone" */

/* ST_INVAL: a constant that cannot be; ST_NOMEM. */
NODISCARD enum status signal_create(const struct signal_config *config, struct signals **signals, struct error *err);
void signal_destroy(struct signals *signals); /* NULL is fine */
/* Before other threads use the store. ST_LIMIT, ST_INVAL (a name that is there already, too), ST_NOMEM. */
NODISCARD enum status signal_register(struct signals *signals, const struct signal_source *source, uint16_t *index,
                                      struct error *err);
/* What the node draws at most; watts are checked against 10 times as much. Without it against 1e9 W. */
void signal_set_nameplate(struct signals *signals, double full_w);
/* Called after something was taken, on the thread that offered it, without the lock. Before other threads. */
void signal_on_change(struct signals *signals, void (*changed)(void *state), void *state);

/* ---- told by a source ---- */

/* Adds to what the source has told; a slot that is refused leaves the others alone. slots[].source is ignored;
 * received_ms 0 means now_ms, else when it was told (an older one never replaces a newer). A slot is cut to the time
 * that is kept. Of one offer, pieces in the same quarter of an hour are averaged. Returns how many were taken; with at
 * least one the source is heard. */
uint32_t signal_offer(struct signals *signals, uint16_t source, const struct power_slot *slots, uint32_t count,
                      int64_t now_ms);
/* The source's whole word: what it told before is forgotten from now on. All or nothing. count 0: it has nothing to
 * tell. False: a slot was refused, and what was held still is. */
bool signal_replace(struct signals *signals, uint16_t source, const struct power_slot *slots, uint32_t count,
                    int64_t now_ms);
/* Heard, without news. */
void signal_beat(struct signals *signals, uint16_t source, int64_t now_ms);
/* It could not be heard or read: counted, and the message (one line, no secrets) is shown until it is heard. */
void signal_failed(struct signals *signals, uint16_t source, enum signal_why why, const char *message);

/* ---- asked ---- */

/* What the node may and should do at a time, now or ahead, by all that is known at now_ms. Fields that nobody tells
 * have no bit. t0_ms, dur_s: the quarter of an hour; quality: the worst of the fields; source: who tells the cap, else
 * the best rank of those that tell something; UINT16_MAX: nobody. */
void signal_at(struct signals *signals, int64_t unix_ms, int64_t now_ms, struct power_slot *node);
/* The same over the whole quarter of an hour around unix_ms: the lowest cap and target and the highest shed level that
 * come up in it. For who plans. */
void signal_over_slot(struct signals *signals, int64_t unix_ms, int64_t now_ms, struct power_slot *node);

uint32_t signal_sources(struct signals *signals);
void signal_read_state(struct signals *signals, uint16_t source, int64_t now_ms, struct signal_state *state);

#endif
