/* The plan of deferrable jobs in the serving process: what it is told each second, and GET /admin/power/plan; see
 * serve_parts.h.
 *
 *   GET /admin/power/plan[?jobs=N]   totals, the slots in which work is planned and why, the first N jobs (100; at most
 *                                    PLAN_PRINT_JOBS_MAX) by deadline with what each waits for
 *
 * The plan is always there: without a meter and without signals it still keeps deadlines, by device seconds. */
#include "server/serve_parts.h"

#include "runtime/base/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK_MS = 1000, JOBS_SHOWN = 100 };

static void over_slot(void *state, int64_t at_ms, int64_t now_ms, struct power_slot *slot)
{
    signal_over_slot(state, at_ms, now_ms, slot);
}

enum status plan_open(struct server *server, struct error *err)
{
    const struct plan_config config = {.over_slot = over_slot, .state = server->models.signals};
    TRY(plan_create(&config, &server->plan, err));
    server->plan_now =
        (struct plan_now){.now_ms = clock_unix_ms(clock_system()), .cap_w = INFINITY, .target_w = INFINITY};
    return ST_OK;
}

/* Counters of engines that have gone leave the sums: totals never fall. */
static void add_growth(double *total, double *last, double sum)
{
    if (sum > *last) *total += sum - *last;
    *last = sum;
}

static void tell_work(struct server *server)
{
    struct plan_now *now = &server->plan_now, *last = &server->plan_last;
    struct plan_now sum = {0};
    for (uint32_t i = 0; i < server->models.count; i++) {
        struct engine_stats stats;
        if (!server->models.items[i]->engine) continue;
        engine_stats_read(server->models.items[i]->engine, &stats);
        sum.busy_s += (double)stats.step_ns_total / (double)NS_PER_S;
        sum.steps += (double)stats.steps;
        sum.prompt_tokens += (double)(stats.computed_prompt_tokens + stats.recomputed_tokens);
        sum.output_tokens += (double)stats.generation_tokens;
    }
    add_growth(&now->busy_s, &last->busy_s, sum.busy_s);
    add_growth(&now->steps, &last->steps, sum.steps);
    add_growth(&now->prompt_tokens, &last->prompt_tokens, sum.prompt_tokens);
    add_growth(&now->output_tokens, &last->output_tokens, sum.output_tokens);
}

static void tell_power(struct server *server)
{
    struct plan_now *now = &server->plan_now;
    struct power_slot told;
    signal_at(server->models.signals, now->now_ms, now->now_ms, &told);
    now->shed_level = told.have & SLOT_SHED ? told.shed_level : 0;
    now->metered = server->models.power != NULL;
    if (!now->metered) return;
    struct power_state state;
    power_read_state(server->models.power, &state);
    now->work_j = fmax(state.meter_j - state.idle_w * state.meter_s, 0);
    now->idle_w = state.idle_w;
    now->full_w = state.full_w;
    now->cap_w = state.goal.cap_w;
    now->target_w = state.goal.target_w;
    if (state.goal.shed_level > now->shed_level) now->shed_level = state.goal.shed_level;
}

void plan_turn(struct server *server)
{
    int64_t now_ms = clock_unix_ms(clock_system()), passed_ms = now_ms - server->plan_looked_ms;
    if (passed_ms >= 0 && passed_ms < LOOK_MS) return;
    server->plan_looked_ms = server->plan_now.now_ms = now_ms;
    tell_work(server);
    tell_power(server);
    plan_look(server->plan, &server->plan_now);
}

void admin_plan_request(struct server *server, struct http_conn *conn, const struct http_request *request)
{
    char text[PATH_ARGUMENT_BYTES_MAX], *end;
    unsigned long jobs = JOBS_SHOWN;
    struct buf body;
    bool asked = query_value(request, "jobs", text);
    if (asked) jobs = strtoul(text, &end, 10);
    if (asked && (text[0] < '0' || text[0] > '9' || *end)) {
        struct api_error error;
        api_error_set(&error, 400, "invalid_request_error", NULL, "jobs", "jobs must be a whole number.");
        reply_error(conn, &error, NULL, false);
        return;
    }
    buf_init(&body, 0);
    plan_print(server->plan, clock_unix_ms(clock_system()),
               jobs < PLAN_PRINT_JOBS_MAX ? (uint32_t)jobs : PLAN_PRINT_JOBS_MAX, &body);
    http_conn_reply(conn, &(struct http_reply){.status = 200, .body = &body});
    buf_free(&body);
}
