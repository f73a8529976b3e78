/* Names, messages and the one-line error text; see status.h. */
#include "runtime/base/status.h"

#include <stdarg.h>
#include <stdio.h>

const char *status_name(enum status status)
{
    switch (status) {
#define X(name, text)                                                                                                  \
    case name: return #name;
        STATUS_MAP(X)
#undef X
    }
    return "ST_?";
}

const char *status_text(enum status status)
{
    switch (status) {
#define X(name, text)                                                                                                  \
    case name: return text;
        STATUS_MAP(X)
#undef X
    }
    return "unknown status";
}

enum status error_set(struct error *err, enum status status, const char *format, ...)
{
    if (!err) return status;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    for (char *c = err->message; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?'; /* names from files must not forge log lines */
    return status;
}
