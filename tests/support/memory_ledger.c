/* A ledger_client in memory; see memory_ledger.h. */
#include "tests/support/memory_ledger.h"

#include "runtime/base/check.h"

#include <stdio.h>
#include <string.h>

static enum status end(struct memory_ledger *memory, struct error *err)
{
    memory->calls++;
    if (memory->fails == 0) return ST_OK;
    memory->fails--;
    return error_set(err, ST_TIMEOUT, "the answer was lost");
}

static void on_close(void *state)
{
    (void)state;
}

static enum status on_init(void *state, const char *uuid, enum ledger_answer *answer, struct error *err)
{
    struct memory_ledger *memory = state;
    *answer = ledger_init(memory->ledger, uuid);
    return end(memory, err);
}

static enum status on_uuid(void *state, char uuid[LEDGER_UUID_CHARS + 1], struct error *err)
{
    struct memory_ledger *memory = state;
    (void)snprintf(uuid, LEDGER_UUID_CHARS + 1, "%s", ledger_uuid(memory->ledger));
    return end(memory, err);
}

static enum status on_order(void *state, const struct order *order, enum ledger_answer *answer, struct error *err)
{
    struct memory_ledger *memory = state;
    *answer = ledger_order(memory->ledger, ledger_uuid(memory->ledger), order, memory->now_ms);
    return end(memory, err);
}

static enum status on_account_set(void *state, uint64_t account, const char *order_id, bool open,
                                  enum ledger_answer *answer, struct error *err)
{
    struct memory_ledger *memory = state;
    *answer = ledger_account_set(memory->ledger, ledger_uuid(memory->ledger), account, order_id, open);
    return end(memory, err);
}

static enum status on_reap(void *state, uint64_t account, uint64_t grace_ms, uint32_t *leases, uint32_t *packages,
                           enum ledger_answer *answer, struct error *err)
{
    struct memory_ledger *memory = state;
    *answer =
        ledger_reap(memory->ledger, ledger_uuid(memory->ledger), account, grace_ms, memory->now_ms, leases, packages);
    return end(memory, err);
}

static enum status on_balance(void *state, uint64_t account, struct account_balance *balance, struct error *err)
{
    struct memory_ledger *memory = state;
    ledger_balance(memory->ledger, account, balance);
    return end(memory, err);
}

static enum status on_month(void *state, uint64_t account, uint32_t month, struct month_total totals[MODEL_CLASSES],
                            uint32_t *count, struct error *err)
{
    struct memory_ledger *memory = state;
    *count = ledger_month(memory->ledger, account, month, totals);
    return end(memory, err);
}

static enum status on_marks(void *state, uint16_t partition,
                            void (*visit)(void *visitor, uint64_t producer, uint64_t epoch, uint64_t hwm,
                                          const char *hash8),
                            void *visitor, struct error *err)
{
    struct memory_ledger *memory = state;
    ledger_marks(memory->ledger, partition, visit, visitor);
    return end(memory, err);
}

static enum status on_version(void *state, uint64_t *version, struct error *err)
{
    struct memory_ledger *memory = state;
    *version = memory->version;
    return end(memory, err);
}

static enum status on_read(void *state, void (*visit)(void *visitor, const char *line, size_t length), void *visitor,
                           uint64_t *version, struct error *err)
{
    struct memory_ledger *memory = state;
    for (uint32_t i = 0; i < memory->lines_count; i++)
        visit(visitor, memory->lines[i].line, strlen(memory->lines[i].line));
    *version = memory->version;
    return end(memory, err);
}

static enum status on_put(void *state, const char *id, const char *line, struct error *err)
{
    struct memory_ledger *memory = state;
    uint32_t i = 0;
    while (i < memory->lines_count && strcmp(memory->lines[i].id, id) != 0) i++;
    CHECK(i < sizeof memory->lines / sizeof *memory->lines && strlen(id) < sizeof memory->lines[i].id &&
          strlen(line) < sizeof memory->lines[i].line);
    if (i == memory->lines_count) memory->lines_count++;
    (void)snprintf(memory->lines[i].id, sizeof memory->lines[i].id, "%s", id);
    (void)snprintf(memory->lines[i].line, sizeof memory->lines[i].line, "%s", line);
    memory->version++;
    return end(memory, err);
}

static const struct ledger_client_calls calls = {
    .close = on_close,
    .init = on_init,
    .uuid = on_uuid,
    .order = on_order,
    .account_set = on_account_set,
    .reap = on_reap,
    .balance = on_balance,
    .month = on_month,
    .marks = on_marks,
    .directory_version = on_version,
    .directory_read = on_read,
    .directory_put = on_put,
};

void memory_ledger_init(struct memory_ledger *memory, const char *uuid, struct ledger_client *client)
{
    memset(memory, 0, sizeof *memory);
    memory->now_ms = UINT64_C(1790000000000);
    CHECK(ledger_create(&memory->ledger) == ST_OK);
    if (uuid) CHECK(ledger_init(memory->ledger, uuid) == LEDGER_OK);
    *client = (struct ledger_client){&calls, memory};
}

void memory_ledger_free(struct memory_ledger *memory)
{
    ledger_destroy(memory->ledger);
}
