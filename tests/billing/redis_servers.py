"""Redis and Sentinel as child processes, and a proxy that parts a network; all on loopback.

Redis runs as the server demands: append-only file, noeviction, aof-load-truncated no, and redis-check-aof --fix before each
start that follows a kill (what a unit's ExecStartPre does)."""
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(1, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))

from harness import RUNNING, WAIT, free_ports, wait_for
from resp import RedisError, Resp


class Redis:
    def __init__(self, folder, name="redis", fsync="everysec", program="redis-server", more=(), port=None):
        self.folder, self.program, self.port = os.path.join(folder, name), program, port or free_ports(1)[0]
        self.process, self.kills, self.fixed = None, 0, 0
        os.makedirs(self.folder)
        self.config = os.path.join(self.folder, "conf")
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", "daemonize no", f"logfile {self.folder}/log"]
        if program == "redis-server":
            lines += ['save ""', "maxmemory-policy noeviction", "appendonly yes", f"appendfsync {fsync}", "aof-load-truncated no"]
        with open(self.config, "w") as file:
            file.write("\n".join([*lines, *more]) + "\n")

    def start(self):
        manifest = os.path.join(self.folder, "appendonlydir", "appendonly.aof.manifest")
        if self.kills and os.path.exists(manifest):
            done = subprocess.run(["redis-check-aof", "--fix", manifest], input=b"y\ny\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self.fixed += b"Successfully truncated" in done.stdout
        self.process = subprocess.Popen([self.program, self.config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        RUNNING.add(self.process)
        wait_for(self.answers, lambda: f"{self.program} answers: " + open(self.folder + "/log").read()[-800:])
        return self

    def answers(self):
        try:
            with Resp(self.port, 1) as c:
                return c("PING") == "PONG"
        except (OSError, RedisError):
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def cut_tail(self, most, rng):
        """Loses the newest part of the append-only file, as a power loss may: anywhere, in the middle of a command too."""
        folder = os.path.join(self.folder, "appendonlydir")
        names = [n for n in os.listdir(folder) if ".incr." in n]
        path = os.path.join(folder, max(names, key=lambda n: int(n.split(".")[-3])))
        size = os.path.getsize(path)
        lost = min(rng.randrange(1, most), size)
        os.truncate(path, size - lost)
        return lost

    def pause(self, seconds):
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def connect(self, timeout=10.0):
        return Resp(self.port, timeout)

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(WAIT)


class Proxy:
    """A way to a server that can be parted. `part` cuts replication and Sentinels off and leaves the connections on which functions
    were called: so a master goes on taking writes that a failover will throw away. New connections are refused until `join`."""

    def __init__(self, target):
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(128)
        self.port, self.target, self.parted, self.pairs = self.listener.getsockname()[1], target, False, []
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
                if self.parted:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target), 1)
            except OSError:
                continue
            far.settimeout(None)
            pair = {"sockets": (near, far), "functions": False}
            with self.lock:
                self.pairs.append(pair)
            threading.Thread(target=self._pump, args=(pair,), daemon=True).start()

    def _pump(self, pair):
        near, far = pair["sockets"]
        other = {near: far, far: near}
        try:
            while True:
                for s in select.select([near, far], [], [])[0]:
                    data = s.recv(65536)
                    if not data:
                        raise OSError
                    if s is near and not pair["functions"] and b"mr_apply" in data:
                        pair["functions"] = True
                    other[s].sendall(data)
        except (OSError, ValueError):
            pass
        with self.lock:
            if pair in self.pairs:
                self.pairs.remove(pair)
        for s in (near, far):
            s.close()

    def cut(self, functions_too=True):
        with self.lock:
            chosen = [pair for pair in self.pairs if functions_too or not pair["functions"]]
        for pair in chosen:
            for s in pair["sockets"]:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def part(self):
        self.parted = True
        self.cut(functions_too=False)

    def join(self):
        self.parted = False


class SentinelSet:
    """Three Redis and three Sentinels. Each Redis announces itself through a proxy of its own."""

    NAME = "ledger"

    def __init__(self, folder):
        ports = free_ports(3)
        self.proxies = [Proxy(port) for port in ports]
        self.redis = []
        for i, port in enumerate(ports):
            more = ["repl-diskless-sync-delay 0", "repl-ping-replica-period 1", "repl-timeout 3", "replica-announce-ip 127.0.0.1",
                    f"replica-announce-port {self.proxies[i].port}"]
            if i:
                more.append(f"replicaof 127.0.0.1 {self.proxies[0].port}")
            self.redis.append(Redis(folder, f"redis{i}", port=port, more=more))
        monitor = [f"sentinel monitor {self.NAME} 127.0.0.1 {self.proxies[0].port} 2", f"sentinel down-after-milliseconds {self.NAME} 1500",
                   f"sentinel failover-timeout {self.NAME} 3000", f"sentinel parallel-syncs {self.NAME} 2"]
        self.sentinels = [Redis(folder, f"sentinel{i}", program="redis-sentinel", more=monitor) for i in range(3)]

    def start(self):
        for server in self.redis + self.sentinels:
            server.start()
        wait_for(self.settled, "Sentinels agree")
        time.sleep(2.5) # they tell each other about the replicas on a channel, every two seconds
        return self

    def url(self):
        return "redis-sentinel://" + ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels) + "/" + self.NAME

    def master_port(self, sentinel=None):
        with Resp((sentinel or random.choice(self.sentinels)).port, 5.0) as c:
            return int(c("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)[1])

    def master(self):
        port = self.master_port()
        return next(i for i, proxy in enumerate(self.proxies) if proxy.port == port)

    def settled(self):
        try:
            ports = {self.master_port(s) for s in self.sentinels}
            if len(ports) != 1:
                return False
            with self.redis[self.master()].connect() as c:
                return c("INFO", "replication").count(b"state=online") == 2
        except (OSError, RedisError, StopIteration):
            return False

    def role(self, i):
        try:
            with self.redis[i].connect() as c:
                return c("ROLE")[0].decode()
        except (OSError, RedisError): # it cuts its clients off when it changes
            return None

    def fail_over(self, apart_s, marks):
        """Parts the master from its replicas and from the Sentinels; it goes on taking writes for a while after there is a new one.
        marks(connection) -> {name: sequence}. Returns how many records the old master had and its successor had not: thrown away."""
        old = self.master()
        self.proxies[old].part()
        wait_for(lambda: self.master() != old, "there is a new master")
        time.sleep(apart_s)
        with self.redis[old].connect() as then, self.connect() as now:
            before, after = marks(then), marks(now)
        lost = sum(max(0, pseq - after.get(name, 0)) for name, pseq in before.items())
        self.proxies[old].join()
        wait_for(lambda: self.role(old) == "slave" or self.master() == old, "the old master is a replica, or was chosen again")
        wait_for(self.settled, "Sentinels agree again")
        return lost

    def connect(self):
        return self.redis[self.master()].connect()

    def end(self):
        for server in self.sentinels + self.redis:
            server.end()
