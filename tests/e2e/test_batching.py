"""64 concurrent streams on the real model in exact mode: each one's tokens equal those it gets alone, also when the pool is so
small that sequences are preempted, and when prompts come from the cache."""
import concurrent.futures
import random
import unittest

from harness import Server

STREAMS = 64


def prompts(seed):
    """Prompts of 5 to 300 random ids; every fourth shares its beginning with the one before."""
    generator = random.Random(seed)
    out = []
    for i in range(STREAMS):
        ids = [generator.randrange(100, 40000) for _ in range(generator.choice([5, 16, 17, 48, 100, 300]))]
        out.append(out[-1][: len(out[-1]) // 2] + ids if i % 4 == 3 else ids)
    return out


def run(server, ids, seed, tokens=24):
    answer = server.complete(prompt=ids, max_tokens=tokens, temperature=0.7 if seed % 2 else 0, seed=seed, ignore_eos=True,
                             return_token_ids=True)
    assert answer["usage"]["completion_tokens"] == tokens and answer["usage"]["prompt_tokens"] == len(ids), answer["usage"]
    return answer["choices"][0]["text"], answer["choices"][0].get("token_ids")


class Batching(unittest.TestCase):
    def together(self, server, work, tokens):
        with concurrent.futures.ThreadPoolExecutor(len(work)) as pool:
            return list(pool.map(lambda w: run(server, w[1], w[0], tokens), work))

    def check(self, server, work, alone, together, tokens):
        for (seed, _), one, other in zip(work, alone, together):
            self.assertEqual(one, other, f"stream {seed}")
        records = server.usage_lines()
        self.assertEqual(len(records), len(work))
        self.assertEqual({r["mismatch"] for r in records}, {"0"})
        self.assertEqual({r["out"] for r in records}, {str(tokens)})

    def test_together_equals_alone(self):
        work = list(enumerate(prompts(20261123)))
        with Server("--numerics", "exact", "--no-enable-prefix-caching") as server:
            alone = [run(server, ids, seed) for seed, ids in work]
        for options in ([], ["--max-num-batched-tokens", "80"]):
            with self.subTest(options=options), Server("--numerics", "exact", *options) as server:
                self.check(server, work, alone, self.together(server, work, 24), 24)

    def test_preempted_equals_alone(self):
        """64 blocks for 32 streams that want 5 each: some are preempted and computed again."""
        generator = random.Random(1)
        work = [(seed, [generator.randrange(100, 40000) for _ in range(15)]) for seed in range(32)]
        with Server("--numerics", "exact") as server:
            alone = [run(server, ids, seed, 60) for seed, ids in work]
        with Server("--numerics", "exact", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(64 * 16 * 46080)) as server:
            self.check(server, work, alone, self.together(server, work, 60), 60)
            self.assertGreater(server.metric("vllm:num_preemptions_total"), 0)


if __name__ == "__main__":
    unittest.main()
