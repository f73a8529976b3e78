/* Each part of the library is a row of field tables: what it is called in the file, what kind of value it is, where it
 * goes. A part without a row, a field without a row and a value of another kind are refused by name, so that a file
 * which asks for something new is never half obeyed. Sequences are laid flat; a Sequence in a Sequence too. */
#include "runtime/model/vocab_json_steps.h"

#include "runtime/base/arena.h"
#include "runtime/base/limits.h"
#include "runtime/model/vocab_json.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

static const char *const stage_names[] = {"normalizer", "pre_tokenizer", "decoder"};
static const char *const sequence_members[] = {"normalizers", "pretokenizers", "decoders"};

static const char *const step_names[] = {
#define X(name, text) text,
    VOCAB_STEPS(X)
#undef X
};

enum field_kind {
    FIELD_NONE, /* the part has no fields */
    FIELD_BOOL,
    FIELD_ACCENTS, /* a boolean, or null: as "lowercase" says */
    FIELD_TEXT,
    FIELD_COUNT,
    FIELD_PATTERN, /* {"String": ...} or {"Regex": ...} */
    FIELD_BEHAVIOR,
    FIELD_PREPEND,
    FIELD_OLD_PREFIX, /* Metaspace's add_prefix_space of old files: false is prepend_scheme "never" */
    FIELD_UNUSED      /* says nothing about ids or text: offsets, how a field is shown */
};

enum { NORMALIZER = 1 << STAGE_NORMALIZER, PRE_TOKENIZER = 1 << STAGE_PRE_TOKENIZER, DECODER = 1 << STAGE_DECODER };

#define AT(member) offsetof(struct vocab_step, member)

