/* What balancers read: every word by hand, weights at their edges, and the header in both formats. */
#include "tests/unit/unit.h"

#include "server/balancer.h"

#include <math.h>

static struct balancer_view view_of(enum balancer_word word, double weight)
{
    return (struct balancer_view){.word = word,
                                  .weight = weight,
                                  .kv_used = 0.25,
                                  .waiting = 3,
                                  .watts = NAN,
                                  .allowance_share = NAN,
                                  .price_kwh = NAN,
                                  .green_share = NAN};
}

static void test_balancer_line_by_hand(void **state)
{
    (void)state;
    static const struct {
        enum balancer_word word;
        double weight;
        const char *line;
    } rows[] = {
        {BALANCER_UP, 72.6, "ready up 73%\n"}, {BALANCER_UP, 100, "ready up 100%\n"},
        {BALANCER_UP, 250, "ready up 100%\n"}, {BALANCER_UP, 0, "ready up 1%\n"},
        {BALANCER_UP, NAN, "ready up 1%\n"},   {BALANCER_UP, -4, "ready up 1%\n"},
        {BALANCER_DRAIN, 72, "drain\n"},       {BALANCER_MAINT, 72, "maint\n"},
        {BALANCER_DOWN, 72, "down\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char line[BALANCER_LINE_BYTES];
        struct balancer_view view = view_of(rows[i].word, rows[i].weight);
        size_t length = balancer_agent_line(&view, line);
        assert_string_equal(line, rows[i].line);
        assert_int_equal(length, strlen(rows[i].line));
    }
}

static void test_balancer_words_are_read_as_written(void **state)
{
    (void)state;
    enum balancer_word word;
    for (int i = BALANCER_UP; i <= BALANCER_DOWN; i++) {
        assert_true(balancer_word_read(balancer_word_text((enum balancer_word)i), &word));
        assert_int_equal(word, i);
    }
    assert_false(balancer_word_read("", &word));
    assert_false(balancer_word_read("Up", &word));
    assert_false(balancer_word_read("upper", &word));
}

static void header_is(const struct balancer_view *view, const char *format, const char *expected)
{
    struct buf out;
    buf_init(&out, 0);
    balancer_load_header(view, format, &out);
    buf_append_char(&out, '\0');
    assert_true(buf_ok(&out));
    assert_string_equal(out.data, expected);
    buf_free(&out);
}

static void test_balancer_header_in_both_formats(void **state)
{
    (void)state;
    struct balancer_view view = view_of(BALANCER_UP, 75);
    header_is(&view, "JSON",
              "endpoint-load-metrics: JSON {\"application_utilization\":0.25,\"named_metrics\":{\"weight\":75,"
              "\"kv_cache_usage_perc\":0.25,\"num_requests_waiting\":3}}\r\n");
    view.watts = 61.5, view.allowance_share = 0.5, view.price_kwh = -0.02, view.green_share = 0.9;
    header_is(&view, "text",
              "endpoint-load-metrics: TEXT application_utilization=0.25,named_metrics.weight=75,"
              "named_metrics.kv_cache_usage_perc=0.25,named_metrics.num_requests_waiting=3,named_metrics.watts=61.5,"
              "named_metrics.allowance_share=0.5,named_metrics.price_kwh=-0.02,named_metrics.green_share=0.9\r\n");
    view = view_of(BALANCER_DRAIN, 75); /* whatever the weight */
    header_is(&view, "TEXT",
              "endpoint-load-metrics: TEXT application_utilization=1,named_metrics.weight=75,"
              "named_metrics.kv_cache_usage_perc=0.25,named_metrics.num_requests_waiting=3\r\n");
    header_is(&view, "BIN", "");
    header_is(&view, "", "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_balancer_line_by_hand),
        cmocka_unit_test(test_balancer_words_are_read_as_written),
        cmocka_unit_test(test_balancer_header_in_both_formats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
