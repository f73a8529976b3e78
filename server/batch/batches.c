/* The index of files and batches, what an earlier process left of them, and time; see batches.h. */
#include "server/batch/batches_parts.h"

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { SWEEP_MS = 1000 };

int64_t batches_now_s(void)
{
    return clock_unix_us(clock_system()) / 1000000;
}

/* ---- jobs ---- */

static void run_in_pool(uv_work_t *work)
{
    struct batch_job *job = work->data;
    job->run(job);
}

static void job_done(uv_work_t *work, int uv_status)
{
    struct batch_job *job = work->data;
    if (uv_status != 0) job->status = ST_CANCELED;
    job->done(job);
}

void batch_job_start(struct batches *set, struct batch_job *job)
{
    job->set = set;
    job->status = ST_OK;
    job->work.data = job;
    if (uv_queue_work(set->config.loop, &job->work, run_in_pool, job_done) != 0) job_done(&job->work, UV_ECANCELED);
}

/* ---- the index ---- */

struct stored_file *batches_find_file(struct batches *set, const char *id, uint64_t account)
{
    for (struct stored_file *file = set->files; file; file = file->next)
        if (file->ready && !file->leaves && file->info.account == account && strcmp(file->info.id, id) == 0)
            return file; /* J5 */
    return NULL;
}

struct held_batch *batches_find(struct batches *set, const char *id, uint64_t account)
{
    for (struct held_batch *batch = set->batches; batch; batch = batch->next)
        if (batch->durable && !batch->leaves && batch->info.caller.account == account &&
            strcmp(batch->info.id, id) == 0)
            return batch; /* J5 */
    return NULL;
}

/* Newest first: made in one second, the later one. */
struct stored_file *batches_add_file(struct batches *set, const struct file_info *info)
{
    struct stored_file *file = mem_alloc(1, sizeof *file), **at = &set->files;
    if (!file) return NULL;
    file->info = *info;
    while (*at && (*at)->info.created_s > info->created_s) at = &(*at)->next;
    file->next = *at;
    *at = file;
    set->bytes += info->bytes;
    return file;
}

void batches_drop_file(struct batches *set, struct stored_file *file)
{
    struct stored_file **at = &set->files;
    while (*at != file) at = &(*at)->next;
    *at = file->next;
    set->bytes -= file->info.bytes;
    mem_free(file);
}

static void drop_batch(struct batches *set, struct held_batch *batch)
{
    struct held_batch **at = &set->batches;
    while (*at != batch) at = &(*at)->next;
    *at = batch->next;
    batch_free(batch);
}

/* ---- what an earlier process was paid for ---- */

int64_t batches_oldest_s(const struct batches *set)
{
    int64_t oldest_s = 0;
    for (const struct held_batch *batch = set ? set->batches : NULL; batch; batch = batch->next)
        if (!batch_has_ended(&batch->info) && (!oldest_s || batch->info.times_s[TIME_CREATED] < oldest_s))
            oldest_s = batch->info.times_s[TIME_CREATED];
    return oldest_s;
}

void batches_await_recall(struct batches *set)
{
    if (set) set->recalling = true;
}

void batches_recall(struct batches *set, const uint8_t digest[16])
{
    if (!set) return;
    if (set->recalled_count == set->recalled_capacity) {
        size_t capacity = set->recalled_capacity ? set->recalled_capacity * 2 : 1024;
        void *recalled = mem_resize(set->recalled, capacity, sizeof *set->recalled);
        if (!recalled) {
            log_line(LOG_ERROR, "batch", "charges of earlier lines are not all known reason=\"out of memory\"");
            return;
        }
        set->recalled = recalled;
        set->recalled_capacity = capacity;
    }
    memcpy(set->recalled[set->recalled_count++], digest, sizeof *set->recalled);
}

static int compare_digests(const void *a, const void *b)
{
    return memcmp(a, b, 16);
}

void batches_recalled(struct batches *set)
{
    if (!set) return;
    if (set->recalled_count > 0) qsort(set->recalled, set->recalled_count, sizeof *set->recalled, compare_digests);
    set->recalling = false;
    batches_release(set);
}

