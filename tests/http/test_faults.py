"""Descriptors run out, the log blocks, the process is paused, and random bytes arrive."""
import os
import random
import re
import signal
import socket
import subprocess
import time

from harness import BINARY, WAIT, Reply, Server, completion, equal, main, message, wait_for

SEED = 977


def test_descriptors_exhausted():
    with Server(files=64) as server:
        some = []
        for _ in range(200): # more than there are descriptors; the kernel's queue takes the rest
            s = server.connect()
            s.setblocking(False)
            some.append(s)
        first = server.lines("accept failed")
        used = cpu_seconds(server.process.pid)
        time.sleep(1) # nothing may happen in this second: no assertion on it but the processor time that was spent
        spent = cpu_seconds(server.process.pid) - used
        assert spent < 0.5, f"{spent} s of processor time with nothing to do"
        for s in some:
            s.close()
        wait_for(lambda: answers(server), lambda: "no answer after the flood")
        equal(server.ask("POST", "/v1/completions", completion(2))[0], 200)
        equal(first, [], "accept ran out of descriptors")


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answers(server):
    try:
        return server.ask("GET", "/version")[0] == 200
    except OSError:
        return False


def test_a_pause_of_the_process_ends_nothing():
    with Server("--limit-http-idle-timeout-ms", 3000, "--limit-http-head-timeout-ms", 3000) as server:
        with server.connect() as idle, server.connect() as half:
            idle.sendall(message("GET", "/version"))
            reply = Reply(idle)
            reply.read()
            half.sendall(b"GET /version HTTP/1.1\r\n")
            server.ask("GET", "/version")
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(4)
            server.process.send_signal(signal.SIGCONT)
            half.sendall(b"Host: a\r\n\r\n")
            equal(Reply(half).read()[0], 200, "half a head")
            idle.sendall(message("GET", "/version"))
            equal(reply.read()[0], 200, "idle")


def test_a_blocked_log_holds_up_nothing():
    process = subprocess.Popen([BINARY, "null", "--port", "0", "--drain-delay", "0", "--log-level", "debug"], stderr=subprocess.PIPE)
    try:
        port = None
        while port is None:
            found = re.search(rb"serve ready url=http://127.0.0.1:(\d+)", process.stderr.readline())
            port = int(found.group(1)) if found else None
        with socket.create_connection(("127.0.0.1", port), WAIT) as s: # nobody reads the log from here on
            reply = Reply(s)
            for _ in range(3000):
                s.sendall(message("GET", "/version", headers={"X-Request-Id": "x" * 100}))
                equal(reply.read()[0], 200)
            s.sendall(message("GET", "/metrics"))
            dropped = re.search(rb"mr_log_lines_dropped_total{.*} (\d+)", reply.read()[2])
            assert int(dropped.group(1)) > 1000, dropped
        process.terminate()
        equal(process.wait(WAIT), 0)
    finally:
        process.kill()
        process.stderr.close()


def test_random_bytes():
    print("seed", SEED)
    choose = random.Random(SEED)
    seeds = [message("POST", "/v1/completions", completion(3, stream=True)), message("GET", "/v1/models"),
             message("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2})]
    with Server() as server:
        for _ in range(600):
            data = bytearray(choose.choice(seeds))
            for _ in range(choose.randrange(1, 6)):
                at = choose.randrange(len(data))
                data[at:at + choose.randrange(0, 3)] = bytes(choose.randrange(256) for _ in range(choose.randrange(0, 3)))
            with server.connect() as s:
                s.sendall(bytes(data))
                if choose.random() < 0.5:
                    s.settimeout(0.005)
                    try:
                        s.recv(100)
                    except OSError:
                        pass
        server.wait_idle()
        equal(server.ask("POST", "/v1/completions", completion(2))[0], 200)


if __name__ == "__main__":
    main(globals())
