/* Exact numerics on the real model: the greedy continuation of every golden prompt equals that of an independent f32
 * implementation, and its log-probabilities lie within 2e-3 of it.
 *
 * Golden data: tests/golden/greedy_smollm2.json (its generator stands beside it): {prompts: [{ids, greedy, logprobs}]}.
 *   test_exact_greedy [FILE]    another golden file of the same form */
#include "tests/exact/real_model.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

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
        real_model_run(real, ids + position, chunk, position, 1, &params);
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
        if (i + 1 < wanted) real_model_run(real, &greedy[i], 1, position++, 1, &params);
    }
    return mistakes;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : REPOSITORY_DIR "/tests/golden/greedy_smollm2.json";
    struct real_model real;
    struct json *root;
    struct error err = {""};
    size_t length;
    real_model_path();
    char *text = real_file_read(path, &length);
    if (!text || json_read(text, length, &root, &err) != ST_OK) {
        fprintf(stderr, "cannot read %s: %s\n", path, err.message);
        return 1;
    }
    real_model_open(&real, NUMERICS_EXACT, cpu_path_best(), false, IDS_MAX);
    const struct json *prompts = json_member(root, "prompts");
    uint32_t mistakes = json_length(prompts) == 0;
    double worst = 0;
    for (size_t i = 0; i < json_length(prompts); i++) mistakes += check_prompt(&real, json_at(prompts, i), i, &worst);
    printf("%zu prompts, %u differ; largest difference of a log-probability %.2e\n", json_length(prompts), mistakes,
           worst);
    real_model_close(&real);
    json_release(root);
    mem_free(text);
    return mistakes != 0;
}
