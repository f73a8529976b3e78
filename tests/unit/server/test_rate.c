/* Rate limits: buckets by hand, then against a slow exact model under random load. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "server/rate.h"

#define MS UINT64_C(1000000)

static struct rates *make(uint32_t keys_max)
{
    struct rates *rates;
    assert_int_equal(rates_create(keys_max, &rates), ST_OK);
    return rates;
}

static void test_rate_requests_a_minute(void **state)
{
    (void)state;
    struct rates *rates = make(10);
    struct rate_limits limits = {.rpm = 3};
    uint32_t retry_ms;
    for (int i = 0; i < 3; i++) assert_int_equal(rate_admit(rates, 1, &limits, 0, 1000 * MS, &retry_ms), RATE_OK);
    assert_int_equal(rate_admit(rates, 1, &limits, 0, 1000 * MS, &retry_ms), RATE_REQUESTS);
    assert_int_equal(retry_ms, 20000);                                                 /* a third of a minute */
    assert_int_equal(rate_admit(rates, 2, &limits, 0, 1000 * MS, &retry_ms), RATE_OK); /* another key's own */
    assert_int_equal(rate_admit(rates, 1, &limits, 0, 20999 * MS, &retry_ms), RATE_REQUESTS);
    assert_int_equal(retry_ms, 1);
    assert_int_equal(rate_admit(rates, 1, &limits, 0, 21000 * MS, &retry_ms), RATE_OK);
    rates_destroy(rates);
}

static void test_rate_tokens_estimated_and_corrected(void **state)
{
    (void)state;
    struct rates *rates = make(10);
    struct rate_limits limits = {.tpm = 6000};
    struct rate_view view;
    uint32_t retry_ms;
    assert_int_equal(rate_admit(rates, 1, &limits, 5000, 0, &retry_ms), RATE_OK);
    assert_int_equal(rate_admit(rates, 1, &limits, 2000, 0, &retry_ms), RATE_TOKENS);
    assert_int_equal(retry_ms, 10000);
    rate_end(rates, 1, 5000, 1000, 0);
    rate_look(rates, 1, &limits, 0, &view);
    assert_int_equal(view.tokens_left, 5000);
    assert_int_equal(view.tokens_reset_ns, 10000 * MS);
    /* more than a bucket: only when it is full, and then in debt */
    assert_int_equal(rate_admit(rates, 1, &limits, 12000, 0, &retry_ms), RATE_TOKENS);
    assert_int_equal(retry_ms, 10000);
    assert_int_equal(rate_admit(rates, 1, &limits, 12000, 10000 * MS, &retry_ms), RATE_OK);
    assert_int_equal(rate_admit(rates, 1, &limits, 1, 10000 * MS, &retry_ms), RATE_TOKENS);
    assert_int_equal(retry_ms, 60010);
    rate_end(rates, 1, 12000, 12100, 10000 * MS); /* counted above the estimate */
    rate_look(rates, 1, &limits, 10000 * MS, &view);
    assert_int_equal(view.tokens_left, 0);
    assert_int_equal(view.tokens_reset_ns, 121000 * MS);
    rates_destroy(rates);
}

static void test_rate_concurrency(void **state)
{
    (void)state;
    struct rates *rates = make(10);
    struct rate_limits limits = {.concurrency = 2};
    uint32_t retry_ms;
    assert_int_equal(rate_admit(rates, 1, &limits, 9, 0, &retry_ms), RATE_OK);
    assert_int_equal(rate_admit(rates, 1, &limits, 9, 0, &retry_ms), RATE_OK);
    assert_int_equal(rate_admit(rates, 1, &limits, 9, 60000 * MS, &retry_ms), RATE_CONCURRENCY);
    rate_end(rates, 1, 9, 9, 60000 * MS);
    assert_int_equal(rate_admit(rates, 1, &limits, 9, 60000 * MS, &retry_ms), RATE_OK);
    rates_destroy(rates);
}

static void test_rate_limits_may_change(void **state)
{
    (void)state;
    struct rates *rates = make(10);
    struct rate_limits limits = {.rpm = 10, .tpm = 100};
    struct rate_view view;
    uint32_t retry_ms;
    assert_int_equal(rate_admit(rates, 1, &limits, 60, 0, &retry_ms), RATE_OK);
    limits = (struct rate_limits){.rpm = 20, .tpm = 30};
    rate_look(rates, 1, &limits, 0, &view);
    assert_int_equal(view.requests_left, 19);
    assert_int_equal(view.tokens_left, 30);
    limits = (struct rate_limits){0};
    assert_int_equal(rate_admit(rates, 1, &limits, 1 << 20, 0, &retry_ms), RATE_OK);
    limits = (struct rate_limits){.tpm = UINT64_MAX};
    assert_int_equal(rate_admit(rates, 1, &limits, 1 << 20, 0, &retry_ms), RATE_OK);
    rate_look(rates, 1, &limits, 0, &view);
    assert_int_equal(view.tokens_limit, RATE_TPM_MAX);
    rates_destroy(rates);
}

