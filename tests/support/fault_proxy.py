#!/usr/bin/env python3
"""A TCP proxy that does to a connection what networks do: delays, stalls, resets in mid-reply, lost replies, flipped bytes.

    client -> proxy -> server        bytes up: from the client, down: from the server

As a module:  proxy = FaultProxy(("127.0.0.1", port)).start(); proxy.port; proxy.set(delay_s=0.05); ...; proxy.stop()
As a program: fault_proxy.py TARGET_PORT     prints its own port, then takes settings as lines on stdin: "delay_s=0.1 stall=1",
              "clear", "kill"; end of input ends it.

Settings (set() changes them at once, for open connections too; clear() takes all back):
    refuse        new connections are closed at once                      blackhole    accepted, nothing is passed on or answered
    delay_s       each piece waits this long, both ways                   slice_bytes  pieces of at most so many bytes
    stall         nothing moves until it is cleared (half-open peer)      lose_down    answers are swallowed, calls still arrive
    reset_down_at reset once so many bytes of answers have passed since set(), the last piece cut to fit; reset_up_at alike
    corrupt_down_at  the byte at that place of the answers since set() is flipped (xor 0x15), once
Every fault that fires is counted in proxy.fired[name]. kill() resets all open connections.
"""
import collections
import socket
import struct
import sys
import threading
import time

DEFAULTS = dict(refuse=False, blackhole=False, delay_s=0.0, slice_bytes=65536, stall=False, lose_down=False, reset_down_at=None,
                reset_up_at=None, corrupt_down_at=None)


def reset(sock):
    """Closes with RST instead of FIN. shutdown first, so that another thread's recv ends; its FIN goes nowhere useful."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    except OSError:
        pass


class Pair:
    """One connection through the proxy: two threads, one a direction."""

    def __init__(self, proxy, client):
        self.proxy, self.client, self.dead, self.first = proxy, client, False, b""
        self.server = proxy.connect()
        for sock in (self.client, self.server):
            sock.settimeout(0.05)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.threads = [threading.Thread(target=self.pump, args=args, daemon=True)
                        for args in ((self.client, self.server, "up"), (self.server, self.client, "down"))]
        for thread in self.threads:
            thread.start()

    def end(self, rst):
        self.dead = True
        for sock in (self.client, self.server):
            if rst:
                reset(sock)
            else:
                try:
                    sock.close()
                except OSError:
                    pass

    def pump(self, source, target, way):
        proxy = self.proxy
        try:
            while not self.dead:
                if proxy.settings["stall"] or proxy.settings["blackhole"]:
                    time.sleep(0.005)
                    continue
                try:
                    data = source.recv(proxy.settings["slice_bytes"])
                except socket.timeout:
                    continue
                if not data:
                    break
                if way == "up" and not self.first:
                    self.first = data[:64]
                if proxy.settings["delay_s"]:
                    time.sleep(proxy.settings["delay_s"])
                while proxy.settings["stall"] and not self.dead:
                    proxy.fired["stall"] += 1
                    time.sleep(0.005)
                data, cut = proxy.pass_on(data, way)
                at = 0
                while at < len(data) and not self.dead:
                    try:
                        at += target.send(data[at:])
                    except socket.timeout:
                        continue
                if cut:
                    time.sleep(0.002)       # what was passed shall arrive before the reset overtakes it
                    self.end(rst=True)
                    return
        except OSError:
            pass
        self.end(rst=False)


class FaultProxy:
    def __init__(self, target, host="127.0.0.1"):
        """target: (host, port), or the path of a Unix socket."""
        self.target, self.settings, self.fired = target, dict(DEFAULTS), collections.Counter()
        self.lock, self.pairs, self.passed = threading.Lock(), [], {"up": 0, "down": 0}
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((host, 0))
        self.listener.listen(128)
        self.listener.settimeout(0.05)
        self.port = self.listener.getsockname()[1]
        self.running = False

    def start(self):
        self.running = True
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()
        return self

    def connect(self):
        if isinstance(self.target, str):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.target)
            return sock
        return socket.create_connection(self.target, 2)

    def accept(self):
        while self.running:
            try:
                client, _ = self.listener.accept()
            except socket.timeout:
                continue
            except OSError:
                return
            if self.settings["refuse"]:
                self.fired["refuse"] += 1
                reset(client)
                continue
            try:
                pair = Pair(self, client)
            except OSError:
                reset(client)
                continue
            with self.lock:
                self.pairs = [p for p in self.pairs if not p.dead] + [pair]

    def pass_on(self, data, way):
        """What is left of a piece after the faults, and whether the connection is reset behind it."""
        with self.lock:
            s, start = self.settings, self.passed[way]
            self.passed[way] += len(data)
            at = s["corrupt_down_at"]
            if way == "down" and at is not None and start <= at < start + len(data):
                data = data[:at - start] + bytes([data[at - start] ^ 0x15]) + data[at - start + 1:]
                s["corrupt_down_at"] = None
                self.fired["corrupt_down_at"] += 1
            at = s[f"reset_{way}_at"]
            if at is not None and start + len(data) > at:
                s[f"reset_{way}_at"] = None
                self.fired[f"reset_{way}_at"] += 1
                return data[:max(0, at - start)], True
            if way == "down" and s["lose_down"]:
                self.fired["lose_down"] += 1
                return b"", False
            return data, False

    def set(self, **settings):
        unknown = set(settings) - set(DEFAULTS)
        if unknown:
            raise ValueError(f"no such setting: {unknown}")
        with self.lock:
            self.passed = {"up": 0, "down": 0}
            self.settings.update(settings)

    def clear(self):
        self.set(**DEFAULTS)

    def kill(self, chosen=lambda pair: True):
        """Resets all open connections, or those chosen: pair.first is what its client said first."""
        with self.lock:
            pairs = [pair for pair in self.pairs if chosen(pair)]
            self.pairs = [pair for pair in self.pairs if pair not in pairs]
        for pair in pairs:
            pair.end(rst=True)
        return len(pairs)

    def stop(self):
        self.running = False
        self.listener.close()
        self.kill()


def main():
    proxy = FaultProxy(("127.0.0.1", int(sys.argv[1]))).start()
    print(proxy.port, flush=True)
    for line in sys.stdin:
        for word in line.split():
            if word == "clear":
                proxy.clear()
            elif word == "kill":
                proxy.kill()
            else:
                name, value = word.split("=")
                default = DEFAULTS[name]
                proxy.set(**{name: float(value) if isinstance(default, float) else bool(int(value))
                             if isinstance(default, bool) else int(value)})
    proxy.stop()


if __name__ == "__main__":
    main()
