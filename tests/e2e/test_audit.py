"""What an operator can hold against the server: the log of admin calls, and --trusted, under which no file and no log line has a word
of a prompt."""
import json
import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import time
import unittest

from harness import BINARY, MODEL, Server, wait_for

SECRET = "zebrafish-quartz"


def lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


class Audit(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="millrace-audit-")
        self.addCleanup(self.folder.cleanup)
        self.log, self.keys = f"{self.folder.name}/audit.log", f"{self.folder.name}/keys"
        pathlib.Path(self.keys).write_text("ada adm-ada-key\nadm-plain-key\n")
        self.options = ("--audit-log", self.log, "--admin-key-file", self.keys)

    def test_calls_answers_refusals_and_the_keys_of_whom(self):
        ada, plain = {"Authorization": "Bearer adm-ada-key", "X-Request-Id": "ticket-7"}, {"X-Api-Key": "adm-plain-key"}
        with Server(*self.options) as server:
            self.assertEqual(server.post("/sleep?level=1", b"", ada)[0], 200)
            self.assertEqual(server.post("/wake_up", b"", plain)[0], 200)
            self.assertEqual(server.post("/models/load", {"model": "x", "path": "/nowhere"}, ada)[0], 403)
            self.assertEqual(server.post("/sleep", b"", {"Authorization": "Bearer adm-guess"})[0], 401)
            self.assertEqual(server.get("/models", ada)[0], 200)  # a look changes nothing
            self.assertEqual(server.complete(prompt="One", max_tokens=2)["usage"]["completion_tokens"], 2)
            self.assertEqual(server.metric("mr_audit_lines_total"), 8)
            os.rename(self.log, self.log + ".1")
            pathlib.Path(self.keys).write_text("ada adm-new-key\n")
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: os.path.exists(self.log) and lines(self.log), "the new file")
            time.sleep(1.1)  # refusals are written once a second
            self.assertEqual(server.post("/admin/balancer", {"state": "drain"}, ada)[0], 401)
            self.assertEqual(server.post("/admin/balancer", {"state": "drain"}, {"X-Api-Key": "adm-new-key"})[0], 200)
        old, new = lines(self.log + ".1"), lines(self.log)
        self.assertEqual([(l["event"], l.get("who"), l.get("target"), l.get("status")) for l in old],
                         [("start", None, None, None), ("call", "ada", "/sleep?level=1", None), ("answer", None, None, 200),
                          ("call", "admin", "/wake_up", None), ("answer", None, None, 200),
                          ("call", "ada", "/models/load", None), ("answer", None, None, 403), ("refused", None, "/sleep", 401)])
        self.assertEqual([(l["event"], l.get("who"), l.get("detail")) for l in new],
                         [("keys", None, "reloaded"), ("refused", None, None), ("call", "ada", None), ("answer", None, None),
                          ("stop", None, None)])
        self.assertEqual((old[1]["request"], old[1]["from"], old[1]["method"]), ("ticket-7", "127.0.0.1", "POST"))
        self.assertEqual(json.loads(old[5]["body"]), {"model": "x", "path": "/nowhere"})
        self.assertEqual(len({l["n"] for l in old + new if l["event"] == "call"}), 4)
        text = pathlib.Path(self.log).read_text() + pathlib.Path(self.log + ".1").read_text()
        self.assertNotIn("-key", text)
        self.assertNotIn("adm-guess", text)

    def test_what_cannot_be_written_is_not_done(self):
        admin = {"Authorization": "Bearer adm-plain-key"}
        with Server(*self.options) as server:
            size = os.path.getsize(self.log)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            status, answer, _ = server.post("/sleep", b"", admin)
            self.assertEqual((status, answer["error"]["code"]), (503, "audit_unavailable"))
            self.assertEqual(json.loads(server.get("/models", admin)[1])["data"][0]["state"], "ready")
            self.assertEqual(server.metric("mr_audit_failures_total"), 1)
            self.assertEqual(server.complete(prompt="One", max_tokens=2)["usage"]["completion_tokens"], 2)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            self.assertEqual(server.post("/sleep", b"", admin)[0], 200)

    def test_a_file_that_cannot_be_there_ends_the_start(self):
        for place in ("/dev/null", self.folder.name, "/nowhere/at/all"):
            run = subprocess.run([BINARY, "serve", MODEL, "--port", "0", "--audit-log", place], capture_output=True, text=True, timeout=60)
            self.assertEqual(run.returncode, 1, run.stderr)
            self.assertIn(place, run.stderr)


