#!/usr/bin/env python3
"""Who the master is: Sentinels that fail over while the old master goes on taking writes, and a Cluster whose slots move and whose
masters die. After each, every record of the journal is in the ledger once."""
import subprocess
import time

from harness import (PATIENCE_S, UUID, Emitter, RedisError, Server, check_ledger, driver, driver_open, free_port, main, wait_until)
from fault_proxy import FaultProxy


# ---- Sentinel ----

class Sentinels:
    def __init__(self, password=None):
        self.servers, self.proxies = [], []
        for i in range(2):
            server = Server("repl-ping-replica-period 1", "repl-timeout 3")
            proxy = FaultProxy(("127.0.0.1", server.port)).start()
            with open(server.folder + "/redis.conf", "a") as f:
                f.write(f"replica-announce-ip 127.0.0.1\nreplica-announce-port {proxy.port}\n")
                if i:
                    f.write(f"replicaof 127.0.0.1 {self.proxies[0].port}\n")
            self.servers.append(server.start())
            self.proxies.append(proxy)
        self.sentinels = [Server(f"sentinel monitor m 127.0.0.1 {self.proxies[0].port} 2", "sentinel down-after-milliseconds m 2000",
                                 "sentinel failover-timeout m 4000", *([f"requirepass {password}"] if password else []),
                                 *([f"sentinel sentinel-pass {password}"] if password else []), program="redis-sentinel", needed=False)
                          for _ in range(3)]
        self.password = password
        for s in self.sentinels:
            s.start(wait=password is None)
        wait_until("Sentinels that know each other", lambda: all(
            b"num-other-sentinels,2" in b",".join(self.ask(s, "MASTER", "m")) and
            len(self.ask(s, "REPLICAS", "m")) == 1 and b"online" in self.servers[0].connect()("INFO", "replication")
            for s in self.sentinels))
        self.url = "redis-sentinel://" + ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels) + "/m"

    def ask(self, sentinel, *words):
        c = sentinel.connect()
        if self.password:
            c("AUTH", self.password)
        return c("SENTINEL", *words)

    def master(self):
        ports = {int(self.ask(s, "GET-MASTER-ADDR-BY-NAME", "m")[1]) for s in self.sentinels}
        return next((i for i, p in enumerate(self.proxies) if {p.port} == ports), None)

    def end(self):
        for s in self.sentinels + self.servers:
            s.kill()
        for p in self.proxies:
            p.stop()


def test_sentinel_failover():
    s = Sentinels()
    d = driver(s.url)
    assert d(f"init {UUID}") == "ST_OK OK"
    e = Emitter(s.url)
    e("write 500")
    e.settle()
    lost = 0
    for old, new in ((0, 1), (1, 0)):
        wait_until("a replica that follows", lambda: b"state=online" in s.servers[old].connect()("INFO", "replication"))
        # the master is parted from Sentinels and replica, and from every new client, but not from us: our writes go on
        s.proxies[old].set(refuse=True)
        s.proxies[old].kill(lambda pair: b"ROLE" not in pair.first)
        e("write 400")
        e.settle()                                             # acknowledged by a master that is none any more
        wait_until("the failover", lambda: s.master() == new)
        lost += s.servers[new].connect()("DBSIZE") >= 0
        s.proxies[old].clear()
        events = len(e.events)
        e("write 300")
        e.wait_event("ledger 0 0", events)                     # READONLY, or thrown out: either way it looks for the master
        e.settle()
        wait_until("its end as a replica", lambda: s.servers[old].connect()("ROLE")[0] == b"slave")
        check_ledger([s.servers[new].connect()], e.sums())
    assert int(e.fields("state")["written"]) == 1900 and int(e.fields("state")["applied"]) > 1900      # some were applied twice: once
    assert d("order o 7 add p 10 1 0 0") == "ST_OK OK"          # over a connection that two failovers have closed
    d.end()
    assert e("stop 5") == "left 0"
    e.end()
    s.end()


def test_sentinel_refusals():
    s = Sentinels(password="guarded")
    line, d = driver_open(s.url)                               # Sentinels ask for a password, and there is none
    assert d is None and "NOAUTH" in line, line
    line, d = driver_open(s.url.replace("/m", "/other"), password="guarded")
    assert d is None and '"other"' in line, line
    # a Sentinel that answers nonsense, and one that is not there, before the good ones
    line, d = driver_open(s.url.replace("redis-sentinel://", f"redis-sentinel://127.0.0.1:{free_port()},"), password="guarded")
    assert d is None and "AUTH" in line, line                   # the good ones are asked; the servers want no password
    for server in s.servers:
        server.connect()("CONFIG", "SET", "masterauth", "guarded")
    for server in s.servers:
        server.connect()("CONFIG", "SET", "requirepass", "guarded")
    d = driver(s.url.replace("redis-sentinel://", f"redis-sentinel://127.0.0.1:{free_port()},"), password="guarded")
    assert d("uuid") == "ST_OK"
    d.end()
    s.end()


# ---- Cluster ----

