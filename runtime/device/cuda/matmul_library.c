/* cuBLASLt behind matmul_library.h.
 *
 * The library's matrices are column-major, so row-major y (M, N) is its D (N x M), x (M, K) its B (K x M), and a weight
 * (N, K) its A, transposed. A plan holds the descriptors of one product (N, K, type of y) for one M and stride: layers
 * repeat a handful of products, so a few plans, the oldest replaced, serve a step. */
#include "runtime/device/cuda/matmul_library.h"

#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/device/cuda/matmul_choice.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PLANS = 16, CANDIDATES = 8, RUNS = 5, PATH_MAX_BYTES = 4096, ALLOC_FAILED = 3 /* CUBLAS_STATUS_ALLOC_FAILED */ };

/* One product of the library: rows of y are y_stride values apart. */
struct product {
    uint32_t N, K, M, y_stride;
    bool y_f32, has_bias;
    const uint16_t *weight, *x, *bias;
    void *y;
};

struct plan {
    uint32_t N, K, M, y_stride;
    bool y_f32, has_bias, valid;
    uint64_t used; /* turn of its last use */
    struct cublaslt_desc *desc;
    struct cublaslt_layout *a, *b, *d;
    struct matmul_choice choice;
};

struct matmul_library {
    struct matmul_library_config config;
    char file[PATH_MAX_BYTES]; /* "" where none is kept */
    bool makes_folders;        /* of the file's path */
    struct cublaslt_handle *handle;
    struct cublaslt_preference *preference;
    struct matmul_space space;
    struct matmul_choices choices;
    struct plan plans[PLANS];
    uint64_t turn;
    uint32_t measured;
    bool changed; /* since the file was read */
    int status;
};

static uint64_t time_by_events(void *state, cudaError_t (*run)(void *product), void *product, uint32_t runs,
                               cudaStream_t stream)
{
    (void)state;
    cudaEvent_t begin = NULL, end = NULL;
    float ms = 0;
    cudaError_t error = cudaEventCreate(&begin);
    if (error == cudaSuccess) error = cudaEventCreate(&end);
    if (error == cudaSuccess) error = run(product); /* once for caches and lazy loading */
    if (error == cudaSuccess) error = cudaEventRecord(begin, stream);
    for (uint32_t i = 0; i < runs && error == cudaSuccess; i++) error = run(product);
    if (error == cudaSuccess) error = cudaEventRecord(end, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(end);
    if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, begin, end);
    if (begin) (void)cudaEventDestroy(begin);
    if (end) (void)cudaEventDestroy(end);
    return error == cudaSuccess ? (uint64_t)((double)ms * 1e6 / runs) : UINT64_MAX;
}

static void plan_release(const struct matmul_library *library, struct plan *plan)
{
    const struct cublaslt_table *const t = library->config.table;
    if (plan->desc) (void)t->desc_destroy(plan->desc);
    if (plan->a) (void)t->layout_destroy(plan->a);
    if (plan->b) (void)t->layout_destroy(plan->b);
    if (plan->d) (void)t->layout_destroy(plan->d);
    memset(plan, 0, sizeof *plan);
}