/* Source: the library's serialisation, tokenizers/src/{normalizers,pre_tokenizers,decoders} of release 0.23. */
static const struct field {
    uint8_t stages;
    enum vocab_step_type type;
    const char *name;
    enum field_kind kind;
    size_t offset;
} fields[] = {
    {NORMALIZER, STEP_NFC, "", FIELD_NONE, 0},
    {NORMALIZER, STEP_NFD, "", FIELD_NONE, 0},
    {NORMALIZER, STEP_NFKC, "", FIELD_NONE, 0},
    {NORMALIZER, STEP_NFKD, "", FIELD_NONE, 0},
    {NORMALIZER, STEP_NMT, "", FIELD_NONE, 0},
    {NORMALIZER, STEP_LOWERCASE, "", FIELD_NONE, 0},
    {NORMALIZER, STEP_STRIP_ACCENTS, "", FIELD_NONE, 0},
    {NORMALIZER, STEP_STRIP, "strip_left", FIELD_BOOL, AT(left)},
    {NORMALIZER, STEP_STRIP, "strip_right", FIELD_BOOL, AT(right)},
    {NORMALIZER, STEP_PREPEND, "prepend", FIELD_TEXT, AT(content)},
    {NORMALIZER | DECODER, STEP_REPLACE, "pattern", FIELD_PATTERN, AT(pattern)},
    {NORMALIZER | DECODER, STEP_REPLACE, "content", FIELD_TEXT, AT(content)},
    {NORMALIZER, STEP_PRECOMPILED, "precompiled_charsmap", FIELD_TEXT, AT(content)},
    {NORMALIZER, STEP_BERT_NORMALIZER, "clean_text", FIELD_BOOL, AT(clean_text)},
    {NORMALIZER, STEP_BERT_NORMALIZER, "handle_chinese_chars", FIELD_BOOL, AT(chinese)},
    {NORMALIZER, STEP_BERT_NORMALIZER, "strip_accents", FIELD_ACCENTS, AT(accents)},
    {NORMALIZER, STEP_BERT_NORMALIZER, "lowercase", FIELD_BOOL, AT(lowercase)},
    {NORMALIZER, STEP_BYTE_LEVEL, "", FIELD_NONE, 0},
    {PRE_TOKENIZER, STEP_BYTE_LEVEL, "add_prefix_space", FIELD_BOOL, AT(add_prefix_space)},
    {PRE_TOKENIZER, STEP_BYTE_LEVEL, "use_regex", FIELD_BOOL, AT(use_regex)},
    {PRE_TOKENIZER, STEP_BYTE_LEVEL, "trim_offsets", FIELD_UNUSED, 0},
    {PRE_TOKENIZER, STEP_SPLIT, "pattern", FIELD_PATTERN, AT(pattern)},
    {PRE_TOKENIZER, STEP_SPLIT, "behavior", FIELD_BEHAVIOR, AT(behavior)},
    {PRE_TOKENIZER, STEP_SPLIT, "invert", FIELD_BOOL, AT(invert)},
    {PRE_TOKENIZER, STEP_DIGITS, "individual_digits", FIELD_BOOL, AT(individual)},
    {PRE_TOKENIZER | DECODER, STEP_METASPACE, "replacement", FIELD_TEXT, AT(content)},
    {PRE_TOKENIZER | DECODER, STEP_METASPACE, "prepend_scheme", FIELD_PREPEND, AT(prepend)},
    {PRE_TOKENIZER | DECODER, STEP_METASPACE, "split", FIELD_BOOL, AT(split)},
    {PRE_TOKENIZER | DECODER, STEP_METASPACE, "add_prefix_space", FIELD_OLD_PREFIX, AT(prepend)},
    {PRE_TOKENIZER | DECODER, STEP_METASPACE, "str_rep", FIELD_UNUSED, 0},
    {PRE_TOKENIZER, STEP_WHITESPACE, "", FIELD_NONE, 0},
    {PRE_TOKENIZER, STEP_WHITESPACE_SPLIT, "", FIELD_NONE, 0},
    {PRE_TOKENIZER, STEP_PUNCTUATION, "behavior", FIELD_BEHAVIOR, AT(behavior)},
    {PRE_TOKENIZER, STEP_BERT_PRE_TOKENIZER, "", FIELD_NONE, 0},
    {PRE_TOKENIZER, STEP_CHAR_DELIMITER, "delimiter", FIELD_TEXT, AT(pattern)},
    {DECODER, STEP_BYTE_LEVEL, "add_prefix_space", FIELD_UNUSED, 0},
    {DECODER, STEP_BYTE_LEVEL, "use_regex", FIELD_UNUSED, 0},
    {DECODER, STEP_BYTE_LEVEL, "trim_offsets", FIELD_UNUSED, 0},
    {DECODER, STEP_BYTE_FALLBACK, "", FIELD_NONE, 0},
    {DECODER, STEP_FUSE, "", FIELD_NONE, 0},
    {DECODER, STEP_STRIP, "content", FIELD_TEXT, AT(content)},
    {DECODER, STEP_STRIP, "start", FIELD_COUNT, AT(start)},
    {DECODER, STEP_STRIP, "stop", FIELD_COUNT, AT(stop)},
    {DECODER, STEP_WORDPIECE, "prefix", FIELD_TEXT, AT(pattern)},
    {DECODER, STEP_WORDPIECE, "cleanup", FIELD_BOOL, AT(cleanup)},
    {DECODER, STEP_BPE_DECODER, "suffix", FIELD_TEXT, AT(pattern)},
};
enum { FIELDS_COUNT = sizeof fields / sizeof *fields };

/* Fields that a file may leave out, with the value they then have (that of a zeroed step, but for these). Source: as
 * above, the serde defaults. */
static struct vocab_step step_defaults(enum vocab_step_type type)
{
    return (struct vocab_step){.type = type,
                               .behavior = BEHAVIOR_ISOLATED,
                               .prepend = PREPEND_ALWAYS,
                               .use_regex = true,
                               .split = true,
                               .left = type == STEP_STRIP,
                               .right = type == STEP_STRIP};
}

/* --- values --- */

static enum status copy_text(const struct json *value, struct vocab_pipeline *pipeline, struct vocab_string *text)
{
    size_t length;
    const char *bytes = json_to_text(value, &length);
    char *copy = arena_strdup(pipeline->arena, bytes, length);
    if (!copy) return ST_NOMEM;
    *text = (struct vocab_string){copy, (uint32_t)length};
    return ST_OK;
}

static bool find_name(const char *const *names, size_t count, const struct json *value, uint32_t *found)
{
    const char *text = json_to_text(value, NULL);
    for (size_t i = 0; text && i < count; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *found = (uint32_t)i;
        return true;
    }
    return false;
}

