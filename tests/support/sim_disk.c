/* The file system of sim_disk.h: a few files, each twice (cache and medium), names likewise with the changes between.
 */
#include "tests/support/sim_disk.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { SECTOR = 512, FILES_MAX = 256, NAMES_MAX = 64, FDS_MAX = 64, CHANGES_MAX = 512, PATH_BYTES = 96 };

struct sim_file {
    bool used, folder;
    uint8_t *cache, *medium, *dirty; /* dirty: a byte a sector */
    uint64_t size, medium_size, capacity;
    uint64_t failed_life; /* an fdatasync failed in that life; 0: none */
    int lock_fd;          /* -1: free */
};
struct sim_name {
    char path[PATH_BYTES];
    uint32_t file;
};
struct names {
    struct sim_name items[NAMES_MAX];
    uint32_t count;
};
enum change_kind { CHANGE_MAKE, CHANGE_RENAME, CHANGE_REMOVE };
struct change {
    enum change_kind kind;
    char path[PATH_BYTES], to[PATH_BYTES];
    uint32_t file;
};

struct sim_disk {
    struct disk table;
    uint64_t random, ops, stop_at, fault_at, life;
    enum sim_fault fault;
    bool stopped, full;
    const char *violation;
    struct sim_file files[FILES_MAX];
    struct names now, durable;
    struct change changes[CHANGES_MAX];
    uint32_t changes_count;
    struct {
        bool open;
        uint32_t file;
    } fds[FDS_MAX];
};

static uint64_t below(struct sim_disk *sim, uint64_t bound)
{
    return random_next(&sim->random) % bound;
}

/* ---- names ---- */

static struct sim_name *find(struct names *names, const char *path)
{
    for (uint32_t i = 0; i < names->count; i++) {
        if (strcmp(names->items[i].path, path) == 0) return &names->items[i];
    }
    return NULL;
}

static void name_remove(struct names *names, const char *path)
{
    struct sim_name *name = find(names, path);
    if (name != NULL) *name = names->items[--names->count];
}

static void name_set(struct names *names, const char *path, uint32_t file)
{
    name_remove(names, path);
    CHECK(names->count < NAMES_MAX && strlen(path) < PATH_BYTES);
    struct sim_name *name = &names->items[names->count++];
    (void)snprintf(name->path, sizeof name->path, "%s", path);
    name->file = file;
}

static void parent_of(const char *path, char parent[PATH_BYTES])
{
    (void)snprintf(parent, PATH_BYTES, "%s", path);
    char *slash = strrchr(parent, '/');
    CHECK(slash != NULL);
    slash[slash == parent ? 1 : 0] = 0;
}

static void change_apply(struct names *names, const struct change *change)
{
    if (change->kind == CHANGE_MAKE) name_set(names, change->path, change->file);
    if (change->kind == CHANGE_REMOVE) name_remove(names, change->path);
    if (change->kind == CHANGE_RENAME) {
        name_remove(names, change->path);
        name_set(names, change->to, change->file);
    }
}

static void change_add(struct sim_disk *sim, enum change_kind kind, const char *path, const char *to, uint32_t file)
{
    CHECK(sim->changes_count < CHANGES_MAX);
    struct change *change = &sim->changes[sim->changes_count++];
    *change = (struct change){.kind = kind, .file = file};
    (void)snprintf(change->path, sizeof change->path, "%s", path);
    (void)snprintf(change->to, sizeof change->to, "%s", to == NULL ? "" : to);
    change_apply(&sim->now, change);
}

static bool folder_there(struct sim_disk *sim, const char *path)
{
    const struct sim_name *name = find(&sim->now, path);
    return strcmp(path, "/") == 0 || (name != NULL && sim->files[name->file].folder);
}

/* ---- files ---- */

static void file_free(struct sim_file *file)
{
    mem_free(file->cache);
    mem_free(file->medium);
    mem_free(file->dirty);
    *file = (struct sim_file){.lock_fd = -1};
}

