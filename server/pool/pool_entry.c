/* See pool_entry.h. */
#include "server/pool/pool_entry.h"

#include "runtime/base/crc32c.h"
#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "server/billing/bytes.h"

#include <string.h>

enum { HEAD_BYTES = 8, ENTRY_BYTES = 32, RESULT_BYTES = 60 };

static const char entry_magic[4] = "MRP1", result_magic[4] = "MRR1";

static void print_frame(const char magic[4], const struct byte_writer *fixed, const void *more, size_t more_length,
                        struct buf *out)
{
    uint8_t head[HEAD_BYTES];
    struct byte_writer to = {.bytes = head, .capacity = sizeof head};
    put_bytes(&to, magic, 4);
    put_u32(&to, crc32c_extend(crc32c(fixed->bytes, fixed->length), more, more_length));
    buf_append(out, head, sizeof head);
    buf_append(out, fixed->bytes, fixed->length);
    if (more_length > 0) buf_append(out, more, more_length);
}

void pool_entry_print(const struct pool_entry *entry, struct buf *out)
{
    uint8_t fixed[ENTRY_BYTES];
    struct byte_writer to = {.bytes = fixed, .capacity = sizeof fixed};
    put_u32(&to, entry->chat);
    put_u64(&to, entry->account);
    put_i64(&to, entry->deadline_ms);
    put_u32(&to, entry->prompt_tokens);
    put_u32(&to, entry->output_tokens);
    put_u32(&to, (uint32_t)entry->body_length);
    print_frame(entry_magic, &to, entry->body, entry->body_length, out);
}

void pool_result_print(const struct pool_result *result, struct buf *out)
{
    uint8_t fixed[RESULT_BYTES];
    const struct given_answer *answer = &result->answer;
    struct byte_writer to = {.bytes = fixed, .capacity = sizeof fixed};
    struct buf ids;
    put_bytes(&to, result->run, sizeof result->run);
    put_bytes(&to, result->prompt, sizeof result->prompt);
    put_u32(&to, result->in_total);
    put_u32(&to, answer->in_hit);
    put_u32(&to, answer->text_bytes);
    put_u32(&to, answer->reasoning_count);
    put_u32(&to, answer->trimmed_count);
    put_u32(&to, answer->finish == FINISH_STOP);
    put_u32(&to, answer->stop_id);
    put_u32(&to, answer->stop_string);
    put_u32(&to, answer->count);
    buf_init(&ids, 0);
    for (uint32_t i = 0; i < answer->count; i++) {
        uint8_t bytes[4];
        struct byte_writer id = {.bytes = bytes, .capacity = sizeof bytes};
        put_u32(&id, answer->ids[i]);
        buf_append(&ids, bytes, sizeof bytes);
    }
    print_frame(result_magic, &to, ids.data, ids.length, out);
    if (!buf_ok(&ids)) out->failed = true;
    buf_free(&ids);
}

static bool read_head(const char magic[4], struct byte_reader *from)
{
    const uint8_t *given = get_bytes(from, 4);
    uint32_t crc = get_u32(from);
    return !from->bad && memcmp(given, magic, 4) == 0 &&
           crc == crc32c(from->bytes + from->offset, from->length - from->offset);
}

enum status pool_entry_read(const void *bytes, size_t length, struct pool_entry *entry, struct error *err)
{
    struct byte_reader from = {.bytes = bytes, .length = length};
    *entry = (struct pool_entry){.chat = false};
    if (length > limits.pool_entry_bytes || !read_head(entry_magic, &from))
        return error_set(err, ST_PROTO, "it is no request of a pool, or is damaged");
    uint32_t chat = get_u32(&from);
    entry->chat = chat == 1;
    entry->account = get_u64(&from);
    entry->deadline_ms = get_i64(&from);
    entry->prompt_tokens = get_u32(&from);
    entry->output_tokens = get_u32(&from);
    entry->body_length = get_u32(&from);
    entry->body = (const char *)get_bytes(&from, entry->body_length);
    if (from.bad || from.offset != length || chat > 1 || entry->body_length == 0 || entry->deadline_ms <= 0)
        return error_set(err, ST_PROTO, "a request of the pool has a field that cannot be");
    return ST_OK;
}

enum status pool_result_read(const void *bytes, size_t length, struct pool_result *result, struct error *err)
{
    struct byte_reader from = {.bytes = bytes, .length = length};
    struct given_answer *answer = &result->answer;
    *result = (struct pool_result){.in_total = 0};
    if (length > limits.pool_result_bytes || !read_head(result_magic, &from))
        return error_set(err, ST_PROTO, "it is no result of a pool, or is damaged");
    get_copy(&from, result->run, sizeof result->run);
    get_copy(&from, result->prompt, sizeof result->prompt);
    result->in_total = get_u32(&from);
    answer->in_hit = get_u32(&from);
    answer->text_bytes = get_u32(&from);
    answer->reasoning_count = get_u32(&from);
    answer->trimmed_count = get_u32(&from);
    uint32_t stopped = get_u32(&from);
    answer->finish = stopped ? FINISH_STOP : FINISH_LENGTH;
    answer->stop_id = get_u32(&from);
    answer->stop_string = get_u32(&from);
    answer->count = get_u32(&from);
    const uint8_t *ids = get_bytes(&from, (size_t)answer->count * 4);
    if (from.bad || from.offset != length || stopped > 1 || answer->count == 0 || result->in_total == 0 ||
        answer->in_hit >= result->in_total || answer->reasoning_count > answer->count ||
        answer->trimmed_count > answer->count)
        return error_set(err, ST_PROTO, "a result of the pool has a field that cannot be");
    uint32_t *own = mem_alloc(answer->count, sizeof *own);
    if (!own) return error_set(err, ST_NOMEM, "no memory for a result of the pool");
    struct byte_reader id = {.bytes = ids, .length = (size_t)answer->count * 4};
    for (uint32_t i = 0; i < answer->count; i++) own[i] = get_u32(&id);
    answer->ids = own;
    return ST_OK;
}

void pool_result_free(struct pool_result *result)
{
    mem_free((void *)(uintptr_t)result->answer.ids);
    result->answer.ids = NULL;
}

void pool_prompt_hash(const uint32_t *ids, uint32_t count, uint8_t hash[POOL_PROMPT_BYTES])
{
    uint8_t digest[32];
    sha256(ids, (size_t)count * sizeof *ids, digest);
    memcpy(hash, digest, POOL_PROMPT_BYTES);
}
