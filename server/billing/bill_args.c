/* Subcommands and options of `millrace bill`; see bill_args.h. */
#include "server/billing/bill_args.h"

#include "server/billing/bill_text.h"
#include "server/billing/ledger.h"

#include <stddef.h>
#include <string.h>

/* Who takes an option. */
#define OF(name) (1u << BILL_##name)
#define EVERY    ((1u << BILL_COMMANDS) - 1)
#define ON_LEDGER                                                                                                      \
    (OF(INIT) | OF(ACCOUNT) | OF(KEY) | OF(TOPUP) | OF(VOID) | OF(BALANCE) | OF(USAGE) | OF(AUDIT) | OF(REPLAY) |      \
     OF(REBUILD) | OF(EXPORT) | OF(REAP))
#define BY_ORDER (OF(TOPUP) | OF(VOID))

static const struct {
    const char *name, *summary, *usage, *text;
    const char *verbs; /* " create show ", or NULL */
    uint32_t names_min, names_max;
    const char *name_is;
} commands[BILL_COMMANDS] = {
    [BILL_INIT] = {"init", "make a new ledger", "(--redis URL | --journal FOLDER) [--uuid UUID]",
                   "Gives an empty ledger its identity. Nodes and journals that belong to another one are refused by "
                   "it from then on. Running it again with the same --uuid changes nothing.",
                   NULL, 0, 0, NULL},
    [BILL_ACCOUNT] = {"account", "make, show, open, close or list accounts",
                      "create NAME [--tenant NAME] | show NAME | open NAME --order ID | close NAME --order ID | list",
                      "An account holds packages and pays for the keys that name it. A closed one gets nothing new; "
                      "what runs is still counted. Opening and closing is idempotent by --order.",
                      " create show open close list ", 0, BILL_NAMES_MAX, "account"},
    [BILL_KEY] =
        {"key", "make, list, limit or revoke API keys",
         "create --account NAME | list [--account NAME] | limits ID | revoke ID",
         "A key is shown once, when it is made; only its hash is kept. With a --budget it may use so much in each "
         "day or month, or at all, of what its account has, where servers --enforce prepaid.",
         " create list limits revoke ", 0, 1, "key id"},
    [BILL_TOPUP] = {"topup", "give an account a package, or add to one", "ACCOUNT --tokens N --order ID",
                    "The same --order with the same terms again changes nothing and succeeds; with other terms it is "
                    "refused. So repeat it after a lost answer. Amounts are tokens of weight 1: 250, 0.5, 20k, 1.5M.",
                    NULL, 1, 1, "account"},
    [BILL_VOID] = {"void", "take back what is left of a package", "ACCOUNT --package ID --order ID",
                   "What is free goes at once; what nodes hold in leases is used or given back, and then it goes too. "
                   "What was used stays used.",
                   NULL, 1, 1, "account"},
    [BILL_BALANCE] = {"balance", "what accounts have, package by package", "ACCOUNT..", "", NULL, 1, BILL_NAMES_MAX,
                      "account"},
    [BILL_USAGE] = {"usage", "what was used, summed up as you like", "[FOLDER..] [--by tenant,model,day]",
                    "From the records in journal folders (archives too; --journal names one as well) any sums. From "
                    "the ledger's own monthly sums by account, class and month, which are there for longer than "
                    "segments are kept; name the accounts with --account.",
                    NULL, 0, BILL_NAMES_MAX, "folder"},
    [BILL_AUDIT] = {"audit", "prove a journal: every frame, record, sum and balance", "FOLDER.. [--redis URL]",
                    "Reads every byte: frames, chains of records, one OPEN and one FINAL for each charge, units from "
                    "weights, months; with a ledger also that its marks, months and balances are those of the "
                    "journals. Counts what is lost, double, mismatched, incomplete, over and not yet applied. Name the "
                    "folders of all nodes to have sums compared. Exit codes: 0 all is well, 1 differences, 2 damage.",
                    NULL, 1, BILL_NAMES_MAX, "folder"},
    [BILL_REPLAY] = {"replay", "close and send what a dead node left", "FOLDER [--redis URL]",
                     "Opens the journal as a start of its server would, which closes what the crash left open, and "
                     "applies to the ledger what it does not have. Refused while a server has the folder.",
                     NULL, 1, 1, "folder"},
    [BILL_REBUILD] =
        {"rebuild", "fill a new ledger from journals and orders",
         "FOLDER.. --redis URL [--orders FILE] [--archive FOLDER] | [FOLDER..] --redis URL --log FILE | FOLDER",
         "With --redis: gives an empty Redis the ledger's identity, then applies the orders of --orders and "
         "every record of the journals, archives included. With --log: first makes the ledger that the exported log "
         "tells of, field by field, then goes on with orders and journals. Without --redis: makes the ledger of one "
         "folder anew from its frames alone, in place of its snapshots, and says whether it is the one that was "
         "there. Stop the servers first. Tenants, accounts' names and keys are not in logs and journals.",
         NULL, 0, BILL_NAMES_MAX, "folder"},
    [BILL_EXPORT] =
        {"export", "write records as JSON lines or CSV",
         "FOLDER.. [--format jsonl|csv] [--output FILE] | --redis URL [--output FILE [--trim]]",
         "One line a record, in the order of the journal, with every field that a bill may need; no text of "
         "prompts or answers is in it.",
         NULL, 0, BILL_NAMES_MAX, "folder"},
    [BILL_ADOPT] = {"adopt", "give a restored or copied journal a new identity", "FOLDER",
                    "For a folder that was restored from a backup or copied from another node: what it wrote so far "
                    "stays, and what it writes from now on has a new producer id. Stop its server first.",
                    NULL, 1, 1, "folder"},
    [BILL_REPAIR] =
        {"repair", "cut a damaged journal behind its last whole frame", "FOLDER [--force]",
         "Says what is damaged and what would be lost. With --force it cuts; what is cut is kept beside it as *.cut-N.",
         NULL, 1, 1, "folder"},
    [BILL_REAP] = {"reap", "end late leases and expired packages", "ACCOUNT..", "", NULL, 1, BILL_NAMES_MAX, "account"},
    [BILL_PROBE] = {"probe", "send known requests to a server and check the bill",
                    "URL --account NAME (--server ADMIN_URL | --redis URL)",
                    "Sends --count requests with the key in MILLRACE_API_KEY or --api-key-file, adds up what the "
                    "answers say they used, and compares it with what the ledger says of the account. Nobody else may "
                    "use the account meanwhile. Exit codes: 0 equal, 1 lost or double.",
                    NULL, 1, 1, "url"},
};