static bool read_behavior(const struct json *value, struct vocab_step *step)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    uint32_t found;
    if (!find_name(names, 5, value, &found)) return false;
    step->behavior = (enum vocab_behavior)found;
    return true;
}

static bool read_prepend(const struct json *value, struct vocab_step *step)
{
    static const char *const names[] = {"never", "first", "always"};
    uint32_t found;
    if (!find_name(names, 3, value, &found)) return false;
    step->prepend = (enum vocab_prepend)found;
    return true;
}

static enum status read_pattern(const struct json *value, struct vocab_pipeline *pipeline, struct vocab_step *step)
{
    const struct json *text = json_member(value, "Regex");
    step->regex = text != NULL;
    if (!text) text = json_member(value, "String");
    if (json_length(value) != 1 || json_kind(text) != JSON_KIND_TEXT) return ST_INVAL;
    return copy_text(text, pipeline, &step->pattern);
}

/* ST_INVAL: the value is not what the field takes. */
static enum status read_field(const struct field *field, const struct json *value, struct vocab_pipeline *pipeline,
                              struct vocab_step *step)
{
    void *at = (char *)step + field->offset;
    enum json_kind kind = json_kind(value);
    switch (field->kind) {
    case FIELD_BOOL:
        if (kind != JSON_KIND_BOOL) return ST_INVAL;
        *(bool *)at = json_to_bool(value);
        return ST_OK;
    case FIELD_ACCENTS: /* null was settled before the fields were read */
        if (kind == JSON_KIND_BOOL) *(bool *)at = json_to_bool(value);
        return kind == JSON_KIND_BOOL || kind == JSON_KIND_NULL ? ST_OK : ST_INVAL;
    case FIELD_TEXT:
        if (kind != JSON_KIND_TEXT) return ST_INVAL;
        return copy_text(value, pipeline, at);
    case FIELD_COUNT:
        if (kind != JSON_KIND_INT || json_to_int(value) < 0 || json_to_int(value) > 1000) return ST_INVAL;
        *(uint32_t *)at = (uint32_t)json_to_int(value);
        return ST_OK;
    case FIELD_PATTERN: return read_pattern(value, pipeline, step);
    case FIELD_BEHAVIOR: return read_behavior(value, step) ? ST_OK : ST_INVAL;
    case FIELD_PREPEND: return read_prepend(value, step) ? ST_OK : ST_INVAL;
    case FIELD_OLD_PREFIX:
        if (kind != JSON_KIND_BOOL) return ST_INVAL;
        if (!json_to_bool(value)) step->prepend = PREPEND_NEVER;
        return ST_OK;
    case FIELD_UNUSED: return ST_OK;
    case FIELD_NONE: break;
    }
    return ST_INVAL;
}

/* --- parts --- */

static const struct field *find_field(enum vocab_stage stage, enum vocab_step_type type, const char *name)
{
    for (size_t i = 0; i < FIELDS_COUNT; i++)
        if (fields[i].type == type && fields[i].stages & 1 << stage && (!name || !strcmp(fields[i].name, name)))
            return &fields[i];
    return NULL;
}

static enum status read_part(const struct json *value, const char *type_name, enum vocab_stage stage,
                             struct vocab_pipeline *pipeline, struct vocab_step *step, struct error *err)
{
    size_t type = 0, count = sizeof step_names / sizeof *step_names;
    while (type < count && strcmp(step_names[type], type_name) != 0) type++;
    if (type == count || !find_field(stage, (enum vocab_step_type)type, NULL))
        return error_set(err, ST_INVAL, "%s \"%.64s\" is not known", stage_names[stage], type_name);
    *step = step_defaults((enum vocab_step_type)type);
    step->accents = json_to_bool(json_member(value, "lowercase"));
    void *iterator = NULL;
    const char *name;
    const struct json *member;
    while (json_iterate(value, &iterator, &name, &member)) {
        if (!strcmp(name, "type")) continue;
        const struct field *field = find_field(stage, step->type, name);
        if (!field || field->kind == FIELD_NONE)
            return error_set(err, ST_INVAL, "%s %s: the field \"%.64s\" is not known", stage_names[stage], type_name,
                             name);
        enum status status = read_field(field, member, pipeline, step);
        if (status == ST_NOMEM) return error_set(err, status, "no memory for the %s", stage_names[stage]);
        if (status != ST_OK)
            return error_set(err, ST_INVAL, "%s %s: the value of \"%.64s\" is not one that is known",
                             stage_names[stage], type_name, name);
    }
    /* A pattern, a text: these have no default. */
    for (size_t i = 0; i < FIELDS_COUNT; i++)
        if (fields[i].type == step->type && fields[i].stages & 1 << stage &&
            (fields[i].kind == FIELD_PATTERN || fields[i].kind == FIELD_TEXT) && !json_member(value, fields[i].name))
            return error_set(err, ST_INVAL, "%s %s has no \"%s\"", stage_names[stage], type_name, fields[i].name);
    return ST_OK;
}

