#!/usr/bin/env python3
"""A Redis that answers nonsense, to every command that we send: never a crash, never a number made of it, no memory for what is
only promised, no wait without an end; and when it answers well again, all is applied once."""
import os
import random
import socket
import threading

from harness import UUID, Emitter, Resp, Server, check_ledger, driver, driver_open, init_ledger, main, wait_until

ENDLESS = object()
REPLIES = [
    b"$1073741824\r\n" + b"x" * 3_000_000, b"*1073741824\r\n", b"*1\r\n" * 100 + b":1\r\n", b"*65537\r\n" + b":1\r\n" * 70000,
    b"hello\r\n", b"", b"\r\n", b"$-2\r\n", b"*-5\r\n", b"$5\r\nab\r\n", b":999999999999999999999999\r\n", b"+" + b"y" * 2_000_000,
    b"-" + b"z" * 100_000 + b"\r\n", b"$3\r\nOK\r\n", b"*0\r\n", b"*-1\r\n", b"$-1\r\n", b":0\r\n", b":-1\r\n", b"+OK\r\n", b"$0\r\n\r\n",
    b"*1\r\n$2\r\nOK\r\n", b"*4\r\n$2\r\nOK\r\n$1\r\n0\r\n$16\r\n0000000000000000\r\n$2\r\n-1\r\n",
    b"*4\r\n$2\r\nOK\r\n$20\r\n99999999999999999999\r\n$16\r\n0000000000000000\r\n$1\r\n0\r\n",
    b"*4\r\n$2\r\nOK\r\n:5\r\n$16\r\n0000000000000000\r\n$1\r\n0\r\n", b"*4\r\n$2\r\nOK\r\n$2\r\n05\r\n$16\r\n0000000000000000\r\n$1\r\n0\r\n",
    b"*4\r\n$2\r\nOK\r\n$1\r\n0\r\n$15\r\n000000000000000\r\n$1\r\n0\r\n", b"*4\r\n$2\r\nOK\r\n$1\r\n0\r\n$16\r\nG000000000000000\r\n$1\r\n0\r\n",
    b"*5\r\n$2\r\nOK\r\n$1\r\n0\r\n$16\r\n0000000000000000\r\n$1\r\n0\r\n$1\r\n7\r\n",
    b"*7\r\n$2\r\nOK\r\n$1\r\n0\r\n$16\r\n0000000000000000\r\n$1\r\n0\r\n$1\r\n7\r\n$20\r\n18446744073709551615\r\n$1\r\n1\r\n",
    b"*4\r\n$5\r\nMAYBE\r\n$1\r\n0\r\n$16\r\n0000000000000000\r\n$1\r\n0\r\n", b"*2\r\n*-1\r\n*2\r\n$1\r\n5\r\n:5\r\n",
    b"-MOVED 99999 127.0.0.1:1\r\n", b"-MOVED 5 \r\n", b"-ASK\r\n", b"-MOVED 5 127.0.0.1:99999\r\n", b"-READONLY\r\n", b"-ERR Function not found\r\n",
    b"-\r\n", b"_\r\n", b"%1\r\n+a\r\n+b\r\n", b"*2\r\n$6\r\nmaster\r\n$1\r\n0\r\n", b"*2\r\n$1\r\n7\r\n*0\r\n", bytes(range(256)), ENDLESS,
]


class HostileRedis:
    """Passes commands on to a real Redis, but answers `count` of those that hold `word` with the given bytes."""

    def __init__(self, port):
        self.port_real, self.word, self.reply, self.count, self.fired = port, None, b"", 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def set(self, word, reply, count=1):
        self.word, self.reply, self.count, self.fired = word, reply, count, 0

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        try:
            real = Resp(self.port_real)
            stream = client.makefile("rb", 1 << 16)
            while True:
                head = stream.readline()
                if not head:
                    return
                words, raw = [], head
                for _ in range(int(head[1:])):
                    line = stream.readline()
                    data = stream.read(int(line[1:]) + 2)
                    words.append(data[:-2])
                    raw += line + data
                if self.count > 0 and self.word in words[:2]:
                    self.count -= 1
                    self.fired += 1
                    if self.reply is ENDLESS:
                        client.sendall(b"$900000\r\n")
                        while True:             # a byte now and then: no receive is ever too late
                            client.sendall(b"x")
                            if threading.Event().wait(0.01):
                                return
                    client.sendall(self.reply)
                    if not self.reply:
                        client.close()
                        return
                    continue
                real.socket.sendall(raw)
                client.sendall(self.raw_reply(real))
        except (OSError, ValueError):
            client.close()

    def raw_reply(self, real):
        line = real.file.readline()
        if not line:
            raise ConnectionError("closed")
        if line[:1] == b"$" and line[1:2] != b"-":
            return line + real.file.read(int(line[1:]) + 2)
        if line[:1] == b"*" and line[1:2] != b"-":
            return line + b"".join(self.raw_reply(real) for _ in range(int(line[1:])))
        return line


