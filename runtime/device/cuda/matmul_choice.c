/* Keys, table and file text of matmul_choice.h. A line is read field by field with its own bounds: strtoull and sscanf
 * take signs, spaces and overflow as they please. */
#include "runtime/device/cuda/matmul_choice.h"

#include "runtime/base/check.h"
#include "runtime/base/crc32c.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define HEAD "millrace-matmul 1 "

uint32_t matmul_bucket(uint32_t M)
{
    CHECK(M >= 1);
    for (uint32_t power = 1;; power *= 2) {
        if (M <= power) return power;
        if (power >= 2 && M <= power + power / 2) return power + power / 2;
        if (power >= UINT32_C(1) << 30) return UINT32_C(1) << 31;
    }
}

void matmul_choices_init(struct matmul_choices *choices, const char *gpu, int driver, size_t library)
{
    memset(choices, 0, sizeof *choices);
    (void)snprintf(choices->platform, sizeof choices->platform, "%.255s; driver %d; cublaslt %zu", gpu, driver,
                   library);
    for (char *c = choices->platform; *c; c++)
        if (*c < 0x20 || *c > 0x7e) *c = '?';
}

static bool same_key(const struct matmul_key *a, const struct matmul_key *b)
{
    return a->N == b->N && a->K == b->K && a->M == b->M && a->y_f32 == b->y_f32 && a->bias == b->bias;
}

const struct matmul_choice *matmul_choices_find(const struct matmul_choices *choices, const struct matmul_key *key)
{
    for (uint32_t i = 0; i < choices->count; i++)
        if (same_key(&choices->at[i].key, key)) return &choices->at[i];
    return NULL;
}

bool matmul_choices_put(struct matmul_choices *choices, const struct matmul_choice *choice)
{
    uint32_t i = 0;
    while (i < choices->count && !same_key(&choices->at[i].key, &choice->key)) i++;
    if (i == MATMUL_CHOICES_MAX) return false;
    choices->at[i] = *choice;
    if (i == choices->count) choices->count++;
    return true;
}

/* What is left of a line. */
struct rest {
    const char *at, *end;
};

/* A number of up to `digits` digits, and the space or end of line behind it. */
static bool take_number(struct rest *rest, unsigned base, unsigned digits, uint64_t most, uint64_t *number)
{
    uint64_t value = 0;
    unsigned count = 0;
    for (; rest->at < rest->end && *rest->at != ' '; rest->at++, count++) {
        const char c = *rest->at;
        const unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                               : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                                                      : 16;
        if (digit >= base || count == digits) return false;
        if (value > (UINT64_MAX - digit) / base) return false;
        value = value * base + digit;
    }
    if (count == 0 || value > most) return false;
    if (rest->at < rest->end) rest->at++;
    *number = value;
    return true;
}

/* The checksum that a line begins with, and whether the rest of it has it. */
static bool take_checksum(struct rest *rest)
{
    uint64_t crc;
    return take_number(rest, 16, 8, UINT32_MAX, &crc) && crc == crc32c(rest->at, (size_t)(rest->end - rest->at));
}

static bool parse_line(struct rest rest, struct matmul_choice *choice)
{
    uint64_t N, K, M, y_f32, bias;
    memset(choice, 0, sizeof *choice);
    if (!take_checksum(&rest)) return false;
    if (!take_number(&rest, 10, 10, UINT32_MAX, &N) || !take_number(&rest, 10, 10, UINT32_MAX, &K) ||
        !take_number(&rest, 10, 10, UINT32_MAX, &M) || !take_number(&rest, 10, 1, 1, &y_f32) ||
        !take_number(&rest, 10, 1, 1, &bias) || !take_number(&rest, 10, 19, UINT64_MAX, &choice->workspace_bytes) ||
        !take_number(&rest, 10, 19, UINT64_MAX, &choice->ns))
        return false;
    if (N == 0 || K == 0 || M == 0) return false;
    for (int i = 0; i < 8; i++)
        if (!take_number(&rest, 16, 16, UINT64_MAX, &choice->algo.data[i])) return false;
    choice->key = (struct matmul_key){(uint32_t)N, (uint32_t)K, (uint32_t)M, y_f32, bias};
    return rest.at == rest.end && matmul_bucket(choice->key.M) == choice->key.M;
}

static bool is_head(struct rest line, const char *platform)
{
    const size_t length = strlen(HEAD), platform_length = strlen(platform);
    if ((size_t)(line.end - line.at) < length || memcmp(line.at, HEAD, length) != 0) return false;
    line.at += length;
    return take_checksum(&line) && (size_t)(line.end - line.at) == platform_length &&
           memcmp(line.at, platform, platform_length) == 0;
}

uint32_t matmul_choices_parse(struct matmul_choices *choices, const char *text, size_t length, size_t workspace_bytes)
{
    uint32_t taken = 0;
    const char *const end = text + length;
    for (bool first = true; text < end; first = false) {
        const char *const newline = memchr(text, '\n', (size_t)(end - text));
        if (!newline) break; /* a line that was cut short */
        struct matmul_choice choice;
        if (first) {
            if (!is_head((struct rest){text, newline}, choices->platform)) return 0;
        } else if (parse_line((struct rest){text, newline}, &choice) && choice.workspace_bytes <= workspace_bytes &&
                   matmul_choices_put(choices, &choice)) {
            taken++;
        }
        text = newline + 1;
    }
    return taken;
}

/* Appends "<prefix><crc of body> <body>\n". */
static size_t append(char *text, size_t length, const char *prefix, const char *body)
{
    const int written =
        snprintf(text + length, MATMUL_LINE_MAX, "%s%08" PRIx32 " %s\n", prefix, crc32c(body, strlen(body)), body);
    CHECK(written > 0 && written < MATMUL_LINE_MAX);
    return length + (size_t)written;
}

size_t matmul_choices_print(const struct matmul_choices *choices, char *text)
{
    size_t length = append(text, 0, HEAD, choices->platform);
    for (uint32_t i = 0; i < choices->count; i++) {
        const struct matmul_choice *const choice = &choices->at[i];
        const struct matmul_key *const key = &choice->key;
        char body[MATMUL_LINE_MAX - 16];
        int at = snprintf(body, sizeof body, "%" PRIu32 " %" PRIu32 " %" PRIu32 " %d %d %" PRIu64 " %" PRIu64, key->N,
                          key->K, key->M, key->y_f32, key->bias, choice->workspace_bytes, choice->ns);
        for (int word = 0; word < 8; word++)
            at += snprintf(body + at, sizeof body - (size_t)at, " %016" PRIx64, choice->algo.data[word]);
        CHECK(at < (int)sizeof body);
        length = append(text, length, "", body);
    }
    return length;
}