static uint32_t file_make(struct sim_disk *sim)
{
    for (uint32_t i = 0; i < FILES_MAX; i++) {
        if (sim->files[i].used) continue;
        sim->files[i] = (struct sim_file){.used = true, .lock_fd = -1};
        return i;
    }
    CHECK(false); /* more than FILES_MAX */
    return 0;
}

static void files_sweep(struct sim_disk *sim)
{
    for (uint32_t i = 0; i < FILES_MAX; i++) {
        bool named = false;
        for (uint32_t k = 0; k < sim->now.count; k++) named |= sim->now.items[k].file == i;
        for (uint32_t k = 0; k < sim->durable.count; k++) named |= sim->durable.items[k].file == i;
        for (uint32_t k = 0; k < sim->changes_count; k++) named |= sim->changes[k].file == i;
        for (uint32_t k = 0; k < FDS_MAX; k++) named |= sim->fds[k].open && sim->fds[k].file == i;
        if (!named && sim->files[i].used) file_free(&sim->files[i]);
    }
}

static void file_grow(struct sim_file *file, uint64_t size)
{
    if (size <= file->capacity) return;
    uint64_t capacity = (size + SECTOR - 1) / SECTOR * SECTOR;
    if (capacity < 2 * file->capacity) capacity = 2 * file->capacity;
    uint8_t *cache = mem_alloc(1, capacity), *medium = mem_alloc(1, capacity), *dirty = mem_alloc(1, capacity / SECTOR);
    CHECK(cache != NULL && medium != NULL && dirty != NULL);
    if (file->capacity > 0) {
        memcpy(cache, file->cache, file->capacity);
        memcpy(medium, file->medium, file->capacity);
        memcpy(dirty, file->dirty, file->capacity / SECTOR);
    }
    mem_free(file->cache);
    mem_free(file->medium);
    mem_free(file->dirty);
    file->cache = cache;
    file->medium = medium;
    file->dirty = dirty;
    file->capacity = capacity;
}

static void sector_survive(struct sim_disk *sim, struct sim_file *file, uint64_t sector)
{
    uint8_t *new = file->cache + sector *SECTOR, *old = file->medium + sector *SECTOR;
    uint64_t choice = below(sim, 8);
    if (choice < 3) memcpy(old, new, SECTOR);
    if (choice == 6) {
        for (int i = 0; i < SECTOR; i++) old[i] = old[i] == new[i] ? old[i] : 0;
    }
    if (choice == 7) memcpy(old, new, below(sim, SECTOR + 1));
}

static void file_power_loss(struct sim_disk *sim, struct sim_file *file)
{
    uint64_t whole = below(sim, 4); /* sometimes everything survives, or nothing does */
    for (uint64_t sector = 0; sector < file->capacity / SECTOR; sector++) {
        if (!file->dirty[sector]) continue;
        file->dirty[sector] = 0;
        if (whole == 0) continue;
        if (whole == 1) {
            memcpy(file->medium + sector * SECTOR, file->cache + sector * SECTOR, SECTOR);
        } else {
            sector_survive(sim, file, sector);
        }
    }
    if (file->size != file->medium_size && below(sim, 2) == 0) file->medium_size = file->size;
    file->size = file->medium_size;
    if (file->size < file->capacity) memset(file->medium + file->size, 0, file->capacity - file->size);
    if (file->capacity > 0) memcpy(file->cache, file->medium, file->capacity);
}

/* ---- calls ---- */

/* A changing call begins: whether it takes place at all, and with which fault. */
static int begin(struct sim_disk *sim, enum sim_fault *fault, bool *last)
{
    *fault = SIM_FAULT_NONE;
    *last = false;
    if (sim->stopped) return -EIO;
    sim->ops++;
    if (sim->ops == sim->stop_at) {
        sim->stopped = true;
        *last = below(sim, 2) == 0; /* it takes effect, and nobody hears of it */
        if (!*last) return -EIO;
    }
    if (sim->ops == sim->fault_at) *fault = sim->fault;
    return 0;
}

