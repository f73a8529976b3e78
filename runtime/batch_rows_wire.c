/* See batch_rows_wire.h. */
#include "runtime/batch_rows_wire.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

#include <string.h>

enum { MAGIC = 0x31524c4d, HEADER_WORDS = 3, ROW_WORDS = 20, WORD = 4, BANNED_MAX = 256 /* besides stop ids */ };

enum row_bits { PENDING = 1, SCORE_ONLY = 2, SAME_PARAMS = 4, SAME_SEEN = 8, ANY_ALLOWED = 16, ALL_BITS = 31 };

static size_t least(uint64_t a, size_t b)
{
    return a < b ? (size_t)a : b;
}

size_t batch_rows_lists_max(uint32_t seqs_max, uint32_t context_max, uint32_t vocab)
{
    size_t request = least(limits.api_allowed_token_ids, vocab) + 2 * least(limits.api_logit_bias, vocab) +
                     limits.api_stop_token_ids + BANNED_MAX;
    return seqs_max * (context_max + request);
}

size_t batch_rows_wire_bytes_max(uint32_t rows_max, size_t lists_max)
{
    return (HEADER_WORDS + (size_t)ROW_WORDS * rows_max + lists_max) * WORD;
}

/* ---- writing ---- */

/* What a row sends of lists, in the order in which they lie. */
struct lists {
    uint32_t allowed, biases, banned, seen;
    bool same_params, same_seen;
};

/* Of the first row that shares a list of seen ids: as long as the longest of them needs. */
static uint32_t seen_length(const struct batch *batch, uint32_t r)
{
    const struct batch_row *row = &batch->rows[r];
    uint32_t longest = row->seen_count;
    for (uint32_t i = r + 1; i < batch->rows_count; i++) {
        const struct batch_row *next = &batch->rows[i];
        if (!batch_row_wants_seen(next) || next->seen != row->seen) break;
        if (next->seen_count > longest) longest = next->seen_count;
    }
    return longest;
}

static struct lists lists_of(const struct batch *batch, uint32_t r)
{
    const struct batch_row *row = &batch->rows[r];
    const struct sampling_params *p = row->params;
    struct lists lists = {0};
    lists.same_params = r && row[-1].params == p && row[-1].score_only == row->score_only;
    if (row->score_only) return lists;
    if (!lists.same_params) {
        lists.allowed = p->allowed ? p->allowed_count : 0;
        lists.biases = p->bias_count;
    }
    lists.banned = row->banned_count;
    if (!batch_row_wants_seen(row)) return lists;
    lists.same_seen = r && batch_row_wants_seen(row - 1) && row[-1].seen == row->seen;
    if (!lists.same_seen) lists.seen = seen_length(batch, r);
    return lists;
}

static size_t words_of(const struct lists *lists)
{
    return lists->allowed + 2 * (size_t)lists->biases + lists->banned + lists->seen;
}

static size_t lists_words(const struct batch *batch)
{
    size_t words = 0;
    for (uint32_t r = 0; r < batch->rows_count; r++) {
        struct lists lists = lists_of(batch, r);
        words += words_of(&lists);
    }
    return words;
}

size_t batch_rows_wire_bytes(const struct batch *batch)
{
    return batch_rows_wire_bytes_max(batch->rows_count, lists_words(batch));
}

static uint8_t *put(uint8_t *to, uint32_t word)
{
    for (int i = 0; i < WORD; i++) to[i] = (uint8_t)(word >> 8 * i);
    return to + WORD;
}

static uint8_t *put_float(uint8_t *to, float value)
{
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    return put(to, word);
}

