#!/usr/bin/env python3
"""Writes the Hugging Face folder of one tiny model of golden/: python write_folder.py NAME OUT [--vendor]

golden/NAME.json holds what cannot be computed: config.json, the tensors of every file (name, shape, range) in the order of
save_pretrained, and the sha256 of every file of weights. Weights are a function of a tensor's name and an element's index
(splitmix64, as in Steele, Lea and Flood 2014, seeded with the sha256 of the name), so that make.py, which needs torch and
transformers, and this program, which needs numpy alone, write the same bytes; the sums prove it.

--vendor writes config.json with the keys that models of the years before transformers 5 bring (rope_theta beside
rope_scaling, torch_dtype, sliding_window_pattern) instead of those that transformers 5 writes (rope_parameters,
layer_types). make.py proved that transformers computes the same from both."""
import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
BYTES_PER_VALUE = {"BF16": 2, "F16": 2, "F32": 4}


def uniform(name, count):
    """count values in [-1, 1) of a tensor: splitmix64 at the points key + i * golden ratio."""
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], dtype="<u8")[0]
    with np.errstate(over="ignore"):
        z = key + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def to_bf16(values):
    """Finite f32 rounded to nearest even, as uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def tensor_bytes(tensor, dtype):
    values = tensor["mean"] + tensor["amplitude"] * uniform(tensor["name"], math.prod(tensor["shape"]))
    if dtype == "BF16":
        return to_bf16(values).astype("<u2").tobytes()
    return values.astype(np.float32).astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def safetensors_bytes(tensors, dtype):
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for tensor in tensors:
        data.append(tensor_bytes(tensor, dtype))
        header[tensor["name"]] = {"dtype": dtype, "shape": tensor["shape"], "data_offsets": [at, at + len(data[-1])]}
        at += len(data[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data)


def write_folder(family, folder, vendor=False):
    """family: the contents of golden/NAME.json. A file whose sum is known and differs ends the program."""
    folder.mkdir(parents=True, exist_ok=True)
    index, total = {}, 0
    for file in family["files"]:
        data = safetensors_bytes(file["tensors"], family["dtype"])
        sha256 = hashlib.sha256(data).hexdigest()
        if file.setdefault("sha256", sha256) != sha256:
            sys.exit(f"{folder}/{file['name']}: sha256 {sha256}, wanted {file['sha256']}")
        (folder / file["name"]).write_bytes(data)
        index |= {t["name"]: file["name"] for t in file["tensors"]}
        total += sum(math.prod(t["shape"]) for t in file["tensors"]) * BYTES_PER_VALUE[family["dtype"]]
    if len(family["files"]) > 1:
        values = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(values, indent=2) + "\n")
    texts = {"config": family["config_vendor" if vendor else "config"], "generation_config": family["generation_config"],
             "tokenizer_config": family["tokenizer_config"]}
    for name, values in texts.items():
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    (folder / "tokenizer.json").write_bytes((HERE / "tokenizers" / f"{family['tokenizer']}.json").read_bytes())


def main():
    vendor = "--vendor" in sys.argv[3:]
    write_folder(json.loads((HERE / "golden" / f"{sys.argv[1]}.json").read_text()), Path(sys.argv[2]), vendor)


if __name__ == "__main__":
    main()
