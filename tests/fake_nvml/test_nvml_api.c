/* Opening NVML: a whole library, an old one without an energy counter, one that lacks what all have, and none. One
 * program each (CMakeLists.txt). And what nvml_api.h declares against the real header, where the machine has it. */
#include "tests/unit/unit.h"

#include "runtime/power/nvml_api.h"
#include "runtime/power/sensors.h"
#include "tests/fake_nvml/steer.h"

#if __has_include(<nvml.h>)
#include <nvml.h>
/* Never called: each argument list is compiled twice. */
#define SUITS(member, symbol, arguments)                                                                               \
    _Static_assert(sizeof(((const struct nvml_table *)0)->member arguments) == sizeof(symbol arguments), #symbol)
#define SAME_MEMBER(ours, member, theirs, their_member)                                                                \
    _Static_assert(offsetof(ours, member) == offsetof(theirs, their_member) &&                                         \
                       sizeof(((ours *)0)->member) == sizeof(((theirs *)0)->their_member),                             \
                   #their_member)
#define ANY ((void *)0)
SUITS(init, nvmlInit_v2, ());
SUITS(shutdown, nvmlShutdown, ());
SUITS(error_string, nvmlErrorString, (0));
SUITS(devices, nvmlDeviceGetCount_v2, (ANY));
SUITS(device_by_idx, nvmlDeviceGetHandleByIndex_v2, (0, ANY));
SUITS(device_by_pci, nvmlDeviceGetHandleByPciBusId_v2, (ANY, ANY));
SUITS(fields, nvmlDeviceGetFieldValues, (ANY, 1, ANY));
SUITS(power_mw, nvmlDeviceGetPowerUsage, (ANY, ANY));
SUITS(energy_mj, nvmlDeviceGetTotalEnergyConsumption, (ANY, ANY));
SUITS(limit_mw, nvmlDeviceGetEnforcedPowerLimit, (ANY, ANY));
SUITS(limits_mw, nvmlDeviceGetPowerManagementLimitConstraints, (ANY, ANY, ANY));
SUITS(events_create, nvmlEventSetCreate, (ANY));
SUITS(events_free, nvmlEventSetFree, (ANY));
SUITS(events_supported, nvmlDeviceGetSupportedEventTypes, (ANY, ANY));
SUITS(events_register, nvmlDeviceRegisterEvents, (ANY, 0, ANY));
SUITS(events_wait, nvmlEventSetWait_v2, (ANY, ANY, 0));
SAME_MEMBER(struct nvml_field, id, nvmlFieldValue_t, fieldId);
SAME_MEMBER(struct nvml_field, scope, nvmlFieldValue_t, scopeId);
SAME_MEMBER(struct nvml_field, value_type, nvmlFieldValue_t, valueType);
SAME_MEMBER(struct nvml_field, result, nvmlFieldValue_t, nvmlReturn);
SAME_MEMBER(struct nvml_field, value, nvmlFieldValue_t, value);
SAME_MEMBER(struct nvml_event, device, nvmlEventData_t, device);
SAME_MEMBER(struct nvml_event, type, nvmlEventData_t, eventType);
SAME_MEMBER(struct nvml_event, data, nvmlEventData_t, eventData);
_Static_assert(sizeof(struct nvml_field) == sizeof(nvmlFieldValue_t), "field");
_Static_assert(sizeof(struct nvml_event) == sizeof(nvmlEventData_t), "event");
_Static_assert(NVML_OK == (int)NVML_SUCCESS && NVML_NOT_SUPPORTED == (int)NVML_ERROR_NOT_SUPPORTED, "results");
_Static_assert(NVML_TIMED_OUT == (int)NVML_ERROR_TIMEOUT && NVML_GPU_LOST == (int)NVML_ERROR_GPU_IS_LOST, "results");
_Static_assert(NVML_TYPE_U32 == (int)NVML_VALUE_TYPE_UNSIGNED_INT, "types");
_Static_assert(NVML_FIELD_POWER_INSTANT == NVML_FI_DEV_POWER_INSTANT, "fields");
#ifdef NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
_Static_assert(NVML_FIELD_RECOVERY_ACTION == NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, "fields");
#endif
_Static_assert(NVML_EVENT_ECC_DOUBLE == nvmlEventTypeDoubleBitEccError, "events");
_Static_assert(NVML_EVENT_XID == nvmlEventTypeXidCriticalError, "events");
#endif

#ifdef NVML_none
static void test_nvml_api_says_that_there_is_none(void **state)
{
    const struct nvml_table *table = NULL;
    struct sensor *sensor = NULL;
    struct error err = {""};
    (void)state;
    if (nvml_api_open(&table, &err) == ST_OK) skip(); /* a machine with a driver */
    assert_non_null(strstr(err.message, "no NVML"));
    assert_non_null(strstr(err.message, "libnvidia-ml.so.1"));
    assert_null(table);
    assert_int_equal(sensor_nvml_open(NULL, 0, &sensor, &err), ST_NOTFOUND);
    assert_null(sensor);
}
#elif defined NVML_broken
static void test_nvml_api_names_what_is_missing(void **state)
{
    const struct nvml_table *table = NULL;
    struct error err = {""};
    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(nvml_api_open(&table, &err), ST_NOTFOUND);
        assert_non_null(strstr(err.message, "nvmlDeviceGetPowerUsage"));
        assert_null(table);
    }
}
#else
static void test_nvml_api_opens(void **state)
{
    const struct nvml_table *table = NULL, *again = NULL;
    struct error err = {""};
    (void)state;
    assert_int_equal(nvml_api_open(&table, &err), ST_OK);
    assert_int_equal(nvml_api_open(&again, &err), ST_OK);
    assert_ptr_equal(again, table);
#ifdef NVML_old
    assert_true(!table->energy_mj && !table->limit_mw && !table->limits_mw);
#endif
#define HAS(needed, name, symbol, result, parameters)                                                                  \
    if (needed) assert_non_null(table->name);
    NVML_MAP(HAS)
}

/* What the watcher of hardware errors calls. */
static void test_nvml_api_brings_events(void **state)
{
    const struct nvml_table *nvml;
    struct nvml_device *gpu = NULL, *same = NULL;
    struct nvml_events *events;
    struct nvml_event event;
    struct nvml_field field = {.id = NVML_FIELD_RECOVERY_ACTION};
    unsigned long long types;
    struct error err;
    (void)state;
    steer("gpus 2");
    assert_int_equal(nvml_api_open(&nvml, &err), ST_OK);
    assert_int_equal(nvml->init(), NVML_OK);
    assert_int_equal(nvml->device_by_pci("0000:01:00.0", &gpu), NVML_OK);
    assert_int_equal(nvml->device_by_idx(1, &same), NVML_OK);
    assert_ptr_equal(gpu, same);
    assert_int_equal(nvml->events_create(&events), NVML_OK);
    assert_int_equal(nvml->events_supported(gpu, &types), NVML_OK);
    assert_int_equal(nvml->events_register(gpu, types, events), NVML_OK);
    assert_int_equal(nvml->events_wait(events, &event, 4), NVML_TIMED_OUT);
    steer("xid 79");
    assert_int_equal(nvml->events_wait(events, &event, 4), NVML_OK);
    assert_true(event.type == NVML_EVENT_XID && event.data == 79);
    steer("recovery 2");
    assert_int_equal(nvml->fields(gpu, 1, &field), NVML_OK);
    assert_true(field.result == NVML_OK && field.value.u32 == 2);
    assert_int_equal(nvml->events_free(events), NVML_OK);
    assert_int_equal(nvml->shutdown(), NVML_OK);
}
#endif

#ifdef NVML_old
/* A driver without energy counter and limits: instant power, integrated. */
static void test_nvml_api_old_driver_still_measures(void **state)
{
    struct sensor *sensor;
    struct sensor_reading reading;
    struct error err;
    (void)state;
    steer("gpus 2");
    assert_int_equal(sensor_nvml_open(NULL, 0, &sensor, &err), ST_OK);
    assert_true(sensor->full_w <= 0);
    for (uint64_t tick = 1; tick <= 1500; tick++) {
        steer("work %d", tick % 100 < 50 ? 300 : 200);
        steer("pass 0.02");
        assert_int_equal(sensor_read(sensor, tick * 20000000, &reading, &err), ST_OK);
    }
    double drawn = drawn_j(0) + drawn_j(1), read = (double)reading.energy_uj / 1e6;
    assert_true(reading.flags == SENSOR_INTEGRATED && read > 0.97 * drawn && read < 1.001 * drawn);
    sensor_close(sensor);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifdef NVML_none
        cmocka_unit_test(test_nvml_api_says_that_there_is_none),
#elif defined NVML_broken
        cmocka_unit_test(test_nvml_api_names_what_is_missing),
#else
        cmocka_unit_test(test_nvml_api_opens),
        cmocka_unit_test(test_nvml_api_brings_events),
#endif
#ifdef NVML_old
        cmocka_unit_test(test_nvml_api_old_driver_still_measures),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
