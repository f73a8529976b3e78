/* Records of the scheduler, shared by its .c files (and read by the simulator's checks). Not an interface.
 *
 *   hot[0 .. hot_count)   one 64-byte record a running sequence, dense, in order of admission: what a step scans
 *   seqs[slot]            the rest of a sequence; a slot belongs to a started sequence, running or preempted
 *   jobs[idx]             a request; found by id through ids
 *   tables, stop and ban buffers: one fixed row a slot
 *
 * Entries in the queues of fair.h: job idx for requests (new ones and those with further choices), jobs_max + slot for
 * preempted sequences. */
#ifndef SCHEDULER_SCHED_INTERNAL_H
#define SCHEDULER_SCHED_INTERNAL_H

#include "runtime/base/check.h"
#include "runtime/base/id_table.h"
#include "scheduler/block_pool.h"
#include "scheduler/cost_model.h"
#include "scheduler/fair.h"
#include "scheduler/heap.h"
#include "scheduler/planted.h"
#include "scheduler/prefix_cache.h"
#include "scheduler/sched.h"
#include "scheduler/stop_match.h"

enum { SLOT_NONE = UINT32_MAX, PREEMPTIONS_PROTECT = 3, PREFILL_SHARE_MIN = KV_BLOCK_TOKENS };
/* A prompt with more left than this many steps' share is long. */
enum { PREFILL_LONG_STEPS = 4 };
/* Under a live limit no step is predicted to last longer: with 60 to 100 ms 0.8 % of seconds broke a cap, not 0.05. */
enum { POWER_STEP_MS_MAX = 30, RANK_INTERACTIVE_MAX = CLASS_DEFAULT + 1 };

enum hot_flag {
    HOT_DECODE = 1,  /* prompt and recomputation are done, or under way */
    HOT_SCORE = 2,   /* leader of score_prompt */
    HOT_PRIORITY = 4 /* the request's class, whatever its rank by now */
};

struct hot {
    uint32_t slot; /* SLOT_NONE: ended, swept by hot_sweep */
    uint32_t tenant;
    uint32_t computed;   /* positions whose KV is committed or under way */
    uint32_t length;     /* ids known or pending: prompt and output */
    uint32_t length_max; /* here nothing more of it is planned (R21) */
    uint32_t blocks;     /* of its table */
    uint32_t planned;    /* tokens in the last plan */
    uint32_t row;        /* its last row in the last plan that it was in: there a pending id comes from */
    uint8_t rank, flags;
    uint16_t rows;     /* rows in the last plan */
    uint8_t pending;   /* of length: ids that steps under way will choose */
    uint8_t under_way; /* steps planned and not committed that it is in */
    uint64_t order;    /* of first admission: unique, rising */
    uint64_t last_token_ns;
    uint32_t *tokens; /* choice->tokens */
};
_Static_assert(sizeof(struct hot) == 64, "one cache line");

/* LEAVING: ended while a step under way has rows of it; its blocks and its slot are free when that is committed. */
enum seq_state { SEQ_FREE, SEQ_RUNNING, SEQ_PREEMPTED, SEQ_LEAVING };

struct seq {
    struct choice *choice;
    const struct sampling_params *params;
    uint64_t request_id, seed;
    const uint32_t *banned; /* ids that may not be chosen below min_tokens */
    uint32_t banned_count;
    uint32_t job;
    uint32_t hot; /* index while running */
    uint32_t prompt_count, max_tokens, min_tokens, output_count;
    uint32_t position_last; /* of the last row that was accepted: the batch's own count (triple entry) */
    uint32_t high_water;    /* positions ever computed: below it, work is recomputation */
    uint32_t scored;        /* prompt positions scored */
    uint32_t indexed;       /* leading blocks that were offered to the prefix index */
    uint32_t blocks_left;   /* LEAVING: of its table */
    uint8_t state;          /* enum seq_state */
    uint8_t service_class;  /* as its joules are booked; rank rises with age, this does not */
    uint8_t preemptions;    /* saturating */
    uint8_t steps_left;     /* LEAVING: steps planned and not committed that it is in */
    bool leader, thinking, chain_broken, ignore_eos, keep_special;
    uint32_t choice_idx;
    uint32_t next, previous; /* other sequences of the job; next also links free slots */
    struct prefix_key chain; /* key of the last indexed block, or the root */
    uint64_t chain_serial;
    uint64_t order;
    uint32_t tenant;
    uint8_t rank;
    struct stop_match match;
};

