/* Batches on a disk that stops anywhere: what was told of is there, a torn end is dropped, a line has one result. */
#include "tests/unit/unit.h"

#include "server/batch/batch_disk.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "tests/support/sim_disk.h"

#include <stdio.h>

static const char input_id[] = "file-00112233445566778899aabbccddeeff";
static const char batch_id[] = "batch_00112233445566778899aabbccddeeff";

struct world {
    struct sim_disk *sim;
    struct batch_folder folder;
    struct batch_info info;
    struct batch_gauge gauge; /* none but where a test sets it */
    struct batch_lines lines;
};

static void make_world(struct world *world, uint64_t seed)
{
    *world = (struct world){.sim = sim_disk_create(seed)};
    world->folder = (struct batch_folder){.disk = sim_disk_table(world->sim), .path = "/batches"};
    memcpy(world->info.id, batch_id, sizeof batch_id);
    memcpy(world->info.input_id, input_id, sizeof input_id);
    world->info.ends_as = BATCH_COMPLETED;
    world->info.output_expires_after_s = 3600;
}

static void open_world(struct world *world)
{
    int lock_fd;
    struct error err;
    assert_int_equal(batch_folder_open(&world->folder, &lock_fd, &err), ST_OK);
}

static void end_world(struct world *world)
{
    assert_null(sim_disk_violation(world->sim));
    mem_free(world->lines.items);
    sim_disk_destroy(world->sim);
}

static void put_input(struct world *world, const char *text)
{
    struct batch_writer writer;
    struct error err;
    assert_int_equal(batch_write_begin(&writer, &world->folder, input_id, &err), ST_OK);
    assert_int_equal(batch_write(&writer, text, strlen(text), &err), ST_OK);
    assert_int_equal(batch_write_end(&writer, &err), ST_OK);
    batch_write_drop(&writer);
}

static enum status scan(struct world *world, struct buf *errors)
{
    struct error err;
    buf_clear(errors);
    return batch_scan(&world->folder, &world->info, &world->gauge, &world->lines, errors, &err);
}

#define LINE(id) "{\"custom_id\":\"" id "\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"a\": 1}}"

static bool gauge_by_body(void *state, const struct buf *body, uint32_t *prompt_tokens, uint32_t *output_tokens)
{
    ++*(uint32_t *)state;
    *prompt_tokens = (uint32_t)body->length;
    *output_tokens = 77;
    return body->length == strlen("{\"a\":1}");
}

/* What can be measured is told as measured, from the body that the line will run with; the rest is estimated. */
static void test_batch_disk_lines_are_measured(void **state)
{
    (void)state;
    struct world world;
    struct buf errors;
    uint32_t asked = 0;
    make_world(&world, 1);
    open_world(&world);
    buf_init(&errors, 0);
    world.gauge = (struct batch_gauge){.measure = gauge_by_body, .state = &asked};
    put_input(&world, LINE("a") "\n"
                                "{\"custom_id\":\"b\",\"method\":\"POST\",\"url\":\"/v1/"
                                "completions\",\"body\":{\"n\":2,\"max_tokens\":9}}");
    assert_int_equal(scan(&world, &errors), ST_OK);
    assert_int_equal(errors.length, 0);
    assert_int_equal(asked, 2);
    assert_int_equal(world.lines.items[0].prompt_tokens, 7);
    assert_int_equal(world.lines.items[0].output_tokens, 77);
    assert_int_equal(world.lines.items[1].prompt_tokens, world.lines.items[1].length / 4 + 1);
    assert_int_equal(world.lines.items[1].output_tokens, 18);
    buf_free(&errors);
    end_world(&world);
}