enum kind { TEXT, FLAG, TOKENS, NUMBER, TIME, MONTH, OFFSET, CLASSES };

#define AT(member) offsetof(struct bill_options, member)
#define NONE       SIZE_MAX

static const struct {
    const char *name;
    enum kind kind;
    size_t offset;
    size_t given; /* of a bool that says the option was there, or NONE */
    uint32_t commands;
    const char *value_name, *help;
} table[] = {
    {"redis", TEXT, AT(redis), NONE, ON_LEDGER | OF(PROBE), "URL",
     "The ledger in Redis, as for `millrace serve`; password: MILLRACE_REDIS_PASSWORD or --redis-password-file."},
    {"journal", TEXT, AT(journal), NONE, ON_LEDGER | OF(PROBE), "FOLDER",
     "The ledger in the journal folder of a node that is not running."},
    {"server", TEXT, AT(server), NONE, ON_LEDGER | OF(PROBE), "URL",
     "The ledger of a running server, through its admin port; key: MILLRACE_ADMIN_KEY or --admin-key-file."},
    {"redis-password-file", TEXT, AT(redis_password_file), NONE, ON_LEDGER | OF(PROBE), "FILE",
     "The first line is the password of Redis."},
    {"redis-ca-file", TEXT, AT(redis_ca_file), NONE, ON_LEDGER | OF(PROBE), "FILE",
     "Certificates that Redis' own must lead to, PEM."},
    {"redis-cert-file", TEXT, AT(redis_cert_file), NONE, ON_LEDGER | OF(PROBE), "FILE",
     "Our certificate for Redis, PEM."},
    {"redis-key-file", TEXT, AT(redis_key_file), NONE, ON_LEDGER | OF(PROBE), "FILE", "Its private key, PEM."},
    {"admin-key-file", TEXT, AT(admin_key_file), NONE, ON_LEDGER | OF(PROBE), "FILE",
     "The first line is the admin key."},
    {"ca-file", TEXT, AT(ca_file), NONE, ON_LEDGER | OF(PROBE), "FILE",
     "Certificates that an https server's own must lead to, PEM."},
    {"json", FLAG, AT(json), NONE, EVERY, NULL, "Machine-readable output; amounts in micro-tokens (units)."},
    {"uuid", TEXT, AT(uuid), NONE, OF(INIT) | OF(REBUILD) | OF(ADOPT), "UUID",
     "The ledger's identity; without it a new one (init), or that of the folder."},
    {"order", TEXT, AT(order), NONE, BY_ORDER | OF(ACCOUNT), "ID",
     "Your own id of this change, 1 to 64 of A-Z a-z 0-9 _ . : -"},
    {"tokens", TOKENS, AT(units), AT(units_given), OF(TOPUP), "N", "How many tokens, with k, M, G or T if you like."},
    {"package", TEXT, AT(package), NONE, BY_ORDER, "ID",
     "The package, 1 to 32 of A-Z a-z 0-9 _ -; a new one's default is made from the order's id."},
    {"increase", FLAG, AT(increase), NONE, OF(TOPUP), NULL, "Add to the package --package instead of making one."},
    {"priority", NUMBER, AT(priority), NONE, OF(TOPUP), "N", "Lower ones are used first; default 100."},
    {"classes", CLASSES, AT(classes), NONE, OF(TOPUP), "LIST", "Model classes it pays for, like 0,3; default all."},
    {"effective", TIME, AT(effective_ms), NONE, OF(TOPUP), "TIME", "From when it may be used; default at once."},
    {"expires", TIME, AT(expires_ms), NONE, OF(TOPUP), "TIME", "Until when; default for ever."},
    {"tenant", TEXT, AT(tenant), NONE, OF(ACCOUNT) | OF(EXPORT), "NAME", "The tenant that the account belongs to."},
    {"account", TEXT, AT(account), NONE, OF(KEY) | OF(USAGE) | OF(EXPORT) | OF(PROBE), "NAME",
     "The account, or several with commas."},
    {"label", TEXT, AT(label), NONE, OF(KEY), "TEXT", "A name for the key, shown in lists."},
    {"rpm", NUMBER, AT(rpm), AT(rpm_given), OF(KEY), "N", "Requests a minute; 0: the server's default."},
    {"tpm", NUMBER, AT(tpm), AT(tpm_given), OF(KEY), "N", "Tokens a minute; 0: the server's default."},
    {"concurrency", NUMBER, AT(concurrency), AT(concurrency_given), OF(KEY), "N",
     "Requests at once; 0: the server's default."},
    {"budget", TOKENS, AT(budget_units), AT(budget_given), OF(KEY), "N",
     "Tokens of weight 1 that the key may use in each --budget-period, of what its account has; 0: no budget."},
    {"budget-period", TEXT, AT(budget_period), NONE, OF(KEY), "WORD", "day, month (the default) or total."},
    {"by", TEXT, AT(by), NONE, OF(USAGE), "LIST",
     "Sums by tenant, account, key, model, class, cause, day, month, with commas; default tenant,model,month."},
    {"from", TIME, AT(from_ms), NONE, OF(USAGE) | OF(EXPORT), "TIME", "Records that ended at this time or later."},
    {"to", TIME, AT(to_ms), NONE, OF(USAGE) | OF(EXPORT), "TIME", "Records that ended before it."},
    {"month", MONTH, AT(month), NONE, OF(USAGE) | OF(EXPORT) | OF(AUDIT), "YYYY-MM", "Records billed in this month."},
    {"archive", TEXT, AT(archive), NONE, OF(AUDIT) | OF(USAGE) | OF(EXPORT) | OF(REPLAY) | OF(REBUILD), "FOLDER",
     "Where older segments of the folder lie."},
    {"fallback", TEXT, AT(fallback), NONE, OF(AUDIT) | OF(USAGE) | OF(EXPORT) | OF(REPLAY) | OF(ADOPT) | OF(REPAIR),
     "FOLDER", "The server's --journal-fallback."},
    {"bill-utc-offset", OFFSET, AT(utc_offset_s), AT(utc_offset_given),
     OF(AUDIT) | OF(KEY) | OF(USAGE) | OF(REPLAY) | OF(PROBE), "+HH:MM",
     "Of billing months and days, as given to the server."},
    {"format", TEXT, AT(format), NONE, OF(EXPORT), "FORMAT", "jsonl (default) or csv."},
    {"output", TEXT, AT(output), NONE, OF(EXPORT), "FILE",
     "Written whole or not at all, and on disk when the command ends; must not exist."},
    {"trim", FLAG, AT(trim), NONE, OF(EXPORT), NULL,
     "Remove from the log of --redis what was exported, after --output is on disk."},
    {"orders", TEXT, AT(orders), NONE, OF(REBUILD), "FILE",
     "Orders as JSON lines, oldest first, as `topup --json` "
     "prints them."},
    {"log", TEXT, AT(log), NONE, OF(REBUILD), "FILE",
     "What `export --redis` wrote; several exports behind one another, the oldest first."},
    {"force", FLAG, AT(force), NONE, OF(REPAIR) | OF(TOPUP), NULL,
     "repair: do it. topup: also for a name that is no account of the directory, such as a tenant of a key file."},
    {"grace", NUMBER, AT(grace_s), NONE, OF(REAP), "SECONDS", "Leases that ended longer ago than this; default 300."},
    {"api-key-file", TEXT, AT(api_key_file), NONE, OF(PROBE), "FILE", "The first line is the API key to send with."},
    {"model", TEXT, AT(model), NONE, OF(PROBE) | OF(USAGE) | OF(EXPORT), "NAME", "The model."},
    {"count", NUMBER, AT(count), NONE, OF(PROBE), "N", "How many requests; default 8."},
};
enum { TABLE_COUNT = sizeof table / sizeof *table };

