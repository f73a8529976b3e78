/* Patterns of module names: what they match, as Python's re.match does, and what is not known. */
#include "runtime/model/quant_pattern.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct {
    const char *pattern, *name;
    bool matches;
} cases[] = {
    {".*lm_head", "lm_head", true},
    {".*lm_head", "model.lm_head.x", true},
    {".*lm_head", "model.lm_hea", false},
    {"lm_head", "model.lm_head", false}, /* from the begin only */
    {"", "x", true},
    {".*mlp.gate$", "model.layers.0.mlp.gate", true},
    {".*mlp.gate$", "model.layers.0.mlp.gate_proj", false},
    {"^model\\.layers\\.\\d+\\.mlp", "model.layers.17.mlp.up_proj", true},
    {"^model\\.layers\\.\\d+\\.mlp", "model.layers..mlp.up_proj", false},
    {"model.layers.[0-4].self_attn.(q|k|v)_proj", "model.layers.3.self_attn.k_proj", true},
    {"model.layers.[0-4].self_attn.(q|k|v)_proj", "model.layers.5.self_attn.k_proj", false},
    {"model.layers.[^0-4].", "model.layers.5.x", true},
    {"model.layers.[^0-4].", "model.layers.4.x", false},
    {".*\\.(?:gate|up|down)_proj$", "model.layers.3.mlp.down_proj", true},
    {".*\\.(?:gate|up|down)_proj$", "model.layers.3.self_attn.o_proj", false},
    {".*(a|ab)(c|bcd)$", "xabcd", true}, /* needs to come back to the first group */
    {".*(mlp.(gate|up)|self_attn.[qkv])_proj", "l.0.self_attn.v_proj", true},
    {".*(mlp.(gate|up)|self_attn.[qkv])_proj", "l.0.mlp.down_proj", false},
    {"a?b+c*$", "b", true},
    {"a?b+c*$", "abbbccc", true},
    {"a?b+c*$", "aabb", false},
    {"a?b+c*$", "ac", false},
    {"lm_head|.*embed.*", "model.embed_tokens", true},
    {"lm_head|.*embed.*", "model.norm", false},
    {"\\w+\\.x$", "a_9.x", true},
    {"\\w+\\.x$", "a-9.x", false},
    {"[a-c-]+$", "a-b", true},
    {"model.*", "model", true},
    {".+x", "x", false},
    {"()b", "b", true},
};

static void test_quant_pattern_matches(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool gave_up = false;
        if (!quant_pattern_is_known(cases[i].pattern)) fail_msg("%s is not known", cases[i].pattern);
        if (quant_pattern_match(cases[i].pattern, cases[i].name, &gave_up) != cases[i].matches)
            fail_msg("%s and %s", cases[i].pattern, cases[i].name);
        assert_false(gave_up);
    }
}

static void test_quant_pattern_unknown(void **state)
{
    (void)state;
    static const char *const unknown[] = {
        "a{2}", "(?=a)", "(?!a)", "(?<n>a)", "(a",  "a)",      "(a)*", "*a",   "a**", "a|*", "[a",
        "[]",   "[^]",   "\\1",   "\\b",     "a\\", "[[:x:]]", "a]",   "a.*?", "^*",  "(?",  "(*a)",
    };
    char longest[QUANT_PATTERN_MAX + 2];
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        if (quant_pattern_is_known(unknown[i])) fail_msg("%s is known", unknown[i]);
    memset(longest, 'a', sizeof longest);
    longest[QUANT_PATTERN_MAX] = 0;
    assert_true(quant_pattern_is_known(longest));
    longest[QUANT_PATTERN_MAX] = 'a';
    longest[QUANT_PATTERN_MAX + 1] = 0;
    assert_false(quant_pattern_is_known(longest));
}

/* A pattern that would go back and forth for ever comes to an end, and says so. */
static void test_quant_pattern_budget(void **state)
{
    (void)state;
    const char *name = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    bool gave_up = false;
    assert_false(quant_pattern_match("a*a*a*a*a*a*a*a*a*a*a*a*b", name, &gave_up));
    assert_true(gave_up);
}

/* Bytes of every kind, in every known pattern that comes about: no read outside (under ASan), and an end. */
static void test_quant_pattern_random(void **state)
{
    (void)state;
    static const char alphabet[] = "ab.()|*+?[]^$\\d-:x";
    uint64_t seed = 20261123;
    unsigned known = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < 200000; i++) {
        char pattern[12], name[8];
        size_t length = 0, named = 0;
        for (uint64_t r = seed; length < 11 && r % 13; r /= 13, length++) pattern[length] = alphabet[r % 18];
        for (uint64_t r = seed >> 7; named < 7 && r % 5; r /= 5, named++) name[named] = "ab.dx"[r % 5];
        pattern[length] = name[named] = 0;
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        bool gave_up = false;
        if (!quant_pattern_is_known(pattern)) continue;
        known++;
        quant_pattern_match(pattern, name, &gave_up);
    }
    assert_true(known > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quant_pattern_matches),
        cmocka_unit_test(test_quant_pattern_unknown),
        cmocka_unit_test(test_quant_pattern_budget),
        cmocka_unit_test(test_quant_pattern_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
