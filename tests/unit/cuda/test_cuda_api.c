/* What cuda_api.h declares of cuBLASLt and NCCL against their own headers, where the machine has them: one list of
 * arguments must suit the real function and our table's, and sizes, offsets and constants must agree. Mostly a test of
 * the compiler. And what opening a library says when it is not there. */
#include "tests/unit/unit.h"

#include "runtime/device/cuda/cuda_api.h"

#include <stdlib.h>
#include <string.h>

/* Never called: each argument list is compiled twice. */
#define SUITS(table, member, symbol, arguments)                                                                        \
    _Static_assert(sizeof(((const struct table *)0)->member arguments) == sizeof(symbol arguments), #symbol)
#define SAME_MEMBER(ours, member, theirs, their_member)                                                                \
    _Static_assert(offsetof(ours, member) == offsetof(theirs, their_member) &&                                         \
                       sizeof(((ours *)0)->member) == sizeof(((theirs *)0)->their_member),                             \
                   #their_member)
#define ANY ((void *)0)

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
SUITS(cublaslt_table, create, cublasLtCreate, (ANY));
SUITS(cublaslt_table, destroy, cublasLtDestroy, (ANY));
SUITS(cublaslt_table, version, cublasLtGetVersion, ());
SUITS(cublaslt_table, desc_create, cublasLtMatmulDescCreate, (ANY, 0, 0));
SUITS(cublaslt_table, desc_destroy, cublasLtMatmulDescDestroy, (ANY));
SUITS(cublaslt_table, desc_set, cublasLtMatmulDescSetAttribute, (ANY, 0, ANY, 4));
SUITS(cublaslt_table, layout_create, cublasLtMatrixLayoutCreate, (ANY, 0, 1, 1, 1));
SUITS(cublaslt_table, layout_destroy, cublasLtMatrixLayoutDestroy, (ANY));
SUITS(cublaslt_table, preference_create, cublasLtMatmulPreferenceCreate, (ANY));
SUITS(cublaslt_table, preference_destroy, cublasLtMatmulPreferenceDestroy, (ANY));
SUITS(cublaslt_table, preference_set, cublasLtMatmulPreferenceSetAttribute, (ANY, 0, ANY, 8));
SUITS(cublaslt_table, heuristic, cublasLtMatmulAlgoGetHeuristic, (ANY, ANY, ANY, ANY, ANY, ANY, ANY, 1, ANY, ANY));
SUITS(cublaslt_table, matmul, cublasLtMatmul,
      (ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY, 0, (cudaStream_t)ANY));
_Static_assert(sizeof(struct cublaslt_algo) == sizeof(cublasLtMatmulAlgo_t), "algo");
_Static_assert(sizeof(struct cublaslt_heuristic) == sizeof(cublasLtMatmulHeuristicResult_t), "heuristic");
SAME_MEMBER(struct cublaslt_heuristic, algo, cublasLtMatmulHeuristicResult_t, algo);
SAME_MEMBER(struct cublaslt_heuristic, workspace_bytes, cublasLtMatmulHeuristicResult_t, workspaceSize);
SAME_MEMBER(struct cublaslt_heuristic, state, cublasLtMatmulHeuristicResult_t, state);
SAME_MEMBER(struct cublaslt_heuristic, waves, cublasLtMatmulHeuristicResult_t, wavesCount);
_Static_assert(CUBLASLT_R_32F == (int)CUDA_R_32F && CUBLASLT_R_BF16 == (int)CUDA_R_16BF, "types");
_Static_assert(CUBLASLT_R_E4M3 == (int)CUDA_R_8F_E4M3 && CUBLASLT_COMPUTE_32F == (int)CUBLAS_COMPUTE_32F, "types");
_Static_assert(CUBLASLT_OP_N == (int)CUBLAS_OP_N && CUBLASLT_OP_T == (int)CUBLAS_OP_T, "operations");
_Static_assert(CUBLASLT_DESC_TRANSA == (int)CUBLASLT_MATMUL_DESC_TRANSA, "attributes");
_Static_assert(CUBLASLT_DESC_TRANSB == (int)CUBLASLT_MATMUL_DESC_TRANSB, "attributes");
_Static_assert(CUBLASLT_DESC_EPILOGUE == (int)CUBLASLT_MATMUL_DESC_EPILOGUE, "attributes");
_Static_assert(CUBLASLT_DESC_BIAS_POINTER == (int)CUBLASLT_MATMUL_DESC_BIAS_POINTER, "attributes");
_Static_assert(CUBLASLT_DESC_BIAS_DATA_TYPE == (int)CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, "attributes");
_Static_assert(CUBLASLT_DESC_A_SCALE_POINTER == (int)CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, "attributes");
_Static_assert(CUBLASLT_DESC_B_SCALE_POINTER == (int)CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, "attributes");
_Static_assert(CUBLASLT_DESC_FAST_ACCUM == (int)CUBLASLT_MATMUL_DESC_FAST_ACCUM, "attributes");
_Static_assert(CUBLASLT_DESC_A_SCALE_MODE == (int)CUBLASLT_MATMUL_DESC_A_SCALE_MODE, "attributes");
_Static_assert(CUBLASLT_DESC_B_SCALE_MODE == (int)CUBLASLT_MATMUL_DESC_B_SCALE_MODE, "attributes");
_Static_assert(CUBLASLT_SCALE_OUTER_VEC_32F == (int)CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F, "scale modes");
_Static_assert(CUBLASLT_EPILOGUE_NONE == (int)CUBLASLT_EPILOGUE_DEFAULT, "epilogues");
_Static_assert(CUBLASLT_EPILOGUE_ADD_BIAS == (int)CUBLASLT_EPILOGUE_BIAS, "epilogues");
_Static_assert(CUBLASLT_PREF_WORKSPACE_BYTES == (int)CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, "preferences");
_Static_assert(CUBLASLT_PREF_A_ALIGNMENT == (int)CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, "preferences");
_Static_assert(CUBLASLT_PREF_B_ALIGNMENT == (int)CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, "preferences");
_Static_assert(CUBLASLT_PREF_C_ALIGNMENT == (int)CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, "preferences");
_Static_assert(CUBLASLT_PREF_D_ALIGNMENT == (int)CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, "preferences");
#endif

#if __has_include(<nccl.h>)
#include <nccl.h>
SUITS(nccl_table, version, ncclGetVersion, (ANY));
SUITS(nccl_table, id, ncclGetUniqueId, (ANY));
_Static_assert(sizeof(struct nccl_id) == sizeof(ncclUniqueId) && _Alignof(struct nccl_id) == _Alignof(ncclUniqueId),
               "passed by value");
_Static_assert(sizeof(ncclCommInitRankConfig(ANY, 2, (ncclUniqueId){{0}}, 0, ANY)) ==
                   sizeof(((const struct nccl_table *)0)->init(ANY, 2, (struct nccl_id){{0}}, 0, ANY)),
               "ncclCommInitRankConfig");
SUITS(nccl_table, async_error, ncclCommGetAsyncError, (ANY, ANY));
SUITS(nccl_table, abort_comm, ncclCommAbort, (ANY));
SUITS(nccl_table, finalize, ncclCommFinalize, (ANY));
SUITS(nccl_table, destroy, ncclCommDestroy, (ANY));
SUITS(nccl_table, all_reduce, ncclAllReduce, (ANY, ANY, 1, 0, 0, ANY, (cudaStream_t)ANY));
SUITS(nccl_table, all_gather, ncclAllGather, (ANY, ANY, 1, 0, ANY, (cudaStream_t)ANY));
SUITS(nccl_table, error_string, ncclGetErrorString, (0));
SAME_MEMBER(struct nccl_config, size_bytes, ncclConfig_t, size);
SAME_MEMBER(struct nccl_config, magic, ncclConfig_t, magic);
SAME_MEMBER(struct nccl_config, version, ncclConfig_t, version);
SAME_MEMBER(struct nccl_config, blocking, ncclConfig_t, blocking);
_Static_assert(NCCL_CONFIG_VERSION == NCCL_VERSION(2, 14, 0), "version");
_Static_assert(NCCL_SUCCESS == (int)ncclSuccess && NCCL_IN_PROGRESS == (int)ncclInProgress, "results");
_Static_assert(NCCL_TYPE_F32 == (int)ncclFloat32 && NCCL_TYPE_BF16 == (int)ncclBfloat16, "types");
_Static_assert(NCCL_TYPE_UINT8 == (int)ncclUint8 && NCCL_OP_SUM == (int)ncclSum, "types");

static void test_cuda_api_nccl_config_is_the_library_s(void **state)
{
    (void)state;
    ncclConfig_t real = NCCL_CONFIG_INITIALIZER;
    assert_true(real.magic == NCCL_CONFIG_MAGIC && sizeof real >= sizeof(struct nccl_config));
}
#else
static void test_cuda_api_nccl_config_is_the_library_s(void **state)
{
    (void)state;
    skip();
}
#endif

/* A machine of the suite has cuBLASLt or has not: one line either way, and a second call says the same. */
static void test_cuda_api_opens_or_says_why_not(void **state)
{
    (void)state;
    const struct cublaslt_table *cublaslt = NULL, *again = NULL;
    const struct nccl_table *nccl = NULL;
    struct error err = {""};
    enum status status = cuda_api_cublaslt(&cublaslt, &err);
    if (status == ST_OK) {
        assert_non_null(cublaslt->matmul);
        assert_int_equal(cuda_api_cublaslt(&again, &err), ST_OK);
        assert_ptr_equal(again, cublaslt);
    } else {
        assert_int_equal(status, ST_NOTFOUND);
        assert_null(cublaslt);
        assert_non_null(strstr(err.message, "cuBLASLt"));
    }
    err.message[0] = 0;
    if (cuda_api_nccl(&nccl, &err) != ST_OK) assert_non_null(strstr(err.message, "NCCL"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_api_nccl_config_is_the_library_s),
        cmocka_unit_test(test_cuda_api_opens_or_says_why_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
