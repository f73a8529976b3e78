"""Servers with journals, Redis, and the load, as child processes of a test. Standard library only; loopback only.

Everything is made in one folder under TMPDIR that is removed when the test was clean and kept, with its path printed,
when it was not. Random choices come from a printed seed; waits are bounded and ask for a state."""
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

WAIT = 60
MODELS = ("alpha", "beta")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(condition, what, seconds=WAIT):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.01)


class Folder:
    """A working folder that outlives only a failure."""

    def __init__(self, name, parent=None):
        self.path = tempfile.mkdtemp(prefix=f"millrace-{name}-", dir=parent)

    def __enter__(self):
        return self.path

    def __exit__(self, kind, value, trace):
        if kind is None and not os.environ.get("KEEP"):
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            print(f"kept: {self.path}", flush=True)


def write_keys(path, accounts, keys_each=2):
    with open(path, "w") as file:
        for account in range(accounts):
            for key in range(keys_each):
                file.write(f"acct{account:04d}:sk-{account:04d}-{key}-0123456789abcdef\n")


class Node:
    """One server process with its own journal folder; comes back on the same port and folder."""

    def __init__(self, binary, name, folder, options, environment=None, port=None):
        self.binary, self.name = binary, name
        self.port = port or free_ports(1)[0]
        self.journal = os.path.join(folder, name, "journal")
        self.log_path = os.path.join(folder, name, "log")
        os.makedirs(os.path.dirname(self.log_path), exist_ok=True)
        self.options = [str(o) for o in options]
        self.environment = {**os.environ, **{k: str(v) for k, v in (environment or {}).items()}}
        self.process, self.starts, self.kills, self.preexec = None, 0, 0, None
        self.lock = threading.Lock()

    def spawn(self):
        self.log_from = os.path.getsize(self.log_path) if os.path.exists(self.log_path) else 0
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen([self.binary, *self.options, "--port", str(self.port), "--drain-delay", "0"], stderr=log,
                                            env=self.environment, preexec_fn=self.preexec)
        self.starts += 1

    def log(self):
        with open(self.log_path, "rb") as file:
            file.seek(self.log_from)
            return file.read().decode(errors="replace")

    def ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n" + self.log()[-3000:])
        return "serve ready" in self.log()

    def start(self):
        self.spawn()
        wait_for(self.ready, lambda: f"{self.name} is ready; log:\n{self.log()[-3000:]}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def stop(self, expect=0, seconds=WAIT):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        assert code == expect, f"{self.name}: exit code {code}, expected {expect}:\n" + self.log()[-3000:]

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def ask(self, method, path, body=None, headers=None, seconds=WAIT):
        import http.client
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            data = json.dumps(body) if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def metric(self, name):
        total, found = 0.0, False
        for line in self.ask("GET", "/metrics")[1].decode().splitlines():
            if re.match(re.escape(name) + r"[{ ]", line):
                total, found = total + float(line.rsplit(" ", 1)[1]), True
        return total if found else None


class Chaos(threading.Thread):
    """Kills nodes at random moments, while they start too, and brings them back; now and then a drain instead."""

    def __init__(self, nodes, seed, kills, gap_s, drains=0.05):
        super().__init__(daemon=True)
        self.nodes, self.random, self.kills, self.gap_s, self.drains = nodes, random.Random(seed), kills, gap_s, drains
        self.done, self.drained, self.failure, self.halt = 0, 0, None, threading.Event()

    def run(self):
        try:
            while self.done < self.kills and not self.halt.wait(self.random.uniform(*self.gap_s)):
                self.step(self.random.choice(self.nodes))
        except Exception as failure: # told by the test's own thread
            self.failure = failure

    def step(self, node):
        if self.random.random() < self.drains:
            node.stop()
            self.drained += 1
        else:
            node.kill()
            self.done += 1
        while self.random.random() < 0.15: # once more, in the middle of its start
            node.spawn()
            time.sleep(self.random.uniform(0, 0.12))
            node.kill()
            self.done += 1
        time.sleep(self.random.choice((0, 0, 0.02)))
        node.start()

    def end(self):
        self.halt.set()
        self.join(WAIT)
        if self.failure:
            raise self.failure


class Load:
    """The clients (load.c) in a process of their own."""

    def __init__(self, binary, ports, keys, out, requests, clients, seed, models=MODELS, **more):
        command = [binary, "--ports", ",".join(map(str, ports)), "--keys", keys, "--models", ",".join(models), "--out", out, "--requests",
                   str(requests), "--clients", str(clients), "--seed", str(seed)]
        for name, value in more.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        self.ended, self.summary = 0, None
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("progress "):
                self.ended = int(line.split()[1])
            else:
                self.summary = json.loads(line)

    def wait(self, seconds, watch=lambda: None):
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            watch()
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the load did not end within {seconds} s: {self.ended} requests")
            time.sleep(0.05)
        self.reader.join(WAIT)
        assert self.process.returncode == 0 and self.summary, f"load: exit code {self.process.returncode}"
        return self.summary
