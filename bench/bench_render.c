/* What it costs to turn events into chunks, on one core, with a device that costs nothing.
 *
 *   bench_render [MODEL]      MODEL: a GGUF file with a byte-level vocabulary, else $MILLRACE_TEST_MODEL
 *
 * One stream of 4,000 tokens of English text; rendered after each token (a fast reader), after every 16 (a slow one),
 * once at the end as a body, and with five log-probabilities a token. Median and spread (10th, 90th percentile) of 21
 * rounds, in ns a token, and the allocations of a round after the buffers have grown. The last line is JSON. */
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/model/model.h"
#include "server/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 21, TOKENS = 4000 };

struct result {
    const char *name;
    double ns_median, ns_low, ns_high;
    double bytes;         /* a token */
    uint64_t allocations; /* of all events and renderings of a round, without create, prepare and finish */
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static _Noreturn void give_up(const char *why)
{
    fprintf(stderr, "bench_render: %s\n", why);
    exit(1);
}

/* One request from end to end; returns the nanoseconds of events, rendering and finish. */
static uint64_t run(const struct api_model *model, const struct token_list *list, const char *body, uint32_t every,
                    struct buf *out, struct result *result)
{
    struct api_models models = {.items = &model, .count = 1};
    const struct api_context context = {.models = &models, .tenant_name = ""};
    struct api_call *call;
    struct api_error error;
    uint32_t count;
    if (!api_call_create(API_COMPLETIONS, body, strlen(body), &context, &call, &error) ||
        !api_call_prepare(call, &error))
        give_up(error.message);
    struct request *request = api_call_requests(call, &count);
    struct choice *choice = &request->choices[0];
    size_t bytes = 0;
    for (uint32_t i = 0; i < TOKENS; i++) {
        choice->tokens[request->prompt_count + i] = list->ids[i % list->count];
        if (choice->logprobs)
            choice->logprobs[i] =
                (struct token_logprobs){.logprob = -0.123456f,
                                        .rank = 1,
                                        .top_count = 5,
                                        .top_ids = {10, 2000, 3000, 4000, 5000},
                                        .top_logprobs = {-0.123456f, -1.5f, -2.71828f, -3.14159f, -9.75f}};
    }
    buf_clear(out);
    uint64_t allocations = mem_allocations_of_thread(), start = clock_now_ns(clock_system());
    uint32_t text_bytes = 0;
    for (uint32_t i = 1; i <= TOKENS; i++) {
        uint32_t length;
        tokenizer_bytes(model->tokenizer, list->ids[(i - 1) % list->count], &length);
        text_bytes += length;
        struct event event = {.kind = CHOICE_TOKENS, .request = request, .output_count = i, .text_bytes = text_bytes};
        api_call_event(call, &event);
        if (!every || i % every) continue;
        api_call_render(call, out);
        bytes += out->length;
        buf_clear(out); /* the socket took it */
    }
    result->allocations = mem_allocations_of_thread() - allocations;
    choice->output_count = TOKENS;
    choice->text_bytes = text_bytes;
    choice->finish = FINISH_LENGTH;
    request->usage.out = TOKENS;
    struct event done = {.kind = REQUEST_DONE, .request = request};
    api_call_event(call, &done);
    api_call_finish(call, out);
    uint64_t taken = clock_now_ns(clock_system()) - start;
    result->bytes = (double)(bytes + out->length) / TOKENS;
    if (!buf_ok(out)) give_up("out of memory");
    api_call_destroy(call);
    return taken;
}

static void measure(const struct api_model *model, const struct token_list *list, const char *members, uint32_t every,
                    struct result *result)
{
    double rounds[ROUNDS];
    char body[200];
    struct buf out;
    snprintf(body, sizeof body, "{\"prompt\":\"a\",\"max_tokens\":%d%s}", TOKENS, members);
    buf_init(&out, 0);
    for (uint32_t i = 0; i < ROUNDS; i++) rounds[i] = (double)run(model, list, body, every, &out, result) / TOKENS;
    qsort(rounds, ROUNDS, sizeof *rounds, compare);
    result->ns_median = rounds[ROUNDS / 2];
    result->ns_low = rounds[ROUNDS / 10];
    result->ns_high = rounds[ROUNDS - 1 - ROUNDS / 10];
    buf_free(&out);
}

static const char english[] =
    "The mill stood where the river bends, and the miller let in only as much water as the wheel could take. \"Why not "
    "open the gate?\" asked the boy. \"Because the stones grind at their own pace,\" he said, \"and what they cannot "
    "grind runs past.\"\nIn dry summers he ground at night, when the stream was full; in spring he ground all day.\n";

int main(int argc, char **argv)
{
    static const char *const names[] = {"bench"};
    const char *path = argc > 1 ? argv[1] : getenv("MILLRACE_TEST_MODEL");
    struct model *file;
    struct tokenizer *tokenizer;
    struct token_list list = {0};
    struct error err = {{0}};
    if (!path) give_up("no model: give a GGUF file");
    if (model_open(path, &file, &err) != ST_OK || tokenizer_create(&file->vocab, &tokenizer, &err) != ST_OK)
        give_up(err.message);
    if (tokenizer_encode(tokenizer, english, sizeof english - 1, NULL, 0, false, &list) != ST_OK) give_up("encode");
    const struct api_model model = {.names = names,
                                    .defaults = sampling_defaults_none(),
                                    .names_count = 1,
                                    .tokenizer = tokenizer,
                                    .context_max = 8192,
                                    .think_start_id = VOCAB_NO_ID,
                                    .think_end_id = VOCAB_NO_ID,
                                    .fingerprint = "fp_bench"};
    static const struct {
        const char *name, *members;
        uint32_t every;
    } cases[] = {{"stream, chunk a token", ",\"stream\":true", 1},
                 {"stream, chunk a 16 tokens", ",\"stream\":true", 16},
                 {"body", "", 0},
                 {"stream, 5 logprobs", ",\"stream\":true,\"logprobs\":5", 1}};
    enum { CASES = sizeof cases / sizeof *cases };
    struct result results[CASES];
    printf("%-26s %12s %12s %12s %12s %12s\n", "case", "ns/token", "p10", "p90", "bytes/token", "allocations");
    for (uint32_t i = 0; i < CASES; i++) {
        measure(&model, &list, cases[i].members, cases[i].every, &results[i]);
        printf("%-26s %12.1f %12.1f %12.1f %12.1f %12llu\n", cases[i].name, results[i].ns_median, results[i].ns_low,
               results[i].ns_high, results[i].bytes, (unsigned long long)results[i].allocations);
    }
    printf("{\"bench\":\"render\",\"rounds\":%d,\"tokens\":%d", ROUNDS, TOKENS);
    for (uint32_t i = 0; i < CASES; i++)
        printf(",\"%s ns\":[%.1f,%.1f,%.1f]", cases[i].name, results[i].ns_median, results[i].ns_low,
               results[i].ns_high);
    printf("}\n");
    token_list_free(&list);
    tokenizer_destroy(tokenizer);
    model_close(file);
    return 0;
}
