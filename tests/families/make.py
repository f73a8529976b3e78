#!/usr/bin/env python3
"""Writes golden/NAME.json and golden/NAME.bin: tiny models of every family, and the logits that `transformers` gives them.

Made with transformers 5.23.0, torch 2.15.0 (CPU, one thread), numpy 2.4.6, tokenizers 0.23.3. For each row of FAMILIES: a
model of the family's own class is made from its configuration and saved by save_pretrained; of that only config.json,
generation_config.json and names, shapes and files of the tensors are kept. Weights are those of write_folder.py, whose folder
transformers then loads again: dtype f32, attention "eager". Everything is checked here that can make a test blind: each
feature of a family (windows, scalings, multipliers, ...) is taken away once and must change the logits by CHANGE_MIN or more;
routers and greedy choices have no near ties; the vendor's configuration gives the same logits bit for bit.

golden/NAME.bin, little endian: u32 runs; then for each run
  u32 context_max, tokens, prefill, full, vocab;  u32 token[tokens];  then the rows prefill-1 .. tokens-1 when greedy tokens
  follow the prompt, else all rows 0 .. tokens-1: u32 first_row;  for each row u32 id[6], f32 logit[6] (the highest, falling);
  then u32 row[full], f32 logits[full][vocab] (some rows in full).
After the runs, for the tokeniser of the folder as `tokenizers` applies it: u32 texts; for each u32 bytes, ids; the bytes, padded
with zeros to a multiple of 4; u32 id[ids].
Runs: "prefill" is one forward over all tokens; "decode" is one forward over `prefill` tokens, then one a token with the cache,
each token the argmax of the row before. context_max is the limit that the server is to be started with: it decides between
the short and the long factors of longrope, which transformers decides from the length so far.

Run: python make.py [--folders OUT] [NAME...]    (OUT/NAME: the folder with golden.npz, for looking into differences)"""
import copy
import json
import logging
import math
import os
import re
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from write_folder import uniform, write_folder

HERE = Path(__file__).resolve().parent
TOP, CHANGE_MIN, MARGIN_MIN = 6, 1e-2, 2e-3
LONG = {"prompt": 150, "part": 126, "steps": 24, "context_max": 256}

BASE = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.02)
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def family(cls, tokenizer, stored="BF16", shard=None, runs=(LONG,), features=(), gain=None, **config):
    """features: changes of the configuration of which each must show; gain: {regular expression: factor} on a range."""
    return dict(cls=cls, tokenizer=tokenizer, stored=stored, shard=shard, runs=runs, features=features, gain=gain or {},
                config=BASE | {"dtype": DTYPES[stored]} | config)


def rope(kind, theta=10000.0, **values):
    return {"rope_type": kind, "rope_theta": theta, **values}


def ramp(first, last, count):
    return [round(first + (last - first) * i / (count - 1), 4) for i in range(count)]


