/* A model from its files behind a device, for tests: one sequence at a time, every token's scores or a greedy
 * continuation. */
#ifndef TESTS_EXACT_REAL_MODEL_H
#define TESTS_EXACT_REAL_MODEL_H

#include "runtime/device/device.h"
#include "tests/support/rank_threads.h"

struct real_model {
    struct model *model;
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    block_id *table;
    struct rank_threads *ranks; /* of real_model_open_ranks */
};

/* Paths of the real models: $MILLRACE_TEST_MODEL and $MILLRACE_TEST_MODEL2 (Gemma), else models/ in the repository.
 * Print the reason and end the program with 77 when there is none. */
const char *real_model_path(void);
const char *real_model_second_path(void);
/* Opens a model on a device with two threads and room for one sequence of context_max tokens. Ends the program with 1
 * and the reason when that fails. */
void real_model_open(struct real_model *real, const char *path, enum numerics numerics, enum cpu_path cpu_path,
                     bool kv_int8, uint32_t context_max);
/* The same in parts, on so many stages of so many ranks, which are threads of this process with a thread each. */
void real_model_open_ranks(struct real_model *real, const char *path, enum numerics numerics, uint32_t ranks,
                           uint32_t stages, uint32_t context_max);
/* In exact numerics, with views of weights that `change` may have replaced. */
void real_model_open_changed(struct real_model *real, const char *path, uint32_t context_max,
                             void (*change)(struct model *model));
void real_model_close(struct real_model *real);

/* Runs count tokens at positions position.. as one chunk; rows: one for each of the tokens first_row .. first_row +
 * rows_count - 1 of them, all with params. Row results are in real->result, and the logits of up to LOGIT_ROWS rows in
 * real_model_logits until the next run. Ends the program with 1 when the step fails or a row is flagged. */
void real_model_run(struct real_model *real, const uint32_t *tokens, uint32_t count, uint32_t position,
                    uint32_t first_row, uint32_t rows_count, const struct sampling_params *params);
/* (V) logits of a row of the last run, which had at most LOGIT_ROWS. */
const float *real_model_logits(const struct real_model *real, uint32_t row_idx);

/* The whole of a file as text, NUL-terminated; mem_free. NULL: not there. */
char *real_file_read(const char *path, size_t *length);

#endif
