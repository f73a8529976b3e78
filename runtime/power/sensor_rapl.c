/* CPU packages through powercap: a file a value, in decimal microjoules. The counter moves each millisecond and is
 * polled each 20, so what it shows is of now; it wraps after minutes of load. All packages or none: a sum without one
 * that may not be read would look like room.
 *
 * Source: Documentation/power/powercap/powercap.rst of Linux. */
#include "runtime/power/sensors.h"

#include "runtime/base/mem.h"
#include "runtime/power/meter.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const double WATTS_MAX = 5000; /* of a package; the counter does not spike */

enum { VALUE_CHARS = 64 };

struct package {
    int fd; /* of energy_uj */
    char folder[32];
};

struct sensor_rapl {
    struct sensor sensor; /* first */
    struct meter_sum sum;
    uint32_t count;
    struct package packages[RAPL_PACKAGES_MAX];
    struct meter meters[RAPL_PACKAGES_MAX];
};

/* ---- files ---- */

/* One line without its end. Returns 0 or an errno. */
static int read_line(int fd, char text[VALUE_CHARS])
{
    ssize_t length;
    do {
        length = pread(fd, text, VALUE_CHARS - 1, 0);
    } while (length < 0 && errno == EINTR);
    if (length < 0) return errno;
    text[length] = 0;
    text[strcspn(text, "\n")] = 0;
    return 0;
}

static int read_number(int fd, uint64_t *value)
{
    char text[VALUE_CHARS];
    int failure = read_line(fd, text);
    if (failure) return failure;
    uint64_t sum = 0;
    if (!text[0]) return EINVAL;
    for (const char *at = text; *at; at++) {
        if (*at < '0' || *at > '9' || sum > (UINT64_MAX - 9) / 10) return EINVAL;
        sum = sum * 10 + (uint64_t)(*at - '0');
    }
    *value = sum;
    return 0;
}

static int open_value(int folder_fd, const char *file)
{
    return openat(folder_fd, file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/* Of a value that may be absent: 0 then. */
static uint64_t number_or_0(int folder_fd, const char *file)
{
    uint64_t value = 0;
    int fd = open_value(folder_fd, file);
    if (fd < 0) return 0;
    if (read_number(fd, &value)) value = 0;
    close(fd);
    return value;
}

static bool is_package(int folder_fd)
{
    char name[VALUE_CHARS];
    int fd = open_value(folder_fd, "name");
    if (fd < 0) return false;
    bool package = read_line(fd, name) == 0 && strncmp(name, "package-", 8) == 0;
    close(fd);
    return package;
}

/* ---- the sensor ---- */

static enum status rapl_read(struct sensor *sensor, uint64_t now_ns, struct sensor_reading *reading, struct error *err)
{
    struct sensor_rapl *rapl = (struct sensor_rapl *)sensor;
    const struct package *failed = NULL;
    int failure = 0;
    for (uint32_t p = 0; p < rapl->count; p++) {
        uint64_t uj;
        int result = read_number(rapl->packages[p].fd, &uj);
        if (!result) {
            meter_counter(&rapl->meters[p], now_ns, uj);
        } else if (!failed) {
            failed = &rapl->packages[p];
            failure = result;
        }
    }
    if (failed) return error_set(err, ST_DEVICE, "RAPL: energy_uj of %s: %s", failed->folder, strerror(failure));
    meter_sum_move(&rapl->sum, rapl->meters, rapl->count);
    *reading = rapl->sum.reading;
    return ST_OK;
}

static void rapl_close(struct sensor *sensor)
{
    struct sensor_rapl *rapl = (struct sensor_rapl *)sensor;
    for (uint32_t p = 0; p < rapl->count; p++) close(rapl->packages[p].fd);
    mem_free(rapl);
}

static const struct sensor_ops rapl_ops = {rapl_read, NULL, rapl_close};

static enum status add_package(struct sensor_rapl *rapl, int folder_fd, const char *folder, struct error *err)
{
    uint64_t uj;
    if (rapl->count == RAPL_PACKAGES_MAX)
        return error_set(err, ST_LIMIT, "RAPL: more than %d packages (RAPL_PACKAGES_MAX)", RAPL_PACKAGES_MAX);
    int fd = open_value(folder_fd, "energy_uj");
    int failure = fd < 0 ? errno : read_number(fd, &uj);
    if (failure) {
        if (fd >= 0) close(fd);
        return error_set(err, ST_NOTFOUND, "RAPL: energy_uj of %s: %s%s", folder, strerror(failure),
                         failure == EACCES || failure == EPERM ? " (let the server's user read it)" : "");
    }
    struct package *package = &rapl->packages[rapl->count];
    package->fd = fd;
    (void)snprintf(package->folder, sizeof package->folder, "%.31s", folder);
    struct meter_config config = {WATTS_MAX, number_or_0(folder_fd, "max_energy_range_uj"), true};
    meter_init(&rapl->meters[rapl->count], &config);
    double limit_w = (double)number_or_0(folder_fd, "constraint_0_power_limit_uw") * 1e-6;
    bool told = limit_w > 0 && (rapl->count == 0 || rapl->sensor.full_w > 0);
    rapl->sensor.full_w = told ? rapl->sensor.full_w + limit_w : 0;
    rapl->count++;
    return ST_OK;
}

static enum status add_packages(struct sensor_rapl *rapl, DIR *root, struct error *err)
{
    struct dirent *entry;
    enum status status = ST_OK;
    while (status == ST_OK && (entry = readdir(root))) {
        static const char prefix[] = "intel-rapl:";
        const char *name = entry->d_name;
        if (strncmp(name, prefix, sizeof prefix - 1) != 0 || strchr(name + sizeof prefix - 1, ':')) continue;
        int folder_fd = openat(dirfd(root), name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (folder_fd < 0) continue;
        if (is_package(folder_fd)) status = add_package(rapl, folder_fd, name, err);
        close(folder_fd);
    }
    if (status == ST_OK && !rapl->count) return error_set(err, ST_NOTFOUND, "RAPL: powercap shows no CPU package");
    return status;
}

enum status sensor_rapl_open(const char *root, struct sensor **sensor, struct error *err)
{
    DIR *folder = opendir(root);
    if (!folder) return error_set(err, ST_NOTFOUND, "no RAPL: powercap: %s", strerror(errno));
    struct sensor_rapl *rapl = mem_alloc(1, sizeof *rapl);
    enum status status = rapl ? add_packages(rapl, folder, err) : error_set(err, ST_NOMEM, "no memory for RAPL");
    (void)closedir(folder);
    if (status != ST_OK) {
        if (rapl) rapl_close(&rapl->sensor);
        return status;
    }
    rapl->sensor.ops = &rapl_ops;
    (void)snprintf(rapl->sensor.name, sizeof rapl->sensor.name, "RAPL, %u CPU package%s", rapl->count,
                   rapl->count > 1 ? "s" : "");
    *sensor = &rapl->sensor;
    return ST_OK;
}
