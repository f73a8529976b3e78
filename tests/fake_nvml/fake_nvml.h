/* What steers the fake NVML beside the library's own interface: lines of text, from a test in the same process or from
 * a file.
 *
 *   KEY VALUE [GPU]     without a GPU: all of them
 *
 *   gpus N              how many there are; all as new
 *   pass SECONDS        virtual time goes on
 *   work WATTS          work above idle; idle, range, gain, lag, publish, noise: of the plant (plant.h), from now on
 *   step_mj MJ          the counter shows multiples of it
 *   wrap_mj MJ          the counter's values lie below it; 0: no wrap
 *   counter_mj MJ       the counter is set to it: a reset, or a jump
 *   off_mj MJ           added to what the counter shows: a spike while it is not 0
 *   frozen 0|1          counter and watts stay as they are
 *   frozen_watts 0|1    the watts alone
 *   pace S, duty SHARE  the watts change each pace and are the mean of its last share; the usual reading's of 1 s
 *   scale_watts F       what the watts show of the truth
 *   limit W, most W     the enforced limit, which also clips the draw, and the highest
 *   energy|field|power|limit_result N    what these functions return; lost 1: all return 15
 *   init_result N       of nvmlInit;  xid N: the next event;  recovery N: the field
 *
 * Without FAKE_NVML_FILE in the environment time is virtual and nothing happens but by fake_nvml_control. With it,
 * it names a file of such lines, read at the first call and again whenever it has changed, and time is the clock's. */
#ifndef TESTS_FAKE_NVML_FAKE_NVML_H
#define TESTS_FAKE_NVML_FAKE_NVML_H

/* False: a line that is not understood. Any thread. */
#define FAKE_NVML_CONTROL "fake_nvml_control" /* the symbol, for dlsym: bool (*)(const char *line) */
/* Joules that a GPU has really drawn since it is there, and nvmlInit less nvmlShutdown. */
#define FAKE_NVML_DRAWN "fake_nvml_drawn_j" /* double (*)(unsigned gpu) */
#define FAKE_NVML_OPEN  "fake_nvml_open"    /* int (*)(void) */

#endif
