/* Deferrable work: which of it may run now, so that it meets its deadlines and as much as possible runs on green or
 * cheap power.
 *
 *   time is cut into slots; a slot has a capacity (pessimistic: what is surely left beside interactive work), what is
 *   likely left, green work on offer, and a price. Work has one unit throughout (joules above idle, or device seconds).
 *
 *            now        next                  D - m         D
 *   |---------*----------|----------|----------|------------|------
 *             [  rest    ][   capacity ahead  ]      m slots in reserve
 *
 * D1. Admission is a proof. A job is taken iff for every deadline D held (the new one included): the work due by D is
 * at most the capacity before D - m. D2. need = max over D (work due by D that is not yet released - capacity from the
 * next slot to D - m, less what of the released work does not fit into this slot): so much must start now, and it does,
 * even on grey power and in an event. Running need in every slot keeps D1's sums true as long as the capacity comes as
 * told. D3. Beyond need, work starts in EDF order while green work is on offer; or, where only prices are told, as much
 * as the cheapest slots that meet all deadlines put into this one; or freely, where neither is. EDF needs no forecast:
 * own simulations reach 98 % and more of the offline optimum (power.md, 7). D4. In an event (hold) only need starts.
 *
 * The work of a job is an upper bound, released at its true end: deadline_left tells progress, deadline_remove gives
 * the rest back. How much of their bounds jobs really used is learnt, for D3 alone; D1 and D2 take the bounds.
 *
 * Which slots are the cheapest: sets of slot units that can all be given to work are a transversal matroid (jobs are
 * all there, each may use any slot before its own end), so taking slots by rising price, each as far as the work that
 * may still use it reaches, is optimal (Edmonds 1971).
 *
 * Work that has yet to come wants cheap slots too: what came in a slot lately, by how long until it was due, is thought
 * to come in each slot ahead. So this slot gives work what EDF, over the slots that are cheaper, gets done more with it
 * than without (the matroid's rank). Planned by jobs held alone, as before, much work waits for slots that others fill.
 *
 * Deadlines are kept by slot: the work due is one sum per slot. Admission, need and explanation cost O(slots), whatever
 * the number of jobs; a release or an end costs O(log jobs); the choice among prices O(slots) times
 * the different times until work is due. The forecast of all slots that is shown takes jobs held alone.
 * No allocation after create. Rejected: a tree of jobs with sums (exact to the ms where the slot is what can be
 * planned), taking the expected work for D1 (a promise is not a mean). Pure; times are Unix milliseconds. One thread.
 */
#ifndef SCHEDULER_DEADLINE_H
#define SCHEDULER_DEADLINE_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    DEADLINE_SLOTS_MAX = 768, /* ahead: 8 days of 15 minutes; deadlines beyond count as the end of it */
    DEADLINE_NONE = UINT32_MAX
};

enum deadline_mode {
    DEADLINE_ANY,    /* as soon as there is capacity */
    DEADLINE_PREFER, /* in green or cheap slots, else when it must */
    DEADLINE_ONLY,   /* in green slots only: it may expire, so it is no part of D1 and D2 */
    DEADLINE_FLEX,   /* starts at once, but for an event; its work goes before that of all deadlines */
    DEADLINE_MODES
};

enum deadline_policy {
    DEADLINE_FREE,  /* nothing is known of green or prices: all may run */
    DEADLINE_GREEN, /* the green fields hold; 0 is none */
    DEADLINE_PRICE  /* the price fields hold, where priced */
};

struct deadline_slot {
    double capacity; /* work in the whole slot that is surely there for deferrable jobs */
    double likely;   /* and probably */
    double green;    /* of it on green power, after interactive work */
    double price;    /* of a unit of work, in any unit */
    bool priced;
    bool forecast; /* the price may yet change */
};

enum deadline_why {                       /* of a job that waits, or why one that does not was let go */
                    DEADLINE_BY_NEED,     /* released: its deadline asks for it */
                    DEADLINE_BY_GREEN,    /* released: green power */
                    DEADLINE_BY_PRICE,    /* released: a cheap slot */
                    DEADLINE_BY_CAPACITY, /* released: there was room */
                    DEADLINE_WAITS_GREEN,
                    DEADLINE_WAITS_PRICE,
                    DEADLINE_WAITS_EVENT,
                    DEADLINE_WAITS_CAPACITY
};

struct deadline_job {
    double work;         /* upper bound, > 0 */
    int64_t deadline_ms; /* its end; a FLEX job that has started does not expire */
    int64_t span_ms;     /* how long it lasts however much capacity there is: planned to end so much earlier */
    enum deadline_mode mode;
};

