/* A device's power as far as a controller can tell it: what the sensor simulator and the fake NVML draw their readings
 * from, in virtual or in real time.
 *
 *   drawn watts   idle_w + gain * shape(work watts)   through a lag of the first order
 *   the meter     the integral of that; seen as a counter that moves every publish_s, with noise on each reading
 *
 * work watts are the joules of steps above idle a second, as the engine's energy model counts them: gain and curve say
 * how wrong that is. Pure; one thread. */
#ifndef RUNTIME_POWER_PLANT_H
#define RUNTIME_POWER_PLANT_H

#include <stdint.h>

struct plant_config {
    double idle_w, range_w; /* full power is idle_w + range_w */
    double gain;            /* drawn above idle for a watt of work; 1 */
    double curve;           /* shape(u) = u * (1 + curve * (1 - u)) for u = work / range; 0 is straight */
    double lag_s;           /* of the draw behind the work; 0.030 */
    double publish_s;       /* between two moves of the counter; 0.1 */
    double noise;           /* relative, of a published difference, at most */
    uint64_t seed;
};

struct plant {
    struct plant_config config;
    double now_s, drawn_w, energy_j, published_j, published_s, next_s;
    uint64_t rng;
};

void plant_init(struct plant *plant, const struct plant_config *config);
/* seconds pass with so many watts of work. */
void plant_run(struct plant *plant, double seconds, double work_w);
/* The counter in microjoules as it was last published, at *second of the plant's time. */
uint64_t plant_counter_uj(const struct plant *plant, double *second);

#endif