class Trusted(unittest.TestCase):
    def test_no_file_and_no_line_has_a_word_of_it(self):
        with tempfile.TemporaryDirectory(prefix="millrace-trusted-") as folder:
            journal, log, cache = f"{folder}/journal", f"{folder}/audit.log", f"{folder}/cache"
            options = ("--trusted", "--log-level", "debug", "--journal", journal, "--audit-log", log, "--usage-extras",
                       "--tensor-parallel-size", "2", "--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100")
            with Server(*options, env={"TMPDIR": folder, "XDG_CACHE_HOME": cache, "MILLRACE_ADMIN_KEY": "adm"}) as server:
                ask = {"messages": [{"role": "user", "content": f"Say {SECRET}"}], "max_tokens": 8}
                words = server.post("/v1/chat/completions", ask, {"Idempotency-Key": "once"})[1]["choices"][0]["message"]["content"]
                self.assertEqual(server.post("/v1/chat/completions", ask, {"Idempotency-Key": "once"})[0], 200)
                self.assertEqual(server.post("/v1/chat/completions", {**ask, "max_tokens": -1})[0], 400)
                self.assertEqual(server.post("/v1/chat/completions", b'{"messages": "' + SECRET.encode())[0], 400)
                self.assertEqual(server.post("/v1/completions", {"prompt": SECRET * 9000, "max_tokens": 2})[0], 400)
                self.assertEqual(server.post(f"/v1/{SECRET}", ask)[0], 404)
                self.assertEqual(server.post("/sleep", {"model": SECRET}, {"Authorization": "Bearer no"})[0], 401)
                tasks = pathlib.Path(f"/proc/{server.process.pid}/task").glob("*/children")
                children = [pid for task in tasks for pid in task.read_text().split()]
                self.assertEqual(len(children), 1)
                for pid in (server.process.pid, *children):
                    self.assertRegex(pathlib.Path(f"/proc/{pid}/limits").read_text(), r"Max core file size +[01] +[01] ")
                server.wait_idle()
            self.assertGreater(len(words), 8)
            files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
            self.assertTrue(any(path.parent.name == "journal" for path in files))
            for path in files:
                data = path.read_bytes()
                self.assertNotIn(SECRET.encode(), data.replace(f"/v1/{SECRET}".encode(), b""), path)
                self.assertNotIn(words.encode(), data, path)
            self.assertNotIn(SECRET, server.log())
            self.assertNotIn(words, server.log())

    def test_options_that_hand_prompts_on_are_refused(self):
        for option, value in (("--batch-dir", "/tmp/x"), ("--pool", "redis://127.0.0.1:1"), ("--upstreams", "/tmp/x"), ("--nnodes", "2")):
            extra = ("--node-rank", "0", "--master-addr", "127.0.0.1") if option == "--nnodes" else ()
            run = subprocess.run([BINARY, "serve", MODEL, "--trusted", option, value, *extra], capture_output=True, text=True, timeout=60,
                                 env={**os.environ, "MILLRACE_LAUNCH_SECRET": "sixteen-bytes-or-more"})
            self.assertEqual(run.returncode, 2, run.stderr)
            self.assertIn(f"--trusted excludes {option}", run.stderr)


if __name__ == "__main__":
    unittest.main()
