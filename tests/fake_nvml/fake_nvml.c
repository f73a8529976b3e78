/* A libnvidia-ml.so.1 of our own: the symbols that nvml_api.h calls, with the real ABI, over plants. It is opened and
 * called as the driver's would be, so that the whole path of a real sensor runs without a GPU. What it can be told to
 * do wrong stands in fake_nvml.h. FAKE_NVML_OLD leaves out what old drivers lack, FAKE_NVML_BROKEN a symbol that all
 * have.
 */
#include "tests/fake_nvml/fake_nvml.h"

#include "runtime/base/random.h"
#include "runtime/power/nvml_api.h"
#include "runtime/power/plant.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define EXPORT                                                 __attribute__((visibility("default")))
#define FAKE_DECLARE(needed, name, symbol, result, parameters) EXPORT result symbol parameters;
NVML_MAP(FAKE_DECLARE)
EXPORT bool fake_nvml_control(const char *line);
EXPORT double fake_nvml_drawn_j(unsigned gpu);
EXPORT int fake_nvml_open(void);

enum { GPUS_MAX = 16, SLICES_KEPT = 256, INVALID_ARGUMENT = 2, NOT_FOUND = 6 };
static const double SLICE_S = 0.005;

struct fake_gpu {
    struct plant plant;
    double work, step_mj, wrap_mj, jump_mj, off_mj, frozen, frozen_watts, pace, duty, scale_watts, limit, most;
    double energy_result, field_result, power_result, limit_result, lost;
    double drawn_j[SLICES_KEPT]; /* the plant's joules after each slice */
    uint64_t slices, rng;
    double counter_mj, instant_w, mean_w, next_watts_s; /* what is shown */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards everything below */
static struct fake_gpu gpus[GPUS_MAX];
static unsigned gpus_count;
static int opened, init_result;
static unsigned long long next_xid;
static unsigned recovery;
static struct timespec file_changed;
static double clock_s, left_s;

static void gpu_new(struct fake_gpu *gpu, uint64_t seed)
{
    const struct plant_config plant = {90, 610, 1, 0, 0.030, 0.1, 0.002, seed};
    *gpu = (struct fake_gpu){
        .step_mj = 1, .pace = 0.025, .duty = 1, .scale_watts = 1, .limit = 700, .most = 700, .rng = seed};
    gpu->instant_w = gpu->mean_w = plant.idle_w;
    plant_init(&gpu->plant, &plant);
}

static double mean_over(const struct fake_gpu *gpu, double seconds)
{
    uint64_t back = (uint64_t)llround(seconds / SLICE_S);
    if (back > SLICES_KEPT - 1) back = SLICES_KEPT - 1;
    if (back >= gpu->slices) back = gpu->slices - 1;
    if (!back) return gpu->plant.drawn_w;
    double before = gpu->drawn_j[(gpu->slices - 1 - back) % SLICES_KEPT];
    return (gpu->drawn_j[(gpu->slices - 1) % SLICES_KEPT] - before) / ((double)back * SLICE_S);
}

/* A reading of watts has the noise of the counter's. */
static double noisy(struct fake_gpu *gpu, double watts)
{
    double uniform = random_next_uniform(&gpu->rng) * 2 - 1;
    return watts * gpu->scale_watts * (1 + gpu->plant.config.noise * uniform);
}

static void show(struct fake_gpu *gpu)
{
    double second, mj;
    if (gpu->frozen != 0) return;
    mj = (double)plant_counter_uj(&gpu->plant, &second) / 1e3;
    gpu->counter_mj = floor(mj / gpu->step_mj) * gpu->step_mj;
    if (gpu->frozen_watts != 0 || gpu->plant.now_s < gpu->next_watts_s - 1e-9) return;
    gpu->next_watts_s = gpu->plant.now_s + gpu->pace;
    gpu->instant_w = noisy(gpu, mean_over(gpu, gpu->duty * gpu->pace));
    gpu->mean_w = noisy(gpu, mean_over(gpu, 1));
}

static void pass(double seconds)
{
    for (left_s += seconds; left_s > SLICE_S / 2; left_s -= SLICE_S) {
        for (unsigned g = 0; g < gpus_count; g++) {
            struct fake_gpu *gpu = &gpus[g];
            double work_most = (gpu->limit - gpu->plant.config.idle_w) / gpu->plant.config.gain;
            plant_run(&gpu->plant, SLICE_S, gpu->work < work_most ? gpu->work : work_most);
            gpu->drawn_j[gpu->slices++ % SLICES_KEPT] = gpu->plant.energy_j;
            show(gpu);
        }
    }
}

static bool set(struct fake_gpu *gpu, const char *key, double value)
{
    struct plant_config *plant = &gpu->plant.config;
    const struct {
        const char *key;
        double *value;
    } keys[] = {{"work", &gpu->work},
                {"idle", &plant->idle_w},
                {"range", &plant->range_w},
                {"gain", &plant->gain},
                {"lag", &plant->lag_s},
                {"publish", &plant->publish_s},
                {"noise", &plant->noise},
                {"step_mj", &gpu->step_mj},
                {"wrap_mj", &gpu->wrap_mj},
                {"off_mj", &gpu->off_mj},
                {"frozen", &gpu->frozen},
                {"frozen_watts", &gpu->frozen_watts},
                {"pace", &gpu->pace},
                {"duty", &gpu->duty},
                {"scale_watts", &gpu->scale_watts},
                {"limit", &gpu->limit},
                {"most", &gpu->most},
                {"energy_result", &gpu->energy_result},
                {"field_result", &gpu->field_result},
                {"power_result", &gpu->power_result},
                {"limit_result", &gpu->limit_result},
                {"lost", &gpu->lost}};
    if (!strcmp(key, "counter_mj")) {
        gpu->jump_mj = value - gpu->counter_mj;
        return true;
    }
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strcmp(key, keys[i].key) != 0) continue;
        *keys[i].value = value;
        return true;
    }
    return false;
}

