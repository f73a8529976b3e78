/* The AVX-512 twin of attention; see attention.h. */
#include "kernels/attention_body.h"
