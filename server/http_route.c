/* The route table and the refusals; see http_route.h. */
#include "server/http_route.h"

#include <string.h>
#include <strings.h>

const struct route routes[] = {
    {"/v1/chat/completions", ROUTE_CHAT, .post = true, .needs_engine = true},
    {"/v1/completions", ROUTE_COMPLETIONS, .post = true, .needs_engine = true},
    {"/v1/models", ROUTE_MODELS, .needs_engine = true},
    {"/v1/models/", ROUTE_MODEL, .prefix = true, .needs_engine = true},
    {"/tokenize", ROUTE_TOKENIZE, .post = true, .needs_engine = true},
    {"/detokenize", ROUTE_DETOKENIZE, .post = true, .needs_engine = true},
    {"/health", ROUTE_HEALTH, .open = true},
    {"/livez", ROUTE_LIVEZ, .open = true},
    {"/readyz", ROUTE_READYZ, .open = true},
    {"/ping", ROUTE_PING, .open = true},
    {"/metrics", ROUTE_METRICS, .open = true},
    {"/version", ROUTE_VERSION, .open = false},
    {"/load", ROUTE_LOAD, .open = false},
    {"/v1/usage", ROUTE_USAGE, .open = false},
    {"/v1/files", ROUTE_FILES, .both = true},
    {"/v1/files/", ROUTE_FILE, .prefix = true, .removes = true},
    {"/v1/batches", ROUTE_BATCHES, .both = true},
    {"/v1/batches/", ROUTE_BATCH, .prefix = true, .both = true},
    {"/", ROUTE_ROOT, .open = true},
    {"/console", ROUTE_CONSOLE, .open = true},
    {"/console/", ROUTE_CONSOLE_FILE, .prefix = true, .open = true},
    /* llama.cpp's names for loading, vLLM's for sleeping */
    {"/models", ROUTE_ADMIN_MODELS, .admin = true},
    {"/models/load", ROUTE_ADMIN_LOAD, .post = true, .admin = true},
    {"/models/unload", ROUTE_ADMIN_UNLOAD, .post = true, .admin = true},
    {"/sleep", ROUTE_ADMIN_SLEEP, .post = true, .admin = true},
    {"/wake_up", ROUTE_ADMIN_WAKE, .post = true, .admin = true},
    {"/is_sleeping", ROUTE_ADMIN_IS_SLEEPING, .admin = true},
    {"/admin/power", ROUTE_ADMIN_POWER, .both = true, .admin = true},
    {"/admin/cost", ROUTE_ADMIN_COST, .admin = true},
    {"/admin/history", ROUTE_ADMIN_HISTORY, .admin = true},
    {"/admin/balancer", ROUTE_ADMIN_BALANCER, .both = true, .admin = true},
    {"/admin/power/plan", ROUTE_ADMIN_PLAN, .admin = true},
    {"/admin/billing/ledger", ROUTE_BILLING_LEDGER, .both = true, .admin = true, .billing = true},
    {"/admin/billing/orders", ROUTE_BILLING_ORDERS, .post = true, .admin = true, .billing = true},
    {"/admin/billing/accounts", ROUTE_BILLING_ACCOUNTS, .both = true, .admin = true, .billing = true},
    {"/admin/billing/accounts/", ROUTE_BILLING_ACCOUNT, .prefix = true, .admin = true, .billing = true},
    {"/admin/billing/keys", ROUTE_BILLING_KEYS, .both = true, .admin = true, .billing = true},
    {"/admin/billing/usage", ROUTE_BILLING_USAGE, .admin = true, .billing = true},
    {"/admin/billing/reap", ROUTE_BILLING_REAP, .post = true, .admin = true, .billing = true},
    {"/admin/billing/marks", ROUTE_BILLING_MARKS, .admin = true, .billing = true},
    {"/admin/billing/directory", ROUTE_BILLING_DIRECTORY, .both = true, .admin = true, .billing = true},
};
const size_t routes_count = sizeof routes / sizeof routes[0];

enum route_match route_find(const char *method, const char *path, size_t path_length, const struct route **route,
                            const char **allow)
{
    for (size_t i = 0; i < routes_count; i++) {
        size_t length = strlen(routes[i].path);
        bool same = routes[i].prefix ? path_length > length : path_length == length;
        if (!same || memcmp(routes[i].path, path, length) != 0) continue;
        *route = &routes[i];
        *allow = routes[i].both      ? "GET, HEAD, POST"
                 : routes[i].removes ? "GET, HEAD, DELETE"
                 : routes[i].post    ? "POST"
                                     : "GET, HEAD";
        bool posted = strcmp(method, "POST") == 0, got = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
        if (routes[i].removes && strcmp(method, "DELETE") == 0) return ROUTE_FOUND;
        bool fits = routes[i].both ? posted || got : routes[i].post ? posted : got;
        /* SageMaker's /ping and vLLM's take POST too */
        if (routes[i].id == ROUTE_PING && strcmp(method, "POST") == 0) fits = true;
        return fits ? ROUTE_FOUND : ROUTE_NO_METHOD;
    }
    return ROUTE_NO_PATH;
}

