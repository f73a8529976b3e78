/* See token_table.h. The decoder's steps work on one token at a time, which is what streaming needs: an id's text does
 * not change with its neighbours. Steps for which that is not so are refused; what they do at the start of a text is
 * kept as a number of spaces. */
#include "runtime/text/token_table.h"

#include "runtime/base/buf.h"
#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

#include <string.h>

/* Printable Latin-1 bytes stand for themselves, the other 68 for U+0100 upwards in their order. */
void byte_level_map(int16_t byte_of[BYTE_CHARACTERS], uint16_t char_of[256])
{
    int other = 0x100;
    if (byte_of) memset(byte_of, 0xff, BYTE_CHARACTERS * sizeof *byte_of);
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        int c = printable ? b : other++;
        if (byte_of) byte_of[c] = (int16_t)b;
        if (char_of) char_of[b] = (uint16_t)c;
    }
    CHECK_EQ(other, BYTE_CHARACTERS);
}

bool byte_level_decode(const int16_t byte_of[BYTE_CHARACTERS], const char *text, size_t length, char *out,
                       size_t *out_length)
{
    size_t n = 0;
    for (size_t i = 0; i < length;) {
        uint32_t c;
        size_t step = utf8_decode(text + i, length - i, &c);
        if (!step || c >= BYTE_CHARACTERS || byte_of[c] < 0) return false;
        out[n++] = (char)byte_of[c];
        i += step;
    }
    *out_length = n;
    return true;
}

void token_table_free(struct token_table *table)
{
    mem_free(table->starts);
    mem_free(table->bytes);
    mem_free(table->kinds);
    mem_free(table->plain);
    memset(table, 0, sizeof *table);
}

static void table_fill(struct token_table *table, const struct vocab *vocab, bool byte_level)
{
    int16_t byte_of[BYTE_CHARACTERS];
    uint32_t at = 0;
    byte_level_map(byte_of, NULL);
    for (uint32_t id = 0; id < vocab->count; id++) {
        const struct vocab_string *token = &vocab->tokens[id];
        uint8_t kind = vocab->kinds[id];
        size_t length = token->length;
        bool plain = !byte_level || byte_level_decode(byte_of, token->text, token->length, table->bytes + at, &length);
        if (!byte_level || token_table_is_name(kind) || !plain) {
            length = token->length;
            if (length) memcpy(table->bytes + at, token->text, length);
        }
        table->starts[id] = at;
        table->kinds[id] = kind;
        table->plain[id] = plain;
        at += (uint32_t)length;
        if (length > table->length_max) table->length_max = (uint32_t)length;
    }
    table->starts[vocab->count] = at;
}

static enum status take_memory(struct token_table *table, const struct vocab *vocab, size_t bytes)
{
    table->count = vocab->count;
    table->starts = mem_alloc((size_t)vocab->count + 1, sizeof *table->starts);
    table->bytes = mem_alloc(bytes, 1);
    table->kinds = mem_alloc(vocab->count, sizeof *table->kinds);
    table->plain = mem_alloc(vocab->count, sizeof *table->plain);
    if (table->starts && table->bytes && table->kinds && table->plain) return ST_OK;
    token_table_free(table);
    return ST_NOMEM;
}

enum status token_table_init(struct token_table *table, const struct vocab *vocab, bool byte_level, struct error *err)
{
    size_t bytes = 0;
    memset(table, 0, sizeof *table);
    if (!vocab->count || vocab->count >= UINT32_C(1) << 31)
        return error_set(err, ST_INVAL, "vocabulary: %u tokens, expected 1 to 2^31 - 1", vocab->count);
    for (uint32_t id = 0; id < vocab->count; id++) {
        if (vocab->kinds[id] < VOCAB_NORMAL || vocab->kinds[id] > VOCAB_BYTE)
            return error_set(err, ST_INVAL, "vocabulary: token %u has the unknown kind %u", id, vocab->kinds[id]);
        bytes += vocab->tokens[id].length;
        if (bytes > UINT32_MAX) return error_set(err, ST_INVAL, "vocabulary: more than 4 GiB of token text");
    }
    TRY(take_memory(table, vocab, bytes));
    table_fill(table, vocab, byte_level);
    return ST_OK;
}

void token_table_bytes(const struct token_table *table, uint32_t byte_ids[256])
{
    static const char digits[] = "0123456789ABCDEF";
    memset(byte_ids, 0xff, 256 * sizeof *byte_ids); /* VOCAB_NO_ID */
    for (uint32_t id = 0; id < table->count; id++) {
        uint32_t n;
        const char *text = token_table_get(table, id, &n);
        uint8_t kind = table->kinds[id];
        if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') continue;
        const char *high = memchr(digits, text[3], 16), *low = memchr(digits, text[4], 16);
        if (high && low && (kind == VOCAB_BYTE || kind == VOCAB_NORMAL || kind == VOCAB_USER_DEFINED))
            byte_ids[(high - digits) * 16 + (low - digits)] = id;
    }
}

