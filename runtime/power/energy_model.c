/* The model and its fit; see energy_model.h. Terms are scaled so that a usual step has values near 1: the fit's matrix
 * stays well conditioned in doubles. */
#include "runtime/power/energy_model.h"

#include <math.h>
#include <string.h>

/* FORGET: a window's weight halves in 350 windows (35 s at 100 ms). SPREAD_MAX bounds the covariance of terms that no
 * window tells apart, which forgetting would let grow without end. */
static const double FORGET = 0.998, SPREAD_START = 1e3, SPREAD_MAX = 1e6;
static const double scales[ENERGY_TERMS] = {1, 512, 512.0 * 1024, 64, 64.0 * 1024};

static void terms_of(const struct energy_work *work, double terms[ENERGY_TERMS])
{
    const double raw[ENERGY_TERMS] = {work->steps, work->prefill_tokens, work->prefill_pairs, work->decode_rows,
                                      work->decode_context};
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) terms[i] = raw[i] / scales[i];
}

void energy_model_init(struct energy_model *model, double full_w)
{
    double step_j = full_w * 0.020;
    *model = (struct energy_model){.joules = {step_j / 2, step_j / 512, 0, step_j / 64, 0}};
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) {
        model->fit[i] = model->joules[i];
        model->covariance[i][i] = SPREAD_START;
    }
}

double energy_model_term(const struct energy_model *model, uint32_t idx)
{
    return model->joules[idx] > 0 ? model->joules[idx] : 0;
}

double energy_model_joules(const struct energy_model *model, const struct energy_work *work)
{
    return energy_model_term(model, 0) * work->steps + energy_model_term(model, 1) * work->prefill_tokens +
           energy_model_term(model, 2) * work->prefill_pairs + energy_model_term(model, 3) * work->decode_rows +
           energy_model_term(model, 4) * work->decode_context;
}

/* The lowest term is held at 0 and leaves the covariance, until none is below. */
static void bound_terms(struct energy_model *model)
{
    double terms[ENERGY_TERMS], P[ENERGY_TERMS][ENERGY_TERMS];
    memcpy(P, model->covariance, sizeof P);
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) terms[i] = model->fit[i] * scales[i];
    for (uint32_t held = 0; held < ENERGY_TERMS; held++) {
        uint32_t low = 0;
        for (uint32_t i = 1; i < ENERGY_TERMS; i++)
            if (terms[i] < terms[low]) low = i;
        if (terms[low] >= 0 || !(P[low][low] > 0)) break;
        double part[ENERGY_TERMS], below = terms[low];
        for (uint32_t i = 0; i < ENERGY_TERMS; i++) part[i] = P[i][low] / P[low][low];
        for (uint32_t i = 0; i < ENERGY_TERMS; i++) {
            terms[i] -= part[i] * below;
            for (uint32_t k = 0; k < ENERGY_TERMS; k++)
                if (k != low) P[i][k] -= part[i] * P[low][k];
        }
        for (uint32_t i = 0; i < ENERGY_TERMS; i++) P[i][low] = P[low][i] = 0;
        terms[low] = 0;
    }
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) model->joules[i] = terms[i] > 0 ? terms[i] / scales[i] : 0;
}

void energy_model_observe(struct energy_model *model, const struct energy_work *work, double joules)
{
    double x[ENERGY_TERMS], Px[ENERGY_TERMS], scaled_error = joules, norm = FORGET, spread = 0;
    if (!(work->steps > 0) || !isfinite(joules) || joules <= 0) return;
    terms_of(work, x);
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) {
        Px[i] = 0;
        for (uint32_t k = 0; k < ENERGY_TERMS; k++) Px[i] += model->covariance[i][k] * x[k];
        norm += x[i] * Px[i];
        scaled_error -= model->fit[i] * scales[i] * x[i];
        spread += model->covariance[i][i];
    }
    const double forget = spread < SPREAD_MAX ? FORGET : 1;
    for (uint32_t i = 0; i < ENERGY_TERMS; i++) {
        model->fit[i] += Px[i] / norm * scaled_error / scales[i];
        for (uint32_t k = 0; k <= i; k++) { /* symmetric by construction, whatever rounding does */
            double value = (model->covariance[i][k] - Px[i] * Px[k] / norm) / forget;
            model->covariance[i][k] = model->covariance[k][i] = value;
        }
    }
    bound_terms(model);
    model->windows++;
}
