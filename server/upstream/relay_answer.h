/* What an upstream answers, as bytes come, and what of it the client gets. Pure; io thread.
 *
 *   bytes of a stream --feed--> events --> `text` for the client: each chunk with our id and our model's name, without
 *                                          usage; counts and ends are kept
 *   bytes of a body   --feed--> all of it --end--> `text` but for its last brace
 *
 * The usage is printed last, from what is billed (relay_answer_close_text), so that the client reads what it pays for.
 * Nothing an upstream sends is trusted: lengths are bounded by limits.upstream_*, JSON is read by the door for JSON,
 * counts must be possible. After any verdict but ANSWER_FINE nothing more is fed. */
#ifndef SERVER_UPSTREAM_RELAY_ANSWER_H
#define SERVER_UPSTREAM_RELAY_ANSWER_H

#include "runtime/base/buf.h"
#include "server/api.h"

#include <stdbool.h>
#include <stdint.h>

enum answer_verdict {
    ANSWER_FINE,
    ANSWER_GARBAGE,
    ANSWER_TOO_LONG,
    ANSWER_ERROR, /* an error event within the stream */
    ANSWER_CUT,   /* the stream ended without [DONE] */
    ANSWER_NO_USAGE,
    ANSWER_NO_MEMORY
};

struct relay_counts {
    uint32_t in_total, in_hit, out, out_reasoning;
};

struct relay_answer {
    /* the caller's, before the first byte */
    const char *id, *model; /* borrowed */
    enum api_kind kind;
    bool stream, include_usage;
    int64_t created_unix_s;
    /* what has come */
    struct buf text;            /* for the client; the caller takes it and clears it */
    uint32_t deltas;            /* chunks of a choice with something in them: each is a token at least */
    uint32_t finished;          /* choices whose end has come */
    bool has_length_end;        /* one of them by length */
    bool has_usage, over;       /* over: [DONE] has come */
    struct relay_counts counts; /* the last that came */
    /* own */
    struct buf line, event; /* event: data of an event's lines; of a body, all of it */
    bool has_data, skip_lf;
};

void relay_answer_init(struct relay_answer *answer);
void relay_answer_free(struct relay_answer *answer);

enum answer_verdict relay_answer_feed(struct relay_answer *answer, const char *bytes, size_t length);
/* The connection has ended well. */
enum answer_verdict relay_answer_end(struct relay_answer *answer);
/* The rest of a good answer: usage as billed, [DONE] or the brace. */
void relay_answer_close_text(const struct relay_answer *answer, const struct usage *usage, struct buf *out);

/* What a body of another status than 200 says in error.message; "" if nothing. */
void relay_error_message(const char *body, size_t length, char *out, size_t size_bytes);

#endif
