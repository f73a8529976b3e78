/* open, fstat, read until the size that was promised; see file.h. O_NONBLOCK keeps a FIFO from holding us before fstat
 * has told what it is. A file that grows or shrinks meanwhile is refused, not half read. */
#include "runtime/base/file.h"

#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status read_all(int fd, char *data, size_t length, struct error *err)
{
    size_t at = 0;
    while (at <= length) { /* the byte past the end must not be there */
        ssize_t n = read(fd, data + at, length + 1 - at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_set(err, ST_IO, "cannot be read: %s", strerror(errno));
        if (!n) break;
        at += (size_t)n;
    }
    if (at != length) return error_set(err, ST_IO, "changed its length while it was read");
    data[length] = 0;
    return ST_OK;
}

static enum status read_open(int fd, uint64_t bytes_max, const char *limit_name, char **data, size_t *length,
                             struct error *err)
{
    struct stat about;
    if (fstat(fd, &about)) return error_set(err, ST_IO, "cannot be read: %s", strerror(errno));
    if (!S_ISREG(about.st_mode)) return error_set(err, ST_IO, "is not a regular file");
    if (about.st_size < 0 || (uint64_t)about.st_size > bytes_max)
        return error_set(err, ST_LIMIT, "has %jd bytes, at most %" PRIu64 " are read (%s)", (intmax_t)about.st_size,
                         bytes_max, limit_name);
    size_t size = (size_t)about.st_size;
    char *text = mem_resize(NULL, size + 1, 1);
    if (!text) return error_set(err, ST_NOMEM, "no memory for its %zu bytes", size);
    enum status status = read_all(fd, text, size, err);
    if (status != ST_OK) {
        mem_free(text);
        return status;
    }
    *data = text;
    *length = size;
    return ST_OK;
}

enum status file_read(const char *path, uint64_t bytes_max, const char *limit_name, char **data, size_t *length,
                      struct error *err)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return error_set(err, ST_NOTFOUND, "does not exist");
    if (fd < 0) return error_set(err, ST_IO, "cannot be opened: %s", strerror(errno));
    enum status status = read_open(fd, bytes_max, limit_name, data, length, err);
    close(fd);
    return status;
}
