/* Stop strings over the bytes of output tokens: incremental, any number of strings, across token borders.
 *
 * One Knuth-Morris-Pratt automaton a string: state[i] is the length of the longest prefix of string i that the text
 * ends with, so the longest state is what must be held back, and a full one is a match. Each byte costs amortised
 * O(strings). One Aho-Corasick automaton would need a transition table a request; with at most 16 strings it saves
 * nothing.
 *
 *   text   ... h e l l o \n U s e      strings "\nUser:", "END"
 *                        ^-----^       state = {4, 0}: 4 bytes are held, the text before them is safe
 *
 * The match that ends first wins; of several that end at one byte the longest, then the lowest index. Memory is the
 * caller's. Source: Knuth, Morris, Pratt 1977. One thread. */
#ifndef SCHEDULER_STOP_MATCH_H
#define SCHEDULER_STOP_MATCH_H

#include "scheduler/request.h"

#include <stdbool.h>
#include <stdint.h>

struct stop_match {
    const struct stop_string *stops; /* borrowed while in use */
    uint32_t count;
    uint16_t *failure; /* [sum of lengths]: border lengths of each string, one after another */
    uint16_t *state;   /* [count] */
    uint32_t text_bytes;
};

struct stop_hit {
    uint32_t index;      /* of the string */
    uint32_t start, end; /* byte offsets in the text */
};

/* Whether the strings can be matched: false when a string is empty or longer than 65,535 bytes, or when the sum of
 * lengths (the entries failure[] needs) passes entries_max. */
bool stop_match_fits(const struct stop_string *stops, uint32_t count, uint32_t entries_max);

void stop_match_init(struct stop_match *match, const struct stop_string *stops, uint32_t count, uint16_t *failure,
                     uint16_t *state);

/* Takes the next bytes of text. True at the first match, with hit; the rest of the bytes are counted but not searched.
 * armed false: matches are passed over (min_tokens), though one that is completed later may begin here. */
bool stop_match_push(struct stop_match *match, const char *bytes, uint32_t length, bool armed, struct stop_hit *hit);

/* Bytes at the text's end that may still become a stop string. */
uint32_t stop_match_held(const struct stop_match *match);

#endif
