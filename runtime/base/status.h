/* What a call that can fail returns, and the text that goes with it.
 *
 * Constants, names and messages come from one list. What can fail returns `enum status`, is NODISCARD, and writes its
 * out-pointers (last arguments) only on ST_OK. ST_AGAIN is normal flow (no block, no slot, ring full) and is never
 * logged.
 *
 * Where a person will read the reason (model files, configuration, requests) the call also takes a `struct error`:
 * one line that says what is wrong, where (file, offset, field) and what to do. Any thread. */
#ifndef RUNTIME_BASE_STATUS_H
#define RUNTIME_BASE_STATUS_H

#include <stddef.h>

#define STATUS_MAP(X)                                                                                                  \
    X(ST_OK, "success")                                                                                                \
    X(ST_AGAIN, "not now, try again later")                                                                            \
    X(ST_LIMIT, "a limit was passed")                                                                                  \
    X(ST_NOMEM, "out of memory")                                                                                       \
    X(ST_INVAL, "invalid argument or input")                                                                           \
    X(ST_PROTO, "protocol violation")                                                                                  \
    X(ST_IO, "input/output error")                                                                                     \
    X(ST_TIMEOUT, "timed out")                                                                                         \
    X(ST_CANCELED, "canceled")                                                                                         \
    X(ST_QUOTA, "quota exhausted")                                                                                     \
    X(ST_NOTFOUND, "not found")                                                                                        \
    X(ST_DEVICE, "device failure")

enum status {
#define X(name, text) name,
    STATUS_MAP(X)
#undef X
};

#define NODISCARD                          __attribute__((warn_unused_result))
#define PRINTF_LIKE(format_idx, first_idx) __attribute__((format(printf, format_idx, first_idx)))

/* Returns from the calling function on failure. Only while nothing is held; after that `goto fail`. */
#define TRY(expr)                                                                                                      \
    do {                                                                                                               \
        enum status try_status_ = (expr);                                                                              \
        if (try_status_ != ST_OK) return try_status_;                                                                  \
    } while (0)

struct error {
    char message[512]; /* NUL-terminated, one line, may be empty */
};

/* The constant's name ("ST_INVAL") and its one-phrase meaning. Static strings; never NULL. */
const char *status_name(enum status status);
const char *status_text(enum status status);

/* Writes the message (cut to fit; control characters become '?') and returns `status`, so that a failing function ends
 * with `return error_set(err, ST_INVAL, "...")`. err may be NULL. */
enum status error_set(struct error *err, enum status status, const char *format, ...) PRINTF_LIKE(3, 4);

#endif
