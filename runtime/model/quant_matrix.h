/* A quantised matrix in its file: what quant_view.c has checked and quant_rows.c reads. Private to the two.
 *
 * Codes are unsigned and mean code - zero point; int8 is read as code + 128, so that its zero point is 128. FP8 has no
 * zero points. Every pointer may be unaligned. */
#ifndef RUNTIME_MODEL_QUANT_MATRIX_H
#define RUNTIME_MODEL_QUANT_MATRIX_H

#include "runtime/model/model.h"

#include <stdint.h>

enum code_layout {
    CODES_NIBBLES, /* (rows, stride): input k in byte k / 2 of its row, even inputs low */
    CODES_BYTES,   /* (rows, stride) of u8 */
    CODES_S8,      /* (rows, stride) of s8 */
    CODES_FP8,     /* (rows, stride) of E4M3 */
    CODES_DOWN4,   /* GPTQ: (inputs / 8, outputs) of u32, input k in nibble k % 8 */
    CODES_DOWN8,   /* GPTQ: (inputs / 4, outputs) of u32, input k in byte k % 4 */
    CODES_ACROSS   /* AWQ: (inputs, outputs / 8) of u32, output n in nibble awq_nibble[n % 8] */
};

enum scale_type { SCALE_F32, SCALE_F16, SCALE_BF16, SCALE_E8M0 };

enum zero_layout {
    ZEROS_FIXED, /* all are zero_fixed */
    ZEROS_WORDS, /* u32 words of zero points of 32 / bits outputs, the lowest first */
    ZEROS_AWQ,   /* the same in AWQ's order */
    ZEROS_S8     /* s8, half of the codes' range below the unsigned zero point */
};

struct quant_matrix {
    struct tensor_recipe recipe; /* first: make gets it */
    enum tensor_type type;       /* what rows are made of */
    uint32_t rows, cols;
    uint32_t bits;

    enum code_layout layout;
    const uint8_t *codes;
    size_t stride_bytes; /* between rows of the layout */

    enum scale_type scale_type;
    const uint8_t *scales;
    size_t scale_stride_row, scale_stride_group; /* in items; row: of block_rows outputs */
    uint32_t block_rows;                         /* outputs that share a scale */
    uint32_t group_size;                         /* inputs that share one */
    uint32_t groups;                             /* that scales and zeros have */
    const uint32_t *group_of;                    /* (cols), or NULL: input k is in group k / group_size */

    enum zero_layout zero_layout;
    const uint8_t *zeros;
    size_t zero_stride_row,
        zero_stride_group; /* in items; row: of block_rows outputs, where words hold them of 32 / bits */
    uint32_t zero_add;     /* to a word of zero points */
    int32_t zero_fixed;
};

float quant_scale(const struct quant_matrix *matrix, uint32_t row, uint32_t group);
int32_t quant_zero(const struct quant_matrix *matrix, uint32_t row, uint32_t group);

/* The recipe of a quant_matrix. */
void quant_make(const struct tensor_recipe *recipe, struct tensor_area area, void *rows);

#endif