bool batches_was_paid(struct batches *set, const uint8_t digest[16])
{
    return set->recalled_count > 0 &&
           bsearch(digest, set->recalled, set->recalled_count, sizeof *set->recalled, compare_digests);
}

/* ---- the start and the end ---- */

struct loading {
    struct batches *set;
    uint32_t bad;
    bool no_memory;
};

static void load_file(void *state, const char *text, size_t length)
{
    struct loading *loading = state;
    struct file_info info;
    if (!file_info_read(text, length, &info)) {
        loading->bad++;
        return;
    }
    struct stored_file *file = batches_add_file(loading->set, &info);
    if (file)
        file->ready = true;
    else
        loading->no_memory = true;
}

static void load_batch(void *state, const char *text, size_t length)
{
    struct loading *loading = state;
    struct batches *set = loading->set;
    struct held_batch *batch = mem_alloc(1, sizeof *batch), **at = &set->batches;
    if (!batch) {
        loading->no_memory = true;
        return;
    }
    if (!batch_info_read(text, length, &batch->info)) {
        loading->bad++;
        batch_free(batch);
        return;
    }
    batch->set = set;
    batch->durable = true;
    while (*at && (*at)->info.times_s[TIME_CREATED] > batch->info.times_s[TIME_CREATED]) at = &(*at)->next;
    batch->next = *at;
    *at = batch;
}

/* Batches go on; what is left of the log of one that has ended goes. */
static uint32_t take_up(struct batches *set)
{
    uint32_t unfinished = 0;
    for (struct held_batch *batch = set->batches; batch; batch = batch->next) {
        const struct batch_info *info = &batch->info;
        if (batch_has_ended(info)) {
            batch_log_drop(&set->folder, info->id);
            batch->finalized = true;
            continue;
        }
        unfinished++;
        batch->input = batches_find_file(set, info->input_id, info->caller.account);
        if (batch->input) batch->input->users++;
    }
    return unfinished;
}

static enum status load(struct batches *set, struct error *err)
{
    struct loading loading = {.set = set};
    TRY(batch_folder_load(&set->folder, "file-", load_file, &loading, err));
    TRY(batch_folder_load(&set->folder, "batch_", load_batch, &loading, err));
    if (loading.no_memory) return error_set(err, ST_NOMEM, "out of memory");
    if (loading.bad > 0)
        return error_set(err, ST_INVAL, "%u objects in the folder of batches cannot be read", loading.bad);
    uint32_t unfinished = take_up(set);
    if (unfinished > 0) log_line(LOG_INFO, "batch", "taken up batches=%u", unfinished);
    for (struct held_batch *batch = set->batches; batch; batch = batch->next) batch_step(batch);
    return ST_OK;
}

enum status batches_create(const struct batches_config *config, struct batches **batches, struct error *err)
{
    struct batches *set = mem_alloc(1, sizeof *set);
    if (!set) return error_set(err, ST_NOMEM, "out of memory");
    set->config = *config;
    set->folder = (struct batch_folder){.disk = batch_disk_system(), .path = config->folder, .stop = &set->stop};
    set->lock_fd = -1;
    *batches = set;
    TRY(batch_folder_open(&set->folder, &set->lock_fd, err));
    return load(set, err);
}

void batches_stop(struct batches *set)
{
    if (set) set->stop = true;
}

void batches_over(struct batches *set)
{
    if (set) set->over = true;
}

void batches_destroy(struct batches *set)
{
    if (!set) return;
    while (set->runs) line_run_free(set->runs);
    batches_pool_free(set);
    while (set->batches) drop_batch(set, set->batches);
    while (set->files) batches_drop_file(set, set->files);
    transfers_free(set);
    if (set->lock_fd >= 0) set->folder.disk->close(set->folder.disk->state, set->lock_fd);
    mem_free(set->recalled);
    mem_free(set);
}

/* ---- time ---- */

struct removal {
    struct batch_job job; /* first */
    char id[BATCH_ID_MAX + 1];
};

