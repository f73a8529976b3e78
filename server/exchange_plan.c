/* Calls of the tiers flex and batch: promised by the plan before anything is held for them, and started when it lets
 * them go; see exchange.h (E12) and power/plan.h.
 *
 *   admitted -> plan_admit -> 503 deadline_infeasible, resource_unavailable: not billed
 *                   \-> waits (`holding`; a stream is told every keep_alive_ns when it is expected to start) -> charges
 *                                \-> its deadline has passed: 503 deadline_missed, not billed */
#include "server/exchange_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "server/batch/batch_record.h"
#include "server/power/plan.h"

#include <string.h>

enum { FLEX_START_MS = 900000, BATCH_MS = 86400000 };

uint64_t exchanges_plan_id(struct exchanges *set)
{
    return ++set->last_plan_id;
}

static void take_news(struct exchange *exchange, const struct plan_news *news)
{
    struct deferral *deferral = &exchange->deferral;
    switch (news->kind) {
    case PLAN_RELEASED:
        deferral->released = true;
        deferral->forced = news->forced;
        break;
    case PLAN_TAKEN_BACK: deferral->released = false; break;
    case PLAN_EXPIRED:
        deferral->plan_id = 0;
        deferral->cause = plan_cause_text(news->cause);
        break;
    }
}

void exchanges_plan_news(struct exchanges *set)
{
    struct plan_news news;
    while (set->plan && plan_take(set->plan, &news, clock_unix_ms(clock_system()))) {
        struct exchange *exchange = set->all;
        while (exchange && exchange->deferral.plan_id != news.id) exchange = exchange->next;
        if (exchange)
            take_news(exchange, &news);
        else if (set->other_news)
            set->other_news(set->state, &news);
    }
}

static struct plan_request plan_request_of(const struct request *request)
{
    return (struct plan_request){.prompt_tokens = request->prompt_count,
                                 .output_tokens = request->max_tokens * request->choices_count,
                                 .choices = request->choices_count};
}

static void refuse_plan(struct exchange *exchange, const char *code, const char *message, int64_t when_ms)
{
    char when[BATCH_TIME_CHARS + 1] = "none is known";
    int64_t wait_ms = when_ms - clock_unix_ms(clock_system());
    if (when_ms) batch_time_print((when_ms + 999) / 1000, when);
    api_error_set(&exchange->error, 503, "server_error", code, NULL, "%s: %s.", message, when);
    if (when_ms) exchange->error.retry_after_ms = wait_ms < RETRY_AFTER_MS_MIN ? RETRY_AFTER_MS_MIN : (uint32_t)wait_ms;
    exchange_fail(exchange, &exchange->error);
}

/* false: it is answered. */
static bool ask_plan(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    uint32_t count;
    const struct request *requests = api_call_requests(exchange->call, &count);
    struct api_wish wish = api_call_wish(exchange->call);
    bool flex = wish.service_class == CLASS_FLEX;
    struct plan_job job = {.id = exchanges_plan_id(set),
                           .deadline_ms = wish.deadline_unix_s
                                              ? wish.deadline_unix_s * 1000
                                              : clock_unix_ms(clock_system()) + (flex ? FLEX_START_MS : BATCH_MS),
                           .green = (enum plan_green)wish.green,
                           .tier = flex ? PLAN_FLEX : PLAN_BATCH};
    for (uint32_t i = 0; i < count; i++) {
        struct plan_request request = plan_request_of(&requests[i]);
        int64_t span_ms = plan_span_ms(set->plan, &request);
        job.work += plan_work(set->plan, &request);
        if (span_ms > job.span_ms) job.span_ms = span_ms;
    }
    int64_t earliest_ms = 0;
    switch (plan_admit(set->plan, &job, clock_unix_ms(clock_system()), &earliest_ms)) {
    case ST_OK:
        exchange->deferral.plan_id = job.id;
        exchange->deferral.waiting = true;
        exchange->deferral.asked_ns = clock_ns();
        return true;
    case ST_LIMIT:
        if (flex)
            refuse_plan(exchange, "resource_unavailable",
                        "There is no capacity for flex requests at the moment; the next time to ask", earliest_ms);
        else
            refuse_plan(exchange, "deadline_infeasible",
                        "The deadline cannot be promised; the earliest that can be promised", earliest_ms);
        return false;
    default:
        refuse_plan(exchange, "resource_unavailable",
                    "The server holds as many deferred requests as it may; room is free at", 0);
        return false;
    }
}

