/* RAPL over a folder that looks like /sys/class/powercap: two packages, their subzones, the platform, the same packages
 * again through MMIO. What is summed, what wraps, what may not be read. Virtual time. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "runtime/power/sensors.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <math.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const uint64_t FROM_NS = 90 * NS_PER_S, RANGE_UJ = 262143328850, TICK_NS = 20 * NS_PER_MS;
static char root[64];

/* The file keeps its inode, as those of sysfs do. It is cut after the write: some file systems write a file out that
 * was emptied first. */
static void put(const char *folder, const char *file, const char *text)
{
    char path[192];
    (void)snprintf(path, sizeof path, "%s/%s", root, folder);
    if (mkdir(path, 0755) != 0) assert_int_equal(errno, EEXIST);
    (void)snprintf(path, sizeof path, "%s/%s/%s", root, folder, file);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(ftruncate(fd, (off_t)strlen(text)), 0);
    close(fd);
}

static void put_number(const char *folder, const char *file, uint64_t value)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%llu\n", (unsigned long long)value);
    put(folder, file, text);
}

static void zone(const char *folder, const char *name, uint64_t energy_uj)
{
    put(folder, "name", name);
    put_number(folder, "energy_uj", energy_uj);
    put_number(folder, "max_energy_range_uj", RANGE_UJ);
    put_number(folder, "constraint_0_power_limit_uw", 225000000);
}

static int tree_make(void **state)
{
    (void)state;
    (void)snprintf(root, sizeof root, "/tmp/powercap_XXXXXX");
    if (!mkdtemp(root) || chmod(root, 0755) != 0) return -1;
    zone("intel-rapl:0", "package-0\n", 1000000);
    zone("intel-rapl:0:0", "core\n", 500000);
    zone("intel-rapl:0:1", "dram\n", 500000);
    zone("intel-rapl:0:2", "package-0-die-0\n", 500000);
    zone("intel-rapl:1", "package-1\n", RANGE_UJ - 1000000);
    zone("intel-rapl:2", "psys\n", 7000000);
    zone("intel-rapl-mmio:0", "package-0\n", 1000000);
    put("intel-rapl", "enabled", "1\n");
    return 0;
}

