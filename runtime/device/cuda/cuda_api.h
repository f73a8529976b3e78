/* The libraries beside cudart that the CUDA device calls: cuBLASLt and NCCL, and NVML (runtime/power/nvml_api.h),
 * opened with dlopen when the device is created. The binary is linked against none of them: cuBLASLt alone is 542 MB,
 * and a machine without a GPU has none.
 *
 * Each is a table of functions, made from one list of symbols (*_MAP). What is declared here is the little of their C
 * interfaces that we call, in our own words: enumerations are int, handles point to structs nobody defines, constants
 * carry the library's values. tests/unit/cuda/test_cuda_api.c holds every function and constant against the real
 * headers where they are found. Tests fill tables from fakes, and plant errors in them.
 *
 * Tables are read-only once made; any thread. Sources: cublasLt.h and cublas_api.h of CUDA 13.0, nccl.h 2.28.
 */
#ifndef RUNTIME_DEVICE_CUDA_CUDA_API_H
#define RUNTIME_DEVICE_CUDA_CUDA_API_H

#include "runtime/base/status.h"
#include "runtime/power/nvml_api.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- cuBLASLt: every function gives a cublasStatus_t, 0 = success ---- */

struct cublaslt_handle;     /* cublasLtHandle_t points to it */
struct cublaslt_desc;       /* cublasLtMatmulDesc_t */
struct cublaslt_layout;     /* cublasLtMatrixLayout_t: column-major, so a row-major (M, K) is K x M with ld K */
struct cublaslt_preference; /* cublasLtMatmulPreference_t */

struct cublaslt_algo { /* cublasLtMatmulAlgo_t: may be kept in a file for the same version of the library */
    uint64_t data[8];
};
struct cublaslt_heuristic { /* cublasLtMatmulHeuristicResult_t */
    struct cublaslt_algo algo;
    size_t workspace_bytes;
    int state; /* 0: the others are valid */
    float waves;
    int reserved[4];
};

enum {
    CUBLASLT_R_32F = 0, /* cudaDataType_t */
    CUBLASLT_R_BF16 = 14,
    CUBLASLT_R_E4M3 = 28,
    CUBLASLT_COMPUTE_32F = 68,
    CUBLASLT_OP_N = 0,
    CUBLASLT_OP_T = 1,
    CUBLASLT_DESC_TRANSA = 3, /* attributes of a descriptor; int32 unless said otherwise */
    CUBLASLT_DESC_TRANSB = 4,
    CUBLASLT_DESC_EPILOGUE = 7,
    CUBLASLT_DESC_BIAS_POINTER = 8,     /* pointer */
    CUBLASLT_DESC_A_SCALE_POINTER = 17, /* pointer to f32 on the device */
    CUBLASLT_DESC_B_SCALE_POINTER = 18,
    CUBLASLT_DESC_FAST_ACCUM = 25, /* int8 */
    CUBLASLT_DESC_BIAS_DATA_TYPE = 26,
    CUBLASLT_DESC_A_SCALE_MODE = 31,
    CUBLASLT_DESC_B_SCALE_MODE = 32,
    CUBLASLT_SCALE_OUTER_VEC_32F = 3,  /* a scale a row: library 12.9, sm_90 */
    CUBLASLT_EPILOGUE_NONE = 1,        /* CUBLASLT_EPILOGUE_DEFAULT */
    CUBLASLT_EPILOGUE_ADD_BIAS = 4,    /* CUBLASLT_EPILOGUE_BIAS */
    CUBLASLT_PREF_WORKSPACE_BYTES = 1, /* uint64: CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES */
    CUBLASLT_PREF_A_ALIGNMENT = 5,     /* uint32, bytes: CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES; without them 256 */
    CUBLASLT_PREF_B_ALIGNMENT = 6,
    CUBLASLT_PREF_C_ALIGNMENT = 7,
    CUBLASLT_PREF_D_ALIGNMENT = 8
};

