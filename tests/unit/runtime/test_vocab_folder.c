/* A Hugging Face folder's tokenizer files as a vocabulary. */
#include "tests/unit/unit.h"
#include "tests/unit/runtime/tiny_folder.h"

#include "runtime/base/mem.h"
#include "runtime/model/vocab_folder.h"
#include "runtime/model/vocab_read.h"
#include "runtime/text/tokenizer.h"

/* A folder with the usual tokenizer.json and the other files as given (NULL: not there). */
static void make(struct tiny_folder *folder, const char *tokenizer_config, const char *generation_config,
                 const char *config)
{
    struct buf text;
    buf_init(&text, 0);
    tiny_json_write(&(struct tiny_json){0}, &text);
    tiny_folder_create(folder);
    tiny_folder_write(folder, "tokenizer.json", text.data, text.length);
    if (tokenizer_config)
        tiny_folder_write(folder, "tokenizer_config.json", tokenizer_config, strlen(tokenizer_config));
    if (generation_config)
        tiny_folder_write(folder, "generation_config.json", generation_config, strlen(generation_config));
    if (config) tiny_folder_write(folder, "config.json", config, strlen(config));
    buf_free(&text);
}

static void read_folder(const struct tiny_folder *folder, struct vocab *vocab)
{
    struct error err = {""};
    enum status status = vocab_read_folder(folder->path, vocab, &err);
    if (status != ST_OK) print_error("%s\n", err.message);
    assert_int_equal(status, ST_OK);
}

/* A folder with these files is refused, and the reason holds `part`. */
static void refuse(const char *tokenizer_config, const char *generation_config, const char *config, const char *part)
{
    struct tiny_folder folder;
    struct vocab vocab;
    struct error err = {""};
    make(&folder, tokenizer_config, generation_config, config);
    assert_int_equal(vocab_read_folder(folder.path, &vocab, &err), ST_INVAL);
    if (!strstr(err.message, part)) print_error("\"%s\" lacks \"%s\"\n", err.message, part);
    assert_non_null(strstr(err.message, part));
    assert_null(vocab.tokens);
    assert_null(vocab.pipeline);
    tiny_folder_destroy(&folder);
}

static void test_vocab_folder_reads_tokens_and_kinds(void **state)
{
    (void)state;
    struct tiny_folder folder;
    struct vocab vocab;
    make(&folder, NULL, NULL, NULL);
    read_folder(&folder, &vocab);
    assert_string_equal(vocab.model, "BPE");
    assert_int_equal(vocab.count, 261);
    assert_int_equal(vocab.merges_count, 2);
    assert_int_equal(vocab.pipeline->merges[1].left, 256);
    assert_int_equal(vocab.pipeline->merges[1].right, 'l');
    assert_int_equal(vocab.pipeline->merges[1].product, 257);
    assert_int_equal(vocab.kinds[257], VOCAB_NORMAL);
    assert_int_equal(vocab.kinds[258], VOCAB_CONTROL);
    assert_int_equal(vocab.kinds[260], VOCAB_USER_DEFINED);
    assert_memory_equal(vocab.tokens[260].text, "<think>", 7);
    assert_int_equal(vocab.bos_id, VOCAB_NO_ID);
    assert_int_equal(vocab.end_ids_count, 0);
    vocab_free(&vocab);
    tiny_folder_destroy(&folder);
}

static void test_vocab_folder_names_ids(void **state)
{
    (void)state;
    struct tiny_folder folder;
    struct vocab vocab;
    make(&folder,
         "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\",\"lstrip\":false},\"pad_token\":null,"
         "\"add_bos_token\":true,\"model_max_length\":1000000000000000019884624838656}",
         "{\"eos_token_id\":[259,260,99999]}", "{\"eos_token_id\":7}");
    read_folder(&folder, &vocab);
    assert_int_equal(vocab.bos_id, 258);
    assert_int_equal(vocab.eos_id, 259);
    assert_int_equal(vocab.padding_id, VOCAB_NO_ID);
    assert_true(vocab.add_bos);
    assert_false(vocab.add_eos);
    assert_int_equal(vocab.pipeline->prefix_count, 1);
    assert_int_equal(vocab.end_ids_count, 2);
    assert_int_equal(vocab.end_ids[0], 259);
    assert_int_equal(vocab.end_ids[1], 260);
    vocab_free(&vocab);
    tiny_folder_destroy(&folder);
}

/* Without the other files config.json's ids count, those of text_config too. */
static void test_vocab_folder_falls_back_to_config(void **state)
{
    (void)state;
    struct tiny_folder folder;
    struct vocab vocab;
    make(&folder, NULL, NULL, "{\"bos_token_id\":258,\"text_config\":{\"eos_token_id\":[260]}}");
    read_folder(&folder, &vocab);
    assert_int_equal(vocab.bos_id, 258);
    assert_int_equal(vocab.eos_id, 260);
    assert_false(vocab.add_bos);
    assert_int_equal(vocab.end_ids_count, 1);
    assert_int_equal(vocab.end_ids[0], 260);
    vocab_free(&vocab);
    tiny_folder_destroy(&folder);
}