def memory_kb(program):
    with open(f"/proc/{program.process.pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))


def test_client():
    """redis_driver: each call with each reply. It says what is wrong, or the call worked because it was made again."""
    server = Server().start()
    init_ledger(f"redis://127.0.0.1:{server.port}")
    hostile = HostileRedis(server.port)
    calls = {b"mr_order": "order %d 7 add p 5 1 0 0", b"mr_reap": "reap 7 0", b"mr_account": "account 7 c%d close", b"HMGET": "balance 7",
             b"HSCAN": "lines", b"HGETALL": "month 7 202611", b"HGET": "version", b"mr_dir_put": "put k:%d {}"}
    seed = int(os.environ.get("MILLRACE_TEST_SEED", "3"))
    print("seed", seed)
    chosen = random.Random(seed).sample([(w, r) for w in calls for r in REPLIES if r is not ENDLESS], 24)
    d = driver(f"redis://127.0.0.1:{hostile.port}", "timeout=150")
    memory = memory_kb(d)
    for i, (word, reply) in enumerate(chosen):
        hostile.set(word, reply)
        answer = d(calls[word] % i if "%" in calls[word] else calls[word])
        for _ in range(20):                     # a slow machine may not come as far as to the hostile reply
            if hostile.fired:
                break
            answer = d(calls[word] % (i + 1000) if "%" in calls[word] else calls[word])
        assert hostile.fired, (word, reply[:40], answer, chosen[i - 1])
        assert answer.startswith(("ST_", "marks")), answer
    assert memory_kb(d) - memory < 12000, (memory, memory_kb(d))
    hostile.set(b"", b"", 0)
    wait_until("the right answer, which a slow machine may bring too late", lambda: d("uuid") == f"ST_OK {UUID}")
    d.end()
    server.kill()


def test_open():
    """Every step of a connect."""
    server = Server().start()
    init_ledger(f"redis://127.0.0.1:{server.port}")
    hostile = HostileRedis(server.port)
    rnd = random.Random(4)
    for word in (b"ROLE", b"CONFIG", b"mr_version", b"FUNCTION", b"CLUSTER", b"SENTINEL"):
        for reply in rnd.sample([r for r in REPLIES if r is not ENDLESS], 6) + [ENDLESS]:
            hostile.set(word, reply, 1000)
            url = {b"CLUSTER": f"redis-cluster://127.0.0.1:{hostile.port}",
                   b"SENTINEL": f"redis-sentinel://127.0.0.1:{hostile.port}/m"}.get(word, f"redis://127.0.0.1:{hostile.port}")
            good = word == b"ROLE" and reply is not ENDLESS and reply.startswith(b"*2\r\n$6\r\nmaster")
            good = good or (word == b"mr_version" and reply in (b"-ERR Function not found\r\n", b":0\r\n", b":-1\r\n"))
            for _ in range(20):                 # a slow machine may not come as far as to the hostile reply
                if word == b"FUNCTION":
                    server.connect()("FUNCTION", "FLUSH")
                line, d = driver_open(url, "timeout=300")
                assert good or not d, (word, reply if reply is ENDLESS else reply[:40], line)
                if hostile.fired and (d is not None) == good:
                    break
            assert hostile.fired and (d is not None) == good, (word, reply if reply is ENDLESS else reply[:40], line)
            if d:
                d.end()
    server.kill()


def test_password_is_not_told():
    """Servers and proxies that do not know AUTH repeat its arguments, the last one cut: none of it comes into a message or log."""
    server = Server().start()
    init_ledger(f"redis://127.0.0.1:{server.port}")
    hostile = HostileRedis(server.port)
    for told in (b"sesame-open", b"sesame-"):
        hostile.set(b"AUTH", b"-ERR unknown command `AUTH`, with args beginning with: `biller` `" + told + b"`\r\n", 1000)
        line, d = driver_open(f"redis://biller@127.0.0.1:{hostile.port}", password="sesame-open")
        assert d is None and "AUTH" in line and "sesame" not in line, line
        e = Emitter(f"redis://biller@127.0.0.1:{hostile.port}", password="sesame-open")
        e.wait_event("ledger 0")
        wait_until("a reason in the log", lambda: any("AUTH" in text for text in e.log))
        assert e("stop 0").startswith("left")
        e.end()
        assert "sesame" not in "".join(e.log + e.events), e.log
    server.kill()


def test_emitter():
    server = Server().start()
    init_ledger(f"redis://127.0.0.1:{server.port}")
    hostile = HostileRedis(server.port)
    e = Emitter(f"redis://127.0.0.1:{hostile.port}", "timeout=150")
    e("write 200")
    e.settle()
    memory = memory_kb(e)
    seed = int(os.environ.get("MILLRACE_TEST_SEED", "5"))
    print("seed", seed)
    for i, reply in enumerate(random.Random(seed).sample(REPLIES, 10)):
        hostile.set(b"mr_apply", reply, 1 + i % 3)
        e("write 40")
        wait_until("the hostile reply", lambda: hostile.fired)
        hostile.count = 0
    state = e.settle()
    assert memory_kb(e) - memory < 12000, (memory, memory_kb(e))
    assert int(state["losses"]) > 0
    assert check_ledger([server.connect()], e.sums()) == int(state["written"])
    assert e("stop 5") == "left 0"
    e.end()
    server.kill()


if __name__ == "__main__":
    main([test_client, test_open, test_password_is_not_told, test_emitter])
