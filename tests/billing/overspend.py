"""Prepaid packages under parallel use: 500 requests at once on one nearly empty account, over 8 server processes on one Redis.

    overspend.py NULL_SERVER BILLING_LOAD BILLING_DUMP [test...]

Units charged must never pass what was granted: overage 0 with Redis up, also when a package is voided or expires while nodes lease from it;
in an outage at most the credit window of every node."""
import os
import sys
import time

import books
from harness import PRICES, Folder, Load, make_node, wait_for, write_keys, write_prices
from oracle import account_number
from redis_servers import Redis

SERVER, LOAD, DUMP = sys.argv[1:4]
NODES, PARALLEL = 8, 500
ACCOUNT = "acct0000"
ALL_CLASSES = 2**53 - 1


def xxh64_u64(value):
    """XXH64, seed 0, of the number's eight little-endian bytes (xxhash's specification)."""
    p1, p2, p3, p4, p5, m = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5, (1 << 64) - 1

    def rotate(x, by):
        return (x << by | x >> 64 - by) & m

    h = (p5 + 8) & m
    h ^= rotate(value * p2 & m, 31) * p1 & m
    h = (rotate(h, 27) * p1 + p4) & m
    h = (h ^ h >> 33) * p2 & m
    h = (h ^ h >> 29) * p3 & m
    return h ^ h >> 32


class Bank:
    """Orders straight to Redis, and the account as it stands there."""

    def __init__(self, redis):
        self.redis, self.number = redis, account_number(ACCOUNT)
        self.prefix = f"mr:{{b{xxh64_u64(self.number) % 256:03d}}}:"
        self.keys = [self.prefix + "hwm", self.prefix + "log", f"{self.prefix}a:{self.number}"]
        books.init_ledger(redis)
        with redis.connect() as c:
            self.uuid = c("HGET", self.keys[0], "uuid").decode()

    def order(self, order, op, package, units=0, expires_ms=0):
        with self.redis.connect() as c:
            answer = c("FCALL", "mr_order", 3, *self.keys, self.uuid, order, op, package, units, 5, 0, expires_ms, 0, ALL_CLASSES)
        assert answer[0] in (b"OK", b"DUP"), answer

    def account(self):
        with self.redis.connect() as c:
            return {field: value for field, value in c.hash(self.keys[2]).items()}

    def sums(self):
        fields = self.account()
        total = {end: sum(int(v) for f, v in fields.items() if f.endswith(end)) for end in (".gr", ".av", ".rs", ".us", ".xp")}
        return {**total, "us": int(fields.get("us", 0)), "ov": int(fields.get("ov", 0))}


class Market:
    """Redis, eight nodes that enforce packages, and a load on the one account."""

    def __init__(self, name, options=()):
        self.name, self.options = name, options

    def __enter__(self):
        self.home = Folder(self.name)
        folder = self.home.__enter__()
        self.keys, self.clients = os.path.join(folder, "keys"), os.path.join(folder, "clients")
        write_keys(self.keys, 1, keys_each=4)
        write_prices(os.path.join(folder, "prices.yaml"))
        self.redis = Redis(folder).start()
        self.bank = Bank(self.redis)
        options = ["--api-key-file", self.keys, "--prices", os.path.join(folder, "prices.yaml"), "--redis", f"redis://127.0.0.1:{self.redis.port}",
                   "--enforce", "prepaid", "--journal-segment-bytes", "1Mi", *self.options]
        self.nodes = [make_node(SERVER, f"node{i}", folder, options, {"NULL_STEP_US": 500}) for i in range(NODES)]
        for node in self.nodes:
            node.start()
        return self

    def load(self, requests, clients, seed, **more):
        return Load(LOAD, [node.port for node in self.nodes], self.keys, self.clients, requests, clients, seed, first=seed * 1000000, **more)

    def settle(self):
        for node in self.nodes:
            wait_for(lambda: node.metric("mr_billing_unapplied_records") == 0, lambda: f"{node.name}: {node.log()[-500:]}")
        for node in self.nodes:
            node.stop()

    def judge(self):
        report = books.judge(self.nodes, self.clients, self.redis, DUMP)
        assert report["clean"], report["messages"] + report["ledger_faults"]
        return report

    def __exit__(self, kind, value, trace):
        for node in self.nodes:
            if node.alive():
                node.kill()
        self.redis.end()
        self.home.__exit__(kind, value, trace)


def dearest():
    return max(w for weights in PRICES.values() for w in weights)


def test_500_at_once_on_a_nearly_empty_account():
    with Market("overspend") as market:
        granted = 4000 * 1000000
        market.bank.order("top-1", "add", "p1", granted)
        summary = market.load(PARALLEL, PARALLEL, 1).wait(120)
        market.load(PARALLEL, 1, 6).wait(120)  # what the storm left in leases serves whoever comes after it
        market.settle()
        sums, report = market.bank.sums(), market.judge()
        print("    ", sums, {k: summary[k] for k in ("whole", "refused", "cut")}, report["causes"])
        assert sums["ov"] == 0 and sums[".us"] == sums["us"] <= granted, sums
        assert sums[".rs"] == 0, "leases were not given back at drain"
        assert summary["refused"] > PARALLEL / 4, "the account was not nearly empty"
        assert sums["us"] > granted / 2, "most of the package is unused, though requests were refused for lack of it"


def test_a_package_voided_while_it_is_leased():
    with Market("void") as market:
        market.bank.order("top-1", "add", "p1", 3000000 * 1000000)
        load = market.load(6000, 200, 2)
        wait_for(lambda: load.ended > 1000, "requests run")
        market.bank.order("void-1", "void", "p1")
        load.wait(120)
        market.settle()
        sums = market.bank.sums()
        market.judge()
        print("    ", sums)
        assert sums["ov"] == 0 and sums[".rs"] == 0 and sums[".av"] == 0, sums
        assert sums[".xp"] > 0 and sums[".us"] > 0, "nothing was left to void, or nothing used"


def test_a_package_expires_while_it_is_leased():
    with Market("expiry") as market:
        market.bank.order("top-1", "add", "p1", 3000000 * 1000000, expires_ms=int((time.time() + 1) * 1000))
        load = market.load(10000, 200, 3)
        load.wait(120)
        market.settle()
        sums = market.bank.sums()
        market.judge()
        print("    ", sums)
        assert sums["ov"] == 0 and sums[".rs"] == 0, sums
        assert sums[".av"] + sums[".xp"] > 0, "the package was used up before its end"


def outage(name, options, window):
    with Market(name, options) as market:
        market.bank.order("top-1", "add", "p1", 20000 * 1000000)
        market.load(400, 100, 4).wait(60)
        market.redis.kill()
        market.load(1500, 200, 5).wait(60)
        market.redis.start()
        market.settle()
        sums = market.bank.sums()
        market.judge()
        print("    ", sums)
        assert sums["ov"] <= window * 1000000 * NODES, sums
        return sums


def test_an_outage_without_credit():
    outage("outage", [], 0)


def test_an_outage_on_credit():
    sums = outage("credit", ["--on-outage", "continue", "--outage-window", "500"], 500)
    assert sums["ov"] > 0, "no credit was used: the window shows nothing"


if __name__ == "__main__":
    chosen = sys.argv[4:]
    assert all(name in globals() for name in chosen), f"no such tests: {chosen}"
    for name, function in list(globals().items()):
        if name.startswith("test_") and (not chosen or name in chosen):
            started = time.monotonic()
            function()
            print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)
