/* The real model behind a device, for tests: one sequence at a time, every token's scores or a greedy continuation. */
#ifndef TESTS_EXACT_REAL_MODEL_H
#define TESTS_EXACT_REAL_MODEL_H

#include "runtime/device/device.h"

struct real_model {
    struct model *model;
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    block_id *table;
};

/* Path of the model: $MILLRACE_TEST_MODEL, else models/ in the repository. Prints the reason and ends the program with
 * 77 when there is none. */
const char *real_model_path(void);
/* Opens the model on a device with two threads and room for one sequence of context_max tokens. Ends the program with 1
 * and the reason when that fails. */
void real_model_open(struct real_model *real, enum numerics numerics, enum cpu_path path, bool kv_int8,
                     uint32_t context_max);
void real_model_close(struct real_model *real);

/* Runs count tokens at positions position.. as one chunk; rows: one for each of the last rows_count tokens, all with
 * params. Row results are in real->result. Ends the program with 1 when the step fails or a row is flagged. */
void real_model_run(struct real_model *real, const uint32_t *tokens, uint32_t count, uint32_t position,
                    uint32_t rows_count, const struct sampling_params *params);

/* The whole of a file as text, NUL-terminated; mem_free. NULL: not there. */
char *real_file_read(const char *path, size_t *length);

#endif
