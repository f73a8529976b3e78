/* A multipart/form-data body (RFC 7578), read as it arrives: fields of a few bytes, and one file that never stands in
 * memory as a whole.
 *
 *   content type -> boundary;  bytes -> [ preamble | part head | part body ]* -> end
 *
 * Of a part's head only Content-Disposition's name and filename count. A body's last bytes are held back as long as
 * they may begin a boundary: at most MULTIPART_BOUNDARY_MAX + 4 of them. Anything that is not the grammar is refused,
 * with a reason that quotes nothing. Pure; one thread. */
#ifndef SERVER_BATCH_MULTIPART_H
#define SERVER_BATCH_MULTIPART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MULTIPART_BOUNDARY_MAX = 70, /* RFC 2046 */
    MULTIPART_HEAD_MAX = 4096,   /* of one part */
    MULTIPART_NAME_MAX = 63,
    MULTIPART_FILENAME_MAX = 255,
    MULTIPART_PARTS_MAX = 32
};

/* What is read goes here. A false ends the reading: MULTIPART_STOPPED. */
struct multipart_reader {
    void *state;
    /* A part begins. filename: NULL when it has none. */
    bool (*part)(void *state, const char *name, const char *filename);
    bool (*bytes)(void *state, const char *data, size_t length); /* of that part */
};

enum multipart_result { MULTIPART_MORE, MULTIPART_END, MULTIPART_BAD, MULTIPART_STOPPED };

struct multipart {
    char boundary[MULTIPART_BOUNDARY_MAX + 5]; /* CR LF "--" boundary */
    size_t boundary_length, matched;           /* matched: of the boundary, held back */
    uint8_t state;
    uint32_t parts;
    char head[MULTIPART_HEAD_MAX + 1];
    size_t head_length;
    const char *reason; /* of MULTIPART_BAD; static */
};

/* false: the Content-Type is not multipart/form-data with a boundary that may be one. */
bool multipart_begin(struct multipart *multipart, const char *content_type);
/* Any piece of the body, of any length. After END further bytes are dropped; after BAD and STOPPED it is over. */
enum multipart_result multipart_feed(struct multipart *multipart, const char *data, size_t length,
                                     const struct multipart_reader *reader);

#endif
