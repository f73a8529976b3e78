/* ledger.c behind lines of text, for the scripts of tests/ledger: a command a line on stdin, an answer of lines on
 * stdout that ends with one of a single dot. Mistakes in a command end the program: it is driven by a program.
 *
 *   init UUID                                            answer
 *   apply PARTITION PRODUCER EPOCH UUID NOW [RECORD...]  answer hwm hash8 duplicates [pseq leased open]...; then for
 * each applied record: log PSEQ KIND FUNDING EXTRA ("-": empty) order UUID ACCOUNT ID OP PACKAGE UNITS PR EF EX CR MK
 * NOW      answer account UUID ACCOUNT ID open|close                   answer reap UUID ACCOUNT GRACE NOW answer leases
 * packages dump      ledger_dump's lines check     ok, or what is broken reload    saves, loads into a second ledger
 * and goes on with that: same, or what differs balance ACCOUNT    known open used overage, then id granted free leased
 * used expired ... of each package plant N   ledger_planted.h, in the build that has it fail N    the N-th allocation
 * from now on fails, once (0: none) */
#include "runtime/base/buf.h"
#include "runtime/base/mem.h"
#include "server/billing/ledger.h"
#include "server/billing/ledger_planted.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_MAX_BYTES = 2 * RECORD_BYTES_MAX * APPLY_RECORDS_MAX + 4096 };

#ifdef MILLRACE_PLANTED
enum ledger_planted ledger_planted_bug;
#endif

static struct ledger *ledger;
static uint64_t fail_at, allocations;

static bool may_allocate(void *state, size_t size_bytes)
{
    (void)state;
    (void)size_bytes;
    return fail_at == 0 || ++allocations != fail_at;
}

static char *word(char **rest)
{
    char *text = strsep(rest, " ");
    if (text == NULL) {
        fprintf(stderr, "a word is missing\n");
        exit(2);
    }
    return text;
}

static uint64_t number(char **rest, int base)
{
    return strtoull(word(rest), NULL, base);
}

static uint32_t from_hex(const char *text, uint8_t *out)
{
    uint32_t length = 0;
    for (; text[0] != 0 && length < RECORD_BYTES_MAX; text += 2) {
        char two[3] = {text[0], text[1], 0};
        out[length++] = (uint8_t)strtoul(two, NULL, 16);
    }
    return length;
}

static void print_log(void *state, const struct record *record, const char *funding, const char *extra)
{
    struct buf *out = state;
    buf_append_format(out, "log %" PRIu64 " %c %s %s\n", record->pseq, record->kind, funding[0] != 0 ? funding : "-",
                      extra[0] != 0 ? extra : "-");
}

static void do_apply(char *rest)
{
    static uint8_t bytes[APPLY_RECORDS_MAX + 1][RECORD_BYTES_MAX];
    static struct encoded_record records[APPLY_RECORDS_MAX + 1];
    uint16_t partition = (uint16_t)number(&rest, 10);
    uint64_t producer = number(&rest, 16), epoch = number(&rest, 10);
    const char *uuid = word(&rest);
    uint64_t now_ms = number(&rest, 10);
    uint32_t count = 0;
    while (rest != NULL && count <= APPLY_RECORDS_MAX) {
        records[count].length = from_hex(word(&rest), bytes[count]);
        records[count].bytes = bytes[count];
        count++;
    }
    static struct ledger_reply reply;
    struct buf log;
    buf_init(&log, 0);
    ledger_apply(ledger, partition, producer, epoch, uuid, records, count, now_ms, print_log, &log, &reply);
    printf("%s %" PRIu64 " %s %" PRIu32, ledger_answer_name(reply.answer), reply.hwm, reply.hash8, reply.duplicates);
    for (uint32_t i = 0; i < reply.grants_count; i++) {
        printf(" %" PRIu64 " %" PRIu64 " %d", reply.grants[i].pseq, reply.grants[i].leased, reply.grants[i].open);
    }
    printf("\n%.*s", (int)log.length, log.length > 0 ? log.data : "");
    buf_free(&log);
}

static void take_text(char *out, size_t capacity, const char *text)
{
    snprintf(out, capacity, "%s", text);
}