static bool control_locked(const char *line)
{
    char key[32];
    double value;
    unsigned only;
    int fields = sscanf(line, "%31s %lf %u", key, &value, &only);
    if (fields < 2) return false;
    if (!strcmp(key, "gpus")) {
        gpus_count = value < GPUS_MAX ? (unsigned)value : GPUS_MAX;
        left_s = 0;
        for (unsigned g = 0; g < gpus_count; g++) gpu_new(&gpus[g], g + 1);
    } else if (!strcmp(key, "pass")) {
        pass(value);
    } else if (!strcmp(key, "init_result")) {
        init_result = (int)value;
    } else if (!strcmp(key, "xid")) {
        next_xid = (unsigned long long)value;
    } else if (!strcmp(key, "recovery")) {
        recovery = (unsigned)value;
    } else {
        bool known = true;
        for (unsigned g = 0; g < gpus_count; g++) {
            if (fields < 3 || g == only) known = set(&gpus[g], key, value) && known;
        }
        return known;
    }
    return true;
}

static void read_file(const char *path)
{
    char line[128];
    struct stat about;
    if (stat(path, &about) ||
        (about.st_mtim.tv_sec == file_changed.tv_sec && about.st_mtim.tv_nsec == file_changed.tv_nsec))
        return;
    FILE *file = fopen(path, "re");
    if (!file) return;
    file_changed = about.st_mtim;
    while (fgets(line, sizeof line, file)) (void)control_locked(line);
    (void)fclose(file);
}

/* Every call of the library: its device as it is now. NULL: there is no such. */
static struct fake_gpu *enter(const struct nvml_device *device)
{
    const char *path = getenv("FAKE_NVML_FILE");
    (void)pthread_mutex_lock(&lock);
    if (path) {
        struct timespec now;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        double now_s = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
        if (clock_s > 0) pass(now_s - clock_s);
        clock_s = now_s;
        read_file(path);
    }
    for (unsigned g = 0; g < gpus_count; g++) {
        if ((const void *)device == &gpus[g]) return &gpus[g];
    }
    return NULL;
}

static int leave(int result)
{
    (void)pthread_mutex_unlock(&lock);
    return result;
}

/* What a function of a device returns: invalid, lost, as told, or 0. */
static int result_of(const struct fake_gpu *gpu, double told)
{
    if (!gpu) return INVALID_ARGUMENT;
    return gpu->lost != 0 ? NVML_GPU_LOST : (int)told;
}

bool fake_nvml_control(const char *line)
{
    (void)pthread_mutex_lock(&lock);
    bool known = control_locked(line);
    (void)pthread_mutex_unlock(&lock);
    return known;
}

double fake_nvml_drawn_j(unsigned gpu)
{
    (void)pthread_mutex_lock(&lock);
    double joules = gpu < gpus_count ? gpus[gpu].plant.energy_j : 0;
    (void)pthread_mutex_unlock(&lock);
    return joules;
}

int fake_nvml_open(void)
{
    return opened;
}

int nvmlInit_v2(void)
{
    (void)enter(NULL);
    if (!init_result) opened++;
    return leave(init_result);
}

int nvmlShutdown(void)
{
    (void)enter(NULL);
    opened--;
    return leave(NVML_OK);
}

const char *nvmlErrorString(int result)
{
    return result == NVML_GPU_LOST        ? "GPU is lost"
           : result == NVML_NOT_SUPPORTED ? "Not Supported"
           : result == 9                  ? "Driver Not Loaded"
                                          : "Unknown Error";
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    (void)enter(NULL);
    *count = gpus_count;
    return leave(NVML_OK);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned idx, struct nvml_device **device)
{
    (void)enter(NULL);
    if (idx >= gpus_count) return leave(INVALID_ARGUMENT);
    *device = (struct nvml_device *)(void *)&gpus[idx];
    return leave(NVML_OK);
}

