/* Directories from a ledger: versions, bad lines, a ledger that fails. */
#include "tests/unit/unit.h"

#include "server/billing/directory_load.h"

struct fake {
    const char *lines[4];
    uint64_t version;
    enum status version_status, read_status;
    unsigned reads;
};

static enum status fake_version(void *state, uint64_t *version, struct error *err)
{
    struct fake *fake = state;
    if (fake->version_status != ST_OK) return error_set(err, fake->version_status, "away");
    *version = fake->version;
    return ST_OK;
}

static enum status fake_read(void *state, void (*visit)(void *visitor, const char *line, size_t length), void *visitor,
                             uint64_t *version, struct error *err)
{
    struct fake *fake = state;
    fake->reads++;
    for (int i = 0; i < 4 && fake->lines[i]; i++) visit(visitor, fake->lines[i], strlen(fake->lines[i]));
    if (fake->read_status != ST_OK) return error_set(err, fake->read_status, "cut off");
    *version = fake->version;
    return ST_OK;
}

#define ONE "{\"id\":\"a:one\",\"kind\":\"account\",\"name\":\"one\",\"state\":\"open\"}"
#define BAD "{\"id\":\"a:bad\",\"kind\":\"account\",\"name\":\"bad\",\"state\":\"ajar\"}"

static void test_directory_load_follows_versions_and_keeps_the_last_good(void **state)
{
    (void)state;
    struct fake fake = {.lines = {ONE}, .version = 0};
    const struct ledger_client_calls calls = {.directory_version = fake_version, .directory_read = fake_read};
    const struct ledger_client client = {.calls = &calls, .state = &fake};
    struct directory *directory = NULL;
    struct error err = {""};
    uint64_t version = 0;
    assert_int_equal(directory_load(&client, true, &version, &directory, &err), ST_OK);
    assert_non_null(directory); /* the first one, though of version 0 */
    assert_int_equal(directory_accounts(directory), 1);
    directory_destroy(directory);
    assert_int_equal(directory_load(&client, false, &version, &directory, &err), ST_OK);
    assert_null(directory);
    assert_int_equal(fake.reads, 1);
    fake.version = 5;
    fake.lines[1] = BAD;
    directory = NULL;
    assert_int_equal(directory_load(&client, false, &version, &directory, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "a:bad"));
    assert_null(directory);
    assert_int_equal(version, 0); /* is tried again */
    fake.lines[1] = NULL;
    fake.read_status = ST_IO; /* half of the lines came */
    assert_int_equal(directory_load(&client, false, &version, &directory, &err), ST_IO);
    fake.read_status = ST_OK;
    fake.version_status = ST_TIMEOUT;
    assert_int_equal(directory_load(&client, false, &version, &directory, &err), ST_TIMEOUT);
    assert_null(directory);
    assert_int_equal(version, 0);
    fake.version_status = ST_OK;
    assert_int_equal(directory_load(&client, false, &version, &directory, &err), ST_OK);
    assert_non_null(directory);
    assert_int_equal(version, 5);
    directory_destroy(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_directory_load_follows_versions_and_keeps_the_last_good),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
