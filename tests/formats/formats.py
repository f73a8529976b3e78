"""Quantised weights by the definitions of their formats: matrices to codes, codes to tensors, and what they are worth.

numpy alone. A tensor is a pair (dtype as safetensors names it, array of the type's bytes as integers or floats); BF16 and
F8_E4M3 are arrays of uint16 and uint8. A weight's value is (code - zero point) * scale in f32, for FP8 value of code * scale.
"""
import json
import struct

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # output in nibble i of a word
ITEM = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E8M0": np.uint8, "U8": np.uint8,
        "I8": np.int8, "I32": np.int32, "I64": np.int64}


def to_bf16(x):
    """Nearest even, as uint16."""
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def cast(x, dtype):
    """f32 to a pair of this dtype."""
    if dtype == "BF16":
        return dtype, to_bf16(x)
    if dtype in ("F8_E8M0", "U8"):
        return dtype, (np.round(np.log2(x)) + 127).astype(np.uint8)
    return dtype, np.asarray(x, ITEM[dtype])


def widen(tensor):
    """A pair's values as f32."""
    dtype, data = tensor
    if dtype == "BF16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F8_E8M0", "U8"):
        return np.float32(2) ** (data.astype(np.float32) - 127)
    if dtype == "F8_E4M3":
        exponent, fraction = (data >> 3 & 15).astype(np.int32), (data & 7).astype(np.float64)
        x = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10))
        x = np.where((data & 127) == 127, np.nan, x)
        return np.where(data & 128, -x, x).astype(np.float32)
    return data.astype(np.float32)


def spread(grid, block_rows, block_cols, rows, cols):
    """A grid of blocks to one value a weight."""
    return np.repeat(np.repeat(grid, block_rows, 0), block_cols, 1)[:rows, :cols]


def integers(weight, bits, group, symmetric, dtype):
    """Rounds (N, K) in groups along K: unsigned codes (N, K), zero points (N, G), scales (N, G) as a pair."""
    n, k = weight.shape
    groups = -(-k // group)
    padded = np.zeros((n, groups * group), np.float32)
    padded[:, :k] = weight
    blocks = padded.reshape(n, groups, group)
    top = 2**bits - 1
    if symmetric:
        scale = np.abs(blocks).max(2) / (top / 2)
        zero = np.full((n, groups), 2 ** (bits - 1))
    else:
        low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
        scale = (high - low) / top
    scales = cast(np.maximum(scale, 1e-5), dtype)
    steps = widen(scales)
    if not symmetric:
        zero = np.clip(np.round(-low / steps), 0, top).astype(int)
    codes = np.clip(np.round(blocks / steps[:, :, None]) + zero[:, :, None], 0, top).astype(np.int64)
    return codes.reshape(n, -1)[:, :k], zero.astype(np.int64), scales


def value(codes, zero, scales, group, order=None):
    """(N, K) f32. order: the group of each input."""
    order = np.arange(codes.shape[1]) // group if order is None else order
    return (codes - zero[:, order]).astype(np.float32) * widen(scales)[:, order]


def pack(items, bits, axis, order=None):
    """Unsigned items along an axis to int32 words, the first in the lowest bits (or in this order)."""
    per_word = 32 // bits
    items = np.moveaxis(items, axis, -1)
    short = -items.shape[-1] % per_word
    items = np.concatenate([items, np.zeros(items.shape[:-1] + (short,), items.dtype)], -1)
    items = items.reshape(items.shape[:-1] + (-1, per_word)).astype(np.uint64)
    words = sum(items[..., order[i] if order else i] << np.uint64(i * bits) for i in range(per_word))
    return "I32", np.ascontiguousarray(np.moveaxis(words.astype(np.uint32), -1, axis)).view(np.int32)


def transpose(tensor):
    return tensor[0], np.ascontiguousarray(tensor[1].T)


def awq(codes, zero, scales):
    return {"qweight": pack(codes.T, 4, 1, AWQ_ORDER), "qzeros": pack(zero.T, 4, 1, AWQ_ORDER), "scales": transpose(scales)}


def gptq(codes, zero, scales, bits, group, version=1, order=None):
    words = pack(zero.T, bits, 1)[1].view(np.uint32)
    if version == 1:
        words = words - np.uint32(0x11111111 if bits == 4 else 0x01010101)
    order = np.arange(codes.shape[1]) // group if order is None else order
    return {"qweight": pack(codes.T, bits, 0), "qzeros": ("I32", words.view(np.int32)), "scales": transpose(scales),
            "g_idx": ("I32", order.astype(np.int32))}


def packed(codes, zero, scales, bits, symmetric):
    """compressed-tensors, pack-quantized."""
    tensors = {"weight_packed": pack(codes, bits, 1), "weight_scale": scales,
               "weight_shape": ("I64", np.array(codes.shape, np.int64))}
    if not symmetric:
        tensors["weight_zero_point"] = pack(zero, bits, 0)
    return tensors


def whole_bytes(codes, zero, scales, symmetric):
    """compressed-tensors, int-quantized with 8 bits."""
    tensors = {"weight": ("I8", (codes - 128).astype(np.int8)), "weight_scale": scales}
    if not symmetric:
        tensors["weight_zero_point"] = ("I8", (zero - 128).astype(np.int8))
    return tensors


E4M3 = widen(("F8_E4M3", np.arange(127, dtype=np.uint8)))  # the magnitudes, rising


def fp8(weight, block_rows, block_cols, dtype, scales=None):
    """E4M3 in blocks: codes and scales (a grid) as pairs."""
    n, k = weight.shape
    if scales is None:
        rows, cols = -(-n // block_rows), -(-k // block_cols)
        top = [[np.abs(weight[i * block_rows:(i + 1) * block_rows, j * block_cols:(j + 1) * block_cols]).max()
                for j in range(cols)] for i in range(rows)]
        scales = np.maximum(np.array(top, np.float32), 1e-6) / 448
    scales = cast(scales, dtype)
    steps = spread(widen(scales), block_rows, block_cols, n, k)
    target = np.minimum(np.abs(weight) / steps, 448).astype(np.float32)
    codes = np.searchsorted((E4M3[1:] + E4M3[:-1]) / 2, target).astype(np.uint8)
    return ("F8_E4M3", codes | (np.signbit(weight).astype(np.uint8) << 7)), scales


def fp8_value(codes, scales, block_rows, block_cols):
    n, k = codes[1].shape
    return widen(codes) * spread(widen(scales), block_rows, block_cols, n, k)


def write(path, tensors, metadata=None):
    """A safetensors file of pairs."""
    header, data, at = {}, [], 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array, ITEM[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(np.shape(array)), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def read(path):
    """All tensors of a safetensors file as pairs."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    tensors = {}
    for name, entry in json.loads(raw[8:8 + length]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = np.frombuffer(raw[8 + length + begin:8 + length + end], ITEM[entry["dtype"]])
            tensors[name] = entry["dtype"], array.reshape(entry["shape"])
    return tensors
