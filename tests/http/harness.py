"""The test server as a child process, and raw HTTP over sockets. Standard library only; loopback, ephemeral ports.

Every wait is bounded (WAIT seconds, far above what is needed) and asks for a state, never for a duration."""
import json
import os
import re
import resource
import signal
import socket
import shutil
import subprocess
import sys
import tempfile
import threading
import time

WAIT = 60
BINARY = sys.argv[1] if len(sys.argv) > 1 else None


class Server:
    def __init__(self, *options, ready=True, files=None, **environment):
        command = [BINARY, "null", "--port", "0", "--drain-delay", "0", *map(str, options)]
        limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, **{k: str(v) for k, v in environment.items()}},
                                        preexec_fn=limit)
        self.log, self.port = [], None
        self.lock = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        pattern = r"serve ready url=http://127.0.0.1:(\d+)" if ready else r"serve listening .*port=(\d+)"
        self.port = int(re.search(pattern, self.wait_log(pattern)).group(1))

    def _read(self):
        for line in self.process.stderr:
            with self.lock:
                self.log.append(line.decode(errors="replace").rstrip())
                self.lock.notify_all()
        with self.lock:
            self.log.append("<end>")
            self.lock.notify_all()

    def lines(self, pattern):
        with self.lock:
            return [line for line in self.log if re.search(pattern, line)]

    def wait_log(self, pattern, count=1):
        deadline = time.monotonic() + WAIT
        with self.lock:
            while True:
                found = [line for line in self.log if re.search(pattern, line)]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if left <= 0 or "<end>" in self.log:
                    raise AssertionError(f"no log line {pattern!r} ({len(found)} of {count}); log:\n" + "\n".join(self.log[-30:]))
                self.lock.wait(min(left, 1))

    def connect(self, receive_buffer=None):
        s = socket.socket()
        if receive_buffer:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        s.settimeout(WAIT)
        s.connect(("127.0.0.1", self.port))
        return s

    def ask(self, method, path, body=None, headers=None):
        """One request on a connection of its own: (status, headers, body)."""
        with self.connect() as s:
            s.sendall(message(method, path, body, headers))
            return Reply(s).read(method)

    def load(self):
        return json.loads(self.ask("GET", "/load")[2])

    def metric(self, name):
        """Sum over the samples of that name, of which there must be one: a misspelt name is no 0."""
        total, found = 0.0, False
        for line in self.ask("GET", "/metrics")[2].decode().splitlines():
            if line.startswith(name + "{"):
                total, found = total + float(line.rsplit(" ", 1)[1]), True
        assert found, f"no metric {name}"
        return total

    def wait_idle(self):
        """Nothing running, waiting, answered, and no block held."""
        wait_for(lambda: all(self.load()[k] == 0 for k in ("server_load", "running", "waiting", "kv_blocks_used")),
                 lambda: f"still busy: {self.load()}")

    def stop(self, expect=0, signal_number=signal.SIGTERM):
        self.process.send_signal(signal_number)
        self.wait_exit(expect)

    def wait_exit(self, expect=0):
        code = self.process.wait(WAIT)
        self.reader.join(WAIT)
        self.process.stderr.close()
        assert code == expect, f"exit code {code}, expected {expect}; log:\n" + "\n".join(self.log[-30:])

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            if kind is None:
                self.stop()
            else:
                self.process.kill()
                self.process.wait()


class Gate:
    """While it is shut, what a server begins to load does not come to an end, or its steps hardly do: no test has to be faster than a load."""
    def __enter__(self):
        self.folder = os.path.realpath(tempfile.mkdtemp())
        self.path = os.path.join(self.folder, "shut")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)

    def shut(self):
        open(self.path, "w").close()
        return self.path

    def open(self):
        os.unlink(self.path)


def wait_for(condition, describe=lambda: "condition"):
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(describe())
        time.sleep(0.01)


def message(method, path, body=None, headers=None, version="1.1"):
    given = {"Host": "a", **(headers or {})}
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    if body is not None and "Transfer-Encoding" not in given:
        given.setdefault("Content-Type", "application/json")
        given.setdefault("Content-Length", str(len(data)))
    head = f"{method} {path} HTTP/{version}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in given.items() if v is not None) + "\r\n"
    return head.encode() + data


def completion(tokens=8, **more):
    return {"prompt": "hello", "max_tokens": tokens, "ignore_eos": True, **more}


class Reply:
    """Reads answers from a socket, one after another."""

    def __init__(self, s):
        self.socket, self.buffer = s, b""

    def more(self):
        data = self.socket.recv(65536)
        self.buffer += data
        return bool(data)

    def until(self, mark):
        while mark not in self.buffer:
            if not self.more():
                raise EOFError(self.buffer)
        data, self.buffer = self.buffer.split(mark, 1)
        return data

    def exactly(self, count):
        while len(self.buffer) < count:
            if not self.more():
                raise EOFError(self.buffer)
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def head(self):
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        return int(lines[0].split(" ")[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}

    def chunks(self):
        while True:
            size = int(self.until(b"\r\n"), 16)
            data = self.exactly(size)
            assert self.exactly(2) == b"\r\n"
            if size == 0:
                return
            yield data

    def read(self, method="GET"):
        status, headers = self.head()
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, b"".join(self.chunks())
        if method == "HEAD" or status == 204:
            return status, headers, b""
        if "content-length" in headers:
            return status, headers, self.exactly(int(headers["content-length"]))
        while self.more():
            pass
        body, self.buffer = self.buffer, b""
        return status, headers, body

    def at_end(self):
        """Whether the server has closed and nothing is left; a reset counts."""
        try:
            return self.buffer == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def error_of(body):
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    return error


def events(body):
    """The data of server-sent events; comments are left out."""
    out = []
    for block in body.decode().split("\n\n"):
        if block.startswith("data: "):
            out.append(block[6:])
    return out


def equal(got, expected, what=""):
    assert got == expected, f"{what}: got {got!r}, expected {expected!r}"


def main(module):
    """Runs every test_* function of a module, prints one line each; names on the command line choose."""
    chosen = sys.argv[2:]
    assert all(name in module for name in chosen), f"no such tests: {chosen}"
    failed = 0
    for name, function in list(module.items()):
        if not name.startswith("test_") or (chosen and name not in chosen):
            continue
        started = time.monotonic()
        try:
            function()
            print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)
        except Exception:
            failed += 1
            import traceback
            traceback.print_exc()
            print(f"FAIL {name}", flush=True)
    sys.exit(1 if failed else 0)
