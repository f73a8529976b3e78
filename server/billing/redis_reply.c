/* Replies built by our own functions behind hiredis' reader; see redis_reply.h. */
#include "server/billing/redis_reply.h"

#include "runtime/base/check.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

#include <hiredis/hiredis.h>
#include <stdlib.h>
#include <string.h>

struct redis_reader {
    redisReader *reader;
    uint64_t bytes;      /* fed since the last complete reply */
    uint64_t values;     /* built for the reply that is being read */
    const char *refused; /* the limit that was passed */
};

void redis_reply_free(struct redis_reply *reply)
{
    if (reply == NULL) return;
    for (uint32_t i = 0; i < reply->count; i++) redis_reply_free(reply->items[i]); /* depth is bounded */
    mem_free(reply->items);
    mem_free(reply->text);
    mem_free(reply);
}

const char *redis_reply_text_at(const struct redis_reply *reply, uint32_t i)
{
    if (reply == NULL || reply->type != REDIS_ARRAY || i >= reply->count) return NULL;
    return reply->items[i]->type == REDIS_STRING ? reply->items[i]->text : NULL;
}

bool redis_reply_is(const struct redis_reply *reply, const char *text)
{
    return reply->type == REDIS_STRING && strcmp(reply->text, text) == 0;
}

/* ---- what hiredis' reader calls; NULL makes it fail ---- */

static struct redis_reply *new_reply(const redisReadTask *task, enum redis_type type)
{
    struct redis_reader *r = task->privdata;
    uint32_t depth = 1;
    for (const redisReadTask *t = task->parent; t != NULL; t = t->parent) depth++;
    if (++r->values > limits.redis_reply_values) r->refused = "more values than redis_reply_values";
    if (depth > limits.redis_reply_depth) r->refused = "deeper than redis_reply_depth";
    if (r->refused != NULL) return NULL;
    struct redis_reply *reply = mem_alloc(1, sizeof *reply);
    if (reply == NULL) return NULL;
    reply->type = type;
    return reply;
}

static void *attach(const redisReadTask *task, struct redis_reply *reply)
{
    if (task->parent != NULL) {
        struct redis_reply *parent = task->parent->obj;
        CHECK(parent->type == REDIS_ARRAY && (uint32_t)task->idx < parent->count);
        parent->items[task->idx] = reply;
    }
    return reply;
}

static void *create_string(const redisReadTask *task, char *text, size_t length)
{
    struct redis_reply *reply = new_reply(task, task->type == REDIS_REPLY_ERROR ? REDIS_ERROR : REDIS_STRING);
    if (reply == NULL) return NULL;
    reply->text = mem_strdup(text, length);
    if (reply->text == NULL) {
        mem_free(reply);
        return NULL;
    }
    reply->length = length;
    return attach(task, reply);
}

static void *create_array(const redisReadTask *task, int items)
{
    struct redis_reader *r = task->privdata;
    if ((uint64_t)items + r->values > limits.redis_reply_values) r->refused = "more values than redis_reply_values";
    struct redis_reply *reply = new_reply(task, REDIS_ARRAY);
    if (reply == NULL) return NULL;
    reply->items = mem_alloc((size_t)items, sizeof *reply->items);
    if (reply->items == NULL) {
        mem_free(reply);
        return NULL;
    }
    reply->count = (uint32_t)items;
    return attach(task, reply);
}

static void *create_integer(const redisReadTask *task, long long value)
{
    struct redis_reply *reply = new_reply(task, REDIS_INTEGER);
    if (reply == NULL) return NULL;
    reply->integer = value;
    return attach(task, reply);
}

static void *create_nil(const redisReadTask *task)
{
    struct redis_reply *reply = new_reply(task, REDIS_NIL);
    return reply == NULL ? NULL : attach(task, reply);
}

static void free_object(void *object)
{
    redis_reply_free(object);
}

enum status redis_reader_create(struct redis_reader **reader)
{
    static redisReplyObjectFunctions functions = {create_string, create_array, create_integer, create_nil, free_object};
    struct redis_reader *r = mem_alloc(1, sizeof *r);
    if (r == NULL) return ST_NOMEM;
    r->reader = redisReaderCreateWithFunctions(&functions);
    if (r->reader == NULL) {
        mem_free(r);
        return ST_NOMEM;
    }
    r->reader->privdata = r;
    *reader = r;
    return ST_OK;
}

