/* The sources of power signals of a process: each --power-signal is a provider with a thread of its own, which looks,
 * tells the store (signal.h) and sleeps.
 *
 *   create: store, sources, providers opened    start: a thread each    stop: threads end    destroy: the rest
 *
 * A provider is a row of a table in signal_feed.c: a kind that needs nothing else of the others. Threads and not the
 * loop: a provider may wait for a network, and all libraries here know how to do that in a thread.
 * io thread, but for the providers' own calls. */
#ifndef SERVER_POWER_SIGNAL_FEED_H
#define SERVER_POWER_SIGNAL_FEED_H

#include "runtime/base/clock.h"
#include "server/billing/redis_link.h"
#include "server/power/signal.h"
#include "server/power/signal_spec.h"

#include <stdatomic.h>

/* Where a provider tells what it hears; given to it, and valid until close. */
struct signal_ear {
    struct signals *signals;
    uint16_t source;
    const struct signal_spec *spec;
    const struct signal_setup *setup;
    const _Atomic bool *stop; /* set: a wait must end */
};

struct signal_provider {
    bool limits;  /* may tell caps or targets: signal_source.limits */
    bool at_once; /* the first look is taken before anything is served: it never waits */
    /* Checks what can be without asking anybody; a failure ends the process's start. */
    enum status (*open)(const struct signal_ear *ear, void **feed, struct error *err);
    /* Looks once and tells the store. Returns for how many milliseconds not to look again. Blocks for at most 5 s, and
     * not after *stop. Its thread alone. */
    uint32_t (*look)(void *feed, int64_t now_ms);
    void (*close)(void *feed);
};

/* What a source may tell the grid of the node. */
struct signal_demand {
    double watts, down_w; /* drawn now, and what of it shed level 3 would take off */
    bool curtailed;       /* a limit or a shed level is in force */
};

struct signal_setup {
    const char *const *specs; /* as typed; borrowed for the life */
    uint32_t specs_count;
    double default_cap_w;
    const struct redis_settings *redis; /* of --redis; for create alone. NULL, or url NULL: not given */
    const struct clock *clock;
    /* NULL: nobody knows. False: there is no meter. Called by providers' threads between start and stop. */
    bool (*demand)(void *state, struct signal_demand *demand);
    void *demand_state;
};

struct signal_feeds;

/* ST_INVAL, ST_LIMIT, ST_NOMEM, and what a provider says. */
NODISCARD enum status signal_feeds_create(const struct signal_setup *setup, struct signal_feeds **feeds,
                                          struct error *err);
struct signals *signal_feeds_store(struct signal_feeds *feeds); /* never NULL */
/* Looks once where that takes no time, then starts the threads. ST_LIMIT. */
NODISCARD enum status signal_feeds_start(struct signal_feeds *feeds, struct error *err);
void signal_feeds_stop(struct signal_feeds *feeds); /* no call of a provider after it; the store stays. NULL is fine */
void signal_feeds_destroy(struct signal_feeds *feeds); /* stops, too. NULL is fine */

#endif
