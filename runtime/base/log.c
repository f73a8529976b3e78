/* Formats a line into a stack buffer and hands it to stderr in one write; see log.h. */
#include "runtime/base/log.h"

#include "runtime/base/clock.h"

#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

enum { LINE_BYTES_MAX = 4096 };

static enum log_level level_max = LOG_INFO;
static _Atomic uint64_t lines_dropped;

void log_level_set(enum log_level level)
{
    level_max = level;
}
enum log_level log_level_get(void)
{
    return level_max;
}
uint64_t log_lines_dropped(void)
{
    return atomic_load(&lines_dropped);
}

void log_line(enum log_level level, const char *module, const char *format, ...)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    if (level > level_max) return;
    char line[LINE_BYTES_MAX];
    int used = snprintf(line, sizeof line, "%s %" PRIu64 " %s ", names[level], clock_now_ns(clock_system()), module);
    if (used < 0 || used > LINE_BYTES_MAX / 2) return;
    va_list args;
    va_start(args, format);
    int more = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    va_end(args);
    if (more < 0) return;
    size_t length = (size_t)used + (size_t)more;
    if (length > sizeof line - 2) length = sizeof line - 2;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)line[i] < 0x20) line[i] = '?';
    line[length++] = '\n';
    /* A pipe that polls writable takes a line (at most PIPE_BUF bytes) without waiting. O_NONBLOCK is not ours to set:
     * others share this file. */
    struct pollfd sink = {.fd = STDERR_FILENO, .events = POLLOUT};
    bool ready = poll(&sink, 1, 0) == 1 && (sink.revents & POLLOUT);
    if (!ready || write(STDERR_FILENO, line, length) < 0) atomic_fetch_add(&lines_dropped, 1);
}