static void test_vocab_folder_refuses(void **state)
{
    (void)state;
    refuse("{\"eos_token\":\"<none>\"}", NULL, NULL, "tokenizer_config.json: eos_token \"<none>\" is no token");
    refuse("{\"eos_token\":7}", NULL, NULL, "tokenizer_config.json: \"eos_token\" is no text");
    refuse("{\"add_bos_token\":1}", NULL, NULL, "add_bos_token");
    refuse("[]", NULL, NULL, "tokenizer_config.json: an object is missing");
    refuse(NULL, "{\"eos_token_id\":\"</s>\"}", NULL, "generation_config.json: \"eos_token_id\" is no id");
    refuse(NULL, "{\"eos_token_id\":[1,2,[3]]}", NULL, "generation_config.json: \"eos_token_id\" is no id");
    refuse(NULL, "{\"eos_token_id\":1,\"eos_token_id\":2}", NULL, "\"eos_token_id\" stands twice");
    refuse(NULL, NULL, "{\"eos_token_id\":1", "config.json: a comma or the end is missing at byte");
    refuse(NULL, NULL, "{\"eos_token_id\":1e3}", "config.json: \"eos_token_id\" is no id");
}

static void test_vocab_folder_without_tokenizer(void **state)
{
    (void)state;
    struct tiny_folder folder;
    struct vocab vocab;
    struct error err = {""};
    tiny_folder_create(&folder);
    assert_int_equal(vocab_read_folder(folder.path, &vocab, &err), ST_NOTFOUND);
    assert_non_null(strstr(err.message, "tokenizer.json is missing from the folder"));
    tiny_folder_destroy(&folder);
}

static void check_template(const struct tiny_folder *folder, const char *wanted)
{
    const char *text = "";
    size_t length = 0;
    struct error err = {""};
    assert_int_equal(vocab_read_folder_template(folder->path, &text, &length, &err), ST_OK);
    if (!wanted) {
        assert_null(text);
    } else {
        assert_string_equal(text, wanted);
        assert_int_equal(length, strlen(wanted));
    }
    mem_free((void *)(uintptr_t)text);
}

static void test_vocab_folder_template(void **state)
{
    (void)state;
    struct tiny_folder folder;
    make(&folder, NULL, NULL, NULL);
    check_template(&folder, NULL);
    const char *list =
        "{\"chat_template\":[{\"name\":\"rag\",\"template\":\"r\"},{\"name\":\"default\",\"template\":\"d\"}]}";
    tiny_folder_write(&folder, "tokenizer_config.json", list, strlen(list));
    check_template(&folder, "d");
    const char *text = "{\"chat_template\":\"{{ messages }}\"}";
    tiny_folder_write(&folder, "tokenizer_config.json", text, strlen(text));
    check_template(&folder, "{{ messages }}");
    tiny_folder_write(&folder, "chat_template.jinja", "j", 1);
    check_template(&folder, "j");
    const char *found;
    size_t length;
    struct error err = {""};
    tiny_folder_write(&folder, "chat_template.jinja", "a\0b", 3);
    assert_int_equal(vocab_read_folder_template(folder.path, &found, &length, &err), ST_INVAL);
    tiny_folder_destroy(&folder);
}

static void test_vocab_folder_encodes(void **state)
{
    (void)state;
    struct tiny_folder folder;
    struct vocab vocab;
    struct tokenizer *tokenizer;
    struct token_list list = {0};
    struct error err = {""};
    make(&folder, "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_bos_token\":true}", NULL, NULL);
    read_folder(&folder, &vocab);
    assert_int_equal(tokenizer_create(&vocab, &tokenizer, &err), ST_OK);
    vocab_free(&vocab);
    struct text_span spans[] = {{6, false}, {10, true}};
    assert_int_equal(tokenizer_encode(tokenizer, "hel<s></s>", 10, spans, 2, true, &list), ST_OK);
    static const uint32_t wanted[] = {258, 257, '<', 's', '>', 259};
    assert_int_equal(list.count, 6);
    assert_memory_equal(list.ids, wanted, sizeof wanted);
    token_list_free(&list);
    tokenizer_destroy(tokenizer);
    tiny_folder_destroy(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vocab_folder_reads_tokens_and_kinds),
        cmocka_unit_test(test_vocab_folder_names_ids),
        cmocka_unit_test(test_vocab_folder_falls_back_to_config),
        cmocka_unit_test(test_vocab_folder_refuses),
        cmocka_unit_test(test_vocab_folder_without_tokenizer),
        cmocka_unit_test(test_vocab_folder_template),
        cmocka_unit_test(test_vocab_folder_encodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