static int sim_open(void *state, const char *path, enum disk_open how)
{
    struct sim_disk *sim = state;
    if (sim->stopped) return -EIO;
    char parent[PATH_BYTES];
    if (strlen(path) >= PATH_BYTES) return -ENOENT;
    parent_of(path, parent);
    const struct sim_name *name = find(&sim->now, path);
    if (how == DISK_CREATE) {
        enum sim_fault fault;
        bool last;
        if (name != NULL) return -EEXIST;
        if (!folder_there(sim, parent)) return -ENOENT;
        int refused = begin(sim, &fault, &last);
        if (refused != 0) return refused;
        if (sim->full || fault == SIM_FAULT_NO_SPACE) return -ENOSPC;
        if (fault == SIM_FAULT_IO) return -EIO;
        change_add(sim, CHANGE_MAKE, path, NULL, file_make(sim));
        if (last) return -EIO;
        name = find(&sim->now, path);
    }
    if (name == NULL || sim->files[name->file].folder) return -ENOENT;
    for (int fd = 0; fd < FDS_MAX; fd++) {
        if (sim->fds[fd].open) continue;
        sim->fds[fd].open = true;
        sim->fds[fd].file = name->file;
        return fd;
    }
    return -EMFILE;
}

static struct sim_file *file_of(struct sim_disk *sim, int fd)
{
    CHECK(fd >= 0 && fd < FDS_MAX && sim->fds[fd].open);
    return &sim->files[sim->fds[fd].file];
}

static void sim_close(void *state, int fd)
{
    struct sim_disk *sim = state;
    struct sim_file *file = file_of(sim, fd);
    if (file->lock_fd == fd) file->lock_fd = -1;
    sim->fds[fd].open = false;
}

static int64_t sim_read_at(void *state, int fd, void *out, size_t length, uint64_t offset)
{
    struct sim_disk *sim = state;
    const struct sim_file *file = file_of(sim, fd);
    if (sim->stopped) return -EIO;
    if (offset >= file->size || length == 0) return 0;
    if (length > file->size - offset) length = file->size - offset;
    memcpy(out, file->cache + offset, length);
    return (int64_t)length;
}

static int64_t sim_write_at(void *state, int fd, const void *bytes, size_t length, uint64_t offset)
{
    struct sim_disk *sim = state;
    struct sim_file *file = file_of(sim, fd);
    enum sim_fault fault;
    bool last;
    int refused = begin(sim, &fault, &last);
    if (refused != 0) return refused;
    if (fault == SIM_FAULT_INTERRUPT) return -EINTR;
    if (fault == SIM_FAULT_IO) return -EIO;
    if (fault == SIM_FAULT_NO_SPACE || (sim->full && offset + length > file->size)) return -ENOSPC;
    if (fault == SIM_FAULT_SHORT && length > 1) length = 1 + below(sim, length - 1);
    if (length == 0) return 0;
    file_grow(file, offset + length);
    memcpy(file->cache + offset, bytes, length);
    memset(file->dirty + offset / SECTOR, 1, (offset + length - 1) / SECTOR - offset / SECTOR + 1);
    if (offset + length > file->size) file->size = offset + length;
    return last ? -EIO : (int64_t)length;
}

