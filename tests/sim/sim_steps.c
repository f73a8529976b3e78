/* Steps under way, from copies made when they were planned: what they write and when, and that nobody else is given
 * their blocks before they are through. None of it comes from the scheduler's own account of them. */
#include "tests/sim/sim.h"

#include <string.h>

uint64_t sim_domain_of(const struct sim *sim, const struct sim_request *request)
{
    return sim->config.prefix_cache ? request->domain + 1u : 1000 + request->request.id;
}

/* R24 of a token that nobody knows yet. */
static void check_pending(struct sim *sim, const struct sim_step *step, uint32_t idx, uint32_t token)
{
    uint32_t r = token & ~TOKEN_OF_ROW;
    if (!sim->under_way_count) {
        sim_violation(sim, "R24", "a pending id, and no step is under way");
        return;
    }
    const struct sim_step *before = &sim->under_way[sim->under_way_count - 1];
    if (r >= before->rows_count || before->row_scores[r]) {
        sim_violation(sim, "R24", "row %u of the step before chooses nothing", r);
        return;
    }
    uint32_t from = before->row_seq[r];
    SIM_HOLD(sim, "R24", before->seqs[from].slot == step->seqs[idx].slot, "slot %u goes on with the id of slot %u",
             step->seqs[idx].slot, before->seqs[from].slot);
    SIM_HOLD(sim, "R24",
             before->seqs[from].order == step->seqs[idx].order && before->seqs[from].end == step->seqs[idx].begin &&
                 step->seqs[idx].end == step->seqs[idx].begin + 1,
             "slot %u goes on at %u after %u", step->seqs[idx].slot, step->seqs[idx].begin, before->seqs[from].end);
}

/* R21: no row is planned for an id that nobody may have. */
static void check_limits(struct sim *sim, const struct sim_step *step, const struct batch_row *row, uint32_t idx)
{
    const struct sim_request *owner = step->seqs[idx].owner;
    uint32_t count = row->position + 1 - owner->request.prompt_count;
    if (row->score_only) return;
    SIM_HOLD(sim, "R21", count <= owner->request.max_tokens && (!owner->out_limit || count <= owner->out_limit),
             "id %u of at most %u, limit %u, is planned", count, owner->request.max_tokens, owner->out_limit);
}

void sim_step_planned(struct sim *sim, const struct batch *batch)
{
    const struct sched *s = sim->sched;
    struct sim_step *step = &sim->under_way[sim->under_way_count];
    if (sim->under_way_count) sim->steps_ahead++;
    *step = (struct sim_step){.batch = batch, .seqs_count = batch->seqs_count, .rows_count = batch->rows_count};
    memcpy(step->tokens, batch->tokens, batch->tokens_count * sizeof *batch->tokens);
    for (uint32_t i = 0; i < batch->seqs_count; i++) {
        uint32_t slot = (uint32_t)((size_t)(batch->block_table[i] - s->tables) / s->table_stride);
        const struct seq *seq = &s->seqs[slot];
        uint32_t end = batch->kv_len[i];
        step->seqs[i].slot = slot;
        step->seqs[i].order = seq->order;
        step->seqs[i].owner = sim_owner(s->jobs[seq->job].request);
        step->seqs[i].choice = seq->choice_idx;
        step->seqs[i].end = end;
        step->seqs[i].begin = end - (batch->q_start[i + 1] - batch->q_start[i]);
        memcpy(step->seqs[i].table, batch->block_table[i], kv_blocks_for(end) * sizeof(block_id));
        uint32_t token = batch->tokens[batch->q_start[i]];
        if (token & TOKEN_OF_ROW) check_pending(sim, step, i, token);
    }
    for (uint32_t r = 0; r < batch->rows_count; r++) {
        step->row_seq[r] = batch->seq_of_token[batch->rows[r].token];
        step->row_scores[r] = batch->rows[r].score_only;
        check_limits(sim, step, &batch->rows[r], step->row_seq[r]);
    }
    step->step_ns = 500000 + 30000 * (uint64_t)batch->tokens_count;
    sim->device_free_ns = (sim->device_free_ns > sim->now_ns ? sim->device_free_ns : sim->now_ns) + step->step_ns;
    step->done_ns = sim->device_free_ns;
    sim->under_way_count++;
}