enum job_state { JOB_FREE, JOB_WAITING, JOB_STARTED };

struct job {
    struct request *request;
    uint64_t order; /* of submission */
    struct prefix_key root;
    uint32_t next_free;
    uint32_t seqs; /* first of its sequences, SLOT_NONE */
    uint32_t choices_started, choices_ended;
    uint32_t cancel_next;
    uint64_t out;           /* accepted ids, counted here */
    uint32_t out_limit;     /* of each choice; rises only */
    uint64_t positions_out; /* the same from the batches' positions, of ended sequences */
    uint8_t state, rank;
    bool aged, canceled, choices_queued, private_domain, indexes;
    enum cause cancel_cause;
};

/* What a planned step holds of a sequence, until its commit: the same index as in the batch. */
struct step_part {
    uint32_t slot;
    uint32_t hot; /* where its record was: a hint for prefetching */
    uint32_t row; /* its first */
    uint32_t rows;
};

struct planned_step {
    struct batch *batch;
    struct step_part *parts;     /* [running_max] */
    struct energy_share *shares; /* [running_max]; NULL: nobody asks */
    struct cost_step cost;
    struct energy_work work;
};

struct tenant_queue { /* not yet started */
    uint32_t requests;
    uint64_t tokens;
};

struct sched {
    struct sched_config config;
    struct tenant_queue *tenants; /* [tenants_max] */
    struct hot *hot;
    struct seq *seqs;
    struct job *jobs;
    uint32_t hot_count, slots_max, slots_free, slot_free_first, jobs_max, job_free_first, jobs_count;
    struct id_table ids;             /* job idx */
    uint32_t cancels, priority_jobs; /* cancels: list of jobs through cancel_next */

    block_id *tables; /* [slots_max][table_stride] */
    uint32_t table_stride;
    uint16_t *stop_failure, *stop_state; /* [slots_max][..] */
    uint32_t *bans;                      /* [slots_max][ban_stride] */
    uint32_t stop_entries, stop_strings, ban_stride;
    size_t tables_bytes, stop_failure_bytes, stop_state_bytes, bans_bytes;

    struct block_pool pool;
    struct prefix_cache cache;
    struct fair fair;
    struct heap deadlines; /* jobs by deadline */
    struct heap ageing;    /* entries by the time they rank up */
    struct cost_model cost;
    struct sched_power power;
    struct power_plan {      /* sched_power.c */
        bool limited, ahead; /* power holds something back; and priority's prompts have a turn of their own */
        enum power_turn { POWER_PRIORITY, POWER_INTERACTIVE, POWER_DEFERRABLE } turn; /* whose prompts are planned */
        uint64_t pace_ns;      /* a row of default may wait so long after its token; 0: not at all */
        uint64_t due_ns;       /* the first row of default that was left out; UINT64_MAX: none */
        uint32_t rank_max;     /* of prompts: a lower class has decode rows that were left out (R5) */
        uint32_t rows, tokens; /* of flex and batch that may wait, in the plan; of prompts, that the room has */
    } power_plan;

    struct planned_step steps[SCHED_STEPS_MAX];
    uint32_t step_oldest, steps_open; /* planned, not yet committed: the oldest, how many */
    uint32_t leaving_count;           /* sequences */
    struct cost_step committed;       /* the last: for sched_observe */
    bool preempted;                   /* in this plan */
    bool must_wait;                   /* this plan needs what only the commit of the step under way gives */
    uint32_t decodes_planned, prefilling, rows_left, tokens_left;
    /* What prefill may cost in this step, in tokens at position 0, and what is left of it (below 0: a first block that
     * costs more than there was). */
    int64_t prefill_share, share_left;
    int64_t long_left; /* what a long prompt may take of it before others: half; 0 once one has */
    uint32_t *scratch; /* [running_max] */
    block_id *hits;    /* [table_stride] */
    struct prefix_key hit_chain;
    uint64_t hit_serial;
    uint32_t blocked_entry, blocked_available; /* the head that did not fit, and what there was */