void redis_reader_destroy(struct redis_reader *reader)
{
    if (reader == NULL) return;
    redisReaderFree(reader->reader);
    mem_free(reader);
}

enum status redis_reader_feed(struct redis_reader *reader, const void *bytes, size_t length, struct error *err)
{
    reader->bytes += length;
    if (redisReaderFeed(reader->reader, bytes, length) == REDIS_OK) return ST_OK;
    return error_set(err, reader->reader->err == REDIS_ERR_OOM ? ST_NOMEM : ST_PROTO, "Redis: %s",
                     reader->reader->errstr);
}

enum status redis_reader_next(struct redis_reader *reader, struct redis_reply **reply, struct error *err)
{
    void *object = NULL;
    int result = redisReaderGetReply(reader->reader, &object);
    if (reader->refused != NULL) return error_set(err, ST_PROTO, "Redis: a reply with %s", reader->refused);
    if (result != REDIS_OK)
        return error_set(err, reader->reader->err == REDIS_ERR_OOM ? ST_NOMEM : ST_PROTO, "Redis: a reply with %s",
                         reader->reader->errstr);
    if (object == NULL) {
        /* checked while it is incomplete: many whole replies may come in one read */
        if (reader->bytes > limits.redis_reply_bytes)
            return error_set(err, ST_PROTO, "Redis: a reply of more than redis_reply_bytes");
        return ST_AGAIN;
    }
    reader->bytes = 0;
    reader->values = 0;
    *reply = object;
    return ST_OK;
}

enum status redis_command_print(const struct redis_command *command, struct buf *out)
{
    char *bytes = NULL;
    int length = redisFormatCommandArgv(&bytes, command->count, command->arguments, command->lengths);
    if (length < 0) return ST_NOMEM;
    buf_append(out, bytes, (size_t)length);
    redisFreeCommand(bytes);
    return buf_ok(out) ? ST_OK : ST_NOMEM;
}

/* ---- errors ---- */

static bool starts(const char *text, const char *word)
{
    return strncmp(text, word, strlen(word)) == 0;
}

enum redis_fault redis_fault_of(const struct redis_reply *reply)
{
    if (reply->type != REDIS_ERROR) return REDIS_NO_FAULT;
    static const struct {
        const char *word;
        enum redis_fault fault;
    } table[] = {
        {"LOADING ", REDIS_FAULT_WAIT},
        {"BUSY ", REDIS_FAULT_WAIT},
        {"OOM ", REDIS_FAULT_WAIT},
        {"MISCONF ", REDIS_FAULT_WAIT},
        {"NOREPLICAS ", REDIS_FAULT_WAIT},
        {"CLUSTERDOWN ", REDIS_FAULT_WAIT},
        {"MASTERDOWN ", REDIS_FAULT_WAIT},
        {"TRYAGAIN ", REDIS_FAULT_WAIT},
        {"READONLY ", REDIS_FAULT_MASTER},
        {"MOVED ", REDIS_FAULT_MOVED},
        {"ASK ", REDIS_FAULT_ASK},
        {"NOAUTH ", REDIS_FAULT_RIGHTS},
        {"WRONGPASS ", REDIS_FAULT_RIGHTS},
        {"NOPERM ", REDIS_FAULT_RIGHTS},
        {"ERR Function not found", REDIS_FAULT_FUNCTION},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (starts(reply->text, table[i].word)) return table[i].fault;
    return REDIS_FAULT_OTHER;
}

bool redis_fault_target(const struct redis_reply *reply, uint16_t *slot, char *host, size_t room, uint16_t *port)
{
    if (reply->type != REDIS_ERROR) return false;
    const char *at = strchr(reply->text, ' ');
    char *end = NULL;
    unsigned long n = at == NULL ? 16384 : strtoul(at + 1, &end, 10);
    if (n >= 16384 || end == at + 1 || *end != ' ') return false;
    const char *name = end + 1, *colon = strrchr(name, ':'); /* IPv6 comes without brackets */
    if (colon == NULL || (size_t)(colon - name) >= room) return false;
    unsigned long p = strtoul(colon + 1, &end, 10);
    if (end == colon + 1 || *end != '\0' || p == 0 || p > UINT16_MAX) return false;
    *slot = (uint16_t)n;
    *port = (uint16_t)p;
    memcpy(host, name, (size_t)(colon - name));
    host[colon - name] = '\0';
    return true;
}
