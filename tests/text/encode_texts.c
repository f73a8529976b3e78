/* Encodes and decodes what tests/text/compare_json.py asks for: our end of the comparison of whole tokenizers.
 *
 *   encode_texts TOKENIZER      a folder with a tokenizer.json, a tokenizer.json, or a GGUF file (of which only the
 *                               vocabulary is read)
 *
 * stdin:  (u8 flags, u32 length, bytes) until its end; flag 1: special tokens around the text, flag 2: trusted
 * stdout: (u32 count, count x u32 id, u32 length, bytes): the ids, and their text without special tokens.
 * Numbers are little-endian. Exit 1: an encoding failed, with the reason; 2: the tokenizer is refused, with the reason.
 */
#include "runtime/base/file.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/model/gguf.h"
#include "runtime/model/vocab_folder.h"
#include "runtime/model/vocab_json.h"
#include "runtime/model/vocab_read.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static enum status read_vocab(const char *path, struct vocab *vocab, struct error *err)
{
    struct stat about;
    size_t length = strlen(path);
    if (!stat(path, &about) && S_ISDIR(about.st_mode)) return vocab_read_folder(path, vocab, err);
    if (length > 5 && !strcmp(path + length - 5, ".json")) {
        char *text;
        TRY(file_read(path, limits.tokenizer_json_bytes, "tokenizer_json_bytes", &text, &length, err));
        enum status status = vocab_read_json(text, length, vocab, err);
        mem_free(text);
        return status;
    }
    struct gguf *file;
    TRY(gguf_open(path, &file, err));
    enum status status = vocab_read(file, vocab, err);
    gguf_close(file);
    return status;
}

static void write_u32(uint32_t value)
{
    fwrite(&value, 4, 1, stdout);
}

static void answer(const struct tokenizer *tokenizer, const struct token_list *list, struct buf *text)
{
    struct detokenizer detokenizer;
    buf_clear(text);
    detokenizer_init_whole(&detokenizer, tokenizer, false);
    for (size_t i = 0; i < list->count; i++) detokenizer_push(&detokenizer, list->ids[i], text);
    detokenizer_finish(&detokenizer, text);
    write_u32((uint32_t)list->count);
    if (list->count) fwrite(list->ids, 4, list->count, stdout);
    write_u32((uint32_t)text->length);
    if (text->length) fwrite(text->data, 1, text->length, stdout);
}

int main(int argc, char **argv)
{
    struct error err = {""};
    struct vocab vocab;
    struct tokenizer *tokenizer;
    struct token_list list = {0};
    struct buf decoded;
    uint8_t flags;
    char *text = NULL;
    if (argc != 2) return 2;
    enum status status = read_vocab(argv[1], &vocab, &err);
    if (status == ST_OK) status = tokenizer_create(&vocab, &tokenizer, &err);
    if (status != ST_OK) {
        fprintf(stderr, "%s: %s\n", status_name(status), err.message);
        return 2;
    }
    vocab_free(&vocab);
    buf_init(&decoded, 0);
    for (uint64_t line = 0; fread(&flags, 1, 1, stdin) == 1; line++) {
        uint32_t length;
        if (fread(&length, 4, 1, stdin) != 1 || !(text = mem_resize(text, length + 1, 1))) return 2;
        if (length && fread(text, 1, length, stdin) != length) return 2;
        struct text_span span = {length, true};
        list.count = 0;
        status = tokenizer_encode(tokenizer, text, length, &span, flags & 2 ? 1 : 0, flags & 1, &list);
        if (status != ST_OK) {
            fprintf(stderr, "text %llu: %s\n", (unsigned long long)line, status_name(status));
            return 1;
        }
        answer(tokenizer, &list, &decoded);
    }
    mem_free(text);
    buf_free(&decoded);
    token_list_free(&list);
    tokenizer_destroy(tokenizer);
    return fflush(stdout) ? 2 : 0;
}
