#!/usr/bin/env python3
"""Writes dequantize.bin: random blocks of every weight format and their values as gguf-py gives them.

The oracle is quants.dequantize of the PyPI package `gguf` (made with 0.19.0, numpy 2.4.6). Blocks are random bytes from a
fixed seed; their scales are then set to ordinary, tiny (subnormal), largest, zero, negative and infinite halves, so that
every path of the conversions and the order of roundings shows. Layout, little-endian:

    "DEQG" | formats u32 | per format: id u32, values u32, source bytes u32, source, values f32[]

Run: python make_dequantize.py [FILE]    (default: dequantize.bin beside this script)
"""
import struct
import sys
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

SEED = 20240917
# format: (blocks, offsets of half-precision scales in a block)
FORMATS = {
    T.F32: (64, []), T.F16: (512, [0]), T.BF16: (512, []),
    T.Q4_0: (24, [0]), T.Q4_1: (24, [0, 2]), T.Q5_0: (24, [0]), T.Q5_1: (24, [0, 2]), T.Q8_0: (24, [0]),
    T.Q4_K: (12, [0, 2]), T.Q5_K: (12, [0, 2]), T.Q6_K: (12, [208]),
}
# 1, a third, smallest and largest subnormal, smallest normal, largest, zeros, negatives, infinities
EXTREME = [0x3C00, 0x3555, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x0000, 0x8000, 0x8001, 0xFBFF, 0xB555, 0x7C00]


def ordinary(rng):
    return np.float16(rng.normal() * 10.0 ** rng.integers(-4, 1)).view(np.uint16)


def main():
    rng = np.random.default_rng(SEED)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("dequantize.bin")
    out = [b"DEQG", struct.pack("<I", len(FORMATS))]
    for kind, (blocks, scales) in FORMATS.items():
        items, size = GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
        for b in range(blocks):
            for n, at in enumerate(scales):
                half = EXTREME[(b + 5 * n) % len(EXTREME)] if b % 2 else ordinary(rng)
                data[b, at:at + 2] = np.array([half], dtype=np.uint16).view(np.uint8)
        with np.errstate(all="ignore"):
            values = dequantize(data.reshape(-1), kind).astype(np.float32).reshape(-1)
        assert values.size == blocks * items
        source = data.tobytes()
        out += [struct.pack("<III", int(kind), values.size, len(source)), source, values.astype("<f4").tobytes()]
    path.write_bytes(b"".join(out))
    print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
