/* See tokenizer_plan.h. SentencePiece's vocabularies in GGUF ("llama"; Llama 2, Mistral, Gemma) have neither steps nor
 * merges: text gets "▁" for spaces, one in front where add_space_prefix says so (of every part between special tokens,
 * as llama.cpp and the older tokenizer.json do), and tokens are merged by score. */
#include "runtime/text/tokenizer_plan.h"

#include <string.h>

static const struct vocab_string space = {" ", 1}, mark = {"\xe2\x96\x81", 3}; /* U+2581 */

#define O200K_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define O200K_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define O200K_FIRST "[^\\r\\n\\p{L}\\p{N}]?"
#define O200K_REST  "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define O200K_ENDS  "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

/* GGUF names whose expressions have no lexer. Source: the tokenizer.json of the models that llama.cpp's converter gives
 * these names (GPT-4o and Phi-4-mini; Mistral Nemo). */
static const struct {
    const char *name, *expression;
    bool whole_words;
} expressions[] = {
    {"gpt-4o",
     O200K_FIRST O200K_UPPER "*" O200K_LOWER "+" O200K_ENDS "|" O200K_FIRST O200K_UPPER "+" O200K_LOWER "*" O200K_ENDS
                             "|\\p{N}{1,3}" O200K_REST,
     false},
    {"llama4",
     O200K_FIRST O200K_UPPER "*" O200K_LOWER "+" O200K_ENDS "|" O200K_FIRST O200K_UPPER "+" O200K_LOWER "*" O200K_ENDS
                             "|\\p{N}{1,3}" O200K_REST,
     false},
    {"tekken",
     O200K_FIRST O200K_UPPER "*" O200K_LOWER "+|" O200K_FIRST O200K_UPPER "+" O200K_LOWER "*|\\p{N}" O200K_REST, true},
};

/* Split by the expression, then bytes. */
static bool plan_expression(const struct vocab *vocab, struct plan *plan)
{
    for (size_t i = 0; i < sizeof expressions / sizeof *expressions; i++) {
        const char *text = expressions[i].expression;
        if (strncmp(vocab->pre, expressions[i].name, sizeof vocab->pre) != 0) continue;
        plan->own[0][0] = (struct vocab_step){.type = STEP_SPLIT,
                                              .behavior = BEHAVIOR_ISOLATED,
                                              .regex = true,
                                              .pattern = {text, (uint32_t)strlen(text)}};
        plan->own[0][1] = (struct vocab_step){.type = STEP_BYTE_LEVEL};
        plan->pretokenizers = plan->own[0];
        plan->pretokenizers_count = 2;
        plan->bpe.whole_words = expressions[i].whole_words;
        plan->lexed = false;
        return true;
    }
    return false;
}

static enum status plan_byte_level(const struct vocab *vocab, struct plan *plan, struct error *err)
{
    plan->bytes = plan->lexed = true;
    if (memchr(vocab->pre, 0, sizeof vocab->pre) &&
        pretokenize_find(vocab->pre, &plan->pattern, &plan->bpe.whole_words))
        return ST_OK;
    if (plan_expression(vocab, plan)) return ST_OK;
    return error_set(err, ST_INVAL, "tokenizer.ggml.pre \"%.63s\" %s; known: %s, gpt-4o, llama4, tekken", vocab->pre,
                     !*vocab->pre || !strcmp(vocab->pre, "default")
                         ? "does not say how text is cut (convert the model again)"
                         : "is not known",
                     pretokenize_names());
}

