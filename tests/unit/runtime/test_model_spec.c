/* Dimensions that make no transformer are refused, whoever brought them. (Reading a spec: test_model.c.) */
#include "tests/unit/unit.h"

#include "runtime/model/model_spec.h"

static const struct model_spec whole = {.arch = "tiny",
                                        .layers = 2,
                                        .width = 64,
                                        .heads = 6,
                                        .kv_heads = 2,
                                        .head_size = 16,
                                        .ff_width = 96,
                                        .vocab = 597,
                                        .rope_size = 16,
                                        .experts = 9,
                                        .experts_used = 3,
                                        .expert_width = 64};

static void test_model_spec_refuses_dimensions_that_make_no_transformer(void **state)
{
    (void)state;
    for (int fault = 0; fault <= 13; fault++) {
        struct model_spec spec = whole;
        struct error err = {""};
        switch (fault) {
        case 1: spec.layers = 0; break;
        case 2: spec.width = 0; break;
        case 3: spec.heads = 0; break;
        case 4: spec.kv_heads = 0; break;
        case 5: spec.head_size = spec.rope_size = 0; break;
        case 6: spec.ff_width = 0; break;
        case 7: spec.vocab = 0; break;
        case 8: spec.kv_heads = 4; break;
        case 9: spec.rope_size = 18; break;
        case 10: spec.rope_size = 15; break;
        case 11: spec.experts_used = 10; break;
        case 12: spec.experts_used = 0; break;
        case 13: spec.expert_width = 0; break;
        default: break;
        }
        enum status status = model_spec_check(&spec, &err);
        if (status != (fault ? ST_INVAL : ST_OK)) fail_msg("fault %d gives %s", fault, status_name(status));
        if (fault) assert_non_null(strstr(err.message, "tiny"));
    }
    struct model_spec spec = whole; /* without experts, and without RoPE */
    struct error err = {""};
    spec.experts = spec.experts_used = spec.expert_width = spec.rope_size = 0;
    assert_int_equal(model_spec_check(&spec, &err), ST_OK);
    spec.experts_used = 1;
    assert_int_equal(model_spec_check(&spec, &err), ST_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_spec_refuses_dimensions_that_make_no_transformer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
