"""A model over several processes (--nnodes), each with one GPU that tests/emulator runs on the CPU, and NCCL among processes through
files: the same tokens as one process, the bill of process 0, its goodbye; and whoever is killed or stopped ends all with code 3."""
import concurrent.futures
import json
import os
import signal
import subprocess
import tempfile
import time
import unittest

from harness import BINARY, MODEL, Server, free_port, wait_for

EMULATED = os.environ.get("MILLRACE_TEST_EMULATED")
SECRET = "0123456789abcdef-for-a-test"
PROMPTS = ("The capital of France is", "Two and two make")
OPTIONS = ["--device", "cuda", "--max-num-seqs", "2", "--max-num-batched-tokens", "32", "--max-model-len", "128", "--enforce-eager"]


def refused(*options, binary=None, secret=SECRET, env=None):
    """The one line by which a start is refused."""
    environment = {**os.environ, **(env or {})}
    if secret:
        environment["MILLRACE_LAUNCH_SECRET"] = secret
    done = subprocess.run([binary or BINARY, "serve", MODEL, *options], capture_output=True, text=True, timeout=60, env=environment)
    lines = done.stderr.strip().splitlines()
    assert done.returncode in (1, 2) and lines, (done.returncode, done.stderr)
    return lines[-1]


def tokens(server, count=4):
    return [server.complete(prompt=p, max_tokens=count, temperature=0)["choices"][0]["text"] for p in PROMPTS]


