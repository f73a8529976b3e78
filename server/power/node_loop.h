/* The slow loop of a node, once a second: how much deferrable work (flex, batch) goes beside interactive requests, and
 * how long a step with prompts may last while watts are limited. Its inputs are the records of steps and of who was in
 * them that the engines tell anyway; its outputs are members of the order (scheduler/power_port.h).
 *
 *   steps ---intervals of interactive rows---> p95 of the last second --guard--> most deferrable rows in a step
 *         ---prompts: tokens a second, joules a token-------------------chunk--> longest step
 *
 * N1. The guard never touches the allowance. N2. It takes rows as soon as a second's p95 is over the limit, in
 * proportion, one at least, and gives one in eight back, one at least, after so many calm seconds; a gift that is
 * taken back soon makes it twice as patient, so that it does not swing. N3. Without interactive rows it holds nothing.
 * N4. Few full batches are preferred to thin ones: while rows are capped no new prompt of flex or batch begins, and
 * those that run are the same ones until they end.
 *
 * Pure; one thread. */
#ifndef SERVER_POWER_NODE_LOOP_H
#define SERVER_POWER_NODE_LOOP_H

#include "scheduler/power_port.h"

enum { NODE_ROWS_MAX = 4096, NODE_BINS = 256, NODE_STEP_MS_LEAST = 10, NODE_STEP_MS_MOST = 30, NODE_PATIENCE_S = 2 };

struct node_guard {
    bool capped;
    uint32_t rows_most;                   /* with capped */
    uint32_t patience_s, calm_s, given_s; /* given_s: since rows were given back, saturating */
};

struct node_loop {
    double limit_s; /* of token intervals; 0: there is none */
    struct node_guard guard;
    uint32_t step_ms; /* 0: as without this loop */
    double p95_s;     /* of the last second; 0: no interactive row went on */
    uint64_t turned_ns;
    /* of the second under way: */
    uint32_t bins[NODE_BINS], intervals, deferrable_rows;
    double prompt_tokens, prompt_s;
    /* When a request had its last token; by its id, the newest of those that share a place. */
    struct {
        uint64_t id, token_ns;
    } rows[NODE_ROWS_MAX];
};

/* One second: p95_s of so many intervals against the limit, and the most deferrable rows that a step of it had. */
void node_guard_turn(struct node_guard *guard, double limit_s, double p95_s, uint32_t intervals, uint32_t rows_seen);
/* The shortest step with prompts whose tokens cost at most a fiftieth more joules than those of the longest that the
 * limit allows. step_j, token_j: what a step and a token cost; tokens_s: how fast prompts are computed. 0: no limit. */
uint32_t node_step_ms(double limit_s, double step_j, double token_j, double tokens_s);

void node_loop_init(struct node_loop *node, double limit_s, uint64_t now_ns);
/* The group of a share is its service class, modulo CLASS_COUNT. */
void node_loop_step(struct node_loop *node, const struct power_step *step, const struct energy_share *shares,
                    uint32_t count);
/* At each look; acts once a second. */
void node_loop_turn(struct node_loop *node, const struct energy_model *model, uint64_t now_ns);
/* Its members of the order. */
void node_loop_order(const struct node_loop *node, struct power_order *order);

#endif
