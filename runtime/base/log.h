/* Logging: one line an event, `level time_ns module key=value ...`, to stderr. Never prompts, outputs or keys; nothing
 * in kernels or the step loop. Lines are cut at 4 KiB; a write that would block is dropped and counted (a stuck log
 * sink must not stop the server). Any thread. */
#ifndef RUNTIME_BASE_LOG_H
#define RUNTIME_BASE_LOG_H

#include "runtime/base/status.h"

#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Lines above this level are dropped. Default LOG_INFO. Set before threads start. */
void log_level_set(enum log_level level);
enum log_level log_level_get(void);

/* `format` makes the `key=value ...` part, without a newline. Values with spaces go in double quotes. */
void log_line(enum log_level level, const char *module, const char *format, ...) PRINTF_LIKE(3, 4);

uint64_t log_lines_dropped(void);

#endif
