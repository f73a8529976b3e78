"""Redis servers of a test, and the two programs of this folder as objects. Python's standard library alone.

Servers run on free ports of 127.0.0.1 in a folder of their own, with the settings that the ledger demands, and are ended by
their process id."""
import os
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
from resp import RedisError, Resp  # noqa: E402

UUID = "11111111-2222-3333-4444-555555555555"
LIBRARY = open(os.path.join(HERE, "..", "..", "server", "billing", "ledger.lua"), "rb").read()
PATIENCE_S = float(os.environ.get("MILLRACE_TEST_PATIENCE_S", "60"))       # a bound for a stuck test, not a measure of speed
FOLDER = tempfile.mkdtemp(prefix="millrace_redis_")
children = []


def free_port():
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            if s.getsockname()[1] < 55000:       # a Cluster's bus is 10,000 above
                return s.getsockname()[1]


def wait_until(what, condition):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            value = condition()
        except (OSError, RedisError):
            value = None
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {PATIENCE_S} s for: {what}")


class Server:
    """redis-server; settings: lines of its configuration beside those below."""

    def __init__(self, *settings, program="redis-server", needed=True, port=None):
        self.program, self.port, self.process = program, port or free_port(), None
        self.folder = tempfile.mkdtemp(dir=FOLDER)
        self.socket_path = self.folder + "/r.sock"
        lines = ["bind 127.0.0.1", f"dir {self.folder}", "loglevel warning", f"logfile {self.folder}/log"]
        if not any(line.startswith("port ") for line in settings):
            lines.append(f"port {self.port}")
        if program == "redis-server" and needed:
            lines += ["appendonly yes", "appendfsync everysec", "aof-load-truncated no", 'save ""',
                      f"unixsocket {self.socket_path}", "busy-reply-threshold 100", "repl-diskless-sync-delay 0"]
        with open(self.folder + "/redis.conf", "w") as f:
            f.write("\n".join(lines + list(settings)) + "\n")

    def start(self, wait=True):
        self.process = subprocess.Popen([self.program, self.folder + "/redis.conf"], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        children.append(self.process)
        if wait:
            wait_until(f"{self.program} on {self.port}", lambda: self.connect()("PING") == "PONG")
        return self

    def connect(self, **how):
        return Resp(self.port, **how)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def pause(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def aof(self):
        folder = self.folder + "/appendonlydir"
        return folder + "/" + max(name for name in os.listdir(folder) if name.endswith(".incr.aof"))

    def cut_aof(self, lost_bytes):
        """What a power loss leaves: the file's end is gone; then the check that has to stand before every start."""
        path = self.aof()
        os.truncate(path, max(0, os.path.getsize(path) - lost_bytes))
        subprocess.run(["redis-check-aof", "--fix", path], input=b"y\n", stdout=subprocess.DEVNULL, check=True)


class Program:
    """A program of this folder: lines in, lines out; "event" lines are kept apart."""

    def __init__(self, path, *arguments, password=None):
        environment = {k: v for k, v in os.environ.items() if k != "MILLRACE_REDIS_PASSWORD"}
        if password:
            environment["MILLRACE_REDIS_PASSWORD"] = password
        self.process = subprocess.Popen([path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env=environment)
        children.append(self.process)
        self.answers, self.events, self.log = queue.Queue(), [], []
        threading.Thread(target=self.listen, daemon=True).start()
        threading.Thread(target=self.listen_log, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            if line.startswith("event "):
                self.events.append(line.strip()[6:])
            else:
                self.answers.put(line.strip())
        self.answers.put(None)

    def listen_log(self):
        for line in self.process.stderr:
            self.log.append(line)

    def answer(self):
        try:
            line = self.answers.get(timeout=2 * PATIENCE_S)
        except queue.Empty:
            raise AssertionError("no answer from the program") from None
        if line is None:
            raise AssertionError(f"the program ended ({self.process.wait()}): {''.join(self.log)[-2000:]}")
        return line

    def __call__(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        code = self.process.wait(timeout=PATIENCE_S)
        assert code == 0, (code, "".join(self.log)[-3000:])


def driver_open(url, *arguments, password=None):
    """The first line of redis_driver, and the program when it went on."""
    program = Program(PROGRAMS + "/redis_driver", url, *arguments, password=password)
    line = program.answer()
    return line, program if line == "open ST_OK" else None


def driver(url, *arguments, **how):
    line, program = driver_open(url, *arguments, **how)
    assert program, line
    return program


class Emitter(Program):
    """emit_journal on a folder of its own, and what its journal says the ledger must hold."""

    def __init__(self, url, *options, folder=None, password=None):
        self.folder = folder or tempfile.mkdtemp(dir=FOLDER) + "/journal"
        super().__init__(PROGRAMS + "/emit_journal", url, self.folder, UUID, *options, password=password)
        self.ready = self.answer()
        assert self.ready.startswith("ready"), self.ready
        self.producer = self.ready.split()[1]

    def fields(self, command):
        words = self(command).split()
        return {"word": words[0], "value": words[1], **dict(w.split("=") for w in words[2:])}

    def settle(self):
        """All that is durable is applied."""
        state = self.fields(f"wait {PATIENCE_S}")
        assert state["value"] == "1", (state, self.events[-20:], self.log[-5:])
        return state

    def wait_event(self, start, since=0):
        return wait_until(f"event {start!r} in {self.events[-10:]}",
                          lambda: next((e for e in self.events[since:] if e.startswith(start)), None))

    def sums(self):
        return {int(a): int(u) for a, u in (pair.split(":") for pair in self("sums").split()[1:])}


def check_energies(connections, told):
    """Every account's energy of its months is the journal's: microjoules, grams, records. told: emit_journal's `energies`."""
    got = {}
    for c in connections:
        for key in c("KEYS", "mr:*:m:*"):
            h = c("HMGET", key, *("c3." + f for f in ("en", "ei", "eg", "cl", "cm", "ne")))
            account = int(key.rsplit(b":", 1)[1])
            got[account] = [a + int(b or 0) for a, b in zip(got.get(account, [0] * 6), h)]
    want = {int(a): [int(x) for x in rest] for a, *rest in (row.split(":") for row in told.split()[1:])}
    got = {a: sums for a, sums in got.items() if any(sums)}
    assert got == want, {a: (got.get(a), want.get(a)) for a in set(got) | set(want) if got.get(a) != want.get(a)}


def check_ledger(connections, sums, grants=0):
    """Every account's used units are the journal's, and every record is in the log once. connections: of all masters."""
    used, seen = {}, set()
    for c in connections:
        for key in c("KEYS", "mr:*"):
            key = key.decode()
            if ":a:" in key:
                used[int(key.rsplit(":", 1)[1])] = int(c("HGET", key, "us") or 0)
            elif key.endswith(":log"):
                for _, fields in c("XRANGE", key, "-", "+"):
                    entry = {fields[i].decode(): fields[i + 1] for i in range(0, len(fields), 2)}
                    if entry["k"] in (b"F", b"W", b"G", b"R", b"E"):
                        name = (key, entry["p"], entry["s"])
                        assert name not in seen, f"twice: {name}"
                        seen.add(name)
    used = {a: u for a, u in used.items() if u}
    sums = {a: u for a, u in sums.items() if u}
    assert used == sums, {a: (used.get(a), sums.get(a)) for a in set(used) | set(sums) if used.get(a) != sums.get(a)}
    return len(seen)


def init_ledger(url, **how):
    d = driver(url, **how)
    assert d(f"init {UUID}") == "ST_OK OK"
    d.end()


def client_context():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main(tests):
    """Runs the tests of a file, or those named behind the folder of the programs."""
    global PROGRAMS
    if not shutil.which("redis-server"):
        print("skipped: there is no redis-server")
        sys.exit(77)
    PROGRAMS = os.path.abspath(sys.argv[1])
    chosen = sys.argv[2:]
    assert set(chosen) <= {test.__name__ for test in tests}, f"no such tests: {chosen}"
    try:
        for test in tests:
            if chosen and test.__name__ not in chosen:
                continue
            began = time.monotonic()
            test()
            print(f"{test.__name__}: ok, {time.monotonic() - began:.1f} s", flush=True)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()
        shutil.rmtree(FOLDER, ignore_errors=True)