struct steps {
    struct vocab_step *steps;
    uint32_t count;
};

/* Depth is bounded by that of the JSON text. */
static enum status read_steps(const struct json *value, enum vocab_stage stage, struct vocab_pipeline *pipeline,
                              struct steps *list, struct error *err)
{
    if (json_kind(value) == JSON_KIND_NULL) return ST_OK;
    const char *type = json_to_text(json_member(value, "type"), NULL);
    if (!type) return error_set(err, ST_INVAL, "%s: an object with a \"type\" is missing", stage_names[stage]);
    if (!strcmp(type, "Sequence")) {
        const struct json *parts = json_member(value, sequence_members[stage]);
        if (json_kind(parts) != JSON_KIND_LIST)
            return error_set(err, ST_INVAL, "%s Sequence has no list \"%s\"", stage_names[stage],
                             sequence_members[stage]);
        for (size_t i = 0; i < json_length(parts); i++) TRY(read_steps(json_at(parts, i), stage, pipeline, list, err));
        return ST_OK;
    }
    if (list->count == limits.tokenizer_steps)
        return error_set(err, ST_LIMIT, "%s has more than %" PRIu64 " steps (tokenizer_steps)", stage_names[stage],
                         limits.tokenizer_steps);
    TRY(read_part(value, type, stage, pipeline, &list->steps[list->count], err));
    list->count++;
    return ST_OK;
}

enum status vocab_json_steps(const struct json *value, enum vocab_stage stage, struct vocab_pipeline *pipeline,
                             struct error *err)
{
    struct steps list = {arena_alloc(pipeline->arena, limits.tokenizer_steps, sizeof *list.steps), 0};
    if (!list.steps) return error_set(err, ST_NOMEM, "no memory for the %s", stage_names[stage]);
    TRY(read_steps(value, stage, pipeline, &list, err));
    if (stage == STAGE_NORMALIZER) {
        pipeline->normalizers = list.steps;
        pipeline->normalizers_count = list.count;
    } else if (stage == STAGE_PRE_TOKENIZER) {
        pipeline->pretokenizers = list.steps;
        pipeline->pretokenizers_count = list.count;
    } else {
        pipeline->decoders = list.steps;
        pipeline->decoders_count = list.count;
    }
    return ST_OK;
}

/* --- the post-processor --- */

enum { AROUND_MAX = 64 }; /* ids before or after a text */

static enum status add_id(uint32_t **ids, uint32_t *count, uint32_t id, struct vocab_pipeline *pipeline,
                          struct error *err)
{
    if (!*ids) *ids = arena_alloc(pipeline->arena, AROUND_MAX, sizeof **ids);
    if (!*ids) return error_set(err, ST_NOMEM, "no memory for the post_processor");
    if (*count == AROUND_MAX)
        return error_set(err, ST_LIMIT, "post_processor puts more than %d tokens around a text", (int)AROUND_MAX);
    (*ids)[(*count)++] = id;
    return ST_OK;
}