#define CUBLASLT_MAP(X)                                                                                                \
    X(create, cublasLtCreate, int, (struct cublaslt_handle * *handle))                                                 \
    X(destroy, cublasLtDestroy, int, (struct cublaslt_handle * handle))                                                \
    X(version, cublasLtGetVersion, size_t, (void))                                                                     \
    X(desc_create, cublasLtMatmulDescCreate, int, (struct cublaslt_desc * *desc, int compute, int scale_type))         \
    X(desc_destroy, cublasLtMatmulDescDestroy, int, (struct cublaslt_desc * desc))                                     \
    X(desc_set, cublasLtMatmulDescSetAttribute, int,                                                                   \
      (struct cublaslt_desc * desc, int attribute, const void *value, size_t bytes))                                   \
    X(layout_create, cublasLtMatrixLayoutCreate, int,                                                                  \
      (struct cublaslt_layout * *layout, int type, uint64_t rows, uint64_t cols, int64_t ld))                          \
    X(layout_destroy, cublasLtMatrixLayoutDestroy, int, (struct cublaslt_layout * layout))                             \
    X(preference_create, cublasLtMatmulPreferenceCreate, int, (struct cublaslt_preference * *preference))              \
    X(preference_destroy, cublasLtMatmulPreferenceDestroy, int, (struct cublaslt_preference * preference))             \
    X(preference_set, cublasLtMatmulPreferenceSetAttribute, int,                                                       \
      (struct cublaslt_preference * preference, int attribute, const void *value, size_t bytes))                       \
    X(heuristic, cublasLtMatmulAlgoGetHeuristic, int,                                                                  \
      (struct cublaslt_handle * handle, struct cublaslt_desc * desc, struct cublaslt_layout * a,                       \
       struct cublaslt_layout * b, struct cublaslt_layout * c, struct cublaslt_layout * d,                             \
       struct cublaslt_preference * preference, int wanted, struct cublaslt_heuristic *results, int *found))           \
    X(matmul, cublasLtMatmul, int,                                                                                     \
      (struct cublaslt_handle * handle, struct cublaslt_desc * desc, const void *alpha, const void *a,                 \
       struct cublaslt_layout *a_layout, const void *b, struct cublaslt_layout *b_layout, const void *beta,            \
       const void *c, struct cublaslt_layout *c_layout, void *d, struct cublaslt_layout *d_layout,                     \
       const struct cublaslt_algo *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream))

/* ---- NCCL: every function gives an ncclResult_t; error_string the text of one ---- */

struct nccl_comm; /* ncclComm_t points to it */
struct nccl_id {  /* ncclUniqueId */
    char bytes[128];
};
struct nccl_config { /* the beginning of ncclConfig_t, as it stood in 2.14: the library reads as much as size says */
    size_t size_bytes;
    unsigned magic, version;
    int blocking;
};

enum {
    NCCL_SUCCESS = 0,
    NCCL_IN_PROGRESS = 7,
    NCCL_CONFIG_VERSION = 21400, /* of the struct above */
    NCCL_TYPE_UINT8 = 1,         /* ncclDataType_t */
    NCCL_TYPE_F32 = 7,
    NCCL_TYPE_BF16 = 9,
    NCCL_OP_SUM = 0
};
#define NCCL_CONFIG_MAGIC 0xcafebeefu

#define NCCL_MAP(X)                                                                                                    \
    X(version, ncclGetVersion, int, (int *version))                                                                    \
    X(id, ncclGetUniqueId, int, (struct nccl_id * id))                                                                 \
    X(init, ncclCommInitRankConfig, int,                                                                               \
      (struct nccl_comm * *comm, int ranks, struct nccl_id id, int rank, struct nccl_config *config))                  \
    X(async_error, ncclCommGetAsyncError, int, (struct nccl_comm * comm, int *error))                                  \
    X(abort_comm, ncclCommAbort, int, (struct nccl_comm * comm))                                                       \
    X(finalize, ncclCommFinalize, int, (struct nccl_comm * comm))                                                      \
    X(destroy, ncclCommDestroy, int, (struct nccl_comm * comm))                                                        \
    X(all_reduce, ncclAllReduce, int,                                                                                  \
      (const void *send, void *receive, size_t count, int type, int op, struct nccl_comm *comm, cudaStream_t stream))  \
    X(all_gather, ncclAllGather, int,                                                                                  \
      (const void *send, void *receive, size_t count, int type, struct nccl_comm *comm, cudaStream_t stream))          \
    X(send, ncclSend, int,                                                                                             \
      (const void *data, size_t count, int type, int peer, struct nccl_comm *comm, cudaStream_t stream))               \
    X(receive, ncclRecv, int,                                                                                          \
      (void *data, size_t count, int type, int peer, struct nccl_comm *comm, cudaStream_t stream))                     \
    X(error_string, ncclGetErrorString, const char *, (int error))

/* ---- the tables ---- */

#define CUDA_API_MEMBER(name, symbol, result, parameters) result(*name) parameters;
struct cublaslt_table {
    CUBLASLT_MAP(CUDA_API_MEMBER)
};
struct nccl_table {
    NCCL_MAP(CUDA_API_MEMBER)
};
#undef CUDA_API_MEMBER

struct cuda_libraries {
    const struct cublaslt_table *cublaslt; /* NULL: none; matmuls go by our own kernels */
    const struct nccl_table *nccl;         /* NULL: one rank alone */
    const struct nvml_table *nvml;         /* NULL: hardware errors show only in what CUDA returns */
};

/* Opens a library once for the life of the process and fills its table. ST_NOTFOUND: err says in one line which file or
 * symbol is missing, or which version is too old. Any thread. */
NODISCARD enum status cuda_api_cublaslt(const struct cublaslt_table **table, struct error *err);
NODISCARD enum status cuda_api_nccl(const struct nccl_table **table, struct error *err);

#endif
