/* Headers by the JSON reader, shards by the index; see safetensors.h for the format and its invariants.
 *
 * Tensors of all shards stand in one array: in the order of their data while a shard is checked, then by name. The JSON
 * tree of a header is dropped as soon as its tensors are copied. Rejected: a pull parser for headers (they are small
 * beside the weights, and the reader of everybody's JSON is the hardened one), and tolerating holes (the format's own
 * reader does not, and a hole is where a damaged header shows). */
#include "runtime/model/safetensors.h"

#include "runtime/base/arena.h"
#include "runtime/base/json.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/model/json_file.h"
#include "runtime/model/mapped_file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(size_t) == 8, "offsets in files are 64-bit");

static const char file_name[] = "model.safetensors", index_name[] = "model.safetensors.index.json";

enum { LENGTH_BYTES = 8, HEADER_BYTES_MIN = 2, SHARD_NAME_MAX = 255 };

struct shard {
    const char *name; /* in the set's arena */
    struct mapped_file map;
};

struct safetensors {
    struct arena arena; /* names */
    size_t shards_count, tensors_count;
    struct shard *shards;
    struct safetensors_tensor *tensors;
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[SAFETENSORS_DTYPES] = {
#define X(name, bytes) {#name, bytes},
    SAFETENSORS_DTYPE_MAP(X)
#undef X
};

/* --- one tensor of a header (S2) --- */

static enum status read_dtype(const char *name, const struct json *value, enum safetensors_dtype *dtype,
                              struct error *err)
{
    const char *text = json_to_text(value, NULL);
    if (!text) return error_set(err, ST_INVAL, "tensor %.255s: its dtype is missing or no text", name);
    for (int i = 0; i < SAFETENSORS_DTYPES; i++) {
        if (strcmp(text, dtypes[i].name) != 0) continue;
        *dtype = (enum safetensors_dtype)i;
        return ST_OK;
    }
    return error_set(err, ST_INVAL, "tensor %.255s is of dtype \"%.40s\", which this version does not know", name,
                     text);
}

static enum status read_shape(const struct json *value, struct safetensors_tensor *tensor, struct error *err)
{
    size_t count = json_length(value), values = 1;
    if (json_kind(value) != JSON_KIND_LIST || count > SAFETENSORS_DIMENSIONS_MAX)
        return error_set(err, ST_INVAL, "tensor %s: its shape must be an array of at most %d integers", tensor->name,
                         SAFETENSORS_DIMENSIONS_MAX);
    tensor->dims_count = (uint32_t)count;
    for (uint32_t d = 0; d < SAFETENSORS_DIMENSIONS_MAX; d++) {
        const struct json *item = json_at(value, d);
        tensor->dims[d] = 1;
        if (d >= count) continue;
        if (json_kind(item) != JSON_KIND_INT || json_to_int(item) < 0)
            return error_set(err, ST_INVAL, "tensor %s: dimension %" PRIu32 " of its shape is no integer from 0 up",
                             tensor->name, d);
        tensor->dims[d] = (uint64_t)json_to_int(item);
        if (!checked_mul(values, tensor->dims[d], &values))
            return error_set(err, ST_INVAL, "tensor %s: its shape holds more values than 64 bits can count",
                             tensor->name);
    }
    if (!checked_mul(values, dtypes[tensor->dtype].bytes, &tensor->bytes))
        return error_set(err, ST_INVAL, "tensor %s: its shape asks for more bytes than 64 bits can count",
                         tensor->name);
    return ST_OK;
}

static enum status read_offsets(const struct json *value, size_t data_bytes, struct safetensors_tensor *tensor,
                                struct error *err)
{
    const struct json *first = json_at(value, 0), *last = json_at(value, 1);
    int64_t begin = json_to_int(first), end = json_to_int(last);
    if (json_length(value) != 2 || json_kind(first) != JSON_KIND_INT || json_kind(last) != JSON_KIND_INT || begin < 0 ||
        end < begin)
        return error_set(err, ST_INVAL,
                         "tensor %s: its data_offsets must be two integers, the end not before the begin",
                         tensor->name);
    if ((uint64_t)end > data_bytes)
        return error_set(err, ST_INVAL,
                         "tensor %s ends at byte %" PRId64 " of the data, which has only %zu: the file is cut short or "
                         "damaged, fetch it again",
                         tensor->name, end, data_bytes);
    if ((uint64_t)(end - begin) != tensor->bytes)
        return error_set(err, ST_INVAL,
                         "tensor %s has data of %" PRId64 " bytes, its shape and dtype %s ask for %zu: the header is "
                         "damaged",
                         tensor->name, end - begin, dtypes[tensor->dtype].name, tensor->bytes);
    tensor->offset = (size_t)begin; /* of the data, until the header's length is added */
    return ST_OK;
}

static enum status read_tensor(struct safetensors *set, const char *name, const struct json *value, size_t data_bytes,
                               struct safetensors_tensor *tensor, struct error *err)
{
    size_t length = strlen(name);
    if (!length || length > SAFETENSORS_NAME_MAX)
        return error_set(err, ST_INVAL, "a tensor's name of %zu bytes, possible are 1 to %d: \"%.60s\"", length,
                         SAFETENSORS_NAME_MAX, name);
    if (json_kind(value) != JSON_KIND_OBJECT)
        return error_set(err, ST_INVAL, "tensor %s is described by JSON of kind %s, it must be an object", name,
                         json_kind_name(json_kind(value)));
    const struct json *dtype = json_member(value, "dtype"), *shape = json_member(value, "shape");
    const struct json *offsets = json_member(value, "data_offsets");
    TRY(read_dtype(name, dtype, &tensor->dtype, err));
    if (!shape || !offsets || json_length(value) != 3)
        return error_set(err, ST_INVAL, "tensor %s must be described by dtype, shape and data_offsets, nothing else",
                         name);
    if (!(tensor->name = arena_strdup(&set->arena, name, length)))
        return error_set(err, ST_NOMEM, "no memory for the names of tensors");
    TRY(read_shape(shape, tensor, err));
    return read_offsets(offsets, data_bytes, tensor, err);
}

/* --- one shard --- */

static int compare_offsets(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* those of no bytes first */
}

/* S3, and the place of the data. */
static enum status place_data(const struct mapped_file *map, size_t data_offset, struct safetensors_tensor *tensors,
                              size_t count, struct error *err)
{
    size_t covered = 0, data_bytes = map->bytes - data_offset;
    if (count) qsort(tensors, count, sizeof *tensors, compare_offsets);
    for (size_t i = 0; i < count; i++) {
        struct safetensors_tensor *tensor = &tensors[i];
        if (tensor->offset != covered)
            return error_set(err, ST_INVAL,
                             "tensor %s begins at byte %zu of the data, %s byte %zu: the header is damaged",
                             tensor->name, tensor->offset,
                             tensor->offset < covered ? "inside the one before, which ends at"
                                                      : "with a hole behind the one before, which ends at",
                             covered);
        covered += tensor->bytes;
        tensor->offset += data_offset;
        tensor->data = map->data + tensor->offset;
    }
    if (covered != data_bytes)
        return error_set(err, ST_INVAL,
                         "the tensors end at byte %zu of the data, the file has %zu: the file is damaged", covered,
                         data_bytes);
    return ST_OK;
}

static enum status check_metadata(const struct json *metadata, struct error *err)
{
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    if (json_kind(metadata) != JSON_KIND_OBJECT)
        return error_set(err, ST_INVAL, "__metadata__ must be an object of texts");
    while (json_iterate(metadata, &iterator, &key, &value))
        if (!json_to_text(value, NULL)) return error_set(err, ST_INVAL, "__metadata__: %.80s is no text", key);
    return ST_OK;
}

static enum status read_entries(struct safetensors *set, uint32_t shard, const struct json *root, size_t data_offset,
                                struct error *err)
{
    const struct mapped_file *map = &set->shards[shard].map;
    size_t count = json_length(root), first = set->tensors_count;
    const struct json *metadata = json_member(root, "__metadata__");
    if (metadata) {
        TRY(check_metadata(metadata, err));
        count--;
    }
    if (first + count > limits.safetensors_tensors)
        return error_set(err, ST_LIMIT, "%zu tensors, more than the limit of %" PRIu64 " (safetensors_tensors)",
                         first + count, limits.safetensors_tensors);
    struct safetensors_tensor *tensors = mem_resize(set->tensors, first + count, sizeof *tensors);
    if (!tensors) return error_set(err, ST_NOMEM, "no memory for %zu tensors", count);
    set->tensors = tensors;
    void *iterator = NULL;
    const char *name;
    const struct json *value;
    while (json_iterate(root, &iterator, &name, &value)) {
        if (value == metadata) continue;
        struct safetensors_tensor *tensor = &tensors[set->tensors_count];
        *tensor = (struct safetensors_tensor){.shard = shard};
        TRY(read_tensor(set, name, value, map->bytes - data_offset, tensor, err));
        set->tensors_count++;
    }
    return place_data(map, data_offset, tensors + first, count, err);
}

/* S1. */
static enum status read_header(struct safetensors *set, uint32_t shard, struct error *err)
{
    const struct mapped_file *map = &set->shards[shard].map;
    uint64_t length;
    if (map->bytes < LENGTH_BYTES)
        return error_set(err, ST_INVAL, "the file ends at byte %zu inside the length of its header: fetch it again",
                         map->bytes);
    memcpy(&length, map->data, LENGTH_BYTES);
    if (length < HEADER_BYTES_MIN || (map->bytes > LENGTH_BYTES && map->data[LENGTH_BYTES] != '{'))
        return error_set(err, ST_INVAL, "this is no safetensors file: no header follows its length at byte %d",
                         LENGTH_BYTES);
    if (length > limits.safetensors_header_bytes)
        return error_set(err, ST_LIMIT,
                         "the header claims %" PRIu64 " bytes, more than the limit of %" PRIu64
                         " (safetensors_header_bytes)",
                         length, limits.safetensors_header_bytes);
    if (length > map->bytes - LENGTH_BYTES)
        return error_set(err, ST_INVAL,
                         "the header claims %" PRIu64
                         " bytes, only %zu are left: the file is cut short, fetch it again",
                         length, map->bytes - LENGTH_BYTES);
    struct json *root = NULL;
    struct error inner = {""};
    enum status status = json_read((const char *)map->data + LENGTH_BYTES, length, &root, &inner);
    if (status != ST_OK) return error_set(err, status, "the header: %s", inner.message);
    status = json_kind(root) == JSON_KIND_OBJECT
                 ? read_entries(set, shard, root, LENGTH_BYTES + length, err)
                 : error_set(err, ST_INVAL, "the header holds JSON of kind %s, it must be an object",
                             json_kind_name(json_kind(root)));
    json_release(root);
    return status;
}

static enum status read_shard(struct safetensors *set, uint32_t shard, struct error *err)
{
    struct error inner = {""};
    enum status status = read_header(set, shard, &inner);
    return status == ST_OK ? ST_OK : error_set(err, status, "%s: %s", set->shards[shard].name, inner.message);
}

/* --- all of them --- */

static int compare_names(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* S4 but for the index. */
static enum status sort_names(struct safetensors *set, struct error *err)
{
    if (set->tensors_count) qsort(set->tensors, set->tensors_count, sizeof *set->tensors, compare_names);
    for (size_t i = 1; i < set->tensors_count; i++)
        if (strcmp(set->tensors[i - 1].name, set->tensors[i].name) == 0)
            return error_set(err, ST_INVAL, "tensor %s lies in %.80s and in %.80s: one must go", set->tensors[i].name,
                             set->shards[set->tensors[i - 1].shard].name, set->shards[set->tensors[i].shard].name);
    return ST_OK;
}

static struct safetensors *new_set(size_t shards_count)
{
    struct safetensors *set = mem_alloc(1, sizeof *set);
    if (!set) return NULL;
    arena_init(&set->arena, 0);
    if ((set->shards = mem_alloc(shards_count, sizeof *set->shards))) return set;
    mem_free(set);
    return NULL;
}

enum status safetensors_open_memory(const void *data, size_t size_bytes, struct safetensors **out, struct error *err)
{
    struct safetensors *set = new_set(1);
    if (!set) return error_set(err, ST_NOMEM, "no memory to open the file");
    set->shards[0] = (struct shard){file_name, mapped_file_of_memory(data, size_bytes)};
    set->shards_count = 1;
    enum status status = read_shard(set, 0, err);
    if (status == ST_OK) status = sort_names(set, err);
    if (status != ST_OK) {
        safetensors_close(set);
        return status;
    }
    *out = set;
    return ST_OK;
}

static enum status open_shard(struct safetensors *set, const char *folder, const char *name, struct error *err)
{
    char path[FOLDER_PATH_BYTES];
    struct error inner = {""};
    struct shard *shard = &set->shards[set->shards_count];
    TRY(folder_path(folder, name, path, err));
    enum status status = mapped_file_open(path, "a safetensors file", &shard->map, &inner);
    if (status == ST_NOTFOUND) return error_set(err, status, "%s is missing from the folder: fetch it", name);
    if (status != ST_OK) return error_set(err, status, "%s: %s", name, inner.message);
    set->shards_count++;
    if (!(shard->name = arena_strdup(&set->arena, name, strlen(name))))
        return error_set(err, ST_NOMEM, "no memory for the names of files");
    return read_shard(set, (uint32_t)(set->shards_count - 1), err);
}

/* S5. */
static bool is_plain_name(const char *name)
{
    size_t length = name ? strlen(name) : 0;
    static const char ending[] = ".safetensors";
    size_t least = sizeof ending - 1;
    return length > least && length <= SHARD_NAME_MAX && name[0] != '.' && !strchr(name, '/') &&
           strcmp(name + length - least, ending) == 0;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct files of a weight_map, sorted, into names (one slot a tensor). */
static enum status shard_names(const struct json *map, const char **names, size_t *count, struct error *err)
{
    void *iterator = NULL;
    const char *tensor;
    const struct json *value;
    size_t all = 0, kept = 0;
    while (json_iterate(map, &iterator, &tensor, &value)) {
        const char *name = json_to_text(value, NULL);
        if (!is_plain_name(name))
            return error_set(
                err, ST_INVAL,
                "%s: weight_map puts tensor %.80s into \"%.80s\", which is no plain name of a .safetensors "
                "file in this folder",
                index_name, tensor, name ? name : json_kind_name(json_kind(value)));
        names[all++] = name;
    }
    qsort(names, all, sizeof *names, compare_texts);
    for (size_t i = 0; i < all; i++)
        if (!kept || strcmp(names[kept - 1], names[i]) != 0) names[kept++] = names[i];
    if (kept > limits.safetensors_shards)
        return error_set(err, ST_LIMIT, "%s: %zu files, more than the limit of %" PRIu64 " (safetensors_shards)",
                         index_name, kept, limits.safetensors_shards);
    *count = kept;
    return ST_OK;
}

static enum status check_index(const struct safetensors *set, const struct json *map, struct error *err)
{
    void *iterator = NULL;
    const char *name;
    const struct json *value;
    while (json_iterate(map, &iterator, &name, &value)) {
        const struct safetensors_tensor *tensor = safetensors_find(set, name);
        const char *file = json_to_text(value, NULL);
        if (!tensor || strcmp(set->shards[tensor->shard].name, file) != 0)
            return error_set(err, ST_INVAL,
                             "%s: tensor %.160s should be in %.80s, which does not hold it: index and files do not "
                             "belong together",
                             index_name, name, file);
    }
    return ST_OK;
}

static enum status open_shards(const char *folder, const char *const *names, size_t count, const struct json *map,
                               struct safetensors **out, struct error *err)
{
    struct safetensors *set = new_set(count);
    if (!set) return error_set(err, ST_NOMEM, "no memory to open %zu files", count);
    enum status status = ST_OK;
    for (size_t i = 0; status == ST_OK && i < count; i++) status = open_shard(set, folder, names[i], err);
    if (status == ST_OK) status = sort_names(set, err);
    if (status == ST_OK && map) status = check_index(set, map, err);
    if (status != ST_OK) {
        safetensors_close(set);
        return status;
    }
    *out = set;
    return ST_OK;
}

static enum status open_indexed(const char *folder, const struct json *index, struct safetensors **set,
                                struct error *err)
{
    const struct json *map = json_member(index, "weight_map");
    size_t count = json_length(map);
    if (json_kind(map) != JSON_KIND_OBJECT || !count)
        return error_set(err, ST_INVAL, "%s: weight_map is missing, empty or no object", index_name);
    const char **names = mem_alloc(count, sizeof *names);
    if (!names) return error_set(err, ST_NOMEM, "no memory for the index of %zu tensors", count);
    enum status status = shard_names(map, names, &count, err);
    if (status == ST_OK) status = open_shards(folder, names, count, map, set, err);
    mem_free(names);
    return status;
}

enum status safetensors_open_folder(const char *folder, struct safetensors **set, struct error *err)
{
    static const char *const single = file_name;
    struct json *index = NULL;
    enum status status = open_shards(folder, &single, 1, NULL, set, err);
    if (status != ST_NOTFOUND) return status;
    status = json_file_read(folder, index_name, &index, err);
    if (status == ST_NOTFOUND)
        return error_set(err, status,
                         "the folder has neither %s nor %s: weights in other forms (.bin, .pt) are not read, convert "
                         "them to safetensors",
                         file_name, index_name);
    if (status != ST_OK) return status;
    status = open_indexed(folder, index, set, err);
    json_release(index);
    return status;
}

void safetensors_close(struct safetensors *set)
{
    if (!set) return;
    for (size_t i = 0; i < set->shards_count; i++) mapped_file_close(&set->shards[i].map);
    mem_free(set->shards);
    mem_free(set->tensors);
    arena_free(&set->arena);
    mem_free(set);
}

void safetensors_forget(const struct safetensors *set, const void *data, size_t bytes)
{
    for (size_t i = 0; i < set->shards_count; i++) mapped_file_forget(&set->shards[i].map, data, bytes);
}

/* --- queries --- */

size_t safetensors_bytes(const struct safetensors *set)
{
    size_t bytes = 0;
    for (size_t i = 0; i < set->shards_count; i++) bytes += set->shards[i].map.bytes;
    return bytes;
}
size_t safetensors_shards(const struct safetensors *set)
{
    return set->shards_count;
}
const char *safetensors_shard_name(const struct safetensors *set, size_t idx)
{
    return set->shards[idx].name;
}
size_t safetensors_tensors(const struct safetensors *set)
{
    return set->tensors_count;
}
const struct safetensors_tensor *safetensors_tensor_at(const struct safetensors *set, size_t idx)
{
    return &set->tensors[idx];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *set, const char *name)
{
    struct safetensors_tensor key = {.name = name};
    return set->tensors_count ? bsearch(&key, set->tensors, set->tensors_count, sizeof key, compare_names) : NULL;
}

size_t safetensors_index_of(const struct safetensors *set, const struct safetensors_tensor *tensor)
{
    return (size_t)(tensor - set->tensors);
}

const char *safetensors_dtype_name(enum safetensors_dtype dtype)
{
    return dtypes[dtype].name;
}
