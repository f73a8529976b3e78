/* Which path and method mean what, and how every refusal of the server reads: the one place where a reason becomes an
 * HTTP status and an error object (the API's own refusals come ready-made from api.h). Pure. */
#ifndef SERVER_HTTP_ROUTE_H
#define SERVER_HTTP_ROUTE_H

#include "server/api.h"

#include <stdbool.h>
#include <stddef.h>

enum route_id {
    ROUTE_CHAT,
    ROUTE_COMPLETIONS,
    ROUTE_MODELS,
    ROUTE_MODEL,
    ROUTE_TOKENIZE,
    ROUTE_DETOKENIZE,
    ROUTE_HEALTH,
    ROUTE_LIVEZ,
    ROUTE_READYZ,
    ROUTE_PING,
    ROUTE_METRICS,
    ROUTE_VERSION,
    ROUTE_LOAD,
    ROUTE_USAGE,
    ROUTE_FILES,
    ROUTE_FILE,
    ROUTE_BATCHES,
    ROUTE_BATCH,
    ROUTE_ROOT,
    ROUTE_CONSOLE,
    ROUTE_CONSOLE_FILE,
    ROUTE_ADMIN_MODELS,
    ROUTE_ADMIN_LOAD,
    ROUTE_ADMIN_UNLOAD,
    ROUTE_ADMIN_SLEEP,
    ROUTE_ADMIN_WAKE,
    ROUTE_ADMIN_IS_SLEEPING,
    ROUTE_ADMIN_POWER,
    ROUTE_ADMIN_COST,
    ROUTE_ADMIN_HISTORY,
    ROUTE_ADMIN_PLAN,
    ROUTE_ADMIN_BALANCER,
    ROUTE_BILLING_LEDGER,
    ROUTE_BILLING_ORDERS,
    ROUTE_BILLING_ACCOUNTS,
    ROUTE_BILLING_ACCOUNT,
    ROUTE_BILLING_KEYS,
    ROUTE_BILLING_USAGE,
    ROUTE_BILLING_REAP,
    ROUTE_BILLING_MARKS,
    ROUTE_BILLING_DIRECTORY
};

struct route {
    const char *path;
    enum route_id id;
    bool post;         /* POST, else GET and HEAD */
    bool both;         /* all three */
    bool removes;      /* GET, HEAD and DELETE */
    bool prefix;       /* the rest of the path is an argument (at least one byte) */
    bool open;         /* needs no key */
    bool needs_engine; /* refused while loading and when the engine is lost */
    bool admin;        /* needs an admin key instead of an API key */
    bool billing;      /* exists on the admin port alone */
};

extern const struct route routes[];
extern const size_t routes_count;

enum route_match { ROUTE_FOUND, ROUTE_NO_PATH, ROUTE_NO_METHOD };

/* ROUTE_NO_METHOD: *route is the path's, *allow what it takes. */
enum route_match route_find(const char *method, const char *path, size_t path_length, const struct route **route,
                            const char **allow);

enum refusal {
    REFUSE_UNKNOWN_URL,
    REFUSE_METHOD,
    REFUSE_KEY_MISSING,
    REFUSE_KEY_WRONG,
    REFUSE_KEY_REVOKED,
    REFUSE_NO_DIRECTORY,
    REFUSE_MEDIA_TYPE,
    REFUSE_NO_BODY,
    REFUSE_LOADING,
    REFUSE_DRAINING,
    REFUSE_OVERLOADED,
    REFUSE_ENGINE_LOST,
    REFUSE_STUCK,
    REFUSE_NO_MEMORY,
    REFUSE_ADMIN_OFF,
    REFUSE_BATCHES_OFF,
    REFUSE_MODEL_ASLEEP,
    REFUSE_MODEL_LEAVING,
    REFUSE_MODEL_FAILED,
    REFUSE_MODEL_MEMORY,
    REFUSE_TOKENS,
    REFUSE_QUOTA,
    REFUSE_BUDGET,
    REFUSE_ACCOUNT_CLOSED,
    REFUSE_BILLING,
    REFUSE_JOURNAL,
    REFUSE_AUDIT
};

/* Fills error. retry_after_ms: for those that may be repeated, else ignored. */
void refusal_error(enum refusal refusal, uint32_t retry_after_ms, struct api_error *error);

/* Whether a body of this Content-Type is read as JSON. NULL (none given): yes. Anything but JSON: no, as with OpenAI
 * and vLLM; it also means that a web page cannot post to a local server without asking first (text/plain needs no CORS
 * preflight). */
bool media_type_is_json(const char *content_type);

#endif
