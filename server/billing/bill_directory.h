/* Accounts and keys of a ledger's directory, changed by `millrace bill` and the admin endpoints alike: read the lines,
 * change one, put it back. Answers are appended as JSON. Blocking as the ledger's client is. */
#ifndef SERVER_BILLING_BILL_DIRECTORY_H
#define SERVER_BILLING_BILL_DIRECTORY_H

#include "server/billing/directory.h"
#include "server/billing/ledger_client.h"

/* What a ledger's answer means and what to do about it; one sentence, static. */
const char *bill_answer_text(enum ledger_answer answer);

/* All of it, as it is now; the caller destroys it. */
NODISCARD enum status bill_directory_read(const struct ledger_client *client, struct directory **directory,
                                          struct error *err);
/* A new account, or the same again (then nothing changes). tenant NULL: as the name. ST_INVAL: the name, or it is there
 * with another tenant. */
NODISCARD enum status bill_account_create(const struct ledger_client *client, const char *name, const char *tenant,
                                          int64_t now_ms, struct buf *out, struct error *err);
/* Opens or closes in the ledger, then in the directory if the account is in it. */
NODISCARD enum status bill_account_set(const struct ledger_client *client, uint64_t account, const char *order_id,
                                       bool open, enum ledger_answer *answer, struct error *err);

struct bill_key_change {
    const char *id;      /* of a key that is there ("k:.." or its 16 digits), or NULL: a new one of account */
    const char *account; /* its name */
    const char *label;
    bool revoke;
    bool rpm_given, tpm_given, concurrency_given;
    uint64_t rpm, tpm, concurrency;
    bool budget_given;
    uint64_t budget_units;     /* 0: none any more */
    const char *budget_period; /* NULL: as it is, or a month */
    int64_t now_ms;
};
/* A new key's text is in the answer, once: {"key": "mr-...", ..}. ST_NOTFOUND: no such account or key; ST_INVAL:
 * the id, the label, a limit or the budget. */
NODISCARD enum status bill_key_set(const struct ledger_client *client, const struct bill_key_change *change,
                                   struct buf *out, struct error *err);

/* {"object":"list","data":[..]} of keys (of one account, "" is all) or accounts; never a hash. Of a key's budget also
 * what nodes have taken of it in this period, which ends by utc_offset_s. */
NODISCARD enum status bill_directory_list(const struct ledger_client *client, bool keys, const char *account,
                                          int32_t utc_offset_s, struct buf *out, struct error *err);
/* A line as it is, after it was read. ST_INVAL: it is none, or not of this id. */
NODISCARD enum status bill_directory_put(const struct ledger_client *client, const char *id, const char *line,
                                         struct error *err);

#endif
