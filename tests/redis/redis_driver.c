/* ledger_client.h's calls on a ledger in Redis, from lines on standard input; one line of answer each. For the tests of
 * this folder.
 *
 *   redis_driver URL [ca=FILE] [cert=FILE] [key=FILE] [timeout=MS]     password: MILLRACE_REDIS_PASSWORD
 *
 * First line out: "open ST_OK", or the status and its message, exit 1. Then: init UUID, uuid, order ID ACCOUNT OP
 * PACKAGE UNITS PRIORITY EFFECTIVE EXPIRES, account ACCOUNT ID open|close, reap ACCOUNT GRACE, balance ACCOUNT, month
 * ACCOUNT YYYYMM, marks PARTITION, put ID LINE, lines, version. */
#include "runtime/base/mem.h"
#include "server/billing/ledger_redis.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct account_balance balance;

static void show_mark(void *visitor, uint64_t producer, uint64_t epoch, uint64_t hwm, const char *hash8)
{
    (void)visitor;
    printf(" %016" PRIx64 "|%" PRIu64 "|%" PRIu64 "|%s", producer, epoch, hwm, hash8);
}

static void count_line(void *visitor, const char *line, size_t length)
{
    (void)line;
    uint64_t *sums = visitor;
    sums[0]++;
    sums[1] += length;
}

static void show_balance(void)
{
    printf("ST_OK known=%d open=%d us=%" PRIu64 " ov=%" PRIu64, balance.known, balance.open, balance.used,
           balance.overage);
    for (uint32_t i = 0; i < balance.packages_count; i++) {
        const struct package_balance *b = &balance.packages[i];
        printf(" %s:%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64, b->id, b->granted, b->free, b->leased,
               b->used, b->expired);
    }
    printf("\n");
}

static void answered(enum status status, const enum ledger_answer *answer, const struct error *err)
{
    if (status == ST_OK)
        printf("ST_OK %s\n", ledger_answer_name(*answer));
    else
        printf("%s %s\n", status_name(status), err->message);
}

static enum package_op op_of(const char *text)
{
    return strcmp(text, "add") == 0 ? PACKAGE_ADD : strcmp(text, "inc") == 0 ? PACKAGE_INCREASE : PACKAGE_VOID;
}

static bool changes(const struct ledger_client *c, char **w, int n, struct error *err)
{
    enum ledger_answer answer = LEDGER_OK;
    if (strcmp(w[0], "init") == 0 && n == 2) {
        answered(c->calls->init(c->state, w[1], &answer, err), &answer, err);
    } else if (strcmp(w[0], "order") == 0 && n == 9) {
        struct order order = {.account = strtoull(w[2], NULL, 10), .op = op_of(w[3]), .class_mask = 1};
        snprintf(order.id, sizeof order.id, "%s", w[1]);
        snprintf(order.package, sizeof order.package, "%s", w[4]);
        order.units = strtoull(w[5], NULL, 10);
        order.priority = strtoull(w[6], NULL, 10);
        order.effective_ms = strtoull(w[7], NULL, 10);
        order.expires_ms = strtoull(w[8], NULL, 10);
        answered(c->calls->order(c->state, &order, &answer, err), &answer, err);
    } else if (strcmp(w[0], "account") == 0 && n == 4) {
        answered(
            c->calls->account_set(c->state, strtoull(w[1], NULL, 10), w[2], strcmp(w[3], "open") == 0, &answer, err),
            &answer, err);
    } else if (strcmp(w[0], "reap") == 0 && n == 3) {
        uint32_t leases = 0, packages = 0;
        enum status status = c->calls->reap(c->state, strtoull(w[1], NULL, 10), strtoull(w[2], NULL, 10), &leases,
                                            &packages, &answer, err);
        if (status == ST_OK)
            printf("ST_OK %s %u %u\n", ledger_answer_name(answer), leases, packages);
        else
            answered(status, &answer, err);
    } else if (strcmp(w[0], "put") == 0 && n == 3) {
        answered(c->calls->directory_put(c->state, w[1], w[2], err), &answer, err);
    } else {
        return false;
    }
    return true;
}

