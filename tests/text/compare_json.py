"""Holds our whole tokenizer (normalisers, added tokens, pre-tokenisers, model, post-processor, decoder) against the
`tokenizers` library on generated texts.

    compare_json.py ENCODE_TEXTS TOKENIZER COUNT [SEED]      TOKENIZER: a tokenizer.json or a folder with one

Ids must be equal, without and with the tokens around a text; decoded ids must give the library's text. All text is
trusted here, as the library has no other kind; texts that are not are the unit tests' matter. Exit 77: skipped.
"""
import os
import random
import struct
import subprocess
import sys
import unicodedata

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import compare
from compare import Texts, skip

try:
    from tokenizers import Tokenizer
except ImportError as error:
    skip(f"python packages of tests/requirements.txt are missing: {error}")

CODE = ["def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\t\ta[i] *= 2;\n}\n", "<div class=\"x\">\n  <p>hi</p>\n</div>",
        "SELECT * FROM t WHERE a='b';", "\\frac{1}{2}\\n", "https://example.org/a?b=c&d=%20#e", "```python\nimport os\n```",
        "user_name@host.example", "C:\\Windows\\System32", "#include <stdio.h>\r\n", "<0x41>", "<0x0A>", "▁", "▁the", "Ġthe", "Ċ",
        "##ing", "</w>", "@@", "Ā", "\u0000", "\u0004", "\ufffd", "ﷺ", "㍿", "ℌ", "ﬃ", "Å", "각", "각", "ẛ̣", "İ",
        "ß", "ΑΣ", "Σ", "\u00ad", "\u200e", "\u0130x", "¼", "Ⓐ", "ｱ", "\u1112\u1161\u11ab", "é", "e\u0301"]


def settled(c):
    """Whether all versions of Unicode agree on c where it matters. The library's normalisers and punctuation know Unicode 8
    or 9, its regular expressions 16: of what came after 3.2 only letters, symbols and the like without case and
    decomposition are taken."""
    if unicodedata.ucd_3_2_0.category(c) != "Cn":
        return True
    return unicodedata.category(c) in ("Lo", "So", "Co", "Sm") and not unicodedata.decomposition(c)


class JsonTexts(Texts):
    def atom(self):
        if self.random.randrange(12) == 0:
            return self.random.choice(["", " "]) + self.random.choice(CODE)
        return super().atom()

    def text(self):
        text = "".join(self.atom() for _ in range(min(40, int(self.random.expovariate(0.12)) + 1)))
        return "".join(c for c in text if settled(c))


def encode(library, texts, special):
    """The library's encodings; None where it fails (an unknown character without an unknown token)."""
    try:
        return library.encode_batch_fast(texts, add_special_tokens=special)
    except Exception:
        if len(texts) == 1:
            return [None]
        middle = len(texts) // 2
        return encode(library, texts[:middle], special) + encode(library, texts[middle:], special)


def run(program, path, texts, flags):
    """[(ids, decoded)] of each text by our tokenizer."""
    data = [t.encode() for t in texts]
    request = b"".join(struct.pack("<BI", flags, len(d)) + d for d in data)
    result = subprocess.run([program, path], input=request, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if result.returncode:
        raise SystemExit(f"{path}: exit {result.returncode}: {result.stderr.decode()[:500]}")
    at, answers = 0, []
    for _ in texts:
        (n,) = struct.unpack_from("<I", result.stdout, at)
        ids = list(struct.unpack_from(f"<{n}I", result.stdout, at + 4))
        at += 4 + 4 * n
        (n,) = struct.unpack_from("<I", result.stdout, at)
        answers.append((ids, result.stdout[at + 4:at + 4 + n].decode()))
        at += 4 + n
    return answers


def show_difference(library, text, ours, theirs, our_text, their_text):
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    low = max(0, at - 3)
    print(f"text {text[:200]!r}")
    if ours != theirs:
        print(f"  at {at} ours   {[library.id_to_token(i) for i in ours[low:at + 6]]}\n"
              f"         theirs {[library.id_to_token(i) for i in theirs[low:at + 6]]}")
    elif our_text != their_text:
        at = next((i for i, (a, b) in enumerate(zip(our_text, their_text)) if a != b), min(len(our_text), len(their_text)))
        print(f"  decoded, at {at}: ours {our_text[max(0, at - 10):at + 20]!r} theirs {their_text[max(0, at - 10):at + 20]!r}")


def compare_file(program, path, count, seed, show=5, name=None):
    """The number of texts that differ."""
    file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
    library = Tokenizer.from_file(file)
    library.no_padding()
    library.no_truncation()
    names = [t.content for t in library.get_added_tokens_decoder().values()] or ["<s>"]
    generator = JsonTexts(seed, names)
    differing = tokens = failed = 0
    for start in range(0, count, 5000):
        texts = [generator.text() for _ in range(min(5000, count - start))]
        flags = 3 if start % 10000 == 0 else 2
        wanted = encode(library, texts, bool(flags & 1))
        decoded = library.decode_batch([w.ids if w else [] for w in wanted], skip_special_tokens=True)
        for text, theirs, their_text, (ids, our_text) in zip(texts, wanted, decoded, run(program, path, texts, flags)):
            if theirs is None:
                failed += 1
                continue
            tokens += len(ids)
            if ids == theirs.ids and our_text.rstrip(" ") == their_text.rstrip(" "):
                continue
            differing += 1
            if differing <= show:
                show_difference(library, text, ids, theirs.ids, our_text, their_text)
    print(f"{name or path}: {count} texts, {tokens} tokens, {differing} differ" +
          (f", {failed} the library cannot encode" if failed else ""))
    return differing


def main():
    program, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 20240607
    print(f"seed {seed}")
    return 1 if compare_file(program, path, count, seed) else 0


if __name__ == "__main__":
    sys.exit(main())
