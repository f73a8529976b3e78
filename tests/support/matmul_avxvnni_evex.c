/* See the header; tests/CMakeLists.txt has the options this is compiled with. */
#include "tests/support/matmul_avxvnni_evex.h"

#define matmul_tile_avxvnni matmul_tile_avxvnni_evex
#include "kernels/matmul_avxvnni.c"
