/* Joules of a step, from what it computes; one model for control and for the bill:
 *
 *   E(step) = c0 + c1 * prefill tokens + c2 * prefill pairs + c3 * decode rows + c4 * decode context     (joules)
 *
 * A pair is one prefill token and one position that it attends to; decode context is the positions that the decode rows
 * attend to. E is all that the meter counts while the step runs, base power included: where that is added afterwards,
 * shares of requests are 9 to 18 % off. Fitted by recursive least squares with forgetting (Plackett 1950; Haykin,
 * "Adaptive Filter Theory", ch. 10) on windows of the meter.
 *
 * No term may pay: where the windows say so, it is held at 0 and the others take over what it explained (the least
 * squares under that equality, term by term). Rejected: leaving negative terms out when the model is asked: with steps
 * that are all alike c0 and c1 stand for each other, and without the negative one the joules were up to 40 % too many.
 *
 * Pure; one thread. */
#ifndef RUNTIME_POWER_ENERGY_MODEL_H
#define RUNTIME_POWER_ENERGY_MODEL_H

#include <stdint.h>

enum { ENERGY_TERMS = 5 };

/* What one step computes, or, added up, the steps of a window (a step that lies half in it counts half). */
struct energy_work {
    double steps, prefill_tokens, prefill_pairs, decode_rows, decode_context;
};

struct energy_model {
    double joules[ENERGY_TERMS]; /* of a unit of each term, in the order of energy_work; none below 0 */
    double fit[ENERGY_TERMS];    /* the same without that bound: what the windows alone say */
    double covariance[ENERGY_TERMS][ENERGY_TERMS]; /* of the fit, in scaled units */
    uint64_t windows;                              /* seen */
};

/* First values: a step as dear as 20 ms at full_w, and a prefill token as a 512th, a decode row as a 64th of it. */
void energy_model_init(struct energy_model *model, double full_w);
/* Joules of the work; never negative. */
double energy_model_joules(const struct energy_model *model, const struct energy_work *work);
/* Of one term alone: idx as in energy_work. Never negative. */
double energy_model_term(const struct energy_model *model, uint32_t idx);
/* A window in which the work took so many joules (idle time taken off). Ignored: work without steps, and joules that
 * are not finite or not positive. */
void energy_model_observe(struct energy_model *model, const struct energy_work *work, double joules);

#endif
