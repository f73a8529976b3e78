/* See multipart.h. The body begins as if a CR LF stood before it, so that the first boundary is found like the others;
 * a byte that breaks a half-matched boundary gives back what was held. CR stands in a boundary only at its start, so
 * after a mismatch the match can only begin anew at that byte: no table is needed. */
#include "server/batch/multipart.h"

#include <string.h>
#include <strings.h>

enum state { PREAMBLE, AFTER_BOUNDARY, AFTER_DASH, AFTER_CR, HEAD, BODY, ENDED, OVER };

static bool boundary_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("'()+_,-./:=?", c));
}

bool multipart_begin(struct multipart *multipart, const char *content_type)
{
    static const char kind[] = "multipart/form-data";
    *multipart = (struct multipart){.state = PREAMBLE, .matched = 2};
    if (!content_type || strncasecmp(content_type, kind, sizeof kind - 1) != 0) return false;
    const char *at = content_type + sizeof kind - 1;
    for (;;) {
        at += strspn(at, " \t");
        if (*at != ';') return false;
        at += 1 + strspn(at + 1, " \t");
        if (strncasecmp(at, "boundary=", 9) == 0) break;
        at += strcspn(at, ";");
    }
    at += 9;
    bool quoted = *at == '"';
    at += quoted;
    size_t length = 0;
    while (boundary_char(at[length])) length++;
    if (length == 0 || length > MULTIPART_BOUNDARY_MAX || (quoted && at[length] != '"')) return false;
    memcpy(multipart->boundary, "\r\n--", 4);
    memcpy(multipart->boundary + 4, at, length);
    multipart->boundary_length = length + 4;
    return true;
}

static enum multipart_result bad(struct multipart *multipart, const char *reason)
{
    multipart->state = OVER;
    multipart->reason = reason;
    return MULTIPART_BAD;
}

/* The value of name= in a Content-Disposition line, unquoted. 0: not there, 1: taken, -1: too long or not closed. */
static int parameter(const char *line, size_t length, const char *name, char *out, size_t size)
{
    size_t name_length = strlen(name);
    for (size_t i = 0; i < length; i++) {
        if (line[i] == '"') { /* a quoted value is no place to look for a name */
            for (i++; i < length && line[i] != '"'; i++) i += line[i] == '\\';
            continue;
        }
        if (line[i] != ';') continue;
        size_t at = i + 1;
        while (at < length && (line[at] == ' ' || line[at] == '\t')) at++;
        if (length - at <= name_length || strncasecmp(line + at, name, name_length) != 0 ||
            line[at + name_length] != '=')
            continue;
        at += name_length + 1;
        bool quoted = at < length && line[at] == '"';
        size_t used = 0;
        for (at += quoted; at < length; at++) {
            if (quoted ? line[at] == '"' : line[at] == ';' || line[at] == ' ') break;
            if (quoted && line[at] == '\\' && at + 1 < length) at++;
            if (used + 1 >= size) return -1;
            out[used++] = line[at];
        }
        out[used] = '\0';
        return quoted && at >= length ? -1 : 1;
    }
    return 0;
}

static enum multipart_result begin_part(struct multipart *multipart, const struct multipart_reader *reader)
{
    static const char disposition[] = "content-disposition:";
    char name[MULTIPART_NAME_MAX + 1], filename[MULTIPART_FILENAME_MAX + 1];
    const char *line = multipart->head, *end = multipart->head + multipart->head_length;
    while (line < end) {
        const char *stop = memchr(line, '\r', (size_t)(end - line));
        size_t length = stop ? (size_t)(stop - line) : (size_t)(end - line);
        if (length >= sizeof disposition && strncasecmp(line, disposition, sizeof disposition - 1) == 0) {
            int has_name = parameter(line, length, "name", name, sizeof name);
            int has_file = parameter(line, length, "filename", filename, sizeof filename);
            if (has_name != 1 || has_file < 0) return bad(multipart, "a part's name is missing or too long");
            if (++multipart->parts > MULTIPART_PARTS_MAX) return bad(multipart, "it has too many parts");
            multipart->state = BODY;
            multipart->matched = 0;
            if (reader->part(reader->state, name, has_file ? filename : NULL)) return MULTIPART_MORE;
            multipart->state = OVER;
            return MULTIPART_STOPPED;
        }
        line += length + 2;
    }
    return bad(multipart, "a part has no Content-Disposition");
}

