/* The AVX-512 twin of the passes over logits; see sample.h. */
#include "kernels/sample_body.h"
