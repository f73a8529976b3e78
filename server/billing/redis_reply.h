/* Redis' protocol, RESP2: commands to bytes, bytes to replies. hiredis' reader does the parsing; what it builds is
 * ours, so that a reply is bounded before memory is taken for it (limits.h): bytes, values, depth. A length that a peer
 * promises is not believed until the bytes are there. Redis' own error text is classified here and nowhere else.
 * Pure; one thread a reader. */
#ifndef SERVER_BILLING_REDIS_REPLY_H
#define SERVER_BILLING_REDIS_REPLY_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum redis_type { REDIS_NIL, REDIS_INTEGER, REDIS_STRING, REDIS_ERROR, REDIS_ARRAY }; /* a status is a string */

struct redis_reply {
    enum redis_type type;
    int64_t integer;
    uint32_t count;             /* array: items */
    struct redis_reply **items; /* array */
    size_t length;              /* string, error */
    char *text;                 /* string, error: NUL-terminated too */
};
void redis_reply_free(struct redis_reply *reply); /* NULL is fine */

/* The i-th item's text; NULL when the reply is no array, is shorter, or has something else there. */
const char *redis_reply_text_at(const struct redis_reply *reply, uint32_t i);
bool redis_reply_is(const struct redis_reply *reply, const char *text); /* a string equal to it */

struct redis_reader;
NODISCARD enum status redis_reader_create(struct redis_reader **reader);
void redis_reader_destroy(struct redis_reader *reader);
/* ST_OK: a reply (the caller frees it); ST_AGAIN: feed more; ST_PROTO: nonsense, or past a limit (err): the reader can
 * only be destroyed; ST_NOMEM. */
NODISCARD enum status redis_reader_next(struct redis_reader *reader, struct redis_reply **reply, struct error *err);
NODISCARD enum status redis_reader_feed(struct redis_reader *reader, const void *bytes, size_t length,
                                        struct error *err);

struct redis_command {
    int count;
    const char **arguments;
    const size_t *lengths; /* NULL: all are NUL-terminated */
};
/* Appends the command's bytes. ST_NOMEM. */
NODISCARD enum status redis_command_print(const struct redis_command *command, struct buf *out);

/* What Redis' error text means for us. */
enum redis_fault {
    REDIS_NO_FAULT,     /* no error */
    REDIS_FAULT_WAIT,   /* it cannot now and changed nothing: LOADING BUSY OOM MISCONF NOREPLICAS CLUSTERDOWN MASTERDOWN
                           TRYAGAIN */
    REDIS_FAULT_MASTER, /* we talk to a replica: READONLY */
    REDIS_FAULT_MOVED,
    REDIS_FAULT_ASK,
    REDIS_FAULT_FUNCTION, /* "Function not found": the library is not loaded */
    REDIS_FAULT_RIGHTS,   /* NOAUTH WRONGPASS NOPERM */
    REDIS_FAULT_OTHER
};
enum redis_fault redis_fault_of(const struct redis_reply *reply);
/* "MOVED 3999 127.0.0.1:6381" and ASK alike. host "" where Redis leaves it out: the one who said so. false: neither. */
bool redis_fault_target(const struct redis_reply *reply, uint16_t *slot, char *host, size_t room, uint16_t *port);

#endif
