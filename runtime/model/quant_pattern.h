/* The regular expressions that configurations of compressed-tensors name modules with: a subset that cannot run away.
 *
 *   literals  .  \. \d \w  [a-z_] [^0-9]  each with * + or ?     (a|b|c) and (?:a|b), without a repetition     ^ $
 *
 * As with Python's re.match a pattern begins at the name's begin and may end anywhere. Anything else (counts,
 * look-around, back references, repeated groups) is refused rather than taken for something it is not. Backtracks,
 * within a budget of steps. Pure, any thread. */
#ifndef RUNTIME_MODEL_QUANT_PATTERN_H
#define RUNTIME_MODEL_QUANT_PATTERN_H

#include <stdbool.h>

enum { QUANT_PATTERN_MAX = 512, QUANT_PATTERN_STEPS_MAX = 100000 };

/* Is this a pattern of the subset, of at most QUANT_PATTERN_MAX bytes? */
bool quant_pattern_is_known(const char *pattern);

/* Does a name match a known pattern? Past the budget of steps: no, and *gave_up is set. */
bool quant_pattern_match(const char *pattern, const char *name, bool *gave_up);

#endif
