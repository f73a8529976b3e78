/* The GGUF reader: one pass over the header with one bounded cursor; see gguf.h for the format and its invariants.
 *
 * Keys and tensors are kept in the file's order, with a sorted index beside each for lookups and for finding
 * duplicates: sorting costs n log n whatever the names are, where a hash table would need a secret against chosen
 * names. Values stay where they are in the file. Data of tensors is not touched. Rejected: copying the header (a
 * 4-million-item array would be paid twice), and a callback per key (the order of keys is the file's affair, not the
 * reader's). */
#include "runtime/model/gguf.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/model/mapped_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(size_t) == 8, "offsets in files are 64-bit");

enum {
    GGUF_KEY_NAME_MAX = 65535, /* of the specification */
    GGUF_TENSOR_NAME_MAX = 64, /* of the specification */
    GGUF_ALIGNMENT_DEFAULT = 32,
    GGUF_ALIGNMENT_MIN = 8,
    GGUF_ALIGNMENT_MAX = 65536,
    GGUF_KEY_BYTES_MIN = 8 + 1 + 4 + 1,            /* name of one byte, type, value of one byte */
    GGUF_TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* name of one byte, one dimension */
    GGUF_NAME_SHOWN = 80                           /* bytes of a name in a message */
};

struct gguf {
    struct mapped_file map;
    const uint8_t *data; /* map's, as is size */
    size_t size;
    uint32_t version, alignment;
    size_t keys_count, tensors_count;
    struct gguf_key *keys;
    struct gguf_tensor *tensors;
    const struct gguf_key **keys_sorted;
    const struct gguf_tensor **tensors_sorted; /* by name; by offset while overlaps are looked for */
    char *tensor_names;                        /* tensors_count slots of GGUF_TENSOR_NAME_MAX + 1 bytes */
};

struct cursor {
    const uint8_t *data;
    size_t size, at;
};

static const uint8_t item_bytes[GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}; /* 0: length in the value */
static const char *const type_names[GGUF_TYPES] = {"u8",   "i8",   "u16",   "i16", "u32", "i32", "f32",
                                                   "bool", "text", "array", "u64", "i64", "f64"};

