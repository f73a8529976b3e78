/* Sharing out attention: see attention_plan.h.
 *
 * Longest first onto the worker with the least load (LPT, Graham 1969) alone may end at 4/3 of the even share, and one
 * long sequence would keep one worker busy: hence the cuts. Since each worker is empty at first and ties go to the
 * lower one, item w is worker w's first for the first items, as kernels/cuda_attention.h wants it. Rejected: cutting
 * all groups into equal pieces (each piece costs partial results), the wrap-around rule of McNaughton (as even, but
 * nearly all groups are cut). */
#include "runtime/device/cuda/attention_plan.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"

#include <string.h>

enum {
    TILE = 64,     /* positions whose cost is the unit */
    ITEM_COST = 2, /* of an item besides its tiles: queries, outputs, the first loads */
    COST_CLASSES = 512,
    CHUNK = CUDA_ATTENTION_CHUNK
};

struct group {
    uint32_t seq, row, rows, first, end; /* positions seen */
    uint32_t cost, next;                 /* the next of its class */
};

struct load {
    uint64_t cost;
    uint32_t worker;
};

struct attention_plan {
    struct attention_plan_config config;
    uint32_t G, workers, groups_max;
    uint32_t tickets, partials; /* there are */
    struct group *groups;
    struct load *heap; /* least first */
    uint32_t *last;    /* (workers) item */
    /* of the plan under way */
    struct attention_item *items;
    uint32_t items_count, tickets_used, partials_used, cuts_left;
    uint64_t share;
};

static uint32_t groups_of(uint32_t tokens, uint32_t seqs, uint32_t G)
{
    uint32_t begun = seqs < tokens ? seqs : tokens; /* sequences that can have a group that is not full */
    return (uint32_t)((uint64_t)tokens * G / CUDA_ATTENTION_ROWS) + begun;
}

/* Each cut fills a worker up to the share, or it is one of as many that may still come when all are full. */
static uint32_t cuts_max(uint32_t workers)
{
    return 2 * workers;
}

uint32_t attention_plan_items_max(const struct attention_plan_config *config, uint32_t tokens, uint32_t seqs)
{
    uint32_t workers = cuda_attention_workers(config->grid, config->KH);
    return groups_of(tokens, seqs, config->H / config->KH) + cuts_max(workers);
}

enum status attention_plan_create(const struct attention_plan_config *config, struct attention_plan **out)
{
    if (!config->KH || !config->H || config->H % config->KH || config->grid < config->KH) return ST_INVAL;
    if (config->context_max / CHUNK >= UINT16_MAX) return ST_INVAL;
    struct attention_plan *plan = mem_alloc(1, sizeof *plan);
    if (!plan) return ST_NOMEM;
    plan->config = *config;
    plan->G = config->H / config->KH;
    plan->workers = cuda_attention_workers(config->grid, config->KH);
    plan->groups_max = groups_of(config->tokens_max, config->seqs_max, plan->G);
    plan->tickets = cuda_attention_tickets(config->grid, config->KH);
    plan->partials = cuda_attention_partials(config->tokens_max, config->context_max, config->H, config->KH, config->D);
    plan->groups = mem_alloc(plan->groups_max, sizeof *plan->groups);
    plan->heap = mem_alloc(plan->workers, sizeof *plan->heap);
    plan->last = mem_alloc(plan->workers, sizeof *plan->last);
    if (!plan->groups || !plan->heap || !plan->last) {
        attention_plan_destroy(plan);
        return ST_NOMEM;
    }
    *out = plan;
    return ST_OK;
}

void attention_plan_destroy(struct attention_plan *plan)
{
    if (!plan) return;
    mem_free(plan->groups);
    mem_free(plan->heap);
    mem_free(plan->last);
    mem_free(plan);
}

/* ---- the least loaded worker ---- */

static bool before(struct load a, struct load b)
{
    return a.cost != b.cost ? a.cost < b.cost : a.worker < b.worker;
}

/* Adds to the load of the worker at the top, which sinks to its place. */
static void heap_add(struct attention_plan *plan, uint64_t cost)
{
    struct load *heap = plan->heap, load = heap[0];
    uint32_t at = 0, count = plan->workers;
    load.cost += cost;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], load)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = load;
}

/* ---- groups ---- */

static uint32_t tiles_of(uint32_t begin, uint32_t end)
{
    return (end + TILE - 1) / TILE - begin / TILE;
}

static uint32_t make_groups(struct attention_plan *plan, uint32_t seqs, const uint32_t *q_start, const uint32_t *kv_len,
                            uint32_t window)
{
    uint32_t count = 0;
    plan->share = 0;
    for (uint32_t seq = 0; seq < seqs; seq++) {
        uint32_t tokens = q_start[seq + 1] - q_start[seq], rows = tokens * plan->G;
        for (uint32_t row = 0; row < rows; row += CUDA_ATTENTION_ROWS) {
            uint32_t here = rows - row < CUDA_ATTENTION_ROWS ? rows - row : CUDA_ATTENTION_ROWS;
            uint32_t position = kv_len[seq] - tokens + row / plan->G;
            uint32_t first = window && position >= window ? position + 1 - window : 0;
            uint32_t end = kv_len[seq] - tokens + (row + here - 1) / plan->G + 1;
            uint32_t cost = tiles_of(first, end) + ITEM_COST;
            CHECK(count < plan->groups_max);
            plan->groups[count++] = (struct group){seq, row, here, first, end, cost, 0};
            plan->share += cost;
        }
    }
    plan->share = (plan->share + plan->workers - 1) / plan->workers;
    return count;
}

