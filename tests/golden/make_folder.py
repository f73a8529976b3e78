#!/usr/bin/env python3
"""Writes SmolLM2-135M-Instruct as a Hugging Face folder in BF16, from its GGUF file: python make_folder.py MODEL.gguf OUT

As save_pretrained would: config.json, generation_config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja, two
safetensors shards and their index. Weights: gguf-py's values of the quantised blocks, rounded to nearest even in BF16; rows of
Q and K go back from GGUF's pairs (2i, 2i+1) to halves (i, i + D/2); the head is tied. tokenizer.json: the file's vocabulary
and merges with the pre-tokeniser that its name "smollm" stands for (digits alone, then GPT-2's byte-level rule).

Needs numpy and gguf (0.19.0). The bytes depend on nothing else: make_greedy_folder.py computed its golden data from this very
folder, whose weights must have WEIGHTS_SHA256."""
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

WEIGHTS_SHA256 = {
    "model-00001-of-00002.safetensors": "022a3935c1bc4b24204a46d584d134a504187ade491fc3cf70a398b2fba48e48",
    "model-00002-of-00002.safetensors": "71da74dd0c68243a9ffb16bedf4a1087265e84ad722c258c2346ee0cd4deed44",
}
NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
TOP_NAMES = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}


def field(reader, key):
    return reader.fields[f"llama.{key}" if f"llama.{key}" in reader.fields else key].contents()


def shortest(value):
    """The shortest number that is the f32 value: 1e-05 where the file's f32 prints as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def to_bf16(values):
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def read_weights(reader):
    heads = {"attn_q": field(reader, "attention.head_count"), "attn_k": field(reader, "attention.head_count_kv")}
    weights = {}
    for tensor in reader.tensors:
        part = tensor.name.split(".")
        values = dequantize(tensor.data, tensor.tensor_type).reshape([int(d) for d in reversed(tensor.shape)])
        if part[0] != "blk":
            weights[TOP_NAMES[part[0]]] = to_bf16(values)
            continue
        if part[2] in heads:
            values = unpermute(values, heads[part[2]])
        weights[f"model.layers.{part[1]}.{NAMES[part[2]]}.weight"] = to_bf16(values)
    return weights


def write_shard(path, weights):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, values in weights.items():
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + b"".join(v.tobytes() for v in weights.values())
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    if WEIGHTS_SHA256[path.name] != sha256:
        sys.exit(f"{path}: sha256 {sha256}, wanted {WEIGHTS_SHA256[path.name]}")


def write_weights(reader, folder):
    weights = dict(sorted(read_weights(reader).items()))
    total, at, shards = sum(v.nbytes for v in weights.values()), 0, ({}, {})
    for name, values in weights.items(): # the first half of the bytes, then the rest
        shards[at >= total // 2][name] = values
        at += values.nbytes
    for (file, _), shard in zip(WEIGHTS_SHA256.items(), shards):
        write_shard(folder / file, shard)
    index = {name: file for (file, _), shard in zip(WEIGHTS_SHA256.items(), shards) for name in shard}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def write_json(path, values):
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_config(reader, folder):
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"), "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu", "hidden_size": field(reader, "embedding_length"), "initializer_range": 0.041666666666666664,
        "intermediate_size": field(reader, "feed_forward_length"), "max_position_embeddings": field(reader, "context_length"),
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": field(reader, "attention.head_count"),
        "num_hidden_layers": field(reader, "block_count"), "num_key_value_heads": field(reader, "attention.head_count_kv"),
        "pad_token_id": field(reader, "tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": shortest(field(reader, "attention.layer_norm_rms_epsilon")), "rope_scaling": None,
        "rope_theta": shortest(field(reader, "rope.freq_base")), "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": len(field(reader, "tokenizer.ggml.tokens"))})
    write_json(folder / "generation_config.json", {
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"), "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": field(reader, "tokenizer.ggml.padding_token_id")})


def write_tokenizer(reader, folder):
    tokens, kinds = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    if field(reader, "tokenizer.ggml.pre") != "smollm":
        sys.exit("this is not SmolLM's pre-tokeniser")
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind == 3]
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, cut]},
        "post_processor": None, "decoder": cut | {"add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": field(reader, "tokenizer.ggml.merges")}})
    name = lambda key: tokens[field(reader, f"tokenizer.ggml.{key}_token_id")]
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False, "bos_token": name("bos"), "clean_up_tokenization_spaces": False, "eos_token": name("eos"),
        "model_max_length": field(reader, "context_length"), "pad_token": name("padding"), "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>"})
    (folder / "chat_template.jinja").write_text(field(reader, "tokenizer.chat_template"))


def main():
    reader, folder = GGUFReader(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    write_config(reader, folder)
    write_tokenizer(reader, folder)
    write_weights(reader, folder)


if __name__ == "__main__":
    main()
