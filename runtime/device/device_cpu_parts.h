/* The parts of the CPU device, shared by its files alone: device_cpu.c (life), device_cpu_weights.c (plan, pack),
 * device_cpu_step.c (the layers), device_cpu_attention.c (theirs), device_cpu_experts.c (mixtures of experts),
 * device_cpu_rows.c (logits and sampling), device_cpu_stages.c (some of the layers). README.md draws the step.
 *
 * D1. Everything is taken in device_cpu_create; a step only reads and writes it.
 * D2. A thread owns panels (their columns of every matrix, packed and multiplied by it), rows while activations are
 *     prepared, and attention items it took from the counter. Two threads never write one byte between two barriers.
 * D3. Which thread does what changes no bits (kernels' contracts); so threads, batch and chunks change none.
 * Shape letters as in kernels/README.md. */
#ifndef RUNTIME_DEVICE_DEVICE_CPU_PARTS_H
#define RUNTIME_DEVICE_DEVICE_CPU_PARTS_H

#include "kernels/attention.h"
#include "kernels/matmul.h"
#include "kernels/rope.h"
#include "runtime/base/clock.h"
#include "runtime/device/comm.h"
#include "runtime/device/device.h"
#include "runtime/device/device_cpu_plans.h"
#include "runtime/device/thread_team.h"
#include "runtime/sampler.h"

enum {
    PRIVATE_ROWS_MAX = 4, /* up to so many rows each thread prepares all activations itself and spares a barrier */
    UNIT_PANELS = 2,      /* panels of gate and up that make one block of down's activations */
    UNIT_PANELS_FEW_ROWS = MATMUL_TILE_ROWS / PRIVATE_ROWS_MAX * UNIT_PANELS, /* in the same buffers: longer streams */
    ROWS_IN_CACHE = 256, /* tokens whose activations stay in the cache while gate and up pass by */
    LOGIT_ROWS = 16,     /* rows that the head is multiplied with at a time */
    LOGIT_BUFFERS = 2,   /* groups of as many rows held: one is sampled while the next is made */
    ACT_KINDS_MAX = 4,   /* Q, K and V of three types; experts of some */
    ROPES_MAX = 2        /* of all layers, of windowed ones */
};

struct span {
    uint32_t begin, end;
};

/* The distinct forms in which a phase's matrices want their activations. */
struct act_set {
    uint32_t count;
    enum act_kind kinds[ACT_KINDS_MAX];
};

struct cpu_expert {
    struct matrix gate, up, down;
};

struct cpu_layer {
    struct matrix q, k, v, o, gate, up, down;
    struct matrix router; /* with experts, which then take the place of gate, up and down */
    struct cpu_expert *experts;
    struct act_set qkv_acts, o_acts, ff_acts, router_acts;
    bool windowed;
    float *attn_norm, *ffn_norm;           /* (E) */
    float *attn_post_norm, *ffn_post_norm; /* (E) or NULL */
    float *q_bias, *k_bias, *v_bias;       /* (H D), (KH D), (KH D) or NULL */
    float *q_norm, *k_norm;                /* (D) or NULL */
};

struct cpu_thread {
    struct span q_heads, kv_heads; /* of QKV */
    struct span o, ff, down, head; /* panels */
    struct span router, expert_ff; /* panels: of the router; of every expert's gate and up */
    float *row;                    /* a normed row: max(E, H D, F) */
    float *head_row;               /* a row of the head: E */
    float *attention;              /* scratch of the kernel */
    uint8_t *acts;                 /* activations of up to PRIVATE_ROWS_MAX rows */
    struct sampler sampler;
    uint64_t lap_ticks; /* when the phase in hand began */
    uint64_t phase_ticks[PHASE_COUNT];
};

/* The tokens that a phase works on: all of the step, or in the last layer, once K and V are written, those with logits
 * alone. */
struct live_rows {
    uint32_t count;
    float *x;               /* (count, E) their residual stream */
    const uint32_t *tokens; /* (count) which they are; NULL: all, in order */
};

struct device_cpu {
    struct device device; /* first */
    struct model_spec spec;
    enum cpu_path path;
    enum numerics numerics;
    uint32_t threads_count, context_max;
    struct thread_team *team;
    struct cpu_thread *threads;

