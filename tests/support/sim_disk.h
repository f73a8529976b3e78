/* A file system in memory that loses what was not synced, as a real one may.
 *
 * Each file has what programs see (the page cache) and what the medium holds, in sectors of 512 bytes. fdatasync makes
 * both the same. A power loss decides for every sector written since, alone: kept, dropped, zeroed, or torn at a random
 * byte between old and new; so writes come out of order too. Bytes that a write does not change survive it, as SQLite's
 * "powersafe overwrite" assumes of disks; a medium that spoils whole sectors needs frames padded to sectors. Names
 * made, renamed or removed since the folder's fsync may each be lost. A kill of the process loses nothing of the cache.
 *
 * One call in the future can fail (EINTR, short write, ENOSPC, EIO), and one fdatasync: its sectors then count as clean
 * though only some of them reached the medium, as Linux does it. A second fdatasync of that file in the same life is a
 * violation, and remembered. All from one seed. One thread. */
#ifndef TESTS_SUPPORT_SIM_DISK_H
#define TESTS_SUPPORT_SIM_DISK_H

#include "server/billing/disk.h"

enum sim_fault {
    SIM_FAULT_NONE,
    SIM_FAULT_INTERRUPT,  /* EINTR, nothing done */
    SIM_FAULT_SHORT,      /* a write or read of a part */
    SIM_FAULT_NO_SPACE,   /* ENOSPC */
    SIM_FAULT_IO,         /* EIO; of an fdatasync: see above */
    SIM_FAULT_SYNC_ALWAYS /* every fdatasync from then on */
};

struct sim_disk;

struct sim_disk *sim_disk_create(uint64_t seed);
void sim_disk_destroy(struct sim_disk *sim);
const struct disk *sim_disk_table(struct sim_disk *sim); /* valid as long as sim */

/* The machine stops in the ops-th changing call from now (0: never): all calls fail from there on. */
void sim_disk_stop_after(struct sim_disk *sim, uint64_t ops);
bool sim_disk_stopped(const struct sim_disk *sim);
/* The ops-th changing call from now fails. */
void sim_disk_fault_after(struct sim_disk *sim, uint64_t ops, enum sim_fault fault);
void sim_disk_full(struct sim_disk *sim, bool full); /* no file grows, none is made */

/* What comes after a stop: the process is gone, its descriptors and locks too; then only what survived is there. */
void sim_disk_kill(struct sim_disk *sim);
void sim_disk_power_loss(struct sim_disk *sim);

uint64_t sim_disk_ops(const struct sim_disk *sim);          /* changing calls so far */
const char *sim_disk_violation(const struct sim_disk *sim); /* NULL: none */

#endif
