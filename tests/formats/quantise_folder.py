#!/usr/bin/env python3
"""Quantises a tiny model of tests/families: quantise_folder.py FAMILY FORMAT OUT

Writes OUT/plain, the folder with every projection as F32 values that the format can say, and OUT/quantised, the same in the
format's own tensors with quantization_config. FORMAT: a name of FORMATS. Which matrices: those of attention, of feed-forward and of
experts; routers, embedding and head stay as they are, as vendors leave them. numpy alone."""
import json
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "families"))
import formats as f  # noqa: E402
import write_folder as families  # noqa: E402

MODULE = re.compile(r"(.*(?:_proj|\.w[123]))\.weight$")


def config(method, **more):
    return dict(quant_method=method, **more)


def compressed(form, bits, strategy, group=None, kind="int", symmetric=True, activations=None):
    args = dict(num_bits=bits, type=kind, symmetric=symmetric, strategy=strategy, group_size=group, dynamic=False)
    if activations:
        activations = dict(num_bits=8, type=kind, symmetric=True, strategy=activations, dynamic=activations == "token")
    return config("compressed-tensors", format=form, quantization_status="compressed", ignore=["lm_head"], kv_cache_scheme=None,
                  config_groups=dict(group_0=dict(targets=["Linear"], weights=args, input_activations=activations)))


def awq(weight):
    codes, zero, scales = f.integers(weight, 4, 32, False, "F16")
    return f.awq(codes, zero, scales), f.value(codes, zero, scales, 32)


def gptq(weight, order=None):
    codes, zero, scales = f.integers(weight, 4, 32, True, "F16")
    return f.gptq(codes, zero, scales, 4, 32, 1, order), f.value(codes, zero, scales, 32, order)


def gptq_v2(weight):
    codes, zero, scales = f.integers(weight, 4, 64, False, "BF16")
    return f.gptq(codes, zero, scales, 4, 64, 2), f.value(codes, zero, scales, 64)


def gptq_shuffled(weight):
    return gptq(weight, np.random.default_rng(weight.shape[1]).permutation(np.arange(weight.shape[1]) // 32))


def gptq_8(weight):
    codes, zero, scales = f.integers(weight, 8, 32, True, "F16")
    return f.gptq(codes, zero, scales, 8, 32), f.value(codes, zero, scales, 32)


def fp8(weight, block, suffix="weight_scale_inv", shape=()):
    rows, cols = block or weight.shape
    codes, scales = f.fp8(weight, rows, cols, "F32")
    stored = scales if block else ("F32", scales[1].reshape(shape))
    activations = {"input_scale": ("F32", np.float32(0.5))} if not block else {}
    return {"weight": codes, suffix: stored} | activations, f.fp8_value(codes, scales, rows, cols)


def fp8_rows(weight):
    codes, scales = f.fp8(weight, 1, weight.shape[1], "BF16")
    return {"weight": codes, "weight_scale": scales}, f.fp8_value(codes, scales, 1, weight.shape[1])


def packed(weight, symmetric=True, dtype="BF16"):
    codes, zero, scales = f.integers(weight, 4, 32, symmetric, dtype)
    return f.packed(codes, zero, scales, 4, symmetric), f.value(codes, zero, scales, 32)


def int8(weight):
    codes, zero, scales = f.integers(weight, 8, weight.shape[1], True, "BF16")
    return f.whole_bytes(codes, zero, scales, True), f.value(codes, zero, scales, weight.shape[1])


FORMATS = {
    "awq": (config("awq", bits=4, group_size=32, zero_point=True, version="gemm"), awq),
    "gptq": (config("gptq", bits=4, group_size=32, desc_act=False, sym=True, checkpoint_format="gptq"), gptq),
    "gptq_v2": (config("gptq", bits=4, group_size=64, desc_act=False, sym=False, checkpoint_format="gptq_v2"), gptq_v2),
    "gptq_desc_act": (config("gptq", bits=4, group_size=32, desc_act=True, sym=True, checkpoint_format="gptq"), gptq_shuffled),
    "gptq_8": (config("gptq", bits=8, group_size=32, desc_act=False, sym=True, checkpoint_format="gptq"), gptq_8),
    "fp8_blocks": (config("fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[32, 32]),
                   lambda w: fp8(w, (32, 32))),
    "fp8_128": (config("fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[32, 128]),
                lambda w: fp8(w, (32, 128))),
    "fp8_tensor": (config("fp8", fmt="e4m3", activation_scheme="static"), lambda w: fp8(w, None, "weight_scale")),
    "ct_packed": (compressed("pack-quantized", 4, "group", 32), packed),
    "ct_packed_zeros": (compressed("pack-quantized", 4, "group", 32, symmetric=False), lambda w: packed(w, False, "F16")),
    "ct_int8": (compressed("int-quantized", 8, "channel", activations="token"), int8),
    "ct_fp8": (compressed("float-quantized", 8, "tensor", kind="float", activations="tensor"),
               lambda w: fp8(w, None, "weight_scale", (1,))),
    "ct_fp8_rows": (compressed("float-quantized", 8, "channel", kind="float", activations="token"), fp8_rows),
}


def main():
    family_name, format_name, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    family = json.loads((families.HERE / "golden" / f"{family_name}.json").read_text())
    quantisation, quantise = FORMATS[format_name]
    count = 0
    for folder in (out / "plain", out / "quantised"):
        families.write_folder(family, folder)
    for file in family["files"]:
        plain, quantised = {}, {}
        for name, tensor in f.read(out / "plain" / file["name"]).items():
            match = MODULE.match(name)
            if not match:
                plain[name] = quantised[name] = tensor
                continue
            tensors, values = quantise(f.widen(tensor))
            plain[name] = "F32", values
            quantised |= {f"{match[1]}.{suffix}": pair for suffix, pair in tensors.items()}
            count += 1
        f.write(out / "plain" / file["name"], plain)
        f.write(out / "quantised" / file["name"], quantised)
    path = out / "quantised" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantisation}, indent=2) + "\n")
    for folder in (out / "plain", out / "quantised"):  # shards moved no tensor, but the names in them changed
        index = folder / "model.safetensors.index.json"
        if index.exists():
            names = {name: file["name"] for file in family["files"] for name in f.read(folder / file["name"])}
            index.write_text(json.dumps({"metadata": {}, "weight_map": names}) + "\n")
    print(f"{count} matrices of {family_name} in {format_name}")


if __name__ == "__main__":
    main()