/* 0, or what the library said. */
static int plan_make(const struct matmul_library *library, const struct product *p, struct plan *plan)
{
    const struct cublaslt_table *const t = library->config.table;
    const int32_t transposed = CUBLASLT_OP_T, plain = CUBLASLT_OP_N, bias_type = CUBLASLT_R_BF16;
    const int32_t epilogue = p->has_bias ? CUBLASLT_EPILOGUE_ADD_BIAS : CUBLASLT_EPILOGUE_NONE;
    int status = t->desc_create(&plan->desc, CUBLASLT_COMPUTE_32F, CUBLASLT_R_32F);
    if (!status) status = t->desc_set(plan->desc, CUBLASLT_DESC_TRANSA, &transposed, sizeof transposed);
    if (!status) status = t->desc_set(plan->desc, CUBLASLT_DESC_TRANSB, &plain, sizeof plain);
    if (!status) status = t->desc_set(plan->desc, CUBLASLT_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (!status && p->has_bias)
        status = t->desc_set(plan->desc, CUBLASLT_DESC_BIAS_DATA_TYPE, &bias_type, sizeof bias_type);
    if (!status && p->has_bias) /* the heuristic reads its alignment */
        status = t->desc_set(plan->desc, CUBLASLT_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
    if (!status) status = t->layout_create(&plan->a, CUBLASLT_R_BF16, p->K, p->N, p->K);
    if (!status) status = t->layout_create(&plan->b, CUBLASLT_R_BF16, p->K, p->M, p->K);
    if (!status)
        status = t->layout_create(&plan->d, p->y_f32 ? CUBLASLT_R_32F : CUBLASLT_R_BF16, p->N, p->M, p->y_stride);
    return status;
}

/* The library's proposals, best first by its own reckoning. */
static int propose(struct matmul_library *library, struct plan *plan, struct cublaslt_heuristic *results, int wanted,
                   int *found)
{
    const struct cublaslt_table *const t = library->config.table;
    const uint64_t bytes = library->space.workspace_bytes;
    const uint32_t alignment = 16; /* of parts of buffers: y side by side, the rows of a bias */
    int status = t->preference_set(library->preference, CUBLASLT_PREF_WORKSPACE_BYTES, &bytes, sizeof bytes);
    for (int i = CUBLASLT_PREF_A_ALIGNMENT; !status && i <= CUBLASLT_PREF_D_ALIGNMENT; i++)
        status = t->preference_set(library->preference, i, &alignment, sizeof alignment);
    *found = 0;
    if (status) return status;
    return t->heuristic(library->handle, plan->desc, plan->a, plan->b, plan->d, plan->d, library->preference, wanted,
                        results, found);
}

static struct matmul_key key_of(const struct product *p)
{
    return (struct matmul_key){p->N, p->K, matmul_bucket(p->M), p->y_f32, p->has_bias};
}

/* The plan of a product, made where there is none. NULL: the library refuses. */
static struct plan *plan_of(struct matmul_library *library, const struct product *p)
{
    struct plan *oldest = &library->plans[0];
    for (struct plan *plan = library->plans; plan < library->plans + PLANS; plan++) {
        if (plan->valid && plan->N == p->N && plan->K == p->K && plan->M == p->M && plan->y_stride == p->y_stride &&
            plan->y_f32 == p->y_f32 && plan->has_bias == p->has_bias) {
            plan->used = ++library->turn;
            return plan;
        }
        if (plan->used < oldest->used) oldest = plan;
    }
    plan_release(library, oldest);
    library->status = plan_make(library, p, oldest);
    const struct matmul_key key = key_of(p);
    const struct matmul_choice *const known = matmul_choices_find(&library->choices, &key);
    if (!library->status && known) {
        oldest->choice = *known;
    } else if (!library->status) {
        struct cublaslt_heuristic first;
        int found;
        memset(&first, 0, sizeof first);
        library->status = propose(library, oldest, &first, 1, &found);
        if (!library->status) library->status = found ? first.state : -1;
        oldest->choice =
            (struct matmul_choice){.key = key, .algo = first.algo, .workspace_bytes = first.workspace_bytes};
    }
    if (library->status) {
        const int status = library->status;
        plan_release(library, oldest);
        library->status = status;
        return NULL;
    }
    oldest->N = p->N, oldest->K = p->K, oldest->M = p->M, oldest->y_stride = p->y_stride;
    oldest->y_f32 = p->y_f32, oldest->has_bias = p->has_bias, oldest->valid = true;
    oldest->used = ++library->turn;
    return oldest;
}

static cudaError_t enqueue(struct matmul_library *library, const struct product *p, struct plan *plan,
                           const struct cublaslt_algo *algo, cudaStream_t stream)
{
    const struct cublaslt_table *const t = library->config.table;
    const float one = 1.0f, zero = 0.0f;
    int status = 0;
    if (p->has_bias) status = t->desc_set(plan->desc, CUBLASLT_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
    if (!status)
        status = t->matmul(library->handle, plan->desc, &one, p->weight, plan->a, p->x, plan->b, &zero, p->y, plan->d,
                           p->y, plan->d, algo, library->space.workspace, library->space.workspace_bytes, stream);
    if (status) library->status = status;
    return status ? cudaErrorNotSupported : cudaSuccess;
}

/* A candidate as matmul_time_fn runs it. */
struct candidate {
    struct matmul_library *library;
    const struct product *product;
    struct plan *plan;
    const struct cublaslt_algo *algo;
    cudaStream_t stream;
};
static cudaError_t run_candidate(void *state)
{
    const struct candidate *const c = state;
    return enqueue(c->library, c->product, c->plan, c->algo, c->stream);
}

/* Times the library's proposals and keeps the fastest. False: none of them ran. */
static bool measure(struct matmul_library *library, const struct product *p, cudaStream_t stream)
{
    struct cublaslt_heuristic results[CANDIDATES];
    struct plan *const plan = plan_of(library, p);
    struct matmul_choice best = {.key = key_of(p), .ns = UINT64_MAX};
    int found = 0;
    memset(results, 0, sizeof results);
    if (!plan || propose(library, plan, results, CANDIDATES, &found)) return false;
    for (int i = 0; i < found && i < CANDIDATES; i++) {
        if (results[i].state || results[i].workspace_bytes > library->space.workspace_bytes) continue;
        struct candidate candidate = {library, p, plan, &results[i].algo, stream};
        const matmul_time_fn measure_time = library->config.time ? library->config.time : time_by_events;
        const uint64_t ns = measure_time(library->config.time_state, run_candidate, &candidate, RUNS, stream);
        if (ns >= best.ns) continue;
        best.algo = results[i].algo;
        best.workspace_bytes = results[i].workspace_bytes;
        best.ns = ns;
    }
    library->measured++;
    if (best.ns == UINT64_MAX) return false;
    plan->choice = best;
    library->changed |= matmul_choices_put(&library->choices, &best);
    return true;
}

/* Rows of a weight that are multiplied at a time: all, or a panel of whole sixteens. 0: no panel holds sixteen. */
static uint32_t panel_rows(const struct matmul_library *library, const struct cuda_weight *weight)
{
    if (weight->type == CUDA_TYPE_BF16) return weight->N;
    const size_t rows = library->space.panel ? library->space.panel_bytes / (2 * (size_t)weight->K) / 16 * 16 : 0;
    return rows < weight->N ? (uint32_t)rows : weight->N;
}

/* The product of rows [row, row + N) of a weight. */
static struct product product_of(const struct matmul_library *library, const struct cuda_matmul *m, uint32_t row,
                                 uint32_t N, uint32_t M)
{
    const struct cuda_weight *const weight = m->weight;
    const bool plain = weight->type == CUDA_TYPE_BF16;
    return (struct product){
        .N = N,
        .K = weight->K,
        .M = M,
        .y_stride = m->y_stride ? m->y_stride : weight->N,
        .y_f32 = m->y_f32,
        .has_bias = weight->bias != NULL,
        .weight = plain ? (const uint16_t *)weight->codes + (size_t)row * weight->K : library->space.panel,
        .x = m->x,
        .bias = weight->bias ? weight->bias + row : NULL,
        .y = m->y_f32 ? (void *)((float *)m->y + row) : (void *)((uint16_t *)m->y + row),
    };
}

bool matmul_library_takes(const struct matmul_library *library, const struct cuda_weight *weight, bool y_f32)
{
    return weight->K % 8 == 0 && weight->N % 8 == 0 && !(y_f32 && weight->bias) && panel_rows(library, weight) > 0;
}

cudaError_t matmul_library_multiply(struct matmul_library *library, const struct cuda_matmul *matmul, uint32_t M,
                                    cudaStream_t stream)
{
    const struct cuda_weight *const weight = matmul->weight;
    const uint32_t rows = panel_rows(library, weight);
    if (M == 0 || weight->N == 0) return cudaSuccess;
    if (!matmul_library_takes(library, weight, matmul->y_f32)) return cudaErrorNotSupported;
    for (uint32_t row = 0; row < weight->N; row += rows) {
        const uint32_t N = weight->N - row < rows ? weight->N - row : rows;
        const struct product product = product_of(library, matmul, row, N, M);
        if (weight->type != CUDA_TYPE_BF16) {
            const cudaError_t error = cuda_unpack_rows(library->space.panel, weight, row, N, stream);
            if (error != cudaSuccess) return error;
        }
        struct plan *const plan = plan_of(library, &product);
        if (!plan) return cudaErrorNotSupported;
        const cudaError_t error = enqueue(library, &product, plan, &plan->choice.algo, stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

enum status matmul_library_prepare(struct matmul_library *library, const struct cuda_weight *weight, bool y_f32,
                                   uint32_t M_min, uint32_t M_max, const uint16_t *x, void *y, cudaStream_t stream,
                                   struct error *err)
{
    const uint32_t rows = panel_rows(library, weight);
    const struct cuda_matmul matmul = {.weight = weight, .x = x, .y = y, .y_f32 = y_f32};
    CHECK(M_min >= 1);
    if (!matmul_library_takes(library, weight, y_f32)) return ST_OK;
    for (uint32_t M = M_min; M <= M_max;) {
        const uint32_t bucket = matmul_bucket(M), tokens = bucket < M_max ? bucket : M_max;
        const uint32_t last = weight->N % rows, panels[2] = {rows, last};
        for (int i = 0; i < 2; i++) { /* a whole panel, and what is left of the last */
            if (panels[i] == 0) continue;
            const struct product product = product_of(library, &matmul, 0, panels[i], tokens);
            const struct matmul_key key = key_of(&product);
            if (matmul_choices_find(&library->choices, &key)) continue;
            if (!measure(library, &product, stream))
                return error_set(err, ST_DEVICE, "cuBLASLt runs no algorithm for N %u, K %u, M %u (status %d)",
                                 product.N, product.K, product.M, library->status);
        }
        if (bucket >= M_max) break;
        M = bucket + 1;
    }
    return ST_OK;
}

/* "NVIDIA-H100-80GB-HBM3": what a file's name may hold of a GPU's. */
static void name_gpu(const char *gpu, char name[64])
{
    size_t length = 0;
    for (; gpu[length] && length < 63; length++) {
        const char c = gpu[length];
        const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        name[length] = plain ? c : '-';
    }
    name[length] = '\0';
}

/* A path that is too long is none. */
static void choose_file(struct matmul_library *library, const struct matmul_library_config *config)
{
    int length = 0;
    char gpu[64];
    name_gpu(config->gpu, gpu);
    library->makes_folders = !config->file;
    if (config->file) {
        length = snprintf(library->file, sizeof library->file, "%s", config->file);
    } else if (config->folder) {
        length = snprintf(library->file, sizeof library->file, "%s/matmul-%s-cublaslt-%zu.txt", config->folder, gpu,
                          config->table->version());
    }
    if (length < 0 || (size_t)length >= sizeof library->file) library->file[0] = '\0';
}

static void read_file(struct matmul_library *library)
{
    char *text;
    size_t length;
    struct error ignored;
    if (file_read(library->file, MATMUL_FILE_MAX, "MATMUL_FILE_MAX", &text, &length, &ignored) != ST_OK) return;
    (void)matmul_choices_parse(&library->choices, text, length, MATMUL_WORKSPACE_BYTES);
    mem_free(text);
}

enum status matmul_library_create(const struct matmul_library_config *config, struct matmul_library **library,
                                  struct error *err)
{
    struct matmul_library *const made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "no memory for cuBLASLt's table of algorithms");
    memset(made, 0, sizeof *made);
    made->config = *config;
    made->config.file = made->config.folder = NULL;
    matmul_choices_init(&made->choices, config->gpu, config->driver, config->table->version());
    int status = config->table->create(&made->handle);
    if (!status) status = config->table->preference_create(&made->preference);
    if (status) {
        matmul_library_destroy(made);
        return error_set(err, status == ALLOC_FAILED ? ST_NOMEM : ST_DEVICE, "cuBLASLt does not start: status %d",
                         status);
    }
    choose_file(made, config);
    if (made->file[0]) read_file(made);
    *library = made;
    return ST_OK;
}

void matmul_library_destroy(struct matmul_library *library)
{
    if (!library) return;
    for (uint32_t i = 0; i < PLANS; i++) plan_release(library, &library->plans[i]);
    if (library->preference) (void)library->config.table->preference_destroy(library->preference);
    if (library->handle) (void)library->config.table->destroy(library->handle);
    mem_free(library);
}

void matmul_library_set_space(struct matmul_library *library, const struct matmul_space *space)
{
    library->space = *space;
}

/* Those of a path that are missing. What fails here fails once more, with its reason, when the file is made. */
static void make_folders(const char *path)
{
    char folder[PATH_MAX_BYTES];
    for (size_t i = 0; path[i] && i < sizeof folder; i++) {
        folder[i] = path[i];
        if (path[i] != '/' || i == 0) continue;
        folder[i] = '\0';
        (void)mkdir(folder, 0700);
        folder[i] = '/';
    }
}

/* A file of another name takes the place of the old one when it is whole: others may read or write at the same time. */
static bool write_file(const char *path, const char *text, size_t length)
{
    char half[PATH_MAX_BYTES + 16];
    (void)snprintf(half, sizeof half, "%s.XXXXXX", path);
    const int fd = mkstemp(half);
    if (fd < 0) return false;
    size_t done = 0;
    while (done < length) {
        const ssize_t written = write(fd, text + done, length - done);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) break;
        done += (size_t)written;
    }
    bool good = done == length && fchmod(fd, 0644) == 0;
    good = close(fd) == 0 && good && rename(half, path) == 0;
    const int reason = errno;
    if (!good) (void)unlink(half);
    errno = reason;
    return good;
}

enum status matmul_library_save(struct matmul_library *library, struct error *err)
{
    if (!library->changed || !library->file[0]) return ST_OK;
    char *const text = mem_alloc(MATMUL_FILE_MAX, 1);
    if (!text) return error_set(err, ST_NOMEM, "no memory to write %s", library->file);
    const size_t length = matmul_choices_print(&library->choices, text);
    if (library->makes_folders) make_folders(library->file);
    const bool done = write_file(library->file, text, length);
    const int reason = errno;
    mem_free(text);
    if (!done) return error_set(err, ST_IO, "%s: %s", library->file, strerror(reason));
    library->changed = false;
    return ST_OK;
}

int matmul_library_status(const struct matmul_library *library)
{
    return library->status;
}

uint32_t matmul_library_measured(const struct matmul_library *library)
{
    return library->measured;
}
