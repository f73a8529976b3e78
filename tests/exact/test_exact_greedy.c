/* Exact numerics on a real model: the greedy continuation of every golden prompt equals that of an independent f32
 * implementation, its log-probabilities lie within 2e-3 of it, and raw prompts have the ids of the model's tokeniser.
 *
 * Golden data: tests/golden/greedy_*.json (their generators stand beside them): {prompts: [{text, ids, greedy,
 * logprobs}]}. test_exact_greedy                 SmolLM2 and greedy_smollm2.json test_exact_greedy second Gemma 3 and
 * greedy_gemma3.json test_exact_greedy MODEL GOLDEN    others */
#include "tests/exact/real_model.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"
#include "runtime/text/tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOGPROB_TOLERANCE 2e-3
enum { IDS_MAX = 8192, CHUNK = 256 };

static uint32_t read_ids(const struct json *list, uint32_t *ids)
{
    uint32_t count = (uint32_t)json_length(list);
    if (count > IDS_MAX) return 0;
    for (uint32_t i = 0; i < count; i++) ids[i] = (uint32_t)json_to_int(json_at(list, i));
    return count;
}

/* Gives the number of mistakes and raises *worst to the largest difference of a log-probability. */
static uint32_t check_prompt(struct real_model *real, const struct json *prompt, size_t idx, double *worst)
{
    static uint32_t ids[IDS_MAX], greedy[IDS_MAX];
    static const struct sampling_params params = {.top_p = 1, .repetition_penalty = 1, .logprobs = 0};
    uint32_t count = read_ids(json_member(prompt, "ids"), ids),
             wanted = read_ids(json_member(prompt, "greedy"), greedy);
    const struct json *logprobs = json_member(prompt, "logprobs");
    uint32_t position = 0, mistakes = 0;
    if (!count || !wanted || json_length(logprobs) != wanted) {
        fprintf(stderr, "prompt %zu: the golden file lacks ids, greedy or logprobs\n", idx);
        return 1;
    }
    while (position < count) {
        uint32_t chunk = count - position < CHUNK ? count - position : CHUNK;
        real_model_run(real, ids + position, chunk, position, chunk - 1, 1, &params);
        position += chunk;
    }
    for (uint32_t i = 0; i < wanted; i++) {
        const struct row_result *row = &real->result->rows[0];
        double difference = fabs((double)row->logprob - json_to_number(json_at(logprobs, i)));
        if (row->id != greedy[i] || !(difference <= LOGPROB_TOLERANCE)) {
            fprintf(stderr, "prompt %zu token %u: got %u (log-probability %.5f), wanted %u (%.5f)\n", idx, i, row->id,
                    (double)row->logprob, greedy[i], json_to_number(json_at(logprobs, i)));
            return mistakes + 1; /* what follows has another context */
        }
        if (difference > *worst) *worst = difference;
        if (i + 1 < wanted) real_model_run(real, &greedy[i], 1, position++, 0, 1, &params);
    }
    return mistakes;
}

/* Whether a prompt's text has its ids, where the golden file gives the text that was tokenised. */
static bool check_ids(const struct tokenizer *tokenizer, const struct json *prompt, size_t idx)
{
    static uint32_t wanted[IDS_MAX];
    size_t length;
    const char *text = json_to_text(json_member(prompt, "text"), &length);
    if (!text) return true;
    uint32_t count = read_ids(json_member(prompt, "ids"), wanted);
    struct text_span trusted = {length, true};
    struct token_list ids = {0};
    bool same = tokenizer_encode(tokenizer, text, length, &trusted, 1, true, &ids) == ST_OK && ids.count == count &&
                memcmp(ids.ids, wanted, count * sizeof *wanted) == 0;
    size_t at = 0;
    while (!same && at < ids.count && at < count && ids.ids[at] == wanted[at]) at++;
    if (!same) fprintf(stderr, "prompt %zu: %zu ids, wanted %u; they part at %zu\n", idx, ids.count, count, at);
    token_list_free(&ids);
    return same;
}

static struct tokenizer *open_tokenizer(const struct real_model *real)
{
    struct tokenizer *tokenizer;
    struct error err = {""};
    if (tokenizer_create(&real->model->vocab, &tokenizer, &err) == ST_OK) return tokenizer;
    fprintf(stderr, "tokenizer_create: %s\n", err.message);
    exit(1);
}

int main(int argc, char **argv)
{
    bool second = argc == 2 && strcmp(argv[1], "second") == 0;
    const char *path = REPOSITORY_DIR "/tests/golden/greedy_smollm2.json", *model;
    if (second) path = REPOSITORY_DIR "/tests/golden/greedy_gemma3.json";
    if (argc > 2) path = argv[2];
    model = argc > 2 ? argv[1] : second ? real_model_second_path() : real_model_path();
    struct real_model real;
    struct json *root;
    struct error err = {""};
    size_t length;
    char *text = real_file_read(path, &length);
    if (!text || json_read(text, length, &root, &err) != ST_OK) {
        fprintf(stderr, "cannot read %s: %s\n", path, err.message);
        return 1;
    }
    real_model_open(&real, model, NUMERICS_EXACT, cpu_path_best(), false, IDS_MAX);
    struct tokenizer *tokenizer = open_tokenizer(&real);
    const struct json *prompts = json_member(root, "prompts");
    uint32_t mistakes = json_length(prompts) == 0;
    double worst = 0;
    for (size_t i = 0; i < json_length(prompts); i++) {
        mistakes += !check_ids(tokenizer, json_at(prompts, i), i);
        mistakes += check_prompt(&real, json_at(prompts, i), i, &worst);
    }
    printf("%zu prompts, %u differ; largest difference of a log-probability %.2e\n", json_length(prompts), mistakes,
           worst);
    tokenizer_destroy(tokenizer);
    real_model_close(&real);
    json_release(root);
    mem_free(text);
    return mistakes != 0;
}
