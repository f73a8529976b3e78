/* The provider of files, called as its thread does, with times as arguments; and the threads themselves. */
#include "tests/unit/unit.h"

#include "runtime/base/clock.h"
#include "server/power/signal_providers.h"

#include <math.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define T INT64_C(1763892000000) /* 2025-11-23T10:00:00Z */
enum { SLOT = SIGNAL_SLOT_MS };

struct rig {
    char folder[64], path[96], other[96];
    struct signal_spec spec;
    struct signals *signals;
    struct signal_ear ear;
    void *feed;
};

static void put_at(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static void rig_start(struct rig *rig, const char *text, const char *names)
{
    struct signal_config config = {.default_cap_w = 0};
    struct signal_source source = {"file", 0, 1000, 1, true};
    struct error err = {""};
    char typed[192];
    *rig = (struct rig){.folder = "/tmp/signal_file_XXXXXX"};
    assert_non_null(mkdtemp(rig->folder));
    (void)snprintf(rig->path, sizeof rig->path, "%s/power.csv", rig->folder);
    (void)snprintf(rig->other, sizeof rig->other, "%s/other", rig->folder);
    (void)snprintf(typed, sizeof typed, "file:%s,period=1%s", rig->path, names);
    if (text) put_at(rig->path, text);
    assert_int_equal(signal_spec_read(typed, 0, &rig->spec, &err), ST_OK);
    assert_int_equal(signal_create(&config, &rig->signals, &err), ST_OK);
    signal_set_nameplate(rig->signals, 100);
    assert_int_equal(signal_register(rig->signals, &source, &rig->ear.source, &err), ST_OK);
    rig->ear.signals = rig->signals;
    rig->ear.spec = &rig->spec;
    assert_int_equal(signal_file.open(&rig->ear, &rig->feed, &err), ST_OK);
}

static void rig_stop(struct rig *rig)
{
    signal_file.close(rig->feed);
    signal_destroy(rig->signals);
    unlink(rig->path);
    unlink(rig->other);
    rmdir(rig->folder);
}

static struct power_slot look(struct rig *rig, int64_t now_ms)
{
    struct power_slot node;
    assert_in_range(signal_file.look(rig->feed, now_ms), 1, 1000);
    signal_at(rig->signals, now_ms, now_ms, &node);
    return node;
}

static struct signal_state shown(struct rig *rig, int64_t now_ms)
{
    struct signal_state state;
    signal_read_state(rig->signals, rig->ear.source, now_ms, &state);
    return state;
}

/* Written, renamed, unreadable, gone, and back. */
static void test_signal_file_follows(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, "cap_w,price_kwh\n60,0.3\n", "");
    struct power_slot node = look(&rig, T);
    assert_true(node.have == (SLOT_CAP | SLOT_PRICE) && node.cap_w == 60 && node.price_kwh == 0.3);
    assert_true(look(&rig, T + 5 * (int64_t)SLOT + 1).cap_w == 60); /* holds, quarter after quarter */
    int64_t now = T + 5 * (int64_t)SLOT + 100;
    put_at(rig.path, "cap_w\n75.5\n");
    assert_true(look(&rig, now += 100).cap_w == 75.5);
    put_at(rig.other, "{\"cap_w\": 50, \"shed_level\": 1}");
    assert_int_equal(rename(rig.other, rig.path), 0);
    node = look(&rig, now += 100);
    assert_true(node.cap_w == 50 && node.shed_level == 1);
    /* Garbage: said with its line; what was told stays, and ages. */
    put_at(rig.path, "cap_w\nplenty\n");
    int64_t bad = now += 100;
    assert_true(look(&rig, bad).cap_w == 50);
    struct signal_state told = shown(&rig, bad);
    assert_true(told.rejected[SIGNAL_UNREADABLE] == 1 && told.age == SIGNAL_FRESH);
    assert_non_null(strstr(told.message, "line 2: cap_w: \"plenty\""));
    for (; now < bad + 5000; now += 100) assert_true(look(&rig, now).cap_w == 50);
    told = shown(&rig, now);
    assert_int_equal(told.age, SIGNAL_STALE);                /* three periods of 1 s have passed */
    assert_in_range(told.rejected[SIGNAL_UNREADABLE], 4, 6); /* counted once a period, not ten times a second */
    /* A value that cannot be: the store refuses all of it. */
    put_at(rig.path, "cap_w,shed_level\n10000,0\n");
    assert_true(look(&rig, now += 100).cap_w == 50);
    assert_int_equal(shown(&rig, now).rejected[SIGNAL_NAMEPLATE], 1);
    assert_true(look(&rig, now += 100).cap_w == 50);
    assert_int_equal(shown(&rig, now).rejected[SIGNAL_NAMEPLATE], 1);
    /* Gone, for good: the cap holds on. */
    assert_int_equal(unlink(rig.path), 0);
    int64_t gone = now;
    for (; now < gone + 20 * 60000; now += 1000) assert_true(look(&rig, now).cap_w == 50);
    told = shown(&rig, now);
    assert_true(told.age == SIGNAL_GONE && told.rejected[SIGNAL_UNREACHABLE] > 0);
    put_at(rig.path, "cap_w\n90\n");
    assert_true(look(&rig, now += 100).cap_w == 90);
    told = shown(&rig, now);
    assert_true(told.age == SIGNAL_FRESH && told.message[0] == '\0');
    assert_int_equal(rename(rig.path, rig.other), 0); /* away, and the very same back */
    (void)look(&rig, now += 100);
    assert_int_equal(rename(rig.other, rig.path), 0);
    (void)look(&rig, now += 100);
    assert_true(look(&rig, now += 10000).cap_w == 90 && shown(&rig, now).age == SIGNAL_FRESH);
    rig_stop(&rig);
    rig_start(&rig, NULL, "");
    assert_int_equal(look(&rig, T).have, 0);
    assert_int_equal(shown(&rig, T).rejected[SIGNAL_UNREACHABLE], 1);
    put_at(rig.path, "cap_w\n90\n");
    assert_true(look(&rig, T + 100).cap_w == 90);
    rig_stop(&rig);
}

