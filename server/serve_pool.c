/* The pool of deferrable work in the serving process: --pool, what is offered by batches and run for others, /metrics;
 * see pool/pool.h. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "server/pool/pool_work.h"

#include <inttypes.h>
#include <string.h>

enum { LOOK_MS = 1000 };

enum status pool_start(struct server *server, struct error *err)
{
    const struct config *config = server->config;
    if (!config->pool) return ST_OK;
    if (server->models.count != 1)
        return error_set(err, ST_INVAL, "--pool: it is for servers of one model, and this one has %u",
                         server->models.count);
    if (limits.redis_reply_bytes / 2 < limits.pool_entry_bytes ||
        limits.redis_reply_bytes / 2 < limits.pool_result_bytes)
        return error_set(err, ST_INVAL,
                         "--pool: --limit-redis-reply-bytes must be twice --limit-pool-entry-bytes and "
                         "--limit-pool-result-bytes");
    const struct pool_config pool = {.redis = {.url = config->pool,
                                               .password = config->pool_password,
                                               .password_file = config->pool_password_file,
                                               .ca_file = config->pool_ca_file},
                                     .group = config->pool_group,
                                     .wake = wake_loop,
                                     .wake_state = server};
    TRY(pool_open(&pool, &server->pool, err));
    const struct pool_work_config work = {.pool = server->pool,
                                          .exchanges = &server->exchanges,
                                          .plan = server->plan,
                                          .concurrency = config->pool_concurrency,
                                          .may_run = may_run_lines,
                                          .state = server};
    return pool_work_create(&work, &server->pool_work, err);
}

/* Names, shape and size; that a name means the same weights everywhere is for who runs a group. Another template or
 * tokenizer shows in a result's prompt. */
static void hash_model(const struct served *served, uint8_t hash[32])
{
    const struct model *model = served->loaded.model;
    const struct device_info *info = &served->loaded.device->info;
    struct buf text;
    buf_init(&text, 0);
    buf_append_format(&text, "%u %zu %u", info->vocab, model ? model->file_bytes : 0, served->model.context_max);
    for (uint32_t i = 0; i < served->names.count; i++) buf_append_format(&text, "|%s", served->names.items[i]);
    if (!buf_ok(&text)) buf_clear(&text);
    sha256(text.data ? text.data : "", text.length, hash);
    buf_free(&text);
}

void pool_settled(struct server *server)
{
    uint8_t hash[32];
    if (!server->pool || pool_serves(server->pool) || server->models.count != 1) return;
    const struct served *served = server->models.items[0];
    if (served->life.state != MODEL_READY) return;
    hash_model(served, hash);
    pool_serve(server->pool, hash);
}

void pool_turn(struct server *server)
{
    struct pool_news news;
    if (!server->pool) return;
    bool came = pool_came(server->pool);
    while (pool_take(server->pool, &news)) {
        if (!pool_work_news(server->pool_work, &news)) batches_pool_news(server->batches, &news);
        buf_free(&news.bytes);
    }
    int64_t now_ms = clock_unix_ms(clock_system()), passed_ms = now_ms - server->pool_looked_ms;
    if (passed_ms >= 0 && passed_ms < LOOK_MS) return;
    server->pool_looked_ms = now_ms;
    pool_work_tick(server->pool_work, came);
}

void pool_print_metrics(const struct server *server, struct buf *out)
{
    struct pool_stats pool;
    struct pool_work_stats work;
    if (!server->pool) return;
    pool_read_stats(server->pool, &pool);
    pool_work_read_stats(server->pool_work, &work);
    const struct {
        const char *name, *kind, *help;
        uint64_t value;
    } rows[] = {
        {"mr_pool_up", "gauge", "Whether the Redis of --pool answers", pool.up},
        {"mr_pool_running", "gauge", "Requests of other servers that run here", work.running},
        {"mr_pool_offered_total", "counter", "Lines offered to other servers", pool.offered},
        {"mr_pool_refused_total", "counter", "Offers that found no Redis or no room", pool.refused},
        {"mr_pool_results_total", "counter", "Results of other servers for lines of this one", pool.results},
        {"mr_pool_gone_total", "counter", "Offered lines that were given up or lost, and run here", pool.gone},
        {"mr_pool_misfits_total", "counter", "Results that could not be used: the line runs here",
         batches_pool_misfits(server->batches)},
        {"mr_pool_pulled_total", "counter", "Requests taken of other servers", pool.pulled},
        {"mr_pool_returned_total", "counter", "Of these, given back unrun or broken off", pool.returned},
        {"mr_pool_done_total", "counter", "Of these, whose result counts", work.done},
        {"mr_pool_wasted_total", "counter", "Of these, computed in vain: billed by nobody", work.wasted},
        {"mr_pool_output_tokens_total", "counter", "Tokens of results that count", work.output_tokens},
        {"mr_pool_wasted_tokens_total", "counter", "Tokens computed in vain, prompts included", work.wasted_tokens},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        buf_append_format(out, "# HELP %s %s\n# TYPE %s %s\n%s{engine=\"0\"} %" PRIu64 "\n", rows[i].name, rows[i].help,
                          rows[i].name, rows[i].kind, rows[i].name, rows[i].value);
}
