/* libFuzzer over files of power signals, and over what the store then takes: slots come by time with a length, the
 * store keeps its word (finite, not negative, below 10 times the nameplate), and a silent source never raises the cap.
 * Input: the text of a file. */
#include "runtime/base/check.h"
#include "server/power/signal.h"
#include "server/power/signal_table.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define T INT64_C(1763892000000)

static void check_node(const struct power_slot *node)
{
    CHECK(!(node->have & SLOT_CAP) || (node->cap_w >= 0 && node->cap_w <= 1000));
    CHECK(!(node->have & SLOT_TARGET) || (node->target_w >= 0 && node->target_w <= 1000));
    CHECK(!(node->have & SLOT_GREEN) || (node->green_w >= 0 && node->green_w <= 1000));
    CHECK(!(node->have & SLOT_PRICE) || isfinite(node->price_kwh));
    CHECK(!(node->have & SLOT_CO2) || node->gco2_kwh >= 0);
    CHECK(!(node->have & SLOT_PUE) || node->pue >= 1);
    CHECK(!(node->have & SLOT_SHED) || node->shed_level <= SIGNAL_SHED_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct signal_table table;
    struct error err = {""};
    struct signals *signals;
    struct power_slot node;
    uint16_t source;
    enum status status = signal_table_read((const char *)data, size, &table, &err);
    CHECK((status == ST_OK) == (err.message[0] == '\0'));
    if (status != ST_OK) return 0;
    CHECK(table.count >= 1 && table.count <= SIGNAL_ROWS_MAX);
    for (uint32_t i = 0; i < table.count; i++) {
        struct power_slot *slot = &table.slots[i];
        CHECK(table.holds ? slot->t0_ms == 0 && slot->dur_s == 0 : slot->t0_ms > 0 && slot->dur_s > 0);
        CHECK(i == 0 || slot->t0_ms > slot[-1].t0_ms);
        if (table.holds) slot->t0_ms = T, slot->dur_s = 86400;
    }
    const struct signal_config config = {.default_cap_w = 0};
    const struct signal_source named = {"fuzz", 0, 1000, 0.5, true};
    CHECK(signal_create(&config, &signals, &err) == ST_OK);
    CHECK(signal_register(signals, &named, &source, &err) == ST_OK);
    signal_set_nameplate(signals, 100);
    (void)signal_replace(signals, source, table.slots, table.count, T);
    (void)signal_offer(signals, source, table.slots, table.count, T + 1);
    signal_at(signals, T + 3001, T + 3001, &node);
    double last_w = node.have & SLOT_CAP ? node.cap_w : INFINITY;
    for (int64_t now = T + 3002; now < T + 3600000; now += 59000) {
        signal_at(signals, now, now, &node);
        check_node(&node);
        CHECK((node.have & SLOT_CAP ? node.cap_w : INFINITY) <= last_w);
        signal_over_slot(signals, now + 7200000, now, &node);
        check_node(&node);
    }
    signal_destroy(signals);
    signal_table_free(&table);
    return 0;
}
