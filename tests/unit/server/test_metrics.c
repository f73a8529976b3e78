/* Histograms, their text, and usage records. */
#include "tests/unit/unit.h"

#include "server/metrics.h"

static char *print(const struct metrics *metrics, const struct engine_stats *stats, struct buf *out)
{
    const struct metrics_model model = {.metrics = metrics, .engine = stats, .ready = true};
    const struct metrics_process process = {.connections = 3};
    buf_clear(out);
    metrics_print(&model, 1, &process, out);
    buf_append_char(out, '\0');
    assert_true(buf_ok(out));
    return out->data;
}

static void test_metrics_buckets_are_cumulative_and_inclusive(void **state)
{
    (void)state;
    static struct metrics metrics;
    struct buf out = {0};
    metrics_init(&metrics, "m", 1000);
    metrics_observe(&metrics, HISTOGRAM_PREEMPTIONS, 0);
    metrics_observe(&metrics, HISTOGRAM_PREEMPTIONS, 2); /* le is inclusive */
    metrics_observe(&metrics, HISTOGRAM_PREEMPTIONS, 21);
    const char *text = print(&metrics, NULL, &out);
    assert_non_null(strstr(text, "vllm:request_num_preemptions_bucket{engine=\"0\",le=\"1.0\",model_name=\"m\"} 1\n"));
    assert_non_null(strstr(text, "vllm:request_num_preemptions_bucket{engine=\"0\",le=\"2.0\",model_name=\"m\"} 2\n"));
    assert_non_null(strstr(text, "vllm:request_num_preemptions_bucket{engine=\"0\",le=\"20.0\",model_name=\"m\"} 2\n"));
    assert_non_null(strstr(text, "vllm:request_num_preemptions_bucket{engine=\"0\",le=\"+Inf\",model_name=\"m\"} 3\n"));
    assert_non_null(strstr(text, "vllm:request_num_preemptions_sum{engine=\"0\",model_name=\"m\"} 23\n"));
    assert_non_null(strstr(text, "vllm:request_num_preemptions_count{engine=\"0\",model_name=\"m\"} 3\n"));
    buf_free(&out);
}

static void test_metrics_bounds_read_as_in_python(void **state)
{
    (void)state;
    static struct metrics metrics;
    struct buf out = {0};
    metrics_init(&metrics, "m", 3000000);
    const char *text = print(&metrics, NULL, &out);
    static const char *const bounds[] = {"\"0.001\"",  "\"0.025\"",   "\"0.1\"",      "\"1.0\"",   "\"2.5\"",
                                         "\"2560.0\"", "\"16384.0\"", "\"500000.0\"", "\"1e+06\"", "\"2e+06\""};
    for (size_t i = 0; i < sizeof bounds / sizeof bounds[0]; i++) {
        char label[32];
        (void)snprintf(label, sizeof label, "le=%s", bounds[i]);
        if (!strstr(text, label)) fail_msg("no bucket %s", label);
    }
    assert_null(strstr(text, "le=\"5e+06\"")); /* above the context's length */
    buf_free(&out);
}

static void test_metrics_model_name_is_escaped(void **state)
{
    (void)state;
    static struct metrics metrics;
    struct buf out = {0};
    metrics_init(&metrics, "a\"b\\c\nd", 16);
    assert_non_null(strstr(print(&metrics, NULL, &out), "model_name=\"a\\\"b\\\\c d\""));
    buf_free(&out);
}

static void test_metrics_kv_share_is_between_0_and_1(void **state)
{
    (void)state;
    static struct metrics metrics;
    struct buf out = {0};
    struct engine_stats stats = {.kv_blocks_total = 8, .kv_blocks_used = 2, .running = 3, .waiting = 4};
    metrics_init(&metrics, "m", 16);
    const char *text = print(&metrics, &stats, &out);
    assert_non_null(strstr(text, "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25\n"));
    assert_non_null(strstr(text, "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3\n"));
    assert_non_null(strstr(text, "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 4\n"));
    stats.kv_blocks_total = 0;
    assert_non_null(
        strstr(print(&metrics, &stats, &out), "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0\n"));
    buf_free(&out);
}