static void test_batch_disk_lines_and_their_errors(void **state)
{
    (void)state;
    struct world world;
    struct buf errors, body;
    struct error err;
    char custom_id[BATCH_CUSTOM_ID_MAX + 1];
    make_world(&world, 1);
    open_world(&world);
    buf_init(&errors, 0);
    buf_init(&body, 0);
    put_input(&world, LINE("a") "\r\n\n  \n" LINE("b"));
    assert_int_equal(scan(&world, &errors), ST_OK);
    assert_int_equal(errors.length, 0);
    assert_int_equal(world.lines.count, 2);
    assert_int_equal(world.lines.items[1].number, 4);
    assert_int_equal(batch_line_read(&world.folder, input_id, &world.lines.items[1], custom_id, &body, &err), ST_OK);
    assert_string_equal(custom_id, "b");
    assert_int_equal(body.length, 7);
    assert_memory_equal(body.data, "{\"a\":1}", 7);
    static const struct {
        const char *text, *code;
    } wrong[] = {{"", "empty_file"},
                 {"x", "invalid_json_line"},
                 {"[]", "invalid_json_line"},
                 {"{}", "invalid_custom_id"},
                 {LINE("a") "\n" LINE("a"), "duplicate_custom_id"},
                 {"{\"custom_id\":\"a\",\"method\":\"GET\"}", "invalid_method"},
                 {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\"}", "mismatched_endpoint"},
                 {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":1}", "missing_body"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put_input(&world, wrong[i].text);
        assert_int_equal(scan(&world, &errors), ST_OK);
        buf_append_char(&errors, '\0');
        assert_non_null(strstr(errors.data, wrong[i].code));
    }
    buf_free(&errors);
    buf_free(&body);
    end_world(&world);
}

static void test_batch_disk_limits(void **state)
{
    (void)state;
    struct world world;
    struct buf errors;
    make_world(&world, 1);
    open_world(&world);
    buf_init(&errors, 0);
    uint64_t lines = limits.batch_lines, body = limits.http_body_bytes;
    limits.batch_lines = 2;
    put_input(&world, LINE("a") "\n" LINE("b") "\n");
    assert_int_equal(scan(&world, &errors), ST_OK);
    assert_int_equal(errors.length, 0);
    put_input(&world, LINE("a") "\n" LINE("b") "\n" LINE("c") "\n" LINE("d"));
    assert_int_equal(scan(&world, &errors), ST_OK);
    buf_append_char(&errors, '\0');
    assert_non_null(strstr(errors.data, "too_many_requests"));
    assert_int_equal(world.lines.count, 2);
    limits.batch_lines = lines;
    limits.http_body_bytes = strlen(LINE("a"));
    put_input(&world, LINE("a") "\n");
    assert_int_equal(scan(&world, &errors), ST_OK);
    assert_int_equal(errors.length, 0);
    limits.http_body_bytes--;
    assert_int_equal(scan(&world, &errors), ST_OK);
    assert_true(errors.length > 0);
    limits.http_body_bytes = body;
    buf_free(&errors);
    end_world(&world);
}

static void set_lines(struct world *world, uint32_t count)
{
    mem_free(world->lines.items);
    world->lines = (struct batch_lines){.items = mem_alloc(count, sizeof *world->lines.items), .count = count};
    assert_non_null(world->lines.items);
}

/* Results are appended until the disk stops in some call; after a loss of power each that was told durable is there,
 * once, and none has bytes that were never written. */
static void test_batch_disk_log_survives_whatever_end(void **state)
{
    (void)state;
    enum { LINES = 40 };
    struct error err;
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct world world;
        uint64_t length;
        uint32_t durable = 0, begun = 0;
        make_world(&world, seed);
        open_world(&world);
        set_lines(&world, LINES);
        for (uint32_t life = 0; life < 4; life++) {
            assert_int_equal(batch_log_load(&world.folder, batch_id, &world.lines, &length, &err), ST_OK);
            uint32_t known = 0;
            while (known < LINES && world.lines.items[known].state == LINE_DONE) known++;
            for (uint32_t i = known; i < LINES; i++) assert_int_equal(world.lines.items[i].state, LINE_TODO);
            assert_in_range(known, durable, begun);
            durable = begun = known;
            sim_disk_stop_after(world.sim, 1 + (uint64_t)(random_uniform(seed, life) * 20));
            while (begun < LINES) {
                struct buf frames;
                buf_init(&frames, 0);
                uint32_t count = 1 + begun % 3;
                for (uint32_t i = 0; i < count && begun < LINES; i++, begun++)
                    batch_frame(FRAME_DONE, begun, "result of some length\n", 22 - begun % 5, &frames);
                enum status status = batch_log_append(&world.folder, batch_id, &frames, &length, &err);
                buf_free(&frames);
                if (status != ST_OK) break;
                durable = begun;
            }
            sim_disk_stop_after(world.sim, 0);
            if (seed % 2)
                sim_disk_power_loss(world.sim);
            else
                sim_disk_kill(world.sim);
            set_lines(&world, LINES);
        }
        end_world(&world);
    }
}

/* A call that fails is made good by the next try, in another file; no fdatasync is repeated (sim_disk_violation). */
static void test_batch_disk_log_after_faults(void **state)
{
    (void)state;
    enum { LINES = 30 };
    static const enum sim_fault faults[] = {SIM_FAULT_INTERRUPT, SIM_FAULT_SHORT, SIM_FAULT_NO_SPACE, SIM_FAULT_IO};
    struct error err;
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct world world;
        uint64_t length = 0;
        bool failed = false;
        make_world(&world, seed);
        open_world(&world);
        sim_disk_fault_after(world.sim, 1 + (uint64_t)(random_uniform(seed, 0) * 60), faults[seed % 4]);
        for (uint32_t i = 0; i < LINES;) {
            struct buf frame;
            buf_init(&frame, 0);
            batch_frame(FRAME_FAILED, i, "some result\n", 12, &frame);
            enum status status = failed ? batch_log_renew(&world.folder, batch_id, length, &err) : ST_OK;
            if (status == ST_OK) status = batch_log_append(&world.folder, batch_id, &frame, &length, &err);
            failed = status != ST_OK;
            i += !failed;
            buf_free(&frame);
        }
        sim_disk_power_loss(world.sim);
        set_lines(&world, LINES);
        assert_int_equal(batch_log_load(&world.folder, batch_id, &world.lines, &length, &err), ST_OK);
        for (uint32_t i = 0; i < LINES; i++) assert_int_equal(world.lines.items[i].state, LINE_FAILED);
        end_world(&world);
    }
}

