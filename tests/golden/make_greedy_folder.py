#!/usr/bin/env python3
"""Writes greedy_smollm2_folder.json: greedy continuations of the BF16 folder of make_folder.py as `transformers` computes
them in f32.

Oracle: transformers 5.23.0 (torch 2.15.0 on CPU, one thread, safetensors 0.8.0) with the folder as it lies there; text is
tokenised by `tokenizers` 0.23.3 from the folder's tokenizer.json, chat prompts are rendered by jinja2 from its template. The
form is that of greedy_smollm2.json, which make_greedy.py describes.

Run: python make_greedy_folder.py FOLDER [OUT]
"""
import json
import sys
from pathlib import Path

import jinja2
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from make_greedy import NEW_TOKENS, PROMPTS, continue_greedily

HERE = Path(__file__).resolve().parent
NAMES = ["one_token", "capital", "fairy_tale", "definition", "counting", "arithmetic", "digits", "spaces", "punctuation",
         "c_code", "json", "chinese", "arabic", "emoji", "control_token", "long_code", "chat_hello", "chat_system", "chat_turns",
         "chat_long_question"]


def main():
    folder = Path(sys.argv[1]).resolve()
    out_path = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "greedy_smollm2_folder.json"
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((folder / "chat_template.jinja").read_text())
    by_name, rows = {p["name"]: p for p in PROMPTS}, []
    for prompt in [by_name[name] for name in NAMES]:
        text = prompt.get("text")
        if text is None:
            text = template.render(messages=prompt["messages"], add_generation_prompt=True)
        ids = tokenizer.encode(text).ids
        greedy, logprobs, margins = continue_greedily(model, ids)
        rows.append(prompt | {"ids": ids, "greedy": greedy, "logprobs": logprobs, "margins": margins})
        print(f"{prompt['name']:20} {len(ids):5} tokens, smallest margin {min(margins):.6f}: "
              f"{tokenizer.decode(greedy)[:60]!r}", flush=True)
    head = {"model": "SmolLM2-135M-Instruct in BF16 (make_folder.py)", "made_by": "make_greedy_folder.py",
            "oracle": "transformers, f32 on BF16 weights", "new_tokens": NEW_TOKENS}
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    out_path.write_text(json.dumps(head)[:-1] + ',\n"prompts": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{len(rows)} prompts, smallest margin {min(min(r['margins']) for r in rows):.6f}, {out_path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