struct deadline_config {
    uint32_t jobs_max;
    uint32_t margin_slots; /* m: 2; 8 holds through the loss of 10 % of the capacity for 2 h */
    int64_t slot_ms;       /* 15 minutes */
};

/* What deadline_choose tells. */
struct deadline_news {
    uint32_t job;
    bool released; /* false: taken back, it waits again */
};

struct deadline_sums {
    uint32_t waiting, released, started;
    double work_waiting, work_released; /* bounds; started ones belong to the released */
    double need;                        /* of the last choice, before what it released */
    double spent;                       /* work done in this slot */
    double used_share;                  /* of their bounds, by jobs that ended */
};

/* A slot of the plan as it stands: bounds, if nothing more arrives. */
struct deadline_outlook {
    int64_t t0_ms;
    double need, green, cheap, free; /* work by why it runs there */
};

struct deadline;

/* ST_INVAL: a size is 0; ST_NOMEM. */
NODISCARD enum status deadline_create(const struct deadline_config *config, struct deadline **deadline,
                                      struct error *err);
void deadline_destroy(struct deadline *deadline); /* NULL is fine */

/* What is known of the slots from the one that now_ms is in; count 1 .. DEADLINE_SLOTS_MAX, copied. What lies beyond
 * has no capacity. hold: an event. */
void deadline_profile(struct deadline *deadline, int64_t now_ms, const struct deadline_slot *slots, uint32_t count,
                      enum deadline_policy policy, bool hold);
/* Other than the profile's until the next one. */
void deadline_hold(struct deadline *deadline, bool hold);

/* ST_OK: taken, *job is its number until deadline_remove. ST_LIMIT: D1 refuses; *earliest_ms is the first deadline that
 * would be accepted, 0: none that is known of. ST_AGAIN: jobs_max are held. ST_INVAL: work or deadline cannot be. */
NODISCARD enum status deadline_admit(struct deadline *deadline, const struct deadline_job *job, int64_t now_ms,
                                     uint32_t *idx, int64_t *earliest_ms);
/* The same without D1: a job that was promised before. */
NODISCARD enum status deadline_enter(struct deadline *deadline, const struct deadline_job *job, int64_t now_ms,
                                     uint32_t *idx);
/* A released job runs: it is not taken back any more. */
void deadline_start(struct deadline *deadline, uint32_t idx);
/* What is left of the bound of a job that was released; never more than before. The difference was done in this slot.
 */
void deadline_left(struct deadline *deadline, uint32_t idx, double left);
/* It has to begin again (its engine is gone): it waits with the bound given. */
void deadline_again(struct deadline *deadline, uint32_t idx, double work);
/* Its end; what is left of the bound is free again. ended_well: its use is learnt from. */
void deadline_remove(struct deadline *deadline, uint32_t idx, bool ended_well);

/* D2-D4. Calls tell for each job that is released or taken back, in EDF order. Returns how many. */
typedef void (*deadline_news_fn)(void *state, const struct deadline_news *news);
uint32_t deadline_choose(struct deadline *deadline, int64_t now_ms, deadline_news_fn tell, void *state);

/* The job that waits or runs with the earliest deadline passed at now_ms, DEADLINE_NONE: there is none. The caller
 * removes it. */
uint32_t deadline_expired(const struct deadline *deadline, int64_t now_ms);

bool deadline_is_released(const struct deadline *deadline, uint32_t idx);
enum deadline_why deadline_reason(const struct deadline *deadline, uint32_t idx);
bool deadline_is_started(const struct deadline *deadline, uint32_t idx);
int64_t deadline_end_ms(const struct deadline *deadline, uint32_t idx);
double deadline_bound(const struct deadline *deadline, uint32_t idx);
double deadline_work(const struct deadline *deadline, uint32_t idx);
/* Of a waiting job, as the profile stands: 0, never (an ONLY job without green ahead). */
int64_t deadline_expected_ms(const struct deadline *deadline, uint32_t idx, int64_t now_ms);
/* Slots in which work is planned, from this one, at most count. */
void deadline_look_ahead(const struct deadline *deadline, int64_t now_ms, struct deadline_outlook *slots,
                         uint32_t count);
void deadline_read_sums(const struct deadline *deadline, struct deadline_sums *sums);
/* By how much the work due passes the capacity before D - m, at the worst D; 0: D1 holds. */
double deadline_shortfall(const struct deadline *deadline, int64_t now_ms);

#endif
