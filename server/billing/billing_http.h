/* What the admin endpoints of billing and /v1/usage answer: a question as data, a ledger_client, an answer as JSON.
 *
 *   POST /admin/billing/ledger      {"uuid"}                                   gives an empty ledger its identity
 *   GET  /admin/billing/ledger                                                 {"uuid"}
 *   POST /admin/billing/orders      bill_json.h's order                        topup, increase, void
 *   POST /admin/billing/accounts    {"name", "tenant"?} | {"account", "open": BOOL, "order"}
 *   GET  /admin/billing/accounts    names;   GET /admin/billing/accounts/NAME  its balance
 *   POST /admin/billing/keys        {"account", "label"?, "rpm"?, "tpm"?, "concurrency"?, "budget_units"?,
 * "budget_period"?} |
 *                                   {"id", "revoke": true, ..}
 *   GET  /admin/billing/keys
 *   GET  /admin/billing/usage?account=NAME&month=YYYY-MM
 *   POST /admin/billing/reap        {"account", "grace_ms"}
 *   GET  /admin/billing/marks?partition=N
 *   GET, POST /admin/billing/directory                                         its lines as they are (hashes, no keys)
 *   GET  /v1/usage?month=YYYY-MM                                               the asking key's own account, never
 * another
 *
 * An answer of the ledger that is not OK or DUP is an error whose code is its name ("CONFLICT"); a ledger that cannot
 * be reached is 503: repeat with the same order id. Calls may block: a pool's thread, one at a time a client. */
#ifndef SERVER_BILLING_BILLING_HTTP_H
#define SERVER_BILLING_BILLING_HTTP_H

#include "server/api.h"
#include "server/billing/ledger_client.h"

enum billing_ask_kind {
    BILLING_LEDGER,
    BILLING_LEDGER_INIT,
    BILLING_ORDER,
    BILLING_ACCOUNTS,
    BILLING_ACCOUNT_CHANGE,
    BILLING_ACCOUNT,
    BILLING_KEYS,
    BILLING_KEY_CHANGE,
    BILLING_USAGE,
    BILLING_REAP,
    BILLING_MARKS,
    BILLING_DIRECTORY,
    BILLING_DIRECTORY_PUT,
    BILLING_OWN_USAGE
};

enum { BILLING_ARGUMENT_BYTES_MAX = 128, BILLING_BODY_BYTES_MAX = 65536 };

/* Texts are NUL-terminated and cut to their size; "" is: not given. */
struct billing_ask {
    enum billing_ask_kind kind;
    char argument[BILLING_ARGUMENT_BYTES_MAX]; /* of the path */
    char account[BILLING_ARGUMENT_BYTES_MAX], month[16], partition[16];
    const char *body;
    size_t body_length;
    int64_t now_us; /* wall */
    int32_t utc_offset_s;
    /* BILLING_OWN_USAGE: whose, from the key and from nothing else */
    uint64_t own_account;
    char own_name[ACCOUNT_NAME_MAX + 1];
};

/* True: out has the answer (status 200). False: *error has. */
bool billing_http_run(const struct ledger_client *client, const struct billing_ask *ask, struct buf *out,
                      struct api_error *error);

#endif
