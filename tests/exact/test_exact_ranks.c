/* The real model in 2 and 4 parts, whose ranks are threads: in exact numerics every golden prompt goes on with the ids
 * of one rank; in fast numerics, where ranks round activations of other blocks, how many of them do is printed and must
 * be most. Stages of its layers change no id in either: 2 and 3 give those of one rank, 2 of 2 ranks those of 2. Golden
 * data as in test_exact_greedy.c; SmolLM2's 3 KV heads divide unevenly over 2, and 4 share one. */
#include "tests/exact/real_model.h"

#include "runtime/base/json.h"
#include "runtime/base/mem.h"

#include <stdio.h>
#include <string.h>

enum { IDS_MAX = 2048, PROMPTS_MAX = 8, OUTPUT = 16, CHUNK = 256 };

struct answers {
    uint32_t ids[PROMPTS_MAX][OUTPUT];
};

static void answer(struct real_model *real, const struct json *prompt, uint32_t *output)
{
    static const struct sampling_params params = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    static uint32_t ids[IDS_MAX];
    const struct json *list = json_member(prompt, "ids");
    uint32_t count = (uint32_t)json_length(list), position = 0;
    for (uint32_t i = 0; i < count; i++) ids[i] = (uint32_t)json_to_int(json_at(list, i));
    while (position < count) {
        uint32_t chunk = count - position < CHUNK ? count - position : CHUNK;
        real_model_run(real, ids + position, chunk, position, chunk - 1, 1, &params);
        position += chunk;
    }
    for (uint32_t i = 0; i < OUTPUT; i++) {
        output[i] = real->result->rows[0].id;
        real_model_run(real, &output[i], 1, position++, 0, 1, &params);
    }
}

/* Prompts of the golden file that are short enough, PROMPTS_MAX at most; gives their number. */
static uint32_t answer_all(struct real_model *real, const struct json *prompts, struct answers *answers)
{
    uint32_t count = 0;
    for (size_t i = 0; i < json_length(prompts) && count < PROMPTS_MAX; i++) {
        const struct json *prompt = json_at(prompts, i);
        if (json_length(json_member(prompt, "ids")) + OUTPUT <= IDS_MAX / 8)
            answer(real, prompt, answers->ids[count++]);
    }
    real_model_close(real);
    return count;
}

/* How many of one rank's ids the others give, in each prompt up to the first that differs. */
static uint32_t same_ids(const struct answers *one, const struct answers *others, uint32_t count)
{
    uint32_t same = 0;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < OUTPUT && one->ids[i][k] == others->ids[i][k]; k++) same++;
    return same;
}

/* 0: the stages give what one stage of as many ranks gives. */
static int check_stages(const char *model, enum numerics numerics, const struct json *prompts, uint32_t ranks,
                        uint32_t stages, const struct answers *wanted)
{
    static struct answers answers;
    struct real_model real;
    real_model_open_ranks(&real, model, numerics, ranks, stages, IDS_MAX);
    uint32_t count = answer_all(&real, prompts, &answers), same = same_ids(wanted, &answers, count);
    printf("%s numerics, %u stages of %u: %u of %u ids of %u prompts are those of one stage\n",
           numerics == NUMERICS_EXACT ? "exact" : "fast", stages, ranks, same, count * OUTPUT, count);
    return count < 8 || same != count * OUTPUT;
}

int main(void)
{
    static struct answers one, two, others;
    const char *model = real_model_path(), *path = REPOSITORY_DIR "/tests/golden/greedy_smollm2.json";
    struct real_model real;
    struct json *root;
    struct error err = {""};
    size_t length;
    int failed = 0;
    char *text = real_file_read(path, &length);
    if (!text || json_read(text, length, &root, &err) != ST_OK) {
        fprintf(stderr, "cannot read %s: %s\n", path, err.message);
        return 1;
    }
    const struct json *prompts = json_member(root, "prompts");
    for (enum numerics numerics = NUMERICS_FAST; numerics <= NUMERICS_EXACT; numerics++) {
        real_model_open(&real, model, numerics, cpu_path_best(), false, IDS_MAX);
        uint32_t count = answer_all(&real, prompts, &one);
        for (uint32_t ranks = 2; ranks <= 4; ranks += 2) {
            real_model_open_ranks(&real, model, numerics, ranks, 1, IDS_MAX);
            (void)answer_all(&real, prompts, &others);
            uint32_t same = same_ids(&one, &others, count), all = count * OUTPUT;
            bool exact = numerics == NUMERICS_EXACT;
            printf("%s numerics, %u ranks: %u of %u ids of %u prompts are one rank's\n", exact ? "exact" : "fast",
                   ranks, same, all, count);
            if (count < 8 || (exact ? same != all : same < all / 2)) failed = 1;
            if (ranks == 2) two = others;
        }
        if (numerics == NUMERICS_EXACT) {
            failed |= check_stages(model, numerics, prompts, 2, 2, &two);
        } else {
            failed |= check_stages(model, numerics, prompts, 1, 3, &one);
        }
        failed |= check_stages(model, numerics, prompts, 1, 2, &one);
    }
    json_release(root);
    mem_free(text);
    return failed;
}
