"""Servers with journals, Redis, and the load, as child processes of a test. Standard library only; loopback only.

Everything is made in one folder under TMPDIR that is removed when the test was clean and kept, with its path printed,
when it was not. Random choices come from a printed seed; waits are bounded and ask for a state."""
import atexit
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
CLASSES = {"alpha": 0, "beta": 1}
PRICES = {"alpha": (1000000, 250000, 3000000), "beta": (2500000, 1000000, 7000001)} # input, hit, output in ppm


RUNNING = set() # what a failure leaves behind ends with the test


@atexit.register
def end_all():
    for process in RUNNING:
        if process.poll() is None:
            process.kill()
            process.wait()


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


def weight(ppm):
    return f"{ppm // 1000000}.{ppm % 1000000:06d}"


def write_prices(path):
    with open(path, "w") as file:
        file.write("version: 1\ndefault: [class=0, input=1, cached=1, output=1]\n")
        for model in MODELS:
            per_input, per_hit, per_output = map(weight, PRICES[model])
            file.write(f"{model}: [class={CLASSES[model]}, input={per_input}, cached={per_hit}, output={per_output}]\n")


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
        self.process, self.starts, self.kills = None, 0, 0

    def spawn(self):
        self.log_from = os.path.getsize(self.log_path) if os.path.exists(self.log_path) else 0
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen([self.binary, *self.options, "--port", str(self.port), "--drain-delay", "0"], stderr=log,
                                            stdout=subprocess.DEVNULL, env=self.environment)
            RUNNING.add(self.process)
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


def make_node(binary, name, folder, options, environment=None, command=MODELS):
    node = Node(binary, name, folder, [], environment)
    node.options = [str(o) for o in (*command, "--max-num-seqs", 128, "--journal", node.journal, *options)]
    return node


class Chaos(threading.Thread):
    """Does harm `count` times, spread over the progress of the load with random delays, until `end`."""

    def __init__(self, load, requests, count, seed, harm):
        super().__init__(daemon=True)
        self.load, self.random, self.count, self.harm = load, random.Random(seed), count, harm
        self.due = sorted(self.random.uniform(0.02, 0.97) * requests for _ in range(count))
        self.done, self.failure, self.halt = 0, None, threading.Event()

    def run(self):
        try:
            while self.done < self.count:
                while self.load.ended < self.due[self.done] and self.load.process.poll() is None:
                    if self.halt.wait(0.005):
                        return
                if self.halt.wait(self.random.uniform(0, 0.05)):
                    return
                self.done += max(1, self.harm(self.random) or 1)
        except Exception as failure: # told by the test's own thread
            self.failure = failure

    def late(self):
        """Whether the load runs away from the harm that is due."""
        return self.done + 3 < self.count and self.load.ended > self.due[self.done + 3]

    def end(self):
        self.halt.set()
        self.join(WAIT)
        if self.failure:
            raise self.failure


def kill_a_node(nodes, drain_share=0.05):
    """Kills a random node, now and then once more while it starts, and brings it back; or drains it. Returns how many kills."""

    def harm(rng):
        node = rng.choice(nodes)
        kills = 1
        if rng.random() < drain_share:
            node.stop()
        else:
            node.kill()
        while rng.random() < 0.15:
            node.spawn()
            time.sleep(rng.uniform(0, 0.12))
            node.kill()
            kills += 1
        time.sleep(rng.choice((0, 0, 0.02)))
        node.start()
        return kills

    return harm


class Load:
    """The clients (load.c) in a process of their own."""

    def __init__(self, binary, ports, keys, out, requests, clients, seed, models=MODELS, **more):
        command = [binary, "--ports", ",".join(map(str, ports)), "--keys", keys, "--models", ",".join(models), "--out", out, "--requests",
                   str(requests), "--clients", str(clients), "--seed", str(seed)]
        for name, value in more.items():
            command += ["--" + name.replace("_", "-")] + ([] if value is None else [str(value)])
        self.ended, self.summary, self.held = 0, None, False
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        RUNNING.add(self.process)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("progress "):
                self.ended = int(line.split()[1])
            else:
                self.summary = json.loads(line)

    def hold(self, wanted):
        """Stops the clients for a while, or lets them go on."""
        if wanted != self.held:
            self.process.send_signal(signal.SIGSTOP if wanted else signal.SIGCONT)
        self.held = wanted

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
