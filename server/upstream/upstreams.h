/* Servers that are not this one and serve models through it, from a YAML file (--upstreams):
 *
 *   far:         [url=https://far.example/v1, key_file=/etc/millrace/far.key, concurrency=16, timeout=300]
 *   org/model-x: [upstream=far, as=model-x, context=32768, output=4096]
 *
 * A row with url= is an upstream, one with upstream= a model of one. Of an upstream: url (http or https, up to and with
 * /v1), key_file (its first line) or key_env (a variable's name) or neither, ca_file (PEM; else the system's),
 * concurrency (calls at a time, 16), timeout (seconds of a call, 600), counts=continuous (it tells usage in each
 * chunk). Of a model: as (its name there; else the same), context (tokens; 0: not told), output (most tokens of an
 * answer, which one that names none asks for; 4096). Weights are those of --prices under the name shown here. Rules:
 * README.md.
 *
 * Read once, at the start; the counters are the io thread's. */
#ifndef SERVER_UPSTREAM_UPSTREAMS_H
#define SERVER_UPSTREAM_UPSTREAMS_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "server/api.h"

#include <stdbool.h>
#include <stdint.h>

enum { UPSTREAMS_MAX = 64, UPSTREAM_MODELS_MAX = 1024, UPSTREAM_OUTPUT_DEFAULT = 4096 };

enum upstream_outcome {
    UPSTREAM_DONE,        /* a whole answer with its usage */
    UPSTREAM_CLIENT_GONE, /* we have cancelled it: nobody reads it */
    UPSTREAM_CANCELED,    /* ... for another reason of ours */
    UPSTREAM_FULL,        /* not sent: `concurrency` calls are under way */
    UPSTREAM_UNREACHABLE,
    UPSTREAM_TIMEOUT,
    UPSTREAM_REFUSED,  /* 400, 413, 422: the client's fault */
    UPSTREAM_ERROR,    /* any other status, or an error within a stream */
    UPSTREAM_GARBAGE,  /* not what the API says */
    UPSTREAM_TOO_LONG, /* past a limit */
    UPSTREAM_CUT,      /* ended in the middle */
    UPSTREAM_NO_USAGE, /* an answer without usage */
    UPSTREAM_OUTCOMES
};

struct upstream {
    char *name, *url;
    char *key;     /* NULL: none. Never printed, never sent to a client */
    char *ca_file; /* NULL: the system's */
    uint32_t concurrency, timeout_s;
    bool continuous;
    /* io thread: */
    uint32_t running;
    uint64_t outcomes[UPSTREAM_OUTCOMES], took_ns, calls; /* calls: sent and ended, took_ns theirs */
};

struct upstream_model {
    char *name; /* as shown here */
    char *as;   /* there */
    struct upstream *upstream;
    uint32_t context_max, output_max;
};

struct upstreams {
    struct upstream *items[UPSTREAMS_MAX];
    uint32_t count;
    struct upstream_model *models;
    uint32_t models_count;
    struct api_far *far; /* [models_count]: the models as the API lists them */
};

/* ST_IO, ST_NOTFOUND, ST_LIMIT: the file; ST_INVAL: err names the row, never a key; ST_NOMEM. now_unix_s: what the
 * models tell as `created`. */
NODISCARD enum status upstreams_read(const char *path, int64_t now_unix_s, struct upstreams **upstreams,
                                     struct error *err);
void upstreams_destroy(struct upstreams *upstreams); /* NULL is fine */

const char *upstream_outcome_name(enum upstream_outcome outcome); /* "done", ... static */

/* mr_upstream_*; NULL: nothing. */
void upstreams_print_metrics(const struct upstreams *upstreams, struct buf *out);

#endif
