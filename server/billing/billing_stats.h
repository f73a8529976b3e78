/* What billing tells /metrics (mr_billing_*): one struct of counters that the threads of billing write and the io
 * thread prints.
 *
 *   meter thread   --> commits, syncs, records, journal_*, mismatches ...     one writer a member
 *   emitter thread --> applied, duplicates, unapplied, ledger_* ...           (without Redis the meter thread's too)
 *   io thread      --> lease_*, refused_*;  billing_stats_print
 *
 * Members are relaxed atomics: a scrape may see one of them a moment newer than another, never a torn value. Unlike the
 * journal these counts begin at 0 with each process: they are for alarms, never for bills. */
#ifndef SERVER_BILLING_BILLING_STATS_H
#define SERVER_BILLING_BILLING_STATS_H

#include "runtime/base/buf.h"

#include <stdatomic.h>
#include <stdint.h>

/* X(member, kind, metric, help). */
#define BILLING_STATS_MAP(X)                                                                                           \
    X(commits, "counter", "mr_billing_commits_total", "Groups of frames made durable")                                 \
    X(frames, "counter", "mr_billing_journal_frames_total", "Frames written to the journal")                           \
    X(bytes, "counter", "mr_billing_journal_bytes_total", "Bytes written to the journal")                              \
    X(records_charged, "counter", "mr_billing_records_charged_total", "Final records that charge")                     \
    X(records_waived, "counter", "mr_billing_records_waived_total", "Final records that are waived")                   \
    X(units_charged, "counter", "mr_billing_units_charged_total", "Micro-tokens charged")                              \
    X(records_energy, "counter", "mr_billing_records_energy_total", "Records of what a charge used in a price slot")   \
    X(energy_dropped, "counter", "mr_billing_energy_dropped_total", "Energy notes that are in no book")                \
    X(mismatches, "counter", "mr_billing_mismatches_total", "Records whose three counts disagreed: look at each")      \
    X(steps_skipped, "counter", "mr_billing_steps_skipped_total",                                                      \
      "Times an engine found the ring to the journal full")                                                            \
    X(journal_accepts, "gauge", "mr_billing_journal_accepts", "1 while the journal takes new requests")                \
    X(journal_open_requests, "gauge", "mr_billing_journal_open_requests", "Requests with an OPEN and no FINAL")        \
    X(journal_spares, "gauge", "mr_billing_journal_spares", "Spare segments ready")                                    \
    X(journal_failovers, "counter", "mr_billing_journal_failovers_total", "Failed writes that went to a new segment")  \
    X(applied, "counter", "mr_billing_applied_total", "Records that the ledger confirmed")                             \
    X(duplicates, "counter", "mr_billing_duplicates_total", "Records sent again that the ledger had")                  \
    X(unapplied, "gauge", "mr_billing_unapplied_records", "Durable records that no ledger has confirmed")              \
    X(ledger_reachable, "gauge", "mr_billing_ledger_reachable", "1 while the ledger answers")                          \
    X(ledger_refuses, "gauge", "mr_billing_ledger_refuses", "1 when it answers and must not be used")                  \
    X(ledger_reconnects, "counter", "mr_billing_ledger_reconnects_total", "Connections to the ledger made anew")       \
    X(partitions_stopped, "gauge", "mr_billing_partitions_stopped",                                                    \
      "Partitions stopped by CONFLICT, GAP, BADARG or BADSTATE")                                                       \
    X(overage_units, "counter", "mr_billing_overage_units_total", "Micro-tokens applied here that no package paid")    \
    X(lease_accounts, "gauge", "mr_billing_lease_accounts", "Accounts with a lease on this node")                      \
    X(lease_units, "gauge", "mr_billing_lease_units", "Micro-tokens leased to this node")                              \
    X(lease_held_units, "gauge", "mr_billing_lease_held_units", "Of them held by running requests")                    \
    X(lease_headroom_units, "gauge", "mr_billing_lease_headroom_units", "Of them free for new requests")               \
    X(outage_units, "counter", "mr_billing_outage_units_total", "Micro-tokens given on credit in outages")             \
    X(refused_budget, "counter", "mr_billing_refused_budget_total", "Requests refused: key's budget used up")          \
    X(refused_quota, "counter", "mr_billing_refused_quota_total", "Requests refused: package used up")                 \
    X(refused_closed, "counter", "mr_billing_refused_closed_total", "Requests refused: account or key closed")         \
    X(refused_outage, "counter", "mr_billing_refused_outage_total", "Requests refused: no ledger, no lease")           \
    X(refused_journal, "counter", "mr_billing_refused_journal_total", "Requests refused: journal closed")              \
    X(quota_ends, "counter", "mr_billing_quota_ends_total", "Answers that ended where the package did")

/* Upper bounds of the fdatasync histogram in microseconds; one more bucket is for what is above. Alarm: p99 above 50
 * ms. */
enum { BILLING_SYNC_BUCKETS = 14 };

struct billing_stats {
#define X(member, kind, metric, help) _Atomic uint64_t member;
    BILLING_STATS_MAP(X)
#undef X
    _Atomic uint64_t unapplied_since_ns; /* monotonic: when the oldest unapplied record became durable; 0: none */
    _Atomic uint64_t sync_counts[BILLING_SYNC_BUCKETS + 1];
    _Atomic uint64_t sync_ns_total;
};

static inline void billing_stats_add(_Atomic uint64_t *member, uint64_t more)
{
    (void)atomic_fetch_add_explicit(member, more, memory_order_relaxed);
}
static inline void billing_stats_set(_Atomic uint64_t *member, uint64_t value)
{
    atomic_store_explicit(member, value, memory_order_relaxed);
}

/* One fdatasync of the journal took so long. */
void billing_stats_sync(struct billing_stats *stats, uint64_t took_ns);

/* All of them in Prometheus' text format. now_ns: monotonic. */
void billing_stats_print(const struct billing_stats *stats, uint64_t now_ns, struct buf *out);

#endif