class Cluster:
    def __init__(self):
        self.servers = [Server("cluster-enabled yes", "cluster-node-timeout 1500", "cluster-require-full-coverage no").start()
                        for _ in range(4)]
        addresses = [f"127.0.0.1:{s.port}" for s in self.servers[:3]]
        subprocess.run(["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"], check=True, stdout=subprocess.DEVNULL)
        self.url = "redis-cluster://" + ",".join(addresses)
        self.wait_ok(self.servers[:3])

    def wait_ok(self, servers):
        wait_until("cluster_state:ok", lambda: all(b"cluster_state:ok" in s.connect()("CLUSTER", "INFO") for s in servers))

    def node_id(self, server):
        return server.connect()("CLUSTER", "MYID").decode()

    def owner(self, slot):
        for first, last, master, *_ in self.servers[0].connect()("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(s for s in self.servers if s.port == master[1])
        return None

    def masters(self):
        ports = {row[2][1] for row in next(s for s in self.servers if s.process.poll() is None).connect()("CLUSTER", "SLOTS")}
        return [s.connect() for s in self.servers if s.port in ports]

    def begin_move(self, slot, source, target):
        target.connect()("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        source.connect()("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target))

    def move_keys(self, slot, source, target, count):
        keys = source.connect()("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.connect()("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot, target):
        for s in self.servers[:3]:
            s.connect()("CLUSTER", "SETSLOT", slot, "NODE", self.node_id(target))

    def end(self):
        for s in self.servers:
            s.kill()


def busiest_slot(cluster, producer):
    """The slot of a partition that has records, and where it is."""
    for s in cluster.servers[:3]:
        c = s.connect()
        for key in c("KEYS", "mr:*:hwm"):
            value = c("HGET", key, producer)
            if value and int(value.split(b"|")[1]) > 5:
                return c("CLUSTER", "KEYSLOT", key), s
    raise AssertionError("no partition has records")


def test_cluster():
    cluster = Cluster()
    d = driver(cluster.url)
    assert d(f"init {UUID}") == "ST_OK OK"
    assert d("order o1 7 add p 1000 1 0 0") == "ST_OK OK" and "p:1000:1000" in d("balance 7")
    e = Emitter(cluster.url, "accounts=30")
    e("write 600")
    e.settle()
    assert check_ledger(cluster.masters(), e.sums()) == 600

    # MOVED: a slot changes its master between two of our calls
    slot, source = busiest_slot(cluster, e.producer)
    target = next(s for s in cluster.servers[:3] if s is not source)
    cluster.begin_move(slot, source, target)
    while cluster.move_keys(slot, source, target, 100):
        pass
    cluster.end_move(slot, target)
    e("write 600")
    e.settle()
    assert check_ledger(cluster.masters(), e.sums()) == 1200

    # ASK: all keys are over there already, the slot is still here
    cluster.begin_move(slot, target, source)
    while cluster.move_keys(slot, target, source, 100):
        pass
    e("write 300")
    e.settle()
    cluster.end_move(slot, source)
    assert check_ledger(cluster.masters(), e.sums()) == 1500
    e("write 300")
    e.settle()

    # TRYAGAIN: some keys here, some there: refused until the move is over, and nothing else waits for it
    cluster.begin_move(slot, source, target)
    cluster.move_keys(slot, source, target, 1)
    e("write 600")
    wait_until("all but one partition", lambda: int(e.fields("state")["unapplied"]) <= 90)
    wait_until("TRYAGAIN in the log", lambda: any("TRYAGAIN" in line for line in e.log))
    assert int(e.fields("state")["unapplied"]) > 0
    while cluster.move_keys(slot, source, target, 100):
        pass
    cluster.end_move(slot, target)
    e.settle()
    assert check_ledger(cluster.masters(), e.sums()) == 2400
    d.end()

    # a master dies; its replica did not have the last writes
    replica, victim = cluster.servers[3], cluster.servers[1]
    replica.connect()("CLUSTER", "MEET", "127.0.0.1", victim.port)
    wait_until("the new node", lambda: replica.connect()("CLUSTER", "NODES").count(b"connected") == 4)
    wait_until("its master", lambda: replica.connect()("CLUSTER", "REPLICATE", cluster.node_id(victim)) == "OK")
    wait_until("replication", lambda: b"state=online" in victim.connect()("INFO", "replication"))
    time.sleep(0.2)
    replica.pause()
    e("write 600")
    e.settle()
    victim.kill()
    replica.resume()
    wait_until("the takeover", lambda: replica.connect()("CLUSTER", "FAILOVER", "TAKEOVER") == "OK")
    wait_until("a master", lambda: replica.connect()("ROLE")[0] == b"master")
    cluster.wait_ok([cluster.servers[0], cluster.servers[2], replica])
    e("write 600")
    e.settle()
    masters = [s.connect() for s in (cluster.servers[0], cluster.servers[2], replica)]
    assert check_ledger(masters, e.sums()) == 3600
    # and a client that only knows the dead one and a live one finds its way
    d = driver(f"redis-cluster://127.0.0.1:{victim.port},127.0.0.1:{cluster.servers[0].port}")
    assert d("uuid") == f"ST_OK {UUID}"
    d.end()
    # a Cluster addressed as one server: an error, no guess
    line, d = driver_open(f"redis://127.0.0.1:{cluster.servers[0].port}")
    assert d is None or d("uuid").startswith("ST_INVAL"), line
    assert e("stop 5") == "left 0"
    e.end()
    cluster.end()
    assert PATIENCE_S and RedisError


if __name__ == "__main__":
    main([test_cluster, test_sentinel_refusals, test_sentinel_failover])
