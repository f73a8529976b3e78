/* See node_loop.h. */
#include "server/power/node_loop.h"

#include "runtime/base/clock.h"

#include <math.h>
#include <string.h>

static const double BIN_LEAST_S = 1e-4, BIN_GROWTH = 1.04; /* up to 2.2 s */
static const double CALM_SHARE = 0.8, CUT_MOST = 0.25, CUT_LEAST = 0.9, CHUNK_SHARE = 0.8, DEARER = 1.02;
enum { PATIENCE_MOST_S = 64, SOON_S = 10, FORGET_S = 120 };

/* ---- decisions ---- */

static void take_rows(struct node_guard *guard, double limit_s, double p95_s, uint32_t rows_seen)
{
    uint32_t base = guard->capped && guard->rows_most < rows_seen ? guard->rows_most : rows_seen;
    double share = fmin(fmax(limit_s / p95_s, CUT_MOST), CUT_LEAST);
    bool soon = guard->given_s <= SOON_S;
    guard->rows_most = (uint32_t)floor(base * share);
    guard->capped = true;
    guard->calm_s = 0;
    if (soon && guard->patience_s < PATIENCE_MOST_S) guard->patience_s *= 2;
    guard->given_s = SOON_S + 1;
}

static void give_rows(struct node_guard *guard, uint32_t rows_seen)
{
    guard->calm_s = 0;
    guard->given_s = 0;
    if (rows_seen < guard->rows_most) /* it holds nothing */
        guard->capped = false;
    else
        guard->rows_most += guard->rows_most >= 8 ? guard->rows_most / 8 : 1;
}

void node_guard_turn(struct node_guard *guard, double limit_s, double p95_s, uint32_t intervals, uint32_t rows_seen)
{
    if (guard->patience_s == 0) *guard = (struct node_guard){.patience_s = NODE_PATIENCE_S, .given_s = FORGET_S};
    if (guard->given_s < FORGET_S) guard->given_s++;
    if (guard->given_s == FORGET_S) guard->patience_s = NODE_PATIENCE_S;
    if (!(limit_s > 0) || intervals == 0) {
        guard->capped = false;
        guard->calm_s = 0;
        return;
    }
    if (p95_s > limit_s) {
        take_rows(guard, limit_s, p95_s, rows_seen);
        return;
    }
    guard->calm_s = p95_s < CALM_SHARE * limit_s ? guard->calm_s + 1 : 0;
    if (guard->capped && guard->calm_s >= guard->patience_s) give_rows(guard, rows_seen);
}

uint32_t node_step_ms(double limit_s, double step_j, double token_j, double tokens_s)
{
    if (!(limit_s > 0)) return 0;
    double most = fmin(fmax(CHUNK_SHARE * limit_s * 1e3, NODE_STEP_MS_LEAST), NODE_STEP_MS_MOST);
    uint32_t longest = (uint32_t)most;
    if (!(step_j > 0 && token_j > 0 && tokens_s > 0)) return longest;
    double per_ms = tokens_s * 1e-3, bound = DEARER * (token_j + step_j / (per_ms * longest));
    for (uint32_t ms = NODE_STEP_MS_LEAST; ms < longest; ms++)
        if (token_j + step_j / (per_ms * ms) <= bound) return ms;
    return longest;
}

/* ---- the second under way ---- */

void node_loop_init(struct node_loop *node, double limit_s, uint64_t now_ns)
{
    memset(node, 0, sizeof *node);
    node->limit_s = limit_s;
    node->turned_ns = now_ns;
}

static void count_interval(struct node_loop *node, uint64_t ns)
{
    double bin = log((double)ns * 1e-9 / BIN_LEAST_S) / log(BIN_GROWTH);
    node->bins[bin < 0 ? 0 : bin < NODE_BINS - 1 ? (uint32_t)bin : NODE_BINS - 1]++;
    node->intervals++;
}

static void see_interactive(struct node_loop *node, const struct energy_share *share, uint64_t end_ns)
{
    uint64_t place = share->request_id % NODE_ROWS_MAX, token_ns = node->rows[place].token_ns;
    bool known = node->rows[place].id == share->request_id && token_ns > 0;
    if (known && share->decode_rows > 0 && end_ns > token_ns) count_interval(node, end_ns - token_ns);
    node->rows[place].id = share->request_id;
    node->rows[place].token_ns = end_ns;
}

void node_loop_step(struct node_loop *node, const struct power_step *step, const struct energy_share *shares,
                    uint32_t count)
{
    uint32_t deferrable_rows = 0;
    if (!(node->limit_s > 0)) return;
    for (uint32_t i = 0; i < count; i++) {
        if (shares[i].group % CLASS_COUNT <= CLASS_DEFAULT)
            see_interactive(node, &shares[i], step->end_ns);
        else
            deferrable_rows += shares[i].decode_rows > 0 || shares[i].prefill_tokens > 0;
    }
    if (deferrable_rows > node->deferrable_rows) node->deferrable_rows = deferrable_rows;
    if (step->work.prefill_tokens > 0 && step->end_ns > step->start_ns) {
        node->prompt_tokens += step->work.prefill_tokens;
        node->prompt_s += (double)(step->end_ns - step->start_ns) * 1e-9;
    }
}

/* The upper end of the bin that holds it. */
static double p95(const struct node_loop *node)
{
    uint64_t seen = 0;
    for (uint32_t i = 0; i < NODE_BINS; i++) {
        seen += node->bins[i];
        if (node->intervals > 0 && 100 * seen >= (uint64_t)95 * node->intervals)
            return BIN_LEAST_S * pow(BIN_GROWTH, i + 1);
    }
    return 0;
}

void node_loop_turn(struct node_loop *node, const struct energy_model *model, uint64_t now_ns)
{
    if (now_ns < node->turned_ns + NS_PER_S) return;
    node->turned_ns = now_ns;
    node->p95_s = p95(node);
    node_guard_turn(&node->guard, node->limit_s, node->p95_s, node->intervals, node->deferrable_rows);
    double tokens_s = node->prompt_s > 0 ? node->prompt_tokens / node->prompt_s : 0;
    node->step_ms = node_step_ms(node->limit_s, energy_model_term(model, 0), energy_model_term(model, 1), tokens_s);
    memset(node->bins, 0, sizeof node->bins);
    node->intervals = node->deferrable_rows = 0;
    node->prompt_tokens = node->prompt_s = 0;
}

void node_loop_order(const struct node_loop *node, struct power_order *order)
{
    order->caps_rows = node->guard.capped;
    order->rows_most = node->guard.rows_most;
    order->step_ms = node->step_ms;
}
