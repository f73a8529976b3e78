/* The AVX-512 twin of RMSNorm; see rmsnorm.h. */
#include "kernels/rmsnorm_body.h"
