/* GPUs through NVML. Each poll asks every GPU, so that one that fails costs the others no joules; meter.h makes of what
 * they show what was drawn. A GPU that has both a counter and instant power is held against itself: means over CHECK_S
 * that are CHECK_SHARE apart for DISPUTE_NS raise SENSOR_DISPUTED. Which of the two is wrong cannot be told from here;
 * readings stay the counter's.
 *
 * nvmlDeviceGetPowerUsage comes last: from Ampere on (GA100 apart) it is a mean over a second, too slow for the loop.
 */
#include "runtime/power/sensors.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/power/meter.h"
#include "runtime/power/nvml_api.h"

#include <math.h>
#include <stdio.h>

/* HEADROOM: what a mean over a window of the counter may be above the highest limit. WATTS_MAX: of a GPU that tells no
 * limit. */
static const double CHECK_S = 1, CHECK_SHARE = 0.15, HEADROOM = 1.25, WATTS_MAX = 5000;
static const uint64_t DISPUTE_NS = 5 * NS_PER_S;

enum source { SOURCE_COUNTER, SOURCE_INSTANT, SOURCE_MEAN };

struct check {
    double counter_w, instant_w;
    uint64_t energy_uj, published_ns, changes; /* of the meter, when looked at last */
    uint64_t instant_ns, agreed_ns;
};

struct gpu {
    struct nvml_device *device;
    enum source source;
    struct check check;
};

struct sensor_nvml {
    struct sensor sensor; /* first */
    const struct nvml_table *nvml;
    struct meter_sum sum;
    uint32_t count;
    struct gpu gpus[NVML_GPUS_MAX];
    struct meter meters[NVML_GPUS_MAX];
};

/* ---- one GPU ---- */

static int instant_watts(const struct nvml_table *nvml, struct nvml_device *device, double *watts)
{
    struct nvml_field field = {.id = NVML_FIELD_POWER_INSTANT};
    int result = nvml->fields(device, 1, &field);
    if (result == NVML_OK) result = field.result;
    if (result == NVML_OK && field.value_type != NVML_TYPE_U32) result = NVML_NOT_SUPPORTED;
    if (result == NVML_OK) *watts = field.value.u32 * 1e-3;
    return result;
}

static int mean_watts(const struct nvml_table *nvml, struct nvml_device *device, double *watts)
{
    unsigned mw = 0;
    int result = nvml->power_mw(device, &mw);
    *watts = mw * 1e-3;
    return result;
}

static int counter_uj(const struct nvml_table *nvml, struct nvml_device *device, uint64_t *uj)
{
    unsigned long long mj = 0;
    if (!nvml->energy_mj) return NVML_NOT_SUPPORTED;
    int result = nvml->energy_mj(device, &mj);
    if (result == NVML_OK && mj > UINT64_MAX / 1000) result = NVML_NOT_SUPPORTED;
    *uj = mj * 1000;
    return result;
}

static double follow(double mean, double value, double seconds)
{
    return value + (mean - value) * exp(-seconds / CHECK_S);
}

static bool apart(const struct check *check)
{
    return fabs(check->counter_w - check->instant_w) > CHECK_SHARE * fmax(check->counter_w, check->instant_w);
}

/* The mean of one goes on with each poll, of the other with each move of the counter. */
static void check_poll(struct check *check, const struct meter *meter, uint64_t now_ns, double watts)
{
    bool jumped = now_ns - check->instant_ns > DISPUTE_NS; /* unsigned: backwards too */
    bool windowed = meter->changes != check->changes && meter->published_ns > check->published_ns;
    if (jumped || meter->changes < 2) {
        *check = (struct check){.counter_w = watts, .instant_w = watts, .agreed_ns = now_ns};
    } else {
        check->instant_w = follow(check->instant_w, watts, (double)(now_ns - check->instant_ns) * 1e-9);
        if (windowed) {
            double seconds = (double)(meter->published_ns - check->published_ns) * 1e-9;
            double joules = (double)(meter->energy_uj - check->energy_uj) * 1e-6;
            check->counter_w = follow(check->counter_w, joules / seconds, seconds);
        }
        if (!apart(check)) check->agreed_ns = now_ns;
    }
    check->energy_uj = meter->energy_uj;
    check->published_ns = meter->published_ns;
    check->changes = meter->changes;
    check->instant_ns = now_ns;
}

static int poll_counter(const struct nvml_table *nvml, struct gpu *gpu, struct meter *meter, uint64_t now_ns)
{
    double watts;
    uint64_t uj;
    int result = counter_uj(nvml, gpu->device, &uj);
    if (result != NVML_OK) return result;
    meter_counter(meter, now_ns, uj);
    if (instant_watts(nvml, gpu->device, &watts) == NVML_OK) check_poll(&gpu->check, meter, now_ns, watts);
    return NVML_OK;
}

static int poll_gpu(const struct nvml_table *nvml, struct gpu *gpu, struct meter *meter, uint64_t now_ns)
{
    double watts;
    if (gpu->source == SOURCE_COUNTER) return poll_counter(nvml, gpu, meter, now_ns);
    int result = gpu->source == SOURCE_INSTANT ? instant_watts(nvml, gpu->device, &watts)
                                               : mean_watts(nvml, gpu->device, &watts);
    if (result == NVML_OK) meter_watts(meter, now_ns, watts);
    return result;
}