static uint32_t count_lines(struct world *world, const char *id, const char *word)
{
    static char text[65536];
    size_t got;
    struct error err;
    uint32_t count = 0;
    assert_int_equal(batch_read_at(&world->folder, id, 0, text, sizeof text - 1, &got, &err), ST_OK);
    text[got] = '\0';
    for (const char *at = text; (at = strstr(at, word)); at++) count++;
    return count;
}

/* B3, B4 */
static void test_batch_disk_outputs(void **state)
{
    (void)state;
    struct world world;
    struct error err;
    struct buf errors, frames, body, line;
    struct file_info output, error_file;
    uint64_t length = 0;
    make_world(&world, 3);
    open_world(&world);
    buf_init(&errors, 0);
    buf_init(&frames, 0);
    buf_init(&body, 0);
    buf_init(&line, 0);
    put_input(&world, LINE("a") "\n" LINE("b") "\n" LINE("c") "\n");
    assert_int_equal(scan(&world, &errors), ST_OK);
    buf_append_text(&body, "{\n}");
    batch_result_line("a", 200, "req_1", &body, NULL, NULL, &line);
    assert_int_equal(line.data[line.length - 1], '\n');
    assert_ptr_equal(memchr(line.data, '\n', line.length), line.data + line.length - 1);
    for (int i = 0; i < 2; i++) batch_frame(FRAME_DONE, 0, line.data, line.length, &frames); /* twice: one counts */
    batch_frame(FRAME_DONE, 9, line.data, line.length, &frames);                             /* there is no such line */
    assert_int_equal(batch_log_append(&world.folder, batch_id, &frames, &length, &err), ST_OK);
    for (int twice = 0; twice < 2; twice++) { /* cut off and made again: the same */
        batch_make_id("file-", world.info.output_id);
        batch_make_id("file-", world.info.error_id);
        world.info.ends_as = BATCH_EXPIRED;
        assert_int_equal(batch_finalize(&world.folder, &world.info, &world.lines, 50, &output, &error_file, &err),
                         ST_OK);
        assert_int_equal(world.info.completed, 1);
        assert_int_equal(world.info.failed, 2);
        assert_int_equal(count_lines(&world, world.info.output_id, "\"custom_id\":\"a\""), 1);
        assert_int_equal(count_lines(&world, world.info.error_id, "batch_expired"), 2);
        assert_int_equal(output.expires_s, 50 + 3600);
    }
    buf_free(&errors);
    buf_free(&frames);
    buf_free(&body);
    buf_free(&line);
    end_world(&world);
}

static void count_metas(void *state, const char *text, size_t length)
{
    uint32_t *count = state;
    (void)text;
    (void)length;
    ++*count;
}

static void test_batch_disk_metas(void **state)
{
    (void)state;
    struct world world;
    struct error err;
    struct buf text;
    uint32_t count = 0;
    char byte;
    size_t got;
    make_world(&world, 5);
    open_world(&world);
    put_input(&world, "left over"); /* no .meta names it */
    buf_init(&text, 0);
    buf_append_text(&text, "{}");
    assert_int_equal(batch_meta_write(&world.folder, batch_id, &text, &err), ST_OK);
    assert_int_equal(batch_folder_load(&world.folder, "file-", count_metas, &count, &err), ST_OK);
    assert_int_equal(count, 0);
    assert_int_equal(batch_read_at(&world.folder, input_id, 0, &byte, 1, &got, &err), ST_IO);
    assert_int_equal(batch_folder_load(&world.folder, "batch_", count_metas, &count, &err), ST_OK);
    assert_int_equal(count, 1);
    const struct disk *disk = world.folder.disk; /* a flipped bit is told, never taken */
    int fd = disk->open(disk->state, "/batches/batch_00112233445566778899aabbccddeeff.meta", DISK_WRITE);
    assert_true(fd >= 0);
    assert_int_equal(disk->write_at(disk->state, fd, "[", 1, 16), 1);
    disk->close(disk->state, fd);
    assert_int_equal(batch_folder_load(&world.folder, "batch_", count_metas, &count, &err), ST_INVAL);
    assert_int_equal(batch_remove(&world.folder, batch_id, &err), ST_OK);
    assert_int_equal(batch_folder_load(&world.folder, "batch_", count_metas, &count, &err), ST_OK);
    assert_int_equal(count, 1);
    buf_free(&text);
    end_world(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_disk_lines_are_measured),
        cmocka_unit_test(test_batch_disk_lines_and_their_errors),
        cmocka_unit_test(test_batch_disk_limits),
        cmocka_unit_test(test_batch_disk_log_survives_whatever_end),
        cmocka_unit_test(test_batch_disk_log_after_faults),
        cmocka_unit_test(test_batch_disk_outputs),
        cmocka_unit_test(test_batch_disk_metas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
