/* What the files of batches in the process share; see batches.h.
 *
 *   batches.c        the index, what is left of an earlier process, time
 *   batch_run.c      a batch's jobs and states, and its lines
 *   batch_plan.c     its jobs in the plan of power
 *   batch_pool.c     its lines in the pool of deferrable work
 *   batch_calls.c    the calls that are answered from the index
 *   batch_upload.c   uploads and downloads
 *
 * io thread only, but for batch_job.run. */
#ifndef SERVER_BATCH_BATCHES_PARTS_H
#define SERVER_BATCH_BATCHES_PARTS_H

#include "server/batch/batch_disk.h"
#include "server/batch/batches.h"
#include "server/pool/pool.h"

enum { BATCH_PARTS_MAX = 64, BATCH_WAITS_MAX = 4, BATCH_TRIES_MAX = 3, BATCH_RETRY_MS = 1000 };

/* Work for the pool: run there, then done on the loop; done owns the memory. */
struct batch_job {
    uv_work_t work;
    struct batches *set;
    void (*run)(struct batch_job *job);
    void (*done)(struct batch_job *job);
    enum status status; /* of run; ST_CANCELED: it was not run */
    struct error err;
};
void batch_job_start(struct batches *set, struct batch_job *job);

struct stored_file {
    struct stored_file *next;
    struct file_info info;
    uint32_t users;     /* batches that have not ended, downloads */
    bool ready, leaves; /* on disk as a whole; being removed */
};

struct line_run {
    struct batch_job job;
    struct line_run *next, *previous;
    struct held_batch *batch;
    struct exchange *exchange; /* while it runs */
    uint32_t line;
    bool deferred; /* broken off */
    bool forced;
    bool has_given; /* J9 */
    struct pool_result given;
    char custom_id[BATCH_CUSTOM_ID_MAX + 1], request_id[HTTP_REQUEST_ID_MAX + 1];
    struct buf body;
};

/* J8 */
struct batch_part {
    uint64_t plan_id; /* 0: not in the plan: done, expired, or has no line that is left */
    uint32_t first, count, next, left;
    bool released, forced, started;
};

struct held_batch {
    struct held_batch *next;
    struct batches *set;
    struct batch_info info;
    struct stored_file *input;                /* NULL: has ended, or its file is gone */
    struct http_conn *waits[BATCH_WAITS_MAX]; /* to be answered when its .meta is durable */
    struct batch_lines lines;
    uint32_t todo, running, away;
    struct buf saved; /* frames that are to be appended, of these lines */
    uint32_t saved_done, saved_failed;
    uint64_t log_length, resume_ns, retry_ns; /* retry_ns: a job has failed, the next one not before */
    struct batch_part *parts;
    uint32_t parts_count, part_lines;
    bool log_failed; /* the last append */
    bool busy, opened, meta_due, durable, leaves, told_failure;
    bool finalized; /* its output is there: the next .meta says that it has ended */
    /* the job's */
    struct batch_job job;
    struct measure *measure; /* of the start */
    struct buf text, frames;
    uint32_t frames_done, frames_failed;
    struct file_info output, error_file;
};

struct upload;
struct download;
struct line_away;

struct batches {
    struct batches_config config;
    struct batch_folder folder;
    _Atomic bool stop;
    int lock_fd;
    bool recalling, sorted, over, removing;
    struct stored_file *files;  /* newest first */
    struct held_batch *batches; /* newest first */
    uint64_t bytes;             /* of all files */
    struct line_run *runs;
    uint32_t running;
    uint64_t pause_ns, swept_ns;
    struct line_away *away;
    uint32_t away_count, reads; /* reads: of this tick */
    uint64_t pool_ns, pool_pause_ns, pool_misfits;
    uint8_t (*recalled)[16];
    size_t recalled_count, recalled_capacity;
    struct upload *uploads;
    struct download *downloads;
    struct file_call *file_calls;
};

int64_t batches_now_s(void);

struct stored_file *batches_find_file(struct batches *set, const char *id, uint64_t account);
struct held_batch *batches_find(struct batches *set, const char *id, uint64_t account);
void batches_drop_file(struct batches *set, struct stored_file *file); /* out of the index, and freed */
struct stored_file *batches_add_file(struct batches *set, const struct file_info *info);
bool batches_was_paid(struct batches *set, const uint8_t digest[16]);

/* batch_plan.c; see J8. begin: ST_OK, ST_LIMIT: infeasible, the reason is in *errors; ST_AGAIN, ST_NOMEM: later. */
NODISCARD enum status batch_plan_begin(struct held_batch *batch, bool promised, struct buf *errors);
bool batch_plan_next(struct held_batch *batch, uint32_t *line, bool *forced); /* takes a line that is to run */
bool batch_plan_has_next(const struct held_batch *batch);
void batch_plan_back(struct held_batch *batch, uint32_t line); /* it is to run again */
void batch_plan_done(struct held_batch *batch, uint32_t line); /* it has its result */
void batch_plan_end(struct held_batch *batch);                 /* nothing of it will run any more */

/* batch_pool.c; see J9. */
void batch_pool_end(struct held_batch *batch); /* its lines are taken back */
void batches_pool_tick(struct batches *set);
void batches_pool_free(struct batches *set);
bool batches_pool_next(struct batches *set, struct held_batch **batch, uint32_t *line, struct pool_result *result);
void batches_pool_misfit(struct held_batch *batch, uint32_t line); /* its result cannot be used: it runs here */
void batch_pool_saved(struct held_batch *batch, uint32_t line);    /* its result is durable */

/* batch_run.c */
void batch_line_digest(const struct held_batch *batch, uint32_t line, uint8_t digest[16]);
bool batch_may_begin(const struct held_batch *batch); /* a line, now */
void batch_step(struct held_batch *batch);            /* the next job, if it is time for one */
void batches_release(struct batches *set);            /* lines, as many as may run */
void batch_expire(struct held_batch *batch);          /* J4: its deadline has passed */
void batch_cancel(struct held_batch *batch);
void batch_free(struct held_batch *batch);
void line_run_free(struct line_run *run);

/* batch_upload.c */
void upload_finish(struct batches *set, struct http_conn *conn, struct http_request *request);
void download_start(struct batches *set, struct http_conn *conn, struct stored_file *file);
void transfers_free(struct batches *set);
bool transfers_gone(struct batches *set, const struct http_conn *conn);

/* batch_calls.c */
void batch_reply(struct http_conn *conn, const struct held_batch *batch);
bool file_calls_gone(struct batches *set, const struct http_conn *conn);
void batch_refuse(struct http_conn *conn, int status, const char *code, const char *param, const char *message);

#endif
