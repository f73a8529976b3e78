/* The model and its fit; see draw_model.h. */
#include "runtime/power/draw_model.h"

#include <math.h>

/* RATE: half of an error is gone after seven windows of its kind. LEAST: of the range; a device at work draws
 * something. */
static const double RATE = 0.1, LEAST = 0.05;

void draw_model_init(struct draw_model *model, double range_w)
{
    *model = (struct draw_model){range_w, range_w, range_w};
}

double draw_prompts_share(const struct energy_work *work)
{
    double tokens = work->prefill_tokens + work->decode_rows;
    return tokens > 0 ? work->prefill_tokens / tokens : 0;
}

double draw_model_watts(const struct draw_model *model, const struct energy_work *work)
{
    double share = draw_prompts_share(work);
    return share * model->prompts_w + (1 - share) * model->decode_w;
}

static double bounded(const struct draw_model *model, double watts)
{
    return fmax(LEAST * model->range_w, fmin(watts, model->range_w));
}

void draw_model_observe(struct draw_model *model, double prompts_s, double decode_s, double joules)
{
    double norm = prompts_s * prompts_s + decode_s * decode_s;
    if (!(norm > 0) || !isfinite(joules)) return;
    double step = RATE * (joules - prompts_s * model->prompts_w - decode_s * model->decode_w) / norm;
    model->prompts_w = bounded(model, model->prompts_w + step * prompts_s);
    model->decode_w = bounded(model, model->decode_w + step * decode_s);
}