const char *bill_command_name(enum bill_command command)
{
    return command < BILL_COMMANDS ? commands[command].name : "";
}

/* ---- reading ---- */

static enum status unknown_option(const struct bill_options *options, const char *name, struct error *err)
{
    for (size_t i = 0; i < TABLE_COUNT; i++)
        if (strcmp(table[i].name, name) == 0)
            return error_set(err, ST_INVAL, "--%s is no option of \"bill %s\"; \"millrace bill %s --help\" lists them",
                             name, commands[options->command].name, commands[options->command].name);
    return error_set(err, ST_INVAL, "--%.60s: no such option; \"millrace bill %s --help\" lists them", name,
                     commands[options->command].name);
}

static enum status set(struct bill_options *options, size_t idx, const char *text, struct error *err)
{
    void *member = (char *)options + table[idx].offset;
    struct error reason = {""};
    enum status status = ST_OK;
    switch (table[idx].kind) {
    case TEXT:
        if (!*text) status = error_set(&reason, ST_INVAL, "the value is empty");
        *(const char **)member = text;
        break;
    case FLAG: *(bool *)member = true; break;
    case TOKENS: status = bill_parse_tokens(text, PACKAGE_UNITS_MAX, member, &reason); break;
    case NUMBER: status = bill_parse_number(text, UINT64_C(9007199254740991), member, &reason); break;
    case TIME: status = bill_parse_time(text, member, &reason); break;
    case MONTH: status = bill_parse_month(text, member, &reason); break;
    case OFFSET: status = bill_parse_offset(text, member, &reason); break;
    case CLASSES: status = bill_parse_classes(text, member, &reason); break;
    }
    if (status != ST_OK) return error_set(err, status, "--%s: %.400s", table[idx].name, reason.message);
    if (table[idx].given != NONE) *(bool *)((char *)options + table[idx].given) = true;
    return ST_OK;
}

