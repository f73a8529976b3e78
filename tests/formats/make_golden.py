#!/usr/bin/env python3
"""Writes golden.safetensors: small quantised matrices in every format, and what each weight is worth.

Cases are made by formats.py from the definitions. With --reference they are held against the reference implementations first,
and nothing is written unless all agree: every value in f32 (their code run with scales widened to f32), bit for bit, and
rounded to the scales' type equal to what their code gives as it is. References: AutoAWQ 0.2.9 (dequantize_gemm), AutoGPTQ
0.7.1 (qlinear_cuda, qlinear_cuda_old), compressed-tensors 0.20.0 (the compressors), transformers 5.23.0 (Fp8Dequantize), with
torch 2.15.0.

Tensors are called CASE/MODULE.SUFFIX, and CASE/values is f32 (N, K). The metadata has for each case a JSON object: config (with
quantization_config), module, and type, the one that it should be repacked to.

Run: python make_golden.py [--reference FOLDER]    FOLDER has awq/, auto_gptq/ and compressed_tensors/, unpacked
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np

import formats as f

MODULE = "model.layers.3.mlp.up_proj"
SEED = 20261123
rng = np.random.default_rng(SEED)
cases = {}


def weights(n, k):
    return (rng.normal(size=(n, k)) * 0.04).astype(np.float32)


def add(name, tensors, values, config, kind, **more):
    if kind == "minimum":
        kind = with_minimum(more["zero"], more["scales"])
    cases[name] = dict(tensors=tensors, values=values.astype(np.float32), config=config, type=kind, more=more)


def with_minimum(zero, scales):
    """Q4_1 where F16 holds every zero point * scale, else Q5_0."""
    minimum = zero * f.widen(scales)
    return "Q4_1" if (np.float16(minimum) == minimum).all() else "Q5_0"


def awq_config(group):
    return dict(quant_method="awq", bits=4, group_size=group, zero_point=True, version="gemm", modules_to_not_convert=None)


def gptq_config(bits, group, version=1, desc_act=False, sym=True):
    return dict(quant_method="gptq", bits=bits, group_size=group, desc_act=desc_act, sym=sym, damp_percent=0.01, lm_head=False,
                checkpoint_format="gptq_v2" if version == 2 else "gptq", pack_dtype="int32", meta=dict(quantizer=["x:1"]))


def compressed_config(form, bits, strategy, group=None, symmetric=True, kind="int", block=None, targets=("Linear",)):
    args = dict(num_bits=bits, type=kind, symmetric=symmetric, strategy=strategy, group_size=group, dynamic=False,
                observer="minmax")
    if block:
        args["block_structure"] = block
    return dict(quant_method="compressed-tensors", format=form, quantization_status="compressed", ignore=["lm_head"],
                kv_cache_scheme=None,
                config_groups=dict(group_0=dict(targets=list(targets), weights=args, input_activations=None)))


def add_awq(name, n, k, group, kind, symmetric=False, scale=None, dtype="F16"):
    size = group if group > 0 else k
    codes, zero, scales = f.integers(weights(n, k), 4, size, symmetric, dtype)
    if scale is not None:
        scales = "F16", scale(scales[1])
    add(name, f.awq(codes, zero, scales), f.value(codes, zero, scales, size), awq_config(group), kind, zero=zero, scales=scales)


def add_gptq(name, n, k, bits, group, kind, symmetric=True, version=1, order=None, dtype="F16", desc_act=False):
    size = group if group > 0 else k
    codes, zero, scales = f.integers(weights(n, k), bits, size, symmetric, dtype)
    if version == 1 and not symmetric:
        zero = np.clip(zero, 1, 2**bits - 1)  # a zero point of 0 borrows from its neighbour: see gptq_v1_borrow
    tensors = f.gptq(codes, zero, scales, bits, size, version, order)
    add(name, tensors, f.value(codes, zero, scales, size, order), gptq_config(bits, group, version, desc_act, symmetric), kind,
        zero=zero, scales=scales)
    return codes, zero, scales


def add_packed(name, n, k, bits, group, kind, symmetric=True, dtype="BF16"):
    size = group or k
    codes, zero, scales = f.integers(weights(n, k), bits, size, symmetric, dtype)
    config = compressed_config("pack-quantized", bits, "group" if group else "channel", group, symmetric)
    add(name, f.packed(codes, zero, scales, bits, symmetric), f.value(codes, zero, scales, size), config, kind, zero=zero,
        scales=scales)


def add_bytes(name, n, k, kind, symmetric=True, dtype="BF16"):
    codes, zero, scales = f.integers(weights(n, k), 8, k, symmetric, dtype)
    config = compressed_config("int-quantized", 8, "channel", None, symmetric)
    add(name, f.whole_bytes(codes, zero, scales, symmetric), f.value(codes, zero, scales, k), config, kind)


def add_fp8(name, n, k, block, dtype, kind, scales=None, shape=None, suffix="weight_scale_inv", config=None):
    rows, cols = block or (n, k)
    codes, grid = f.fp8(weights(n, k), rows, cols, dtype, scales)
    stored = grid if shape is None else (grid[0], grid[1].reshape(shape))
    config = config or dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic",
                            weight_block_size=list(block) if block else None)
    add(name, {"weight": codes, suffix: stored}, f.fp8_value(codes, grid, rows, cols), config, kind, blocks=(rows, cols))


def make():
    add_awq("awq_g32", 24, 96, 32, "minimum")
    add_awq("awq_g64", 8, 128, 64, "minimum")
    add_awq("awq_whole", 8, 96, -1, "minimum")
    add_awq("awq_symmetric", 16, 64, 32, "Q4_0", symmetric=True)
    add_awq("awq_short_scales", 8, 64, 32, "Q4_1", scale=lambda s: np.float16(2.0) ** np.round(np.log2(s)) * np.float16(0.75))
    add_awq("awq_g16", 8, 64, 16, "F32")
    add_gptq("gptq_v1", 24, 128, 4, 64, "Q4_0")
    add_gptq("gptq_v1_asymmetric", 8, 96, 4, 32, "minimum", symmetric=False)
    add_gptq("gptq_v2_asymmetric", 8, 96, 4, 32, "minimum", symmetric=False, version=2)
    add_gptq("gptq_bf16", 8, 64, 4, 32, "Q4_0", dtype="BF16")
    add_gptq("gptq_whole", 8, 64, 4, -1, "Q4_0")
    add_gptq("gptq_tail", 8, 80, 4, 48, "F32")
    shuffled = rng.permutation(np.arange(96) // 32)
    add_gptq("gptq_desc_act", 8, 96, 4, 32, "F32", order=shuffled, desc_act=True)
    add_gptq("gptq_desc_act_8", 8, 64, 8, 16, "F32", order=rng.permutation(np.arange(64) // 16), desc_act=True, symmetric=False)
    add_gptq("gptq_desc_act_blocks", 8, 96, 4, 32, "Q4_0", order=np.repeat([2, 0, 1], 32), desc_act=True)
    add_gptq("gptq_8", 12, 64, 8, 32, "Q8_0")
    add_gptq("gptq_8_asymmetric", 8, 64, 8, 32, "F32", symmetric=False)
    # a zero point of 0 in version 1 borrows from the next place of its word
    codes, _, scales = f.integers(weights(8, 32), 4, 32, False, "F16")
    zero = np.array([[0], [5], [0], [0], [15], [1], [9], [0]])
    add("gptq_v1_borrow", f.gptq(codes, zero, scales, 4, 32), f.value(codes, zero, scales, 32), gptq_config(4, 32, sym=False),
        "minimum", zero=zero, scales=scales, unverified="AutoGPTQ cannot write these")
    add_packed("packed_g32", 18, 64, 4, 32, "Q4_0")
    add_packed("packed_g64_asymmetric", 9, 128, 4, 64, "minimum", symmetric=False)
    add_packed("packed_channel", 5, 64, 4, None, "Q4_0")
    add_packed("packed_channel_asymmetric", 5, 64, 4, None, "minimum", symmetric=False)
    add_packed("packed_k72", 5, 72, 4, None, "F32")
    add_packed("packed_k36", 9, 36, 4, 12, "F32", symmetric=False)
    add_packed("packed_f32_scales", 5, 64, 4, 32, "F32", dtype="F32")
    add_packed("packed_8", 5, 64, 8, 32, "Q8_0")
    add_packed("packed_8_k66", 3, 66, 8, None, "F32")
    add_bytes("int8_channel", 5, 64, "Q8_0")
    add_bytes("int8_f32_scales", 5, 64, "F32", dtype="F32")
    add_bytes("int8_asymmetric", 5, 64, "F32", symmetric=False)
    add_fp8("fp8_blocks", 20, 40, (16, 32), "F32", "F32")
    add_fp8("fp8_blocks_bf16", 18, 40, (16, 32), "BF16", "F32")
    add_fp8("fp8_blocks_e8m0", 18, 40, (16, 32), "F8_E8M0", "BF16")
    add_fp8("fp8_blocks_u8", 18, 40, (16, 32), "U8", "BF16")
    add_fp8("fp8_seven_digits", 18, 40, (16, 32), "F32", "F16",
            scales=(rng.integers(64, 128, (2, 2)) * 2.0**-15).astype(np.float32))
    add_fp8("fp8_tensor", 6, 20, None, "F32", "F32", shape=(), suffix="weight_scale")
    add_fp8("fp8_tensor_bf16", 6, 20, None, "BF16", "F32", shape=(1,), suffix="weight_scale")
    add_fp8("fp8_fbgemm", 6, 20, (1, 20), "F32", "F32", suffix="weight_scale",
            config=dict(quant_method="fbgemm_fp8", activation_scale_ub=1200.0))
    add_fp8("fp8_modelopt", 6, 20, None, "F32", "F32", shape=(), suffix="weight_scale",
            config=dict(quant_method="modelopt", quant_algo="FP8", kv_cache_scheme=None))
    for strategy, n, k, block, shape in (("tensor", 6, 20, None, (1,)), ("channel", 6, 20, (1, 20), None),
                                         ("block", 20, 40, (16, 32), None)):
        config = compressed_config("float-quantized", 8, strategy, kind="float",
                                   block=block if strategy == "block" else None)
        add_fp8(f"float8_{strategy}", n, k, block, "BF16", "F32", shape=shape, suffix="weight_scale", config=config)


def verify(folder):
    """Holds every case against the reference implementations."""
    import importlib.util

    import torch

    sys.path.insert(0, str(folder))
    from compressed_tensors.compressors.naive_quantized import NaiveQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    def load(path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    packing = load(folder / "awq/utils/packing_utils.py")
    linear = {old: load(folder / f"auto_gptq/nn_modules/qlinear/qlinear_cuda{old}.py").QuantLinear for old in ("_old", "")}
    types = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu}

    def torched(pair):
        tensor = torch.from_numpy(np.array(pair[1]))
        return tensor.view(types[pair[0]]) if pair[0] in types else tensor

    def reference(case, tensors, scale_type):
        config, values = case["config"], case["values"]
        n, k = values.shape
        method = config["quant_method"]
        if method == "awq":
            group = config["group_size"]
            group = group if group > 0 else k
            return packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"], 4, group).T
        if method == "gptq":
            zeros = tensors["qzeros"]
            if config["checkpoint_format"] == "gptq_v2":
                zeros = zeros - (0x11111111 if config["bits"] == 4 else 0x01010101)
            old = "" if config["desc_act"] or k % (config["group_size"] if config["group_size"] > 0 else k) else "_old"
            layer = linear[old](config["bits"], config["group_size"], k, n, False, weight_dtype=scale_type)
            layer.autogptq_cuda_available = False
            layer.qweight, layer.scales, layer.g_idx = tensors["qweight"], tensors["scales"], tensors["g_idx"]
            layer.qzeros = zeros
            if old == "":
                layer.kernel_switch_threshold = 0
            return layer(torch.eye(k, dtype=scale_type)).T
        if method == "compressed-tensors":
            scheme = QuantizationScheme(**config["config_groups"]["group_0"])
            kind = PackedQuantizationCompressor if config["format"] == "pack-quantized" else NaiveQuantizationCompressor
            return kind.decompress(dict(tensors), scheme)["weight"]
        scale = next(t for name, t in tensors.items() if name != "weight")
        rows, cols = case["more"]["blocks"]
        if n % rows or k % cols:  # transformers takes whole blocks only: pad as compressed-tensors does, cut the result
            padded = torch.zeros((-(-n // rows) * rows, -(-k // cols) * cols), dtype=torch.float8_e4m3fn)
            padded[:n, :k] = tensors["weight"]
            return Fp8Dequantize(None)._dequantize_one(padded, scale, torch.float32)[:n, :k]
        return Fp8Dequantize(None)._dequantize_one(tensors["weight"], scale, torch.float32)

    for name, case in cases.items():
        if "unverified" in case["more"]:
            print(f"{name}: by definition only ({case['more']['unverified']})")
            continue
        tensors = {suffix: torched(pair) for suffix, pair in case["tensors"].items()}
        ours = torch.from_numpy(case["values"])
        narrow = next(t for suffix, t in tensors.items() if "scale" in suffix).dtype
        wide = {s: t.float() if "scale" in s and t.dtype in (torch.float16, torch.bfloat16) else t for s, t in tensors.items()}
        result = reference(case, wide, torch.float32)
        assert result.dtype == torch.float32 and torch.equal(result, ours), name
        done = "f32"
        if narrow in (torch.float16, torch.bfloat16) and case["config"]["quant_method"] not in ("fp8",):
            result = reference(case, tensors, narrow)
            assert result.dtype == narrow and torch.equal(result, ours.to(narrow)), name
            done += f", {narrow}"
        print(f"{name}: equal to the reference in {done}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=Path)
    folder = parser.parse_args().reference
    make()
    if folder:
        verify(folder)
    tensors = {f"{case}/{MODULE}.{suffix}": pair for case, made in cases.items() for suffix, pair in made["tensors"].items()}
    tensors |= {f"{case}/values": ("F32", made["values"]) for case, made in cases.items()}
    metadata = {case: json.dumps(dict(config=dict(quantization_config=made["config"]), module=MODULE, type=made["type"]))
                for case, made in cases.items()}
    path = Path(__file__).with_name("golden.safetensors")
    f.write(path, tensors, metadata)
    print(f"{len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
