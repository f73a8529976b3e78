/* The states of a served model, and what moves it from one to the next. Pure: events and times in, verdicts out; who
 * loads and frees is models.c.
 *
 *                 +------------------------------- failed ----------------------------+
 *                 |                                                                   v
 *   (start, load) LOADING --loaded--> READY --sleep, unload--> DRAINING --empty--> ASLEEP 1|2, or GONE
 *                                       ^                                             |
 *                                       +------------loaded------ WAKING <---wake-----+
 *                                                                   |
 *   FAILED <--------------------------------------failed------------+
 *
 * L1  Requests enter a READY model only; one that DRAINs ends those it has, or cuts them when its time is over.
 * L2  Sleep level 1 gives the memory of the KV blocks back, level 2 that of the weights too: they are read from the
 *     file again at the wake. From level 1 a model may go on to level 2, not the other way but through a wake.
 * L3  What is under way is not turned round: LOADING, DRAINING and WAKING refuse other events (MODEL_CONFLICT).
 * L4  FAILED keeps its reason until the model is unloaded, loaded again or woken. */
#ifndef SERVER_MODEL_LIFE_H
#define SERVER_MODEL_LIFE_H

#include <stdbool.h>
#include <stdint.h>

enum model_state {
    MODEL_LOADING,
    MODEL_READY,
    MODEL_DRAINING,
    MODEL_ASLEEP,
    MODEL_WAKING,
    MODEL_FAILED,
    MODEL_GONE,
    MODEL_STATES
};

enum { MODEL_SLEEP_KV = 1, MODEL_SLEEP_ALL = 2, MODEL_SLEEP_LEVELS };

struct model_life {
    enum model_state state;
    uint32_t sleep_level;                       /* of ASLEEP and WAKING, and where DRAINING leads; there 0: GONE */
    uint64_t since_ns;                          /* when the state began */
    uint64_t drain_until_ns;                    /* DRAINING: then its requests are cut */
    uint64_t load_ns;                           /* how long the last load from the file took; 0: none yet */
    uint64_t wake_ns;                           /* how long the last wake took, from whichever level; 0: none yet */
    uint64_t wake_level_ns[MODEL_SLEEP_LEVELS]; /* the last from each level */
};

enum model_verdict {
    MODEL_BEGUN,   /* the state has changed */
    MODEL_ALREADY, /* it is there, or on its way there */
    MODEL_CONFLICT /* L3, or the event means nothing here */
};

/* What a request that names the model meets. */
enum model_answer { MODEL_SERVES, MODEL_WAKES, MODEL_SLEEPS, MODEL_LOADS, MODEL_LEAVES, MODEL_HAS_FAILED };

void model_life_begin(struct model_life *life, uint64_t now_ns); /* LOADING */
void model_life_loaded(struct model_life *life, uint64_t now_ns);
void model_life_failed(struct model_life *life, uint64_t now_ns);
enum model_verdict model_life_sleep(struct model_life *life, uint32_t level, uint64_t now_ns, uint64_t drain_ns);
enum model_verdict model_life_unload(struct model_life *life, uint64_t now_ns, uint64_t drain_ns);
enum model_verdict model_life_wake(struct model_life *life, uint64_t now_ns); /* ASLEEP, FAILED */
void model_life_emptied(struct model_life *life, uint64_t now_ns);            /* nobody uses the DRAINING model */

enum model_answer model_life_answer(const struct model_life *life, bool auto_wake);

/* How long the next wake will take: what the last from its level took; before the first from level 2 what loading took;
 * from level 1 nothing is known then, and 0. A READY model is asked as if it slept at level 2. WAKING and LOADING: what
 * is left of it. */
uint64_t model_life_wake_estimate_ns(const struct model_life *life, uint64_t now_ns);

/* "loading", "ready", "draining", "asleep", "waking", "failed", "gone". Static. */
const char *model_state_name(enum model_state state);

#endif