/* The best that the GPU has; what the last of them says if it has none. */
static int choose_source(const struct nvml_table *nvml, struct gpu *gpu)
{
    uint64_t uj;
    double watts;
    gpu->source = SOURCE_COUNTER;
    if (counter_uj(nvml, gpu->device, &uj) == NVML_OK) return NVML_OK;
    gpu->source = SOURCE_INSTANT;
    if (instant_watts(nvml, gpu->device, &watts) == NVML_OK) return NVML_OK;
    gpu->source = SOURCE_MEAN;
    return mean_watts(nvml, gpu->device, &watts);
}

/* The enforced limit in watts, 0 if it is not told, and what cannot be. */
static double limit_of(const struct nvml_table *nvml, struct nvml_device *device, double *watts_max)
{
    unsigned limit_mw = 0, least_mw = 0, most_mw = 0;
    if (!nvml->limit_mw || nvml->limit_mw(device, &limit_mw) != NVML_OK) limit_mw = 0;
    if (!nvml->limits_mw || nvml->limits_mw(device, &least_mw, &most_mw) != NVML_OK) most_mw = 0;
    double most_w = (most_mw > limit_mw ? most_mw : limit_mw) * 1e-3;
    *watts_max = most_w > 0 ? HEADROOM * most_w : WATTS_MAX;
    return limit_mw * 1e-3;
}

/* ---- the sensor ---- */

static enum status nvml_read(struct sensor *sensor, uint64_t now_ns, struct sensor_reading *reading, struct error *err)
{
    struct sensor_nvml *all = (struct sensor_nvml *)sensor;
    uint32_t failed = 0, flags = 0;
    int failure = NVML_OK;
    for (uint32_t g = 0; g < all->count; g++) {
        struct gpu *gpu = &all->gpus[g];
        int result = poll_gpu(all->nvml, gpu, &all->meters[g], now_ns);
        if (result != NVML_OK && failure == NVML_OK) {
            failure = result;
            failed = g;
        }
        if (gpu->source != SOURCE_COUNTER) flags |= SENSOR_INTEGRATED;
        if (gpu->source == SOURCE_MEAN) flags |= SENSOR_MEAN_1S;
        if (gpu->check.instant_ns - gpu->check.agreed_ns >= DISPUTE_NS) flags |= SENSOR_DISPUTED;
    }
    if (failure != NVML_OK)
        return error_set(err, ST_DEVICE, "power of GPU %u: NVML: %s", failed, all->nvml->error_string(failure));
    meter_sum_move(&all->sum, all->meters, all->count);
    *reading = all->sum.reading;
    reading->flags = flags;
    return ST_OK;
}

static void nvml_close(struct sensor *sensor)
{
    struct sensor_nvml *all = (struct sensor_nvml *)sensor;
    (void)all->nvml->shutdown();
    mem_free(all);
}

static const struct sensor_ops nvml_ops = {nvml_read, NULL, nvml_close};

static enum status add_gpu(struct sensor_nvml *all, uint32_t idx, const char *pci, struct error *err)
{
    const struct nvml_table *nvml = all->nvml;
    struct gpu *gpu = &all->gpus[idx];
    int result = pci ? nvml->device_by_pci(pci, &gpu->device) : nvml->device_by_idx(idx, &gpu->device);
    if (result == NVML_OK) result = choose_source(nvml, gpu);
    if (result != NVML_OK)
        return error_set(err, ST_NOTFOUND, "GPU %u%s%s has no power meter: NVML: %s", idx, pci ? " at " : "",
                         pci ? pci : "", nvml->error_string(result));
    struct meter_config config = {0};
    double limit_w = limit_of(nvml, gpu->device, &config.watts_max);
    meter_init(&all->meters[idx], &config);
    bool told = limit_w > 0 && (idx == 0 || all->sensor.full_w > 0);
    all->sensor.full_w = told ? all->sensor.full_w + limit_w : 0;
    return ST_OK;
}

static enum status add_gpus(struct sensor_nvml *all, const char *const *pci, uint32_t count, struct error *err)
{
    unsigned seen = count;
    if (!count) {
        int result = all->nvml->devices(&seen);
        if (result != NVML_OK) return error_set(err, ST_NOTFOUND, "NVML: %s", all->nvml->error_string(result));
        if (!seen) return error_set(err, ST_NOTFOUND, "NVML sees no GPU");
    }
    if (seen > NVML_GPUS_MAX)
        return error_set(err, ST_LIMIT, "%u GPUs, at most %d are read (NVML_GPUS_MAX)", seen, NVML_GPUS_MAX);
    for (uint32_t g = 0; g < seen; g++) TRY(add_gpu(all, g, count ? pci[g] : NULL, err));
    all->count = seen;
    return ST_OK;
}

enum status sensor_nvml_open(const char *const *pci, uint32_t count, struct sensor **sensor, struct error *err)
{
    const struct nvml_table *nvml;
    TRY(nvml_api_open(&nvml, err));
    struct sensor_nvml *all = mem_alloc(1, sizeof *all);
    if (!all) return error_set(err, ST_NOMEM, "no memory for the GPUs' meters");
    all->nvml = nvml;
    int result = nvml->init();
    enum status status = ST_OK;
    if (result != NVML_OK) {
        status = error_set(err, ST_NOTFOUND, "NVML: %s", nvml->error_string(result));
    } else {
        status = add_gpus(all, pci, count, err);
        if (status != ST_OK) (void)nvml->shutdown();
    }
    if (status != ST_OK) {
        mem_free(all);
        return status;
    }
    all->sensor.ops = &nvml_ops;
    (void)snprintf(all->sensor.name, sizeof all->sensor.name, "NVML, %u GPU%s", all->count, all->count > 1 ? "s" : "");
    *sensor = &all->sensor;
    return ST_OK;
}
