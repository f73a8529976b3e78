/* What a node without a meter shows: its model's watts, as a meter with that lag and that pace would publish them.
 * Readings go the same way as a real meter's, so that everything behind them can be used and tested without one. It is
 * driven by told work, not by the clock of read: a thread that is late then tells of more seconds, and no joule is
 * missing or doubled. */
#include "runtime/power/sensors.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>

static const double SECONDS_MAX = 1e6;

struct sensor_simulated {
    struct sensor sensor; /* first */
    struct plant plant;
    uint64_t opened_ns, changes;
    double seen_s; /* published_s as read last */
};

static enum status simulated_read(struct sensor *sensor, uint64_t now_ns, struct sensor_reading *reading,
                                  struct error *err)
{
    struct sensor_simulated *simulated = (struct sensor_simulated *)sensor;
    double second;
    (void)now_ns, (void)err;
    uint64_t energy_uj = plant_counter_uj(&simulated->plant, &second);
    if (second > simulated->seen_s) simulated->changes++;
    simulated->seen_s = second;
    *reading = (struct sensor_reading){.energy_uj = energy_uj,
                                       .published_ns = simulated->opened_ns + (uint64_t)(second * (double)NS_PER_S),
                                       .changes = simulated->changes,
                                       .flags = SENSOR_ESTIMATED};
    return ST_OK;
}

/* Seconds or joules that cannot be are the mistake of a clock or a model, not ours: they are left out. SECONDS_MAX
 * bounds the moves of the counter that are computed at once. */
static void simulated_work(struct sensor *sensor, double seconds, double joules)
{
    struct sensor_simulated *simulated = (struct sensor_simulated *)sensor;
    if (!(seconds > 0) || seconds > SECONDS_MAX || !(joules >= 0) || !isfinite(joules)) return;
    plant_run(&simulated->plant, seconds, joules / seconds);
}

static void simulated_close(struct sensor *sensor)
{
    mem_free(sensor);
}

static const struct sensor_ops simulated_ops = {simulated_read, simulated_work, simulated_close};

static bool positive(double value)
{
    return value > 0 && isfinite(value);
}

static bool zero_or_more(double value)
{
    return value >= 0 && isfinite(value);
}

enum status sensor_simulated_open(const struct plant_config *config, uint64_t now_ns, struct sensor **sensor,
                                  struct error *err)
{
    if (!zero_or_more(config->idle_w) || !positive(config->range_w) || !positive(config->gain) ||
        !zero_or_more(config->lag_s) || !positive(config->publish_s) || !(fabs(config->curve) <= 1) ||
        !(config->noise >= 0 && config->noise < 1))
        return error_set(err, ST_INVAL, "simulated meter: a number of its device cannot be");
    struct sensor_simulated *simulated = mem_alloc(1, sizeof *simulated);
    if (!simulated) return error_set(err, ST_NOMEM, "no memory for the simulated meter");
    simulated->sensor.ops = &simulated_ops;
    (void)snprintf(simulated->sensor.name, sizeof simulated->sensor.name, "simulated");
    simulated->sensor.idle_w = config->idle_w;
    simulated->sensor.full_w = config->idle_w + config->range_w;
    simulated->opened_ns = now_ns;
    plant_init(&simulated->plant, config);
    *sensor = &simulated->sensor;
    return ST_OK;
}