static void test_rate_keys_are_forgotten_and_bounded(void **state)
{
    (void)state;
    struct rates *rates = make(1000);
    struct rate_limits limits = {.rpm = 60};
    uint32_t retry_ms;
    for (uint64_t key = 1; key <= 1000; key++) {
        assert_int_equal(rate_admit(rates, key, &limits, 0, 0, &retry_ms), RATE_OK);
        rate_end(rates, key, 0, 0, 0);
    }
    assert_int_equal(rate_admit(rates, 1001, &limits, 0, 0, &retry_ms), RATE_FULL);
    assert_int_equal(rate_admit(rates, 7, &limits, 0, 0, &retry_ms), RATE_OK);            /* runs on */
    assert_int_equal(rate_admit(rates, 1001, &limits, 0, 3000 * MS, &retry_ms), RATE_OK); /* all full again but 7 */
    for (uint64_t key = 2001; key < 2999; key++)
        assert_int_equal(rate_admit(rates, key, &limits, 0, 3000 * MS, &retry_ms), RATE_OK);
    assert_int_equal(rate_admit(rates, 2999, &limits, 0, 3000 * MS, &retry_ms), RATE_FULL);
    rate_end(rates, 7, 0, 0, 3000 * MS); /* is still known */
    rates_destroy(rates);
}

/* A key gets at most a bucket and what the time brings, and when it is told to come again it is neither early nor late.
 */
static void test_rate_is_exact_over_time(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct rates *rates = make(10);
        uint64_t random = seed, start_ms = 12345, now_ms = start_ms, taken = 0;
        struct rate_limits limits = {.tpm = 1 + random_next(&random) % 100000};
        uint32_t retry_ms;
        for (int i = 0; i < 20000; i++) {
            now_ms += random_next(&random) % 7;
            uint64_t tokens = 1 + random_next(&random) % (1 + limits.tpm / 50);
            if (rate_admit(rates, 1, &limits, tokens, now_ms * MS, &retry_ms) == RATE_OK) {
                taken += tokens;
                rate_end(rates, 1, tokens, tokens, now_ms * MS);
            } else {
                uint64_t again_ms = now_ms + retry_ms;
                struct rate_view view;
                rate_look(rates, 1, &limits, (again_ms - 1) * MS, &view);
                assert_true(view.tokens_left < tokens); /* not a moment too early */
                rate_look(rates, 1, &limits, again_ms * MS, &view);
                assert_true(view.tokens_left >= tokens); /* nor too late */
            }
            /* integer form of taken <= tpm + tpm * passed / minute */
            assert_true(taken * 60000 <= limits.tpm * 60000 + limits.tpm * (now_ms - start_ms));
        }
        rates_destroy(rates);
    }
}

static void test_rate_headers_have_openai_shapes(void **state)
{
    (void)state;
    const struct {
        uint64_t ns;
        const char *text;
    } cases[] = {{0, "0s"},
                 {1, "1ms"},
                 {120 * MS, "120ms"},
                 {999 * MS, "999ms"},
                 {1000 * MS, "1s"},
                 {1001 * MS, "2s"},
                 {60000 * MS, "1m0s"},
                 {360000 * MS, "6m0s"},
                 {3661000 * MS, "1h1m1s"},
                 {3600000 * MS, "1h0m0s"}};
    struct buf out;
    buf_init(&out, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        buf_clear(&out);
        rate_duration(cases[i].ns, &out);
        buf_append_char(&out, '\0');
        assert_string_equal(out.data, cases[i].text);
    }
    buf_clear(&out);
    rate_headers(&(struct rate_view){.requests_limit = 60, .requests_left = 59, .requests_reset_ns = 1000 * MS}, &out);
    buf_append_char(&out, '\0');
    assert_string_equal(out.data, "x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\n"
                                  "x-ratelimit-reset-requests: 1s\r\n");
    buf_clear(&out);
    rate_headers(&(struct rate_view){.tokens_limit = 150000, .tokens_left = 149984, .tokens_reset_ns = 6 * MS}, &out);
    buf_append_char(&out, '\0');
    assert_string_equal(out.data, "x-ratelimit-limit-tokens: 150000\r\nx-ratelimit-remaining-tokens: 149984\r\n"
                                  "x-ratelimit-reset-tokens: 6ms\r\n");
    buf_free(&out);
}

/* A key in debt whose limit is taken away is at rest like any other: else its place would be gone for good. */
static void test_rate_a_debt_ends_with_its_limit(void **state)
{
    (void)state;
    struct rates *rates;
    struct rate_limits tokens = {.rpm = 60, .tpm = 100}, none = {.rpm = 60};
    uint32_t retry_ms;
    uint64_t now_ns = UINT64_C(1000000000);
    assert_int_equal(rates_create(1, &rates), ST_OK);
    assert_int_equal(rate_admit(rates, 1, &tokens, 5000, now_ns, &retry_ms), RATE_OK);
    rate_end(rates, 1, 5000, 5000, now_ns);
    assert_int_equal(rate_admit(rates, 1, &none, 10, now_ns, &retry_ms), RATE_OK);
    rate_end(rates, 1, 10, 10, now_ns);
    assert_int_equal(rate_admit(rates, 2, &none, 10, now_ns + UINT64_C(120000000000), &retry_ms), RATE_OK);
    rate_end(rates, 2, 10, 10, now_ns);
    rates_destroy(rates);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rate_a_debt_ends_with_its_limit),
        cmocka_unit_test(test_rate_requests_a_minute),
        cmocka_unit_test(test_rate_tokens_estimated_and_corrected),
        cmocka_unit_test(test_rate_concurrency),
        cmocka_unit_test(test_rate_limits_may_change),
        cmocka_unit_test(test_rate_keys_are_forgotten_and_bounded),
        cmocka_unit_test(test_rate_is_exact_over_time),
        cmocka_unit_test(test_rate_headers_have_openai_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
