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
    struct caller caller = {.tenant = 99};
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(auth_check(auth, NULL, NULL, &caller), AUTH_OK);
    assert_int_equal(caller.tenant, 0);
    assert_string_equal(caller.tenant_name, "default");
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
        struct caller caller = {.tenant = 99};
        assert_int_equal(auth_check(auth, cases[i].authorization, cases[i].key, &caller), cases[i].result);
        if (cases[i].tenant)
            assert_string_equal(caller.tenant_name, cases[i].tenant);
        else
            assert_int_equal(caller.tenant, 99);
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
    struct caller bob, caller;
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
        assert_int_equal(auth_check(auth, NULL, "k2", &caller), AUTH_OK);
    }
    write_keys("bob:k9\ncarol:k4\n");
    assert_int_equal(auth_reload(auth, &config, &err), ST_OK);
    assert_int_equal(auth_check(auth, NULL, "k1", &caller), AUTH_WRONG);
    assert_int_equal(auth_check(auth, NULL, "k9", &caller), AUTH_OK);
    assert_int_equal(caller.tenant, bob.tenant);
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
    struct caller caller;
    const char *name = NULL;
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(auth_check_admin(auth, "Bearer sk-flag", NULL, &name), AUTH_OFF); /* nobody, whatever the key */
    assert_int_equal(auth_check_admin(auth, NULL, NULL, &name), AUTH_OFF);
    auth_destroy(auth);
    config.admin_keys = (struct config_list){{admin_flag}, 1};
    config.admin_key_file = path;
    write_keys("# of the night shift\nadm-file\nadm:colon\n");
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(auth_check_admin(auth, "Bearer adm-flag", NULL, &name), AUTH_OK);
    assert_int_equal(auth_check_admin(auth, NULL, "adm-file", &name), AUTH_OK);
    assert_int_equal(auth_check_admin(auth, NULL, "adm:colon", &name), AUTH_OK); /* no tenants here: the whole line */
    assert_int_equal(auth_check_admin(auth, NULL, "colon", &name), AUTH_WRONG);
    assert_int_equal(auth_check_admin(auth, "Bearer sk-flag", NULL, &name), AUTH_WRONG);
    assert_int_equal(auth_check_admin(auth, NULL, NULL, &name), AUTH_MISSING);
    assert_int_equal(auth_check(auth, "Bearer adm-flag", NULL, &caller), AUTH_WRONG);
    assert_int_equal(auth_check(auth, "Bearer sk-flag", NULL, &caller), AUTH_OK);
    assert_string_equal(name, "admin");
    write_keys("adm-new\n ada@noc \t adm-ada \n");
    assert_int_equal(auth_reload(auth, &config, &err), ST_OK);
    assert_int_equal(auth_check_admin(auth, NULL, "adm-file", &name), AUTH_WRONG);
    assert_int_equal(auth_check_admin(auth, NULL, "adm-new", &name), AUTH_OK);
    assert_string_equal(name, "admin");
    assert_int_equal(auth_check_admin(auth, NULL, "adm-ada", &name), AUTH_OK);
    assert_string_equal(name, "ada@noc");
    assert_int_equal(auth_check_admin(auth, NULL, "ada@noc", &name), AUTH_WRONG);
    static const char *const bad[] = {"a/b adm-x\n", "ada adm x\n", "ada adm\x01\n"};
    for (size_t i = 0; i < 3; i++) {
        write_keys(bad[i]);
        assert_int_equal(auth_reload(auth, &config, &err), ST_INVAL);
        assert_null(strstr(err.message, "adm")); /* no key is told */
    }
    write_keys("# none\n");
    config.admin_keys.count = 0;
    assert_int_equal(auth_reload(auth, &config, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "no admin calls")); /* it would close a door, not open one */
    assert_int_equal(auth_check_admin(auth, NULL, "adm-new", &name), AUTH_OK);
    auth_destroy(auth);
}

#define HASH_OF_A "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb" /* SHA-256 of "a" */

