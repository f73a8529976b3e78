/* A matcher that walks pattern and name together; what is to be matched after a group waits in a chain on the stack.
 * Every recursion has moved on in the pattern, so its depth is bounded by the pattern's length. */
#include "runtime/model/quant_pattern.h"

#include <stddef.h>
#include <string.h>

struct rest { /* of the pattern, after the group that is being matched */
    const char *pattern, *end;
    const struct rest *next;
};

struct match {
    const char *name;
    unsigned steps;
};

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool is_escaped_literal(char c)
{
    return c && strchr(".-_/[](){}|*+?^$\\", c);
}

/* Bytes of the atom at pattern: a literal, an escape or a class; 0 when it is none of them. */
static size_t atom_length(const char *pattern)
{
    if (*pattern == '\\') return pattern[1] == 'd' || pattern[1] == 'w' || is_escaped_literal(pattern[1]) ? 2 : 0;
    if (*pattern != '[') return *pattern && !strchr("()|*+?{}]^$", *pattern) ? 1 : 0;
    size_t i = pattern[1] == '^' ? 2 : 1, begin = i;
    for (; pattern[i] && pattern[i] != ']'; i++)
        if (pattern[i] == '[' || pattern[i] == '\\') return 0;
    return pattern[i] == ']' && i > begin ? i + 1 : 0;
}

static bool atom_takes(const char *atom, size_t length, char c)
{
    if (!c) return false;
    if (*atom == '.') return true;
    if (*atom == '\\') return atom[1] == 'd' ? c >= '0' && c <= '9' : atom[1] == 'w' ? is_word(c) : c == atom[1];
    if (*atom != '[') return c == *atom;
    bool negated = atom[1] == '^', found = false;
    for (size_t i = negated ? 2 : 1; i + 1 < length; i++) {
        bool range = i + 3 < length && atom[i + 1] == '-';
        if (range ? c >= atom[i] && c <= atom[i + 2] : c == atom[i]) found = true;
        if (range) i += 2;
    }
    return found != negated;
}

/* Where the alternative that begins at pattern ends: at '|', at ')' or at the pattern's end. */
static const char *alternative_end(const char *pattern, const char *end)
{
    unsigned depth = 0;
    while (pattern < end) {
        size_t atom = atom_length(pattern);
        if (!atom && !depth && (*pattern == '|' || *pattern == ')')) return pattern;
        if (!atom && *pattern == '(') depth++;
        if (!atom && *pattern == ')') depth--;
        pattern += atom ? atom : 1;
    }
    return end;
}

static const char *group_begin(const char *pattern) /* after the parenthesis */
{
    return pattern[1] == '?' && pattern[2] == ':' ? pattern + 3 : pattern + 1;
}

static bool match_alternatives(struct match *match, const char *pattern, const char *end, const struct rest *rest,
                               const char *s);

static bool match_rest(struct match *match, const char *pattern, const char *end, const struct rest *rest,
                       const char *s)
{
    for (;;) {
        if (++match->steps > QUANT_PATTERN_STEPS_MAX) return false;
        if (pattern == end) {
            if (!rest) return true;
            pattern = rest->pattern;
            end = rest->end;
            rest = rest->next;
            continue;
        }
        if (*pattern == '(') {
            const char *close = group_begin(pattern);
            for (close = alternative_end(close, end); *close == '|';) close = alternative_end(close + 1, end);
            match->steps += (unsigned)(close - pattern);
            struct rest after = {close + 1, end, rest};
            return match_alternatives(match, group_begin(pattern), close, &after, s);
        }
        if (*pattern == '^' || *pattern == '$') {
            if (*pattern == '^' ? s != match->name : *s != 0) return false;
            pattern++;
            continue;
        }
        size_t length = atom_length(pattern), taken = 0;
        const char *next = pattern + length;
        char repeat = next < end ? *next : 0;
        if (repeat != '*' && repeat != '+' && repeat != '?') {
            if (!atom_takes(pattern, length, *s)) return false;
            pattern = next;
            s++;
            continue;
        }
        while (atom_takes(pattern, length, s[taken]) && (repeat != '?' || !taken)) taken++;
        for (size_t least = repeat == '+'; taken + 1 > least; taken--) {
            if (match_rest(match, next + 1, end, rest, s + taken)) return true;
            if (!taken) break;
        }
        return false;
    }
}

static bool match_alternatives(struct match *match, const char *pattern, const char *end, const struct rest *rest,
                               const char *s)
{
    for (;;) {
        const char *stop = alternative_end(pattern, end);
        if (match_rest(match, pattern, stop, rest, s)) return true;
        if (stop == end) return false;
        pattern = stop + 1;
    }
}

bool quant_pattern_match(const char *pattern, const char *name, bool *gave_up)
{
    struct match match = {name, 0};
    bool matches = match_alternatives(&match, pattern, pattern + strlen(pattern), NULL, name);
    if (match.steps > QUANT_PATTERN_STEPS_MAX) *gave_up = true;
    return matches && match.steps <= QUANT_PATTERN_STEPS_MAX;
}

bool quant_pattern_is_known(const char *pattern)
{
    unsigned depth = 0;
    bool may_repeat = false;
    if (strlen(pattern) > QUANT_PATTERN_MAX) return false;
    while (*pattern) {
        size_t atom = atom_length(pattern);
        bool repeatable = atom != 0;
        if (atom) {
            pattern += atom;
        } else if (*pattern == '(') {
            if (pattern[1] == '?' && pattern[2] != ':') return false;
            pattern = group_begin(pattern);
            depth++;
        } else if (strchr("*+?", *pattern)) {
            if (!may_repeat) return false;
            pattern++;
        } else if (*pattern == ')') {
            if (!depth) return false;
            depth--;
            pattern++;
        } else if (strchr("|^$", *pattern)) {
            pattern++;
        } else {
            return false;
        }
        may_repeat = repeatable;
    }
    return depth == 0;
}
