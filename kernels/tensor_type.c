/* The format table as data; see tensor_type.h. */
#include "kernels/tensor_type.h"

const struct tensor_type_info *tensor_type_info(uint32_t type)
{
    switch (type) {
#define X(name, id, block_items, block_bytes)                                                                          \
    case id: {                                                                                                         \
        static const struct tensor_type_info info = {#name, block_items, block_bytes};                                 \
        return &info;                                                                                                  \
    }
        TENSOR_TYPE_MAP(X)
#undef X
    default: return 0;
    }
}