static enum status add_piece(const struct json *processor, const struct json *piece, const struct vocab *vocab,
                             bool *seen, struct vocab_pipeline *pipeline, struct error *err)
{
    const struct json *sequence = json_member(piece, "Sequence"), *special = json_member(piece, "SpecialToken");
    const char *name = json_to_text(json_member(special ? special : sequence, "id"), NULL);
    if (!name) return error_set(err, ST_INVAL, "post_processor TemplateProcessing: a piece of \"single\" is malformed");
    if (sequence) {
        if (*seen || strcmp(name, "A") != 0)
            return error_set(err, ST_INVAL, "post_processor TemplateProcessing: \"single\" must hold text A once");
        *seen = true;
        return ST_OK;
    }
    const struct json *ids = json_member(json_member(json_member(processor, "special_tokens"), name), "ids");
    if (!json_length(ids))
        return error_set(err, ST_INVAL, "post_processor TemplateProcessing: the token \"%.64s\" has no ids", name);
    for (size_t i = 0; i < json_length(ids); i++) {
        const struct json *id = json_at(ids, i);
        if (json_kind(id) != JSON_KIND_INT || json_to_int(id) < 0 || json_to_int(id) >= vocab->count)
            return error_set(err, ST_INVAL, "post_processor TemplateProcessing: an id of \"%.64s\" is no token", name);
        uint32_t value = (uint32_t)json_to_int(id);
        if (*seen)
            TRY(add_id(&pipeline->suffix_ids, &pipeline->suffix_count, value, pipeline, err));
        else
            TRY(add_id(&pipeline->prefix_ids, &pipeline->prefix_count, value, pipeline, err));
    }
    return ST_OK;
}

/* ["[SEP]", 102] of BertProcessing and RobertaProcessing. */
static enum status read_pair(const struct json *processor, const char *name, const struct vocab *vocab, uint32_t *id,
                             struct error *err)
{
    const struct json *value = json_at(json_member(processor, name), 1);
    if (json_kind(value) != JSON_KIND_INT || json_to_int(value) < 0 || json_to_int(value) >= vocab->count)
        return error_set(err, ST_INVAL, "post_processor: \"%s\" is no [text, id] of a token", name);
    *id = (uint32_t)json_to_int(value);
    return ST_OK;
}

enum status vocab_json_post_processor(const struct json *value, const struct vocab *vocab,
                                      struct vocab_pipeline *pipeline, struct error *err)
{
    if (json_kind(value) == JSON_KIND_NULL) return ST_OK;
    const char *type = json_to_text(json_member(value, "type"), NULL);
    if (!type) return error_set(err, ST_INVAL, "post_processor: an object with a \"type\" is missing");
    if (!strcmp(type, "ByteLevel")) return ST_OK; /* moves offsets only */
    if (!strcmp(type, "Sequence")) {
        const struct json *parts = json_member(value, "processors");
        if (json_kind(parts) != JSON_KIND_LIST)
            return error_set(err, ST_INVAL, "post_processor Sequence has no list \"processors\"");
        for (size_t i = 0; i < json_length(parts); i++) {
            if (pipeline->prefix_count || pipeline->suffix_count)
                return error_set(err, ST_INVAL, "post_processor Sequence: a part after one that adds tokens");
            TRY(vocab_json_post_processor(json_at(parts, i), vocab, pipeline, err));
        }
        return ST_OK;
    }
    if (!strcmp(type, "BertProcessing") || !strcmp(type, "RobertaProcessing")) {
        uint32_t start, end;
        TRY(read_pair(value, "cls", vocab, &start, err));
        TRY(read_pair(value, "sep", vocab, &end, err));
        TRY(add_id(&pipeline->prefix_ids, &pipeline->prefix_count, start, pipeline, err));
        return add_id(&pipeline->suffix_ids, &pipeline->suffix_count, end, pipeline, err);
    }
    if (strcmp(type, "TemplateProcessing") != 0)
        return error_set(err, ST_INVAL, "post_processor \"%.64s\" is not known", type);
    const struct json *single = json_member(value, "single");
    if (json_kind(single) != JSON_KIND_LIST)
        return error_set(err, ST_INVAL, "post_processor TemplateProcessing has no list \"single\"");
    bool seen = false;
    for (size_t i = 0; i < json_length(single); i++)
        TRY(add_piece(value, json_at(single, i), vocab, &seen, pipeline, err));
    if (!seen) return error_set(err, ST_INVAL, "post_processor TemplateProcessing: \"single\" has no text");
    return ST_OK;
}
