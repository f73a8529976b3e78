/* A small byte-level vocabulary made by hand: all 256 bytes, a few merges, and tokens of every kind. */
#ifndef TESTS_UNIT_RUNTIME_TINY_VOCAB_H
#define TESTS_UNIT_RUNTIME_TINY_VOCAB_H

#include "runtime/model/vocab.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { TINY_TOKENS_MAX = 400, TINY_MERGES_MAX = 100, TINY_TEXT_MAX = 64 };

struct tiny_vocab {
    struct vocab vocab;
    struct vocab_string tokens[TINY_TOKENS_MAX], merges[TINY_MERGES_MAX];
    uint8_t kinds[TINY_TOKENS_MAX];
    char token_text[TINY_TOKENS_MAX][TINY_TEXT_MAX], merge_text[TINY_MERGES_MAX][2 * TINY_TEXT_MAX];
};

/* Bytes as files write them. Not written like the code under test: by GPT-2's own words, "the printable bytes first".
 */
static inline size_t tiny_byte_level(const char *bytes, size_t length, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned b = (unsigned char)bytes[i], c = b;
        if (b <= 32) c = 256 + b;
        if (b >= 127 && b <= 160) c = 256 + 33 + (b - 127);
        if (b == 173) c = 256 + 67;
        if (c < 128) {
            out[n++] = (char)c;
        } else {
            out[n++] = (char)(0xc0 | c >> 6);
            out[n++] = (char)(0x80 | (c & 63));
        }
    }
    return n;
}

/* Adds a token as the file has it and returns its id. */
static inline uint32_t tiny_add(struct tiny_vocab *v, const char *text, size_t length, uint8_t kind)
{
    uint32_t id = v->vocab.count++;
    memcpy(v->token_text[id], text, length);
    v->tokens[id] = (struct vocab_string){v->token_text[id], (uint32_t)length};
    v->kinds[id] = kind;
    return id;
}

static inline void tiny_add_merge_text(struct tiny_vocab *v, const char *text)
{
    uint32_t rank = v->vocab.merges_count++;
    size_t length = strlen(text);
    memcpy(v->merge_text[rank], text, length + 1);
    v->merges[rank] = (struct vocab_string){v->merge_text[rank], (uint32_t)length};
}

/* The token of left + right (made when there is none) and the merge that leads to it. Plain bytes. */
static inline uint32_t tiny_merge(struct tiny_vocab *v, const char *left, const char *right)
{
    char text[4 * TINY_TEXT_MAX], merge[4 * TINY_TEXT_MAX];
    uint32_t id = 0;
    size_t n = tiny_byte_level(left, strlen(left), merge);
    memcpy(text, merge, n);
    merge[n] = ' ';
    size_t m = tiny_byte_level(right, strlen(right), text + n);
    memcpy(merge + n + 1, text + n, m);
    merge[n + 1 + m] = 0;
    while (id < v->vocab.count && (v->tokens[id].length != n + m || memcmp(v->token_text[id], text, n + m))) id++;
    if (id == v->vocab.count) id = tiny_add(v, text, n + m, VOCAB_NORMAL);
    tiny_add_merge_text(v, merge);
    return id;
}

enum { TINY_CONTROL = 256, TINY_CONTROL_LONG, TINY_UNKNOWN, TINY_USER, TINY_BOS, TINY_EOS, TINY_PLAIN };

/* Token b is byte b; then the six above: "<|a|>", "<|a|><|b", "<unk>", "<think>", "<s>", "</s>". */
static inline void tiny_init(struct tiny_vocab *v, const char *pre)
{
    memset(v, 0, sizeof *v);
    v->vocab.tokens = v->tokens;
    v->vocab.kinds = v->kinds;
    v->vocab.merges = v->merges;
    snprintf(v->vocab.model, sizeof v->vocab.model, "gpt2");
    snprintf(v->vocab.pre, sizeof v->vocab.pre, "%s", pre);
    for (int b = 0; b < 256; b++) {
        char byte = (char)b, text[4];
        tiny_add(v, text, tiny_byte_level(&byte, 1, text), VOCAB_NORMAL);
    }
    tiny_add(v, "<|a|>", 5, VOCAB_CONTROL);
    tiny_add(v, "<|a|><|b", 8, VOCAB_CONTROL);
    tiny_add(v, "<unk>", 5, VOCAB_UNKNOWN);
    tiny_add(v, "<think>", 7, VOCAB_USER_DEFINED);
    tiny_add(v, "<s>", 3, VOCAB_CONTROL);
    tiny_add(v, "</s>", 4, VOCAB_CONTROL);
    v->vocab.bos_id = TINY_BOS;
    v->vocab.eos_id = TINY_EOS;
    v->vocab.unknown_id = TINY_UNKNOWN;
    v->vocab.padding_id = VOCAB_NO_ID;
    v->vocab.end_ids[0] = TINY_EOS;
    v->vocab.end_ids_count = 1;
}

/* Merges that make long runs and words interesting. */
static inline void tiny_add_merges(struct tiny_vocab *v)
{
    static const char *const merges[][2] = {
        {"h", "e"},   {"l", "l"},       {"ll", "o"},      {"he", "llo"},    {" ", "hello"},   {"a", "a"},
        {"aa", "aa"}, {"aaaa", "aaaa"}, {"b", "a"},       {"a", "b"},       {"ab", "ba"},     {"ba", "ba"},
        {" ", " "},   {"  ", "  "},     {"    ", "    "}, {"\xe4", "\xb8"}, {"\xcc", "\x81"}, {"\xe4\xb8", "\xad"},
        {"!", "!"},   {"!!", "!"},      {"c", "a"},       {"ca", "b"},      {"<", "|"},       {"|", ">"},
        {"\n", "\n"}, {"x", "y"},       {"z", "hello"},
    };
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) tiny_merge(v, merges[i][0], merges[i][1]);
}

#endif
