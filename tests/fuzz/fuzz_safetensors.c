/* libFuzzer over safetensors_open_memory. The mutator keeps the length in front of the header true most of the time, so
 * that what is broken is the header and not its frame. */
#include "tests/unit/runtime/gguf_writer.h"
#include "tests/unit/runtime/hf_writer.h"

#include "runtime/base/random.h"
#include "runtime/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t size_max);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *set = NULL;
    struct error err = {""};
    void *copy = exact_copy(data, size);
    if (safetensors_open_memory(copy, size, &set, &err) == ST_OK) {
        size_t covered = 0;
        unsigned sum = 0;
        for (size_t i = 0; i < safetensors_tensors(set); i++) {
            const struct safetensors_tensor *tensor = safetensors_tensor_at(set, i);
            const uint8_t *bytes = tensor->data;
            covered += tensor->bytes;
            if (tensor->bytes) sum += bytes[0] + bytes[tensor->bytes - 1];
            if (safetensors_find(set, tensor->name) != tensor) abort();
        }
        if (covered > size || sum > 510 * safetensors_tensors(set)) abort();
        safetensors_close(set);
    } else if (!err.message[0]) {
        abort(); /* a refusal without a reason */
    }
    free(copy);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed)
{
    static const char start[] = "{\"a.weight\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
                                "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[12,16]},"
                                "\"__metadata__\":{\"format\":\"pt\"}}";
    enum { LENGTH = 8, DATA = 16 };
    uint64_t state = seed, header = sizeof start - 1;
    if (size < LENGTH + DATA || random_next(&state) % 64 == 0) {
        if (size_max < LENGTH + header + DATA) return LLVMFuzzerMutate(data, size, size_max);
        memcpy(data, &header, LENGTH);
        memcpy(data + LENGTH, start, header);
        memset(data + LENGTH + header, 0, DATA);
        size = LENGTH + header + DATA;
    }
    if (random_next(&state) % 16 == 0) return LLVMFuzzerMutate(data, size, size_max); /* anything, length included */
    uint8_t tail[DATA];
    memcpy(tail, data + size - DATA, DATA);
    header = LLVMFuzzerMutate(data + LENGTH, size - LENGTH - DATA, size_max - LENGTH - DATA);
    memcpy(data, &header, LENGTH);
    memcpy(data + LENGTH + header, tail, DATA);
    return LENGTH + header + DATA;
}
