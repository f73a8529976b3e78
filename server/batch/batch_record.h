/* Files and batches as the OpenAI API tells of them, and as they stand on disk: the same JSON, there with its owner.
 * Pure; one thread at a time for an object. Times are seconds of Unix time, 0: not yet. */
#ifndef SERVER_BATCH_BATCH_RECORD_H
#define SERVER_BATCH_BATCH_RECORD_H

#include "runtime/base/json.h"
#include "server/api.h"
#include "server/caller.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    BATCH_TIME_CHARS = 20, /* "2026-01-31T06:00:00Z" */
    BATCH_ID_MAX = 47,     /* "file-" or "batch_" and 32 hex digits */
    BATCH_FILENAME_MAX = 255,
    BATCH_CUSTOM_ID_MAX = 255,
    BATCH_WINDOW_S_MAX = 30 * 86400,
    BATCH_EXPIRY_S_MIN = 3600,
    BATCH_EXPIRY_S_MAX = 30 * 86400, /* and what holds when nothing is said */
    BATCH_METADATA_BYTES_MAX = 16384,
    BATCH_LIST_MAX = 10000, /* "limit" of the list of files; of batches 100 */
    BATCH_LIST_BATCHES_MAX = 100
};

enum batch_status {
    BATCH_VALIDATING,
    BATCH_IN_PROGRESS,
    BATCH_FINALIZING,
    BATCH_CANCELLING,
    BATCH_COMPLETED, /* from here on it has ended */
    BATCH_FAILED,
    BATCH_EXPIRED,
    BATCH_CANCELLED,
    BATCH_STATUSES
};

enum batch_time {
    TIME_CREATED,
    TIME_IN_PROGRESS,
    TIME_EXPIRES,
    TIME_FINALIZING,
    TIME_COMPLETED,
    TIME_FAILED,
    TIME_EXPIRED,
    TIME_CANCELLING,
    TIME_CANCELLED,
    BATCH_TIMES
};

enum batch_green { GREEN_PREFER, GREEN_ANY, GREEN_ONLY };

struct file_info {
    char id[BATCH_ID_MAX + 1];
    char filename[BATCH_FILENAME_MAX + 1];
    bool output; /* purpose batch_output, else batch */
    uint64_t bytes, account;
    int64_t created_s, expires_s;
};

struct batch_info {
    char id[BATCH_ID_MAX + 1], input_id[BATCH_ID_MAX + 1], output_id[BATCH_ID_MAX + 1], error_id[BATCH_ID_MAX + 1];
    struct caller caller; /* who made it; tenant and limits are found anew after a restart */
    bool chat;            /* /v1/chat/completions, else /v1/completions */
    enum batch_green green;
    char window[16]; /* as it was asked for */
    enum batch_status status;
    enum batch_status ends_as; /* while FINALIZING or CANCELLING */
    int64_t times_s[BATCH_TIMES];
    int64_t output_expires_after_s;
    uint32_t total, completed, failed;
    struct buf metadata; /* JSON text, empty: null */
    struct buf errors;   /* items of errors.data, JSON text, empty: null */
};

const char *batch_status_name(enum batch_status status); /* "in_progress"; static */
bool batch_has_ended(const struct batch_info *info);
const char *batch_endpoint(const struct batch_info *info); /* static */

/* "file-" or "batch_" and 128 random bits. */
void batch_make_id(const char *prefix, char id[BATCH_ID_MAX + 1]);
bool batch_id_ok(const char *prefix, const char *id);

/* Appends the object. full: as on disk, with the owner. */
void file_info_print(const struct file_info *info, bool full, struct buf *out);
void batch_info_print(const struct batch_info *info, bool full, struct buf *out);
/* Reads what `full` has printed. false: it is not that; the info is then only to be freed. */
NODISCARD bool file_info_read(const char *text, size_t length, struct file_info *info);
NODISCARD bool batch_info_read(const char *text, size_t length, struct batch_info *info);
void batch_info_free(struct batch_info *info);

/* The body of POST /v1/batches. Fills all but id, caller and the input's existence. */
NODISCARD bool batch_info_ask(const char *body, size_t length, int64_t now_s, struct batch_info *info,
                              struct api_error *error);

/* "24h", "90m", "30s", "7d": seconds; 0: not one, or above BATCH_WINDOW_S_MAX. */
int64_t batch_window_s(const char *text);
/* RFC 3339 with Z or an offset; a fraction of a second is dropped. false: not one. */
bool batch_time_read(const char *text, int64_t *unix_s);
void batch_time_print(int64_t unix_s, char out[BATCH_TIME_CHARS + 1]); /* years up to 9999 */

#endif
