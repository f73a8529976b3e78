/* Step time prediction and its online fit; see cost_model.h. */
#include "scheduler/cost_model.h"

enum { FITS_NEW = 8 };

void cost_model_init(struct cost_model *model, uint64_t weights_bytes, bool frozen)
{
    *model = (struct cost_model){.ns_per_byte = 0.125, .base_ns = 10e3, .ns_per_row = 1e3, .frozen = frozen};
    model->ns_per_token = (double)weights_bytes * model->ns_per_byte / 16;
    if (model->ns_per_token < 1) model->ns_per_token = 1;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

uint64_t cost_model_predict_ns(const struct cost_model *model, const struct cost_step *step)
{
    double work = larger((double)step->bytes * model->ns_per_byte, step->tokens * model->ns_per_token);
    return (uint64_t)(work + model->base_ns + step->rows * model->ns_per_row);
}

uint32_t cost_model_tokens_max(const struct cost_model *model, uint64_t bytes, uint32_t rows, uint64_t target_ns)
{
    double room = (double)target_ns - model->base_ns - rows * model->ns_per_row;
    if (room <= (double)bytes * model->ns_per_byte) return 0;
    double tokens = room / model->ns_per_token;
    return tokens >= UINT32_MAX ? UINT32_MAX : (uint32_t)tokens;
}

void cost_model_observe(struct cost_model *model, const struct cost_step *step, uint64_t measured_ns)
{
    if (model->frozen || !step->tokens) return;
    double by_bytes = (double)step->bytes * model->ns_per_byte, by_tokens = step->tokens * model->ns_per_token;
    bool tokens_bound = by_tokens > by_bytes;
    double *rate = tokens_bound ? &model->ns_per_token : &model->ns_per_byte;
    uint32_t *fits = tokens_bound ? &model->fits_tokens : &model->fits_bytes;
    double work = larger(by_bytes, by_tokens);
    double measured = (double)measured_ns - model->base_ns - step->rows * model->ns_per_row;
    if (measured < work / 64) measured = work / 64;
    if (measured > work * 64) measured = work * 64;
    if (work <= 0) return;
    double gain = *fits < FITS_NEW ? 0.5 : 0.0625;
    *rate *= 1 + gain * (measured / work - 1);
    if (*fits < FITS_NEW) (*fits)++;
}