    uint8_t *weights;
    size_t weights_bytes;
    struct cpu_layer *layers;   /* (L) */
    struct cpu_expert *experts; /* (L, X) */
    struct matrix embed, head;  /* one and the same data when tied */
    struct act_set head_acts;
    float *final_norm; /* (E) */
    uint32_t ropes;
    double *frequencies[ROPES_MAX]; /* (rope_size / 2) */
    bool apart; /* what attention and feed-forward give is normed, scaled or summed before it is added: y comes first */

    struct comm *comm;                   /* of the ranks, or NULL */
    struct comm *stages;                 /* of the stages, or NULL: all layers are here */
    bool has_head;                       /* and embedding and final norm: stage 0 */
    uint32_t last_layer;                 /* index of the model's last, or UINT32_MAX: another stage has it */
    uint32_t experts_begin, experts_end; /* whose weights this rank has */
    bool lost;                           /* it failed. Written by thread 0 before a barrier */
    uint32_t vocab;                      /* of the whole model */
    uint32_t vocab_begin, vocab_stride;  /* the first of this rank's spec.vocab rows; from one rank's to the next's */

    uint8_t *kv;
    struct kv_layout kv_layout;
    size_t kv_bytes, layer_bytes; /* all; of one layer in a block */

    uint8_t *scratch;
    size_t scratch_bytes;
    float *x;        /* (N, E) residual stream; with stages (N) marks behind the rows, as behind last_x */
    float *qkv;      /* (N, (H + 2 KH) D) */
    float *attended; /* (N, H D) */
    float *y;        /* (N, E) what attention or feed-forward gives, where it cannot be added at once; or NULL */
    float *angles;   /* (N, ropes, 2, rope_size): c, then s */
    uint8_t *acts;   /* ACT_KINDS_MAX slots of act_slot_bytes */
    size_t act_slot_bytes, act_private_slot_bytes;
    uint8_t *down_acts;             /* activations of down, (N, F) */
    uint8_t *bad;                   /* (N) tokens that met a NaN or an infinity */
    struct attention_plan plans[2]; /* of layers that see all; of windowed ones, if there are any */
    float *partials;                /* results of divided tiles, of one layer at a time */
    struct expert_routes routes;
    float *last_x;               /* (R, E) residual stream of the last layer's live rows */
    uint32_t *last_tokens;       /* (R) which tokens they are, rising */
    uint32_t *last_of_row;       /* (R) index among them of each row of the batch */
    _Atomic uint32_t *next_item; /* (L + groups of logit rows) counters, zero at the start of a step */
    uint32_t *row_tokens;        /* (R) of the step in hand */
    float *logits, *highest;     /* (LOGIT_BUFFERS, LOGIT_ROWS) rows of kernels/sample.h, each at its stride */
    size_t logits_stride, highest_stride;
    uint8_t *ranks_bad;           /* (ranks, N) of all ranks, after N of this one */
    float *ranks_logits;          /* (ranks, LOGIT_ROWS) rows at logits_stride: what rank 0 gathers */
    float *whole, *whole_highest; /* (LOGIT_ROWS) rows of the whole vocabulary, on rank 0 */
    size_t whole_stride, whole_highest_stride;

    /* the step in hand */
    const struct batch *batch;
    struct batch_result *result;
    struct live_rows all, last; /* of all layers but the last; of the last, and of the rows after it */
};

/* The share of thread i of n in `count` things. */
static inline struct span span_of(uint32_t count, uint32_t thread_idx, uint32_t threads)
{
    return (struct span){(uint32_t)((uint64_t)count * thread_idx / threads),
                         (uint32_t)((uint64_t)count * (thread_idx + 1) / threads)};
}

static inline uint64_t tick_count(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    return clock_now_ns(clock_system());
#endif
}

/* Books the time since the last call of this thread to a phase. */
static inline void phase_end(struct device_cpu *cpu, uint32_t thread_idx, enum device_phase phase)
{
    struct cpu_thread *own = &cpu->threads[thread_idx];
    uint64_t now_ticks = tick_count();
    own->phase_ticks[phase] += now_ticks - own->lap_ticks;
    own->lap_ticks = now_ticks;
}

/* Ends a phase and waits for the other threads. */
static inline void phase_meet(struct device_cpu *cpu, uint32_t thread_idx, enum device_phase phase)
{
    phase_end(cpu, thread_idx, phase);
    team_barrier(cpu->team, thread_idx);
    phase_end(cpu, thread_idx, PHASE_WAIT);
}