static void plan_sentencepiece(const struct vocab *vocab, struct plan *plan)
{
    struct vocab_step *normal = plan->own[0], *output = plan->own[1];
    if (vocab->add_space_prefix)
        normal[plan->normalizers_count++] = (struct vocab_step){.type = STEP_PREPEND, .content = mark};
    normal[plan->normalizers_count++] = (struct vocab_step){.type = STEP_REPLACE, .pattern = space, .content = mark};
    output[plan->decoders_count++] = (struct vocab_step){.type = STEP_REPLACE, .pattern = mark, .content = space};
    output[plan->decoders_count++] = (struct vocab_step){.type = STEP_BYTE_FALLBACK};
    output[plan->decoders_count++] = (struct vocab_step){.type = STEP_FUSE};
    if (vocab->add_space_prefix)
        output[plan->decoders_count++] = (struct vocab_step){.type = STEP_STRIP, .content = space, .start = 1};
    plan->normalizers = normal;
    plan->decoders = output;
    plan->decoded = true;
    plan->bpe = (struct bpe_options){.characters = true,
                                     .by_score = true,
                                     .byte_fallback = true,
                                     .fuse_unknown = true,
                                     .unknown_id = vocab->unknown_id};
}

static enum status plan_gguf(const struct vocab *vocab, struct plan *plan, struct error *err)
{
    if (!strncmp(vocab->model, "gpt2", sizeof vocab->model)) return plan_byte_level(vocab, plan, err);
    if (strncmp(vocab->model, "llama", sizeof vocab->model) != 0)
        return error_set(err, ST_INVAL,
                         "tokenizer.ggml.model \"%.31s\" is not known; known: gpt2 (byte-level BPE), llama "
                         "(SentencePiece)",
                         vocab->model);
    plan_sentencepiece(vocab, plan);
    return ST_OK;
}

static bool has_step(const struct vocab_step *steps, uint32_t count, enum vocab_step_type type)
{
    for (uint32_t i = 0; i < count; i++)
        if (steps[i].type == type) return true;
    return false;
}

static enum status plan_pipeline(const struct vocab *vocab, struct plan *plan, struct error *err)
{
    static const char *const models[] = {"BPE", "Unigram", "WordPiece", "WordLevel"};
    const struct vocab_pipeline *p = vocab->pipeline;
    uint32_t model = 0;
    while (model < 4 && strncmp(models[model], vocab->model, sizeof vocab->model) != 0) model++;
    if (model == 4) return error_set(err, ST_INVAL, "model.type \"%.31s\" is not known", vocab->model);
    plan->model = (enum plan_model)model;
    plan->normalizers = p->normalizers;
    plan->normalizers_count = p->normalizers_count;
    plan->pretokenizers = p->pretokenizers;
    plan->pretokenizers_count = p->pretokenizers_count;
    plan->decoders = p->decoders;
    plan->decoders_count = p->decoders_count;
    plan->mapped = has_step(p->normalizers, p->normalizers_count, STEP_BYTE_LEVEL);
    bool byte_level = plan->mapped || has_step(p->pretokenizers, p->pretokenizers_count, STEP_BYTE_LEVEL);
    plan->bytes = byte_level && plan->model == PLAN_BPE && !p->continuing_prefix.length && !p->word_suffix.length;
    plan->mapped &= plan->bytes;
    plan->lexed =
        plan->bytes && !plan->mapped && pretokenize_recognise(p->pretokenizers, p->pretokenizers_count, &plan->pattern);
    plan->decoded = !(plan->bytes && p->decoders_count == 1 && p->decoders[0].type == STEP_BYTE_LEVEL);
    plan->bpe = (struct bpe_options){.whole_words = p->ignore_merges,
                                     .characters = !plan->bytes,
                                     .byte_fallback = p->byte_fallback,
                                     .fuse_unknown = p->fuse_unknown,
                                     .unknown_id = vocab->unknown_id,
                                     .prefix = p->continuing_prefix,
                                     .suffix = p->word_suffix};
    return ST_OK;
}

enum status plan_tokenizer(const struct vocab *vocab, struct plan *plan, struct error *err)
{
    memset(plan, 0, sizeof *plan);
    plan->bpe.unknown_id = VOCAB_NO_ID;
    return vocab->pipeline ? plan_pipeline(vocab, plan, err) : plan_gguf(vocab, plan, err);
}
