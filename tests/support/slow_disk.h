/* The machine's file system with slow syncs and a protocol of what was done when: for a test that compares the time at
 * which a client had a token with the time at which its frame was durable.
 *
 * The protocol is a text file, a line an act, times in ns of the monotonic clock:
 *   open FILE PATH   write FILE OFFSET LENGTH BEGIN END   sync FILE BEGIN END   rename FROM TO
 * FILE counts opens from 1. Any thread; one such disk a process. */
#ifndef TESTS_SUPPORT_SLOW_DISK_H
#define TESTS_SUPPORT_SLOW_DISK_H

#include "server/billing/disk.h"

#include <stdint.h>

/* sync_ns: what each sync takes longer. protocol_path: NULL for none. Put it in place with disk_system_set. */
const struct disk *slow_disk(uint64_t sync_ns, const char *protocol_path);
/* That sync, counted from 1, and all after it fail with EIO. Before threads start. */
void slow_disk_fail_from(uint64_t sync);

#endif
