/* The console: a page for an operator, and the files that it is made of, inside the binary (server/console/, put there
 * by embed.cmake). The page holds no data and needs no key: what it shows it asks from this server's own calls, with
 * the keys that its user types in. Pure.
 *
 * W1  Nothing comes from elsewhere and nothing goes elsewhere: the policy sent with every file allows this origin
 * alone, no inline script or style, no frame around it, no form. */
#ifndef SERVER_CONSOLE_H
#define SERVER_CONSOLE_H

#include "runtime/base/buf.h"

#include <stdbool.h>
#include <stddef.h>

struct console_file {
    const char *path; /* of the URL */
    const char *content_type;
    const char *etag; /* with its quotes */
    const unsigned char *data;
    size_t length;
};

extern const struct console_file console_files[]; /* made by embed.cmake */
extern const size_t console_files_count;

/* NULL: there is none at this path. */
const struct console_file *console_find(const char *path, size_t path_length);

/* Appends the header lines of the file's answer, each with its CRLF. */
void console_print_headers(const struct console_file *file, struct buf *out);

/* Whether an If-None-Match (NULL: none was sent) names the file as it is, or is "*" (RFC 9110 13.1.2). */
bool console_is_kept(const struct console_file *file, const char *if_none_match);

#endif
