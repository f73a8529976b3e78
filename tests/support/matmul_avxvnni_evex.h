/* kernels/matmul_avxvnni.c for CPUs with AVX-512 VNNI + VL: the same source and the same instruction on the same
 * registers in the other encoding (EVEX for VEX), so that it can run where AVX-VNNI is missing. Contract: that of
 * matmul_tile_fn in kernels/matmul_panel.h; call it only when cpu_path_supported(CPU_PATH_AVX512). */
#ifndef TESTS_SUPPORT_MATMUL_AVXVNNI_EVEX_H
#define TESTS_SUPPORT_MATMUL_AVXVNNI_EVEX_H

#include "kernels/matmul_panel.h"

void matmul_tile_avxvnni_evex(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                              uint32_t R, float *out, size_t stride_m);

#endif
