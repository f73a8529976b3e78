/* The table of nvml_api.h, filled by dlopen where the system's loader finds the driver's library. It stays open: its
 * threads and ours end with the process. */
#include "runtime/power/nvml_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static const struct symbol {
    const char *name;
    size_t offset; /* of its pointer in the table */
    bool needed;
} symbols[] = {
#define NVML_SYMBOL(needed, member, symbol, result, parameters) {#symbol, offsetof(struct nvml_table, member), needed},
    NVML_MAP(NVML_SYMBOL)
#undef NVML_SYMBOL
};

static struct nvml_table opened;
static bool ready;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER; /* guards both */

static enum status open_locked(struct error *err)
{
    if (ready) return ST_OK;
    void *handle = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *reason = dlerror();
        return error_set(err, ST_NOTFOUND, "no NVML: %s (it comes with NVIDIA's driver)",
                         reason ? reason : "libnvidia-ml.so.1 cannot be opened");
    }
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *address = dlsym(handle, symbols[i].name);
        if (!address && symbols[i].needed) {
            (void)dlclose(handle);
            return error_set(err, ST_NOTFOUND, "NVML has no %s: the driver is too old", symbols[i].name);
        }
        memcpy((char *)&opened + symbols[i].offset, &address, sizeof address);
    }
    ready = true;
    return ST_OK;
}

enum status nvml_api_open(const struct nvml_table **table, struct error *err)
{
    pthread_mutex_lock(&opening);
    enum status status = open_locked(err);
    pthread_mutex_unlock(&opening);
    if (status == ST_OK) *table = &opened;
    return status;
}
