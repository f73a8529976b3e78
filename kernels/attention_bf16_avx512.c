/* The AVX-512 twin of attention with vdpbf16ps; see attention.h. */
#define LANES_DPBF16
#include "kernels/attention_body.h"