static void test_usage_record_sums_and_takes_the_gravest_cause(void **state)
{
    (void)state;
    struct usage_record record = {.call_id = "cmpl-1", .request_id = "r", .tenant = "t", .model = "m"};
    usage_record_add(&record,
                     &(struct usage){.cause = CAUSE_LENGTH, .in_total = 3, .out = 5, .choices = 2, .in_hit = 1});
    usage_record_add(
        &record, &(struct usage){.cause = CAUSE_CLIENT_GONE, .in_total = 4, .out = 1, .choices = 1, .mismatch = true});
    usage_record_add(&record,
                     &(struct usage){.cause = CAUSE_STOP, .in_total = UINT32_MAX, .recomputed = 9, .out_reasoning = 1});
    assert_int_equal(record.requests, 3);
    assert_int_equal(record.sum.cause, CAUSE_CLIENT_GONE);
    assert_int_equal(record.sum.in_total, UINT32_MAX); /* saturated, not wrapped */
    struct buf out = {0};
    usage_record_print(&record, &out);
    buf_append_char(&out, '\0');
    assert_string_equal(
        out.data, "request=cmpl-1 client_request=r tenant=t model=\"m\" cause=client_gone in_total=4294967295 in_hit=1 "
                  "out=6 out_reasoning=1 out_trimmed=0 choices=3 recomputed=9 mismatch=1 unseen=0");
    buf_free(&out);
}

/* Each family stands in one piece with one head and every model's samples; the process's stand once. */
static void test_metrics_of_several_models(void **state)
{
    (void)state;
    static struct metrics metrics[3];
    static const char *const names[] = {"a", "b", "c"};
    struct engine_stats stats[3] = {{.running = 1}, {.running = 2}, {.running = 3}};
    struct metrics_model models[3];
    const struct metrics_process process = {.connections = 7};
    struct buf out = {0};
    for (uint32_t i = 0; i < 3; i++) {
        metrics_init(&metrics[i], names[i], 16u << i); /* other bounds */
        models[i] = (struct metrics_model){.metrics = &metrics[i], .engine = &stats[i], .sleep_level = i};
    }
    metrics_print(models, 3, &process, &out);
    buf_append_char(&out, '\0');
    assert_true(buf_ok(&out));
    assert_non_null(strstr(out.data, "# TYPE vllm:num_requests_running gauge\n"
                                     "vllm:num_requests_running{engine=\"0\",model_name=\"a\"} 1\n"
                                     "vllm:num_requests_running{engine=\"0\",model_name=\"b\"} 2\n"
                                     "vllm:num_requests_running{engine=\"0\",model_name=\"c\"} 3\n# HELP "));
    assert_non_null(strstr(
        out.data, "vllm:engine_sleep_state{engine=\"0\",model_name=\"b\",sleep_state=\"weights_offloaded\"} 1\n"));
    assert_non_null(
        strstr(out.data, "vllm:engine_sleep_state{engine=\"0\",model_name=\"c\",sleep_state=\"discard_all\"} 1\n"));
    for (const char *at = out.data; (at = strstr(at, "# TYPE ")) != NULL;) { /* no family twice */
        char line[160];
        (void)snprintf(line, sizeof line, "%.*s", (int)strcspn(at, "\n"), at);
        at += strlen(line);
        assert_null(strstr(at, line));
    }
    const char *process_line = strstr(out.data, "mr_http_connections{engine=\"0\"} 7\n");
    assert_non_null(process_line);
    assert_null(strstr(process_line + 1, "mr_http_connections{"));
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics_buckets_are_cumulative_and_inclusive),
        cmocka_unit_test(test_metrics_bounds_read_as_in_python),
        cmocka_unit_test(test_metrics_model_name_is_escaped),
        cmocka_unit_test(test_metrics_of_several_models),
        cmocka_unit_test(test_metrics_kv_share_is_between_0_and_1),
        cmocka_unit_test(test_usage_record_sums_and_takes_the_gravest_cause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
