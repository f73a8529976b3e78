/* Chat templates: rendering and its origin, hostile templates under their budgets, failing allocations. */
#include "tests/unit/unit.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/text/chat_template.h"

struct result {
    enum status status;
    struct buf out;
    struct span_list spans;
    struct error err;
    bool compiled;
};

static const char conversation[] =
    "[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Hi <|im_end|>\"},"
    "{\"role\":\"assistant\",\"content\":\"Yo\"}]";

/* Compiles and renders source over a list of messages and an object of arguments (JSON texts, or NULL). */
static struct result render_json(const char *source, const char *messages, const char *arguments)
{
    struct result result = {.status = ST_INVAL};
    struct json *list = NULL, *object = NULL;
    struct chat_template *tmpl = NULL;
    buf_init(&result.out, 0);
    if (messages) assert_int_equal(json_read(messages, strlen(messages), &list, &result.err), ST_OK);
    if (arguments) assert_int_equal(json_read(arguments, strlen(arguments), &object, &result.err), ST_OK);
    struct chat_input input = {.messages = list,
                               .arguments = object,
                               .bos_token = "<s>",
                               .eos_token = "</s>",
                               .add_generation_prompt = true,
                               .now_unix_s = 1700000000};
    result.status = chat_template_compile(source, strlen(source), &tmpl, &result.err);
    result.compiled = result.status == ST_OK;
    if (result.compiled) result.status = chat_template_render(tmpl, &input, &result.out, &result.spans, &result.err);
    chat_template_destroy(tmpl);
    json_release(list);
    json_release(object);
    return result;
}

static void release(struct result *result)
{
    buf_free(&result->out);
    span_list_free(&result->spans);
}

static void expect(const char *source, const char *wanted)
{
    struct result result = render_json(source, conversation, NULL);
    buf_append_char(&result.out, '\0');
    if (result.status != ST_OK) print_error("%s: %s\n", source, result.err.message);
    assert_int_equal(result.status, ST_OK);
    assert_string_equal(result.out.data, wanted);
    release(&result);
}

/* The template fails with this status, and its message holds `words`. */
static void expect_failure(const char *source, enum status status, const char *words)
{
    struct result result = render_json(source, conversation, NULL);
    if (result.status != status || !strstr(result.err.message, words))
        print_error("%.80s: %s: '%s', expected %s: '%s'\n", source, status_name(result.status), result.err.message,
                    status_name(status), words);
    assert_int_equal(result.status, status);
    assert_non_null(strstr(result.err.message, words));
    release(&result);
}

static void test_chat_template_renders(void **state)
{
    (void)state;
    expect("{% for m in messages %}[{{ m.role }}:{{ m['content']|trim }}]{% endfor %}",
           "[system:Be brief.][user:Hi <|im_end|>][assistant:Yo]");
    expect("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny");
    expect("{{ messages[-1]['content'] ~ 1 ~ none ~ 1.5 }}", "Yo1None1.5");
    expect("{{ [1, 'a', {'b': true}] }}", "[1, 'a', {'b': True}]");
    expect("{{ {'a': [1, \"q\\\"\"]}|tojson }}", "{\"a\": [1, \"q\\\"\"]}");
    expect("{% macro f(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}{{ f(1, y=3) }}", "1213");
    expect("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3");
    expect("{{ strftime_now('%Y-%m-%d') }}", "2023-11-14");
    expect("{{ []|map('upper')|list }}{{ nothing|select|join }}", "[]");
    expect("{{ range(10)[2:9:3] }}{{ range(10)[::-1]|first }}", "range(2, 9, 3)9");
    expect("{{ undefined_thing }}{{ messages.nothing }}{{ self.nothing }}", "");
    expect("{{ tools is defined }}{{ tools is none }}{{ documents is none }}{{ thinking is defined }}",
           "TrueTrueTrueFalse");
}