static int sim_sync(void *state, int fd)
{
    struct sim_disk *sim = state;
    struct sim_file *file = file_of(sim, fd);
    enum sim_fault fault;
    bool last;
    int refused = begin(sim, &fault, &last);
    if (refused != 0) return refused;
    if (file->failed_life == sim->life) sim->violation = "a second fdatasync of a file whose first one failed";
    if (fault == SIM_FAULT_INTERRUPT) fault = SIM_FAULT_NONE;
    bool failing = fault == SIM_FAULT_IO || fault == SIM_FAULT_NO_SPACE ||
                   (sim->fault == SIM_FAULT_SYNC_ALWAYS && sim->fault_at != 0 && sim->ops >= sim->fault_at);
    for (uint64_t sector = 0; sector < file->capacity / SECTOR; sector++) {
        if (!file->dirty[sector]) continue;
        file->dirty[sector] = 0; /* clean from now on, also when it has not been written */
        if (failing && below(sim, 2) == 0) continue;
        memcpy(file->medium + sector * SECTOR, file->cache + sector * SECTOR, SECTOR);
    }
    if (failing) file->failed_life = sim->life;
    file->medium_size = file->size;
    return failing || last ? -EIO : 0;
}

static int64_t sim_size(void *state, int fd)
{
    return (int64_t)file_of(state, fd)->size;
}

/* Changes of names share their refusals. */
static int change(struct sim_disk *sim, enum change_kind kind, const char *path, const char *to, uint32_t file)
{
    enum sim_fault fault;
    bool last;
    int refused = begin(sim, &fault, &last);
    if (refused != 0) return refused;
    if (fault == SIM_FAULT_IO || fault == SIM_FAULT_NO_SPACE) return fault == SIM_FAULT_IO ? -EIO : -ENOSPC;
    change_add(sim, kind, path, to, file);
    return last ? -EIO : 0;
}

static int sim_rename(void *state, const char *from, const char *to)
{
    struct sim_disk *sim = state;
    const struct sim_name *name = find(&sim->now, from);
    if (name == NULL) return sim->stopped ? -EIO : -ENOENT;
    return change(sim, CHANGE_RENAME, from, to, name->file);
}

static int sim_remove(void *state, const char *path)
{
    struct sim_disk *sim = state;
    const struct sim_name *name = find(&sim->now, path);
    if (name == NULL) return sim->stopped ? -EIO : -ENOENT;
    return change(sim, CHANGE_REMOVE, path, NULL, name->file);
}

static int sim_make_folder(void *state, const char *path)
{
    struct sim_disk *sim = state;
    if (sim->stopped) return -EIO;
    if (folder_there(sim, path)) return -EEXIST;
    uint32_t file = file_make(sim);
    sim->files[file].folder = true;
    return change(sim, CHANGE_MAKE, path, NULL, file);
}

static int sim_sync_folder(void *state, const char *path)
{
    struct sim_disk *sim = state;
    enum sim_fault fault;
    bool last;
    int refused = begin(sim, &fault, &last);
    if (refused != 0) return refused;
    if (!folder_there(sim, path)) return -ENOENT;
    if (fault == SIM_FAULT_IO) return -EIO;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < sim->changes_count; i++) {
        char parent[PATH_BYTES];
        parent_of(sim->changes[i].path, parent);
        if (strcmp(parent, path) == 0) {
            change_apply(&sim->durable, &sim->changes[i]);
        } else {
            sim->changes[kept++] = sim->changes[i];
        }
    }
    sim->changes_count = kept;
    return last ? -EIO : 0;
}

static int sim_lock(void *state, int fd)
{
    struct sim_file *file = file_of(state, fd);
    if (file->lock_fd >= 0 && file->lock_fd != fd) return -EWOULDBLOCK;
    file->lock_fd = fd;
    return 0;
}

static int sim_list(void *state, const char *folder, void (*visit)(void *visitor, const char *name), void *visitor)
{
    struct sim_disk *sim = state;
    if (sim->stopped) return -EIO;
    if (!folder_there(sim, folder)) return -ENOENT;
    for (uint32_t i = 0; i < sim->now.count; i++) {
        char parent[PATH_BYTES];
        parent_of(sim->now.items[i].path, parent);
        if (strcmp(parent, folder) == 0) visit(visitor, strrchr(sim->now.items[i].path, '/') + 1);
    }
    return 0;
}

