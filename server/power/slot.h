/* A quarter of an hour (or any other stretch) of what a hub may draw, should draw and is offered: the one form in which
 * every provider of a signal tells it. Fields that were not told have no bit in `have` and are 0. Plain data. */
#ifndef SERVER_POWER_SLOT_H
#define SERVER_POWER_SLOT_H

#include <stdbool.h>
#include <stdint.h>

enum power_slot_field {
    SLOT_CAP = 1,
    SLOT_TARGET = 2,
    SLOT_GREEN = 4,
    SLOT_PRICE = 8,
    SLOT_CO2 = 16,
    SLOT_PUE = 32,
    SLOT_SHED = 64
};

enum power_slot_quality { SLOT_MEASURED, SLOT_ESTIMATED, SLOT_FORECAST };

struct power_slot {
    int64_t t0_ms; /* Unix time */
    int32_t dur_s;
    uint32_t have;    /* of power_slot_field */
    double cap_w;     /* may not be passed */
    double target_w;  /* to be followed */
    double green_w;   /* on offer */
    double price_kwh; /* in any one currency; may be negative */
    double gco2_kwh;
    double pue;
    bool cap_hard;       /* wins over the floor */
    bool co2_marginal;   /* gco2_kwh is of the next kWh, not of the mean one */
    uint8_t shed_level;  /* 0 .. 3 */
    uint8_t quality;     /* power_slot_quality */
    uint16_t source;     /* index of the provider, as configured */
    int64_t received_ms; /* Unix time */
};

#endif
