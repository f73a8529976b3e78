/* Watts above idle of a device at work, by what it does: one figure for prompts, one for decode, and between them by
 * the share of prompts in a step's tokens.
 *
 *   joules above idle of a step = (share * prompts_w + (1 - share) * decode_w) * seconds that it took
 *
 * Where the energy model (energy_model.h) says what tokens cost, this says what time costs: coarser in a bill, and
 * steadier in control, as a step's duration is measured and a device's watts stay within its range. Fitted to windows
 * of the meter by normalised least mean squares (Widrow and Hoff 1960). Pure; one thread. */
#ifndef RUNTIME_POWER_DRAW_MODEL_H
#define RUNTIME_POWER_DRAW_MODEL_H

#include "runtime/power/energy_model.h"

struct draw_model {
    double prompts_w, decode_w; /* 0: not known */
    double range_w;             /* neither is more */
};

/* First values: the whole range, so that nothing costs less than it will. */
void draw_model_init(struct draw_model *model, double range_w);
/* Prompts in the tokens of a step; 0 without any. */
double draw_prompts_share(const struct energy_work *work);
double draw_model_watts(const struct draw_model *model, const struct energy_work *work);
/* A window in which the device worked for so many seconds, divided by draw_prompts_share, and took so many joules above
 * idle. Ignored: no seconds, and joules that are not finite. */
void draw_model_observe(struct draw_model *model, double prompts_s, double decode_s, double joules);

#endif