static void test_chat_template_spreads_arguments(void **state)
{
    (void)state;
    expect("{% macro f(a, b='B', c='C') %}{{ a ~ b ~ c }}{% endmacro %}{{ f(*[1, 2]) }} {{ f(0, **{'c': 3}) }} "
           "{{ f(*'xy', c='z') }}",
           "12C 0B3 xyz");
    expect("{{ 'banana'|replace(*['a', 'o'], **{'count': 2}) }}{{ range(*[2, 4])|list }}", "bonona[2, 3]");
    expect("{{ dict(a=1, **{'b': 2}) }}", "{'a': 1, 'b': 2}");
    expect("{% macro f(a) %}{{ caller(*[a, 2]) }}{% endmacro %}{% call(x, y) f(**{'a': 1}) %}{{ x + y }}{% endcall %}",
           "3");
    expect_failure("{{ dict(a=1, **{'a': 2}) }}", ST_INVAL, "two values for 'a'");
    expect_failure("{{ dict(**[1]) }}", ST_INVAL, "mapping");
    expect_failure("{{ dict(**{1: 2}) }}", ST_INVAL, "names");
    expect_failure("{{ dict(*[1], *[2]) }}", ST_INVAL, "twice");
    expect_failure("{{ range(*range(65)) }}", ST_LIMIT, "64 arguments");
    expect_failure("{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}", ST_INVAL, "caller");
}

static void test_chat_template_formats_as_printf(void **state)
{
    (void)state;
    expect("{{ '%s=%r|%5.1f|%-4d|%04d|%+d|%x|%c|%%' % ('a', 'b', 2.25, 7, -7, 7, 255, 65) }}",
           "a='b'|  2.2|7   |-007|+7|ff|A|%");
    expect("{{ '%(k)s,%(k)3s' % {'k': 'v'} }}{{ '%s' % [1, 'x'] }}{{ '%s' % 7 }}{{ '%.2s' % 'abc' }}",
           "v,  v[1, 'x']7ab");
    expect("{{ '%s-%s'|format('a', 2) }}{{ '%(b)s'|format(b=none) }}{{ '%#x %#o'|format(17, 8) }}", "a-2None0x11 0o10");
    expect("{{ ('<%s>'|safe) % '<' }}", "<&lt;>");
    expect_failure("{{ '%s %s' % 'a' }}", ST_INVAL, "not enough");
    expect_failure("{{ '%s' % (1, 2) }}", ST_INVAL, "more values");
    expect_failure("{{ '%d' % 'a' }}", ST_INVAL, "number");
    expect_failure("{{ '%(a)s' % {} }}", ST_INVAL, "no such name");
    expect_failure("{{ '%5%' % 5 }}", ST_INVAL, "not supported");
    expect_failure("{{ '%' % 5 }}", ST_INVAL, "inside");
    expect_failure("{{ '%999999s' % 5 }}", ST_LIMIT, "width");
    expect_failure("{{ '%.999999f' % 5 }}", ST_LIMIT, "precision");
    expect_failure("{{ '%s'|format(1, a=2) }}", ST_INVAL, "by name");
}

static void test_chat_template_finds_in_strings(void **state)
{
    (void)state;
    expect("{{ 'a</t>b</t>c'.partition('</t>') }}{{ 'a.b.c'.rpartition('.') }}",
           "('a', '</t>', 'b</t>c')('a.b', '.', 'c')");
    expect("{{ 'abc'.partition('x') }}{{ 'abc'.rpartition('x') }}", "('abc', '', '')('', '', 'abc')");
    expect("{{ 'ababa'.find('a', 1) }}{{ 'ababa'.find('a', 1, 2) }}{{ 'ababa'.rfind('a', -3, -1) }}{{ "
           "'ababa'.count('a', 1) }}"
           "{{ 'äbä'.rindex('ä', 1) }}{{ 'ab'.find('', 2) }}{{ 'ab'.find('', 3) }}",
           "2-12222-1");
    expect("{{ 'aé'.isalpha() }}{{ 'a1'.isalpha() }}{{ 'a1²'.isalnum() }}{{ ''.isalnum() }}", "TrueFalseTrueFalse");
}