static int tree_remove(void **state)
{
    char command[96];
    (void)state;
    (void)snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

static struct sensor *open_tree(void)
{
    struct sensor *sensor = NULL;
    struct error err = {""};
    enum status status = sensor_rapl_open(root, &sensor, &err);
    if (status != ST_OK) print_message("%s\n", err.message);
    assert_int_equal(status, ST_OK);
    return sensor;
}

/* 150 W and 90 W for 30 s; package 1 wraps on the way. Parts and wholes move too and are not counted. */
static void test_sensor_rapl_sums_packages(void **state)
{
    struct sensor_reading reading, last = {0};
    struct error err;
    (void)state;
    struct sensor *sensor = open_tree();
    assert_string_equal(sensor->name, "RAPL, 2 CPU packages");
    assert_true(fabs(sensor->full_w - 450) < 1e-9);
    for (uint64_t tick = 0; tick <= 1500; tick++) {
        put_number("intel-rapl:0", "energy_uj", 1000000 + tick * 3000000);
        put_number("intel-rapl:0:0", "energy_uj", 500000 + tick * 2000000);
        put_number("intel-rapl:0:2", "energy_uj", 500000 + tick * 2000000);
        put_number("intel-rapl:1", "energy_uj", (RANGE_UJ - 1000000 + tick * 1800000) % (RANGE_UJ + 1));
        put_number("intel-rapl:2", "energy_uj", tick * 9000000);
        put_number("intel-rapl-mmio:0", "energy_uj", tick * 3000000);
        assert_int_equal(sensor_read(sensor, FROM_NS + tick * TICK_NS, &reading, &err), ST_OK);
        if (reading.changes != last.changes && last.changes)
            assert_int_equal((reading.energy_uj - last.energy_uj) * 1000 / (reading.published_ns - last.published_ns),
                             240);
        last = reading;
    }
    assert_int_equal(reading.energy_uj, UINT64_C(1496) * 4800000); /* the last tenth of a second is to come */
    assert_int_equal(reading.changes, 300);
    assert_true(reading.flags == 0 && reading.breaks == 1);
    sensor_close(sensor);
}

/* P5 where a file can do it: it cannot be read for 3 s, is garbage, stands still, starts again. */
static void test_sensor_rapl_faults(void **state)
{
    struct sensor_reading reading = {0};
    struct error err;
    uint64_t tick = 0, failures = 0, frozen_changes = 0;
    const char *bad[] = {"", "\n", "-5\n", "12x\n", "99999999999999999999\n", "0x10\n"};
    (void)state;
    tree_make(NULL);
    put_number("intel-rapl:1", "energy_uj", 0);
    struct sensor *sensor = open_tree();
    for (; tick < 3000; tick++) {
        bool dropout = tick >= 500 && tick < 650, frozen = tick >= 1000 && tick < 1150, again = tick >= 1500;
        uint64_t uj = 40000000000 + (frozen ? 1000 : tick) * 1000000;
        put_number("intel-rapl:0", "energy_uj", uj);
        if (dropout) put("intel-rapl:0", "energy_uj", bad[tick % 6]);
        put_number("intel-rapl:1", "energy_uj", (again ? tick - 1500 : tick) * 2000000);
        enum status status = sensor_read(sensor, FROM_NS + tick * TICK_NS, &reading, &err);
        if (status != ST_OK) failures++;
        assert_true(status == ST_OK || (dropout && strstr(err.message, "intel-rapl:0")));
        if (tick == 1001) frozen_changes = reading.changes;
        if (frozen) assert_in_range(reading.changes, 0, frozen_changes ? frozen_changes + 1 : 1000);
    }
    assert_int_equal(failures, 150);
    assert_int_equal(reading.breaks, 2);
    uint64_t lost_uj = UINT64_C(2999) * 3000000 - reading.energy_uj;
    assert_in_range(lost_uj, 1, 2 * 3 * 2000000 + 4 * 3000000); /* the reset's, and what is not published yet */
    sensor_close(sensor);
    tree_remove(NULL);
}

static uint32_t files_open(void)
{
    uint32_t count = 0;
    for (int fd = 0; fd < 256; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void assert_none(const char *reason)
{
    struct sensor *sensor = NULL;
    struct error err = {""};
    uint32_t before = files_open();
    assert_int_equal(sensor_rapl_open(root, &sensor, &err), ST_NOTFOUND);
    assert_non_null(strstr(err.message, reason));
    assert_null(sensor);
    assert_int_equal(files_open(), before);
}

/* Whether root may read what its mode forbids. By capability, not by becoming somebody else: that one might not reach
 * the folder at all. */
static void override_modes(bool may)
{
    const uint32_t bits = 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    assert_int_equal(syscall(SYS_capget, &header, data), 0);
    data[0].effective = may ? data[0].effective | (bits & data[0].permitted) : data[0].effective & ~bits;
    assert_int_equal(syscall(SYS_capset, &header, data), 0);
}

/* Nobody may read package 1: no sensor at all. */
static void test_sensor_rapl_says_why_there_is_none(void **state)
{
    char path[128];
    (void)state;
    tree_make(NULL);
    (void)snprintf(path, sizeof path, "%s/intel-rapl:1/energy_uj", root);
    assert_int_equal(chmod(path, 0), 0);
    override_modes(false);
    assert_none("energy_uj of intel-rapl:1: Permission denied (let the server's user read it)");
    override_modes(true);
    assert_int_equal(chmod(path, 0644), 0);
    put("intel-rapl:1", "energy_uj", "much\n");
    assert_none("intel-rapl:1: Invalid argument");
    assert_int_equal(unlink(path), 0);
    assert_none("intel-rapl:1: No such file");
    put("intel-rapl:1", "name", "dram\n");
    put("intel-rapl:0", "name", "core\n");
    assert_none("no CPU package");
    tree_remove(NULL);
    assert_none("no RAPL: powercap: No such file");
}

/* Without limits full_w is unknown, not a part; without a range a step back is a reset; 17 packages are too many. */
static void test_sensor_rapl_odd_trees(void **state)
{
    char path[128];
    struct sensor *sensor = NULL;
    struct sensor_reading reading = {0};
    struct error err;
    (void)state;
    tree_make(NULL);
    for (uint32_t p = 0; p < 2; p++) {
        (void)snprintf(path, sizeof path, "intel-rapl:%u", p);
        put(path, "constraint_0_power_limit_uw", "\n");
        sensor = open_tree();
        assert_true(sensor->full_w <= 0);
        sensor_close(sensor);
        put_number(path, "constraint_0_power_limit_uw", 225000000);
    }
    put("intel-rapl:1", "max_energy_range_uj", "\n");
    sensor = open_tree();
    for (uint64_t tick = 0; tick < 100; tick++) {
        put_number("intel-rapl:0", "energy_uj", tick * 1000000);
        put_number("intel-rapl:1", "energy_uj", (RANGE_UJ - 50000000 + tick * 1000000) % (RANGE_UJ + 1));
        assert_int_equal(sensor_read(sensor, FROM_NS + tick * TICK_NS, &reading, &err), ST_OK);
    }
    assert_true(reading.breaks == 2 && reading.energy_uj < 2 * 99 * 1000000);
    sensor_close(sensor);
    for (uint32_t p = 0; p <= RAPL_PACKAGES_MAX; p++) {
        (void)snprintf(path, sizeof path, "intel-rapl:%u", p);
        zone(path, "package-9\n", 0);
    }
    sensor = NULL;
    assert_int_equal(sensor_rapl_open(root, &sensor, &err), ST_LIMIT);
    assert_null(sensor);
    tree_remove(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sensor_rapl_sums_packages, tree_make, tree_remove),
        cmocka_unit_test(test_sensor_rapl_faults),
        cmocka_unit_test(test_sensor_rapl_says_why_there_is_none),
        cmocka_unit_test(test_sensor_rapl_odd_trees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
