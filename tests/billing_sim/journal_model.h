/* What the crash test knows by itself: every frame it had appended, in order, and how far the journal had promised to
 * keep them. After a start it reads the folder and holds the two together:
 *
 *   what is there = a prefix of what was appended, no shorter than what was promised,
 *                   then RECOVER and NODE_CRASH finals alone, one for each request that the prefix leaves open,
 *                   whose counts are the sums of the prefix's STEPs
 *
 * and every record follows its predecessor in number and hash. No code is shared with the journal but the readers of
 * payloads. */
#ifndef TESTS_BILLING_SIM_JOURNAL_MODEL_H
#define TESTS_BILLING_SIM_JOURNAL_MODEL_H

#include "server/billing/journal_reader.h"

enum { MODEL_STEPS_MAX = 8, MODEL_CHARGES_MAX = 1 << 16, MODEL_ITEMS_MAX = 1 << 18 };

/* A frame as the test meant it. */
struct model_item {
    enum frame_type type;
    uint32_t charge; /* OPEN, FINAL, ENERGY: its number */
    uint64_t a, b; /* FINAL: ids, pseq; GRANT, RELEASE: account, pseq; ENERGY: microjoules, pseq; ACK: partition, mark;
                      ORDER: a number in its id; RECOVER: nothing */
    uint32_t steps_count;
    struct step_count steps[MODEL_STEPS_MAX];
    uint32_t step_charges[MODEL_STEPS_MAX];
};

struct model_charge {
    uint32_t handle;
    uint64_t ids;
    uint32_t opens, finals; /* in what was read */
};

struct model {
    struct model_item *items; /* by LSN; [1..appended] */
    uint64_t appended;
    uint64_t power_safe, kill_safe; /* LSNs that must be there after a power loss, after a kill */
    struct model_charge *charges;
    uint32_t charges_count;
    uint64_t epoch;
    char complaint[512];
};

void model_init(struct model *model);
void model_free(struct model *model);
struct model_item *model_append(struct model *model, enum frame_type type); /* zeroed */
void model_charge_id(uint32_t number, uint8_t id[CHARGE_ID_BYTES]);

/* Reads the folder after a start and makes the model what is there. False: complaint says what is wrong. */
bool model_check(struct model *model, const struct journal_config *config, const struct journal_report *report,
                 uint64_t safe);

#endif
