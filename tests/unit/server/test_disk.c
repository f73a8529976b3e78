/* The machine's disk table: what it promises about modes, existing names, locks, listings and ends of files. */
#include "tests/unit/unit.h"

#include "server/billing/disk.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static char parent[64], folder[96];

static const char *in_folder(const char *name)
{
    static char path[2][128];
    static int turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static void count_names(void *visitor, const char *name)
{
    if (name[0] != '.') ++*(int *)visitor;
}

static void test_disk_files(void **state)
{
    (void)state;
    const struct disk *disk = disk_system();
    umask(022);
    assert_int_equal(disk->make_folder(disk->state, folder), 0);
    assert_int_equal(disk->make_folder(disk->state, folder), -EEXIST);
    assert_int_equal(disk->open(disk->state, in_folder("a"), DISK_READ), -ENOENT);
    assert_int_equal(disk->open(disk->state, in_folder("a"), DISK_WRITE), -ENOENT);
    int fd = disk->open(disk->state, in_folder("a"), DISK_CREATE);
    assert_true(fd >= 0);
    assert_int_equal(disk->open(disk->state, in_folder("a"), DISK_CREATE), -EEXIST);
    assert_int_equal(disk->write_at(disk->state, fd, "hello", 5, 3), 5);
    assert_int_equal(disk->size(disk->state, fd), 8);
    char bytes[16];
    assert_int_equal(disk->read_at(disk->state, fd, bytes, sizeof bytes, 0), 8);
    assert_memory_equal(bytes, "\0\0\0hello", 8);
    assert_int_equal(disk->read_at(disk->state, fd, bytes, sizeof bytes, 8), 0);
    assert_int_equal(disk->sync(disk->state, fd), 0);
    struct stat info;
    assert_int_equal(stat(in_folder("a"), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0640);
    assert_int_equal(stat(folder, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0750);
    assert_int_equal(disk->rename(disk->state, in_folder("a"), in_folder("b")), 0);
    assert_int_equal(disk->rename(disk->state, in_folder("a"), in_folder("b")), -ENOENT);
    int names = 0;
    assert_int_equal(disk->list(disk->state, folder, count_names, &names), 0);
    assert_int_equal(names, 1);
    assert_int_equal(disk->sync_folder(disk->state, folder), 0);
    assert_int_equal(disk->sync_folder(disk->state, in_folder("none")), -ENOENT);
    int second = disk->open(disk->state, in_folder("b"), DISK_WRITE);
    assert_int_equal(disk->lock(disk->state, fd), 0);
    assert_int_equal(disk->lock(disk->state, second), -EWOULDBLOCK);
    disk->close(disk->state, fd);
    assert_int_equal(disk->lock(disk->state, second), 0);
    disk->close(disk->state, second);
    assert_int_equal(disk->remove(disk->state, in_folder("b")), 0);
    assert_int_equal(disk->remove(disk->state, in_folder("b")), -ENOENT);
    assert_in_range(disk->free_permille(disk->state, folder), 0, 1000);
    assert_int_equal(disk->free_permille(disk->state, in_folder("none")), -ENOENT);
    assert_int_equal(disk->list(disk->state, in_folder("none"), count_names, &names), -ENOENT);
    assert_int_equal(disk->sync(disk->state, -1), -EBADF);
}

static int make_name(void **state)
{
    (void)state;
    snprintf(parent, sizeof parent, "/tmp/millrace-disk-XXXXXX");
    if (mkdtemp(parent) == NULL) return -1;
    snprintf(folder, sizeof folder, "%s/disk", parent);
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    return rmdir(folder) == 0 ? rmdir(parent) : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_disk_files)};
    return cmocka_run_group_tests(tests, make_name, remove_all);
}
