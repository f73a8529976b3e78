/* The AVX2 twin of RoPE; see rope.h. */
#include "kernels/rope_body.h"
