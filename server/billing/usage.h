/* The usage record of one API call: what was computed for whom, and why it ended. Made for every call of which at least
 * one request entered a step, also when its client has left. It is logged and counted; what is
 * billed is the record of each of its requests (record.h). Definitions: README.md. Pure. */
#ifndef SERVER_BILLING_USAGE_H
#define SERVER_BILLING_USAGE_H

#include "runtime/base/buf.h"
#include "scheduler/request.h"

#include <stdbool.h>
#include <stdint.h>

struct usage_record {
    char call_id[64];     /* ours: the answer's id ("chatcmpl-...") */
    char request_id[132]; /* the client's or ours: x-request-id; never a key */
    char tenant[68];
    char model[256];   /* whole: MODEL_NAME_BYTES_MAX */
    uint32_t requests; /* engine requests of the call that were scheduled */
    bool unseen;       /* CLIENT_GONE before a body byte was sent */
    struct usage sum;
};

/* Adds a scheduled request's final counts. The call's cause is the gravest of its requests'. */
void usage_record_add(struct usage_record *record, const struct usage *usage);

const char *usage_cause_name(enum cause cause); /* "stop", "client_gone", ... static */

/* The record as "key=value ..." for the log. */
void usage_record_print(const struct usage_record *record, struct buf *out);

#endif
