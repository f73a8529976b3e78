"""Random small templates from a grammar: mostly well-typed, some not, over a fixed set of inputs.

Left out because we differ on purpose (README.md): str.format, and `set` of a name that is also an input."""


class Generator:
    def __init__(self, rng, mark):
        self.rng, self.depth, self.names = rng, 0, []
        m = mark
        self.arguments = {
            "s": f"{m}Hello World{m}", "t": f" {m}ab,cd,,ef {m}", "u": f"{m}ÄÖ ß é{m} x", "e": "", "n": 3, "z": 0, "neg": -7,
            "f": 2.5, "yes": True, "no": False, "nil": None,
            "l": [3, 1, 2], "ls": [f"b{m}", f"A{m}", f"c{m}", f"b{m}"], "empty": [], "mixed": [1, f"x{m}", None, 2.5, True],
            "d": {"a": 1, "b": f"two{m}", "c": [1, 2]}, "ld": [{"k": f"x{m}", "v": 2}, {"k": f"y{m}", "v": 1}, {"v": 3}],
        }
        self.given = {"messages": [{"role": "user", "content": f"{m}hi{m}"}, {"role": "assistant", "content": f"{m}yo"}],
                      "arguments": self.arguments, "bos_token": "<s>", "eos_token": "</s>", "now_unix_s": 1700000000}

    def request(self):
        self.names = []
        return self.block(3), self.given

    def pick(self, *items):
        return self.rng.choice(items)

    # -- expressions --

    def atom(self):
        r = self.rng.random()
        if r < 0.5:
            return self.pick(*self.arguments, "messages", "nothing", *self.names)
        if r < 0.7:
            return self.pick("'abc'", '"x y"', "'<|a|>'", "''", "'A-b c'", "'\\n'", "'a\\tb'", "'%'", "'\"'", '"it\'s"')
        if r < 0.85:
            return self.pick("0", "1", "2", "-1", "3", "10", "1.5", "0.1", "1e3", "100000000000")
        return self.pick("true", "false", "none", "[]", "{}", "[1, 2]", "('a', 1)", "(1,)", "{'a': 'b'}", "[s, n]", "{'k': s}",
                         "range(3)", "range(1, 7, 2)", "namespace(a=1)", "dict(a=1, b=s)", "[[1], [2]]")

    def number(self):
        return self.pick("n", "z", "neg", "f", "1", "2", "3", "l[0]", "l|length", "s|length", "d.a", "1.5", "(n + 1)", "yes")

    def text(self):
        return self.pick("s", "t", "u", "e", "'abc'", "messages[0].content", "ls[0]", "d.b", "'a,b'", "(s ~ n)", "bos_token", "'<|x|>'",
                         "('[' + s + ']')", "u[2:]", "messages[-1]['role']")

    def sequence(self):
        return self.pick("l", "ls", "empty", "mixed", "range(4)", "[1, s, 'q']", "ls[1:]", "l[::-1]", "d", "s", "messages", "d.items()",
                         "d.keys()", "d.values()", "t.split(',')", "ld", "ld|map(attribute='k')|list", "('p', 'q')", "nothing", "l|sort")

    def filtered(self):
        s, q, n = self.text, self.sequence, self.number
        return self.pick(
            f"{s()}|upper", f"{s()}|lower", f"{s()}|title", f"{s()}|capitalize", f"{s()}|trim", f"{s()}|trim('Hab')",
            f"{s()}|replace('l', {s()})", f"{s()}|replace({s()}, '')", f"{s()}|replace('b', 'X', 1)", f"{s()}|indent(2)",
            f"({s()} ~ '\\n' ~ {s()} ~ '\\n\\nz')|indent({n()}, true)", f"({s()} ~ '\\n\\nz\\n')|indent(3, blank=true)",
            f"{q()}|join({s()})", f"{q()}|join", f"ld|join('-', attribute='v')", f"{q()}|first", f"{q()}|last",
            f"{q()}|length", f"{q()}|list", f"{q()}|sort", f"{q()}|sort(reverse=true)", f"ld|sort(attribute='v')",
            f"{q()}|reverse|list", f"{q()}|unique|list", f"{q()}|map('string')|list", f"{q()}|map('upper')|join",
            f"ld|map(attribute='k')|list", f"ld|map(attribute='k', default='-')|list", f"ld|selectattr('k')|list",
            f"ld|selectattr('v', 'gt', 1)|list", f"ld|rejectattr('k', 'defined')|list", f"{q()}|select('string')|list",
            f"{q()}|reject('number')|list", f"{q()}|select|list", f"{q()}|min", f"{q()}|max", f"l|sum", f"ld|sum(attribute='v')",
            f"{q()}|tojson", f"{q()}|tojson(indent=2)", f"{self.atom()}|tojson", f"d|tojson(sort_keys=true)",
            f"{q()}|tojson(separators=(',', ':'))", f"d|dictsort", f"d|items|list", f"d|dictsort(by='value')",
            f"{self.atom()}|string", f"{self.atom()}|int", f"{s()}|int(7)", f"{self.atom()}|float", f"{n()}|abs", f"{n()}|round",
            f"{n()}|round(1)", f"{n()}|round(1, 'floor')", f"{n()}|round(0, 'ceil')", f"{self.atom()}|default('D')",
            f"{self.atom()}|default({s()}, true)", f"{self.atom()}|d(1)", f"{s()}|safe ~ ''", self.markup(), self.markup(),
            self.printf(), self.printf(),
            f"{s()}|replace(*['l', {s()}])", f"{q()}|tojson(**{{'indent': 1}})", f"{s()}|{self.pick('e', 'escape', 'forceescape')}", f"{q()}|count", f"{s()}|list",
            f"{s()}|reverse", f"{s()}|first", f"{s()}|last", f"{s()}|length")

    def printf(self):
        r, kind = self.rng, self.pick("s", "s", "r", "d", "i", "f", "e", "g", "x", "X", "o", "c", "%", "F", "G")
        flags = "".join(f for f in "-0+ " if r.random() < 0.2)
        form = f"%{flags}{self.pick('', '', '1', '7', '12')}{self.pick('', '', '.0', '.2', '.5')}{kind}"
        value = self.number() if kind not in "src%" or r.random() < 0.2 else self.atom()
        return self.pick(f"'<{form}>'|format({value})", f"'<{form}>' % {value}", f"('{form}|%s' % ({value}, {self.text()}))",
                         f"'%(a)s-%(b){form[1:]}' % {{'a': {self.text()}, 'b': {value}}}", f"('<{form}>'|safe) % {value} + '<'",
                         f"'%(k){form[1:]}'|format(k={value})", f"({self.text()} + '%s') % ({self.atom()},)", f"'%s' % {self.sequence()}")

    def markup_atom(self):
        s = self.text
        return self.pick(f"({s()}|safe)", f"({s()}|e)", "('<b>'|safe)", f"('<&>'|safe + {s()})", f"({s()} + '<i>'|safe)")

    def markup(self):
        s, m = self.text, self.markup_atom()
        return self.pick(
            f"{m} + {s()}", f"{s()} + {m}", f"{m} ~ {s()}", f"{m}|e", f"{m}|upper + '<'", f"{m}|trim + '>'", f"{m}|title + '&'",
            f"{m}|indent(2) + '\"'", f"{m}|replace('b', '<') + '<'", f"{m} * 2 + '<'", f"2 * {m} + '<'", f"{m}[1:] + '<'", f"{m}[0] + '<'",
            f"[{m}, {s()}]", f"{m}|tojson", f"{m} is escaped", f"{s()} is escaped", f"{m} is string", f"{m}.split('b')", f"{m}.replace('b', '<&')",
            f"{m}.join(['<', {m}, 1])", f"{s()}.join([{m}, '<'])", f"'{{}}<'.format({m})", f"{m}.strip() + '<'", f"{m}.upper() + '<'",
            f"{m}|reverse + '<'", f"{m}|string + '<'", f"{m}|default('x') + '<'", f"[{m}, '<']|join('&') + '<'", f"{m} == '<b>'",
            f"{m}.splitlines()", f"{m}|list", f"{m}|length", f"({m} ~ '') + '<'", f"{{'k': {m}}}")

    def method(self):
        s, q, n = self.text, self.sequence, self.number
        return self.pick(
            f"{s()}.strip()", f"{s()}.strip('a H')", f"{s()}.lstrip()", f"{s()}.rstrip()", f"{s()}.rstrip(',')", f"{s()}.upper()",
            f"{s()}.lower()", f"{s()}.title()", f"{s()}.capitalize()", f"{s()}.startswith({s()})", f"{s()}.endswith('d')",
            f"{s()}.startswith(('a', 'H'))", f"{s()}.split()", f"{s()}.split(',')", f"{s()}.split('l', 1)", f"{s()}.rsplit(',', 1)",
            f"{s()}.rsplit(none, 1)", f"{s()}.split(none, 1)", f"{s()}.rsplit()", f"{s()}.replace('l', 'L')", f"{s()}.replace('', '-')",
            f"{s()}.replace('l', {s()}, 1)", f"{s()}.find('l')", f"{s()}.rfind('l')", f"{s()}.count('l')", f"{s()}.join(ls)",
            f"{s()}.join({q()})", f"{s()}.splitlines()", f"(s ~ '\\n' ~ t).splitlines(true)", f"{s()}.isdigit()", f"{s()}.removeprefix('H')",
            f"{s()}.index('l')", f"{s()}.find({s()}, {n()})", f"{s()}.rfind('l', {n()}, {n()})", f"{s()}.count('', {n()})",
            f"{s()}.rindex('l', none, -1)", f"{s()}.index('', {n()})", f"{s()}.partition({s()})", f"{s()}.rpartition('l')",
            f"{s()}.isalpha()", f"{s()}.isalnum()", f"{self.markup_atom()}.partition('b')[0] + '<'", f"d.items()|list", f"d.keys()|list", f"dict(**d)", f"dict(a=1, **d)", f"dict(b=1, **{{'c': {s()}}})", f"range(*[1, 3])|list", f"d.get(*['zz', {s()}])", f"d.values()|list", f"d.get('a')", f"d.get('zz')", f"d.get('zz', {s()})",
            f"({q()}).index(1)", f"({q()}).count(1)", f"d.items()", f"l.append(1)", f"d.update({{}})", f"{s()}.nothing")

    def access(self):
        return self.pick("d.a", "d['b']", "d.zz", "d['zz']", "l[0]", "l[-1]", "l[99]", "s[0]", "s[-1]", "u[1]", "ld[0].k", "messages[0].role",
                         "messages[-1]['content']", f"l[{self.number()}]", f"s[{self.number()}:]", f"s[:{self.number()}]", "s[::2]", "s[::-1]",
                         "u[-4:-1]", "l[1:]", "l[:-1]", "ls[::-1]", "u[::-2]", "l[5:2]", "d.c[1]", "d.c.0", "nothing.x", "messages.0.role",
                         "nil.x", "n.x", "l.x", f"{self.atom()}[{self.atom()}]", "s[1:4]", "t[2:-2]", "mixed[1:3]", "range(9)[2:5]|list")

    def test(self):
        name = self.pick("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false", "mapping",
                         "sequence", "iterable", "odd", "even", "divisibleby(2)", "divisibleby 3", "eq(3)", "equalto('abc')", "in(l)",
                         "in [1, 2]", "upper", "lower", "ne 3", "gt 1", "lt(2)", "ge(3)", "sameas(none)", "callable")
        subject = self.number() if name[:3] in ("odd", "eve", "div", "gt ", "lt(", "ge(") and self.rng.random() < 0.9 else self.atom()
        return f"{subject} is {self.pick('', '', 'not ')}{name}"

    def expression(self, depth=2):
        r = self.rng.random()
        if depth <= 0 or r < 0.12:
            return self.atom()
        e = lambda: self.expression(depth - 1)
        if r < 0.36:
            return self.filtered()
        if r < 0.5:
            return self.method()
        if r < 0.6:
            return self.access()
        if r < 0.68:
            return self.test()
        if r < 0.74:
            if self.rng.random() < 0.1:
                return f"{self.number()} ** {self.pick('0', '1', '2', '3')}"
            return f"{self.number()} {self.pick('+', '-', '*', '/', '//', '%')} {self.number()}"
        if r < 0.80:
            return f"{e()} ~ {e()}"
        if r < 0.84:
            return f"{self.text()} + {self.text()}"
        if r < 0.88:
            return f"({e()} {self.pick('and', 'or')} {e()})"
        if r < 0.92:
            return f"({e()} if {self.condition()} else {e()})" if r < 0.915 else f"({e()} if {self.condition()})"
        if r < 0.96:
            return f"{self.condition()}"
        return self.pick(f"not {e()}", f"[{e()}, {e()}]", f"{{'k': {e()}}}", f"({e()})|string|length", f"{self.sequence()} + {self.sequence()}",
                         f"{self.text()} * {self.number()}", f"-{self.number()}", f"({e()}, {e()})", f"+{self.number()}")

    def condition(self):
        a = self.atom
        return self.pick(f"{a()} == {a()}", f"{a()} != {a()}", f"{self.number()} < {self.number()}", f"{self.number()} >= {self.number()}",
                         f"{self.text()} < {self.text()}", f"{a()} in {self.sequence()}", f"{self.text()} in {self.text()}",
                         f"{a()} not in {self.sequence()}", self.test(), a(), f"1 < {self.number()} <= 3", f"not {a()}",
                         f"{self.text()} == {self.text()} and {a()}", f"d == {{'a': 1}}", f"l == [3, 1, 2]", f"{self.test()} or {self.test()}")

    # -- statements --

    def space(self):
        return self.pick("", "", "", " ", "\n", "  \n ", "\n\n", "\t", "x", " y\n", "z ", "<|tag|>\n")

    def open(self):
        return self.pick("{%", "{%", "{%-", "{%-", "{%+")

    def close(self):
        return self.pick("%}", "%}", "-%}", "-%}", "+%}" if self.rng.random() < 0.2 else "%}")

    def tag(self, words):
        return f"{self.open()} {words} {self.close()}"

    def output(self):
        return f"{self.pick('{{', '{{', '{{-')} {self.expression()} {self.pick('}}', '}}', '-}}')}"

    def block(self, depth):
        return "".join(self.space() + self.statement(depth) for _ in range(self.rng.randint(1, 3))) + self.space()

    def statement(self, depth):
        r = self.rng.random()
        if depth <= 0 or r < 0.4:
            return self.output()
        if r < 0.55:
            return self.if_statement(depth)
        if r < 0.72:
            return self.for_statement(depth)
        if r < 0.82:
            return self.set_statement(depth)
        if r < 0.88:
            return self.macro_statement(depth)
        if r < 0.92:
            return self.pick("{# a comment #}", "{#- c -#}\n", "{#+ c #}", " {# c #}\n")
        if r < 0.94:
            return self.pick("{% raw %}{{ x }}{% endraw %}", "{%- raw -%} {% if %} {%- endraw -%}\n", "{% raw %}\na\n{% endraw %}\n")
        if r < 0.96:
            name = self.pick("upper", "trim", "replace('a', 'b')", "indent(2)|upper")
            return self.tag("filter " + name) + self.block(depth - 1) + self.tag("endfilter")
        if r < 0.98:
            return f"{self.tag('generation')}{self.block(depth - 1)}{self.tag('endgeneration')}"
        return f"{self.tag('with w = ' + self.expression())}{self.block(depth - 1)}{{{{ w }}}}{self.tag('endwith')}"

    def if_statement(self, depth):
        text = self.tag("if " + self.condition()) + self.block(depth - 1)
        if self.rng.random() < 0.4:
            text += self.tag("elif " + self.condition()) + self.block(depth - 1)
        if self.rng.random() < 0.5:
            text += self.tag("else") + self.block(depth - 1)
        return text + self.tag("endif")

    def for_statement(self, depth):
        name = self.pick("i", "m", "item")
        target, sequence = (f"{name}, val", "d.items()") if self.rng.random() < 0.2 else (name, self.sequence())
        words = f"for {target} in {sequence}" + (f" if {name} {self.pick('', 'is string', 'is number', '!= 1')}" if self.rng.random() < 0.2 else "")
        self.names.append(name)
        body = self.block(depth - 1) + self.pick(
            "", f"{{{{ {name} }}}}", "{{ loop.index }}", "{{ loop.first }}", "{% if loop.last %}L{% endif %}", "{{ loop.length - loop.index0 }}",
            "{{ loop.previtem }}", "{{ loop.nextitem is defined }}", "{{ loop.revindex }}", "{% if loop.index == 2 %}{% break %}{% endif %}",
            "{% if not loop.first %}{% continue %}{% endif %}c", "{{ loop.cycle('a', 'b') }}", "{{ loop.changed(1) }}") + self.space()
        self.names.pop()
        tail = self.tag("else") + self.block(depth - 1) if self.rng.random() < 0.2 else ""
        return self.tag(words) + body + tail + self.tag("endfor")

    def set_statement(self, depth):
        r = self.rng.random()
        name = self.pick("a", "b", "c", "ns")
        if r < 0.5:
            text = self.tag(f"set {name} = {self.expression()}")
        elif r < 0.65:
            text = self.tag(f"set {name}") + self.block(depth - 1) + self.tag("endset")
        elif r < 0.75:
            text = self.tag(f"set {name}|upper") + self.block(depth - 1) + self.tag("endset")
        elif r < 0.85:
            text = self.tag("set a, b = " + self.pick("1, 2", "('x', s)", "l[:2]", "[s, n]", "1"))
        else:
            text = self.tag("set ns = namespace(c=0)") + "{% for q in l %}{% set ns.c = ns.c + q %}{% endfor %}{{ ns.c }}"
        if name not in self.names and self.rng.random() < 0.7:
            self.names.append(name)
        return text

    def macro_statement(self, depth):
        text = self.tag("macro mac(p, q='Q')") + "{{ p }}" + self.block(depth - 1) + "{{ q }}" + self.tag("endmacro")
        return text + self.pick("{{ mac(1) }}", "{{ mac(s, q=n)|upper }}", "{{ mac() }}", "{{ mac(1, 2, 3) }}", "{{ mac(q=s) }}",
                                "{{ mac(1, zz=3) }}", "{{ mac(s) ~ mac(t) }}")
