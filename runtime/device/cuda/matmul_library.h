/* Matmuls by cuBLASLt: for more tokens than matmul_skinny takes. BF16 in, sums in f32, BF16 or f32 out.
 *
 * BF16 weights are used where they lie. Weights of other types are unpacked into a panel of at most panel_bytes first,
 * a panel of rows at a time: 32 MB stay in L2 on their way. Which algorithm a product takes is measured before the
 * device is ready (matmul_library_prepare) and kept in a file (matmul_choice.h); a product that nobody prepared takes
 * the library's first proposal, so that nothing is measured within a step or a graph.
 *
 * Belongs to one thread, of which the GPU is current. After prepare nothing of ours allocates; the library makes its
 * descriptors anew where M changes. */
#ifndef RUNTIME_DEVICE_CUDA_MATMUL_LIBRARY_H
#define RUNTIME_DEVICE_CUDA_MATMUL_LIBRARY_H

#include "kernels/cuda_ops.h"
#include "runtime/device/cuda/cuda_api.h"

enum { MATMUL_WORKSPACE_BYTES = 32 << 20, MATMUL_PANEL_BYTES = 32 << 20 }; /* what the library is given; see above */

struct matmul_library;

/* Device memory for all products; the caller's, and it outlives the library's use. */
struct matmul_space {
    void *workspace;
    size_t workspace_bytes;
    uint16_t *panel; /* NULL where all weights are BF16 */
    size_t panel_bytes;
};

/* Where the time of a candidate comes from: runs it `runs` times and gives nanoseconds of one, or UINT64_MAX where it
 * does not run. NULL: events of the stream. */
typedef uint64_t (*matmul_time_fn)(void *state, cudaError_t (*run)(void *product), void *product, uint32_t runs,
                                   cudaStream_t stream);

struct matmul_library_config {
    const struct cublaslt_table *table;
    const char *gpu;    /* its name */
    int driver;         /* its version */
    const char *file;   /* where choices are kept, or NULL; read by create, replaced by save */
    const char *folder; /* where, without file, one of this GPU and library is kept; save makes the folder. Or NULL */
    matmul_time_fn time;
    void *time_state;
};

/* ST_DEVICE: the library refuses a handle. ST_NOMEM. The caller owns it. A file that is missing or not usable is none.
 */
NODISCARD enum status matmul_library_create(const struct matmul_library_config *config, struct matmul_library **library,
                                            struct error *err);
void matmul_library_destroy(struct matmul_library *library); /* NULL is fine */
void matmul_library_set_space(struct matmul_library *library, const struct matmul_space *space);

/* Can the library multiply by this weight? Not where rows are no multiples of 16 bytes, where a bias goes to f32, which
 * it does not add, or where a panel holds no 16 rows: such products stay with cuda_matmul_tiled. */
bool matmul_library_takes(const struct matmul_library *library, const struct cuda_weight *weight, bool y_f32);

/* Finds or measures an algorithm for products of this weight in every bucket of M from M_min to M_max; x and y are
 * buffers of the sizes of M_max, whose values are lost. Nothing to do for what it does not take. ST_DEVICE: no
 * algorithm runs. */
NODISCARD enum status matmul_library_prepare(struct matmul_library *library, const struct cuda_weight *weight,
                                             bool y_f32, uint32_t M_min, uint32_t M_max, const uint16_t *x, void *y,
                                             cudaStream_t stream, struct error *err);
/* Writes the file if anything was measured since it was read, whole or not at all. ST_IO: it could not be written (err
 * names it); the choices stay good. */
NODISCARD enum status matmul_library_save(struct matmul_library *library, struct error *err);

/* Enqueues y = x times weight, with the weight's bias. An alternating weight's rows come as they lie: (M, N) gate and
 * up in eights, for cuda_glu. scratch and gelu of matmul are not used. cudaErrorNotSupported: it does not take
 * the weight, or refuses. */
NODISCARD cudaError_t matmul_library_multiply(struct matmul_library *library, const struct cuda_matmul *matmul,
                                              uint32_t M, cudaStream_t stream);

/* What the library said when it refused last, 0 if it never did; and how many products were measured. */
int matmul_library_status(const struct matmul_library *library);
uint32_t matmul_library_measured(const struct matmul_library *library);

#endif
