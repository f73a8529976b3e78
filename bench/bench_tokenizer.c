/* How fast text becomes tokens, on one core.
 *
 *   bench_tokenizer [MODEL [TEXT]]     MODEL: a GGUF file with a byte-level vocabulary, else $MILLRACE_TEST_MODEL;
 *                                      TEXT: a file of English, else LICENSE of the working directory
 *
 * Each case is encoded in rounds of at least 20 ms; the table shows the median and the spread (10th and 90th
 * percentile) of 31 rounds. The goal of the design: 5-8 million tokens a second, or 60 us for a prompt of 2 KB. The
 * last line is JSON. */
#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/model/model.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 31 };

struct result {
    const char *name;
    size_t bytes, tokens;
    double ns_median, ns_low, ns_high; /* a call */
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Encodes text, or (decode) turns its ids back into text, once. */
static void once(const struct tokenizer *tokenizer, const struct buf *text, struct token_list *list, struct buf *out)
{
    if (!out) {
        list->count = 0;
        if (tokenizer_encode(tokenizer, text->data, text->length, NULL, 0, false, list) != ST_OK) exit(1);
        return;
    }
    struct detokenizer detokenizer;
    buf_clear(out);
    detokenizer_init(&detokenizer, tokenizer, false);
    for (size_t i = 0; i < list->count; i++) detokenizer_push(&detokenizer, list->ids[i], out);
    detokenizer_finish(&detokenizer, out);
}

static struct result measure(const char *name, const struct tokenizer *tokenizer, const struct buf *text, bool decode)
{
    struct token_list list = {0};
    struct buf out;
    double ns[ROUNDS];
    const struct clock *clock = clock_system();
    buf_init(&out, 0);
    once(tokenizer, text, &list, NULL);
    for (int r = 0; r < ROUNDS; r++) {
        uint64_t start = clock_now_ns(clock), end, calls = 0;
        do {
            once(tokenizer, text, &list, decode ? &out : NULL);
            end = clock_now_ns(clock);
            calls++;
        } while (end - start < 20 * NS_PER_MS);
        ns[r] = (double)(end - start) / (double)calls;
    }
    qsort(ns, ROUNDS, sizeof *ns, compare);
    struct result result = {name,           text->length,    list.count,
                            ns[ROUNDS / 2], ns[ROUNDS / 10], ns[ROUNDS - 1 - ROUNDS / 10]};
    token_list_free(&list);
    buf_free(&out);
    return result;
}

static void print(const struct result *results, size_t count)
{
    printf("%-14s %9s %9s %12s %21s %9s %11s\n", "case", "bytes", "tokens", "us/call", "(p10 .. p90)", "MB/s",
           "Mtokens/s");
    for (size_t i = 0; i < count; i++) {
        const struct result *r = &results[i];
        printf("%-14s %9zu %9zu %12.1f (%8.1f .. %8.1f) %9.1f %11.2f\n", r->name, r->bytes, r->tokens,
               r->ns_median / 1e3, r->ns_low / 1e3, r->ns_high / 1e3, (double)r->bytes * 1e3 / r->ns_median,
               (double)r->tokens * 1e3 / r->ns_median);
    }
    printf("{\"bench\":\"tokenizer\",\"cases\":[");
    for (size_t i = 0; i < count; i++)
        printf("%s{\"name\":\"%s\",\"bytes\":%zu,\"tokens\":%zu,\"ns_median\":%.0f,\"ns_p10\":%.0f,\"ns_p90\":%.0f}",
               i ? "," : "", results[i].name, results[i].bytes, results[i].tokens, results[i].ns_median,
               results[i].ns_low, results[i].ns_high);
    printf("]}\n");
}

static void read_file(const char *path, struct buf *text)
{
    char chunk[4096];
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, file)) > 0;) buf_append(text, chunk, n);
    fclose(file);
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : getenv("MILLRACE_TEST_MODEL");
    struct error err = {""};
    struct model *model;
    struct tokenizer *tokenizer;
    struct buf text, runs;
    buf_init(&text, 0);
    buf_init(&runs, 0);
    if (!path || model_open(path, &model, &err) != ST_OK) {
        fprintf(stderr, "no model: %s\n", path ? err.message : "give a path or set MILLRACE_TEST_MODEL");
        return 2;
    }
    uint64_t start = clock_now_ns(clock_system());
    if (tokenizer_create(&model->vocab, &tokenizer, &err) != ST_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 2;
    }
    printf("tokenizer_create: %u tokens in %.1f ms\n", tokenizer_count(tokenizer),
           (double)(clock_now_ns(clock_system()) - start) / 1e6);
    read_file(argc > 2 ? argv[2] : "LICENSE", &text);
    while (text.length < (size_t)1 << 20 && buf_reserve(&text, text.length)) buf_append(&text, text.data, text.length);
    for (int i = 0; i < 1000000; i++) buf_append_char(&runs, 'a');
    struct buf prompt = {.data = text.data, .length = 2048}, chat = {.data = text.data, .length = 65536};
    struct result results[] = {
        measure("english 2 KB", tokenizer, &prompt, false), measure("english 64 KB", tokenizer, &chat, false),
        measure("english 1 MB", tokenizer, &text, false),   measure("1 M x 'a'", tokenizer, &runs, false),
        measure("decode 64 KB", tokenizer, &chat, true),
    };
    print(results, sizeof results / sizeof *results);
    tokenizer_destroy(tokenizer);
    model_close(model);
    buf_free(&text);
    buf_free(&runs);
    return 0;
}
