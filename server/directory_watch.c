/* Keeps the directory of accounts and keys up to date: looks once a second whether the ledger has another version, in
 * the pool, as a ledger may be far; see serve_parts.h and billing/directory_load.h.
 *
 *   tick -> [pool: directory_load] -> loop: auth_directory_set, callers that have stopped are ended
 *
 * On its way it reaps an account that had nothing left (the last one refused in that second): leases of nodes that died
 * come back REAP_GRACE_MS after they expired. Only in Redis; in the process there is no other node.
 *
 * A ledger's client takes one thread at a time: while this looks, billing's calls wait, and the other way round. What
 * cannot be read changes nothing (F16); the reason is logged once, not every second. Keys are revoked, never taken out:
 * a directory without any after one that had some is lost (another Redis, a file that is gone), and not believed, as
 * without any key everybody is let in. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "server/billing/directory_load.h"

#include <inttypes.h>
#include <string.h>

enum { LOOK_EVERY_MS = 1000, REAP_GRACE_MS = 300000 };

static bool has_stopped(void *state, const struct caller *caller)
{
    return auth_has_stopped(state, caller);
}

static void tell_failure(struct directory_watch *watch)
{
    if (strcmp(watch->told.message, watch->err.message) == 0) return;
    watch->told = watch->err;
    log_line(LOG_ERROR, "directory", "%s reason=\"%s\"", watch->loaded ? "kept" : "none yet", watch->err.message);
}

void directory_take(struct server *server, struct directory *directory, uint64_t version)
{
    struct directory_watch *watch = &server->directory;
    const struct directory *now = auth_directory(server->auth);
    if (now && directory_keys(now) > 0 && directory_keys(directory) == 0) {
        (void)error_set(&watch->err, ST_INVAL, "the ledger has no key any more, and had %u", directory_keys(now));
        tell_failure(watch);
        directory_destroy(directory);
        return;
    }
    watch->loaded = true;
    watch->version = version;
    watch->told.message[0] = '\0';
    log_line(LOG_INFO, "directory", "version=%" PRIu64 " accounts=%u keys=%u", version, directory_accounts(directory),
             directory_keys(directory));
    auth_directory_set(server->auth, directory);
    exchanges_stop(&server->exchanges, has_stopped, server->auth);
}

static void load(uv_work_t *work)
{
    struct server *server = work->data;
    struct directory_watch *watch = &server->directory;
    if (watch->reaping) {
        struct error err; /* a ledger that does not answer is told below, by the look */
        enum ledger_answer answer;
        uint32_t leases, packages;
        (void)server->ledger.calls->reap(server->ledger.state, watch->reaping, REAP_GRACE_MS, &leases, &packages,
                                         &answer, &err);
    }
    watch->status = directory_load(&server->ledger, !watch->loaded, &watch->version_read, &watch->read, &watch->err);
}

static void loaded(uv_work_t *work, int uv_status)
{
    struct server *server = work->data;
    struct directory_watch *watch = &server->directory;
    watch->running = false;
    if (uv_status == 0 && watch->status != ST_OK) tell_failure(watch);
    if (uv_status == 0 && watch->status == ST_OK && watch->read)
        directory_take(server, watch->read, watch->version_read);
    watch->read = NULL;
    billing_calls_go_on(server);
}

void directory_watch_start(struct server *server)
{
    struct directory_watch *watch = &server->directory;
    if (!server->ledger.calls) return;
    auth_directory_expect(server->auth);
    watch->work.data = server;
    load(&watch->work); /* at the start nobody else waits for the loop */
    loaded(&watch->work, 0);
}

void directory_watch_tick(struct server *server, uint64_t now_ns)
{
    struct directory_watch *watch = &server->directory;
    if (!server->ledger.calls || watch->running || server->billing_running || server->phase == CLOSING) return;
    if (now_ns - watch->looked_ns < LOOK_EVERY_MS * NS_PER_MS) return;
    watch->looked_ns = now_ns;
    watch->reaping = watch->reap_next;
    watch->reap_next = 0;
    watch->version_read = watch->version;
    watch->running = uv_queue_work(&server->loop, &watch->work, load, loaded) == 0;
}
