/* See step_shape.h. */
#include "bench/gpu_model/step_shape.h"

struct step_shape step_shape_of(const struct batch *batch, uint32_t window)
{
    struct step_shape shape = {.tokens = batch->tokens_count, .rows = batch->rows_count, .seqs = batch->seqs_count};
    for (uint32_t s = 0; s < batch->seqs_count; s++) {
        uint32_t tokens = batch->q_start[s + 1] - batch->q_start[s], length = batch->kv_len[s];
        double first = length - tokens + 1, last = length;
        double seen = window && window < length ? window : length;
        shape.kv_tokens += length;
        /* all positions that one of the tokens sees */
        shape.kv_tokens_windowed += seen + tokens - 1 < length ? seen + tokens - 1 : length;
        shape.pairs += (first + last) / 2 * tokens;
        for (uint32_t i = 0; window && i < tokens; i++) {
            double sees = length - tokens + 1 + i;
            shape.pairs_windowed += sees < window ? sees : window;
        }
    }
    if (!window) shape.pairs_windowed = shape.pairs;
    return shape;
}