/* Links groups by falling cost, in classes of costs so close that it does not matter, and rising index in each; gives
 * the first. */
static uint32_t sort_groups(struct attention_plan *plan, uint32_t count)
{
    uint32_t heads[COST_CLASSES], tails[COST_CLASSES], most = 0, shift = 0;
    memset(heads, 0xff, sizeof heads);
    for (uint32_t g = 0; g < count; g++) most = plan->groups[g].cost > most ? plan->groups[g].cost : most;
    while (most >> shift >= COST_CLASSES) shift++;
    for (uint32_t g = 0; g < count; g++) {
        uint32_t class = plan->groups[g].cost >> shift;
        if (heads[class] == UINT32_MAX) {
            heads[class] = g;
        } else {
            plan->groups[tails[class]].next = g;
        }
        tails[class] = g;
    }
    uint32_t first = UINT32_MAX;
    for (uint32_t class = 0; class < COST_CLASSES; class ++) {
        if (heads[class] == UINT32_MAX) continue;
        plan->groups[tails[class]].next = first;
        first = heads[class];
    }
    return first;
}

/* ---- items ---- */

static void put_item(struct attention_plan *plan, struct attention_item item, uint32_t cost)
{
    uint32_t worker = plan->heap[0].worker, index = plan->items_count++;
    if (index < plan->workers) {
        CHECK(worker == index);
    } else {
        plan->items[plan->last[worker]].next = index;
    }
    plan->last[worker] = index;
    plan->items[index] = item;
    heap_add(plan, cost);
}

static uint32_t piece_cost(const struct group *group, uint32_t chunk_begin, uint32_t chunk_end)
{
    uint32_t begin = chunk_begin * CHUNK, end = chunk_end * CHUNK;
    if (begin < group->first) begin = group->first;
    if (end > group->end) end = group->end;
    return tiles_of(begin, end) + ITEM_COST;
}

/* Whether the group is to be cut, and may be: then it has its ticket and partials. */
static bool take_cut(struct attention_plan *plan, const struct group *group, struct attention_item *item)
{
    uint32_t chunks = (uint32_t)item->group_end - item->group_begin;
    if (chunks < 2 || plan->heap[0].cost + group->cost <= plan->share + plan->share / 16) return false;
    if (plan->tickets_used == plan->tickets || plan->cuts_left < 1) return false;
    if ((uint64_t)chunks * group->rows > plan->partials - plan->partials_used) return false;
    item->ticket = plan->tickets_used++;
    item->partial = plan->partials_used;
    plan->partials_used += chunks * group->rows;
    return true;
}

/* Pieces as long as the workers have room, at least one chunk each; what is left once no more cuts are allowed is the
 * last piece. */
static void put_pieces(struct attention_plan *plan, const struct group *group, struct attention_item item)
{
    uint32_t begin = item.group_begin, end = item.group_end, first = plan->items_count;
    while (begin < end) {
        uint64_t load = plan->heap[0].cost, room = plan->share > load ? plan->share - load : 0;
        uint32_t take = 1;
        while (begin + take < end && piece_cost(group, begin, begin + take + 1) <= room) take++;
        if (begin + take < end) {
            if (plan->cuts_left) {
                plan->cuts_left--;
            } else {
                take = end - begin;
            }
        }
        item.chunk_begin = (uint16_t)begin;
        item.chunk_end = (uint16_t)(begin + take);
        put_item(plan, item, piece_cost(group, begin, begin + take));
        begin += take;
    }
    for (uint32_t i = first; i < plan->items_count; i++) plan->items[i].pieces = (uint16_t)(plan->items_count - first);
}

static void put_group(struct attention_plan *plan, const struct group *group)
{
    struct attention_item item = {.seq = group->seq,
                                  .row = group->row,
                                  .rows = (uint16_t)group->rows,
                                  .pieces = 1,
                                  .group_begin = (uint16_t)(group->first / CHUNK),
                                  .group_end = (uint16_t)((group->end + CHUNK - 1) / CHUNK)};
    if (take_cut(plan, group, &item)) {
        put_pieces(plan, group, item);
        return;
    }
    item.chunk_begin = item.group_begin;
    item.chunk_end = item.group_end;
    put_item(plan, item, group->cost);
}

uint32_t attention_plan_make(struct attention_plan *plan, uint32_t seqs, const uint32_t *q_start,
                             const uint32_t *kv_len, uint32_t window, struct attention_item *items)
{
    CHECK(seqs <= plan->config.seqs_max && q_start[seqs] - q_start[0] <= plan->config.tokens_max);
    plan->items = items;
    plan->items_count = plan->tickets_used = plan->partials_used = 0;
    plan->cuts_left = cuts_max(plan->workers);
    for (uint32_t w = 0; w < plan->workers; w++) plan->heap[w] = (struct load){0, w};
    uint32_t count = make_groups(plan, seqs, q_start, kv_len, window);
    if (!count) return 0;
    for (uint32_t g = sort_groups(plan, count); g != UINT32_MAX; g = plan->groups[g].next) {
        put_group(plan, &plan->groups[g]);
    }
    return plan->items_count;
}
