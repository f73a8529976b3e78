/* The joules of an exchange's requests: who they are, from their submission to their last event, and what the answer's
 * usage tells of them; see power_thread.h. */
#include "server/exchange_parts.h"

void exchange_energy_begin(struct exchange *exchange, const struct request *request)
{
    struct power *power = exchange->set->models->power;
    if (!power) return;
    power_request_begin(power, request->id,
                        &(struct request_energy_who){.tenant = exchange->caller.tenant,
                                                     .tenant_name = exchange->caller.tenant_name,
                                                     .charge = request->charge});
}

/* Of prompts what was computed; of each choice all ids but the first come of decode rows. */
static void add_joules(struct exchange *exchange, struct power *power, const struct request *request)
{
    const struct usage *usage = &request->usage;
    struct engine_stats stats;
    engine_stats_read(exchange->served->engine, &stats);
    uint64_t prompts = usage->in_total - usage->in_hit + usage->recomputed;
    uint64_t rows = usage->out > usage->choices ? usage->out - usage->choices : 0;
    exchange->joules += power_request_joules(power, request->id, prompts, rows, stats.running);
    if (exchange->set->usage_extras) api_call_energy(exchange->call, exchange->joules);
}

/* From its acceptance to its first step; of interactive tiers nothing is held back. */
static uint64_t deferral_ms(const struct exchange *exchange, const struct request *request)
{
    bool deferrable = exchange->inner || api_call_wish(exchange->call).service_class > CLASS_DEFAULT;
    if (!deferrable || !request->scheduled_ns) return 0;
    return exchange->deferral.held_ms + (request->scheduled_ns - request->submitted_ns) / NS_PER_MS;
}

void exchange_energy_end(struct exchange *exchange, const struct request *request)
{
    struct power *power = exchange->set->models->power;
    if (!power) return;
    if (request->scheduled_ns) add_joules(exchange, power, request);
    power_request_end(power, request->id, deferral_ms(exchange, request));
}
