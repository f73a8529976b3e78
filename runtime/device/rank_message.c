/* See rank_message.h. */
#include "runtime/device/rank_message.h"

#include "runtime/model/model_shard.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAGIC = 0x6b6e6172 };

struct rank_message rank_message_of(enum rank_message_kind kind)
{
    struct rank_message message;
    memset(&message, 0, sizeof message); /* padding too: it leaves the process */
    message.magic = MAGIC;
    message.kind = kind;
    return message;
}

struct rank_message rank_message_failed(enum status status, const char *text)
{
    struct rank_message message = rank_message_of(RANK_FAILED);
    message.u.failed.status = status;
    snprintf(message.u.failed.text, sizeof message.u.failed.text, "%s", text);
    return message;
}

union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int) * 4)];
};

enum status rank_send(int socket, const struct rank_message *message, int fd)
{
    struct iovec data = {(void *)(uintptr_t)message, sizeof *message};
    struct msghdr packet = {.msg_iov = &data, .msg_iovlen = 1};
    union control control;
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        packet.msg_control = control.bytes;
        packet.msg_controllen = CMSG_SPACE(sizeof fd);
        struct cmsghdr *header = CMSG_FIRSTHDR(&packet);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    ssize_t sent;
    do sent = sendmsg(socket, &packet, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent == (ssize_t)sizeof *message) return ST_OK;
    return sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? ST_TIMEOUT : ST_IO;
}

/* The first fd that came along; others are closed. */
static int take_fds(struct msghdr *packet)
{
    int taken = -1;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(packet); header; header = CMSG_NXTHDR(packet, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        for (size_t at = 0; at + CMSG_LEN(0) + sizeof(int) <= header->cmsg_len; at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + at, sizeof fd);
            if (taken < 0)
                taken = fd;
            else
                close(fd);
        }
    }
    return taken;
}

static bool is_text(const char *text, size_t size_bytes)
{
    return memchr(text, '\0', size_bytes) != NULL;
}

static bool is_sound(const struct rank_message *message)
{
    if (message->magic != MAGIC || message->kind < RANK_SETUP || message->kind > RANK_FAILED) return false;
    if (message->kind == RANK_SETUP) return rank_setup_is_sound(&message->u.setup);
    if (message->kind == RANK_STEP) return message->u.step_bytes <= RANK_BATCH_BYTES_MAX;
    if (message->kind == RANK_FAILED) return is_text(message->u.failed.text, sizeof message->u.failed.text);
    return true;
}

enum status rank_receive(int socket, struct rank_message *message, int *fd)
{
    struct iovec data = {message, sizeof *message};
    union control control;
    struct msghdr packet = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t got;
    do got = recvmsg(socket, &packet, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    *fd = -1;
    if (got <= 0) return ST_IO;
    int came = take_fds(&packet);
    if (got == (ssize_t)sizeof *message && !(packet.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && is_sound(message)) {
        *fd = came;
        return ST_OK;
    }
    if (came >= 0) close(came);
    return ST_PROTO;
}

bool rank_setup_is_sound(const struct rank_setup *s)
{
    bool counts = s->ranks >= 2 && s->ranks <= MODEL_RANKS_MAX && s->rank >= 1 && s->rank < s->ranks && s->stages &&
                  s->ranks % s->stages == 0;
    bool enums = s->path < CPU_PATH_COUNT && s->numerics <= NUMERICS_EXACT && s->kv_int8 <= 1;
    bool sizes = s->slot_bytes && s->slot_bytes <= RANK_SLOT_BYTES_MAX && s->slot_bytes % 64 == 0 &&
                 s->batch_bytes_max <= RANK_BATCH_BYTES_MAX && s->entries_max <= RANK_BATCH_BYTES_MAX;
    bool steps = s->tokens_max && s->tokens_max <= 1 << 20 && s->seqs_max && s->seqs_max <= 1 << 20 && s->rows_max &&
                 s->rows_max <= 1 << 20 && s->context_max && s->context_max <= 1 << 24 && s->kv_blocks;
    return counts && enums && sizes && steps && s->path < CPU_PATH_COUNT &&
           is_text(s->model_path, sizeof s->model_path);
}