/* Plans all matrices, takes the memory, divides the panels and packs; team must stand. */
NODISCARD enum status device_cpu_load(struct device_cpu *cpu, const struct model *model, device_progress_fn progress,
                                      void *progress_state, struct error *err);

/* Where rows of activations come from: row m is row indices[m] of x (row stride K) and belongs to token tokens[m];
 * NULL: m itself. */
struct act_source {
    const float *x;
    const uint32_t *indices, *tokens;
};

/* Activations of M rows for the kinds of a set, RMS-normed with norm unless NULL. Marks the tokens of rows that are not
 * finite. Ends with a barrier when the rows were shared out. Gives the base for act_of. */
const uint8_t *device_cpu_prepare(struct device_cpu *cpu, uint32_t thread_idx, const struct act_set *set, uint32_t M,
                                  uint32_t K, struct act_source source, const float *norm);
static inline const uint8_t *act_of(const struct device_cpu *cpu, const uint8_t *base, const struct act_set *set,
                                    enum act_kind kind, uint32_t M)
{
    uint32_t slot = 0;
    while (slot + 1 < set->count && set->kinds[slot] != kind) slot++;
    return base + slot * (M <= PRIVATE_ROWS_MAX ? cpu->act_private_slot_bytes : cpu->act_slot_bytes);
}

static inline uint8_t *kv_head_of(const struct device_cpu *cpu, uint32_t layer, uint32_t kv_head, block_id block)
{
    return cpu->kv + block * cpu->device.info.kv_block_bytes + layer * cpu->layer_bytes +
           kv_head * cpu->kv_layout.head_bytes;
}

/* Divides the step's attention into tiles, for each kind of layer; then, in each layer, all threads attend until none
 * is left. */
void device_cpu_plan_tiles(struct device_cpu *cpu, const struct batch *batch);
void device_cpu_attend(struct device_cpu *cpu, uint32_t thread_idx, uint32_t l);
/* Sizes of tiles, pending and partials. */
uint32_t device_cpu_tiles_max(const struct device_cpu *cpu);
uint32_t device_cpu_divided_max(const struct device_cpu *cpu);
size_t device_cpu_partials_floats(const struct device_cpu *cpu);

/* The gated unit of some rows: gate, up and GLU of the panels into the activations of down. */
struct gated {
    const struct matrix *gate, *up, *down;
    const uint8_t *gate_act, *up_act; /* of M rows */
    uint8_t *down_acts;               /* of M rows */
    uint32_t M;
    const uint32_t *tokens; /* (M) of the rows; NULL: m itself */
};
void device_cpu_gated(struct device_cpu *cpu, const struct gated *gated, struct span panels);

/* The feed-forward of a layer with experts, into y. Ends with a barrier. */
void device_cpu_run_experts(struct device_cpu *cpu, uint32_t thread_idx, const struct cpu_layer *layer,
                            const struct live_rows *live);
/* Room for activations of all items, of whatever kind: experts begin at whole lines. */
size_t device_cpu_items_act_bytes(const struct device_cpu *cpu, enum act_kind kind, uint32_t tokens, uint32_t K);
void device_cpu_mark_bad(struct device_cpu *cpu, uint32_t token);

/* Makes of data (count) its sum over the ranks. All threads, after a barrier; ends with one. When it fails cpu->lost is
 * set, the same for all threads from then on. */
void device_cpu_sum_ranks(struct device_cpu *cpu, uint32_t thread_idx, float *data, size_t count);

/* Stages. Takes x and the marks from the stage before: thread 0, before a barrier. Passes them to the next, or on
 * stage 0 also takes the rows with logits from the last: all threads, as device_cpu_sum_ranks. */
void device_cpu_take_rows(struct device_cpu *cpu);
void device_cpu_pass_rows(struct device_cpu *cpu, uint32_t thread_idx);

/* team_fn: the layers of a step, then logits and sampling of its rows. */
void device_cpu_run_layers(struct device_cpu *cpu, uint32_t thread_idx);
void device_cpu_run_rows(struct device_cpu *cpu, uint32_t thread_idx);

/* ST_INVAL when the batch breaks the contract of batch.h or the device's limits. */
NODISCARD enum status device_cpu_check(const struct device_cpu *cpu, const struct batch *batch);

#endif
