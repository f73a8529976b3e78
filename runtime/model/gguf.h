/* A GGUF file (versions 2 and 3, little-endian), checked whole before anything of it is used.
 *
 *   "GGUF" | version u32 | tensors u64 | keys u64 | keys: name, type u32, value | tensor infos: name, dimensions u32,
 *   sizes u64[], type u32, offset u64 | padding to the alignment | data, each tensor aligned and counted from here
 *   A text is a u64 length and its bytes; an array is a type u32, a count u64, and its items.
 *
 * Invariants of an open file, each with its mutations in tests/model_files:
 *   G1  every byte read lies inside the file: one cursor, and every sum and product of sizes is checked
 *   G2  counts and lengths are within runtime/base/limits.h, and no more than the bytes that are left can hold, before
 *       memory is taken for them
 *   G3  names of keys and of tensors are non-empty, without NUL, and unique
 *   G4  a tensor has 1..4 dimensions, none zero, whole blocks a row, a known type, and an aligned place inside the file
 *       that overlaps no other
 * Source: the GGUF specification, docs/gguf.md of ggml. Version 1 (32-bit lengths) and big-endian files are refused.
 *
 * Owner: the caller. Immutable after opening; any thread. Everything returned is borrowed until gguf_close. */
#ifndef RUNTIME_MODEL_GGUF_H
#define RUNTIME_MODEL_GGUF_H

#include "kernels/tensor_type.h"
#include "runtime/base/status.h"
#include "runtime/model/vocab.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gguf;

enum gguf_type { /* the file's ids */
                 GGUF_U8,
                 GGUF_I8,
                 GGUF_U16,
                 GGUF_I16,
                 GGUF_U32,
                 GGUF_I32,
                 GGUF_F32,
                 GGUF_BOOL,
                 GGUF_TEXT,
                 GGUF_ARRAY,
                 GGUF_U64,
                 GGUF_I64,
                 GGUF_F64,
                 GGUF_TYPES
};

enum { GGUF_DIMENSIONS_MAX = 4 };

struct gguf_key {
    const char *name; /* not NUL-terminated */
    uint32_t name_length;
    enum gguf_type type;
    enum gguf_type item_type; /* of an array, else type */
    uint64_t count;           /* items of an array, else 1 */
    const uint8_t *value;     /* the first item, unaligned; a text starts with its length */
    size_t value_bytes;
    size_t offset; /* of the key's name in the file, for messages */
};

struct gguf_tensor {
    const char *name; /* NUL-terminated */
    uint32_t dims_count;
    uint64_t dims[GGUF_DIMENSIONS_MAX]; /* the row's length first; 1 past dims_count */
    enum tensor_type type;
    const void *data; /* aligned to at least 8 bytes */
    size_t bytes;
    size_t offset; /* of the data in the file */
};

/* Maps and checks a file. ST_NOTFOUND, ST_IO: the path; ST_INVAL, ST_LIMIT: the content, err says what and where;
 * ST_NOMEM. The file must not be written or cut while it is open: see runtime/model/README.md. */
NODISCARD enum status gguf_open(const char *path, struct gguf **file, struct error *err);
/* The same from memory, which stays the caller's, is aligned to 64 bytes and outlives the file. */
NODISCARD enum status gguf_open_memory(const void *data, size_t size_bytes, struct gguf **file, struct error *err);
void gguf_close(struct gguf *file); /* NULL is fine */

/* Says that [data, data + bytes) of the file has been used: the whole pages inside leave this process's memory (and
 * come back from the page cache if they are read again). Nothing happens for a file in memory. Any thread. */
void gguf_forget(const struct gguf *file, const void *data, size_t bytes);

uint32_t gguf_version(const struct gguf *file);
uint32_t gguf_alignment(const struct gguf *file);
size_t gguf_bytes(const struct gguf *file);
size_t gguf_keys(const struct gguf *file);
const struct gguf_key *gguf_key_at(const struct gguf *file, size_t idx); /* in the file's order */
size_t gguf_tensors(const struct gguf *file);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *file, size_t idx);

/* By name; NULL when absent. O(log n). */
const struct gguf_key *gguf_find_key(const struct gguf *file, const char *name);
const struct gguf_tensor *gguf_find_tensor(const struct gguf *file, const char *name);

/* Typed values. ST_NOTFOUND: no such key, err says that it is missing; ST_INVAL: another type, or outside the range. */
NODISCARD enum status gguf_get_u32(const struct gguf *file, const char *name, uint32_t *value, struct error *err);
NODISCARD enum status gguf_get_f32(const struct gguf *file, const char *name, float *value,
                                   struct error *err); /* finite */
NODISCARD enum status gguf_get_bool(const struct gguf *file, const char *name, bool *value, struct error *err);
NODISCARD enum status gguf_get_text(const struct gguf *file, const char *name, struct vocab_string *value,
                                    struct error *err);
/* An array with items of item_type. */
NODISCARD enum status gguf_get_array(const struct gguf *file, const char *name, enum gguf_type item_type,
                                     const struct gguf_key **array, struct error *err);

/* Views of the count texts of an array, into texts (count). */
void gguf_array_texts(const struct gguf_key *array, struct vocab_string *texts);

#endif
