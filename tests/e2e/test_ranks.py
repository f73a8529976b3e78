"""--tensor-parallel-size and --pipeline-parallel-size on the CPU: ranks are processes. The same tokens as one rank's; a rank that is killed or stopped while
answers stream ends them with an error and what they used in the journal, the server with code 3, and no process stays."""
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

from harness import BINARY, MODEL, NAME, Server

PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at", "My favourite colour is", "1, 1, 2, 3, 5,",
           "Dear Sir or Madam,", "The opposite of hot is"]
BODY = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}


def children(pid):
    """pids of the process's children, by the kernel's own list."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
        except FileNotFoundError:
            pass
    return found


def is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(is_there, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(map(is_there, pids))


class Stream(threading.Thread):
    """A streamed completion; events as they come, until the stream ends."""

    def __init__(self, server):
        super().__init__()
        self.body = json.dumps({"model": NAME, "prompt": "Once upon a time", "max_tokens": 1900, "stream": True, "temperature": 0,
                                "ignore_eos": True}).encode()
        self.url, self.events, self.some = server.url, [], threading.Event()
        self.start()

    def run(self):
        request = urllib.request.Request(self.url + "/v1/completions", data=self.body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                for line in answer:
                    if line.startswith(b"data: {"):
                        self.events.append(json.loads(line[6:]))
                        if len(self.events) > 5:
                            self.some.set()
        except OSError as error:
            self.events.append({"broken": str(error)})
        self.ended = time.monotonic()
        self.some.set()


def exported(folder):
    """Every record of a journal."""
    done = subprocess.run([BINARY, "bill", "export", folder, "--format", "jsonl"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


class Ranks(unittest.TestCase):
    def answers(self, *options):
        with Server("--numerics", "exact", "--max-model-len", "2048", *options) as server:
            answers, ranks = [None] * len(PROMPTS), children(server.process.pid)

            def ask(i):
                answers[i] = server.complete(prompt=PROMPTS[i], **BODY)["choices"][0]["text"]
            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertTrue(gone(ranks))
        return answers, len(ranks)

    def test_same_tokens(self):
        one, processes = self.answers()
        self.assertEqual(processes, 0)
        for ranks in (2, 4):
            others, processes = self.answers("--tensor-parallel-size", str(ranks))
            self.assertEqual(processes, ranks - 1)
            self.assertEqual(one, others)
        others, processes = self.answers("--pipeline-parallel-size", "2")
        self.assertEqual(processes, 1)
        self.assertEqual(one, others)

    def lose(self, option, harm, word):
        """Two streams, then harm to one of two other ranks."""
        with tempfile.TemporaryDirectory() as folder:
            with Server(option, "3", "--max-model-len", "2048", "--journal", folder, "--enforce", "off", expect_exit=3) as server:
                ranks = children(server.process.pid)
                self.assertEqual(len(ranks), 2)
                streams = [Stream(server), Stream(server)]
                for stream in streams:
                    self.assertTrue(stream.some.wait(60))
                begin = time.monotonic()
                harm(ranks[1])
                for stream in streams:
                    stream.join(60)
                    self.assertIn("error", stream.events[-1], stream.events[-2:])
                    self.assertLess(stream.ended - begin, 10)  # 4 s of silence at most, one step, and a crowded machine
                self.assertEqual(server.process.wait(30), 3)
                self.assertTrue(gone(ranks), "a rank has outlived its server")
                log = server.log()
                self.assertIn("ranks lost rank=2 pid=%d" % ranks[1], log)
                self.assertIn(word, log)
                usage = server.usage_lines()
                self.assertEqual(len(usage), 2)
                for line in usage:
                    self.assertEqual(line["cause"], "platform_error")
            told = sorted(int(line["out"]) for line in usage)
            committed = sorted(record["output_tokens"] for record in exported(folder))
            self.assertEqual(told, committed)
            sent = sorted(sum("choices" in event for event in stream.events) for stream in streams)
            for tokens, billed in zip(sent, committed):  # an event has a token at least
                self.assertTrue(5 < tokens <= billed, (sent, committed))

    def test_killed_rank(self):
        for option in ("--tensor-parallel-size", "--pipeline-parallel-size"):
            with self.subTest(option):
                self.lose(option, lambda pid: os.kill(pid, signal.SIGKILL), "signal=9")

    def test_stopped_rank(self):
        self.lose("--tensor-parallel-size", lambda pid: os.kill(pid, signal.SIGSTOP), "silent")

    def test_idle_loss(self):
        with Server("--tensor-parallel-size", "2", "--max-model-len", "2048", expect_exit=3) as server:
            rank, = children(server.process.pid)
            os.kill(rank, signal.SIGTERM)  # a supervisor's signal to the whole group: ranks leave it to rank 0
            os.kill(rank, signal.SIGINT)
            server.complete(prompt="Hello", **BODY)
            os.kill(rank, signal.SIGKILL)
            begin = time.monotonic()
            self.assertEqual(server.process.wait(30), 3)
            self.assertLess(time.monotonic() - begin, 10)

    def test_sleep_and_unload(self):
        """Asleep with the KV of all ranks given back, then without ranks at all; and the same answers afterwards."""
        admin = {"Authorization": "Bearer secret"}
        with Server("--tensor-parallel-size", "2", "--max-model-len", "2048", "--numerics", "exact",
                    env={"MILLRACE_ADMIN_KEY": "secret"}) as server:
            def ask():
                return server.complete(prompt=PROMPTS[1], **BODY)["choices"][0]["text"]
            before, ranks = ask(), children(server.process.pid)
            for level in (1, 2):
                status, asleep, _ = server.post(f"/sleep?level={level}", b"", admin)
                self.assertEqual((status, asleep["state"]), (200, "asleep"), asleep)
                if level == 1:
                    self.assertEqual(children(server.process.pid), ranks)
                else:
                    self.assertTrue(gone(ranks), "a rank has outlived its model")
                self.assertEqual(server.post("/wake_up", b"", admin)[0], 200)
                self.assertEqual(ask(), before)
            self.assertEqual(len(children(server.process.pid)), 1)

    def test_no_orphans(self):
        server = Server("--tensor-parallel-size", "3", "--max-model-len", "2048", expect_exit=-signal.SIGKILL)
        with server:
            ranks = children(server.process.pid)
            streams = [Stream(server)]
            self.assertTrue(streams[0].some.wait(60))
            server.process.kill()
            server.process.wait(30)
            self.assertTrue(gone(ranks), "ranks have outlived a killed server")
            streams[0].join()

    def test_refused(self):
        for options, word in ((("--tensor-parallel-size", "10"), "1-9 do"), (("--tensor-parallel-size", "65"), "tensor-parallel-size"),
                              (("--pipeline-parallel-size", "31"), "1-30 do"),
                              (("--pipeline-parallel-size", "8", "--tensor-parallel-size", "9"), "at most 64")):
            done = subprocess.run([BINARY, "serve", MODEL, "--port", "0", *options], capture_output=True, text=True, timeout=60)
            self.assertIn(done.returncode, (1, 2))
            self.assertIn(word, done.stderr)
        done = subprocess.run([BINARY, "rank-worker", "3"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 2)


if __name__ == "__main__":
    unittest.main()
