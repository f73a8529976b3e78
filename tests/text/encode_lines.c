/* Encodes what tests/text/compare.py asks for: the tokenizer's end of the comparison with the `tokenizers` library.
 *
 *   encode_lines MODEL PATTERN     PATTERN replaces tokenizer.ggml.pre; "-" keeps the file's
 *
 * stdin:  (u32 spans, spans x (u32 length, u8 trusted, bytes)) until its end      stdout: (u32 count, count x u32 id)
 * each Numbers are little-endian. The bytes of each text must also come back from its ids, except those that the
 * vocabulary has no token for; exit 1 says where they did not. */
#include "runtime/base/mem.h"
#include "runtime/model/model.h"
#include "runtime/text/pretokenize.h"
#include "runtime/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPANS_MAX = 4096 };

struct request {
    char *text;
    size_t length, capacity;
    struct text_span spans[SPANS_MAX];
    uint32_t spans_count;
};

/* false at the end of stdin; a record that is cut short is fatal. */
static bool read_request(struct request *r)
{
    r->length = 0;
    if (fread(&r->spans_count, 4, 1, stdin) != 1) return false;
    if (r->spans_count > SPANS_MAX) exit(2);
    for (uint32_t i = 0; i < r->spans_count; i++) {
        uint32_t length;
        uint8_t trusted;
        if (fread(&length, 4, 1, stdin) != 1 || fread(&trusted, 1, 1, stdin) != 1) exit(2);
        if (r->length + length > r->capacity) {
            r->capacity = 2 * (r->length + length);
            r->text = mem_resize(r->text, r->capacity, 1);
            if (!r->text) exit(2);
        }
        if (length && fread(r->text + r->length, 1, length, stdin) != length) exit(2);
        r->length += length;
        r->spans[i] = (struct text_span){r->length, trusted != 0};
    }
    return true;
}

/* Whether the ids' bytes are the text, but for bytes without a token. */
static bool comes_back(const struct tokenizer *tokenizer, const struct request *r, const struct token_list *list,
                       const bool has_token[256])
{
    size_t at = 0;
    for (size_t i = 0; i < list->count; i++) {
        uint32_t length;
        const char *bytes = tokenizer_bytes(tokenizer, list->ids[i], &length);
        for (uint32_t k = 0; k < length; k++, at++) {
            while (at < r->length && r->text[at] != bytes[k] && !has_token[(unsigned char)r->text[at]]) at++;
            if (at == r->length || r->text[at] != bytes[k]) return false;
        }
    }
    while (at < r->length && !has_token[(unsigned char)r->text[at]]) at++;
    return at == r->length;
}

static void write_u32(uint32_t value)
{
    fwrite(&value, 4, 1, stdout);
}

static void write_pieces(const struct unicode_classes *classes, enum pretokenize_pattern pattern,
                         const struct request *r)
{
    struct pretokenize_cursor cursor;
    uint32_t count = 0;
    pretokenize_start(&cursor, classes, pattern, r->text, r->length);
    while (pretokenize_next(&cursor)) count++;
    write_u32(count);
    pretokenize_start(&cursor, classes, pattern, r->text, r->length);
    while (pretokenize_next(&cursor)) write_u32((uint32_t)cursor.at);
}

int main(int argc, char **argv)
{
    struct model *model;
    struct tokenizer *tokenizer;
    struct error err = {""};
    static struct request request;
    struct token_list list = {0};
    struct unicode_classes classes;
    enum pretokenize_pattern pattern;
    bool has_token[256] = {false}, whole_words;
    if (argc != 3) return 2;
    if (model_open(argv[1], &model, &err) != ST_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 2;
    }
    if (strcmp(argv[2], "-") != 0) snprintf(model->vocab.pre, sizeof model->vocab.pre, "%s", argv[2]);
    if (tokenizer_create(&model->vocab, &tokenizer, &err) != ST_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 2;
    }
    if (!pretokenize_find(model->vocab.pre, &pattern, &whole_words) || unicode_classes_init(&classes) != ST_OK)
        return 2;
    model_close(model);
    for (uint32_t id = 0; id < tokenizer_count(tokenizer); id++) {
        uint32_t length;
        const char *bytes = tokenizer_bytes(tokenizer, id, &length);
        if (length == 1) has_token[(unsigned char)*bytes] = true;
    }
    for (uint64_t line = 0; read_request(&request); line++) {
        list.count = 0;
        enum status st =
            tokenizer_encode(tokenizer, request.text, request.length, request.spans, request.spans_count, false, &list);
        if (st != ST_OK || !comes_back(tokenizer, &request, &list, has_token)) {
            fprintf(stderr, "text %llu: %s\n", (unsigned long long)line,
                    st != ST_OK ? status_name(st) : "the bytes of its ids are not its bytes");
            return 1;
        }
        write_u32((uint32_t)list.count);
        fwrite(list.ids, 4, list.count, stdout);
        write_pieces(&classes, pattern, &request);
    }
    mem_free(request.text);
    token_list_free(&list);
    unicode_classes_free(&classes);
    tokenizer_destroy(tokenizer);
    return fflush(stdout) ? 2 : 0;
}
