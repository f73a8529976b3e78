/* The power thread over real meters' code: GPUs of the fake NVML, live and steered by a file, and what --power-sensor
 * says where there is none. Waits until something is seen; the bound of 20 s is for what is broken. */
#include "tests/unit/unit.h"

#include "server/power/power_thread.h"
#include "tests/fake_nvml/steer.h"

#include <time.h>
#include <unistd.h>

static struct power_config config_make(const char *sensor)
{
    return (struct power_config){.sensor = sensor, .idle_w = 180, .clock = clock_system()};
}

static void test_power_nvml_reads_gpus(void **state)
{
    char path[] = "/tmp/fake_nvml_XXXXXX";
    struct power_config config = config_make("nvml");
    struct power *power = NULL;
    struct power_state seen = {.windows = 0};
    struct error err = {""};
    (void)state;
    int fd = mkstemp(path);
    const char text[] = "gpus 2\nwork 300\nlag 0\n";
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, sizeof text - 1), (ssize_t)sizeof text - 1);
    assert_int_equal(setenv("FAKE_NVML_FILE", path, 1), 0);
    assert_int_equal(power_create(&config, &power, &err), ST_OK);
    for (uint32_t i = 0; i < 2000 && seen.windows < 2; i++) {
        (void)nanosleep(&(struct timespec){0, 10000000}, NULL);
        power_read_state(power, &seen);
    }
    assert_string_equal(seen.sensor, "NVML, 2 GPUs");
    assert_true(seen.windows >= 2 && !seen.estimated && seen.read_failures == 0);
    assert_true(seen.idle_w > 0 && seen.full_w == 1400 && seen.watts > 0);
    power_destroy(power);
    assert_int_equal(unsetenv("FAKE_NVML_FILE"), 0);
    close(fd);
    unlink(path);
}

static void test_power_nvml_says_why_not(void **state)
{
    struct power *power = NULL;
    struct error err = {""};
    struct power_config config = config_make("nvml");
    (void)state;
    steer("gpus 0");
    assert_int_equal(power_create(&config, &power, &err), ST_NOTFOUND);
    assert_string_equal(err.message, "--power-sensor nvml: NVML sees no GPU");
    steer("gpus 1");
    steer("limit_result 3");
    assert_int_equal(power_create(&config, &power, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "--power-full"));
    assert_null(power);
    config.full_w = 500; /* what the meter does not tell */
    assert_int_equal(power_create(&config, &power, &err), ST_OK);
    struct power_state seen;
    power_read_state(power, &seen);
    assert_true(seen.full_w == 500);
    power_destroy(power);
    config.sensor = "amperes";
    assert_int_equal(power_create(&config, &power, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "rapl"));
    config.sensor = "rapl";
    enum status status = power_create(&config, &power, &err); /* as the machine has it */
    assert_true(status == ST_OK || (status == ST_NOTFOUND && strstr(err.message, "--power-sensor rapl: ")));
    power_destroy(power);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_nvml_reads_gpus),
        cmocka_unit_test(test_power_nvml_says_why_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
