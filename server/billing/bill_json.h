/* What `millrace bill --json`, the admin endpoints and a client of them say to each other: balances, monthly sums,
 * orders, both ways. Amounts are units (micro-tokens) as JSON integers, members `*_units`; times are ISO 8601 texts.
 * Readers take what writers make and what a person would write (an account by name, "tokens": "1.5M"). Pure, any
 * thread. */
#ifndef SERVER_BILLING_BILL_JSON_H
#define SERVER_BILLING_BILL_JSON_H

#include "runtime/base/json.h"
#include "server/billing/ledger.h"

/* "ada", or "id:123" for an account whose name is not at hand. ST_INVAL: err says how a name looks. */
NODISCARD enum status bill_account(const char *text, uint64_t *account, struct error *err);

/* name: of the account, or NULL. months_of: the month that totals are of. */
void bill_json_balance(const struct account_balance *balance, const char *name, struct buf *out);
void bill_json_months(uint64_t account, const char *name, uint32_t month, const struct month_total *totals,
                      uint32_t count, struct buf *out);
/* The members of one sum, without braces: "input_tokens":..., as OpenAI's usage API names them where it does. Energy
 * stands there twice: "energy_joules" and "gco2_location", "gco2_market" (grams) for people, exact decimals; and as
 * integers, "energy_uj" and so on, for whoever adds them up. */
void bill_json_total(const struct month_total *total, struct buf *out);
/* ,"energy_records":... : the part of it that tells energy. */
void bill_json_energy(const struct month_total *total, struct buf *out);
/* Millionths as a decimal: 1500000 is 1.500000. */
void bill_append_millionths(struct buf *out, uint64_t millionths);
void bill_json_order(const struct order *order, enum ledger_answer answer, struct buf *out);

NODISCARD enum status bill_read_balance(const struct json *json, struct account_balance *balance, struct error *err);
NODISCARD enum status bill_read_months(const struct json *json, struct month_total totals[MODEL_CLASSES],
                                       uint32_t *count, struct error *err);
/* {"id", "account", "op": add|inc|void, "package", "units" or "tokens", "priority", "effective", "expires", "classes"};
 * what is not there gets the default: package from the id, priority 100, at once, for ever, all classes. Unknown
 * members are refused: a misspelt "expires" must not make a package for ever. created_ms is the caller's. */
NODISCARD enum status bill_read_order(const struct json *json, struct order *order, struct error *err);

/* The same defaults and checks for an order made from arguments: fills in order->package when it is empty. */
NODISCARD enum status bill_order_check(struct order *order, struct error *err);
/* Copies a text of at most size - 1 bytes of the set, at least one. */
NODISCARD enum status bill_copy_id(const char *text, const char *what, const char *others, char *out, size_t size,
                                   struct error *err);

#endif