    struct event *events;
    uint32_t events_count, events_max;
    uint64_t order_last, seq_order_last;
    double ns_per_token; /* of recent steps, for sched_queue_wait_ns */
    struct sched_stats stats;
    uint64_t touched;
};

/* sched.c */
void job_end(struct sched *s, uint32_t job_idx, enum finish finish, enum cause cause, enum status status,
             uint64_t now_ns);
void sequence_release_blocks(struct sched *s, struct hot *hot);
void sequence_end(struct sched *s, uint32_t slot, enum finish finish);
/* A LEAVING sequence is in no step under way any more. */
void sequence_leave(struct sched *s, uint32_t slot);
void job_done(struct sched *s, uint32_t job_idx, enum cause cause, enum status status, uint64_t now_ns);
void entry_queue(struct sched *s, uint32_t entry, uint32_t tenant, uint32_t rank, enum fair_group group,
                 const struct request *request, uint64_t order, uint64_t now_ns);
void hot_sweep(struct sched *s);

/* The next event, to be written. */
static inline struct event *event_add(struct sched *s)
{
    CHECK(s->events_count < s->events_max);
    return &s->events[s->events_count++];
}
static inline bool is_leader_scoring(const struct hot *hot)
{
    return hot->flags & HOT_SCORE;
}
static inline block_id *table_of(const struct sched *s, uint32_t slot)
{
    return s->tables + (size_t)slot * s->table_stride;
}
/* Its last id is there, or on its way; or the last that is paid for. */
static inline bool is_at_limit(const struct hot *hot)
{
    return hot->length >= hot->length_max;
}
/* Who only scores its prompt has no output to limit. */
static inline uint32_t length_max_of(const struct job *job, const struct seq *seq)
{
    uint32_t out = seq->max_tokens < job->out_limit || PLANTED(PASS_LIMIT) ? seq->max_tokens : job->out_limit;
    return seq->max_tokens ? seq->prompt_count + out : UINT32_MAX;
}

/* sched_admit.c */
/* Admits waiting entries while slots, blocks and budget remain. */
void admit_waiting(struct sched *s, uint64_t now_ns);

/* sched_power.c */
/* Begins a plan. False: nothing may be planned. */
bool power_begin(struct sched *s);
/* Puts the runnable decode rows (indices into hot) that are in the plan in front. Returns how many. */
uint32_t power_take_decodes(struct sched *s, uint32_t *items, uint32_t count, uint64_t now_ns);
/* With the decode rows planned: tokens of the first turn's prompts that go with them. step: what is planned. */
uint32_t power_prefill_room(struct sched *s, const struct cost_step *step, uint32_t tokens_max);
/* The next turn of prompts: sets what it may take; false: there is none. */
bool power_turn_next(struct sched *s);
/* Whether a running prompt, or a waiting entry, is among those whose turn it is. */
bool power_admits(const struct sched *s, const struct hot *hot, uint64_t now_ns);
bool power_admits_rank(const struct sched *s, uint32_t rank, uint32_t service_class);
/* How many tokens at position 0 cost as many joules as one at `position`. */
double power_weight(const struct sched *s, uint32_t position);

/* sched_plan.c */
/* Sorts decode rows: by class, then lowest tenant counter, then longest since its last token. */
void sort_decodes(const struct sched *s, uint32_t *items, uint32_t count);
/* What is left of its prompt may be planned. Of one that only scores, the last may be under way. */
bool is_prefilling(const struct hot *hot);
/* Plans the next tokens of a prefilling sequence, for at most share_max of the prefill share, as rows and alignment
 * allow (perhaps none; the first of a step gets a block whatever it costs). */
void plan_chunk(struct sched *s, struct hot *hot, int64_t share_max);
/* What this prompt may take of the prefill share. While others wait, the first long one may take half and the next
 * ones what is left over in the end: several long prompts do not keep short ones out. */
int64_t chunk_max(const struct sched *s, const struct hot *hot);
/* Tokens that one more prompt may still bring; 0: the step is full. */
static inline uint32_t prefill_left(const struct sched *s)
{
    if (s->share_left <= 0) return 0;
    return s->share_left < s->tokens_left ? (uint32_t)s->share_left : s->tokens_left;
}

#endif
