/* A ledger_client over the admin endpoints of a running server (billing_http.h). Each call is one HTTP call. */
#ifndef SERVER_BILLING_LEDGER_HTTP_H
#define SERVER_BILLING_LEDGER_HTTP_H

#include "server/billing/ledger_client.h"

/* base: "http://127.0.0.1:9000", the server's --admin-host and --admin-port; admin_key and ca_file (or NULL) are
 * borrowed. Nothing is sent yet. ST_NOMEM. */
NODISCARD enum status ledger_http_open(const char *base, const char *admin_key, const char *ca_file,
                                       struct ledger_client *client, struct error *err);

#endif
