/* Step time prediction and its online fit; see cost_model.h. */
#include "scheduler/cost_model.h"

enum { FITS_NEW = 8 };

void cost_model_init(struct cost_model *model, uint64_t weights_bytes, bool frozen)
{
    *model = (struct cost_model){.ns_per_byte = 0.125, .base_ns = 10e3, .frozen = frozen};
    model->ns_per_token = (double)weights_bytes * model->ns_per_byte / 16;
    if (model->ns_per_token < 1) model->ns_per_token = 1;
    model->ns_per_row = model->ns_per_token / 4;
    model->ns_per_pair = model->ns_per_token / 2048;
}

static double work_ns(const struct cost_model *model, const struct cost_step *step)
{
    return step->tokens * model->ns_per_token + step->rows * model->ns_per_row +
           (double)step->pairs * model->ns_per_pair;
}

uint64_t cost_model_predict_ns(const struct cost_model *model, const struct cost_step *step)
{
    double reading = (double)step->bytes * model->ns_per_byte, work = work_ns(model, step);
    return (uint64_t)((reading > work ? reading : work) + model->base_ns);
}

uint32_t cost_model_room(const struct cost_model *model, const struct cost_step *step, uint64_t target_ns)
{
    double room = (double)target_ns - model->base_ns;
    if (room <= (double)step->bytes * model->ns_per_byte) return 0;
    double tokens = (room - work_ns(model, step)) / model->ns_per_token;
    if (tokens <= 0) return 0;
    return tokens >= UINT32_MAX ? UINT32_MAX : (uint32_t)tokens;
}

double cost_model_weight(const struct cost_model *model, uint32_t position)
{
    return 1 + position * model->ns_per_pair / model->ns_per_token;
}

/* Moves the prediction of `work` by gain * error. */
static void correct_work(struct cost_model *model, const struct cost_step *step, double gain, double error)
{
    double parts[3] = {step->tokens * model->ns_per_token, step->rows * model->ns_per_row,
                       (double)step->pairs * model->ns_per_pair};
    double squares = parts[0] * parts[0] + parts[1] * parts[1] + parts[2] * parts[2];
    double *rates[3] = {&model->ns_per_token, &model->ns_per_row, &model->ns_per_pair};
    for (int i = 0; i < 3; i++) *rates[i] *= 1 + gain * error * parts[i] / squares;
}

void cost_model_observe(struct cost_model *model, const struct cost_step *step, uint64_t measured_ns)
{
    if (model->frozen || !step->tokens) return;
    double reading = (double)step->bytes * model->ns_per_byte, work = work_ns(model, step);
    double predicted = reading > work ? reading : work, measured = (double)measured_ns - model->base_ns;
    uint32_t *fits = reading > work ? &model->fits_bytes : &model->fits_work;
    bool is_new = *fits < FITS_NEW;
    double gain = is_new ? 0.5 : 0.0625;
    double factor_max = is_new ? 64 : 1.25; /* what held a step up now and then is no property of its work */
    if (is_new) (*fits)++;
    if (measured < predicted / factor_max) measured = predicted / factor_max;
    if (measured > predicted * factor_max) measured = predicted * factor_max;
    if (reading > work)
        model->ns_per_byte *= 1 + gain * (measured / predicted - 1);
    else
        correct_work(model, step, gain, measured - predicted);
}