class Options(unittest.TestCase):
    def test_what_is_refused(self):
        several = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "--tensor-parallel-size", "2"]
        torchrun = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        for options, words, how in (
                (["--nnodes", "2", "--master-addr", "h"], "needs --node-rank", {}),
                (["--nnodes", "2", "--node-rank", "2", "--master-addr", "h"], "process 2 of 2", {}),
                (["--nnodes", "2", "--node-rank", "x", "--master-addr", "h"], "--node-rank", {}),
                (["--nnodes", "2", "--node-rank", "1"], "where is process 0", {}),
                (several, "need a secret", {"secret": None}),
                (several, "at least 16 bytes", {"secret": "short"}),
                ([*several, "--launch-secret-file", "/nowhere"], "given twice", {}),
                ([*several, "--launch-secret-file", "/nowhere"], "--launch-secret-file /nowhere", {"secret": None}),
                ([*several, "--launch-secret", SECRET], "never as an argument", {}),
                ([*several, "--device", "cpu"], "but --device cpu: its ranks", {}),
                (several, "only GPUs work together", {"env": {"CUDA_VISIBLE_DEVICES": ""}}),
                ([*several, "--deterministic"], "--deterministic", {}),
                ([*several[:-1], "3"], "do not divide over 2 processes", {}),
                (["--device", "cuda", "--tensor-parallel-size", "4"], "4 processes (by torchrun) need a secret", {"secret": None, "env": torchrun}),
                (["--device", "cuda"], "do not divide over 4 processes (by torchrun)", {"env": torchrun})):
            self.assertIn(words, refused(*options, **how))

    def test_alone_whatever_a_launcher_says(self):
        with Server("--nnodes", "1", env={"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}) as server:
            self.assertEqual(len(tokens(server, 1)), len(PROMPTS))


@unittest.skipUnless(EMULATED, "no emulated binary")
class Nodes(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.port, self.followers, self.division = free_port(), [], "--tensor-parallel-size"
        self.addCleanup(self.end_all)

    def end_all(self):
        for process, log in self.followers:
            if process.poll() is None:
                process.kill()
                process.wait()
            log.seek(0)
            print("".join(f"follower: {line}" for line in log.readlines()[-6:]), flush=True)
            log.close()

    def place(self, rank, processes, secret=SECRET):
        """Options and environment of a process."""
        options = [*OPTIONS, self.division, str(processes), "--nnodes", str(processes), "--node-rank", str(rank), "--master-addr",
                   "127.0.0.1", "--master-port", str(self.port), "--join-timeout", "100"]
        return options, {"CUSIM_NCCL": self.folder.name, "CUSIM_DEVICES": "1", "CUSIM_TIMEOUT": "100", "MILLRACE_LAUNCH_SECRET": secret}

    def follow(self, rank, processes, *more, secret=SECRET, launcher=None):
        options, environment = self.place(rank, processes, secret)
        if launcher:
            options, environment = [*OPTIONS, "--tensor-parallel-size", str(processes)], {**environment, **launcher}
        log = tempfile.TemporaryFile(mode="w+")
        process = subprocess.Popen([EMULATED, "serve", MODEL, *options, *more], stdout=log, stderr=log, env={**os.environ, **environment})
        self.followers.append((process, log))
        return process

    def follow_after(self, others):
        for process in others:
            process.wait(60)
        self.follow(1, 2)

    def said(self, i=0):
        self.followers[i][1].seek(0)
        return self.followers[i][1].read()

    def lead(self, processes, *more, begun=None, **how):
        options, environment = self.place(0, processes)
        if begun:
            begun()
        return Server(*options, *more, binary=EMULATED, ready_s=200, env=environment, **how)

    def test_same_tokens_and_a_goodbye(self):
        with Server("--device", "cpu", "--numerics", "exact") as server:
            expected = tokens(server)
        self.follow(1, 2, launcher={"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                                    "MASTER_PORT": str(self.port)})
        with self.lead(2) as server:
            self.assertEqual(tokens(server), expected)
            self.assertIn("2 processes of cuda", server.log())
            self.followers[0][0].send_signal(signal.SIGTERM)  # a supervisor's to all: left to process 0
            self.assertEqual(tokens(server, 2), [text[:len(short)] for text, short in zip(expected, tokens(server, 2))])
        self.assertEqual(self.followers[0][0].wait(30), 0, self.said())
        self.assertIn("left to process 0", self.said())
        self.assertNotIn("HTTP", self.said())
        self.assertNotIn("lost", self.said())

    def test_a_stage_a_process(self):
        self.division = "--pipeline-parallel-size"
        with Server("--device", "cpu", "--numerics", "exact") as server:
            expected = tokens(server)
        self.follow(1, 2)
        with self.lead(2) as server:
            self.assertEqual(tokens(server), expected)
        self.assertEqual(self.followers[0][0].wait(30), 0, self.said())

    def test_who_is_refused_and_who_joins(self):
        strangers = [self.follow(1, 2, secret="another secret of some length"), self.follow(1, 2, "--max-num-seqs", "1")]
        with concurrent.futures.ThreadPoolExecutor(1) as pool, self.lead(2, begun=lambda: pool.submit(self.follow_after, strangers)) as server:
            self.assertEqual([stranger.returncode for stranger in strangers], [1, 1])
            self.assertIn("the launch secrets differ", self.said(0))
            self.assertIn("the settings differ", self.said(1))
            self.assertIn("refused reason=", server.log())
            self.assertTrue(server.complete(prompt="Two", max_tokens=1)["choices"])

    def lose(self, harm, word):
        """One process of two goes while an answer is made."""
        with tempfile.TemporaryDirectory() as journal:
            self.follow(1, 2)
            with self.lead(2, "--journal", journal, "--enforce", "off", expect_exit=3) as server:
                begin = []

                def strike():
                    wait_for(lambda: server.metric("vllm:generation_tokens_total") >= 2, "some tokens", 60)
                    begin.append(time.monotonic())
                    harm(self.followers[0][0], server.process)
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    struck = pool.submit(strike)
                    status, answer, _ = server.post("/v1/completions", {"model": "smol", "prompt": PROMPTS[0], "max_tokens": 100,
                                                                        "temperature": 0, "ignore_eos": True})
                    struck.result()
                self.assertIn(status, (500, 503), answer)
                self.assertIn("error", answer)
                self.assertEqual(server.process.wait(30), 3)
                self.assertLess(time.monotonic() - begin[0], 8)  # 5 s of silence at most, and a crowded machine
                self.assertIn(word, server.log())
                usage, = server.usage_lines()
            self.assertEqual(usage["cause"], "platform_error")
            audit = subprocess.run([EMULATED, "bill", "audit", journal], capture_output=True, text=True, timeout=60)
            self.assertEqual(audit.returncode, 0, audit.stdout + audit.stderr)
            told = subprocess.run([EMULATED, "bill", "export", journal, "--format", "jsonl"], capture_output=True, text=True, timeout=60)
            self.assertEqual([str(json.loads(line)["output_tokens"]) for line in told.stdout.splitlines()], [usage["out"]])

    def test_a_killed_follower(self):
        self.lose(lambda follower, leader: follower.kill(), "process 1 has ended")

    def test_a_silent_follower(self):
        self.lose(lambda follower, leader: follower.send_signal(signal.SIGSTOP), "process 1 was silent")

    def test_a_killed_leader(self):
        follower = self.follow(1, 2)
        with self.lead(2, expect_exit=-9) as server:
            server.complete(prompt="Two", max_tokens=1)
            server.process.kill()
            self.assertEqual(follower.wait(10), 3)
            self.assertIn("process 0 has ended", self.said())


if __name__ == "__main__":
    unittest.main()
