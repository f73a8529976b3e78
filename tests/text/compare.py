"""Holds our tokenizer against the `tokenizers` library on generated texts.

    compare.py ENCODE_LINES PATTERN COUNT [SEED]

The library's tokenizer is built from the vocabulary and merges of a GGUF file, as transformers does, with the pre-tokeniser
of PATTERN as its published tokenizer.json has it. Texts come from a seed, which is printed. Exit 77: skipped, with the
reason. What the comparison rests on, and where both sides differ on purpose:
  - no normaliser: Qwen's tokenizer.json asks for NFC, GGUF does not carry that, and engines that read GGUF skip it;
  - the library has no trusted spans: texts with trusted and untrusted parts are cut at the special tokens of their trusted
    runs here, and the library sees the parts with special tokens switched off.
"""
import os
import random
import struct
import subprocess
import sys


def skip(reason):
    print("skipped:", reason)
    sys.exit(77)


try:
    import gguf
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
except ImportError as error:
    skip(f"python packages of tests/requirements.txt are missing: {error}")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
LLAMA3 = (CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = (CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN35 = (CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")


def pre_tokenizer(pattern):
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pattern == "gpt-2":
        return plain
    if pattern == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    split = {"llama-bpe": LLAMA3, "qwen2": QWEN2, "qwen35": QWEN35}[pattern]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def library_tokenizer(path, pattern):
    """The tokenizer without special tokens, and their ids by name."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pattern == "llama-bpe")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer(pattern)
    return tokenizer, {t: i for i, (t, k) in enumerate(zip(tokens, kinds)) if k in (2, 3, 4)}


WORDS = ("the of and to in a is that it was for on are with as his they be at one have this from or had by not word but what "
         "internationalization antidisestablishmentarianism tokenizer HTTP/2 struct uint32_t naïve Straße Москва "
         "Ελλάδα 日本語 中文字符 한국어 العربية עברית हिन्दी ไทย Việt İstanbul ﬁn ŉ ǅ").split()
CONTRACTED = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'M", "'lL", "'D", "'ſ", "'", "’s", "'x",
              "'r", "'l", "''", "'st", "n't"]
SPACES = [" ", "  ", "   ", "\n", "\r\n", "\t", "\n\n", " \n ", "\u00a0", "\u3000", "\u2028", "\u0085", "\u202f", "\v", "\f",
          "\x1c", "\x1f", "\u200b", "\ufeff", "\r", " \t", "        "]
EMOJI = ["😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣", "☺"]
MARKS = ["\u0301", "\u0308", "\u20dd", "\u0e31", "\u093f", "\u200d", "\ufe0f", "\u0489"]
NUMBERS = ["0", "7", "42", "1234567", "3.14", "1,000,000", "²", "½", "Ⅷ", "٣٤", "௧", "𝟙𝟚", "〇", "①②", "１２３"]
PUNCTUATION = list("!?.,;:-_()[]{}<>|/\\\"#$%&*+=@^`~") + ["...", "->", "==", "<|", "|>", "«", "—", "…", "。", "、", "€", "∑"]
SCRIPTS = [(0x20, 0x7f), (0xa0, 0x250), (0x370, 0x400), (0x400, 0x530), (0x590, 0x700), (0x900, 0xe00), (0xe00, 0x1000),
           (0x1100, 0x1400), (0x2000, 0x2c00), (0x3000, 0x3400), (0x4e00, 0xa000), (0xac00, 0xd7a4), (0xf900, 0x10000),
           (0x10000, 0x11000), (0x11000, 0x12000), (0x1d400, 0x1d800), (0x1f000, 0x1fb00), (0x20000, 0x2ee60), (0, 0xd800),
           (0xe000, 0x110000), (0, 0x20)]


class Texts:
    """Generated texts: lists of (text, trusted)."""

    def __init__(self, seed, special_names):
        self.random = random.Random(seed)
        self.names = special_names

    def look_alike(self):
        name = self.random.choice(self.names)
        cut = self.random.randrange(len(name))
        return self.random.choice([name, name, name, name[:cut], name[cut:], name.upper(), "<" + name, name + name[:cut]])

    def atom(self):
        r = self.random
        kind = r.randrange(100)
        if kind < 30: return r.choice(["", " ", " ", " "]) + r.choice(WORDS)
        if kind < 40: return r.choice(WORDS) + r.choice(CONTRACTED)
        if kind < 52: return r.choice(SPACES)
        if kind < 60: return r.choice(["", " "]) + r.choice(NUMBERS)
        if kind < 70: return r.choice(["", " "]) + r.choice(PUNCTUATION)
        if kind < 74: return r.choice(EMOJI)
        if kind < 78: return r.choice(WORDS)[:3] + "".join(r.choices(MARKS, k=r.randint(1, 4)))
        if kind < 82: return r.choice(MARKS)
        if kind < 85: return self.look_alike()
        if kind < 97:
            low, high = r.choice(SCRIPTS)
            return "".join(chr(r.randrange(low, high)) for _ in range(r.randint(1, 6)))
        return r.choice([" ", "a", "0", "\n", "=", "é", "中", "\u0301", "ab", "-", "\u3000", "'s", "\r\n"]) * r.randint(2, 200)

    def plain(self):
        return "".join(self.atom() for _ in range(min(40, int(self.random.expovariate(0.12)) + 1)))

    def next(self):
        spans = self.random.choice([1, 1, 1, 2, 3, 6])
        if spans == 1:
            return [(self.plain(), self.random.random() < 0.2)]
        result = []
        for _ in range(spans):
            text = self.plain()[:self.random.choice([0, 3, 30, 1000])]
            if self.random.random() < 0.6:
                cut = self.random.randint(0, len(text))
                text = text[:cut] + self.look_alike() + text[cut:]
            if self.random.random() < 0.2 and len(text) > 1:  # a name over two spans
                result.append((text[:len(text) // 2], self.random.random() < 0.7))
                text = text[len(text) // 2:]
            result.append((text, self.random.random() < 0.6))
        return result


def cut_special(special, firsts, spans):
    """The text as [ordinary, name, ordinary ...]: special names taken out of the trusted runs, longest first."""
    text = "".join(t for t, _ in spans)
    runs, end = [], 0  # where each character's run of trusted text ends, or 0
    for part, flag in spans:
        end += len(part)
        if flag and runs and runs[-1][2]:
            runs[-1][1] = end
        elif part or flag:
            runs.append([end - len(part), end, flag])
    parts, start = [], 0
    for low, high, flag in runs:
        i = low
        while flag and i < high:
            i = min((k for k in (text.find(f, i, high) for f in firsts) if k >= 0), default=high)
            name = max((n for n in special if text.startswith(n, i, high)), key=len, default=None)
            if name is None:
                i += 1
                continue
            parts += [text[start:i], name]
            start = i = i + len(name)
    return parts + [text[start:]]


def expected(tokenizer, special, batch):
    """Ids by the library for a batch of span lists: names by themselves, what is between them as ordinary text."""
    firsts = {name[0] for name in special}
    cuts = [cut_special(special, firsts, spans) for spans in batch]
    encoded = iter(tokenizer.encode_batch_fast([p for parts in cuts for p in parts[::2]], add_special_tokens=False))
    for parts in cuts:
        ids = list(next(encoded).ids)
        for name in parts[1::2]:
            ids.append(special[name])
            ids += next(encoded).ids
        yield ids


def expected_pieces(tokenizer, spans):
    """Where the library's pre-tokeniser cuts the whole text, in bytes. Its output is byte-level: a character a byte."""
    ends, at = [], 0
    for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("".join(t for t, _ in spans)):
        at += len(piece)
        ends.append(at)
    return ends


def read_u32s(data, at):
    """A counted list at `at`, and where it ends."""
    (n,) = struct.unpack_from("<I", data, at)
    return list(struct.unpack_from(f"<{n}I", data, at + 4)), at + 4 + 4 * n


def pack(spans):
    out = [struct.pack("<I", len(spans))]
    for text, trusted in spans:
        data = text.encode()
        out.append(struct.pack("<IB", len(data), trusted) + data)
    return b"".join(out)


def main():
    program, pattern, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 20240607
    path = os.environ.get("MILLRACE_TEST_MODEL") or "models/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not os.path.exists(path):
        skip(f"no model file {path} (set MILLRACE_TEST_MODEL, or run tests/run.sh once)")
    tokenizer, special = library_tokenizer(path, pattern)
    texts = Texts(seed, sorted(special))
    special_ids = set(special.values())
    tested, tokens, differing, trusted_special = 0, 0, 0, 0
    print(f"pattern {pattern}, seed {seed}, {count} texts")
    while tested < count:
        batch = [texts.next() for _ in range(min(10000, count - tested))]
        run = subprocess.run([program, path, pattern], input=b"".join(map(pack, batch)), stdout=subprocess.PIPE)
        if run.returncode:
            print(f"{program} failed with {run.returncode} after text {tested}")
            return 1
        at = 0
        for spans, wanted in zip(batch, expected(tokenizer, special, batch)):
            ours, at = read_u32s(run.stdout, at)
            our_pieces, at = read_u32s(run.stdout, at)
            pieces = expected_pieces(tokenizer, spans)
            tokens += len(ours)
            trusted_special += sum(i in special_ids for i in ours)
            if ours != wanted or our_pieces != pieces:
                differing += 1
                if differing <= 5:
                    print(f"text {tested}: {spans!r}\n  ours   {ours}\n  theirs {wanted}\n"
                          f"  our pieces end at {our_pieces}\n  theirs            {pieces}")
            tested += 1
        if at != len(run.stdout):
            print("more output than texts")
            return 1
    print(f"{tested} texts, {tokens} tokens, {trusted_special} special tokens, {differing} texts differ")
    if not trusted_special:
        print("no special token came out of any text: the test does not test")
        return 1
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
