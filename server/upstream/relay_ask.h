/* A client's body for a model of an upstream, and the body that goes there. Pure: bytes in, bytes out; a pool thread.
 *
 * What is read of it is what this server must know (whether it streams, how much it may cost); the rest goes on as it
 * came, and the upstream is the judge of it. Changed are `model` (its name there), `stream_options` (usage is always
 * asked for) and the most tokens of an answer, which is always said, so that what is held for the call is enough. */
#ifndef SERVER_UPSTREAM_RELAY_ASK_H
#define SERVER_UPSTREAM_RELAY_ASK_H

#include "server/upstream/upstreams.h"

struct relay_ask {
    const struct upstream_model *model;
    enum api_kind kind;
    bool stream, include_usage;
    uint32_t choices;    /* of all prompts */
    uint32_t max_tokens; /* of a choice */
    uint32_t prompt_max; /* tokens of all prompts, at most: one a byte of the body, and what a template adds */
    struct buf body;     /* for the upstream */
    size_t tokens_at;    /* in it: where max_tokens stands, RELAY_TOKENS_CHARS wide */
};

enum { RELAY_TOKENS_CHARS = 10, RELAY_TEMPLATE_TOKENS = 256 };

/* False: error is what the client gets. *ask is to be freed in either case. */
NODISCARD bool relay_ask_read(struct relay_ask *ask, const struct upstream_model *model, enum api_kind kind,
                              const char *body, size_t length, struct api_error *error);
/* Less than was asked for: what is paid for. */
void relay_ask_lower(struct relay_ask *ask, uint32_t max_tokens);
void relay_ask_free(struct relay_ask *ask);

#endif