static uint8_t *put_row(uint8_t *to, const struct batch_row *row, const struct lists *lists)
{
    const struct sampling_params *p = row->params;
    bool penalised = batch_row_wants_seen(row);
    uint32_t bits = (row->pending ? PENDING : 0) | (row->score_only ? SCORE_ONLY : 0) |
                    (lists->same_params ? SAME_PARAMS : 0) | (lists->same_seen ? SAME_SEEN : 0) |
                    (p->allowed && !row->score_only ? ANY_ALLOWED : 0);
    to = put(to, bits);
    to = put(to, (uint32_t)row->seed);
    to = put(to, (uint32_t)(row->seed >> 32));
    to = put(to, row->position);
    to = put(to, row->target);
    to = put(to, penalised ? row->seen_prompt : 0);
    to = put(to, penalised ? row->seen_count : 0);
    to = put_float(to, p->temperature);
    to = put_float(to, p->top_p);
    to = put_float(to, p->min_p);
    to = put_float(to, p->repetition_penalty);
    to = put_float(to, p->frequency_penalty);
    to = put_float(to, p->presence_penalty);
    to = put(to, p->top_k);
    to = put(to, (uint32_t)p->logprobs);
    to = put(to, lists->allowed);
    to = put(to, lists->biases);
    to = put(to, lists->banned);
    to = put(to, lists->seen);
    return put(to, 0);
}

void batch_rows_wire_write(const struct batch *batch, void *bytes)
{
    uint8_t *to = bytes, *end = to + (HEADER_WORDS + (size_t)ROW_WORDS * batch->rows_count) * WORD;
    to = put(to, MAGIC);
    to = put(to, batch->rows_count);
    to = put(to, (uint32_t)lists_words(batch));
    for (uint32_t r = 0; r < batch->rows_count; r++) {
        const struct batch_row *row = &batch->rows[r];
        struct lists lists = lists_of(batch, r);
        to = put_row(to, row, &lists);
        for (uint32_t i = 0; i < lists.allowed; i++) end = put(end, row->params->allowed[i]);
        for (uint32_t i = 0; i < lists.biases; i++) {
            end = put(end, row->params->bias[i].id);
            end = put_float(end, row->params->bias[i].bias);
        }
        for (uint32_t i = 0; i < lists.banned; i++) end = put(end, row->banned[i]);
        for (uint32_t i = 0; i < lists.seen; i++) end = put(end, row->seen[i]);
    }
}

/* ---- reading ---- */

enum status batch_rows_memory_take(struct batch_rows_memory *memory, uint32_t rows_max, size_t lists_max)
{
    size_t ids_bytes, biases_bytes;
    *memory = (struct batch_rows_memory){.lists_max = lists_max};
    if (!checked_mul(lists_max, sizeof *memory->ids, &ids_bytes) ||
        !checked_mul(lists_max / 2, sizeof *memory->biases, &biases_bytes))
        return ST_NOMEM;
    memory->params = mem_alloc(rows_max, sizeof *memory->params);
    memory->ids = lists_max ? mem_map(ids_bytes) : NULL;
    memory->biases = lists_max > 1 ? mem_map(biases_bytes) : NULL;
    if (memory->params && (memory->ids || !lists_max) && (memory->biases || lists_max < 2)) return ST_OK;
    batch_rows_memory_free(memory);
    return ST_NOMEM;
}

void batch_rows_memory_free(struct batch_rows_memory *memory)
{
    mem_free(memory->params);
    if (memory->ids) mem_unmap(memory->ids, memory->lists_max * sizeof *memory->ids);
    if (memory->biases) mem_unmap(memory->biases, memory->lists_max / 2 * sizeof *memory->biases);
    *memory = (struct batch_rows_memory){0};
}