static enum status read_flag(struct bill_options *options, int argc, char **argv, int *at, struct error *err)
{
    char name[64];
    const char *text = argv[*at] + 2, *equals = strchr(text, '=');
    size_t length = equals ? (size_t)(equals - text) : strlen(text), idx = 0;
    if (length >= sizeof name) return error_set(err, ST_INVAL, "%.80s: no such option", argv[*at]);
    memcpy(name, text, length);
    name[length] = '\0';
    while (idx < TABLE_COUNT && (strcmp(table[idx].name, name) != 0 || !(table[idx].commands >> options->command & 1)))
        idx++;
    if (idx == TABLE_COUNT) {
        if (strstr(name, "password") || strstr(name, "-key"))
            return error_set(err, ST_INVAL,
                             "--%s: secrets are never arguments, which every user of the machine can read; use the "
                             "environment or a -file option",
                             name);
        return unknown_option(options, name, err);
    }
    if (table[idx].kind == FLAG)
        return equals ? error_set(err, ST_INVAL, "--%s takes no value", name) : set(options, idx, "", err);
    if (!equals && *at + 1 >= argc) return error_set(err, ST_INVAL, "--%s: a value is missing", name);
    return set(options, idx, equals ? equals + 1 : argv[++*at], err);
}

static enum status check_names(const struct bill_options *options, struct error *err)
{
    const char *name = commands[options->command].name;
    const char *name_is = commands[options->command].name_is;
    uint32_t least = commands[options->command].names_min;
    if (options->verb) {
        bool none =
            !strcmp(options->verb, "list") || (options->command == BILL_KEY && !strcmp(options->verb, "create"));
        least = none ? 0 : 1;
        if (none && options->names_count > 0)
            return error_set(err, ST_INVAL, "\"bill %s %s\" takes no name, but got \"%.80s\"", name, options->verb,
                             options->names[0]);
    }
    if (options->names_count < least)
        return error_set(err, ST_INVAL, "which %s? usage: millrace bill %s %s", name_is, name,
                         commands[options->command].usage);
    return ST_OK;
}