/* --- what ids stand for --- */

static void swap(struct buf *a, struct buf *b)
{
    struct buf other = *a;
    *a = *b;
    *b = other;
}

enum { DECODED_MAX = 1 << 20 }; /* bytes of a token that is replaced in: steps that double it in turn end there */

/* Replaces every `from` of text by `to`. */
static enum status replace_all(struct buf *text, struct buf *room, struct vocab_string from, struct vocab_string to)
{
    buf_clear(room);
    for (size_t at = 0; at < text->length;) {
        if (room->length + to.length >= DECODED_MAX) return ST_LIMIT;
        if (from.length && text->length - at >= from.length && !memcmp(text->data + at, from.text, from.length)) {
            if (to.length) buf_append(room, to.text, to.length);
            at += from.length;
        } else {
            buf_append_char(room, text->data[at++]);
        }
    }
    swap(text, room);
    return buf_ok(text) ? ST_OK : ST_NOMEM;
}

static enum status replace_text(struct buf *text, struct buf *room, const char *from, const char *to)
{
    return replace_all(text, room, (struct vocab_string){from, (uint32_t)strlen(from)},
                       (struct vocab_string){to, (uint32_t)strlen(to)});
}

/* The decoder WordPiece: "##ing" continues a word, all else starts one. Its clean-up takes spaces before punctuation
 * away; " do not" is its way to say " don't". Source: the library's decoders/wordpiece.rs. */