bool exchange_plan_admit(struct exchange *exchange)
{
    struct exchanges *set = exchange->set;
    struct deferral *deferral = &exchange->deferral;
    if (!set->plan || exchange->inner || deferral->passed) return true;
    enum service_class class = api_call_wish(exchange->call).service_class;
    if (class != CLASS_FLEX && class != CLASS_BATCH) {
        deferral->passed = true;
        return true;
    }
    if (!deferral->waiting && !ask_plan(exchange)) return false;
    exchanges_plan_news(set);
    if (!deferral->plan_id) {
        deferral->waiting = false;
        api_error_set(&exchange->error, 503, "server_error", "deadline_missed", NULL,
                      "The deadline has passed before the request could start (%s). It is not billed.",
                      deferral->cause ? deferral->cause : "late");
        exchange_fail(exchange, &exchange->error);
        return false;
    }
    if (!deferral->released) {
        exchange->holding = true;
        return false;
    }
    uint32_t count;
    struct request *requests = api_call_requests(exchange->call, &count);
    for (uint32_t i = 0; i < count; i++) requests[i].deadline_ns = clock_ns() + limits.request_deadline_ms * NS_PER_MS;
    plan_started(set->plan, deferral->plan_id);
    deferral->held_ms = (clock_ns() - deferral->asked_ns) / NS_PER_MS;
    deferral->waiting = false;
    deferral->passed = true;
    return true;
}

void exchanges_refuse_waiting(struct exchanges *set)
{
    struct api_error error;
    refusal_error(REFUSE_DRAINING, RETRY_AFTER_MS_MIN, &error);
    for (struct exchange *exchange = set->all, *next; exchange; exchange = next) {
        next = exchange->next;
        if (!exchange->deferral.waiting) continue;
        exchange->deferral.waiting = exchange->holding = false;
        exchange_fail(exchange, &error);
        if (exchange_may_end(exchange)) exchange_destroy(exchange);
    }
}

/* A stream that waits: its head, and then when it is expected to start. */
void exchange_plan_tick(struct exchange *exchange, uint64_t now_ns)
{
    struct exchanges *set = exchange->set;
    struct plan_explanation why;
    if (!exchange->deferral.waiting || !exchange->conn || !api_call_streams(exchange->call)) return;
    if (exchange->written_ns == UINT64_MAX) exchange->written_ns = now_ns;
    uint64_t quiet_ns = now_ns - exchange->written_ns;
    if (exchange->head_sent ? quiet_ns <= set->keep_alive_ns : quiet_ns <= set->head_after_ns) return;
    if (!http_conn_writable(exchange->conn)) return;
    if (!exchange->head_sent) http_conn_stream_begin(exchange->conn);
    exchange->head_sent = exchange->streaming = true;
    exchange->written_ns = now_ns;
    struct buf *out = http_conn_out(exchange->conn);
    char when[BATCH_TIME_CHARS + 1] = "not known";
    if (plan_explain(set->plan, exchange->deferral.plan_id, clock_unix_ms(clock_system()), &why)) {
        if (why.expected_ms) batch_time_print((why.expected_ms + 999) / 1000, when);
        buf_append_format(out, ": waiting for %s, expected start %s\n\n", why.why, when);
    } else {
        buf_append_text(out, ": waiting\n\n");
    }
    http_conn_send(exchange->conn);
}

void exchange_plan_end(struct exchange *exchange)
{
    struct deferral *deferral = &exchange->deferral;
    if (!deferral->plan_id) return;
    struct plan *plan = exchange->set->plan;
    double used = 0;
    bool done = deferral->passed && exchange->submitted > 0;
    for (uint32_t i = 0; i < exchange->submitted; i++) {
        const struct request *request = &exchange->requests[i];
        const struct usage *usage = &request->usage;
        struct plan_request was = {.prompt_tokens = usage->in_total - usage->in_hit,
                                   .output_tokens = usage->out,
                                   .choices = request->choices_count};
        done = done && request->scheduled_ns && usage->cause < CAUSE_CLIENT_GONE;
        if (request->scheduled_ns) used += plan_work(plan, &was);
    }
    plan_remove(plan, deferral->plan_id, done ? PLAN_DONE : exchange->failed ? PLAN_FAILED : PLAN_CANCELED, used);
    deferral->plan_id = 0;
}
