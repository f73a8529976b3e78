#!/usr/bin/env python3
"""Writes the GGUF file of one tiny model of golden/: python write_gguf.py NAME OUT.gguf

The same weights as write_folder.py's, under the names, keys and layouts of llama.cpp's convert_hf_to_gguf.py: rows of Q and K
paired for interleaved RoPE in its llama family, Gemma's norms with the 1 added, Phi's fused matrices kept, experts stacked,
RoPE factors as tensors. Matrices as in the folder, vectors in F32. The vocabulary is byte-level whatever the family's own is:
tokenisers are tested elsewhere. Needs gguf (0.19.0) and numpy.

What the format cannot say is refused: other windows than Gemma's and Phi's, a scale of attention that Gemma 3 does not imply,
dense layers among sparse ones, shares of experts that do not add up to 1."""
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType

from write_folder import tensor_bytes

HERE = Path(__file__).resolve().parent
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
                 "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3", "phi3": "phi3", "granite": "granite"}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
         "mlp.gate": "ffn_gate_inp", "block_sparse_moe.gate": "ffn_gate_inp"}
GEMMA_NAMES = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"}
EXPERT = r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)"
EXPERT_NAMES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
TYPES = {"BF16": GGMLQuantizationType.BF16, "F16": GGMLQuantizationType.F16, "F32": GGMLQuantizationType.F32}


def permute(w, heads):
    """Rows of a head from halves (i, i + D/2) to pairs (2i, 2i+1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_f32(raw, dtype):
    return (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else raw.astype(np.float32)


def read_tensors(family):
    """Raw values by name: uint16 of BF16, float16 or float32."""
    kinds = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
    return {t["name"]: np.frombuffer(tensor_bytes(t, family["dtype"]), kinds[family["dtype"]]).reshape(t["shape"])
            for file in family["files"] for t in file["tensors"]}


def gguf_name(name, gemma):
    layer = re.match(r"model\.layers\.(\d+)\.(.*)\.(weight|bias)$", name)
    part, kind = (layer.group(2), layer.group(3)) if layer else name.rsplit(".", 1)
    part = GEMMA_NAMES.get(part) if gemma and part in GEMMA_NAMES else NAMES[part]
    return f"blk.{layer.group(1)}.{part}.{kind}" if layer else f"{part}.{kind}"


def add_tensors(writer, family, config, architecture):
    experts, kind = {}, TYPES[family["dtype"]]
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def add(name, values):
        if values.ndim == 1 or family["dtype"] == "F32" or "ffn_gate_inp" in name:
            values = to_f32(values, family["dtype"])
            if architecture == "gemma3" and "norm" in name:
                values = values + 1
            writer.add_tensor(name, np.ascontiguousarray(values))
        else:
            values = np.ascontiguousarray(values)
            writer.add_tensor(name, values.view(np.uint8) if family["dtype"] == "BF16" else values, raw_dtype=kind)

    for name, values in read_tensors(family).items():
        expert = re.search(EXPERT, name)
        if expert:
            layer = re.search(r"layers\.(\d+)", name).group(1)
            experts.setdefault((layer, EXPERT_NAMES[expert.group(2)]), {})[int(expert.group(1))] = values
            continue
        target = gguf_name(name, architecture == "gemma3")
        part = target.split(".")[2] if target.startswith("blk") else ""
        if architecture in ("llama", "granite") and part in heads:
            values = permute(values, heads[part])
        add(target, values)
    for (layer, part), rows in experts.items():
        add(f"blk.{layer}.ffn_{part}_exps.weight", np.stack([rows[i] for i in range(len(rows))]))


def llama3_factors(rope, size):
    """Divisors of the frequencies, by the formula of Llama 3.1 (as convert_hf_to_gguf.py writes them)."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for i in range(0, size, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / size)
        smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"])
        factors.append(1 if wave < high else rope["factor"] if wave > low else 1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def add_rope(writer, config, rope, head_size):
    size = int(head_size * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if set(rope) & {"attention_factor", "beta_fast", "beta_slow"}:
            sys.exit("YaRN with values of its own has no keys")
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, size))
    elif kind == "longrope":
        original = rope["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
    elif kind != "default":
        sys.exit(f"RoPE of type {kind} cannot be written")


def add_keys(writer, config, architecture):
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_size, rope = config.get("head_dim") or width // heads, config["rope_parameters"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if head_size * heads != width or architecture == "gemma3":
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    if architecture == "gemma3":
        if config["query_pre_attn_scalar"] != head_size:
            sys.exit("Gemma 3 in GGUF implies attention by its head size")
        rope = rope["full_attention"]
    if config.get("sliding_window"):
        if architecture not in ("gemma3", "phi3"):
            sys.exit(f"{architecture} in GGUF has no window")
        writer.add_sliding_window(config["sliding_window"])
    add_rope(writer, config, rope, head_size)
    if architecture == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    experts = config.get("num_local_experts")
    if experts:
        if config["model_type"] == "qwen3_moe":
            if not config["norm_topk_prob"] or config["mlp_only_layers"] or config["decoder_sparse_step"] != 1:
                sys.exit("Qwen3-MoE in GGUF has experts in every layer, whose shares add up to 1")
            writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])


def add_vocabulary(writer, vocab_size):
    tokenizer = json.loads((HERE / "tokenizers" / "qwen2.json").read_text())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    kinds = [TokenType.NORMAL] * len(tokens)
    tokens += [t["content"] for t in tokenizer["added_tokens"]]
    kinds += [TokenType.CONTROL] * len(tokenizer["added_tokens"])
    unused = vocab_size - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(unused)])
    writer.add_token_types(kinds + [TokenType.UNUSED] * unused)
    writer.add_token_merges([" ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(502)


def main():
    family = json.loads((HERE / "golden" / f"{sys.argv[1]}.json").read_text())
    config = family["config"]
    architecture = ARCHITECTURES[config["model_type"]]
    writer = GGUFWriter(sys.argv[2], architecture)
    writer.add_name(sys.argv[1])
    add_keys(writer, config, architecture)
    add_vocabulary(writer, config["vocab_size"])
    add_tensors(writer, family, config, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