static enum status check(const struct bill_options *options, struct error *err)
{
    if (commands[options->command].verbs && !options->verb)
        return error_set(err, ST_INVAL, "say what to do: millrace bill %s %s", commands[options->command].name,
                         commands[options->command].usage);
    TRY(check_names(options, err));
    if ((options->redis != NULL) + (options->journal != NULL) + (options->server != NULL) > 1)
        return error_set(err, ST_INVAL, "--redis, --journal and --server each say where the ledger is: give one");
    if (options->from_ms && options->to_ms && options->from_ms >= options->to_ms)
        return error_set(err, ST_INVAL, "--from must lie before --to");
    if (options->effective_ms && options->expires_ms && options->effective_ms >= options->expires_ms)
        return error_set(err, ST_INVAL, "--effective must lie before --expires");
    return ST_OK;
}

static void read_environment(struct bill_options *options, char **environment)
{
    static const struct {
        const char *name;
        size_t offset;
    } known[] = {{"MILLRACE_REDIS_PASSWORD=", AT(redis_password)},
                 {"MILLRACE_ADMIN_KEY=", AT(admin_key)},
                 {"MILLRACE_API_KEY=", AT(api_key)}};
    for (char **entry = environment; entry && *entry; entry++)
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (strncmp(*entry, known[i].name, strlen(known[i].name)) == 0 && (*entry)[strlen(known[i].name)])
                *(const char **)((char *)options + known[i].offset) = *entry + strlen(known[i].name);
}

static enum status read_word(struct bill_options *options, const char *word, struct error *err)
{
    char padded[32] = " ";
    size_t length = strlen(word);
    const char *verbs = commands[options->command].verbs;
    if (verbs && !options->verb) {
        if (length + 3 > sizeof padded) length = 0;
        memcpy(padded + 1, word, length);
        memcpy(padded + 1 + length, " ", 2);
        if (length == 0 || strchr(word, ' ') || !strstr(verbs, padded))
            return error_set(err, ST_INVAL, "\"%.40s\" is none of:%s", word, verbs);
        options->verb = word;
        return ST_OK;
    }
    if (options->names_count == commands[options->command].names_max)
        return error_set(err, ST_INVAL, "\"%.80s\" is one name too many; usage: millrace bill %s %s", word,
                         commands[options->command].name, commands[options->command].usage);
    options->names[options->names_count++] = word;
    return ST_OK;
}