/* What `safe` and `escape` make: what is added to it is escaped. */
static void test_chat_template_knows_markup(void **state)
{
    (void)state;
    expect("{{ '<b>'|safe + '<i>' }}{{ '<i>' + '<b>'|safe }}{{ '<b>'|safe ~ '<i>' }}",
           "<b>&lt;i&gt;&lt;i&gt;<b><b><i>");
    expect("{{ ('<'|safe * 2)[1:].strip() + '&' }}{{ '<'|e|e }}{{ '<'|e|forceescape }}", "<&amp;&lt;&amp;lt;");
    expect("{{ ['<'|safe, 1] }}{{ '<'|safe is escaped }}{{ '<' is escaped }}", "[Markup('<'), 1]TrueFalse");
    expect("{{ ('<'|safe).join(['>', '>'|safe]) }}{{ ('a<'|safe).replace('a', '\"') }}", "&gt;<>&#34;<");
    expect("{{ 'a.b'|safe|upper + '<' }}{{ ('a.b'|safe).split('.')[0] + '<' }}", "A.B&lt;a&lt;");
}

/* The origin of each byte as a string of T and c. */
static void expect_origin(const char *source, const char *arguments, const char *text, const char *origin)
{
    struct result result = render_json(source, conversation, arguments);
    char found[256] = "";
    size_t at = 0;
    if (result.status != ST_OK) print_error("%s: %s\n", source, result.err.message);
    assert_int_equal(result.status, ST_OK);
    for (size_t i = 0; i < result.spans.count; i++) {
        if (i) assert_true(result.spans.spans[i].trusted != result.spans.spans[i - 1].trusted);
        while (at < result.spans.spans[i].end) found[at++] = result.spans.spans[i].trusted ? 'T' : 'c';
    }
    assert_int_equal(at, result.out.length);
    assert_int_equal(at, strlen(text));
    assert_memory_equal(result.out.data, text, at);
    assert_string_equal(found, origin);
    release(&result);
}

static void test_chat_template_keeps_origin(void **state)
{
    (void)state;
    const char *args = "{\"x\":\"ab\",\"n\":7,\"l\":[\"p\",\"q\"]}";
    expect_origin("<{{ x }}>", args, "<ab>", "TccT");
    expect_origin("{{ ('<' + x + '>')|upper }}", args, "<AB>", "TccT");
    expect_origin("{{ ('<' ~ x ~ '>')[1:] }}", args, "ab>", "ccT");
    expect_origin("{{ ('<' ~ x ~ '>')[::-1] }}", args, ">ba<", "TccT");
    expect_origin("{{ l|join('-') }}", args, "p-q", "cTc");
    expect_origin("{{ 'a-b'|replace('-', x) }}", args, "aabb", "TccT");
    expect_origin("{{ x|replace('a', '<>') }}", args, "<>b", "TTc");
    expect_origin("{{ n }}{{ 7 }}", args, "77", "cT");
    expect_origin("{{ n + 1 }}", args, "8", "c");
    expect_origin("{{ [x, 'y']|tojson }}", args, "[\"ab\", \"y\"]", "ccccccccTcc");
    expect_origin("{% set s %}<{{ x }}>{% endset %}{{ s }}", args, "<ab>", "TccT");
    expect_origin("{% macro m(v) %}<{{ v }}>{% endmacro %}{{ m(x)|trim }}", args, "<ab>", "TccT");
    expect_origin("{{ bos_token }}{{ eos_token }}", args, "<s></s>", "TTTTTTT");
    expect_origin("{{ '<'|safe + x + '>' }}", args, "<ab&gt;", "TccTTTT");
    expect_origin("{{ '<%s|%3d>' % (x, n) }}", args, "<ab|  7>", "TccTTTcT");
    expect_origin("{{ (x ~ '%2s') % 'y' }}", args, "ab y", "ccTT");
    expect_origin("{{ '%(k)s' % d }}", "{\"d\":{\"k\":\"v\"}}", "v", "c");
    expect_origin("{{ 'a-b'.partition(x[:0] ~ '-')|join }}{{ ('<' ~ x).partition('<')[2] }}", args, "a-bab", "TTTcc");
    expect_origin("{{ ('<' + x)|e }}", "{\"x\":\"&\"}", "&lt;&amp;", "TTTTccccc");
    expect_origin("{{ dict(**d)|join }}{{ namespace(**d).k }}", "{\"d\":{\"k\":1}}", "k1", "cc");
    expect_origin("{{ '<%s>'|format(**d) }}", "{\"d\":{\"k\":1}}", "<{'k': 1}>", "TccccccccT");
    expect_origin("{{ '%(k)s'|format(k='a', **d) }}", "{\"d\":{\"l\":1}}", "a", "T");
    expect_origin("{{ 'a'|replace(*l) }}{{ 'p'|replace(*l) }}", args, "aq", "Tc");
}