/* R22: block `id`, which slot reads or writes in a step under way. */
static void check_block(struct sim *sim, uint32_t slot, block_id id, bool writes)
{
    const struct sched *s = sim->sched;
    SIM_HOLD(sim, "R22", s->pool.records[id].references > 0, "block %u of slot %u is free while a step is under way",
             id, slot);
    if (!writes) return;
    SIM_HOLD(sim, "R22", s->pool.records[id].references == 1 && !s->pool.records[id].indexed,
             "block %u, which a step under way writes, is shared", id);
    for (uint32_t i = 0; i < s->hot_count; i++) {
        if (s->hot[i].slot == SLOT_NONE || s->hot[i].slot == slot) continue;
        const block_id *table = table_of(s, s->hot[i].slot);
        for (uint32_t b = 0; b < s->hot[i].blocks; b++)
            SIM_HOLD(sim, "R22", table[b] != id, "slot %u has block %u, which slot %u still writes", s->hot[i].slot, id,
                     slot);
    }
}

void sim_check_under_way(struct sim *sim)
{
    for (uint32_t k = 0; k < sim->under_way_count; k++) {
        const struct sim_step *step = &sim->under_way[k];
        for (uint32_t i = 0; i < step->seqs_count; i++)
            for (uint32_t b = 0; b < kv_blocks_for(step->seqs[i].end); b++)
                check_block(sim, step->seqs[i].slot, step->seqs[i].table[b],
                            b >= step->seqs[i].begin / KV_BLOCK_TOKENS);
    }
}

/* What a sequence of a step that has run wrote and read. Of one that has ended meanwhile the ids are nobody's. */
static void check_sequence(struct sim *sim, const struct sim_step *step, uint32_t idx, const uint32_t *tokens)
{
    const struct seq *seq = &sim->sched->seqs[step->seqs[idx].slot];
    const struct sim_request *owner = step->seqs[idx].owner;
    bool goes_on = seq->state == SEQ_RUNNING && seq->order == step->seqs[idx].order && !owner->canceled;
    const uint32_t *ids = owner->sim[step->seqs[idx].choice].tokens;
    uint64_t domain = sim_domain_of(sim, owner);
    for (uint32_t p = 0; p < step->seqs[idx].end; p++) {
        block_id id = step->seqs[idx].table[p / KV_BLOCK_TOKENS];
        uint32_t at = p % KV_BLOCK_TOKENS;
        struct sim_block *block = &sim->blocks[id];
        if (p >= step->seqs[idx].begin) {
            uint32_t token = tokens[p - step->seqs[idx].begin];
            if (at == 0) *block = (struct sim_block){.domain = domain};
            block->written = (uint16_t)(block->written | 1u << at);
            block->ids[at] = token & TOKEN_OF_ROW ? sim->last.chosen[token & ~TOKEN_OF_ROW] : token;
        }
        SIM_HOLD(sim, "R9", block->domain == domain, "block %u of another domain is read", id);
        SIM_HOLD(sim, "R11", block->written >> at & 1 && (!goes_on || block->ids[at] == ids[p]),
                 "position %u of block %u is not its KV", p, id);
    }
}

void sim_step_ran(struct sim *sim)
{
    struct sim_step *step = &sim->under_way[0];
    const uint32_t *tokens = step->tokens;
    for (uint32_t i = 0; i < step->seqs_count; i++) {
        check_sequence(sim, step, i, tokens);
        tokens += step->seqs[i].end - step->seqs[i].begin;
    }
    for (uint32_t r = 0; r < step->rows_count; r++) {
        step->chosen[r] = sim->result->rows[r].id;
        if (!sim->result->rows[r].flags) continue;
        uint32_t idx = step->row_seq[r];
        for (uint32_t b = 0; b < kv_blocks_for(step->seqs[idx].end); b++)
            sim->blocks[step->seqs[idx].table[b]].poisoned = true;
    }
    sim->last = *step;
    sim->under_way_count--;
    sim->under_way[0] = sim->under_way[1];
}