NO_SCALING = {"rope_parameters": rope("default")}
NO_WINDOW = {"sliding_window": None}
LLAMA3_ROPE = rope("llama3", 10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
LONGROPE_16 = dict(short_factor=ramp(1.0, 1.6, 8), long_factor=ramp(1.1, 9.0, 8))
LONGROPE_24 = dict(short_factor=ramp(1.0, 1.4, 12), long_factor=ramp(1.05, 7.0, 12))
SHORT = {"prompt": 48, "part": 40, "steps": 20, "context_max": 64}
BOS_EOS = dict(bos_token_id=1, eos_token_id=2)
LLAMA3_IDS = dict(bos_token_id=507, eos_token_id=[508, 511])
QWEN_IDS = dict(bos_token_id=500, eos_token_id=502)
GEMMA_IDS = dict(bos_token_id=2, eos_token_id=[1, 5], pad_token_id=0)

FAMILIES = {
    # Llama 2: as many KV heads as heads, a head of its own
    "llama2": family("Llama", "llama2", stored="F16", num_key_value_heads=4, **BOS_EOS),
    # Llama 3.x: GQA, scaled low frequencies; 3.2's tied head
    "llama3": family("Llama", "llama3", shard="90KB", rope_parameters=LLAMA3_ROPE, features=[NO_SCALING], head_dim=32,
                     hidden_size=128, **LLAMA3_IDS),
    "llama3_tied": family("Llama", "llama3", rope_parameters=LLAMA3_ROPE | {"factor": 32.0, "rope_theta": 500000.0},
                          tie_word_embeddings=True, features=[{"rope_parameters": rope("default", 500000.0)}], **LLAMA3_IDS),
    "llama_linear": family("Llama", "llama2", rope_parameters=rope("linear", factor=4.0), features=[NO_SCALING], **BOS_EOS),
    "mistral": family("Mistral", "llama2", sliding_window=32, features=[NO_WINDOW, {"sliding_window": 33}], **BOS_EOS),
    # Mistral Nemo: a head size that is not hidden / heads, no window
    "mistral_nemo": family("Mistral", "llama3", head_dim=32, num_hidden_layers=2, sliding_window=None,
                           rope_parameters=rope("default", 1000000.0), **LLAMA3_IDS),
    "qwen2": family("Qwen2", "qwen2", stored="F32", rope_parameters=rope("default", 1000000.0), **QWEN_IDS),
    "qwen2_window": family("Qwen2", "qwen2", num_hidden_layers=4, use_sliding_window=True, sliding_window=24,
                           max_window_layers=2, features=[{"use_sliding_window": False}, {"max_window_layers": 1}], **QWEN_IDS),
    "qwen2_yarn": family("Qwen2", "qwen2", tie_word_embeddings=True,
                         rope_parameters=rope("yarn", 10000.0, factor=4.0, original_max_position_embeddings=64),
                         features=[NO_SCALING], **QWEN_IDS),
    "qwen3": family("Qwen3", "qwen2", head_dim=32, tie_word_embeddings=True, rope_parameters=rope("default", 1000000.0),
                    **QWEN_IDS),
    "qwen3_yarn": family("Qwen3", "qwen2", head_dim=32, features=[NO_SCALING],
                         rope_parameters=rope("yarn", 10000.0, factor=4.0, original_max_position_embeddings=48,
                                              attention_factor=1.2, beta_fast=8.0, beta_slow=0.5), **QWEN_IDS),
    "gemma3": family("Gemma3", "gemma", vocab_size=528, num_hidden_layers=7, head_dim=32, num_key_value_heads=1,
                     sliding_window=32, query_pre_attn_scalar=48, rms_norm_eps=1e-6,
                     rope_parameters={"sliding_attention": rope("default", 10000.0),
                                      "full_attention": rope("linear", 1000000.0, factor=8.0)},
                     features=[{"sliding_window": 4096}, {"sliding_window": 31},
                               {"query_pre_attn_scalar": 32},
                               {"rope_parameters": {"sliding_attention": rope("default", 10000.0),
                                                    "full_attention": rope("default", 1000000.0)}},
                               {"rope_parameters": {"sliding_attention": rope("default", 1000000.0),
                                                    "full_attention": rope("linear", 1000000.0, factor=8.0)}}], **GEMMA_IDS),
    # as GGUF can say it too: the scale of attention is that of the head's size
    "gemma3_plain": family("Gemma3", "gemma", vocab_size=528, num_hidden_layers=7, head_dim=32, sliding_window=24,
                           query_pre_attn_scalar=32, rms_norm_eps=1e-6,
                           rope_parameters={"sliding_attention": rope("default", 10000.0),
                                            "full_attention": rope("linear", 1000000.0, factor=8.0)},
                           features=[{"sliding_window": 25}], **GEMMA_IDS),
    # Phi-3-mini-4k: fused matrices and a window
    "phi3": family("Phi3", "llama2", num_key_value_heads=4, sliding_window=40, original_max_position_embeddings=256,
                   features=[NO_WINDOW], pad_token_id=2, **BOS_EOS),
    # Phi-3-mini-128k: longrope on both sides of its switch
    "phi3_long": family("Phi3", "llama2", num_key_value_heads=4, head_dim=None, hidden_size=64, runs=(LONG, SHORT),
                        sliding_window=300, original_max_position_embeddings=64, pad_token_id=2,
                        rope_parameters=rope("longrope", **LONGROPE_16),
                        features=[{"rope_parameters": rope("longrope", short_factor=LONGROPE_16["short_factor"],
                                                           long_factor=LONGROPE_16["short_factor"])}], **BOS_EOS),
    # Phi-4-mini: GQA, tied, three quarters of a head rotate
    "phi4_mini": family("Phi3", "phi4", hidden_size=128, tie_word_embeddings=True, runs=(LONG, SHORT), sliding_window=300,
                        original_max_position_embeddings=64, gain={"qkv_proj": 0.7}, bos_token_id=508, eos_token_id=508,
                        pad_token_id=508,
                        rope_parameters=rope("longrope", partial_rotary_factor=0.75, **LONGROPE_24),
                        features=[{"rope_parameters": rope("longrope", partial_rotary_factor=0.75,
                                                           short_factor=LONGROPE_24["short_factor"],
                                                           long_factor=LONGROPE_24["short_factor"])}]),
    "granite": family("Granite", "granite", embedding_multiplier=3.0, attention_multiplier=0.0390625, residual_multiplier=0.7,
                      logits_scaling=0.4, tie_word_embeddings=True, bos_token_id=509, eos_token_id=509, pad_token_id=509,
                      gain={"embed_tokens": 1.5, "q_proj|k_proj": 2},
                      features=[{"embedding_multiplier": 2.9}, {"attention_multiplier": 0.25}, {"residual_multiplier": 0.69},
                                {"logits_scaling": 0.39}]),
    "qwen3_moe": family("Qwen3Moe", "qwen2", head_dim=32, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=96,
                        norm_topk_prob=True, features=[{"norm_topk_prob": False}, {"num_experts_per_tok": 2}], **QWEN_IDS),
    # dense layers among sparse ones; shares not made to add up to 1
    "qwen3_moe_mixed": family("Qwen3Moe", "qwen2", head_dim=32, num_experts=8, num_experts_per_tok=2, num_hidden_layers=4,
                              moe_intermediate_size=64, decoder_sparse_step=2, mlp_only_layers=[3], norm_topk_prob=False,
                              features=[{"norm_topk_prob": True}], **QWEN_IDS),
    "mixtral": family("Mixtral", "llama2", shard="300KB", num_local_experts=4, num_experts_per_tok=2, intermediate_size=128,
                      features=[{"num_experts_per_tok": 1}], **BOS_EOS),
    "mixtral_window": family("Mixtral", "llama2", num_local_experts=8, num_experts_per_tok=2, intermediate_size=64,
                             num_hidden_layers=2, sliding_window=20, features=[NO_WINDOW], **BOS_EOS),
}

# What pre-tokenisers, normalisers and byte fallback treat apart; {special} is one of the vocabulary's own special tokens.
TEXTS = ["", " ", "The mill", "  two  spaces,   three\n\n\nand lines\r\n\t tab ", "In 1867, 12345.67 litres; it's WE'LL don't",
         "na\u00efve cafe\u0301 \u00c5ngstr\u00f6m \u6c34\u8eca\u304c\u3042\u308b \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430 \U0001f30a\u200d",
         "{special}The wheel{special} {special}\nturns", "\u2581under\u2581 <0x0A> camelCaseWord HTTPServer/path_to/x1"]

MODEL_TYPES = {"Gemma3": "Gemma3TextConfig"}


# --- the model ---------------------------------------------------------------------------------------------------------

def ranges(name, shape, config, gain):
    """Mean and half range of a tensor's values: logits spread over several units, attention is neither flat nor a choice."""
    mean, deviation = 0.0, 1.0 / math.sqrt(shape[-1])
    if name.endswith("norm.weight"):
        mean = 0.0 if config["model_type"] == "gemma3_text" else 1.0
        if re.search(r"[qk]_norm", name):
            mean += 0.4
        if config["model_type"] == "gemma3_text" and "post_" in name:
            mean = 1.5 # branches outweigh the tied embedding, or every token would predict itself
        deviation = 0.2
    elif name.endswith("bias"):
        deviation = 0.4
    elif "embed_tokens" in name:
        deviation = 0.3 if config["tie_word_embeddings"] else 1.0
        deviation /= config.get("embedding_multiplier", 1.0)
        if config["model_type"] == "gemma3_text":
            deviation = 0.2
    elif name == "lm_head.weight":
        deviation *= 3
    elif re.search(r"mlp\.gate\.weight|block_sparse_moe\.gate\.weight", name):
        deviation *= 2
    else:
        deviation *= 1.5
    for pattern, factor in gain.items():
        if re.search(pattern, name):
            deviation *= factor
    return mean, round(deviation * math.sqrt(3), 6)


def class_of(row, what):
    name = MODEL_TYPES.get(row["cls"], row["cls"] + "Config") if what == "Config" else row["cls"] + what
    return getattr(transformers, name)


def describe(name, row):
    """What golden/NAME.json holds, from what save_pretrained writes."""
    config = class_of(row, "Config")(**copy.deepcopy({k: v for k, v in row["config"].items() if v is not None or k in NO_WINDOW}))
    model = class_of(row, "ForCausalLM")(config).to(getattr(torch, row["config"]["dtype"]))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.save_pretrained(folder, max_shard_size=row["shard"] or "5GB")
        saved = json.loads((folder / "config.json").read_text())
        generation = json.loads((folder / "generation_config.json").read_text())
        files = []
        for path in sorted(folder.glob("*.safetensors")):
            data = path.read_bytes()
            header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
            tensors = [(header[t]["data_offsets"][0], t, header[t]) for t in header if t != "__metadata__"]
            assert all(h["dtype"] == row["stored"] for _, _, h in tensors), name
            files.append({"name": path.name, "tensors": []})
            for _, tensor, h in sorted(tensors):
                mean, amplitude = ranges(tensor, h["shape"], saved, row["gain"])
                files[-1]["tensors"].append({"name": tensor, "shape": h["shape"], "mean": mean, "amplitude": amplitude})
    tokenizer = json.loads((HERE / "tokenizers" / f"{row['tokenizer']}.json").read_text())
    names = {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    first = lambda ids: ids[0] if isinstance(ids, list) else ids
    tokenizer_config = {"bos_token": names.get(saved.get("bos_token_id")), "eos_token": names[first(saved["eos_token_id"])],
                        "model_max_length": saved["max_position_embeddings"], "tokenizer_class": "PreTrainedTokenizerFast"}
    return {"made_by": "make.py", "class": row["cls"] + "ForCausalLM", "dtype": row["stored"], "tokenizer": row["tokenizer"],
            "config": saved, "config_vendor": vendor_config(saved), "generation_config": generation,
            "tokenizer_config": tokenizer_config, "files": files}


def vendor_config(config):
    """The same model as vendors' files of transformers 4 describe it."""
    old = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype", "layer_types", "num_local_experts",
                                                        "_sliding_window_pattern")}
    old |= {"torch_dtype": config["dtype"], "transformers_version": "4.51.0"}
    parameters = copy.deepcopy(config["rope_parameters"])
    kind = config["model_type"]
    if kind == "gemma3_text":
        old |= {"rope_theta": parameters["full_attention"].pop("rope_theta"), "sliding_window_pattern": 6,
                "rope_local_base_freq": parameters["sliding_attention"]["rope_theta"]}
        parameters = parameters["full_attention"]
    else:
        old["rope_theta"] = parameters.pop("rope_theta")
    if kind == "phi3":
        old["partial_rotary_factor"] = parameters.pop("partial_rotary_factor", 1.0)
        parameters.pop("original_max_position_embeddings", None) # beside rope_scaling, not in it
        parameters["type"] = parameters["rope_type"]
    if kind == "qwen2" or kind == "qwen3":
        old["sliding_window"] = config["sliding_window"] or 4096
    if kind == "mixtral":
        old["num_local_experts"] = config["num_local_experts"]
    elif kind == "qwen3_moe":
        old["num_experts"] = config.get("num_experts", config.get("num_local_experts"))
    old["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    if old["rope_scaling"] and kind == "phi3":
        old["rope_scaling"].pop("rope_type")
    return dict(sorted(old.items()))


def load(folder, changes=None):
    config = transformers.AutoConfig.from_pretrained(folder)
    if changes:
        values = json.loads((folder / "config.json").read_text()) | copy.deepcopy(changes)
        if "layer_types" not in changes and set(changes) & {"use_sliding_window", "max_window_layers"}:
            values.pop("layer_types")
        config = type(config)(**values)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager",
                                                experts_implementation="eager").eval()


