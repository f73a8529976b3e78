/* See budget_link.h. */
#include "server/budget_link.h"

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "server/billing/ledger_redis.h"

#include <string.h>

#define GIVE_BACK_NS (2 * NS_PER_S)

struct budget_link {
    uv_loop_t *loop;
    struct billing *billing;
    const struct auth *auth;
    void (*answered)(void *state);
    void *state;
    struct budgets *budgets;
    struct ledger_client client;
    uv_work_t work;
    bool running;
    /* the question in the pool */
    struct budget_ask ask;
    struct budget_answer answer;
    enum status status;
    struct error err, told;
};

static struct budget_time time_now(void)
{
    const struct clock *clock = clock_system();
    return (struct budget_time){.now_ns = clock_now_ns(clock), .unix_s = clock_unix_ms(clock) / 1000};
}

enum status budget_link_open(uv_loop_t *loop, struct billing *billing, const struct auth *auth,
                             void (*answered)(void *state), void *state, struct budget_link **link, struct error *err)
{
    struct budget_link *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "no memory for budgets");
    *made = (struct budget_link){.loop = loop, .billing = billing, .auth = auth, .answered = answered, .state = state};
    made->work.data = made;
    const struct budgets_config config = {.producer = billing->producer,
                                          .utc_offset_s = billing->utc_offset_s,
                                          .idle_ns = billing->leases.idle_ns,
                                          .dry_ns = billing->leases.dry_ns,
                                          .ask_again_ns = NS_PER_S,
                                          .retry_ns = billing->leases.retry_ns,
                                          .window_units = billing->leases.window_units,
                                          .outage = billing->leases.outage};
    enum status status = budgets_create(&config, &made->budgets);
    made->client = billing->ledger;
    if (status == ST_OK && billing->emitter) status = ledger_redis_create(&billing->redis, &made->client, err);
    if (status != ST_OK) {
        budgets_destroy(made->budgets);
        mem_free(made);
        return error_set(err, ST_NOMEM, "no memory for budgets");
    }
    *link = made;
    return ST_OK;
}

static void ask_ledger(struct budget_link *link)
{
    link->status = link->client.calls->budget(link->client.state, &link->ask, &link->answer, &link->err);
}

static void take_answer(struct budget_link *link)
{
    if (link->status == ST_OK)
        link->told.message[0] = '\0';
    else if (strcmp(link->told.message, link->err.message) != 0)
        log_line(LOG_ERROR, "billing", "a key's budget cannot be asked for reason=\"%s\"", link->err.message);
    if (link->status != ST_OK) link->told = link->err;
    budgets_answered(link->budgets, link->status == ST_OK ? &link->answer : NULL, time_now().now_ns);
}

static void in_pool(uv_work_t *work)
{
    ask_ledger(work->data);
}

static void turn(struct budget_link *link);

static void back_on_loop(uv_work_t *work, int uv_status)
{
    struct budget_link *link = work->data;
    link->running = false;
    if (uv_status != 0) link->status = error_set(&link->err, ST_AGAIN, "not asked: the server ends");
    take_answer(link);
    link->answered(link->state);
    turn(link);
}

static void turn(struct budget_link *link)
{
    if (link->running || !budgets_next(link->budgets, time_now(), &link->ask)) return;
    link->running = uv_queue_work(link->loop, &link->work, in_pool, back_on_loop) == 0;
    if (link->running) return;
    link->status = error_set(&link->err, ST_NOMEM, "no memory");
    take_answer(link);
}

void budget_link_tick(struct budget_link *link)
{
    if (link) turn(link);
}

void budget_link_close(struct budget_link *link)
{
    if (!link) return;
    uint64_t until_ns = time_now().now_ns + GIVE_BACK_NS;
    budgets_give_back(link->budgets);
    while (time_now().now_ns < until_ns && budgets_next(link->budgets, time_now(), &link->ask)) {
        ask_ledger(link);
        take_answer(link);
        if (link->status != ST_OK) break;
    }
    if (link->billing->emitter) link->client.calls->close(link->client.state);
    budgets_destroy(link->budgets);
    mem_free(link);
}

enum lease_verdict budget_link_hold(struct budget_link *link, uint64_t key, uint64_t least, uint64_t most,
                                    struct budget_wish *wish, struct budget_hold *hold, uint64_t *got)
{
    const struct directory *directory = link && key ? auth_directory(link->auth) : NULL;
    const struct directory_key *found = directory ? directory_find_number(directory, key) : NULL;
    *got = most;
    if (!found || found->budget.period == BUDGET_NONE) return LEASE_HELD;
    enum lease_verdict verdict =
        budgets_hold(link->budgets, key, &found->budget, least, most, time_now(), wish, hold, got);
    turn(link);
    return verdict;
}

void budget_link_less(struct budget_link *link, uint64_t key, struct budget_hold *hold, uint64_t units)
{
    if (hold->units > 0 && units > 0) budgets_less(link->budgets, key, hold, units);
}

void budget_link_settle(struct budget_link *link, uint64_t key, struct budget_hold *hold, uint64_t used)
{
    if (hold->units > 0) budgets_settle(link->budgets, key, hold, used);
}
