"""A server under test: started on a free port with given options, ended and checked at the end; and Redis beside it."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

BINARY = os.environ["MILLRACE_TEST_BINARY"]
MODEL = os.environ["MILLRACE_TEST_MODEL"]
NAME = "smol"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """with Server("--numerics", "exact") as server: ... server.url"""

    def __init__(self, *options, env=None, expect_exit=0, models=None, binary=BINARY, ready_s=30):
        """models: {name: path}, instead of the one model under NAME"""
        self.options, self.env, self.expect_exit, self.models = options, env, expect_exit, models or {NAME: MODEL}
        self.binary, self.ready_s = binary, ready_s

    def __enter__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = tempfile.TemporaryFile(mode="w+")
        command = [self.binary, "serve", *self.models.values(), "--port", str(self.port), "--served-model-name", *self.models,
                   "--drain-delay", "0", *self.options]
        self.process = subprocess.Popen(command, stdout=self.log_file, stderr=self.log_file,
                                        env={**os.environ, **(self.env or {})})
        for _ in range(100 * self.ready_s):
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            try:
                if self.get("/readyz")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError(f"the server was not ready in {self.ready_s} s:\n" + self.log())

    def __exit__(self, kind, value, traceback):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the server did not end within 60 s of SIGTERM:\n" + self.log())
        self.last_log = self.log()
        self.log_file.close()
        if kind is None and code != self.expect_exit:
            raise AssertionError(f"the server ended with {code}:\n{self.last_log}")

    def log(self):
        if self.log_file.closed:
            return self.last_log
        self.log_file.seek(0)
        return self.log_file.read()

    def get(self, path, headers=None):
        """(status, body text)"""
        request = urllib.request.Request(self.url + path, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path, body, headers=None):
        """(status, parsed body, headers)"""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data,
                                         headers={"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.loads(answer.read()), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), error.headers

    def complete(self, **body):
        status, answer, _ = self.post("/v1/completions", {"model": next(iter(self.models)), **body})
        assert status == 200, answer
        return answer

    def metric(self, name, **labels):
        """Sum of the samples of a metric whose labels match."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            match = re.match(r"([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)$", line)
            if match and match[1] == name and all(f'{k}="{v}"' in (match[2] or "") for k, v in labels.items()):
                total += float(match[3])
        return total

    def wait_idle(self):
        """Until nothing runs and no KV block is held; bounded."""
        for _ in range(1000):
            if not self.metric("vllm:num_requests_running") and not self.metric("vllm:num_requests_waiting"):
                return
            time.sleep(0.01)
        raise AssertionError("requests are still held after 10 s")

    def usage_lines(self):
        """The usage records of the log as dicts."""
        records = []
        for line in self.log().splitlines():
            if " usage " in line:
                records.append(dict(re.findall(r"(\w+)=(\"[^\"]*\"|\S+)", line.split(" usage ", 1)[1])))
        return records


def wait_for(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"never came: {what}")
        time.sleep(0.05)


class Redis:
    """A Redis as README.md starts it, in a folder of its own."""

    def __enter__(self):
        self.folder, port = tempfile.mkdtemp(prefix="millrace-redis-"), free_port()
        self.url = f"redis://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", self.folder, "--appendonly", "yes",
             "--appendfsync", "always", "--aof-load-truncated", "no", "--maxmemory-policy", "noeviction"],
            stdout=subprocess.DEVNULL)
        wait_for(lambda: subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True).stdout == b"PONG\n",
                 "Redis answers")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