/* A plan of many rows, some shorter than a quarter of an hour: each comes at its time, though the store has room for
 * few events. */
static void test_signal_file_plan(void **state)
{
    (void)state;
    struct rig rig;
    char text[8192];
    int length = snprintf(text, sizeof text, "t0_ms,cap_w\n");
    for (int i = 0; i < 200; i++)
        length +=
            snprintf(text + length, sizeof text - (size_t)length, "%lld,%d\n", (long long)(T + i * 20000), 30 + i % 50);
    rig_start(&rig, text, "");
    for (int64_t now = T; now < T + 200 * 20000; now += 900) {
        double watts = look(&rig, now).cap_w, wanted = 30 + (double)((now - T) / 20000 % 50);
        if (now % 20000 > 1900 && watts != wanted)
            fail_msg("%g W, not %g, %lld s in", watts, wanted, (long long)(now - T) / 1000);
    }
    assert_int_equal(look(&rig, T + 200 * 20000 + 1000).have & SLOT_CAP, 0); /* its end */
    rig_stop(&rig);
    rig_start(&rig, "t0_ms,green_w\n1763892000000,10\n1763892900000,20\n", "");
    struct power_slot ahead;
    (void)look(&rig, T);
    signal_at(rig.signals, T + SLOT, T, &ahead);
    assert_true(ahead.green_w == 20 && ahead.quality == SLOT_FORECAST);
    rig_stop(&rig);
}

/* A trace at 900 times its speed: a row of a quarter of an hour lasts a second, and it begins again at its end. */
static void test_signal_file_trace(void **state)
{
    (void)state;
    struct rig rig;
    const char *trace =
        "time_local,solar_pu\n2016-04-08 00:00:00,0.1\n2016-04-08 00:15:00,0.2\n2016-04-08 00:30:00,0.6\n";
    rig_start(&rig, trace, ",scale=100,speed=900");
    const double wanted[] = {10, 20, 60};
    for (int64_t now = T + 50; now < T + 12000; now += 100) {
        struct power_slot node = look(&rig, now);
        assert_int_equal(node.have, SLOT_GREEN);
        if (fabs(node.green_w - wanted[(now - T) / 1000 % 3]) > 1e-9)
            fail_msg("%g W, not %g, %lld ms in", node.green_w, wanted[(now - T) / 1000 % 3], (long long)(now - T));
    }
    assert_true(fabs(look(&rig, T - 1500).green_w - 20) < 1e-9); /* the clock was set back before its begin */
    struct power_slot ahead;
    signal_at(rig.signals, T + SLOT, T - 1500, &ahead);
    assert_true(fabs(ahead.green_w - 30) < 1); /* the mean */
    rig_stop(&rig);
    rig_start(&rig, trace, ",scale=100");
    for (int i = 0; i < 7; i++) assert_true(fabs(look(&rig, T + i * (int64_t)SLOT + 7).green_w - wanted[i % 3]) < 1e-9);
    rig_stop(&rig);
    rig_start(&rig, trace, "");
    assert_int_equal(look(&rig, T).have, 0);
    assert_non_null(strstr(shown(&rig, T).message, "scale="));
    rig_stop(&rig);
}

/* Through the threads of a process, as typed. */
static void test_signal_file_threads(void **state)
{
    (void)state;
    char folder[] = "/tmp/signal_file_XXXXXX", path[64], typed[2][128];
    struct signal_feeds *feeds;
    struct error err = {""};
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/a.csv", folder);
    (void)snprintf(typed[0], sizeof typed[0], "file:%s,share=0.5", path);
    (void)snprintf(typed[1], sizeof typed[1], "file:%s/none", folder);
    const char *specs[] = {typed[0], "fixed:price=0.25", typed[1]};
    struct signal_setup setup = {.specs = specs, .specs_count = 3, .clock = clock_system()};
    put_at(path, "cap_w\n60\n");
    assert_int_equal(signal_feeds_create(&setup, &feeds, &err), ST_OK);
    assert_int_equal(signal_feeds_start(feeds, &err), ST_OK);
    struct signals *signals = signal_feeds_store(feeds);
    struct power_slot node;
    int64_t now_ms = clock_unix_us(clock_system()) / 1000;
    signal_at(signals, now_ms, now_ms, &node);
    assert_true(node.cap_w == 30 && node.price_kwh == 0.25); /* before anything is served */
    assert_int_equal(signal_sources(signals), 2);
    struct signal_state second;
    signal_read_state(signals, 1, now_ms, &second);
    assert_string_equal(second.name, "file-2");
    put_at(path, "cap_w\n80\n");
    for (int i = 0; i < 1000 && node.cap_w != 40; i++) {
        nanosleep(&(struct timespec){0, 10000000}, NULL);
        now_ms = clock_unix_us(clock_system()) / 1000;
        signal_at(signals, now_ms, now_ms, &node);
    }
    assert_true(node.cap_w == 40);
    signal_feeds_destroy(feeds);
    const char *twice[] = {"file:/a,name=x", "file:/b,name=x"};
    setup.specs = twice;
    setup.specs_count = 2;
    assert_int_equal(signal_feeds_create(&setup, &feeds, &err), ST_INVAL);
    unlink(path);
    rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signal_file_follows), cmocka_unit_test(test_signal_file_plan),
        cmocka_unit_test(test_signal_file_trace), cmocka_unit_test(test_signal_file_threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
