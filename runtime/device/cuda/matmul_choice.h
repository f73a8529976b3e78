/* Which algorithm of cuBLASLt a matmul takes: chosen by timing, once for a shape and a bucket of M, and kept in a file,
 * so that a node starts at once and gives the same bits as before. This is the part that calls nothing: keys, the table
 * and the file's text; matmul_library.h measures and multiplies.
 *
 * The file is text, a line each:
 *
 *   millrace-matmul 1 <crc32c> <GPU>; driver <version>; cublaslt <version>
 *   <crc32c> <N> <K> <M> <f32> <bias> <workspace bytes> <ns> <algorithm: 8 words of 16 hexadecimal digits>
 *
 * Models share a file: what is there of other shapes stays. An algorithm is the library's own bytes: good for the same
 * GPU, driver and library only, so a file of another platform counts for nothing, and so does any line whose checksum
 * or content is wrong: what is missing is measured again. A table belongs to one thread. */
#ifndef RUNTIME_DEVICE_CUDA_MATMUL_CHOICE_H
#define RUNTIME_DEVICE_CUDA_MATMUL_CHOICE_H

#include "runtime/device/cuda/cuda_api.h"

enum {
    MATMUL_CHOICES_MAX = 4096, /* some twenty models */
    MATMUL_PLATFORM_MAX = 320,
    MATMUL_LINE_MAX = 400,
    MATMUL_FILE_MAX = (MATMUL_CHOICES_MAX + 1) * MATMUL_LINE_MAX /* bytes */
};

struct matmul_key {
    uint32_t N, K, M; /* M: of matmul_bucket */
    bool y_f32, bias;
};

struct matmul_choice {
    struct matmul_key key;
    struct cublaslt_algo algo;
    uint64_t workspace_bytes; /* that the algorithm needs */
    uint64_t ns;              /* what it took; 0: not timed, the library's first proposal */
};

struct matmul_choices {
    char platform[MATMUL_PLATFORM_MAX];
    uint32_t count;
    struct matmul_choice at[MATMUL_CHOICES_MAX];
};

/* The largest M that shares an algorithm with M: powers of two and half way between, so none is timed with more
 * than 1.5 times the tokens that it will have. M >= 1. */
uint32_t matmul_bucket(uint32_t M);

/* An empty table for a platform. Characters of the name that are not printable ASCII become '?'. */
void matmul_choices_init(struct matmul_choices *choices, const char *gpu, int driver, size_t library);

/* NULL: not there. Valid until the table changes. */
const struct matmul_choice *matmul_choices_find(const struct matmul_choices *choices, const struct matmul_key *key);
/* Adds a choice, or replaces that of its key. False: the table is full, and stays as it is. */
bool matmul_choices_put(struct matmul_choices *choices, const struct matmul_choice *choice);

/* Takes from a file's text what is for this platform, well-formed and needs at most workspace_bytes. Any bytes may
 * come. Gives the number taken. */
uint32_t matmul_choices_parse(struct matmul_choices *choices, const char *text, size_t length, size_t workspace_bytes);
/* Writes the file's text, NUL-terminated, into MATMUL_FILE_MAX bytes; gives its length. */
size_t matmul_choices_print(const struct matmul_choices *choices, char *text);

#endif
