/* mmap, madvise and their errors; see mapped_file.h. */
#include "runtime/model/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum status mapped_file_open(const char *path, const char *kind, struct mapped_file *file, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not make us wait */
    if (fd < 0)
        return error_set(err, errno == ENOENT || errno == ENOTDIR ? ST_NOTFOUND : ST_IO, "cannot open the file: %s",
                         strerror(errno));
    struct stat info;
    enum status status = ST_OK;
    void *data = MAP_FAILED;
    if (fstat(fd, &info) != 0)
        status = error_set(err, ST_IO, "cannot read the file's size: %s", strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = error_set(err, ST_IO, "this is not a regular file: give the path of %s", kind);
    else if (info.st_size == 0)
        status = error_set(err, ST_INVAL, "the file is empty: fetch it again");
    else if ((data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        status = error_set(err, ST_IO, "cannot map the file: %s", strerror(errno));
    close(fd);
    if (status == ST_OK) *file = (struct mapped_file){data, (size_t)info.st_size, true};
    return status;
}

struct mapped_file mapped_file_of_memory(const void *data, size_t size_bytes)
{
    return (struct mapped_file){data, size_bytes, false};
}

void mapped_file_close(struct mapped_file *file)
{
    if (file->mapped) munmap((void *)(uintptr_t)file->data, file->bytes);
    *file = (struct mapped_file){0};
}

void mapped_file_forget(const struct mapped_file *file, const void *data, size_t bytes)
{
    uintptr_t at = (uintptr_t)data, map = (uintptr_t)file->data;
    if (!file->mapped || at < map || at - map > file->bytes || bytes > file->bytes - (at - map)) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (at + page - 1) & ~(uintptr_t)(page - 1);
    uintptr_t end = (at + bytes) & ~(uintptr_t)(page - 1);
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED); /* only advice */
}
