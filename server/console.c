/* See console.h. Rejected: files read from a folder at run time (an image with a read-only root and one binary has no
 * such folder, and a path is one more thing to guard); gzip (40 kB, asked for once a browser). */
#include "server/console.h"

#include <string.h>

const struct console_file *console_find(const char *path, size_t path_length)
{
    for (size_t i = 0; i < console_files_count; i++)
        if (strlen(console_files[i].path) == path_length && memcmp(console_files[i].path, path, path_length) == 0)
            return &console_files[i];
    return NULL;
}

void console_print_headers(const struct console_file *file, struct buf *out)
{
    buf_append_format(out, "etag: %s\r\n", file->etag);
    buf_append_text(out, "cache-control: no-cache\r\n" /* kept, and asked about: a new binary is a new page at once */
                         "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; "
                         "connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
                         "form-action 'none'\r\n" /* W1 */
                         "x-content-type-options: nosniff\r\n"
                         "referrer-policy: no-referrer\r\n"
                         "cross-origin-opener-policy: same-origin\r\n"
                         "cross-origin-resource-policy: same-origin\r\n"
                         "permissions-policy: camera=(), geolocation=(), microphone=()\r\n");
}

bool console_is_kept(const struct console_file *file, const char *if_none_match)
{
    size_t etag_length = strlen(file->etag);
    if (!if_none_match) return false;
    for (const char *at = if_none_match; *at;) {
        at += strspn(at, " \t,");
        size_t length = strcspn(at, " \t,"); /* our tags have none of these */
        if (length == 1 && *at == '*') return true;
        if (length > 2 && strncmp(at, "W/", 2) == 0) at += 2, length -= 2; /* weak comparison */
        if (length == etag_length && memcmp(at, file->etag, length) == 0) return true;
        at += length;
    }
    return false;
}
