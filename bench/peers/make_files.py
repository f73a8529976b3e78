#!/usr/bin/env python3
"""The same weights in other formats, so that peers are compared on the format that suits them best.

  bench/peers/make_files.py models/SmolLM2-135M-Instruct.Q4_1.gguf build/peers/files
  bench/peers/make_files.py models/SmolLM2-135M-Instruct.Q4_1.gguf build/peers/files --hf      a Hugging Face folder as well

Writes NAME.Q4_0.gguf, NAME.Q8_0.gguf and NAME.BF16.gguf beside a link to the source: matrices are dequantised to f32 and quantised
again by the `gguf` package (PyPI; needs numpy), everything else and all metadata are copied. Q4_0 keeps the embedding in the
source's type, as the usual quantisers do; vectors stay f32. --hf writes NAME-hf (config.json, tokenizer, chat template,
model.safetensors in BF16) for engines that read no GGUF; it knows llama models with a byte-level BPE vocabulary.
"""
import argparse
import json
import pathlib
import re
import struct

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

FORMATS = ("Q4_0", "Q8_0", "BF16")
FILE_TYPES = {"Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "BF16": gguf.LlamaFileType.MOSTLY_BF16}
HF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj"}


def f32(tensor):
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)


def write_gguf(reader, target, name):
    """A copy of the file with its matrices in format `name`."""
    wanted = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = FILE_TYPES[name] if key == "general.file_type" else field.contents()
        writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        matrix = tensor.tensor_type != gguf.GGMLQuantizationType.F32
        keep = not matrix or tensor.tensor_type == wanted or (name == "Q4_0" and tensor.name == "token_embd.weight")
        data, kind = (tensor.data, tensor.tensor_type) if keep else (quantize(f32(tensor), wanted), wanted)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bf16_bytes(values):
    return quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType.BF16).tobytes()


def unpermute(matrix, heads):
    """GGUF's llama files hold the rows of Q and K with rotated pairs side by side; Hugging Face has them half a head apart."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_safetensors(reader, target, heads, kv_heads):
    header, blobs, offset = {}, [], 0
    for tensor in reader.tensors:
        block = re.match(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        part = block.group(2) if block else tensor.name.removesuffix(".weight")
        values = f32(tensor)
        if part in ("attn_q", "attn_k"):
            values = unpermute(values, heads if part == "attn_q" else kv_heads)
        name = (f"model.layers.{block.group(1)}." if block else "") + HF_NAMES[part] + ".weight"
        blob = bf16_bytes(values)
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for blob in blobs:
            file.write(blob)


def write_tokenizer(get, folder):
    """tokenizer.json: byte-level BPE; digits apart, then GPT-2's pattern, which is what `smollm` names."""
    if get("tokenizer.ggml.model") != "gpt2" or get("tokenizer.ggml.pre") != "smollm":
        raise SystemExit("--hf knows the smollm tokenizer only")
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for i, t in enumerate(tokens) if types[i] == 3]
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, levels]},
        "post_processor": None, "decoder": levels,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": get("tokenizer.ggml.merges")}}))
    named = {k: tokens[get(f"tokenizer.ggml.{v}_token_id")]
             for k, v in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": get("llama.context_length"),
        "chat_template": get("tokenizer.chat_template"), **named}))


def write_hf(reader, folder):
    def get(key):
        return reader.fields[key].contents()
    if get("general.architecture") != "llama":
        raise SystemExit("--hf knows llama models only")
    folder.mkdir(parents=True, exist_ok=True)
    heads, kv_heads = get("llama.attention.head_count"), get("llama.attention.head_count_kv")
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": get("llama.embedding_length"), "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "rms_norm_eps": get("llama.attention.layer_norm_rms_epsilon"), "rope_theta": get("llama.rope.freq_base"),
        "max_position_embeddings": get("llama.context_length"), "vocab_size": get("llama.vocab_size"),
        "bos_token_id": get("tokenizer.ggml.bos_token_id"), "eos_token_id": get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"), "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors)}, indent=1))
    write_tokenizer(get, folder)
    write_safetensors(reader, folder / "model.safetensors", heads, kv_heads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--hf", action="store_true", help="write the Hugging Face folder as well")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"\.[A-Z0-9_]+$", "", options.source.name.removesuffix(".gguf"))
    reader = gguf.GGUFReader(options.source)
    link = options.folder / options.source.name
    if not link.exists():
        link.symlink_to(options.source.resolve())
    for name in FORMATS:
        target = options.folder / f"{stem}.{name}.gguf"
        if not target.exists():
            partial = target.with_suffix(".partial")
            write_gguf(reader, partial, name)
            partial.rename(target)
        print(f"{target} {target.stat().st_size / 1e6:.1f} MB")
    if options.hf:
        write_hf(reader, options.folder / f"{stem}-hf")
        print(options.folder / f"{stem}-hf")


if __name__ == "__main__":
    main()