static bool queries(const struct ledger_client *c, char **w, int n, struct error *err)
{
    enum status status;
    if (strcmp(w[0], "uuid") == 0) {
        char uuid[LEDGER_UUID_CHARS + 1] = "";
        status = c->calls->uuid(c->state, uuid, err);
        printf("%s %s\n", status_name(status), status == ST_OK ? uuid : err->message);
    } else if (strcmp(w[0], "balance") == 0 && n == 2) {
        status = c->calls->balance(c->state, strtoull(w[1], NULL, 10), &balance, err);
        if (status == ST_OK)
            show_balance();
        else
            printf("%s %s\n", status_name(status), err->message);
    } else if (strcmp(w[0], "month") == 0 && n == 3) {
        static struct month_total totals[MODEL_CLASSES];
        uint32_t count = 0;
        status =
            c->calls->month(c->state, strtoull(w[1], NULL, 10), (uint32_t)strtoul(w[2], NULL, 10), totals, &count, err);
        printf("%s", status_name(status));
        for (uint32_t i = 0; status == ST_OK && i < count; i++)
            printf(" %u:%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64, totals[i].mclass, totals[i].in_miss,
                   totals[i].in_hit, totals[i].out, totals[i].units, totals[i].records);
        printf("%s\n", status == ST_OK ? "" : err->message);
    } else if (strcmp(w[0], "marks") == 0 && n == 2) {
        printf("marks");
        status = c->calls->marks(c->state, (uint16_t)strtoul(w[1], NULL, 10), show_mark, NULL, err);
        printf(" %s\n", status_name(status));
    } else if (strcmp(w[0], "lines") == 0) {
        uint64_t sums[2] = {0, 0}, version = 0;
        status = c->calls->directory_read(c->state, count_line, sums, &version, err);
        printf("%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", status_name(status), version, sums[0], sums[1]);
    } else if (strcmp(w[0], "version") == 0) {
        uint64_t version = 0;
        status = c->calls->directory_version(c->state, &version, err);
        printf("%s %" PRIu64 "\n", status_name(status), version);
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    if (argc < 2) return 2;
    struct redis_settings settings = {.url = argv[1], .password = getenv("MILLRACE_REDIS_PASSWORD")};
    for (int i = 2; i < argc; i++) {
        if (strncmp(argv[i], "ca=", 3) == 0) settings.ca_file = argv[i] + 3;
        if (strncmp(argv[i], "cert=", 5) == 0) settings.cert_file = argv[i] + 5;
        if (strncmp(argv[i], "key=", 4) == 0) settings.key_file = argv[i] + 4;
    }
    struct error err = {""};
    static struct redis_target target;
    struct ledger_client client;
    enum status status = redis_target_read(&settings, &target, &err);
    for (int i = 2; i < argc; i++)
        if (strncmp(argv[i], "timeout=", 8) == 0) target.timeout_ms = (uint32_t)strtoul(argv[i] + 8, NULL, 10);
    if (status == ST_OK) status = ledger_redis_open(&target, &client, &err);
    printf("open %s %s\n", status_name(status), status == ST_OK ? "" : err.message);
    fflush(stdout);
    if (status != ST_OK) return 1;
    static char line[70000];
    while (fgets(line, sizeof line, stdin) != NULL) {
        char *w[12], *save = NULL;
        int n = 0;
        for (char *t = strtok_r(line, " \n", &save); t != NULL && n < 12; t = strtok_r(NULL, " \n", &save)) w[n++] = t;
        if (n > 0 && !changes(&client, w, n, &err) && !queries(&client, w, n, &err)) printf("what?\n");
        fflush(stdout);
    }
    client.calls->close(client.state);
    return 0;
}
