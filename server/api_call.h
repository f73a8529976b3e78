/* What the files of the API layer share: the inside of struct api_call, and the steps between its parts.
 *
 *   api_parse.c        body -> call: parameters that both dialects have, limits, the names that are refused
 *   api_refused.c      the parameters that are known and not served
 *   api_chat.c         messages -> prompt text and its spans
 *   api_completions.c  the four forms of `prompt`
 *   api_prepare.c      tokens, context, memory, engine requests
 *   api_view.c         what of a choice may be shown, and what has been
 *   api_logprobs.c     log-probabilities in both dialects' shapes
 *   api_render.c       chunks and bodies
 *   api_models.c       which model a body names, the list of models
 *   api_misc.c         tokenize, detokenize
 *   api_relay.c        calls that another server answers
 */
#ifndef SERVER_API_CALL_H
#define SERVER_API_CALL_H

#include "runtime/base/arena.h"
#include "runtime/base/buf.h"
#include "runtime/base/json.h"
#include "runtime/text/detokenizer.h"
#include "server/api.h"
#include "server/api_fields.h"

/* How a chat becomes a prompt; shared with /tokenize. Borrows from the document it was read from. */
struct chat_options {
    const struct json *messages, *tools, *documents, *arguments;
    const char *template_text; /* the request's own, or NULL */
    size_t template_length;
    bool add_generation_prompt, continue_final_message, add_special_tokens;
};

/* One choice as the client sees it. The first part is what events have told, the second what was rendered. */
struct choice_view {
    struct request *request;
    struct choice *choice;
    uint32_t idx; /* `index` in answers */
    uint32_t output_count, text_bytes, reasoning_count;
    enum finish finish;
    bool dirty; /* is in call->dirty */

    bool opened, closed;           /* role or echo was sent; finish was sent */
    bool in_reasoning;             /* the next token is between the markers */
    uint32_t cursor, cursor_bytes; /* the next token to show, and how many of its bytes were taken */
    uint32_t taken_bytes;          /* of text_bytes */
    uint32_t ids_sent;             /* for return_token_ids */
    uint64_t shown_chars;          /* characters of text so far, for text_offset */
    struct detokenizer detokenizer;
};

/* What one step of a view yields: text of one kind, and the tokens it finished. */
struct segment {
    struct buf text;
    size_t counted_bytes; /* of text: its characters are in shown_chars */
    struct buf offsets;   /* text_offset of each token, comma-separated */
    uint32_t first, last; /* output ids [first, last) were passed */
    bool reasoning;
    bool more; /* stopped before the end: ask again */
};

enum tier_name { TIER_NONE, TIER_DEFAULT, TIER_FLEX, TIER_PRIORITY, TIER_BATCH };

struct api_call {
    struct arena arena;
    enum api_kind kind;
    const struct api_model *model;
    int64_t now_unix_s;
    uint8_t uuid[16];          /* version 7 */
    char id[48];               /* "chatcmpl-" or "cmpl-", and the uuid in hex */
    struct json *body;         /* released once prepared */
    const struct json *prompt; /* completions: the member */
    struct chat_options chat;

    struct request base;          /* what all requests of this call have in common */
    int64_t n, max_tokens;        /* max_tokens -1: not given */
    const char *max_tokens_param; /* the member that gave it */
    int64_t truncate;             /* 0: off, -1: to the context */
    bool truncate_right;          /* keep the first ids instead of the last */
    bool has_seed;
    uint64_t seed;
    bool add_special_tokens, echo;
    bool stream, include_usage, continuous_usage, return_ids, ids_as_tokens;
    bool include_reasoning;
    enum tier_name tier;
    bool has_energy;
    double joules; /* with has_energy */
    struct api_wish wish;

    struct request *requests;
    uint32_t requests_count;
    uint32_t requests_done;
    struct choice_view *views;
    uint32_t views_count;
    uint32_t *dirty; /* views with something new, in order of their first event */
    uint32_t dirty_count;
    char *prefix; /* of every chunk or of the body: {"id":.. up to "choices":[ */
    size_t prefix_length;
    struct segment segment; /* scratch of rendering */
    struct buf token_text;
};

/* api_parse.c: uuid and id. */
void api_make_id(struct api_call *call, int64_t now_unix_ms);

/* api_refused.c: false when the body asks for something that is known and not served. */
NODISCARD bool api_refuse_unserved(const struct fields *fields, enum api_kind kind);

/* api_chat.c. read: checks shapes and roles on the io thread. tokens: template and tokenizer; appends to list (which
 * has a limit). */
NODISCARD bool api_chat_read(const struct fields *fields, const struct api_model *model, struct chat_options *chat);
NODISCARD bool api_chat_tokens(const struct api_model *model, const struct chat_options *chat, int64_t now_unix_s,
                               struct token_list *list, struct api_error *error);

/* api_completions.c: counts and checks the prompts; appends the ids of prompt number idx to list. */
NODISCARD bool api_prompt_read(struct api_call *call, const struct fields *fields, uint32_t *count);
NODISCARD bool api_prompt_tokens(const struct api_call *call, uint32_t idx, struct token_list *list,
                                 struct api_error *error);

/* api_models.c: which model the body names, shared with /tokenize. False: models->picked says whether it is one that is
 * not ready. */
NODISCARD bool api_model_pick(const struct fields *fields, struct api_models *models);
NODISCARD bool api_read_object(const char *body, size_t length, struct json **root, struct api_error *error);
bool api_refuse_context(const struct api_model *model, enum api_kind kind, uint64_t prompt, uint64_t completion,
                        struct api_error *error);
/* A text that the tokenizer gives up on. */
bool api_refuse_work(const char *param, struct api_error *error);

/* api_view.c */
void api_view_open(struct api_call *call, struct choice_view *view);
void api_view_step(struct api_call *call, struct choice_view *view, bool one_token);
/* Text and offsets of the prompt, for echo, into the segment. */
void api_view_echo(struct api_call *call, struct choice_view *view);

/* api_logprobs.c: of output ids [first, last); with prompt: first is 0 and the whole prompt stands before them.
 * Completions: the segment holds their offsets. */
void api_logprobs_chat(struct api_call *call, const struct choice_view *view, uint32_t first, uint32_t last,
                       struct buf *out);
void api_logprobs_text(struct api_call *call, const struct choice_view *view, bool prompt, uint32_t first,
                       uint32_t last, struct buf *out);

/* A buffer's bytes, also of one that never had any: pointer arithmetic on NULL is undefined. */
static inline const char *buf_bytes(const struct buf *buf)
{
    return buf->data ? buf->data : "";
}

/* Decimal digits, without the cost of printf. */
void api_append_uint(struct buf *out, uint64_t value);
void api_append_ids(struct buf *out, const uint32_t *ids, uint32_t count); /* [1,2,3] */

#endif
