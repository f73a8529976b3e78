/* Quantised weights of Hugging Face folders: AWQ, GPTQ, FP8 and compressed-tensors, as rows that a device can pack.
 *
 * What a weight is worth. All of these formats say weight = (code - zero point) * scale, in groups; FP8 says weight =
 * code * scale. The value here is that product computed in f32: exact for 4-bit and 8-bit codes with F16 or BF16
 * scales, and for FP8 with BF16 scales; rounded once for f32 scales. It is what the reference implementations compute
 * (AutoAWQ packing_utils.dequantize_gemm, AutoGPTQ and GPTQModel dequantize_weight, compressed-tensors _dequantize,
 * transformers Fp8Dequantize, which multiplies in f32), before they round it to the 16-bit type that they hold weights
 * in.
 *
 * What it becomes. The smallest type of kernels/tensor_type.h that holds every value of the matrix without a change;
 * the choice is made once, when the file is opened, from all scales and zero points:
 *
 *   Q4_0   4 bits, zero points all 8            Q4_1  4 bits, zero point * scale fits F16
 *   Q5_0   4 bits, any zero points              Q8_0  8 bits, zero points all 128 (codes as int8: 0)
 *          these four: scales fit F16, and every 32 inputs lie in one group (K a multiple of 32)
 *   BF16, F16   scales of so few digits that the products fit, as powers of two do with FP8
 *   F8     FP8 with a scale for each tensor, row, or multiple of 128 inputs (K a multiple of 128)
 *   F32    everything else: groups that are not contiguous (GPTQ with desc_act), 8 bits with zero points
 *
 * So nothing is made less exact, but F32 takes four bytes a weight where the file has one or a half: view->type tells.
 * Which modules are quantised is told by the tensors, not by lists of exceptions in the configuration: a module without
 * them has a plain weight. Scales of activations (static FP8, int8) are not used: activations enter in the device's own
 * numerics.
 *
 * Everything read from tensors is checked in quant_view; making rows cannot fail. Not thread-safe while opening; rows
 * may then be made by any threads. */
#ifndef RUNTIME_MODEL_QUANT_H
#define RUNTIME_MODEL_QUANT_H

#include "runtime/base/arena.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/model/model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { QUANT_GROUPS_MAX = 16, QUANT_TARGETS_MAX = 4096, QUANT_NAME_MAX = 256, QUANT_DIMS_MAX = 4 };

enum quant_method {
    QUANT_NONE, /* no quantization_config: no weight is quantised */
    QUANT_AWQ,
    QUANT_GPTQ,
    QUANT_FP8, /* also fbgemm_fp8 and modelopt's FP8 */
    QUANT_COMPRESSED_TENSORS
};

/* How the weights of some modules are coded. Sizes of 0: whatever the shape of the scales says. */
struct quant_group {
    const struct json *targets; /* of compressed-tensors: names, "re:" patterns, classes; NULL: every module */
    uint32_t bits;
    bool is_float;
    bool symmetric;                  /* no zero points */
    uint32_t block_rows, block_cols; /* outputs and inputs that share a scale; block_cols is the group size */
};

struct quant_scheme {
    enum quant_method method;
    bool zeros_less_one; /* GPTQ version 1: words of zero points are stored minus one in each place */
    bool has_order;      /* GPTQ with desc_act: groups of inputs in any order, told by g_idx */
    uint32_t groups_count;
    struct quant_group groups[QUANT_GROUPS_MAX];
};

/* A tensor as a safetensors file has it. data need not be aligned. */
struct raw_tensor {
    const char *dtype; /* as the file names it: "F8_E4M3" */
    uint32_t dims_count;
    uint64_t dims[QUANT_DIMS_MAX];
    const void *data;
    size_t size_bytes;
};

/* Finds a tensor by its name; false when there is none, or none of at most QUANT_DIMS_MAX dims. A tensor that was found
 * is used: the caller may note so. */
typedef bool (*quant_find_fn)(void *state, const char *name, struct raw_tensor *tensor);

/* Reads the quantization_config of a config.json (an object; without one: QUANT_NONE). scheme borrows from config,
 * which must outlive it. ST_INVAL: a method, a format or a parameter that is not known or not supported, by its name.
 * Pure. */
NODISCARD enum status quant_scheme_read(const struct json *config, struct quant_scheme *scheme, struct error *err);

/* The group of a module whose weights are quantised. ST_INVAL: none; ST_LIMIT: a pattern takes too long. Pure. */
NODISCARD enum status quant_scheme_group(const struct quant_scheme *scheme, const char *module,
                                         const struct quant_group **group, struct error *err);

/* The matrix (rows, cols) of a module ("model.layers.0.mlp.up_proj") whose weights are quantised. Memory of the recipe
 * comes from the arena, codes and scales stay where find tells: both outlive the view, and so does module, which is
 * copied. ST_NOTFOUND: the module is not quantised, its plain weight is not touched (err is not set). ST_INVAL: a
 * tensor is missing, or its dtype, shape or content is wrong. ST_NOMEM. */
NODISCARD enum status quant_view(const struct quant_scheme *scheme, quant_find_fn find, void *state,
                                 struct arena *arena, const char *module, uint32_t rows, uint32_t cols,
                                 struct tensor_view *view, struct error *err);

/* Rows [row_begin, row_begin + rows) of a view with or without a recipe, as a matrix of its own. ST_NOMEM. */
NODISCARD enum status quant_cut_rows(const struct tensor_view *view, uint32_t row_begin, uint32_t rows,
                                     struct arena *arena, struct tensor_view *cut);

/* Does a tensor of this name only hold the quantisation of activations or of the KV cache, which has no use here? */
bool quant_is_activation_scale(const char *name);

/* "AWQ", "GPTQ", ... */
const char *quant_method_name(enum quant_method method);

#endif