static uint32_t get(const uint8_t **from)
{
    const uint8_t *b = *from;
    *from += WORD;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static float get_float(const uint8_t **from)
{
    uint32_t word = get(from);
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Where reading stands. */
struct reader {
    const uint8_t *row, *list;  /* the next row's words, the next list */
    size_t left;                /* words of lists */
    uint32_t seen_length;       /* of the list that the row before has */
    size_t ids_used, bias_used; /* of the memory */
    struct batch_rows_memory *memory;
};

static const uint32_t *take_ids(struct reader *reader, uint32_t count)
{
    uint32_t *ids = reader->memory->ids + reader->ids_used;
    for (uint32_t i = 0; i < count; i++) ids[i] = get(&reader->list);
    reader->ids_used += count;
    return ids;
}

static const struct logit_bias *take_biases(struct reader *reader, uint32_t count)
{
    struct logit_bias *biases = reader->memory->biases + reader->bias_used;
    for (uint32_t i = 0; i < count; i++) {
        biases[i].id = get(&reader->list);
        biases[i].bias = get_float(&reader->list);
    }
    reader->bias_used += count;
    return biases;
}

/* Its words but for the bits; lists are filled in from what was sent. */
static void read_words(struct reader *reader, struct batch_row *row, struct sampling_params *p, struct lists *lists)
{
    const uint8_t **from = &reader->row;
    row->seed = get(from);
    row->seed |= (uint64_t)get(from) << 32;
    row->position = get(from);
    row->target = get(from);
    row->seen_prompt = get(from);
    row->seen_count = get(from);
    p->temperature = get_float(from);
    p->top_p = get_float(from);
    p->min_p = get_float(from);
    p->repetition_penalty = get_float(from);
    p->frequency_penalty = get_float(from);
    p->presence_penalty = get_float(from);
    p->top_k = get(from);
    p->logprobs = (int32_t)get(from);
    lists->allowed = get(from);
    lists->biases = get(from);
    lists->banned = get(from);
    lists->seen = get(from);
}

/* Do the row's words go together, with the row before and with what is left of the lists? */
static bool is_sound(const struct reader *reader, const struct batch *batch, uint32_t r, uint32_t bits,
                     const struct batch_row *row, const struct sampling_params *p, const struct lists *lists)
{
    bool shares = bits & (SAME_PARAMS | SAME_SEEN);
    if (bits & ~(uint32_t)ALL_BITS || (shares && r == 0)) return false;
    if (p->logprobs < -1 || p->logprobs >= LOGPROBS_MAX) return false;
    if (row->score_only && (words_of(lists) || bits & (SAME_SEEN | ANY_ALLOWED))) return false;
    if (bits & SAME_PARAMS && (lists->allowed || lists->biases || batch->rows[r - 1].score_only != row->score_only))
        return false;
    if (bits & SAME_SEEN && lists->seen) return false;
    if (lists->allowed && !(bits & ANY_ALLOWED)) return false;
    uint32_t length = bits & SAME_SEEN ? reader->seen_length : lists->seen;
    return row->seen_prompt <= row->seen_count && row->seen_count <= length && words_of(lists) <= reader->left;
}

static bool read_row(struct reader *reader, struct batch *batch, uint32_t r)
{
    struct batch_row *row = &batch->rows[r];
    struct sampling_params p = {0};
    struct lists lists = {0};
    uint32_t bits = get(&reader->row);
    row->pending = bits & PENDING;
    row->score_only = bits & SCORE_ONLY;
    read_words(reader, row, &p, &lists);
    bool padded = get(&reader->row) == 0;
    if (!padded || !is_sound(reader, batch, r, bits, row, &p, &lists)) return false;
    reader->left -= words_of(&lists);
    if (bits & SAME_PARAMS) {
        row->params = batch->rows[r - 1].params;
    } else {
        p.allowed = bits & ANY_ALLOWED ? take_ids(reader, lists.allowed) : NULL;
        p.allowed_count = lists.allowed;
        p.bias = lists.biases ? take_biases(reader, lists.biases) : NULL;
        p.bias_count = lists.biases;
        reader->memory->params[r] = p;
        row->params = &reader->memory->params[r];
    }
    row->banned = lists.banned ? take_ids(reader, lists.banned) : NULL;
    row->banned_count = lists.banned;
    if (bits & SAME_SEEN) {
        row->seen = batch->rows[r - 1].seen;
    } else {
        row->seen = lists.seen ? take_ids(reader, lists.seen) : NULL;
        reader->seen_length = lists.seen;
    }
    return true;
}

enum status batch_rows_wire_read(const void *bytes, size_t size_bytes, struct batch *batch,
                                 struct batch_rows_memory *memory)
{
    const uint8_t *from = bytes;
    uint32_t rows = batch->rows_count;
    batch->rows_count = 0;
    if (size_bytes < HEADER_WORDS * WORD || get(&from) != MAGIC || get(&from) != rows) return ST_PROTO;
    uint32_t words = get(&from);
    if (words > memory->lists_max || size_bytes != batch_rows_wire_bytes_max(rows, words)) return ST_PROTO;
    struct reader reader = {.row = from, .list = from + (size_t)ROW_WORDS * rows * WORD, .left = words};
    reader.memory = memory;
    for (uint32_t r = 0; r < rows; r++)
        if (!read_row(&reader, batch, r)) return ST_PROTO;
    if (reader.left) return ST_PROTO;
    batch->rows_count = rows;
    return ST_OK;
}