static void remove_in_pool(struct batch_job *job)
{
    struct removal *removal = (struct removal *)job;
    job->status = batch_remove(&job->set->folder, removal->id, &job->err);
}

static void removed(struct batch_job *job)
{
    struct removal *removal = (struct removal *)job;
    struct batches *set = job->set;
    set->removing = false;
    if (job->status != ST_OK) log_line(LOG_ERROR, "batch", "not removed reason=\"%s\"", job->err.message);
    for (struct stored_file *file = set->files, *next; file; file = next) {
        next = file->next;
        if (!file->leaves || strcmp(file->info.id, removal->id) != 0) continue;
        if (job->status == ST_OK)
            batches_drop_file(set, file);
        else
            file->leaves = false;
    }
    for (struct held_batch *batch = set->batches, *next; batch; batch = next) {
        next = batch->next;
        if (!batch->leaves || strcmp(batch->info.id, removal->id) != 0) continue;
        if (job->status == ST_OK)
            drop_batch(set, batch);
        else
            batch->leaves = false;
    }
    mem_free(removal);
}

/* The first that has expired; one at a time. */
static const char *expired(struct batches *set, int64_t now_s)
{
    for (struct stored_file *file = set->files; file; file = file->next)
        if (file->ready && !file->leaves && file->users == 0 && file->info.expires_s && file->info.expires_s <= now_s) {
            file->leaves = true;
            return file->info.id;
        }
    for (struct held_batch *batch = set->batches; batch; batch = batch->next)
        if (batch_has_ended(&batch->info) && batch->finalized && !batch->busy && !batch->meta_due && !batch->leaves &&
            batch->info.times_s[TIME_EXPIRES] + BATCH_EXPIRY_S_MAX <= now_s) {
            batch->leaves = true;
            return batch->info.id;
        }
    return NULL;
}

static void sweep(struct batches *set)
{
    const char *id = set->stop || set->removing ? NULL : expired(set, batches_now_s());
    if (!id) return;
    struct removal *removal = mem_alloc(1, sizeof *removal);
    if (!removal) return; /* `leaves` stays until the next start, which finds it again */
    memcpy(removal->id, id, strlen(id) + 1);
    removal->job.run = remove_in_pool;
    removal->job.done = removed;
    set->removing = true;
    batch_job_start(set, &removal->job);
}

void batches_tick(struct batches *set)
{
    if (!set) return;
    int64_t now_s = batches_now_s();
    for (struct held_batch *batch = set->batches, *next; batch; batch = next) {
        next = batch->next;
        if (!batch_has_ended(&batch->info) && batch->info.times_s[TIME_EXPIRES] <= now_s) batch_expire(batch);
        batch_step(batch);
    }
    batches_pool_tick(set);
    batches_release(set);
    uint64_t now_ns = clock_now_ns(clock_system());
    if (now_ns - set->swept_ns < SWEEP_MS * NS_PER_MS) return;
    set->swept_ns = now_ns;
    sweep(set);
}

void batches_print_metrics(const struct batches *set, struct buf *out)
{
    uint32_t unfinished = 0;
    uint64_t waiting = 0;
    if (!set) return;
    for (const struct held_batch *batch = set->batches; batch; batch = batch->next) {
        if (batch_has_ended(&batch->info)) continue;
        unfinished++;
        waiting += batch->todo;
    }
    buf_append_format(out,
                      "# HELP mr_batches Batches that have not ended.\n# TYPE mr_batches gauge\nmr_batches %u\n"
                      "# HELP mr_batch_lines Lines of such batches.\n# TYPE mr_batch_lines gauge\n"
                      "mr_batch_lines{state=\"running\"} %u\nmr_batch_lines{state=\"waiting\"} %" PRIu64 "\n"
                      "mr_batch_lines{state=\"away\"} %u\n"
                      "# HELP mr_batch_stored_bytes Bytes of all files of batches.\n"
                      "# TYPE mr_batch_stored_bytes gauge\nmr_batch_stored_bytes %" PRIu64 "\n",
                      unfinished, set->running, waiting, set->away_count, set->bytes);
}
