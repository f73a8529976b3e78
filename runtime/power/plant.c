/* The draw, integrated exactly between two moves of the counter; see plant.h. */
#include "runtime/power/plant.h"

#include "runtime/base/random.h"

#include <math.h>
#include <stdbool.h>

void plant_init(struct plant *plant, const struct plant_config *config)
{
    *plant = (struct plant){.config = *config, .drawn_w = config->idle_w, .next_s = config->publish_s};
    plant->rng = config->seed;
}

static double settled_w(const struct plant_config *c, double work_w)
{
    double u = work_w / c->range_w;
    return c->idle_w + c->gain * c->range_w * u * (1 + c->curve * (1 - u));
}

/* The lag's exponential and its integral. */
static void draw(struct plant *plant, double seconds, double settled)
{
    double lag = plant->config.lag_s, gap = plant->drawn_w - settled;
    double left = lag > 0 ? exp(-seconds / lag) : 0;
    plant->energy_j += settled * seconds + gap * lag * (1 - left);
    plant->drawn_w = settled + gap * left;
    plant->now_s += seconds;
}

static void publish(struct plant *plant)
{
    double uniform = random_next_uniform(&plant->rng) * 2 - 1;
    double exact = plant->energy_j - plant->published_j;
    plant->published_j += exact * (1 + plant->config.noise * uniform); /* the next difference makes up for it */
    plant->published_s = plant->now_s;
    plant->next_s = plant->now_s + plant->config.publish_s;
}

void plant_run(struct plant *plant, double seconds, double work_w)
{
    double settled = settled_w(&plant->config, work_w);
    while (seconds > 0) {
        double piece = plant->next_s - plant->now_s;
        bool moves = piece <= seconds;
        if (!moves) piece = seconds;
        draw(plant, piece, settled);
        if (moves) publish(plant);
        seconds -= piece;
    }
}

uint64_t plant_counter_uj(const struct plant *plant, double *second)
{
    *second = plant->published_s;
    return (uint64_t)(plant->published_j * 1e6);
}