static enum status decode_wordpiece(const struct vocab_step *step, struct buf *text, struct buf *room)
{
    static const char *const cleanups[][2] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                                              {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                                              {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    buf_clear(room);
    size_t prefix = step->pattern.length;
    if (prefix <= text->length && (!prefix || !memcmp(text->data, step->pattern.text, prefix))) {
        buf_append(room, text->data + prefix, text->length - prefix);
    } else {
        buf_append_char(room, ' ');
        buf_append(room, text->data, text->length);
    }
    swap(text, room);
    for (size_t i = 0; step->cleanup && i < sizeof cleanups / sizeof *cleanups; i++)
        TRY(replace_text(text, room, cleanups[i][0], cleanups[i][1]));
    return buf_ok(text) ? ST_OK : ST_NOMEM;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* "<0x41>" is the byte 0x41. */
static void decode_byte(struct buf *text)
{
    if (text->length != 6 || memcmp(text->data, "<0x", 3) != 0 || text->data[5] != '>') return;
    int high = hex_digit(text->data[3]), low = hex_digit(text->data[4]);
    if (high < 0 || low < 0) return;
    text->data[0] = (char)(high << 4 | low);
    text->length = 1;
}

/* Takes up to `count` times `what` away at the start. */
static void strip_start(struct buf *text, struct vocab_string what, uint32_t count)
{
    size_t at = 0;
    while (count-- && what.length && text->length - at >= what.length &&
           !memcmp(text->data + at, what.text, what.length))
        at += what.length;
    if (at) memmove(text->data, text->data + at, text->length - at);
    text->length -= at;
}

static void strip_end(struct buf *text, struct vocab_string what, uint32_t count)
{
    while (count-- && what.length && text->length >= what.length &&
           !memcmp(text->data + text->length - what.length, what.text, what.length))
        text->length -= what.length;
}

/* Characters of the byte-level alphabet to bytes; a token with others stays as it is. */
static enum status decode_byte_level(const int16_t *byte_of, struct buf *text, struct buf *room)
{
    buf_clear(room);
    if (!buf_reserve(room, text->length)) return ST_NOMEM;
    if (byte_level_decode(byte_of, text->data, text->length, room->data, &room->length)) swap(text, room);
    return ST_OK;
}

static enum status decode_step(const struct vocab_step *step, bool fused, const int16_t *byte_of, struct buf *text,
                               struct buf *room)
{
    switch (step->type) {
    case STEP_REPLACE: return replace_all(text, room, step->pattern, step->content);
    case STEP_METASPACE: return replace_all(text, room, step->content, (struct vocab_string){" ", 1});
    case STEP_WORDPIECE: return decode_wordpiece(step, text, room);
    case STEP_BPE_DECODER: return replace_all(text, room, step->pattern, (struct vocab_string){" ", 1});
    case STEP_BYTE_FALLBACK: decode_byte(text); break;
    case STEP_BYTE_LEVEL: return decode_byte_level(byte_of, text, room);
    case STEP_STRIP:
        if (fused) break; /* of the whole text: start_spaces */
        strip_start(text, step->content, step->start);
        strip_end(text, step->content, step->stop);
        break;
    default: break;
    }
    return ST_OK;
}

/* What the steps do to the start of a text; whether they can be told token by token. */
static enum status check_steps(const struct vocab_step *steps, uint32_t count, uint32_t *start_spaces,
                               struct error *err)
{
    bool fused = false;
    *start_spaces = !count;
    for (uint32_t i = 0; i < count; i++) {
        const struct vocab_step *step = &steps[i];
        bool space = step->content.length == 1 && *step->content.text == ' ';
        if (step->type == STEP_REPLACE && step->regex)
            return error_set(err, ST_INVAL, "decoder Replace with a regular expression is not supported");
        if (fused && step->type == STEP_STRIP && (!space || step->stop))
            return error_set(err, ST_INVAL, "decoder Strip after Fuse is supported for spaces at the start only");
        if (fused && (step->type == STEP_REPLACE || step->type == STEP_METASPACE || step->type == STEP_BPE_DECODER ||
                      step->type == STEP_WORDPIECE || step->type == STEP_BYTE_FALLBACK))
            return error_set(err, ST_INVAL, "decoder: a step after the one that joins the tokens");
        if (fused && step->type == STEP_STRIP) *start_spaces += step->start;
        if (step->type == STEP_METASPACE && step->prepend != PREPEND_NEVER) ++*start_spaces;
        if (step->type == STEP_WORDPIECE) ++*start_spaces;
        fused |= step->type == STEP_FUSE || step->type == STEP_BYTE_LEVEL;
    }
    return ST_OK;
}

static enum status decode_token(const struct vocab_step *steps, uint32_t count, const int16_t *byte_of,
                                struct buf *text, struct buf *room)
{
    bool fused = false;
    if (!count && text->length) { /* no decoder: the library joins tokens with spaces */
        buf_clear(room);
        buf_append_char(room, ' ');
        buf_append(room, text->data, text->length);
        swap(text, room);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!text->length) break;
        TRY(decode_step(&steps[i], fused, byte_of, text, room));
        fused |= steps[i].type == STEP_FUSE || steps[i].type == STEP_BYTE_LEVEL;
    }
    return buf_ok(text) ? ST_OK : ST_NOMEM;
}

enum status token_table_init_output(struct token_table *table, const struct vocab *vocab,
                                    const struct vocab_step *steps, uint32_t steps_count, uint32_t *start_spaces,
                                    struct error *err)
{
    int16_t byte_of[BYTE_CHARACTERS];
    struct buf text, room, all;
    memset(table, 0, sizeof *table);
    TRY(check_steps(steps, steps_count, start_spaces, err));
    byte_level_map(byte_of, NULL);
    TRY(take_memory(table, vocab, 1));
    buf_init(&text, 0);
    buf_init(&room, 0);
    buf_init(&all, UINT32_MAX);
    enum status status = ST_OK;
    for (uint32_t id = 0; id < vocab->count && status == ST_OK; id++) {
        const struct vocab_string *token = &vocab->tokens[id];
        bool name = vocab->kinds[id] == VOCAB_CONTROL || vocab->kinds[id] == VOCAB_UNKNOWN;
        buf_clear(&text);
        if (token->length) buf_append(&text, token->text, token->length);
        if (!name && vocab->kinds[id] != VOCAB_UNUSED) status = decode_token(steps, steps_count, byte_of, &text, &room);
        if (status == ST_LIMIT) error_set(err, status, "decoder: more than %d bytes from token %u", DECODED_MAX, id);
        table->starts[id] = (uint32_t)all.length;
        table->kinds[id] = vocab->kinds[id];
        if (text.length > table->length_max) table->length_max = (uint32_t)text.length;
        if (text.length) buf_append(&all, text.data, text.length);
    }
    if (status == ST_OK && (!buf_ok(&text) || !buf_ok(&all))) status = ST_NOMEM;
    if (status == ST_OK) {
        table->starts[vocab->count] = (uint32_t)all.length;
        mem_free(table->bytes);
        table->bytes = all.data ? all.data : mem_alloc(1, 1);
        if (!table->bytes) status = ST_NOMEM;
    } else {
        buf_free(&all);
    }
    buf_free(&text);
    buf_free(&room);
    if (status != ST_OK) token_table_free(table);
    return status;
}

static enum status copy_string(struct arena *arena, struct vocab_string *string)
{
    if (!string->length) return ST_OK;
    string->text = arena_strdup(arena, string->text, string->length);
    return string->text ? ST_OK : ST_NOMEM;
}

enum status step_texts_copy(struct arena *arena, struct vocab_step *step)
{
    TRY(copy_string(arena, &step->pattern));
    return copy_string(arena, &step->content);
}
