/* See signal_feed.h. */
#include "server/power/signal_feed.h"

#include "runtime/base/doorbell.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/base/thread.h"
#include "server/power/signal_providers.h"

#include <stdio.h>
#include <string.h>

/* By enum signal_kind. A kind without a row here is no source: it only sets constants. */
static const struct signal_provider *const providers[SIGNAL_KINDS] = {
    [SIGNAL_KIND_FILE] = &signal_file,         [SIGNAL_KIND_ELECTRICITY_MAPS] = &signal_http,
    [SIGNAL_KIND_CARBON_AWARE] = &signal_http, [SIGNAL_KIND_WATTTIME] = &signal_http,
    [SIGNAL_KIND_OPENADR] = &signal_openadr,   [SIGNAL_KIND_REDIS] = &signal_redis,
};

struct feed {
    struct signal_feeds *feeds;
    struct signal_spec spec;
    struct signal_ear ear;
    const struct signal_provider *provider;
    void *state; /* the provider's */
    pthread_t thread;
    bool runs;
};

struct signal_feeds {
    struct signal_setup setup;
    struct signals *signals;
    struct doorbell doorbells[SIGNAL_SOURCES_MAX]; /* a feed sleeps on its own */
    _Atomic bool stop;
    uint32_t count;
    struct feed feeds[SIGNAL_SOURCES_MAX];
};

static struct doorbell *doorbell_of(struct feed *feed)
{
    return &feed->feeds->doorbells[feed - feed->feeds->feeds];
}

static void *feed_thread(void *state)
{
    struct feed *feed = state;
    struct doorbell *doorbell = doorbell_of(feed);
    while (!atomic_load(&feed->feeds->stop)) {
        uint32_t heard = doorbell_rings(doorbell);
        if (atomic_load(&feed->feeds->stop)) break;
        uint32_t wait_ms = feed->provider->look(feed->state, clock_unix_ms(feed->feeds->setup.clock));
        doorbell_sleep(doorbell, heard, wait_ms * NS_PER_MS);
    }
    return NULL;
}

/* The kind's name, with a number behind it from the second one on. */
static void name_feed(const struct signal_feeds *feeds, struct signal_spec *spec)
{
    uint32_t same = 1;
    if (spec->name[0]) return;
    for (uint32_t i = 0; i < feeds->count; i++) same += feeds->feeds[i].spec.kind == spec->kind;
    if (same == 1)
        (void)snprintf(spec->name, sizeof spec->name, "%s", signal_kind_text(spec->kind));
    else
        (void)snprintf(spec->name, sizeof spec->name, "%s-%u", signal_kind_text(spec->kind), same);
}

static enum status open_feed(struct signal_feeds *feeds, const struct signal_spec *spec, struct error *err)
{
    struct feed *feed = &feeds->feeds[feeds->count];
    uint16_t source;
    if (feeds->count == SIGNAL_SOURCES_MAX)
        return error_set(err, ST_LIMIT, "--power-signal: more than %d sources", SIGNAL_SOURCES_MAX);
    *feed = (struct feed){.feeds = feeds, .spec = *spec, .provider = providers[spec->kind]};
    name_feed(feeds, &feed->spec);
    const struct signal_source registered = {.name = feed->spec.name,
                                             .rank = spec->rank,
                                             .period_ms = spec->period_ms,
                                             .share = spec->share,
                                             .limits = feed->provider->limits};
    TRY(signal_register(feeds->signals, &registered, &source, err));
    feed->ear = (struct signal_ear){feeds->signals, source, &feed->spec, &feeds->setup, &feeds->stop};
    TRY(feed->provider->open(&feed->ear, &feed->state, err));
    feeds->count++;
    return ST_OK;
}

static enum status read_specs(struct signal_feeds *feeds, struct error *err)
{
    struct signal_config config = {.default_cap_w = feeds->setup.default_cap_w};
    struct signal_spec spec;
    for (uint32_t i = 0; i < feeds->setup.specs_count; i++) {
        TRY(signal_spec_read(feeds->setup.specs[i], i, &spec, err));
        if (spec.constants.have & SLOT_PRICE) config.constants.price_kwh = spec.constants.price_kwh;
        if (spec.constants.have & SLOT_CO2) config.constants.gco2_kwh = spec.constants.gco2_kwh;
        if (spec.constants.have & SLOT_PUE) config.constants.pue = spec.constants.pue;
        config.constants.have |= spec.constants.have;
    }
    TRY(signal_create(&config, &feeds->signals, err));
    for (uint32_t i = 0; i < feeds->setup.specs_count; i++) {
        TRY(signal_spec_read(feeds->setup.specs[i], i, &spec, err));
        if (providers[spec.kind]) TRY(open_feed(feeds, &spec, err));
    }
    return ST_OK;
}

enum status signal_feeds_create(const struct signal_setup *setup, struct signal_feeds **out, struct error *err)
{
    struct signal_feeds *feeds = mem_alloc(1, sizeof *feeds);
    if (!feeds) return error_set(err, ST_NOMEM, "no memory for power signals");
    feeds->setup = *setup;
    for (uint32_t i = 0; i < SIGNAL_SOURCES_MAX; i++) doorbell_init(&feeds->doorbells[i]);
    enum status status = read_specs(feeds, err);
    if (status == ST_OK)
        *out = feeds;
    else
        signal_feeds_destroy(feeds);
    return status;
}

struct signals *signal_feeds_store(struct signal_feeds *feeds)
{
    return feeds->signals;
}

enum status signal_feeds_start(struct signal_feeds *feeds, struct error *err)
{
    for (uint32_t i = 0; i < feeds->count; i++) {
        struct feed *feed = &feeds->feeds[i];
        if (feed->provider->at_once) (void)feed->provider->look(feed->state, clock_unix_ms(feeds->setup.clock));
        log_line(LOG_INFO, "signal", "source=\"%s\" kind=%s rank=%u share=%g period_s=%g", feed->spec.name,
                 signal_kind_text(feed->spec.kind), feed->spec.rank, feed->spec.share, feed->spec.period_ms / 1e3);
    }
    for (uint32_t i = 0; i < feeds->count; i++) {
        struct feed *feed = &feeds->feeds[i];
        if (thread_start(&feed->thread, feed_thread, feed) != ST_OK)
            return error_set(err, ST_LIMIT, "the system gives no thread for the power signal %s", feed->spec.name);
        feed->runs = true;
    }
    return ST_OK;
}

void signal_feeds_stop(struct signal_feeds *feeds)
{
    if (!feeds) return;
    atomic_store(&feeds->stop, true);
    for (uint32_t i = 0; i < feeds->count; i++) doorbell_ring(&feeds->doorbells[i]);
    for (uint32_t i = 0; i < feeds->count; i++) {
        if (feeds->feeds[i].runs) pthread_join(feeds->feeds[i].thread, NULL);
        feeds->feeds[i].runs = false;
    }
}

void signal_feeds_destroy(struct signal_feeds *feeds)
{
    if (!feeds) return;
    signal_feeds_stop(feeds);
    for (uint32_t i = 0; i < feeds->count; i++) feeds->feeds[i].provider->close(feeds->feeds[i].state);
    signal_destroy(feeds->signals);
    for (uint32_t i = 0; i < SIGNAL_SOURCES_MAX; i++) doorbell_free(&feeds->doorbells[i]);
    mem_free(feeds);
}