static struct directory *directory_of(const char *account_state, const char *key_state)
{
    struct directory *directory;
    struct error err = {""};
    char lines[3][300];
    (void)snprintf(lines[0], sizeof lines[0],
                   "{\"id\":\"a:acme\",\"kind\":\"account\",\"name\":\"acme\",\"tenant\":\"t1\",\"state\":\"%s\","
                   "\"rpm\":9}",
                   account_state);
    (void)snprintf(lines[1], sizeof lines[1],
                   "{\"id\":\"k:4a978112ca1bbdca\",\"kind\":\"key\",\"hash\":\"" HASH_OF_A
                   "\",\"account\":\"acme\",\"state\":\"%s\",\"tpm\":5}",
                   key_state);
    (void)snprintf(lines[2], sizeof lines[2],
                   "{\"id\":\"a:bob\",\"kind\":\"account\",\"name\":\"bob\",\"state\":\"%s\"}", account_state);
    assert_int_equal(directory_create(&directory), ST_OK);
    for (int i = 0; i < 3; i++)
        if (directory_add(directory, lines[i], strlen(lines[i]), &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(directory_seal(directory, &err), ST_OK);
    return directory;
}

static void test_auth_directory_keys_beside_files(void **state)
{
    (void)state;
    struct config config = {.api_key_file = path, .key_rpm = 1, .key_tpm = 2, .key_concurrency = 3};
    struct auth *auth;
    struct error err = {""};
    struct caller caller, bob;
    write_keys("bob:k2\n");
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(auth_check(auth, NULL, "k2", &bob), AUTH_OK); /* a server without a directory */
    assert_string_equal(bob.account_name, "bob");
    assert_true(bob.account == account_number("bob") && bob.key != 0 && !bob.in_directory);
    assert_int_equal(bob.limits.rpm, 1);
    auth_directory_expect(auth);
    assert_int_equal(auth_check(auth, NULL, "k2", &caller), AUTH_OK); /* a ledger that is away stops no key of a file */
    assert_int_equal(auth_check(auth, NULL, "a", &caller), AUTH_NOT_YET);
    auth_directory_set(auth, directory_of("open", "active"));
    assert_int_equal(auth_check(auth, NULL, "a", &caller), AUTH_OK);
    assert_string_equal(caller.tenant_name, "t1");
    assert_string_equal(caller.account_name, "acme");
    assert_int_equal(caller.limits.rpm, 9);
    assert_int_equal(caller.limits.tpm, 5);
    assert_int_equal(caller.limits.concurrency, 3);
    assert_int_equal(auth_check(auth, NULL, "k2", &bob), AUTH_OK);
    assert_int_not_equal(bob.tenant, caller.tenant);
    assert_int_equal(auth_check(auth, NULL, "b", &caller), AUTH_WRONG);
    assert_int_equal(auth_check(auth, NULL, "a", &caller), AUTH_OK);
    assert_false(auth_has_stopped(auth, &caller) || auth_has_stopped(auth, &bob));
    auth_directory_set(auth, directory_of("open", "revoked"));
    assert_true(auth_has_stopped(auth, &caller));
    assert_false(auth_has_stopped(auth, &bob));
    assert_int_equal(auth_check(auth, NULL, "a", &caller), AUTH_REVOKED);
    auth_directory_set(auth, directory_of("closed", "active"));
    assert_int_equal(auth_check(auth, NULL, "a", &caller), AUTH_CLOSED);
    assert_int_equal(auth_check(auth, NULL, "k2", &caller), AUTH_CLOSED); /* the account of the file's tenant */
    assert_true(auth_has_stopped(auth, &caller) && auth_has_stopped(auth, &bob));
    auth_destroy(auth);
}

/* A directory with keys closes a server that asked for none; without keys it leaves it open. */
static void test_auth_directory_of_an_open_server(void **state)
{
    (void)state;
    struct config config = {0};
    struct auth *auth;
    struct directory *empty;
    struct error err = {""};
    struct caller caller;
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    auth_directory_expect(auth);
    assert_int_equal(auth_check(auth, NULL, NULL, &caller), AUTH_NOT_YET); /* else an absent directory would open it */
    assert_int_equal(directory_create(&empty), ST_OK);
    assert_int_equal(directory_seal(empty, &err), ST_OK);
    auth_directory_set(auth, empty);
    assert_int_equal(auth_check(auth, NULL, NULL, &caller), AUTH_OK);
    assert_string_equal(caller.account_name, "default");
    assert_true(caller.key == 0);
    auth_directory_set(auth, directory_of("open", "revoked"));
    assert_int_equal(auth_check(auth, NULL, NULL, &caller), AUTH_MISSING);
    assert_int_equal(auth_check(auth, NULL, "x", &caller), AUTH_WRONG);
    auth_destroy(auth);
}

/* More tenants than there are indexes: each keeps its name, some share an index. */
static void test_auth_more_tenants_than_indexes(void **state)
{
    (void)state;
    enum { ACCOUNTS = AUTH_TENANTS_MAX + 100 };
    struct config config = {0};
    struct auth *auth;
    struct directory *directory;
    struct error err = {""};
    struct caller caller;
    char key[32], line[400];
    assert_int_equal(auth_create(&config, &auth, &err), ST_OK);
    assert_int_equal(directory_create(&directory), ST_OK);
    for (int i = 0; i < ACCOUNTS; i++) {
        struct directory_account account = {.open = true};
        struct directory_key line_key = {.active = true};
        char id[DIRECTORY_ID_MAX + 1];
        struct buf out;
        buf_init(&out, 0);
        (void)snprintf(account.name, sizeof account.name, "n%d", i);
        (void)snprintf(line_key.account_name, sizeof line_key.account_name, "n%d", i);
        (void)snprintf(key, sizeof key, "key-%d", i);
        key_hash(key, strlen(key), line_key.hash);
        directory_account_line(&account, &out, id);
        assert_int_equal(directory_add(directory, out.data, out.length, &err), ST_OK);
        buf_clear(&out);
        directory_key_line(&line_key, &out, id);
        assert_int_equal(directory_add(directory, out.data, out.length, &err), ST_OK);
        buf_free(&out);
    }
    assert_int_equal(directory_seal(directory, &err), ST_OK);
    auth_directory_set(auth, directory);
    for (int i = 0; i < ACCOUNTS; i++) {
        (void)snprintf(key, sizeof key, "key-%d", i);
        (void)snprintf(line, sizeof line, "n%d", i);
        assert_int_equal(auth_check(auth, NULL, key, &caller), AUTH_OK);
        assert_string_equal(caller.tenant_name, line);
        assert_true(caller.tenant < AUTH_TENANTS_MAX);
    }
    assert_int_equal(auth_tenants(auth), AUTH_TENANTS_MAX);
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
        cmocka_unit_test(test_auth_directory_keys_beside_files),
        cmocka_unit_test(test_auth_directory_of_an_open_server),
        cmocka_unit_test(test_auth_more_tenants_than_indexes),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
