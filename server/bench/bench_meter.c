/* Meters under a load; see bench_meter.h. */
#include "server/bench/bench_meter.h"

#include "runtime/power/sensors.h"

#include <string.h>

static enum status nvml_open(struct sensor **sensor, struct error *err)
{
    return sensor_nvml_open(NULL, 0, sensor, err);
}

static enum status rapl_open(struct sensor **sensor, struct error *err)
{
    return sensor_rapl_open(RAPL_ROOT, sensor, err);
}

static const struct {
    const char *name;
    enum status (*open)(struct sensor **sensor, struct error *err);
} kinds[] = {{"nvml", nvml_open}, {"rapl", rapl_open}};
enum { KINDS_COUNT = sizeof kinds / sizeof *kinds };

enum status bench_meter_open(struct bench_meter *meter, const char *names, struct error *err)
{
    *meter = (struct bench_meter){0};
    for (const char *at = names; *at;) {
        size_t length = strcspn(at, "+");
        uint32_t kind = 0;
        while (kind < KINDS_COUNT && (strncmp(kinds[kind].name, at, length) != 0 || kinds[kind].name[length])) kind++;
        enum status status = ST_INVAL;
        if (kind == KINDS_COUNT || meter->count == BENCH_METERS_MAX)
            status = error_set(err, ST_INVAL, "there is no meter \"%s\"", names);
        else
            status = kinds[kind].open(&meter->meters[meter->count].sensor, err);
        if (status != ST_OK) {
            bench_meter_close(meter);
            return status;
        }
        meter->count++;
        at += length;
        if (*at) at++;
    }
    return meter->count > 0 ? ST_OK : error_set(err, ST_INVAL, "no meter is named");
}

void bench_meter_close(struct bench_meter *meter)
{
    for (uint32_t i = 0; i < meter->count; i++) sensor_close(meter->meters[i].sensor);
    *meter = (struct bench_meter){0};
}

void bench_meter_start(struct bench_meter *meter)
{
    for (uint32_t i = 0; i < meter->count; i++) meter->meters[i].read = false;
    meter->failed.message[0] = 0;
}

void bench_meter_tick(void *state, uint64_t now_ns)
{
    struct bench_meter *meter = state;
    for (uint32_t i = 0; i < meter->count; i++) {
        struct sensor_reading reading;
        if (sensor_read(meter->meters[i].sensor, now_ns, &reading, &meter->failed) != ST_OK) continue;
        if (reading.changes == 0) continue; /* it has no time yet */
        if (!meter->meters[i].read) meter->meters[i].first = reading;
        meter->meters[i].last = reading;
        meter->meters[i].read = true;
    }
}

enum status bench_meter_joules(const struct bench_meter *meter, double seconds, double *joules, struct error *err)
{
    double sum = 0;
    if (meter->failed.message[0]) return error_set(err, ST_DEVICE, "the meter failed: %.300s", meter->failed.message);
    for (uint32_t i = 0; i < meter->count; i++) {
        const struct sensor_reading *first = &meter->meters[i].first, *last = &meter->meters[i].last;
        const char *name = meter->meters[i].sensor->name;
        if (!meter->meters[i].read || last->changes - first->changes < BENCH_METER_MOVES_MIN ||
            last->published_ns <= first->published_ns)
            return error_set(err, ST_AGAIN, "%s moved less than %d times: send more requests", name,
                             (int)BENCH_METER_MOVES_MIN);
        if (last->breaks != first->breaks)
            return error_set(err, ST_AGAIN, "%s lost joules on the way: run again", name);
        double span_s = (double)(last->published_ns - first->published_ns) * 1e-9;
        sum += (double)(last->energy_uj - first->energy_uj) * 1e-6 / span_s * seconds;
    }
    *joules = sum;
    return ST_OK;
}
