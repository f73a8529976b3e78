/* libFuzzer over model_open_memory. The mutator starts from complete tiny models (so that there is something to break
 * far behind the header) and changes their headers only: the data of tensors holds nothing that is parsed. */
#include "tests/unit/runtime/gguf_writer.h"

#include "kernels/dequantize.h"
#include "runtime/base/random.h"
#include "runtime/model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t size_max);

static float row[1 << 17];

/* Reads the first and the last row, as packing would. */
static void touch(const struct tensor_view *view)
{
    if (!view->data || view->cols > sizeof row / sizeof *row) return;
    size_t row_bytes = tensor_row_bytes(tensor_type_info(view->type), view->cols);
    dequantize_row(view->type, view->data, row, view->cols);
    dequantize_row(view->type, (const uint8_t *)view->data + row_bytes * (view->rows - 1), row, view->cols);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model *model = NULL;
    struct error err = {""};
    void *copy = exact_copy(data, size);
    enum status status = model_open_memory(copy, size, &model, &err);
    if (status == ST_OK) {
        touch(&model->weights.embed);
        touch(&model->weights.head);
        for (uint32_t i = 0; i < model->spec.layers; i++) {
            touch(&model->weights.layers[i].q);
            touch(&model->weights.layers[i].down);
            touch(&model->weights.layers[i].attn_norm);
        }
        size_t sum = 0;
        for (uint32_t i = 0; i < model->vocab.count; i++) sum += model->vocab.tokens[i].length;
        for (uint32_t i = 0; i < model->vocab.merges_count; i++) sum += model->vocab.merges[i].length;
        if (sum > size) abort();
        model_close(model);
    } else if (!err.message[0]) {
        abort(); /* a refusal without a reason */
    }
    free(copy);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed)
{
    static const char *const archs[] = {"llama", "qwen2", "qwen3"};
    static struct writer writer;
    uint64_t state = seed;
    if (size < 64 || random_next(&state) % 64 == 0) {
        tiny_model(&writer, archs[random_next(&state) % 3]);
        writer_finish(&writer);
        if (writer.length > size_max) return LLVMFuzzerMutate(data, size, size_max);
        memcpy(data, writer.data, writer.length);
        size = writer.length;
    }
    if (random_next(&state) % 8 == 0) return LLVMFuzzerMutate(data, size, size_max); /* anything, length included */
    size_t header = size < 3072 ? size : 3072;
    LLVMFuzzerMutate(data, header, header);
    return size;
}