/* GPU 3 is 0000:03:00.0. */
int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, struct nvml_device **device)
{
    unsigned domain, bus;
    (void)enter(NULL);
    if (sscanf(pci, "%x:%x:00.0", &domain, &bus) != 2 || domain || bus >= gpus_count) return leave(NOT_FOUND);
    *device = (struct nvml_device *)(void *)&gpus[bus];
    return leave(NVML_OK);
}

int nvmlDeviceGetFieldValues(struct nvml_device *device, int count, struct nvml_field *fields)
{
    const struct fake_gpu *gpu = enter(device);
    int result = gpu ? result_of(gpu, 0) : INVALID_ARGUMENT;
    for (int i = 0; result == NVML_OK && i < count; i++) {
        fields[i].value_type = NVML_TYPE_U32;
        fields[i].result = NVML_NOT_SUPPORTED;
        if (fields[i].id == NVML_FIELD_RECOVERY_ACTION) {
            fields[i].value.u32 = recovery;
            fields[i].result = NVML_OK;
        } else if (fields[i].id == NVML_FIELD_POWER_INSTANT && fields[i].scope == 0) {
            fields[i].value.u32 = (unsigned)(gpu->instant_w * 1e3);
            fields[i].result = (int)gpu->field_result;
        }
    }
    return leave(result);
}

#ifndef FAKE_NVML_BROKEN
int nvmlDeviceGetPowerUsage(struct nvml_device *device, unsigned *mw)
{
    const struct fake_gpu *gpu = enter(device);
    int result = result_of(gpu, gpu ? gpu->power_result : 0);
    if (result == NVML_OK) *mw = (unsigned)(gpu->mean_w * 1e3);
    return leave(result);
}
#endif

#ifndef FAKE_NVML_OLD
int nvmlDeviceGetTotalEnergyConsumption(struct nvml_device *device, unsigned long long *mj)
{
    const struct fake_gpu *gpu = enter(device);
    int result = result_of(gpu, gpu ? gpu->energy_result : 0);
    if (result == NVML_OK) {
        double shown = gpu->counter_mj + gpu->jump_mj + gpu->off_mj;
        if (gpu->wrap_mj > 0) shown = fmod(shown, gpu->wrap_mj);
        *mj = (unsigned long long)shown;
    }
    return leave(result);
}

int nvmlDeviceGetEnforcedPowerLimit(struct nvml_device *device, unsigned *mw)
{
    const struct fake_gpu *gpu = enter(device);
    int result = result_of(gpu, gpu ? gpu->limit_result : 0);
    if (result == NVML_OK) *mw = (unsigned)(gpu->limit * 1e3);
    return leave(result);
}

int nvmlDeviceGetPowerManagementLimitConstraints(struct nvml_device *device, unsigned *least_mw, unsigned *most_mw)
{
    const struct fake_gpu *gpu = enter(device);
    int result = result_of(gpu, gpu ? gpu->limit_result : 0);
    if (result == NVML_OK) {
        *least_mw = 200000;
        *most_mw = (unsigned)(gpu->most * 1e3);
    }
    return leave(result);
}
#endif

/* ---- events: one set, of all GPUs ---- */

int nvmlEventSetCreate(struct nvml_events **events)
{
    static char the_set;
    *events = (struct nvml_events *)(void *)&the_set;
    return NVML_OK;
}

int nvmlEventSetFree(struct nvml_events *events)
{
    return events ? NVML_OK : INVALID_ARGUMENT;
}

int nvmlDeviceGetSupportedEventTypes(struct nvml_device *device, unsigned long long *types)
{
    int result = result_of(enter(device), 0);
    if (result == NVML_OK) *types = NVML_EVENT_XID | NVML_EVENT_ECC_DOUBLE;
    return leave(result);
}

int nvmlDeviceRegisterEvents(struct nvml_device *device, unsigned long long types, struct nvml_events *events)
{
    int result = result_of(enter(device), 0);
    return leave(events && types ? result : INVALID_ARGUMENT);
}

int nvmlEventSetWait_v2(struct nvml_events *events, struct nvml_event *event, unsigned wait_ms)
{
    if (!events) return INVALID_ARGUMENT;
    for (unsigned waited_ms = 0;; waited_ms += 2) {
        (void)enter(NULL);
        unsigned long long xid = next_xid;
        next_xid = 0;
        (void)leave(0);
        if (xid) {
            *event = (struct nvml_event){(struct nvml_device *)(void *)&gpus[0], NVML_EVENT_XID, xid, 0, 0};
            return NVML_OK;
        }
        if (waited_ms >= wait_ms) return NVML_TIMED_OUT;
        (void)nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
}