/* ggml's ids that are not in TENSOR_TYPE_MAP, for the message only. */
static const char *const other_tensor_types[] = {
    [9] = "Q8_1",     [10] = "Q2_K",  [11] = "Q3_K",   [15] = "Q8_K",  [16] = "IQ2_XXS", [17] = "IQ2_XS",
    [18] = "IQ3_XXS", [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S", [22] = "IQ2_S",   [23] = "IQ4_XS",
    [24] = "I8",      [25] = "I16",   [26] = "I32",    [27] = "I64",   [28] = "F64",     [29] = "IQ1_M",
    [34] = "TQ1_0",   [35] = "TQ2_0", [39] = "MXFP4",  [40] = "NVFP4",
};

/* --- the cursor (G1) --- */

static bool take(struct cursor *c, size_t bytes, const uint8_t **at)
{
    if (bytes > c->size - c->at) return false;
    *at = c->data + c->at;
    c->at += bytes;
    return true;
}

static enum status cut_short(const struct cursor *c, const char *what, struct error *err)
{
    return error_set(err, ST_INVAL, "the file ends at byte %zu inside %s: it is cut short, fetch it again", c->size,
                     what);
}

static enum status take_u32(struct cursor *c, const char *what, uint32_t *value, struct error *err)
{
    const uint8_t *p;
    if (!take(c, 4, &p)) return cut_short(c, what, err);
    memcpy(value, p, 4);
    return ST_OK;
}

static enum status take_u64(struct cursor *c, const char *what, uint64_t *value, struct error *err)
{
    const uint8_t *p;
    if (!take(c, 8, &p)) return cut_short(c, what, err);
    memcpy(value, p, 8);
    return ST_OK;
}

static enum status take_text(struct cursor *c, const char *what, uint64_t length_max, struct vocab_string *text,
                             struct error *err)
{
    uint64_t length = 0;
    size_t at = c->at;
    const uint8_t *p;
    TRY(take_u64(c, what, &length, err));
    if (length > c->size - c->at)
        return error_set(err, ST_INVAL,
                         "%s at byte %zu claims %" PRIu64
                         " bytes, only %zu are left: the file is damaged or cut short, "
                         "fetch it again",
                         what, at, length, c->size - c->at);
    if (length > length_max)
        return error_set(err, ST_LIMIT, "%s at byte %zu has %" PRIu64 " bytes, more than the limit of %" PRIu64, what,
                         at, length, length_max);
    if (!take(c, length, &p)) return cut_short(c, what, err);
    *text = (struct vocab_string){(const char *)p, (uint32_t)length};
    return ST_OK;
}

/* A name: G3 but for uniqueness. */
static enum status take_name(struct cursor *c, const char *what, uint64_t length_max, struct vocab_string *name,
                             struct error *err)
{
    size_t at = c->at;
    TRY(take_text(c, what, length_max, name, err));
    if (!name->length) return error_set(err, ST_INVAL, "%s at byte %zu is empty: the file is damaged", what, at);
    if (memchr(name->text, 0, name->length))
        return error_set(err, ST_INVAL, "%s at byte %zu contains a NUL byte: the file is damaged", what, at);
    return ST_OK;
}

/* --- keys --- */

static int shown(size_t length)
{
    return length > GGUF_NAME_SHOWN ? GGUF_NAME_SHOWN : (int)length;
}

static enum status check_bools(const struct gguf_key *key, struct error *err)
{
    for (uint64_t i = 0; i < key->count; i++)
        if (key->value[i] > 1)
            return error_set(err, ST_INVAL, "key %.*s: a bool is %u, only 0 and 1 are allowed: the file is damaged",
                             shown(key->name_length), key->name, key->value[i]);
    return ST_OK;
}

/* key->count items of key->item_type. The bytes left are checked before any item is walked (G2). */
static enum status take_items(struct cursor *c, struct gguf_key *key, struct error *err)
{
    size_t bytes, start = c->at;
    size_t each = key->item_type == GGUF_TEXT ? 8 : item_bytes[key->item_type];
    if (!checked_mul(key->count, each, &bytes) || bytes > c->size - c->at)
        return error_set(
            err, ST_INVAL,
            "key %.*s at byte %zu claims %" PRIu64 " items of type %s, which do not fit in the %zu bytes left: "
            "the file is damaged or cut short, fetch it again",
            shown(key->name_length), key->name, key->offset, key->count, type_names[key->item_type], c->size - c->at);
    const uint8_t *p;
    if (key->item_type == GGUF_TEXT) {
        struct vocab_string text;
        for (uint64_t i = 0; i < key->count; i++) TRY(take_text(c, "a text", limits.gguf_string_bytes, &text, err));
    } else if (!take(c, bytes, &p)) {
        return cut_short(c, "a value", err);
    }
    key->value = c->data + start;
    key->value_bytes = c->at - start;
    return key->item_type == GGUF_BOOL ? check_bools(key, err) : ST_OK;
}

static enum status take_type(struct cursor *c, const struct gguf_key *key, enum gguf_type *type, struct error *err)
{
    uint32_t value = 0;
    size_t at = c->at;
    TRY(take_u32(c, "a key's type", &value, err));
    if (value >= GGUF_TYPES)
        return error_set(err, ST_INVAL,
                         "key %.*s has value type %" PRIu32 " at byte %zu, known are 0..%d: the file is damaged",
                         shown(key->name_length), key->name, value, at, GGUF_TYPES - 1);
    *type = (enum gguf_type)value;
    return ST_OK;
}

static enum status take_key(struct cursor *c, struct gguf_key *key, struct error *err)
{
    struct vocab_string name;
    key->offset = c->at;
    TRY(take_name(c, "a key's name", GGUF_KEY_NAME_MAX, &name, err));
    key->name = name.text;
    key->name_length = name.length;
    TRY(take_type(c, key, &key->type, err));
    key->item_type = key->type;
    key->count = 1;
    if (key->type == GGUF_ARRAY) {
        TRY(take_type(c, key, &key->item_type, err));
        if (key->item_type == GGUF_ARRAY)
            return error_set(err, ST_INVAL,
                             "key %.*s at byte %zu is an array of arrays, which no model needs: it is refused",
                             shown(key->name_length), key->name, key->offset);
        TRY(take_u64(c, "an array's count", &key->count, err));
        if (key->count > limits.gguf_array_items)
            return error_set(err, ST_LIMIT,
                             "key %.*s at byte %zu claims %" PRIu64 " items, more than the limit of %" PRIu64
                             " (gguf_array_items)",
                             shown(key->name_length), key->name, key->offset, key->count, limits.gguf_array_items);
    }
    return take_items(c, key, err);
}

static int compare_names(const char *a, size_t a_length, const char *b, size_t b_length)
{
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    return order ? order : (a_length > b_length) - (a_length < b_length);
}

static int compare_keys(const void *a, const void *b)
{
    const struct gguf_key *const *x = a, *const *y = b;
    return compare_names((*x)->name, (*x)->name_length, (*y)->name, (*y)->name_length);
}

/* Room for `count` entries of at least bytes_min each: against the limit, then against the bytes left (G2). */
static enum status check_count(const struct cursor *c, const char *what, uint64_t count, uint64_t count_max,
                               size_t bytes_min, struct error *err)
{
    size_t bytes;
    if (count > count_max)
        return error_set(err, ST_LIMIT,
                         "the header claims %" PRIu64 " %s, more than the limit of %" PRIu64 " (gguf_%s)", count, what,
                         count_max, what);
    if (!checked_mul(count, bytes_min, &bytes) || bytes > c->size - c->at)
        return error_set(err, ST_INVAL,
                         "the header claims %" PRIu64
                         " %s, which do not fit in the %zu bytes left: the file is damaged or "
                         "cut short, fetch it again",
                         count, what, c->size - c->at);
    return ST_OK;
}

static enum status read_keys(struct gguf *file, struct cursor *c, struct error *err)
{
    TRY(check_count(c, "keys", file->keys_count, limits.gguf_keys, GGUF_KEY_BYTES_MIN, err));
    file->keys = mem_alloc(file->keys_count, sizeof *file->keys);
    file->keys_sorted = mem_alloc(file->keys_count, sizeof *file->keys_sorted);
    if (!file->keys || !file->keys_sorted) return error_set(err, ST_NOMEM, "no memory for %zu keys", file->keys_count);
    for (size_t i = 0; i < file->keys_count; i++) {
        TRY(take_key(c, &file->keys[i], err));
        file->keys_sorted[i] = &file->keys[i];
    }
    qsort(file->keys_sorted, file->keys_count, sizeof *file->keys_sorted, compare_keys);
    for (size_t i = 1; i < file->keys_count; i++) {
        const struct gguf_key *a = file->keys_sorted[i - 1], *b = file->keys_sorted[i];
        if (compare_names(a->name, a->name_length, b->name, b->name_length) == 0)
            return error_set(err, ST_INVAL,
                             "key %.*s stands twice, at bytes %zu and %zu: which one holds is not defined",
                             shown(a->name_length), a->name, a->offset < b->offset ? a->offset : b->offset,
                             a->offset < b->offset ? b->offset : a->offset);
    }
    return ST_OK;
}

static enum status read_alignment(struct gguf *file, struct error *err)
{
    file->alignment = GGUF_ALIGNMENT_DEFAULT;
    if (!gguf_find_key(file, "general.alignment")) return ST_OK;
    TRY(gguf_get_u32(file, "general.alignment", &file->alignment, err));
    if (file->alignment < GGUF_ALIGNMENT_MIN || file->alignment > GGUF_ALIGNMENT_MAX ||
        (file->alignment & (file->alignment - 1)))
        return error_set(err, ST_INVAL, "key general.alignment is %" PRIu32 ", it must be a power of two from %d to %d",
                         file->alignment, GGUF_ALIGNMENT_MIN, GGUF_ALIGNMENT_MAX);
    return ST_OK;
}

/* --- tensors (G4) --- */

static enum status take_tensor_type(struct cursor *c, struct gguf_tensor *tensor, struct error *err)
{
    uint32_t type = 0;
    size_t at = c->at;
    TRY(take_u32(c, "a tensor's type", &type, err));
    tensor->type = (enum tensor_type)type;
    if (type < TENSOR_OWN && tensor_type_info(type)) return ST_OK;
    const char *name = type < sizeof other_tensor_types / sizeof *other_tensor_types ? other_tensor_types[type] : NULL;
    if (name)
        return error_set(
            err, ST_INVAL,
            "tensor %s has type %s, which is not supported: use a file with F32, F16, BF16, Q4_0, Q4_1, Q5_0, "
            "Q5_1, Q8_0, Q4_K, Q5_K or Q6_K weights",
            tensor->name, name);
    return error_set(err, ST_INVAL,
                     "tensor %s has unknown type %" PRIu32 " at byte %zu: the file is damaged, or newer than "
                     "this program",
                     tensor->name, type, at);
}

static enum status take_dims(struct cursor *c, struct gguf_tensor *tensor, struct error *err)
{
    size_t at = c->at;
    TRY(take_u32(c, "a tensor's dimensions", &tensor->dims_count, err));
    if (tensor->dims_count < 1 || tensor->dims_count > GGUF_DIMENSIONS_MAX)
        return error_set(err, ST_INVAL,
                         "tensor %s has %" PRIu32 " dimensions at byte %zu, possible are 1..%d: the file is "
                         "damaged",
                         tensor->name, tensor->dims_count, at, GGUF_DIMENSIONS_MAX);
    for (uint32_t i = 0; i < GGUF_DIMENSIONS_MAX; i++) tensor->dims[i] = 1;
    for (uint32_t i = 0; i < tensor->dims_count; i++) {
        at = c->at;
        TRY(take_u64(c, "a tensor's dimensions", &tensor->dims[i], err));
        if (!tensor->dims[i] || tensor->dims[i] > INT64_MAX)
            return error_set(err, ST_INVAL,
                             "tensor %s: dimension %" PRIu32 " at byte %zu is %" PRIu64 ": the file is damaged",
                             tensor->name, i, at, tensor->dims[i]);
    }
    return ST_OK;
}

static enum status check_tensor_bytes(struct gguf_tensor *tensor, struct error *err)
{
    const struct tensor_type_info *info = tensor_type_info(tensor->type);
    if (tensor->dims[0] % info->block_items)
        return error_set(err, ST_INVAL,
                         "tensor %s: a row of %" PRIu64 " values is not a multiple of %s's block of %" PRIu32
                         ": the file is damaged",
                         tensor->name, tensor->dims[0], info->name, info->block_items);
    size_t bytes, values = tensor->dims[0];
    bool fits = checked_mul(tensor->dims[0] / info->block_items, info->block_bytes, &bytes);
    for (uint32_t i = 1; i < tensor->dims_count; i++)
        fits = fits && checked_mul(bytes, tensor->dims[i], &bytes) && checked_mul(values, tensor->dims[i], &values);
    if (!fits || values > INT64_MAX)
        return error_set(err, ST_INVAL,
                         "tensor %s: the product of its dimensions does not fit in 63 bits: the file is damaged",
                         tensor->name);
    tensor->bytes = bytes;
    return ST_OK;
}

static enum status take_tensor(struct gguf *file, struct cursor *c, struct gguf_tensor *tensor, char *name_slot,
                               struct error *err)
{
    struct vocab_string name;
    TRY(take_name(c, "a tensor's name", GGUF_TENSOR_NAME_MAX, &name, err));
    memcpy(name_slot, name.text, name.length); /* the slot is zeroed and one byte longer than the longest name */
    tensor->name = name_slot;
    TRY(take_dims(c, tensor, err));
    TRY(take_tensor_type(c, tensor, err));
    TRY(check_tensor_bytes(tensor, err));
    size_t at = c->at;
    uint64_t offset = 0;
    TRY(take_u64(c, "a tensor's offset", &offset, err));
    if (offset % file->alignment)
        return error_set(err, ST_INVAL,
                         "tensor %s: offset %" PRIu64 " at byte %zu is not a multiple of the alignment %" PRIu32
                         ": the file is damaged",
                         tensor->name, offset, at, file->alignment);
    tensor->offset = offset; /* from the start of the data until place_tensors */
    return ST_OK;
}

static int compare_offsets(const void *a, const void *b)
{
    const struct gguf_tensor *const *x = a, *const *y = b;
    return ((*x)->offset > (*y)->offset) - ((*x)->offset < (*y)->offset);
}

static int compare_tensors(const void *a, const void *b)
{
    const struct gguf_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* Ranges inside the file, and none over another. */
static enum status place_tensors(struct gguf *file, size_t header_bytes, struct error *err)
{
    size_t data_start;
    if (!checked_add(header_bytes, file->alignment - 1, &data_start))
        return error_set(err, ST_INVAL, "the header is too long: the file is damaged");
    data_start -= data_start % file->alignment;
    for (size_t i = 0; i < file->tensors_count; i++) {
        struct gguf_tensor *tensor = &file->tensors[i];
        size_t start, end;
        if (!checked_add(data_start, tensor->offset, &start) || !checked_add(start, tensor->bytes, &end) ||
            end > file->size)
            return error_set(
                err, ST_INVAL,
                "tensor %s: %zu bytes at offset %zu of the data (which starts at byte %zu) end past the file's "
                "%zu bytes: it is cut short or damaged, fetch it again",
                tensor->name, tensor->bytes, tensor->offset, data_start, file->size);
        tensor->offset = start;
        tensor->data = file->data + start;
    }
    qsort(file->tensors_sorted, file->tensors_count, sizeof *file->tensors_sorted, compare_offsets);
    for (size_t i = 1; i < file->tensors_count; i++) {
        const struct gguf_tensor *a = file->tensors_sorted[i - 1], *b = file->tensors_sorted[i];
        if (b->offset - a->offset < a->bytes)
            return error_set(err, ST_INVAL, "tensors %s and %s overlap at byte %zu: the file is damaged", a->name,
                             b->name, b->offset);
    }
    return ST_OK;
}

static enum status read_tensors(struct gguf *file, struct cursor *c, struct error *err)
{
    TRY(check_count(c, "tensors", file->tensors_count, limits.gguf_tensors, GGUF_TENSOR_BYTES_MIN, err));
    file->tensors = mem_alloc(file->tensors_count, sizeof *file->tensors);
    file->tensors_sorted = mem_alloc(file->tensors_count, sizeof *file->tensors_sorted);
    file->tensor_names = mem_alloc(file->tensors_count, GGUF_TENSOR_NAME_MAX + 1);
    if (!file->tensors || !file->tensors_sorted || !file->tensor_names)
        return error_set(err, ST_NOMEM, "no memory for %zu tensors", file->tensors_count);
    for (size_t i = 0; i < file->tensors_count; i++) {
        TRY(take_tensor(file, c, &file->tensors[i], file->tensor_names + i * (GGUF_TENSOR_NAME_MAX + 1), err));
        file->tensors_sorted[i] = &file->tensors[i];
    }
    TRY(place_tensors(file, c->at, err));
    qsort(file->tensors_sorted, file->tensors_count, sizeof *file->tensors_sorted, compare_tensors);
    for (size_t i = 1; i < file->tensors_count; i++)
        if (strcmp(file->tensors_sorted[i - 1]->name, file->tensors_sorted[i]->name) == 0)
            return error_set(err, ST_INVAL, "tensor %s stands twice in the file: which one holds is not defined",
                             file->tensors_sorted[i]->name);
    return ST_OK;
}

/* --- opening --- */

static enum status read_header(struct gguf *file, struct cursor *c, struct error *err)
{
    const uint8_t *magic;
    if (!take(c, 4, &magic) || memcmp(magic, "GGUF", 4) != 0)
        return error_set(err, ST_INVAL, "this is not a GGUF file: it does not start with the bytes \"GGUF\"");
    TRY(take_u32(c, "the version", &file->version, err));
    if (file->version >> 16 && !(file->version & 0xffff))
        return error_set(err, ST_INVAL,
                         "this GGUF file is big-endian: only little-endian files are supported, convert it");
    if (file->version != 2 && file->version != 3)
        return error_set(err, ST_INVAL,
                         "GGUF version %" PRIu32 " at byte 4 is not supported, only 2 and 3: convert the file",
                         file->version);
    uint64_t tensors = 0, keys = 0;
    TRY(take_u64(c, "the number of tensors", &tensors, err));
    TRY(take_u64(c, "the number of keys", &keys, err));
    file->tensors_count = tensors;
    file->keys_count = keys;
    return ST_OK;
}

static enum status read_all(struct gguf *file, struct error *err)
{
    struct cursor c = {file->data, file->size, 0};
    TRY(read_header(file, &c, err));
    /* Both counts before either is read, so that a wild number is named as such. */
    TRY(check_count(&c, "tensors", file->tensors_count, limits.gguf_tensors, GGUF_TENSOR_BYTES_MIN, err));
    TRY(read_keys(file, &c, err));
    TRY(read_alignment(file, err));
    return read_tensors(file, &c, err);
}

/* Owns the mapping from here on. */
static enum status open_bytes(struct mapped_file map, struct gguf **out, struct error *err)
{
    struct gguf *file = mem_alloc(1, sizeof *file);
    if (!file) {
        mapped_file_close(&map);
        return error_set(err, ST_NOMEM, "no memory to open the file");
    }
    file->map = map;
    file->data = map.data;
    file->size = map.bytes;
    enum status status = read_all(file, err);
    if (status != ST_OK) {
        gguf_close(file);
        return status;
    }
    *out = file;
    return ST_OK;
}

enum status gguf_open_memory(const void *data, size_t size_bytes, struct gguf **file, struct error *err)
{
    return open_bytes(mapped_file_of_memory(data, size_bytes), file, err);
}

enum status gguf_open(const char *path, struct gguf **file, struct error *err)
{
    struct mapped_file map;
    TRY(mapped_file_open(path, "a GGUF file", &map, err));
    return open_bytes(map, file, err);
}

void gguf_close(struct gguf *file)
{
    if (!file) return;
    mem_free(file->keys);
    mem_free(file->tensors);
    mem_free(file->keys_sorted);
    mem_free(file->tensors_sorted);
    mem_free(file->tensor_names);
    mapped_file_close(&file->map);
    mem_free(file);
}

void gguf_forget(const struct gguf *file, const void *data, size_t bytes)
{
    mapped_file_forget(&file->map, data, bytes);
}

/* --- queries --- */

uint32_t gguf_version(const struct gguf *file)
{
    return file->version;
}
uint32_t gguf_alignment(const struct gguf *file)
{
    return file->alignment;
}
size_t gguf_bytes(const struct gguf *file)
{
    return file->size;
}
size_t gguf_keys(const struct gguf *file)
{
    return file->keys_count;
}
const struct gguf_key *gguf_key_at(const struct gguf *file, size_t idx)
{
    return &file->keys[idx];
}
size_t gguf_tensors(const struct gguf *file)
{
    return file->tensors_count;
}
const struct gguf_tensor *gguf_tensor_at(const struct gguf *file, size_t idx)
{
    return &file->tensors[idx];
}

const struct gguf_key *gguf_find_key(const struct gguf *file, const char *name)
{
    size_t low = 0, high = file->keys_count, length = strlen(name);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct gguf_key *key = file->keys_sorted[middle];
        int order = compare_names(name, length, key->name, key->name_length);
        if (order == 0) return key;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *file, const char *name)
{
    size_t low = 0, high = file->tensors_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, file->tensors_sorted[middle]->name);
        if (order == 0) return file->tensors_sorted[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static enum status find(const struct gguf *file, const char *name, const struct gguf_key **key, struct error *err)
{
    const struct gguf_key *found = gguf_find_key(file, name);
    if (!found) return error_set(err, ST_NOTFOUND, "key %s is missing from the file", name);
    *key = found;
    return ST_OK;
}

static enum status wrong_type(const struct gguf_key *key, const char *wanted, struct error *err)
{
    return error_set(err, ST_INVAL, "key %.*s at byte %zu is of type %s%s, it must be %s", shown(key->name_length),
                     key->name, key->offset, key->type == GGUF_ARRAY ? "array of " : "", type_names[key->item_type],
                     wanted);
}

/* Any integer type: its value as two words of sign and magnitude, so that u64 and i64 both fit. */
static bool read_integer(const struct gguf_key *key, bool *negative, uint64_t *magnitude)
{
    uint64_t raw = 0;
    unsigned bytes = item_bytes[key->item_type];
    if (key->type == GGUF_ARRAY || key->type == GGUF_F32 || key->type == GGUF_F64 || key->type == GGUF_BOOL ||
        key->type == GGUF_TEXT)
        return false;
    memcpy(&raw, key->value, bytes);
    bool is_signed = key->type == GGUF_I8 || key->type == GGUF_I16 || key->type == GGUF_I32 || key->type == GGUF_I64;
    *negative = is_signed && raw >> (8 * bytes - 1);
    if (*negative && bytes < 8) raw |= ~UINT64_C(0) << 8 * bytes;
    *magnitude = *negative ? 0 - raw : raw;
    return true;
}

enum status gguf_get_u32(const struct gguf *file, const char *name, uint32_t *value, struct error *err)
{
    const struct gguf_key *key = NULL;
    bool negative = false;
    uint64_t magnitude = 0;
    TRY(find(file, name, &key, err));
    if (!read_integer(key, &negative, &magnitude)) return wrong_type(key, "an integer", err);
    if (negative || magnitude > UINT32_MAX)
        return error_set(err, ST_INVAL, "key %s at byte %zu is %s%" PRIu64 ", it must be from 0 to %" PRIu32, name,
                         key->offset, negative ? "-" : "", magnitude, UINT32_MAX);
    *value = (uint32_t)magnitude;
    return ST_OK;
}

enum status gguf_get_f32(const struct gguf *file, const char *name, float *value, struct error *err)
{
    const struct gguf_key *key = NULL;
    double number = 0;
    TRY(find(file, name, &key, err));
    if (key->type == GGUF_F32) {
        float f;
        memcpy(&f, key->value, sizeof f);
        number = (double)f;
    } else if (key->type == GGUF_F64) {
        memcpy(&number, key->value, sizeof number);
    } else {
        return wrong_type(key, "f32", err);
    }
    if (!isfinite((float)number))
        return error_set(err, ST_INVAL, "key %s at byte %zu is %g, it must be finite", name, key->offset, number);
    *value = (float)number;
    return ST_OK;
}

enum status gguf_get_bool(const struct gguf *file, const char *name, bool *value, struct error *err)
{
    const struct gguf_key *key = NULL;
    TRY(find(file, name, &key, err));
    if (key->type != GGUF_BOOL) return wrong_type(key, "bool", err);
    *value = key->value[0] == 1;
    return ST_OK;
}

/* Texts of keys were measured when the file was read, so their lengths need no second check. */
static const uint8_t *text_at(const uint8_t *at, struct vocab_string *text)
{
    uint64_t length;
    memcpy(&length, at, 8);
    *text = (struct vocab_string){(const char *)at + 8, (uint32_t)length};
    return at + 8 + length;
}

enum status gguf_get_text(const struct gguf *file, const char *name, struct vocab_string *value, struct error *err)
{
    const struct gguf_key *key = NULL;
    TRY(find(file, name, &key, err));
    if (key->type != GGUF_TEXT) return wrong_type(key, "text", err);
    text_at(key->value, value);
    return ST_OK;
}

enum status gguf_get_array(const struct gguf *file, const char *name, enum gguf_type item_type,
                           const struct gguf_key **array, struct error *err)
{
    const struct gguf_key *key = NULL;
    char wanted[32] = "array of ";
    TRY(find(file, name, &key, err));
    if (key->type != GGUF_ARRAY || key->item_type != item_type) {
        memcpy(wanted + 9, type_names[item_type], strlen(type_names[item_type]) + 1);
        return wrong_type(key, wanted, err);
    }
    *array = key;
    return ST_OK;
}

void gguf_array_texts(const struct gguf_key *array, struct vocab_string *texts)
{
    const uint8_t *at = array->value;
    for (uint64_t i = 0; i < array->count; i++) at = text_at(at, &texts[i]);
}
