/* Planted bugs: each breaks one rule on purpose, so that a test can show that the simulator finds it. A normal build
 * has none: PLANTED is the constant false there, and both sides are still compiled, so a planted bug cannot rot. The
 * build of tests/sim with MILLRACE_PLANTED chooses one at run time: one build for all of them. */
#ifndef SCHEDULER_PLANTED_H
#define SCHEDULER_PLANTED_H

enum planted {
    PLANTED_NONE,
    PLANTED_SKIP_REFERENCE,    /* R2: a hit block is used without being counted */
    PLANTED_INDEX_PARTIAL,     /* R10: the last, partly filled block of a prompt is indexed too */
    PLANTED_INDEX_NOT_FINITE,  /* R10: blocks of a not-finite sequence stay indexed */
    PLANTED_SHARE_DOMAINS,     /* R9: all requests use one domain */
    PLANTED_ADMIT_PREEMPTED,   /* R8: admission in a step that preempted */
    PLANTED_REFREEZE_INPUT,    /* R13: in_hit is set again when a preempted sequence returns */
    PLANTED_COUNT_CANCELLED,   /* R14: rows cancelled between plan and commit are counted */
    PLANTED_LEAK_ON_CANCEL,    /* R1, R19: a cancelled sequence keeps its last block */
    PLANTED_PREFILL_FIRST,     /* R5: prefill takes budget that decode rows needed */
    PLANTED_SHOW_HELD,         /* R12: text that may become a stop string is shown */
    PLANTED_FLAT_FAIRNESS,     /* R16: output is not charged, prompts only */
    PLANTED_NO_AGEING,         /* R17: nobody ranks up */
    PLANTED_PASS_LIMIT,        /* R21: a choice goes on past its output limit */
    PLANTED_FREE_UNDER_WAY,    /* R22: blocks of an ended sequence are free at once, though a step is under way */
    PLANTED_PREEMPT_UNDER_WAY, /* R22: those of a preempted one */
    PLANTED_INDEX_UNDER_WAY,   /* R10: blocks that a step under way still fills are indexed */
    PLANTED_COUNT_DROPPED,     /* R23: a row that nobody waits for is counted */
    PLANTED_ROW_OF_NEXT,       /* R24: a pending id is looked for where this step will choose */
    PLANTED_PASS_ROOM,         /* R25: the room of a watt budget is not looked at */
    PLANTED_PAUSE_ON,          /* R26: deferrable rows stay paused past their class limit */
    PLANTED_PACE_ON,           /* R27: rows of default stay paused past twice their interval */
    PLANTED_NO_PACE,           /* R27: rows of default are not held */
    PLANTED_COUNT
};

#ifdef MILLRACE_PLANTED
extern enum planted planted_bug;
#define PLANTED(bug) (planted_bug == PLANTED_##bug)
#else
#define PLANTED(bug) (PLANTED_##bug == PLANTED_NONE)
#endif

#endif