# --- logits ------------------------------------------------------------------------------------------------------------

def prompt_ids(name, seed, count, vocab):
    return [int((u + 1) / 2 * vocab) for u in uniform(f"prompt {seed} of {name}", count)]


@torch.inference_mode()
def prefill(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


@torch.inference_mode()
def decode(model, ids, steps):
    """Tokens, and the rows from the prompt's last token on: steps tokens are chosen, each is fed back."""
    out = model(torch.tensor([ids]), use_cache=True)
    tokens, rows = list(ids), [out.logits[0, -1].numpy()]
    for _ in range(steps):
        tokens.append(int(rows[-1].argmax()))
        out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0, -1].numpy())
    return tokens, np.stack(rows)


def choose_prompt(name, model, run, vocab):
    """The first prompt whose greedy continuation has no near tie, where another summation order could choose differently."""
    for seed in range(50):
        ids = prompt_ids(name, seed, run["prompt"], vocab)
        tokens, rows = decode(model, ids[:run["part"]], run["steps"])
        steps = np.sort(rows, axis=1)
        margin = float((steps[:-1, -1] - steps[:-1, -2]).min())
        if margin > MARGIN_MIN and len(set(tokens[run["part"]:])) > run["steps"] // 2:
            return ids, tokens, rows, margin
        print(f"  {name}: prompt {seed} has margin {margin:.1e}, continues {tokens[run['part']:]}")
    sys.exit(f"{name}: every prompt nearly ties or repeats itself")