/* Bytes of a part, or of what stands before the first one; *used of them are taken. */
static enum multipart_result take_body(struct multipart *multipart, const char *data, size_t length, size_t *used,
                                       const struct multipart_reader *reader)
{
    size_t i = 0;
    bool told = true, kept = multipart->state == BODY;
    while (i < length && told) {
        if (multipart->matched == 0) {
            const char *cr = memchr(data + i, '\r', length - i);
            size_t plain = cr ? (size_t)(cr - data) - i : length - i;
            if (plain > 0 && kept) told = reader->bytes(reader->state, data + i, plain);
            i += plain;
            if (i == length) break;
        }
        if (data[i] == multipart->boundary[multipart->matched]) {
            i++;
            if (++multipart->matched < multipart->boundary_length) continue;
            multipart->state = AFTER_BOUNDARY;
            break;
        }
        if (kept && multipart->matched > 0)
            told = reader->bytes(reader->state, multipart->boundary, multipart->matched);
        multipart->matched = 0;
        if (data[i] != '\r') {
            if (kept && told) told = reader->bytes(reader->state, data + i, 1);
            i++;
        }
    }
    *used = i;
    if (told) return MULTIPART_MORE;
    multipart->state = OVER;
    return MULTIPART_STOPPED;
}

static enum multipart_result head_byte(struct multipart *multipart, char c, const struct multipart_reader *reader)
{
    if (multipart->head_length == MULTIPART_HEAD_MAX) return bad(multipart, "a part's head is too long");
    if (c == '\0') return bad(multipart, "a part's head has a character that it may not have");
    multipart->head[multipart->head_length++] = c;
    multipart->head[multipart->head_length] = '\0';
    size_t length = multipart->head_length;
    if (length >= 4 && memcmp(multipart->head + length - 4, "\r\n\r\n", 4) == 0) return begin_part(multipart, reader);
    if (length == 2 && memcmp(multipart->head, "\r\n", 2) == 0) return begin_part(multipart, reader);
    return MULTIPART_MORE;
}

static enum multipart_result line_byte(struct multipart *multipart, char c)
{
    switch ((enum state)multipart->state) {
    case AFTER_BOUNDARY:
        if (c == '-')
            multipart->state = AFTER_DASH;
        else if (c == '\r')
            multipart->state = AFTER_CR;
        else if (c != ' ' && c != '\t')
            return bad(multipart, "a boundary does not end its line");
        return MULTIPART_MORE;
    case AFTER_DASH:
        if (c != '-') return bad(multipart, "a boundary does not end its line");
        multipart->state = ENDED;
        return MULTIPART_END;
    default: /* AFTER_CR */
        if (c != '\n') return bad(multipart, "a boundary does not end its line");
        multipart->state = HEAD;
        multipart->head_length = 0;
        return MULTIPART_MORE;
    }
}

enum multipart_result multipart_feed(struct multipart *multipart, const char *data, size_t length,
                                     const struct multipart_reader *reader)
{
    enum multipart_result result = MULTIPART_MORE;
    size_t i = 0, used;
    while (i < length && result == MULTIPART_MORE) {
        switch ((enum state)multipart->state) {
        case PREAMBLE:
        case BODY:
            result = take_body(multipart, data + i, length - i, &used, reader);
            i += used;
            break;
        case HEAD: result = head_byte(multipart, data[i++], reader); break;
        case ENDED: return MULTIPART_END;
        case OVER: return MULTIPART_BAD;
        default: result = line_byte(multipart, data[i++]); break;
        }
    }
    return multipart->state == ENDED ? MULTIPART_END : result;
}