enum status bill_args_read(struct bill_options *options, int argc, char **argv, char **environment, struct error *err)
{
    bool only_words = false;
    *options = (struct bill_options){.command = BILL_COMMANDS, .priority = 100, .count = 8, .grace_s = 300};
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) options->help = true;
    if (argc == 0 && !options->help)
        return error_set(err, ST_INVAL, "say what to do; \"millrace bill --help\" lists it");
    if (argc > 0 && !strcmp(argv[0], "help")) options->help = true, argv++, argc--;
    for (int i = 0; argc > 0 && i < BILL_COMMANDS; i++)
        if (!strcmp(argv[0], commands[i].name)) options->command = (enum bill_command)i;
    if (options->help) return ST_OK;
    if (options->command == BILL_COMMANDS)
        return error_set(err, ST_INVAL, "there is no \"bill %.40s\"; \"millrace bill --help\" lists what there is",
                         argv[0]);
    read_environment(options, environment);
    for (int i = 1; i < argc; i++) {
        if (!only_words && !strcmp(argv[i], "--"))
            only_words = true;
        else if (!only_words && !strncmp(argv[i], "--", 2))
            TRY(read_flag(options, argc, argv, &i, err));
        else if (!only_words && argv[i][0] == '-' && argv[i][1])
            return unknown_option(options, argv[i] + 1, err);
        else
            TRY(read_word(options, argv[i], err));
    }
    return check(options, err);
}

/* ---- help ---- */

static void append_wrapped(struct buf *out, const char *text, size_t indent)
{
    for (size_t column = 0; *text;) {
        size_t word = strcspn(text, " ");
        if (column > 0 && column + 1 + word > 96) {
            buf_append_char(out, '\n');
            column = 0;
        }
        if (column == 0) {
            for (size_t i = 0; i < indent; i++) buf_append_char(out, ' ');
            column = indent;
        } else {
            buf_append_char(out, ' ');
            column++;
        }
        buf_append(out, text, word);
        column += word;
        text += word + (text[word] == ' ');
    }
    buf_append_char(out, '\n');
}

static void help_of(enum bill_command command, struct buf *out)
{
    buf_append_format(out, "usage: millrace bill %s %s [options]\n\n", commands[command].name, commands[command].usage);
    if (*commands[command].text) {
        append_wrapped(out, commands[command].text, 0);
        buf_append_char(out, '\n');
    }
    buf_append_text(out, "Options:\n");
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        if (!(table[i].commands >> command & 1)) continue;
        buf_append_format(out, "  --%s%s%s\n", table[i].name, table[i].value_name ? " " : "",
                          table[i].value_name ? table[i].value_name : "");
        append_wrapped(out, table[i].help, 8);
    }
}

void bill_args_help(enum bill_command command, struct buf *out)
{
    if (command != BILL_COMMANDS) {
        help_of(command, out);
        return;
    }
    buf_append_text(out, "usage: millrace bill COMMAND [options]\n\n"
                         "Accounts, packages and keys of a ledger, and proofs of what was billed.\n\n");
    for (int i = 0; i < BILL_COMMANDS; i++)
        buf_append_format(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    buf_append_text(
        out,
        "\nWhere the ledger is: --redis URL, --server URL (of a running server's admin port), or --journal FOLDER\n"
        "(of a node that is not running).\n\n"
        "  millrace bill account create ada --server http://127.0.0.1:9000\n"
        "  millrace bill key create --account ada --server http://127.0.0.1:9000\n"
        "  millrace bill topup ada --tokens 1.5M --order 2026-0001 --server http://127.0.0.1:9000\n"
        "  millrace bill balance ada --server http://127.0.0.1:9000\n\n"
        "\"millrace bill COMMAND --help\" tells more. Exit codes: 0 done, 1 refused or differences found, 2 wrong\n"
        "usage, 3 damage; of audit: 0, 1 differences, 2 damage or wrong usage.\n");
}
