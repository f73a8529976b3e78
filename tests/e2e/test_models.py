"""Two real models in one server: both exact at the same time, asleep and awake again, loaded and unloaded by an operator.

The second is MILLRACE_TEST_MODEL2 (Gemma 3 270M), else the first once more under another name. What each must say stands in
tests/golden; of a model without golden data, what it says when it is served alone."""
import concurrent.futures
import json
import os
import pathlib
import shutil
import tempfile
import unittest

from harness import MODEL, Server

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
GOLDEN_OF = {"SmolLM2-135M-Instruct.Q4_1.gguf": "greedy_smollm2.json", "gemma-3-270m-q4_k_m.gguf": "greedy_gemma3.json"}
SECOND = os.environ.get("MILLRACE_TEST_MODEL2", "")
MODELS = {"first": MODEL, "second": SECOND if os.path.exists(SECOND) else MODEL}
ADMIN = {"Authorization": "Bearer adm"}
WITH_ADMIN = {"MILLRACE_ADMIN_KEY": "adm"}
PROMPTS = 20


def golden(path):
    """[(ids, ids of the greedy answer)], with the longest prompts among them."""
    name = GOLDEN_OF.get(os.path.basename(path))
    prompts = json.loads((GOLDEN / (name or "greedy_smollm2.json")).read_text())["prompts"]
    chosen = sorted(sorted(range(len(prompts)), key=lambda i: (len(prompts[i]["ids"]) < 700, i))[:PROMPTS])
    if name:
        return [(prompts[i]["ids"], prompts[i]["greedy"]) for i in chosen]
    with Server("--numerics", "exact", models={"alone": path}) as server: # any ids do
        return [(prompts[i]["ids"][:64], answer(server, "alone", prompts[i]["ids"][:64])) for i in chosen]


def answer(server, model, ids, tokens=48, **more):
    status, body, _ = server.post("/v1/completions", {"model": model, "prompt": ids, "max_tokens": tokens, "temperature": 0,
                                                      "ignore_eos": True, "return_token_ids": True, "add_special_tokens": False, **more})
    assert status == 200, body
    assert body["model"] == model, body["model"]
    return body["choices"][0]["token_ids"]


def admin(server, path, body=None):
    return server.post(path, body if body is not None else b"", ADMIN)[:2]


def row(server, name):
    return next(r for r in json.loads(server.get("/models", ADMIN)[1])["data"] if r["id"] == name)


def resident_bytes(server):
    lines = pathlib.Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


class Models(unittest.TestCase):
    def test_both_are_exact_at_once(self):
        expected = {name: golden(path) for name, path in MODELS.items()}
        with Server("--numerics", "exact", models=MODELS) as server, concurrent.futures.ThreadPoolExecutor(2 * PROMPTS) as pool:
            work = [(name, i) for i in range(PROMPTS) for name in MODELS]
            answers = pool.map(lambda w: answer(server, w[0], expected[w[0]][w[1]][0]), work)
            for (name, i), ids in zip(work, answers):
                self.assertEqual(ids, expected[name][i][1], f"{name}, prompt {i}")
            records = server.usage_lines()
            for name in MODELS:
                self.assertEqual(sum(r["model"] == f'"{name}"' and r["out"] == "48" and r["mismatch"] == "0" for r in records), PROMPTS)
                self.assertEqual(server.metric("vllm:generation_tokens_total", model_name=name), 48 * PROMPTS)
                self.assertGreater(server.metric("mr_engine_turn_seconds_total", model_name=name), 0, "both had work, so each has waited")
            cards = json.loads(server.get("/v1/models")[1])["data"]
            self.assertEqual([(c["id"], c["state"]) for c in cards], [(name, "ready") for name in MODELS])

    def test_sleep_gives_memory_back(self):
        ids = [(7 * i * i + 11 * i) % 20000 + 300 for i in range(900)]
        with Server("--kv-cache-memory-bytes", "900M", models=MODELS, env=WITH_ADMIN) as server:
            before = {name: answer(server, name, ids) for name in MODELS}
            awake_bytes = resident_bytes(server)
            for level in (1, 2):
                for i in range(4): # other beginnings, so that each takes KV blocks of its own
                    answer(server, "first", [300 + i] + ids, 4)
                used_bytes = resident_bytes(server)
                status, asleep = admin(server, f"/sleep?model=first&level={level}")
                self.assertEqual((status, asleep["state"], asleep["sleep_level"]), (200, "asleep", level))
                freed = used_bytes - resident_bytes(server)
                if level == 1:
                    self.assertGreater(freed, 20 << 20, "KV of thousands of tokens")
                    self.assertGreater(asleep["weights_bytes"], 0)
                else:
                    self.assertGreater(freed, 80 << 20, "the weights")
                    self.assertEqual(asleep["weights_bytes"], 0)
                self.assertGreaterEqual(asleep["wake_estimate_seconds"] or 0, 0)
                self.assertEqual(answer(server, "second", ids), before["second"], "the other goes on")
                self.assertEqual(answer(server, "first", ids), before["first"], "awake again, and the same")
                woken = row(server, "first")
                self.assertEqual(woken["state"], "ready")
                self.assertGreater(woken["wake_seconds"], 0)
                print(f"level {level}: {freed >> 20} MiB freed of {awake_bytes >> 20}, awake after {woken['wake_seconds']:.3f} s")

    def test_an_operator_loads_and_unloads(self):
        folder = os.path.realpath(tempfile.mkdtemp())
        try:
            good, cut = os.path.join(folder, "good.gguf"), os.path.join(folder, "cut.gguf")
            shutil.copyfile(MODEL, good)
            with open(MODEL, "rb") as source, open(cut, "wb") as target:
                target.write(source.read(1 << 20))
            with Server("--model-dir", folder, "--memory-limit", "3G", "--kv-cache-memory-bytes", "1500M", env=WITH_ADMIN) as server:
                alone = answer(server, "smol", [1, 2, 3])
                status, body = admin(server, "/models/load", {"model": "cut", "path": cut})
                self.assertEqual(status, 400, body)
                self.assertEqual(server.post("/v1/completions", {"model": "cut", "prompt": "x"})[0], 503)
                status, body = admin(server, "/models/load", {"model": "more", "path": good})
                self.assertEqual((status, body["error"]["code"]), (409, "insufficient_memory"), "the first has all KV memory")
                self.assertEqual(answer(server, "smol", [1, 2, 3]), alone)
                self.assertEqual(admin(server, "/models/unload", {"model": "smol"})[0], 200)
                status, body = admin(server, "/models/load", {"model": ["more", "smol"], "path": good, "kv_cache_memory_bytes": 400 << 20})
                self.assertEqual((status, body["state"]), (200, "ready"), body)
                self.assertGreater(body["load_seconds"], 0)
                status, answered, _ = server.post("/v1/completions", {"model": "smol", "prompt": [1, 2, 3], "max_tokens": 48, "temperature": 0,
                                                                      "ignore_eos": True, "return_token_ids": True})
                self.assertEqual((status, answered["model"], answered["choices"][0]["token_ids"]), (200, "more", alone))
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    unittest.main()
