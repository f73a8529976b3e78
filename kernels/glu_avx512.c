/* The AVX-512 twin of GLU; see glu.h. */
#include "kernels/glu_body.h"
