"""Usage parity: the prompt and completion tokens that we count are those that others count on the same requests.

tests/golden/usage_requests.py makes a thousand requests, tests/golden/usage_smollm2.json holds what transformers and llama.cpp
counted on them (make_usage.py says how, and by which rule). Every tenth is asked here, through the HTTP API and in exact
numerics, eight at a time, every other one as a stream; MILLRACE_TEST_USAGE=1000 asks all. Prompts that begin alike hit the
prefix cache, which must not change a count.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import sys
import unittest
import urllib.request

from harness import NAME, Server

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
import usage_requests  # noqa: E402

STEP = max(1, usage_requests.REQUESTS // int(os.environ.get("MILLRACE_TEST_USAGE", "100")))
CLIENTS = 8
# Requests whose text is another than the oracles', while their counts are equal: in 174 two tokens are 6e-5 apart; in 551 one
# token completes two stop strings, and we cut at the one that ends first, the oracle's rule and llama.cpp at the one that starts first.
OTHER_TEXT = {174, 551}
FINISH = {"e": "stop", "s": "stop", "l": "length"}


def ask(server, number, stream):
    """(usage, finish reason, text) of a request."""
    path, body = usage_requests.request(number)
    body["model"] = NAME
    if not stream:
        status, answer, _ = server.post(path, body)
        assert status == 200, (number, answer)
        choice = answer["choices"][0]
        return answer["usage"], choice["finish_reason"], choice["text"] if "text" in choice else choice["message"]["content"]
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    usage, finish, text = None, None, ""
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return usage, finish, text


class Usage(unittest.TestCase):
    def setUp(self):
        self.golden = json.loads((GOLDEN / "usage_smollm2.json").read_text())
        self.assertEqual(usage_requests.digest(), self.golden["digest"], "the requests are not those that the oracles were asked")

    def test_golden_prompts_agree(self):
        """What the oracles say of prompts is one and the same, so that equality with one is equality with all."""
        for column in ("llama_f32", "llama_q4_1"):
            self.assertEqual(self.golden["transformers"]["prompt"], self.golden[column]["prompt"])

    def test_counts(self):
        numbers = sorted({*range(STEP // 2, usage_requests.REQUESTS, STEP), 99})  # 99 has a long prompt
        with Server("--numerics", "exact", "--max-model-len", "2048", "--threads", "2") as server, \
                concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda n: ask(server, n, stream=n // STEP % 2 == 1), numbers))
            # the log and the metrics tell the same as the answers
            self.assertEqual(server.metric("vllm:generation_tokens_total"), sum(u["completion_tokens"] for u, _, _ in answers))
            self.assertEqual(server.metric("vllm:prompt_tokens_total"), sum(u["prompt_tokens"] for u, _, _ in answers))
        expected, wrong = self.golden["transformers"], []
        for number, (usage, finish, text) in zip(numbers, answers):
            text = hashlib.sha256(text.rstrip("\ufffd").encode()).hexdigest()[:8]
            golden_text = expected["text"][8 * number:8 * number + 8]
            got = (usage["prompt_tokens"], usage["completion_tokens"], finish, text)
            want = (expected["prompt"][number], expected["completion"][number], FINISH[expected["finish"][number]],
                    text if number in OTHER_TEXT else golden_text)
            if got != want:
                wrong.append((number, got, want, expected["margin"][number]))
            self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        print(f"{len(answers)} requests, {sum(u['prompt_tokens'] for u, _, _ in answers)} prompt and "
              f"{sum(u['completion_tokens'] for u, _, _ in answers)} completion tokens, {len(wrong)} not equal")
        self.assertEqual(wrong, [])
