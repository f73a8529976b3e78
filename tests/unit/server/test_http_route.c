/* Routes, refusals and media types. */
#include "tests/unit/unit.h"

#include "server/http_route.h"

static enum route_match find(const char *method, const char *path, const struct route **route, const char **allow)
{
    *route = NULL;
    *allow = NULL;
    return route_find(method, path, strlen(path), route, allow);
}

static void test_http_route_every_route_and_method(void **state)
{
    (void)state;
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"};
    const struct route *route;
    const char *allow;
    for (size_t i = 0; i < routes_count; i++)
        for (size_t k = 0; k < sizeof methods / sizeof methods[0]; k++) {
            char path[64];
            (void)snprintf(path, sizeof path, "%s%s", routes[i].path, routes[i].prefix ? "x" : "");
            enum route_match match = find(methods[k], path, &route, &allow);
            bool fits = routes[i].both      ? k <= 2
                        : routes[i].removes ? k < 2 || k == 4
                        : routes[i].post ? k == 2
                                         : k < 2 || (routes[i].id == ROUTE_PING && k == 2);
            assert_int_equal(match, fits ? ROUTE_FOUND : ROUTE_NO_METHOD);
            assert_ptr_equal(route, &routes[i]);
            assert_string_equal(allow, routes[i].both      ? "GET, HEAD, POST"
                                       : routes[i].removes ? "GET, HEAD, DELETE"
                                       : routes[i].post    ? "POST"
                                                           : "GET, HEAD");
        }
}

static void test_http_route_near_misses_are_unknown(void **state)
{
    (void)state;
    static const char *const paths[] = {
        "",         "/x",      "/v1",      "/v1/",      "/v1/model",     "/v1/models/", "/v1/modelsx",
        "/health/", "/Health", "//health", "/./health", "/v1/../health", "/healthz",    "/v1/chat/completions/"};
    const struct route *route;
    const char *allow;
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
        assert_int_equal(find("GET", paths[i], &route, &allow), ROUTE_NO_PATH);
}

/* An admin key stands for the API key on these, and none of them is open. */
static void test_http_route_admin_ones(void **state)
{
    (void)state;
    uint32_t admin = 0;
    for (size_t i = 0; i < routes_count; i++) {
        assert_int_equal(routes[i].admin, routes[i].id >= ROUTE_ADMIN_MODELS);
        assert_int_equal(routes[i].billing, routes[i].id >= ROUTE_BILLING_LEDGER);
        assert_false(routes[i].admin && (routes[i].open || routes[i].needs_engine));
        admin += routes[i].admin && !routes[i].billing;
    }
    assert_int_equal(admin, 11);
}

/* B3: only these may be asked without a key. */
static void test_http_route_open_ones(void **state)
{
    (void)state;
    for (size_t i = 0; i < routes_count; i++) {
        enum route_id id = routes[i].id;
        bool may_be_open =
            id == ROUTE_HEALTH || id == ROUTE_LIVEZ || id == ROUTE_READYZ || id == ROUTE_PING || id == ROUTE_METRICS ||
            (id >= ROUTE_ROOT && id <= ROUTE_CONSOLE_FILE); /* a page without data */
        assert_int_equal(routes[i].open, may_be_open);
    }
}

static void test_http_route_refusals(void **state)
{
    (void)state;
    for (int refusal = REFUSE_UNKNOWN_URL; refusal <= REFUSE_AUDIT; refusal++) {
        struct api_error error;
        refusal_error((enum refusal)refusal, 1500, &error);
        assert_in_range(error.http_status, 400, 599);
        assert_non_null(error.type);
        assert_true(strlen(error.message) > 10);
        assert_int_equal(error.retry_after_ms, error.http_status == 503 ? 1500 : 0);
    }
}

static void test_http_route_media_types(void **state)
{
    (void)state;
    assert_true(media_type_is_json(NULL));
    assert_true(media_type_is_json("application/json"));
    assert_true(media_type_is_json("APPLICATION/json ; charset=utf-8"));
    assert_true(media_type_is_json("application/merge-patch+json"));
    assert_false(media_type_is_json(""));
    assert_false(media_type_is_json("text/json"));
    assert_false(media_type_is_json("text/plain"));
    assert_false(media_type_is_json("application/jso"));
    assert_false(media_type_is_json("text/plain; application/json"));
    assert_false(media_type_is_json("+json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_route_every_route_and_method),
        cmocka_unit_test(test_http_route_near_misses_are_unknown),
        cmocka_unit_test(test_http_route_open_ones),
        cmocka_unit_test(test_http_route_admin_ones),
        cmocka_unit_test(test_http_route_refusals),
        cmocka_unit_test(test_http_route_media_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
