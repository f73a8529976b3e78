/* The directory's lines in a file: changes, damage, and a disk that fails at each of its calls. */
#include "tests/unit/unit.h"

#include "runtime/base/buf.h"
#include "server/billing/disk_file.h"
#include "server/billing/ledger_lines.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/ledger-lines-XXXXXX");
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"directory.jsonl", "directory.jsonl.tmp", "f", "f.tmp", "f.old"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        (void)unlink(path);
    }
    return rmdir(folder);
}

static void add_line(void *visitor, const char *line, size_t length)
{
    buf_append(visitor, line, length);
    buf_append_char(visitor, ';');
}

static void assert_lines(uint64_t version, const char *lines)
{
    struct buf text;
    struct error err = {""};
    uint64_t read = 99, asked = 99;
    buf_init(&text, 0);
    if (ledger_lines_read(disk_system(), folder, add_line, &text, &read, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(ledger_lines_version(disk_system(), folder, &asked, &err), ST_OK);
    assert_int_equal(read, version);
    assert_int_equal(asked, version);
    buf_append_char(&text, '\0');
    assert_string_equal(text.data, lines);
    buf_free(&text);
}

static enum status put(const char *id, const char *line)
{
    return ledger_lines_put(disk_system(), folder, id, line, NULL);
}

static void test_ledger_lines_put_and_read(void **state)
{
    (void)state;
    assert_lines(0, "");
    assert_int_equal(put("a:x@y", "{\"n\":1}"), ST_OK);
    assert_int_equal(put("k:2", "{\"n\":[\"]\",2]}"), ST_OK);
    assert_int_equal(put("a:x", "{}"), ST_OK);
    assert_lines(3, "{\"n\":1};{\"n\":[\"]\",2]};{};");
    assert_int_equal(put("k:2", "{\"n\":[\"]\",2]}"), ST_OK); /* the same again: no change */
    assert_lines(3, "{\"n\":1};{\"n\":[\"]\",2]};{};");
    assert_int_equal(put("k:2", "{\"n\":3}"), ST_OK);
    assert_lines(4, "{\"n\":1};{\"n\":3};{};");
    static const char *const bad[] = {"", "a b", "a\"", "a\\", "\x7f", "\n"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_int_equal(put(bad[i], "{}"), ST_INVAL);
    assert_int_equal(put("a", ""), ST_INVAL);
    assert_int_equal(put("a", "{}\n{}"), ST_INVAL);
    assert_lines(4, "{\"n\":1};{\"n\":3};{};");
}

static void write_file(const char *bytes, size_t length)
{
    struct error err = {""};
    if (disk_file_replace(disk_system(), folder, "directory.jsonl", NULL, bytes, length, &err) != ST_OK) {
        fail_msg("%s", err.message);
    }
}

static void test_ledger_lines_damage_is_refused_whole(void **state)
{
    (void)state;
    static const char good[] = "[\"\",7]\n[\"a\",{}]\n[\"b\",{}]\n";
    write_file(good, sizeof good - 1);
    assert_lines(7, "{};{};");
    static const char *const bad[] = {"",
                                      "x",
                                      "\n",
                                      "[\"\",7]",
                                      "[\"\",x]\n",
                                      "[\"\",]\n",
                                      "[\"a\",{}]\n",
                                      "[\"\",7]\n[\"\",{}]\n",
                                      "[\"\",7]\n[\"a\",{}",
                                      "[\"\",7]\n[\"a\",]\n",
                                      "[\"\",7]\n[a,{}]\n",
                                      "[\"\",7]\n\n",
                                      "[\"\",1234567890123456789]\n",
                                      "[\"\"\n"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_file(bad[i], strlen(bad[i]));
        struct buf text;
        uint64_t version = 99;
        struct error err = {""};
        buf_init(&text, 0);
        assert_int_equal(ledger_lines_read(disk_system(), folder, add_line, &text, &version, &err), ST_INVAL);
        assert_int_equal(text.length, 0);
        assert_int_equal(version, 99);
        assert_non_null(strstr(err.message, "line"));
        assert_int_equal(ledger_lines_put(disk_system(), folder, "a", "{}", &err), ST_INVAL);
        buf_free(&text);
    }
}

/* A disk whose call of that number fails, and which writes three bytes at a time. */
struct bad_disk {
    struct disk disk;
    uint32_t calls, fail_at;
};

static bool fails(void *state)
{
    struct bad_disk *bad = state;
    return ++bad->calls == bad->fail_at;
}
static int bad_open(void *state, const char *path, enum disk_open how)
{
    return fails(state) ? -EIO : disk_system()->open(NULL, path, how);
}
static void bad_close(void *state, int fd)
{
    (void)state;
    disk_system()->close(NULL, fd);
}
static int64_t bad_read_at(void *state, int fd, void *out, size_t length, uint64_t offset)
{
    return fails(state) ? -EIO : disk_system()->read_at(NULL, fd, out, length < 3 ? length : 3, offset);
}
static int64_t bad_write_at(void *state, int fd, const void *bytes, size_t length, uint64_t offset)
{
    return fails(state) ? -ENOSPC : disk_system()->write_at(NULL, fd, bytes, length < 3 ? length : 3, offset);
}
static int bad_sync(void *state, int fd)
{
    return fails(state) ? -EIO : disk_system()->sync(NULL, fd);
}
static int bad_rename(void *state, const char *from, const char *to)
{
    return fails(state) ? -EIO : disk_system()->rename(NULL, from, to);
}
static int bad_remove(void *state, const char *path)
{
    return fails(state) ? -EIO : disk_system()->remove(NULL, path);
}
static int bad_sync_folder(void *state, const char *path)
{
    return fails(state) ? -EIO : disk_system()->sync_folder(NULL, path);
}

static void test_ledger_lines_a_failing_disk_leaves_old_or_new(void **state)
{
    (void)state;
    struct bad_disk bad = {.disk = {.open = bad_open,
                                    .close = bad_close,
                                    .read_at = bad_read_at,
                                    .write_at = bad_write_at,
                                    .sync = bad_sync,
                                    .rename = bad_rename,
                                    .remove = bad_remove,
                                    .sync_folder = bad_sync_folder}};
    bad.disk.state = &bad;
    assert_int_equal(put("a", "{\"old\":1}"), ST_OK);
    for (uint32_t at = 1;; at++) {
        bad.calls = 0;
        bad.fail_at = at;
        enum status status = ledger_lines_put(&bad.disk, folder, "a", "{\"new\":2}", NULL);
        if (status == ST_OK) {
            assert_true(at > 12);
            break;
        }
        assert_int_equal(status, ST_IO);
        if (bad.calls == at && at > 1) { /* the last call of all is the folder's fsync: by then it is the new one */
            uint64_t version;
            assert_int_equal(ledger_lines_version(disk_system(), folder, &version, NULL), ST_OK);
            assert_true(version == 1 || version == 2);
            if (version == 2) break;
            assert_lines(1, "{\"old\":1};");
        }
    }
    assert_lines(2, "{\"new\":2};");
}

static void test_disk_file_keeps_the_one_before(void **state)
{
    (void)state;
    struct buf text;
    buf_init(&text, 0);
    assert_int_equal(disk_file_read(disk_system(), folder, "f", 10, &text, NULL), ST_NOTFOUND);
    assert_int_equal(disk_file_replace(disk_system(), folder, "f", "f.old", "one", 3, NULL), ST_OK);
    assert_int_equal(disk_file_read(disk_system(), folder, "f.old", 10, &text, NULL), ST_NOTFOUND);
    assert_int_equal(disk_file_replace(disk_system(), folder, "f", "f.old", "two!", 4, NULL), ST_OK);
    assert_int_equal(disk_file_read(disk_system(), folder, "f.old", 10, &text, NULL), ST_OK);
    assert_int_equal(disk_file_read(disk_system(), folder, "f", 10, &text, NULL), ST_OK);
    assert_int_equal(text.length, 7);
    assert_memory_equal(text.data, "onetwo!", 7);
    assert_int_equal(disk_file_read(disk_system(), folder, "f", 3, &text, NULL), ST_LIMIT);
    buf_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_ledger_lines_put_and_read, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_ledger_lines_damage_is_refused_whole, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_ledger_lines_a_failing_disk_leaves_old_or_new, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_disk_file_keeps_the_one_before, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
