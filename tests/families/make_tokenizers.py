#!/usr/bin/env python3
"""Writes tokenizers/*.json: a tokenizer.json of a few hundred tokens under the rules of each vendor's own.

Made with the `tokenizers` library 0.23.3 from ../golden/english.txt. Pieces, special tokens' names, normaliser,
pre-tokeniser, post-processor and decoder are those of the vendors' files; only the vocabulary is small.

Run: python make_tokenizers.py"""
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
TEXT = (HERE.parent / "golden" / "english.txt").read_text()
BYTES = [f"<0x{b:02X}>" for b in range(256)]
# The expressions of Llama 3, Qwen2 and GPT-4o (o200k, which Phi-4-mini uses), as their tokenizer.json have them.
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def trained(pre_tokenizer, normalizer, size, alphabet):
    """Merges and vocabulary of size pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])], \
        [tuple(m) for m in model["merges"]]


def special(tokenizer, names, **flags):
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False, **flags) for n in names])


def byte_level(pattern, size, specials, bos=None, normalizer=None, ignore_merges=False, digits=False):
    first = pre_tokenizers.Digits(individual_digits=True) if digits else pre_tokenizers.Split(Regex(pattern), "isolated")
    cut = pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=digits)])
    pieces, merges = trained(cut, normalizer, size - len(specials), pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    special(tokenizer, specials)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B:1", [(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def byte_fallback(size, specials, bos, normalizer, pre_tokenizer, decoder, unknown):
    """SentencePiece's BPE as tokenizer.json states it: special tokens, 256 bytes, pieces with a mark for the space."""
    words = pre_tokenizer or pre_tokenizers.Split("▁", "merged_with_next")
    pieces, merges = trained(words, normalizers.Replace(" ", "▁"), size - len(specials) - 256, [])
    vocab = {p: i for i, p in enumerate(specials + BYTES + pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoder
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    special(tokenizer, specials)
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos}:1 $B:1", [(bos, vocab[bos])])
    return tokenizer


def llama2():
    space = decoders.Replace("▁", " ")
    return byte_fallback(512, ["<unk>", "<s>", "</s>"], "<s>",
                         normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
                         decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
                         "<unk>")


def gemma():
    space = decoders.Replace("▁", " ")
    return byte_fallback(528, ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], "<bos>",
                         normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                         decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()]), "<unk>")


CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENIZERS = {
    "llama2": llama2,
    "gemma": gemma,
    "llama3": lambda: byte_level(LLAMA3, 512, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                               "<|end_header_id|>", "<|eot_id|>"], "<|begin_of_text|>", None, True),
    "qwen2": lambda: byte_level(QWEN2, 503, CHAT, None, normalizers.NFC()), # fewer than the model has rows, as theirs
    "phi4": lambda: byte_level(GPT4O, 512, ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"]),
    "granite": lambda: byte_level(None, 512, ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"], digits=True),
}


def main():
    (HERE / "tokenizers").mkdir(exist_ok=True)
    for name, make in TOKENIZERS.items():
        tokenizer = make()
        values = json.loads(tokenizer.to_str())
        (HERE / "tokenizers" / f"{name}.json").write_text(json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n")
        ids = tokenizer.encode("The miller's 12 wheels: naïve 水车!\n").ids
        print(f"{name}: {tokenizer.get_vocab_size()} tokens, {len(values['model']['merges'])} merges, {ids} "
              f"{tokenizer.decode(ids)!r}")


if __name__ == "__main__":
    main()