static void test_chat_template_names_what_is_wrong(void **state)
{
    (void)state;
    expect_failure("a\nb{% include 'x' %}", ST_INVAL, "line 2");
    expect_failure("{% include 'x' %}", ST_INVAL, "include");
    expect_failure("{% import 'x' as y %}", ST_INVAL, "import");
    expect_failure("{% from 'x' import y %}", ST_INVAL, "from");
    expect_failure("{% extends 'x' %}", ST_INVAL, "extends");
    expect_failure("{% block a %}{% endblock %}", ST_INVAL, "block");
    expect_failure("{{ x|nothing_known }}", ST_INVAL, "nothing_known");
    expect_failure("{{ x is nothing_known }}", ST_INVAL, "nothing_known");
    expect_failure("{% if true %}", ST_INVAL, "endif");
    expect_failure("{% for %}", ST_INVAL, "name");
    expect_failure("{{ 1 + }}", ST_INVAL, "}}");
    expect_failure("{{ 'abc }}", ST_INVAL, "string");
    expect_failure("{# abc", ST_INVAL, "{#");
    expect_failure("\n\n{{ nothing.at_all }}", ST_INVAL, "line 3: 'nothing' is undefined");
    expect_failure("{{ raise_exception('roles must alternate') }}", ST_INVAL, "roles must alternate");
    expect_failure("{{ 9223372036854775807 + 1 }}", ST_INVAL, "64 bits");
    expect_failure("{{ 99999999999999999999 }}", ST_INVAL, "64 bits");
    expect_failure("{{ range(0, 9, 9223372036854775807)[::9] }}", ST_INVAL, "64 bits");
    expect_failure("{{ 1 // 0 }}", ST_INVAL, "zero");
    expect_failure("{{ messages.append(1) }}", ST_INVAL, "immutable");
    expect_failure("\xff", ST_INVAL, "UTF-8");
}

static void test_chat_template_reaches_no_host(void **state)
{
    (void)state;
    expect("{{ ''.__class__ }}{{ messages.__class__ }}{{ range.__globals__ }}{{ [].__len__ }}", "");
    expect("{{ ''['__class__'] }}{{ ''|attr('__class__') }}", "");
    expect_failure("{{ ''.__class__.__mro__ }}", ST_INVAL, "__class__");
    expect_failure("{{ ''.__class__.__mro__[1].__subclasses__() }}", ST_INVAL, "undefined");
    expect_failure("{{ self.__init__.__globals__ }}", ST_INVAL, "undefined");
    expect_failure("{{ cycler.__init__ }}", ST_INVAL, "undefined");
    expect_failure("{{ open('/etc/passwd') }}", ST_INVAL, "undefined");
    expect_failure("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", ST_INVAL, "underscore");
}

/* before * count + middle + after * count, to be freed by the caller. */
static char *nested(const char *before, const char *middle, const char *after, size_t count)
{
    struct buf text;
    buf_init(&text, 0);
    for (size_t i = 0; i < count; i++) buf_append_text(&text, before);
    buf_append_text(&text, middle);
    for (size_t i = 0; i < count; i++) buf_append_text(&text, after);
    buf_append_char(&text, '\0');
    assert_true(buf_ok(&text));
    return text.data;
}

static void test_chat_template_refuses_depth(void **state)
{
    (void)state;
    static const char *const shapes[][3] = {
        {"(", "1", ")"},  {"[", "", "]"},   {"{1:", "1", "}"},      {"-", "1", ""},      {"not ", "1", ""},
        {"", "x", ".a"},  {"", "x", "[0]"}, {"", "x", "()"},        {"", "x", "|upper"}, {"1 if x else ", "1", ""},
        {"x(", "1", ")"}, {"x[", "1", "]"}, {"", "x", " is odd()"}, {"", "1", " if 1"}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        char *inside = nested(shapes[i][0], shapes[i][1], shapes[i][2], *shapes[i][0] == '{' ? 20000 : 100000);
        char *source = nested("{{ ", inside, " }}", 1);
        expect_failure(source, ST_LIMIT, strlen(inside) <= 200001 ? "deeper" : "");
        mem_free(inside);
        mem_free(source);
    }
    char *blocks = nested("{% if 1 %}", "x", "{% endif %}", 20000);
    expect_failure(blocks, ST_LIMIT, "deeper");
    mem_free(blocks);
    blocks = nested("{% for a in b %}", "x", "{% endfor %}", 20000);
    expect_failure(blocks, ST_LIMIT, "deeper");
    mem_free(blocks);
    /* What is long but not nested is fine. */
    char *sum = nested("{{ 1 ", "", "", 1), *terms = nested("+ 1 ", "", "", 20000), *all = nested(sum, terms, "", 1);
    char *source = nested(all, "}}", "", 1);
    expect(source, "20001");
    mem_free(sum);
    mem_free(terms);
    mem_free(all);
    mem_free(source);
}

