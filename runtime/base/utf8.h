/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. Pure, any thread. */
#ifndef RUNTIME_BASE_UTF8_H
#define RUNTIME_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the valid character at the start of text (1..4), or 0 when there is none. */
size_t utf8_length(const char *text, size_t length);

/* The character at the start of text into *codepoint; returns its bytes, or 0 when it is not valid. */
size_t utf8_decode(const char *text, size_t length, uint32_t *codepoint);

/* Writes 1..4 bytes and returns how many; 0 for what is no Unicode scalar value. */
size_t utf8_encode(uint32_t codepoint, char out[4]);

/* Whether all of text is valid; on false *offset (if not NULL) is that of the first bad byte. */
bool utf8_valid(const char *text, size_t length, size_t *offset);

/* How many bytes at the end of text are the beginning of a character that more bytes could make valid (0..3). A
 * streaming writer holds these back. */
size_t utf8_incomplete_tail(const char *text, size_t length);

#endif
