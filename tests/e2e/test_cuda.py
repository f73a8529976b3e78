"""The CUDA device in the whole product: without a GPU, and with one that tests/emulator runs on the CPU (slowly: few tokens)."""
import concurrent.futures
import json
import os
import subprocess
import tempfile
import unittest

from harness import BINARY, MODEL, Server

EMULATED = os.environ.get("MILLRACE_TEST_EMULATED")
PROMPTS = ("Water boils at a temperature of", "Two and two make", "The capital of France is", "Once upon a time there was")


def emulated(*options, **how):
    """--deterministic: without it the start times what cuBLASLt offers, a minute of the emulator's."""
    return Server("--device", "cuda", "--deterministic", "--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--max-model-len",
                  "256", *options, binary=EMULATED, ready_s=240, env={"CUSIM_DEVICES": "2", **how.pop("env", {})}, **how)


def answers(server, tokens=6):
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda p: server.complete(prompt=p, max_tokens=tokens, temperature=0)["choices"][0]["text"], PROMPTS))


class WithoutGpu(unittest.TestCase):
    def test_cuda_is_refused_in_one_line(self):
        done = subprocess.run([BINARY, "generate", MODEL, "--device", "cuda", "-p", "x"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertIn("--device cuda: ", done.stderr)

    def test_auto_goes_on_with_the_cpu(self):
        done = subprocess.run([BINARY, "generate", MODEL, "-n", "2", "-p", "x"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLessEqual(done.stderr.count("device=cpu reason="), 1)
        self.assertIn('device="cpu ', done.stderr)

    def test_options_of_the_other_device(self):
        for options in (["--device", "cuda", "--numerics", "exact"], ["--device", "cpu", "--dtype", "fp8"],
                        ["--device", "cpu", "--kv-cache-dtype", "fp8"]):
            done = subprocess.run([BINARY, "generate", MODEL, "-p", "x", *options], capture_output=True, text=True, timeout=60)
            self.assertEqual((done.returncode, len(done.stderr.strip().splitlines())), (1, 1), done.stderr)

    def test_no_library_of_cuda_is_linked(self):
        libraries = subprocess.run(["ldd", BINARY], capture_output=True, text=True, check=True).stdout
        for name in ("libcuda", "libcudart", "libcublas", "libnccl", "libnvidia", "libstdc++"):
            self.assertNotIn(name, libraries)


@unittest.skipUnless(EMULATED, "no emulated binary")
class Emulated(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Server("--device", "cpu", "--numerics", "exact") as server:
            cls.expected = answers(server)

    def test_serves_and_bills(self):
        with tempfile.TemporaryDirectory() as journal:
            with emulated("--journal", journal) as server:
                self.assertEqual(answers(server), self.expected)
                self.assertIn("cuda", server.log())
                server.wait_idle()
            audit = subprocess.run([EMULATED, "bill", "audit", journal, "--json"], capture_output=True, text=True, timeout=60)
            self.assertEqual(audit.returncode, 0, audit.stdout + audit.stderr)
            usage = subprocess.run([EMULATED, "bill", "usage", journal, "--json"], capture_output=True, text=True, timeout=60)
            self.assertEqual(json.loads(usage.stdout)["data"][0]["output_tokens"], 6 * len(PROMPTS), usage.stdout)

    def test_two_ranks(self):
        with emulated("--tensor-parallel-size", "2") as server:
            self.assertEqual(answers(server), self.expected)

    def test_a_lost_gpu_ends_requests_and_the_process(self):
        with tempfile.TemporaryDirectory() as journal:
            with emulated("--journal", journal, expect_exit=3, env={"MILLRACE_EMULATED_FAULT": "700:1500"}) as server:
                status, answer, _ = server.post("/v1/completions", {"model": "smol", "prompt": PROMPTS[0], "max_tokens": 200,
                                                                    "temperature": 0})
                self.assertIn(status, (500, 503), answer)
                self.assertIn("error", answer)
                server.process.wait(60)
                self.assertIn("700", server.log())
            audit = subprocess.run([EMULATED, "bill", "audit", journal], capture_output=True, text=True, timeout=60)
            self.assertEqual(audit.returncode, 0, audit.stdout + audit.stderr)


if __name__ == "__main__":
    unittest.main()
