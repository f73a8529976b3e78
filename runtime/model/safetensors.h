/* The weights of a Hugging Face folder: one safetensors file, or several (shards) with an index; checked whole before
 * anything of them is used.
 *
 *   length u64 | header: JSON of that length, spaces at its end | data
 *   header: { "name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]}, ...,
 *             "__metadata__": {"key": "text", ...} }          offsets count from the first byte after the header
 *
 * Invariants of an open set, each with its mutations in tests/model_files:
 *   S1  a header begins with '{', lies inside its file and within safetensors_header_bytes, and is one JSON object
 *       without duplicate names
 *   S2  a tensor is exactly dtype, shape and data_offsets: a known dtype, at most 8 dimensions, and
 *       end - begin = product of the shape times the dtype's size, computed without overflow
 *   S3  the data of the tensors covers all bytes behind the header, each exactly once: no overlap and no hole
 *   S4  names are unique over all shards, and what the index names lies where it says
 *   S5  a shard is a plain name inside the folder: the index cannot name another place
 * Source: the safetensors format (README.md and the reader of its repository), which asks for S1 to S3 too. Data may
 * lie at any byte: a user must not take it as aligned for its type.
 *
 * Owner: the caller. Immutable after opening; any thread. Everything returned is borrowed until safetensors_close. */
#ifndef RUNTIME_MODEL_SAFETENSORS_H
#define RUNTIME_MODEL_SAFETENSORS_H

#include "runtime/base/status.h"

#include <stddef.h>
#include <stdint.h>

struct safetensors;

#define SAFETENSORS_DTYPE_MAP(X) /* name in the file, bytes of a value */                                              \
    X(BOOL, 1)                                                                                                         \
    X(U8, 1)                                                                                                           \
    X(I8, 1)                                                                                                           \
    X(F8_E5M2, 1)                                                                                                      \
    X(F8_E4M3, 1)                                                                                                      \
    X(F8_E8M0, 1)                                                                                                      \
    X(I16, 2)                                                                                                          \
    X(U16, 2)                                                                                                          \
    X(F16, 2)                                                                                                          \
    X(BF16, 2)                                                                                                         \
    X(I32, 4)                                                                                                          \
    X(U32, 4)                                                                                                          \
    X(F32, 4)                                                                                                          \
    X(I64, 8)                                                                                                          \
    X(U64, 8)                                                                                                          \
    X(F64, 8)

enum safetensors_dtype {
#define X(name, bytes) SAFETENSORS_##name,
    SAFETENSORS_DTYPE_MAP(X)
#undef X
        SAFETENSORS_DTYPES
};

enum { SAFETENSORS_DIMENSIONS_MAX = 8, SAFETENSORS_NAME_MAX = 255 };

struct safetensors_tensor {
    const char *name; /* NUL-terminated */
    enum safetensors_dtype dtype;
    uint32_t dims_count;                       /* 0: one value */
    uint64_t dims[SAFETENSORS_DIMENSIONS_MAX]; /* as in the file: the row's length last; 1 past dims_count */
    const void *data;                          /* at any byte; of no bytes where a dimension is 0 */
    size_t bytes;
    size_t offset;  /* of the data in its file */
    uint32_t shard; /* index of its file */
};

/* Opens folder/model.safetensors, else the shards of folder/model.safetensors.index.json. ST_NOTFOUND: neither is
 * there, or a shard is missing; ST_IO: a file cannot be read; ST_INVAL, ST_LIMIT: the content: err says which file,
 * what and where; ST_NOMEM. */
NODISCARD enum status safetensors_open_folder(const char *folder, struct safetensors **set, struct error *err);
/* One file in memory, which stays the caller's and outlives the set. */
NODISCARD enum status safetensors_open_memory(const void *data, size_t size_bytes, struct safetensors **set,
                                              struct error *err);
void safetensors_close(struct safetensors *set); /* NULL is fine */

/* [data, data + bytes), inside one tensor, has been used and may leave memory; see mapped_file_forget. Any thread. */
void safetensors_forget(const struct safetensors *set, const void *data, size_t bytes);

size_t safetensors_bytes(const struct safetensors *set); /* of all files */
size_t safetensors_shards(const struct safetensors *set);
const char *safetensors_shard_name(const struct safetensors *set, size_t idx);
size_t safetensors_tensors(const struct safetensors *set);
const struct safetensors_tensor *safetensors_tensor_at(const struct safetensors *set, size_t idx); /* by name */
/* By name; NULL when absent. O(log n). */
const struct safetensors_tensor *safetensors_find(const struct safetensors *set, const char *name);
/* The tensor's position in safetensors_tensor_at. */
size_t safetensors_index_of(const struct safetensors *set, const struct safetensors_tensor *tensor);

const char *safetensors_dtype_name(enum safetensors_dtype dtype);

#endif