def run_bytes(context_max, tokens, prefill_count, logits, full):
    first = len(tokens) - len(logits)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP].astype("<u4")
    data = struct.pack("<5I", context_max, len(tokens), prefill_count, len(full), logits.shape[1])
    data += np.asarray(tokens, "<u4").tobytes() + struct.pack("<I", first)
    for ids, row in zip(order, logits):
        data += ids.tobytes() + row[ids].astype("<f4").tobytes()
    return data + np.asarray([first + f for f in full], "<u4").tobytes() + logits[full].astype("<f4").tobytes()


def text_bytes(tokenizer_name):
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizers" / f"{tokenizer_name}.json"))
    special = max(tokenizer.get_added_tokens_decoder().items())[1].content
    data = struct.pack("<I", len(TEXTS))
    for text in TEXTS:
        text = text.replace("{special}", special)
        raw, ids = text.encode(), tokenizer.encode(text).ids
        data += struct.pack("<2I", len(raw), len(ids)) + raw + b"\0" * (-len(raw) % 4) + np.asarray(ids, "<u4").tobytes()
    return data


def check_routers(name, model, ids):
    gaps = []

    def look(module, inputs, output):
        rows = inputs[0].reshape(-1, inputs[0].shape[-1])
        logits = torch.sort(torch.nn.functional.linear(rows, module.weight), descending=True).values
        gaps.append(float((logits[:, module.top_k - 1] - logits[:, module.top_k]).min()))

    hooks = [m.register_forward_hook(look) for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    prefill(model, ids)
    for hook in hooks:
        hook.remove()
    assert gaps and min(gaps) > 1e-4, f"{name}: routers nearly tie: {gaps}"
    print(f"  routers: smallest gap {min(gaps):.1e}")


def make(name, row, folders):
    described = describe(name, row)
    folder = folders / name if folders else Path(tempfile.mkdtemp())
    vendor = Path(tempfile.mkdtemp())
    write_folder(described, folder)
    write_folder(described, vendor, vendor=True)
    model = load(folder)
    vocab, rope_type = row["config"]["vocab_size"], str(described["config"]["rope_parameters"])
    runs, arrays = [], {}
    for i, run in enumerate(row["runs"]):
        ids, tokens, rows, margin = choose_prompt(name, model, run, vocab)
        logits = prefill(model, ids)
        assert np.array_equal(logits, prefill(load(vendor), ids)), f"{name}: the vendor's configuration differs"
        double = model.double()(torch.tensor([ids]), use_cache=False).logits[0].detach().numpy()
        model.float()
        error = float(np.abs(double - logits).max())
        print(f"{name}: logits {logits.std():.2f} (largest {np.abs(logits).max():.1f}), greedy margin {margin:.1e}, "
              f"f32 against f64 {error:.1e}")
        assert 1 < logits.std() < 8 and error < 5e-5, name
        full = [0, run["prompt"] // 2, run["prompt"] - 1]
        runs.append(run_bytes(run["context_max"], ids, len(ids), logits, full))
        runs.append(run_bytes(run["context_max"], tokens, run["part"], rows, [0, run["steps"]]))
        arrays |= {f"prefill{i}_ids": ids, f"prefill{i}_logits": logits, f"decode{i}_tokens": tokens, f"decode{i}_logits": rows,
                   f"decode{i}_prefill": run["part"], f"context_max{i}": run["context_max"]}
        if i == 0:
            for change in row["features"]:
                difference = float(np.abs(prefill(load(folder, change), ids) - logits).max())
                assert difference > CHANGE_MIN, f"{name}: {change} changes logits by {difference} only"
                print(f"  without {str(change)[:80]}: {difference:.2f}")
            if "Moe" in row["cls"] or row["cls"] == "Mixtral":
                check_routers(name, model, ids)
                check_routers(name, model, tokens)
    if folders:
        np.savez(folder / "golden.npz", **arrays)
        shutil.copy(vendor / "config.json", folder / "config_vendor.json")
    else:
        shutil.rmtree(folder)
    shutil.rmtree(vendor)
    (HERE / "golden").mkdir(exist_ok=True)
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).replace('{"name":', '\n{"name":')
    (HERE / "golden" / f"{name}.json").write_text(text + "\n")
    (HERE / "golden" / f"{name}.bin").write_bytes(struct.pack("<I", len(runs)) + b"".join(runs) +
                                                 text_bytes(row["tokenizer"]))


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names, folders = sys.argv[1:], None
    if names[:1] == ["--folders"]:
        folders, names = Path(names[1]), names[2:]
    for name in names or FAMILIES:
        make(name, FAMILIES[name], folders)


if __name__ == "__main__":
    main()
