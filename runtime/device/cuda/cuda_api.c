/* The tables of cuda_api.h, filled by dlopen. A library is looked for under the name of the version that we know, first
 * where the system's loader finds it (LD_LIBRARY_PATH, ld.so.conf), then in CUDA_HOME. A symbol that is missing is
 * named: the library is then older than what we call. What was opened stays open: closing cuBLASLt or NCCL while
 * a context lives is not safe, and the process ends with its device. */
#include "runtime/device/cuda/cuda_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct symbol {
    const char *name;
    size_t offset; /* of its pointer in the table */
};

#define CUBLASLT_SYMBOL(name, symbol, result, parameters) {#symbol, offsetof(struct cublaslt_table, name)},
#define NCCL_SYMBOL(name, symbol, result, parameters)     {#symbol, offsetof(struct nccl_table, name)},
static const struct symbol cublaslt_symbols[] = {CUBLASLT_MAP(CUBLASLT_SYMBOL)};
static const struct symbol nccl_symbols[] = {NCCL_MAP(NCCL_SYMBOL)};

struct library {
    const char *what;
    const char *names[3]; /* tried in this order */
    const struct symbol *symbols;
    uint32_t symbols_count;
    void *table;
    bool ready;
};

static struct cublaslt_table cublaslt_table;
static struct nccl_table nccl_table;
#define COUNT_OF(array) (uint32_t)(sizeof(array) / sizeof(array)[0])
static struct library cublaslt = {"cuBLASLt",       {"libcublasLt.so.13", "libcublasLt.so.12", NULL},
                                  cublaslt_symbols, COUNT_OF(cublaslt_symbols),
                                  &cublaslt_table,  false};
static struct library nccl = {"NCCL", {"libnccl.so.2", NULL, NULL}, nccl_symbols, COUNT_OF(nccl_symbols), &nccl_table,
                              false};
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER; /* guards the libraries above */

static void *open_any(const struct library *library)
{
    const char *home = getenv("CUDA_HOME");
    for (uint32_t i = 0; i < COUNT_OF(library->names) && library->names[i]; i++) {
        void *handle = dlopen(library->names[i], RTLD_NOW | RTLD_LOCAL);
        if (handle) return handle;
        char path[4096];
        if (!home || snprintf(path, sizeof path, "%s/lib64/%s", home, library->names[i]) >= (int)sizeof path) continue;
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (handle) return handle;
    }
    return NULL;
}

static enum status open_locked(struct library *library, struct error *err)
{
    if (library->ready) return ST_OK;
    void *handle = open_any(library);
    if (!handle) {
        const char *reason = dlerror(), *file = library->names[0];
        return error_set(err, ST_NOTFOUND, "no %s: %s (install it, or set LD_LIBRARY_PATH)", library->what,
                         reason ? reason : file);
    }
    for (uint32_t i = 0; i < library->symbols_count; i++) {
        void *address = dlsym(handle, library->symbols[i].name);
        if (!address) {
            (void)dlclose(handle);
            return error_set(err, ST_NOTFOUND, "%s has no %s: it is too old", library->what, library->symbols[i].name);
        }
        memcpy((char *)library->table + library->symbols[i].offset, &address, sizeof address);
    }
    library->ready = true;
    return ST_OK;
}

static enum status open_library(struct library *library, struct error *err)
{
    pthread_mutex_lock(&opening);
    enum status status = open_locked(library, err);
    pthread_mutex_unlock(&opening);
    return status;
}

enum status cuda_api_cublaslt(const struct cublaslt_table **table, struct error *err)
{
    enum { OLDEST = 120000 }; /* compute and epilogues as we ask for them; sources of E4M3 */
    TRY(open_library(&cublaslt, err));
    size_t version = cublaslt_table.version();
    if (version < OLDEST)
        return error_set(err, ST_NOTFOUND, "cuBLASLt %zu is too old: %d is the oldest", version, OLDEST);
    *table = &cublaslt_table;
    return ST_OK;
}

enum status cuda_api_nccl(const struct nccl_table **table, struct error *err)
{
    int version = 0;
    TRY(open_library(&nccl, err));
    if (nccl_table.version(&version) != NCCL_SUCCESS || version < NCCL_CONFIG_VERSION)
        return error_set(err, ST_NOTFOUND, "NCCL %d is too old: %d is the oldest", version, NCCL_CONFIG_VERSION);
    *table = &nccl_table;
    return ST_OK;
}
