"""The commands as a user types them: help, inspect, generate, wrong usage, bad files."""
import json
import os
import re
import subprocess
import tempfile
import unittest
import xml.dom.minidom

from harness import BINARY, MODEL, NAME, Server


def run(*arguments, timeout=120):
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=timeout)


class CommandLine(unittest.TestCase):
    def test_help(self):
        for command in ("serve", "generate", "inspect"):
            done = run(command, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn("usage: millrace " + command, done.stdout)
        self.assertIn("--max-num-seqs", run("serve", "--help").stdout)
        self.assertEqual(run("--help").returncode, 0)
        self.assertRegex(run("version").stdout, r"^millrace \d+\.\d+\.\d+\n$")

    def test_manual_page(self):
        page = run("man").stdout
        shown = subprocess.run(["groff", "-man", "-Tascii", "-ww", "-P-c"], input=page, capture_output=True, text=True, timeout=60)
        self.assertEqual((shown.returncode, shown.stderr), (0, ""))
        text = re.sub(r".\x08", "", shown.stdout)
        words = set(re.findall(r"--[a-z0-9-]+|MILLRACE_[A-Z0-9_]+", re.sub(r"--\[no-\]", "--", text)))
        options = [option for command in ("serve", "generate", "inspect")
                   for option in re.findall(r"^  (?:-\w, )?--(?:\[no-\])?([a-z0-9-]+)", run(command, "--help").stdout, re.M)]
        self.assertGreater(len(options), 80)
        for option in options:
            self.assertIn("--" + option, words)
            self.assertIn("MILLRACE_" + option.upper().replace("-", "_"), words)
        self.assertIn("MILLRACE_REDIS_PASSWORD", words)  # no flag
        self.assertNotIn("--redis-password", words)
        self.assertIn("--limit-http-body-bytes", words)
        self.assertIn("millrace bill topup", text)
        self.assertIn("EXIT STATUS", text)

    def test_wrong_usage_is_2(self):
        for arguments in ((), ("no-such",), ("serve",), ("serve", "--prot", "1", "x"), ("serve", "x", "--port", "z"),
                          ("generate", MODEL), ("serve", MODEL, "--numerics", "vague")):
            done = run(*arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertTrue(done.stderr.startswith("millrace") or "usage" in done.stderr, done.stderr)

    def test_start_failure_is_1(self):
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(b"GGUF" + bytes(100))
            file.flush()
            for command in (["inspect", file.name], ["serve", file.name, "--port", "0"], ["generate", file.name, "-p", "x"],
                            ["serve", "/does/not/exist.gguf", "--port", "0"],
                            ["serve", MODEL, "--port", "0", "--kv-cache-memory-bytes", "1M"],
                            ["serve", MODEL, "--port", "0", "--max-model-len", "1000000"]):
                done = run(*command)
                self.assertEqual(done.returncode, 1, (command, done.stderr))
                self.assertTrue(done.stderr.strip(), command)

    def test_truncated_model(self):
        size = os.path.getsize(MODEL)
        with open(MODEL, "rb") as source, tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(source.read(size // 2))
            file.flush()
            done = run("inspect", file.name)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)

    def test_inspect(self):
        done = run("inspect", MODEL)
        self.assertEqual(done.returncode, 0)
        for word in ("llama", "49152", "Q4_1", "token_embd.weight"):
            self.assertIn(word, done.stdout)
        self.assertIsInstance(json.loads(run("inspect", MODEL, "--json").stdout), dict)

    def test_generate(self):
        done = run("generate", MODEL, "-p", "The capital of France is", "-n", "8", "--json", "--log-level", "error")
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout)
        self.assertIn("Paris", answer["text"])
        self.assertLessEqual(answer["output_tokens"], 8)
        plain = run("generate", MODEL, "-p", "The capital of France is", "-n", "8", "--log-level", "error")
        self.assertEqual(plain.stdout.strip(), answer["text"].strip())
        chat = run("generate", MODEL, "--chat", "-p", "Say hello.", "-n", "16")
        self.assertTrue(chat.stdout.strip())
        paths = [run("generate", MODEL, "-p", "Water boils at", "-n", "12", "--json", "--numerics", "exact", "--cpu-path", p,
                     "--max-model-len", "256").stdout for p in ("scalar", "auto")]
        self.assertEqual(json.loads(paths[0])["output_ids"], json.loads(paths[1])["output_ids"])

    def test_bench_cost(self):
        def bench(*more):
            return run("bench", "cost", "--server", server.url, "--requests", "6", "--clients", "3", "--prompt-tokens", "40",
                       "--output-tokens", "8", "--tariff", "00:00-06:00=0.2,06:00-24:00=0.6", *more)
        with Server() as server, tempfile.TemporaryDirectory() as folder:
            picture = os.path.join(folder, "cost.svg")
            done = bench("--idle-watts", "50", "--full-watts", "100", "--pue", "1.5", "--capex", "8760", "--years", "1",
                         "--json", "--svg", picture)
            self.assertEqual(done.returncode, 0, done.stderr)
            said = json.loads(done.stdout)
            self.assertEqual((said["model"], said["answered"], said["failed"]), (NAME, 6, 0))
            self.assertEqual((said["prompt_tokens"], said["output_tokens"]), (240, 48))
            self.assertEqual((said["meter"], said["estimated"]), ("estimate", True))
            busy = min(said["engine_busy_seconds"], said["seconds"])
            self.assertAlmostEqual(said["joules"] / (50 * said["seconds"] + 50 * busy), 1, 5)
            hour = 1 + said["joules"] / said["seconds"] * 3600 / 3.6e6 * 1.5 * 0.5  # hardware, and energy at the day's mean
            self.assertAlmostEqual(said["per_million"] / (1e6 * hour / (288 / said["seconds"] * 3600)), 1, 5)
            self.assertTrue(0 < said["input_share"] <= 1)
            self.assertTrue(0 < said["ttft_ms_p50"] <= said["ttft_ms_p99"] <= said["request_ms_p99"])
            with open(picture) as file:
                self.assertEqual(xml.dom.minidom.parse(file).documentElement.tagName, "svg")
            with open(os.path.join(folder, "trace.csv"), "w") as file:
                file.write("seconds,prompt,output\n0,10,3\n0.2,20,5\n")
            done = bench("--trace", file.name, "--csv")
            self.assertEqual(done.returncode, 0, done.stderr)
            names, values = (line.split(",") for line in done.stdout.splitlines())
            said = dict(zip(names, values))
            self.assertEqual((said["prompt_tokens"], said["output_tokens"], said["joules"]), ("30", "8", ""))
            self.assertEqual(bench("--no-split", "--explain").returncode, 0)
            self.assertEqual(bench("--prompt-tokens", "99999").returncode, 1)
        with Server("--power-idle", "40", "--power-full", "100") as server:  # its own books, of an estimated meter
            done = bench("--json", "--no-split", "--output-tokens", "100")
            said = json.loads(done.stdout)
            self.assertEqual((said["meter"], said["estimated"]), ("estimate", True))
            self.assertTrue(10 * said["seconds"] < said["joules"] < 110 * said["seconds"], said)
            self.assertGreater(server.metric("mr_energy_joules_total", phase="decode"), 0)
            self.assertGreater(server.metric("mr_energy_joules_total", phase="prefill"), 0)
        self.assertEqual(run("bench", "cost").returncode, 2)
        self.assertEqual(run("bench").returncode, 2)
        self.assertEqual(run("bench", "cost", "--help").returncode, 0)

    def test_dry_run(self):
        done = run("serve", MODEL, "--dry-run", "--api-key", "very-secret")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("very-secret", done.stdout + done.stderr)
        self.assertIn("max-num-seqs: 256", done.stdout)


if __name__ == "__main__":
    unittest.main()
