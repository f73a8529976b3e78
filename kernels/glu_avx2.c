/* The AVX2 twin of GLU; see glu.h. */
#include "kernels/glu_body.h"
