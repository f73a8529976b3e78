/* libFuzzer over what comes from outside for files and batches: a multipart form, an input file, the body of a batch, a
 * .meta and a log. The first byte says which. What must hold: no crash; a form means the same wherever it is cut; what
 * is read from a .meta prints to what reads the same. */
#include "runtime/base/mem.h"
#include "server/batch/batch_disk.h"
#include "server/batch/multipart.h"
#include "tests/support/sim_disk.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool on_part(void *state, const char *name, const char *filename)
{
    buf_append_format(state, "[%s|%s]", name, filename ? filename : "");
    return true;
}

static bool on_bytes(void *state, const char *bytes, size_t length)
{
    buf_append(state, bytes, length);
    return true;
}

static enum multipart_result feed(const char *text, size_t length, size_t piece, struct buf *told)
{
    struct multipart multipart;
    struct multipart_reader reader = {.state = told, .part = on_part, .bytes = on_bytes};
    enum multipart_result result = MULTIPART_MORE;
    if (!multipart_begin(&multipart, "multipart/form-data; boundary=b")) abort();
    for (size_t i = 0; i < length && result == MULTIPART_MORE; i += piece)
        result = multipart_feed(&multipart, text + i, length - i < piece ? length - i : piece, &reader);
    return result;
}

static void try_form(const char *text, size_t length)
{
    struct buf whole, cut;
    buf_init(&whole, 0);
    buf_init(&cut, 0);
    if (feed(text, length, length + 1, &whole) != feed(text, length, 3, &cut)) abort();
    if (whole.length != cut.length || (cut.length > 0 && memcmp(whole.data, cut.data, cut.length) != 0)) abort();
    buf_free(&whole);
    buf_free(&cut);
}

static void try_meta(const char *text, size_t length)
{
    struct batch_info info, again;
    struct file_info file;
    struct buf first, second;
    (void)file_info_read(text, length, &file);
    buf_init(&first, 0);
    buf_init(&second, 0);
    if (batch_info_read(text, length, &info)) {
        batch_info_print(&info, true, &first);
        if (!batch_info_read(first.data, first.length, &again)) abort();
        batch_info_print(&again, true, &second);
        if (first.length != second.length || memcmp(first.data, second.data, first.length) != 0) abort();
        batch_info_free(&again);
    }
    batch_info_free(&info);
    buf_free(&first);
    buf_free(&second);
}

static void try_ask(const char *text, size_t length)
{
    struct batch_info info;
    struct api_error error;
    (void)batch_info_ask(text, length, 1790000000, &info, &error);
    batch_info_free(&info);
}

static void put(const struct disk *disk, const char *path, const char *text, size_t length)
{
    int fd = disk->open(disk->state, path, DISK_CREATE);
    if (fd < 0 || disk->write_at(disk->state, fd, text, length, 0) != (int64_t)length) abort();
    disk->close(disk->state, fd);
}

/* As an input file, and as the log of a batch. */
static void try_files(const char *text, size_t length)
{
    struct sim_disk *sim = sim_disk_create(1);
    struct batch_folder folder = {.disk = sim_disk_table(sim), .path = "/b"};
    struct batch_info info = {.id = "batch_x", .input_id = "file-x"};
    struct batch_lines lines = {0};
    struct buf errors, body;
    struct error err;
    uint64_t log_length;
    char custom_id[BATCH_CUSTOM_ID_MAX + 1];
    (void)folder.disk->make_folder(folder.disk->state, "/b");
    put(folder.disk, "/b/file-x", text, length);
    put(folder.disk, "/b/batch_x.log", text, length);
    buf_init(&errors, 0);
    buf_init(&body, 0);
    if (batch_scan(&folder, &info, &(struct batch_gauge){0}, &lines, &errors, &err) == ST_OK && errors.length == 0)
        for (uint32_t i = 0; i < lines.count; i++)
            if (batch_line_read(&folder, "file-x", &lines.items[i], custom_id, &body, &err) != ST_OK) abort();
    if (batch_log_load(&folder, "batch_x", &lines, &log_length, &err) == ST_OK && log_length > length) abort();
    mem_free(lines.items);
    buf_free(&errors);
    buf_free(&body);
    sim_disk_destroy(sim);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const char *text = (const char *)data + 1;
    switch (data[0] % 4) {
    case 0: try_form(text, size - 1); break;
    case 1: try_meta(text, size - 1); break;
    case 2: try_ask(text, size - 1); break;
    default: try_files(text, size - 1); break;
    }
    return 0;
}