static int sim_free_permille(void *state, const char *folder)
{
    const struct sim_disk *sim = state;
    (void)folder;
    return sim->full ? 0 : 500;
}

/* ---- control ---- */

struct sim_disk *sim_disk_create(uint64_t seed)
{
    struct sim_disk *sim = mem_alloc(1, sizeof *sim);
    CHECK(sim != NULL);
    sim->random = seed;
    sim->life = 1;
    for (uint32_t i = 0; i < FILES_MAX; i++) sim->files[i].lock_fd = -1;
    sim->table = (struct disk){.state = sim,
                               .open = sim_open,
                               .close = sim_close,
                               .read_at = sim_read_at,
                               .write_at = sim_write_at,
                               .sync = sim_sync,
                               .size = sim_size,
                               .rename = sim_rename,
                               .remove = sim_remove,
                               .make_folder = sim_make_folder,
                               .sync_folder = sim_sync_folder,
                               .lock = sim_lock,
                               .list = sim_list,
                               .free_permille = sim_free_permille};
    return sim;
}

void sim_disk_destroy(struct sim_disk *sim)
{
    for (uint32_t i = 0; i < FILES_MAX; i++) file_free(&sim->files[i]);
    mem_free(sim);
}

const struct disk *sim_disk_table(struct sim_disk *sim)
{
    return &sim->table;
}

void sim_disk_stop_after(struct sim_disk *sim, uint64_t ops)
{
    sim->stop_at = ops == 0 ? 0 : sim->ops + ops;
}

bool sim_disk_stopped(const struct sim_disk *sim)
{
    return sim->stopped;
}

void sim_disk_fault_after(struct sim_disk *sim, uint64_t ops, enum sim_fault fault)
{
    sim->fault = fault;
    sim->fault_at = fault == SIM_FAULT_NONE ? 0 : sim->ops + ops;
}

void sim_disk_full(struct sim_disk *sim, bool full)
{
    sim->full = full;
}

void sim_disk_kill(struct sim_disk *sim)
{
    for (int fd = 0; fd < FDS_MAX; fd++) {
        if (sim->fds[fd].open) sim_close(sim, fd);
    }
    sim->stopped = false;
    sim->stop_at = sim->fault_at = 0;
    sim->fault = SIM_FAULT_NONE;
    sim->life++;
    files_sweep(sim);
}

void sim_disk_power_loss(struct sim_disk *sim)
{
    sim_disk_kill(sim);
    for (uint32_t i = 0; i < FILES_MAX; i++) {
        if (sim->files[i].used && !sim->files[i].folder) file_power_loss(sim, &sim->files[i]);
    }
    uint64_t whole = below(sim, 4);
    for (uint32_t i = 0; i < sim->changes_count; i++) {
        const struct change *change = &sim->changes[i];
        const struct sim_name *name = find(&sim->durable, change->path);
        bool possible = change->kind == CHANGE_MAKE || (name != NULL && name->file == change->file);
        if (possible && whole != 0 && (whole == 1 || below(sim, 2) == 0)) change_apply(&sim->durable, change);
    }
    sim->changes_count = 0;
    for (uint32_t i = 0; i < sim->durable.count;) { /* what stood in a folder that is not there */
        char parent[PATH_BYTES];
        parent_of(sim->durable.items[i].path, parent);
        if (strcmp(parent, "/") == 0 || find(&sim->durable, parent) != NULL) {
            i++;
        } else {
            sim->durable.items[i] = sim->durable.items[--sim->durable.count];
            i = 0;
        }
    }
    sim->now = sim->durable;
    files_sweep(sim);
}

uint64_t sim_disk_ops(const struct sim_disk *sim)
{
    return sim->ops;
}

const char *sim_disk_violation(const struct sim_disk *sim)
{
    return sim->violation;
}