void refusal_error(enum refusal refusal, uint32_t retry_after_ms, struct api_error *error)
{
    static const struct {
        int status;
        const char *type, *code, *message;
        bool again;
    } table[] = {
        [REFUSE_UNKNOWN_URL] = {404, "not_found_error", "unknown_url", "There is nothing at this URL.", false},
        [REFUSE_METHOD] = {405, "invalid_request_error", "method_not_supported", "This URL does not take that method.",
                           false},
        [REFUSE_KEY_MISSING] = {401, "authentication_error", "invalid_api_key",
                                "No API key was given. Send it as \"Authorization: Bearer KEY\" or \"x-api-key: KEY\".",
                                false},
        [REFUSE_KEY_WRONG] = {401, "authentication_error", "invalid_api_key", "The API key given is not valid here.",
                              false},
        [REFUSE_KEY_REVOKED] = {401, "authentication_error", "key_revoked", "The API key given has been revoked.",
                                false},
        [REFUSE_NO_DIRECTORY] = {503, "server_error", "directory_unavailable",
                                 "The accounts and keys have not been read yet.", true},
        [REFUSE_MEDIA_TYPE] = {415, "invalid_request_error", NULL,
                               "The body must be JSON: Content-Type application/json.", false},
        [REFUSE_NO_BODY] = {400, "invalid_request_error", NULL, "The request has no body; a JSON object is needed.",
                            false},
        [REFUSE_LOADING] = {503, "server_error", "model_loading", "The model is still loading.", true},
        [REFUSE_DRAINING] = {503, "server_error", "draining", "This server is shutting down.", true},
        [REFUSE_OVERLOADED] = {503, "server_error", "overloaded", "The server's queue is full.", true},
        [REFUSE_ENGINE_LOST] = {503, "server_error", "resource_unavailable", "The engine has stopped.", true},
        [REFUSE_STUCK] = {503, "server_error", "resource_unavailable", "The engine does not answer.", true},
        [REFUSE_NO_MEMORY] = {503, "server_error", "resource_unavailable", "The server is out of memory.", true},
        [REFUSE_ADMIN_OFF] = {403, "permission_error", "admin_key_not_set",
                              "Admin calls are off: start the server with --admin-key-file, --admin-key or "
                              "MILLRACE_ADMIN_KEY.",
                              false},
        [REFUSE_BATCHES_OFF] = {501, "invalid_request_error", "batches_off",
                                "This server keeps no files and runs no batches: its operator can start it with "
                                "--batch-dir FOLDER.",
                                false},
        [REFUSE_MODEL_ASLEEP] = {503, "server_error", "model_asleep",
                                 "The model is asleep, or waking; it takes no requests yet.", true},
        [REFUSE_MODEL_LEAVING] = {503, "server_error", "model_unloaded",
                                  "The model is being unloaded or put to sleep by its operator.", true},
        [REFUSE_MODEL_FAILED] = {503, "server_error", "model_failed",
                                 "The model could not be loaded; its operator can see why.", true},
        [REFUSE_MODEL_MEMORY] = {503, "server_error", "insufficient_memory",
                                 "The model is asleep and its memory is in use by others.", true},
        [REFUSE_TOKENS] = {400, "invalid_request_error", "invalid_value",
                           "The request could take more than 9,000,000 tokens (its prompt and 'n' x 'max_tokens'), the "
                           "most that is billed as one. Please lower 'n' or 'max_tokens'.",
                           false},
        [REFUSE_QUOTA] = {402, "insufficient_quota", "insufficient_quota",
                          "The account's token packages are used up; top it up and ask again.", false},
        [REFUSE_BUDGET] = {402, "insufficient_quota", "key_budget_exhausted",
                           "This key's budget is used up; who gave it out can raise it, or it begins anew with its "
                           "next day or month.",
                           false},
        [REFUSE_ACCOUNT_CLOSED] = {403, "permission_error", "account_closed", "The account is closed.", false},
        [REFUSE_BILLING] = {503, "server_error", "billing_unavailable",
                            "The account's balance cannot be asked for at the moment.", true},
        [REFUSE_JOURNAL] = {503, "server_error", "billing_unavailable",
                            "The server cannot record usage at the moment and takes no requests.", true},
        [REFUSE_AUDIT] = {503, "server_error", "audit_unavailable",
                          "The audit log cannot be written, so nothing is changed; the server's log says why.", true},
    };
    (void)api_error_set(error, table[refusal].status, table[refusal].type, table[refusal].code, "", "%s",
                        table[refusal].message);
    error->retry_after_ms = table[refusal].again ? retry_after_ms : 0;
}

bool media_type_is_json(const char *content_type)
{
    if (!content_type) return true;
    size_t length = strcspn(content_type, "; \t");
    if (length == strlen("application/json") && strncasecmp(content_type, "application/json", length) == 0) return true;
    return length > 5 && strncasecmp(content_type, "application/", 12) == 0 &&
           strncasecmp(content_type + length - 5, "+json", 5) == 0;
}