static void do_order(char *rest)
{
    struct order order = {.account = 0};
    const char *uuid = word(&rest);
    order.account = number(&rest, 10);
    take_text(order.id, sizeof order.id, word(&rest));
    const char *op = word(&rest);
    order.op = strcmp(op, "add") == 0 ? PACKAGE_ADD : strcmp(op, "inc") == 0 ? PACKAGE_INCREASE : PACKAGE_VOID;
    take_text(order.package, sizeof order.package, word(&rest));
    order.units = number(&rest, 10);
    order.priority = number(&rest, 10);
    order.effective_ms = number(&rest, 10);
    order.expires_ms = number(&rest, 10);
    order.created_ms = number(&rest, 10);
    order.class_mask = number(&rest, 10);
    printf("%s\n", ledger_answer_name(ledger_order(ledger, uuid, &order, number(&rest, 10))));
}

static void do_account(char *rest)
{
    const char *uuid = word(&rest);
    uint64_t account = number(&rest, 10);
    const char *id = word(&rest);
    bool open = strcmp(word(&rest), "open") == 0;
    printf("%s\n", ledger_answer_name(ledger_account_set(ledger, uuid, account, id, open)));
}

static void do_reap(char *rest)
{
    const char *uuid = word(&rest);
    uint64_t account = number(&rest, 10), grace_ms = number(&rest, 10), now_ms = number(&rest, 10);
    uint32_t leases, packages;
    enum ledger_answer answer = ledger_reap(ledger, uuid, account, grace_ms, now_ms, &leases, &packages);
    printf("%s %" PRIu32 " %" PRIu32 "\n", ledger_answer_name(answer), leases, packages);
}

static void do_dump(void)
{
    struct buf out;
    buf_init(&out, 0);
    ledger_dump(ledger, &out);
    printf("%.*s", (int)out.length, out.length > 0 ? out.data : "");
    buf_free(&out);
}

static void do_reload(void)
{
    struct buf first, second;
    buf_init(&first, 0);
    buf_init(&second, 0);
    ledger_save(ledger, &first);
    struct ledger *loaded = NULL;
    struct error err = {{0}};
    if (ledger_create(&loaded) != ST_OK || ledger_load(loaded, first.data, first.length, &err) != ST_OK) {
        printf("%s\n", err.message);
    } else {
        ledger_save(loaded, &second);
        bool same = first.length == second.length && memcmp(first.data, second.data, first.length) == 0;
        printf("%s\n", same ? "same" : "saved again, it differs");
        ledger_destroy(ledger);
        ledger = loaded;
    }
    buf_free(&first);
    buf_free(&second);
}

static void do_balance(char *rest)
{
    static struct account_balance balance;
    ledger_balance(ledger, number(&rest, 10), &balance);
    printf("%d %d %" PRIu64 " %" PRIu64 "\n", balance.known, balance.open, balance.used, balance.overage);
    for (uint32_t i = 0; i < balance.packages_count; i++) {
        const struct package_balance *p = &balance.packages[i];
        printf("%s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", p->id, p->granted, p->free,
               p->leased, p->used, p->expired);
    }
}

static void do_command(char *line)
{
    char *rest = line;
    const char *name = word(&rest);
    struct error err = {{0}};
    if (strcmp(name, "init") == 0) {
        printf("%s\n", ledger_answer_name(ledger_init(ledger, word(&rest))));
    } else if (strcmp(name, "apply") == 0) {
        do_apply(rest);
    } else if (strcmp(name, "order") == 0) {
        do_order(rest);
    } else if (strcmp(name, "account") == 0) {
        do_account(rest);
    } else if (strcmp(name, "reap") == 0) {
        do_reap(rest);
    } else if (strcmp(name, "dump") == 0) {
        do_dump();
    } else if (strcmp(name, "check") == 0) {
        printf("%s\n", ledger_check(ledger, &err) ? "ok" : err.message);
    } else if (strcmp(name, "reload") == 0) {
        do_reload();
    } else if (strcmp(name, "balance") == 0) {
        do_balance(rest);
    } else if (strcmp(name, "fail") == 0) {
        fail_at = number(&rest, 10);
        allocations = 0;
        printf("ok\n");
#ifdef MILLRACE_PLANTED
    } else if (strcmp(name, "plant") == 0) {
        ledger_planted_bug = (enum ledger_planted)number(&rest, 10);
        printf("ok\n");
#endif
    } else {
        fprintf(stderr, "no such command: %s\n", name);
        exit(2);
    }
    printf(".\n");
    fflush(stdout);
}

int main(void)
{
    static char line[LINE_MAX_BYTES];
    mem_hook_set(may_allocate, NULL);
    if (ledger_create(&ledger) != ST_OK) return 2;
    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = 0;
        do_command(line);
    }
    ledger_destroy(ledger);
    return 0;
}
