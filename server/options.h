/* The one table of options: from it come flags, environment names, YAML keys, --help and the printed settings. A row
 * names a member of struct config; nothing about an option is said twice. Pure; any thread. */
#ifndef SERVER_OPTIONS_H
#define SERVER_OPTIONS_H

#include "server/config.h"

enum option_kind {
    OPTION_TEXT,    /* char * */
    OPTION_SECRET,  /* char *, from the environment or the YAML file only: arguments are visible to every user */
    OPTION_U32,     /* uint32_t */
    OPTION_U64,     /* uint64_t */
    OPTION_SIZE,    /* uint64_t bytes; suffixes K M G T (powers of 1000) and Ki Mi Gi Ti (of 1024) */
    OPTION_SECONDS, /* uint32_t milliseconds, written as seconds with up to three decimals */
    OPTION_DOUBLE,  /* double */
    OPTION_BOOL,    /* bool; --x and --no-x, in files true and false */
    OPTION_LIST     /* struct config_list; repeatable */
};

struct option {
    const char *name; /* "max-num-seqs" */
    char letter;      /* 'p' for -p, 0 without */
    enum option_kind kind;
    unsigned commands;         /* enum config_command, or-ed */
    size_t offset;             /* into struct config */
    const char *value_default; /* NULL: zero, empty or absent */
    double floor, ceiling;     /* of numbers, in the unit that the user writes */
    const char *value_name;    /* "N", "FILE" in --help */
    const char *help;          /* one or two sentences */
    bool secret;               /* never printed */
};

extern const struct option option_table[];
extern const size_t option_count;

/* Row by long name, or NULL. */
const struct option *option_find(const char *name);

/* The known name nearest to a mistyped one (edit distance at most a third of its length and one), or NULL. */
const char *option_nearest(const char *name, enum config_command command);

/* Sets one member from text. `origin` ("--port", "MILLRACE_PORT", "file.yaml: port") begins the message. A list is
 * appended to; the caller clears it when a stronger source begins. ST_INVAL, ST_LIMIT, ST_NOMEM. */
NODISCARD enum status option_set(struct config *config, const struct option *option, const char *origin,
                                 const char *text, struct error *err);

/* The member's value as text, as option_set would take it; "(secret)" for secrets. */
void option_write(const struct config *config, const struct option *option, struct buf *out);

#endif
