/* What the files of batches on disk share: frames and paths; see batch_disk.h. Pure but for batch_write_all. */
#ifndef SERVER_BATCH_BATCH_PARTS_H
#define SERVER_BATCH_BATCH_PARTS_H

#include "server/batch/batch_disk.h"

enum { BATCH_PATH_BYTES = 1024, BATCH_FRAME_HEAD = 16, BATCH_META_BYTES_MAX = 262144 };

struct batch_frame_head {
    uint32_t length, crc, line;
    uint8_t kind;
};

bool batch_path(const struct batch_folder *folder, const char *name, const char *suffix, char path[BATCH_PATH_BYTES]);
enum status batch_path_long(struct error *err);
enum status batch_io_failed(struct error *err, const char *what, int64_t result);
NODISCARD enum status batch_write_all(const struct disk *disk, int fd, const void *bytes, size_t length,
                                      uint64_t offset, struct error *err);

/* From BATCH_FRAME_HEAD bytes; false: they cannot be a head. */
bool batch_frame_head(const char *bytes, struct batch_frame_head *head);
/* Whether head->length bytes of payload are those that the sum is of. */
bool batch_frame_good(const struct batch_frame_head *head, const char *head_bytes, const char *payload);

#endif
