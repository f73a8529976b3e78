/* The counters of billing as text; see billing_stats.h. */
#include "server/billing/billing_stats.h"

#include <inttypes.h>

static const uint32_t sync_bounds_us[BILLING_SYNC_BUCKETS] = {50,    100,   200,   500,    1000,   2000,   5000,
                                                              10000, 20000, 50000, 100000, 200000, 500000, 1000000};

static uint64_t read(const _Atomic uint64_t *member)
{
    return atomic_load_explicit(member, memory_order_relaxed);
}

void billing_stats_sync(struct billing_stats *stats, uint64_t took_ns)
{
    uint32_t bucket = 0;
    while (bucket < BILLING_SYNC_BUCKETS && took_ns > sync_bounds_us[bucket] * UINT64_C(1000)) bucket++;
    billing_stats_add(&stats->sync_counts[bucket], 1);
    billing_stats_add(&stats->sync_ns_total, took_ns);
}

static void head(struct buf *out, const char *metric, const char *kind, const char *help)
{
    buf_append_format(out, "# HELP %s %s\n# TYPE %s %s\n", metric, help, metric, kind);
}

/* Labels as metrics.c has them. Whole numbers stay exact: a double would round counts of micro-tokens above 2^53. */
static void print_one(struct buf *out, const char *metric, const char *kind, const char *help, uint64_t value)
{
    head(out, metric, kind, help);
    buf_append_format(out, "%s{engine=\"0\"} %" PRIu64 "\n", metric, value);
}

static void print_syncs(const struct billing_stats *stats, struct buf *out)
{
    static const char metric[] = "mr_billing_fdatasync_seconds";
    uint64_t total = 0;
    head(out, metric, "histogram", "How long each fdatasync of the journal took");
    for (uint32_t i = 0; i < BILLING_SYNC_BUCKETS; i++) {
        total += read(&stats->sync_counts[i]);
        buf_append_format(out, "%s_bucket{engine=\"0\",le=\"%g\"} %" PRIu64 "\n", metric, sync_bounds_us[i] / 1e6,
                          total);
    }
    total += read(&stats->sync_counts[BILLING_SYNC_BUCKETS]);
    buf_append_format(out,
                      "%s_bucket{engine=\"0\",le=\"+Inf\"} %" PRIu64
                      "\n%s_sum{engine=\"0\"} %.9f\n%s_count{engine=\"0\"} %" PRIu64 "\n",
                      metric, total, metric, (double)read(&stats->sync_ns_total) / 1e9, metric, total);
}

void billing_stats_print(const struct billing_stats *stats, uint64_t now_ns, struct buf *out)
{
#define X(member, kind, metric, help) print_one(out, metric, kind, help, read(&stats->member));
    BILLING_STATS_MAP(X)
#undef X
    uint64_t since_ns = read(&stats->unapplied_since_ns);
    head(out, "mr_billing_unapplied_age_seconds", "gauge", "Age of the oldest record that no ledger has confirmed");
    buf_append_format(out, "mr_billing_unapplied_age_seconds{engine=\"0\"} %.3f\n",
                      since_ns && now_ns > since_ns ? (double)(now_ns - since_ns) / 1e9 : 0.0);
    print_syncs(stats, out);
}
