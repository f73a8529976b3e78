/* Keys and tenants. */
#include "tests/unit/unit.h"

#include "server/auth.h"

#include <unistd.h>

static char path[] = "/tmp/millrace-keys-XXXXXX";

static void write_keys(const char *text)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static void test_auth_without_keys_everybody_is_default(void **state)
{
    (void)state;
    struct config config = {0};
    struct auth *auth;
    struct error err = {""};
    uint32_t tenant = 99;
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(auth_check(auth, NULL, NULL, &tenant), AUTH_OK);
    assert_int_equal(tenant, 0);
    assert_string_equal(auth_tenant_name(auth, tenant), "default");
    auth_destroy(auth);
}

static void test_auth_keys_and_tenants(void **state)
{
    (void)state;
    char flag[] = "sk-flag";
    struct config config = {.api_keys = {{flag}, 1}, .api_key_file = path};
    write_keys("# comment\n\n  alice:sk-a \r\nbob:sk-b\nalice:sk-a2\nsk-plain\ndefault:with:colon");
    struct auth *auth;
    struct error err = {""};
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    const struct {
        const char *authorization, *key, *tenant;
        enum auth_result result;
    } cases[] = {
        {"Bearer sk-flag", NULL, "default", AUTH_OK},
        {"bearer  sk-a", NULL, "alice", AUTH_OK},
        {"Bearer sk-a2", NULL, "alice", AUTH_OK},
        {NULL, "sk-b", "bob", AUTH_OK},
        {NULL, "sk-plain", "default", AUTH_OK},
        {NULL, "with:colon", "default", AUTH_OK},
        {NULL, NULL, NULL, AUTH_MISSING},
        {"Bearer ", NULL, NULL, AUTH_MISSING},
        {NULL, "", NULL, AUTH_MISSING},
        {"Bearer sk-", NULL, NULL, AUTH_WRONG},
        {"Bearer sk-aa", NULL, NULL, AUTH_WRONG},
        {"Basic sk-a", NULL, NULL, AUTH_WRONG},
        {"sk-a", NULL, NULL, AUTH_WRONG},
        {"Bearer alice:sk-a", NULL, NULL, AUTH_WRONG},
        {"Bearer wrong", "sk-a", NULL, AUTH_WRONG},
        {"Bearer sk-a ", NULL, NULL, AUTH_WRONG},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t tenant = 99;
        assert_int_equal(auth_check(auth, cases[i].authorization, cases[i].key, &tenant), cases[i].result);
        if (cases[i].tenant)
            assert_string_equal(auth_tenant_name(auth, tenant), cases[i].tenant);
        else
            assert_int_equal(tenant, 99);
    }
    assert_int_equal(auth_tenants(auth), 3);
    auth_destroy(auth);
}

static void test_auth_reload_keeps_indices_and_survives_bad_files(void **state)
{
    (void)state;
    struct config config = {.api_key_file = path};
    struct auth *auth;
    struct error err = {""};
    uint32_t bob, tenant;
    write_keys("alice:k1\nbob:k2\n");
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(auth_check(auth, NULL, "k2", &bob), AUTH_OK);
    static const char *const bad[] = {"",     "# nothing\n",       "bad name!:k-3\n",
                                      "x:\n", "carol:has space\n", "carol:\x01\n"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_keys(bad[i]);
        err.message[0] = '\0';
        assert_int_not_equal(auth_reload(auth, &config, &err), ST_OK);
        assert_true(err.message[0] != '\0');
        assert_null(strstr(err.message, "k-3")); /* never a line's content; no path that mkstemp makes has it */
        assert_int_equal(auth_check(auth, NULL, "k2", &tenant), AUTH_OK);
    }
    write_keys("bob:k9\ncarol:k4\n");
    assert_int_equal(auth_reload(auth, &config, &err), ST_OK);
    assert_int_equal(auth_check(auth, NULL, "k1", &tenant), AUTH_WRONG);
    assert_int_equal(auth_check(auth, NULL, "k9", &tenant), AUTH_OK);
    assert_int_equal(tenant, bob);
    auth_destroy(auth);
}

static void test_auth_no_file_does_not_open_the_door(void **state)
{
    (void)state;
    char missing[] = "/tmp/millrace-there-is-no-such-file";
    struct config config = {.api_key_file = missing};
    struct auth *auth = NULL;
    struct error err = {""};
    assert_int_equal(auth_create(&config, &auth, &err), ST_IO);
    assert_null(auth);
    config.api_key_file = path;
    write_keys("\n");
    assert_int_equal(auth_create(&config, &auth, &err), ST_INVAL);
    assert_null(auth);
}

static void test_auth_admin_keys_are_apart(void **state)
{
    (void)state;
    char flag[] = "sk-flag", admin_flag[] = "adm-flag";
    struct config config = {.api_keys = {{flag}, 1}};
    struct auth *auth = NULL;
    struct error err = {""};
    uint32_t tenant = 0;
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(auth_check_admin(auth, "Bearer sk-flag", NULL), AUTH_OFF); /* nobody, whatever the key */
    assert_int_equal(auth_check_admin(auth, NULL, NULL), AUTH_OFF);
    auth_destroy(auth);
    config.admin_keys = (struct config_list){{admin_flag}, 1};
    config.admin_key_file = path;
    write_keys("# of the night shift\nadm-file\nadm:colon\n");
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(auth_check_admin(auth, "Bearer adm-flag", NULL), AUTH_OK);
    assert_int_equal(auth_check_admin(auth, NULL, "adm-file"), AUTH_OK);
    assert_int_equal(auth_check_admin(auth, NULL, "adm:colon"), AUTH_OK); /* no tenants here: the whole line */
    assert_int_equal(auth_check_admin(auth, NULL, "colon"), AUTH_WRONG);
    assert_int_equal(auth_check_admin(auth, "Bearer sk-flag", NULL), AUTH_WRONG);
    assert_int_equal(auth_check_admin(auth, NULL, NULL), AUTH_MISSING);
    assert_int_equal(auth_check(auth, "Bearer adm-flag", NULL, &tenant), AUTH_WRONG);
    assert_int_equal(auth_check(auth, "Bearer sk-flag", NULL, &tenant), AUTH_OK);
    write_keys("adm-new\n");
    assert_int_equal(auth_reload(auth, &config, &err), ST_OK);
    assert_int_equal(auth_check_admin(auth, NULL, "adm-file"), AUTH_WRONG);
    assert_int_equal(auth_check_admin(auth, NULL, "adm-new"), AUTH_OK);
    write_keys("# none\n");
    config.admin_keys.count = 0;
    assert_int_equal(auth_reload(auth, &config, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "no admin calls")); /* it would close a door, not open one */
    assert_int_equal(auth_check_admin(auth, NULL, "adm-new"), AUTH_OK);
    auth_destroy(auth);
}

int main(void)
{
    int fd = mkstemp(path);
    if (fd < 0) return 77;
    close(fd);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_auth_admin_keys_are_apart),
        cmocka_unit_test(test_auth_without_keys_everybody_is_default),
        cmocka_unit_test(test_auth_keys_and_tenants),
        cmocka_unit_test(test_auth_reload_keeps_indices_and_survives_bad_files),
        cmocka_unit_test(test_auth_no_file_does_not_open_the_door),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