static void test_chat_template_refuses_bombs(void **state)
{
    (void)state;
    expect_failure("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", ST_LIMIT, "steps");
    expect_failure("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", ST_LIMIT,
                   "steps");
    expect_failure("{{ range(100000000)|list }}", ST_INVAL, "range");
    expect_failure("{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
                   ST_LIMIT, "memory");
    expect_failure("{{ 'x' * 1000000000 }}", ST_LIMIT, "");
    expect_failure("{{ [1, 2, 3] * 1000000000 }}", ST_LIMIT, "");
    expect_failure("{{ 'a'|replace('', 'b' * 3000)|replace('b', 'c' * 100000) }}", ST_LIMIT, "memory");
    expect_failure("{% for i in range(100) %}{{ 'x' * 100000 }}{% endfor %}", ST_LIMIT, "bytes");
    expect_failure("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ST_LIMIT, "deeper");
    expect_failure("{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}", ST_LIMIT, "deeper");
    expect_failure("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}", ST_LIMIT,
                   "steps");
    expect_failure("{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
                   ST_LIMIT, "deeper");
    expect_failure("{% set n = namespace(x=[]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
                   "{{ n.x|tojson|length }}",
                   ST_LIMIT, "");
    expect_failure("{% set n = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}"
                   "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
                   ST_LIMIT, "steps");
    expect_failure("{% set n = namespace() %}{% set n.n = n %}{{ n }}", ST_LIMIT, "deeper");
    expect_failure("{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{{ 'y' in s }}{% endfor %}", ST_LIMIT,
                   "steps");
    expect_failure("{{ 'abc'|indent(1000000000) }}", ST_LIMIT, "wide");
    expect_failure("{{ [1]|tojson(indent=1000000000) }}", ST_LIMIT, "wide");
    expect_failure("{{ range(99999)|map('string')|map('replace', '', 'x' * 1000)|join }}", ST_LIMIT, "");
}

static void test_chat_template_long_content_is_cheap(void **state)
{
    (void)state;
    /* 3 MB through a chain of concatenations and an accumulating loop stays within the memory limit. */
    struct buf json;
    buf_init(&json, 0);
    buf_append_text(&json, "[{\"role\":\"user\",\"content\":\"");
    for (size_t i = 0; i < 3000000; i++) buf_append_char(&json, 'x');
    buf_append_text(&json, "\"}]");
    buf_append_char(&json, '\0');
    struct result result = render_json("{% set n = namespace(s='') %}{% for m in messages %}"
                                       "{% set n.s = n.s + '<|' + m.role + '|>' + m.content + '<|end|>' + '\\n' %}"
                                       "{% endfor %}{{ n.s }}",
                                       json.data, NULL);
    assert_int_equal(result.status, ST_OK);
    assert_int_equal(result.out.length, 3000000 + 2 + 4 + 2 + 7 + 1);
    release(&result);
    buf_free(&json);
    struct result loop =
        render_json("{% set n = namespace(s='') %}{% for i in range(99999) %}{% set n.s = n.s + 'abcdefgh' %}"
                    "{% endfor %}{{ n.s|length }}",
                    NULL, NULL);
    assert_int_equal(loop.status, ST_OK);
    assert_int_equal(loop.out.length, 6);
    assert_memory_equal(loop.out.data, "799992", 6);
    release(&loop);
}

/* ---- the k-th allocation fails ---- */

struct torture {
    uint64_t fail_at, count;
};

static bool torture_hook(void *state, size_t size_bytes)
{
    struct torture *torture = state;
    (void)size_bytes;
    return ++torture->count != torture->fail_at;
}

static const char torture_template[] =
    "{% macro tag(n, x='d') %}<{{ n|upper }}>{{ x }}{% endmacro %}{% set ns = namespace(s='', l=[]) %}"
    "{% for m in messages if m.role != 'tool' %}{% set ns.s = ns.s ~ tag(m.role, x=m.content) ~ loop.index %}"
    "{% set ns.l = ns.l + [m.content] %}{% endfor %}{{ ns.s }}{{ ns.l|tojson(indent=2) }}{{ ns.l|sort|join('|') }}"
    "{{ messages|map(attribute='role')|unique|list }}{{ {'b': 1, 'a': [1.5, none]}|dictsort }}"
    "{% set z %}{{ 'x' * 20000 }}{% endset %}{{ z|length }}{{ range(3000)|list|length }}{{ 'a b c'.split(' ', 1) }}"
    "{% filter replace('a', 'bb') %}banana{% endfilter %}{{ messages|selectattr('role', 'equalto', 'user')|list|length "
    "}}";

static void test_chat_template_survives_failing_allocations(void **state)
{
    (void)state;
    struct json *messages = NULL;
    struct error err;
    assert_int_equal(json_read(conversation, strlen(conversation), &messages, &err), ST_OK);
    struct chat_input input = {.messages = messages};
    bool finished = false;
    uint64_t k = 1;
    for (; !finished && k < 10000; k++) {
        struct torture torture = {.fail_at = k};
        struct chat_template *tmpl = NULL;
        struct span_list spans = {0};
        struct buf out;
        buf_init(&out, 0);
        mem_hook_set(torture_hook, &torture);
        enum status status = chat_template_compile(torture_template, strlen(torture_template), &tmpl, &err);
        if (status == ST_OK) status = chat_template_render(tmpl, &input, &out, &spans, &err);
        mem_hook_set(NULL, NULL);
        finished = torture.count < k;
        assert_int_equal(status, finished ? ST_OK : ST_NOMEM);
        chat_template_destroy(tmpl);
        span_list_free(&spans);
        buf_free(&out);
    }
    assert_true(finished);
    assert_true(k > 10);
    json_release(messages);
}

/* Each limit at its edge: what fits passes, one more does not. */
static void test_chat_template_limits_at_the_edge(void **state)
{
    (void)state;
    uint64_t saved = limits.template_output_bytes;
    limits.template_output_bytes = 1024;
    struct result fits = render_json("{{ 'x' * 1000 }}{{ 'y' * 24 }}", NULL, NULL);
    struct result over = render_json("{{ 'x' * 1000 }}{{ 'y' * 25 }}", NULL, NULL);
    limits.template_output_bytes = saved;
    assert_int_equal(fits.status, ST_OK);
    assert_int_equal(over.status, ST_LIMIT);
    release(&fits);
    release(&over);
    uint64_t first_ok = 0;
    saved = limits.template_steps;
    for (uint64_t steps = 0; steps < 100 && !first_ok; steps++) {
        limits.template_steps = steps;
        struct result result = render_json("{% for i in range(10) %}{{ i }}{% endfor %}", NULL, NULL);
        if (result.status == ST_OK)
            first_ok = steps;
        else
            assert_int_equal(result.status, ST_LIMIT);
        release(&result);
    }
    limits.template_steps = saved;
    assert_true(first_ok > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat_template_renders),
        cmocka_unit_test(test_chat_template_spreads_arguments),
        cmocka_unit_test(test_chat_template_knows_markup),
        cmocka_unit_test(test_chat_template_formats_as_printf),
        cmocka_unit_test(test_chat_template_finds_in_strings),
        cmocka_unit_test(test_chat_template_keeps_origin),
        cmocka_unit_test(test_chat_template_names_what_is_wrong),
        cmocka_unit_test(test_chat_template_reaches_no_host),
        cmocka_unit_test(test_chat_template_refuses_depth),
        cmocka_unit_test(test_chat_template_refuses_bombs),
        cmocka_unit_test(test_chat_template_long_content_is_cheap),
        cmocka_unit_test(test_chat_template_survives_failing_allocations),
        cmocka_unit_test(test_chat_template_limits_at_the_edge),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
