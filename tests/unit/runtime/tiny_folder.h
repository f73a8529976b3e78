/* A small Hugging Face folder on disk, and a byte-level tokenizer.json made by hand: all 256 bytes, merges "h e" and
 * "he l", the control tokens <s> (258) and </s> (259), the user-defined <think> (260). */
#ifndef TESTS_UNIT_RUNTIME_TINY_FOLDER_H
#define TESTS_UNIT_RUNTIME_TINY_FOLDER_H

#include "tests/unit/runtime/tiny_vocab.h"

#include "runtime/base/buf.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct tiny_folder {
    char path[64];
};

static inline void tiny_folder_create(struct tiny_folder *folder)
{
    snprintf(folder->path, sizeof folder->path, "/tmp/millrace-folder-XXXXXX");
    if (!mkdtemp(folder->path)) abort();
}

static inline void tiny_folder_write(const struct tiny_folder *folder, const char *name, const char *text,
                                     size_t length)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder->path, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(text, 1, length, file) != length || fclose(file)) abort();
}

static inline void tiny_folder_destroy(const struct tiny_folder *folder)
{
    DIR *dir = opendir(folder->path);
    char path[512];
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        snprintf(path, sizeof path, "%s/%.255s", folder->path, entry->d_name);
        unlink(path);
    }
    if (dir) closedir(dir);
    rmdir(folder->path);
}

/* The parts of the file between "model" and the rest; NULL leaves the usual one. */
struct tiny_json {
    const char *added, *normalizer, *pre_tokenizer, *post_processor, *decoder, *options, *more_tokens, *merges;
};

#define TINY_ADDED                                                                                                     \
    "[{\"id\":258,\"content\":\"<s>\",\"special\":true,\"normalized\":false,\"lstrip\":false,\"rstrip\":false,"        \
    "\"single_word\":false},{\"id\":259,\"content\":\"</s>\",\"special\":true},"                                       \
    "{\"id\":260,\"content\":\"<think>\",\"special\":false,\"normalized\":false}]"
#define TINY_BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}"

static inline void tiny_json_write(const struct tiny_json *parts, struct buf *out)
{
    buf_append_format(out, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":%s,",
                      parts->added ? parts->added : TINY_ADDED);
    buf_append_format(out, "\"normalizer\":%s,", parts->normalizer ? parts->normalizer : "null");
    buf_append_format(out, "\"pre_tokenizer\":%s,", parts->pre_tokenizer ? parts->pre_tokenizer : TINY_BYTE_LEVEL);
    buf_append_format(out, "\"post_processor\":%s,", parts->post_processor ? parts->post_processor : "null");
    buf_append_format(out, "\"decoder\":%s,", parts->decoder ? parts->decoder : TINY_BYTE_LEVEL);
    buf_append_format(out, "\"model\":{\"type\":\"BPE\",%s\"vocab\":{", parts->options ? parts->options : "");
    for (int b = 0; b < 256; b++) {
        char byte = (char)b, text[4];
        size_t n = tiny_byte_level(&byte, 1, text);
        buf_append_json_string(out, text, n);
        buf_append_format(out, ":%d,", b);
    }
    buf_append_format(out, "\"he\":256,\"hel\":257%s},\"merges\":%s}}", parts->more_tokens ? parts->more_tokens : "",
                      parts->merges ? parts->merges : "[\"h e\",[\"he\",\"l\"]]");
}

#endif
