"""The whole process under faults: servers are killed, Redis is killed, cut, paused and failed over, clients leave; then the books
are closed and held to what the clients know, to a second implementation that reads the journals, and to the ledger.

    torture.py --server NULL_SERVER --load BILLING_LOAD --dump BILLING_DUMP [--requests 50000] [--kills 20] [--ledger process|redis|sentinel] ...

Prints a table, and with --json writes it. Exit code 1 when anything was lost, double or wrong."""
import argparse
import json
import os
import subprocess
import sys
import time

sys.path.insert(1, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))

import books
from fault_proxy import FaultProxy
from harness import MODELS, Chaos, Folder, Load, kill_a_node, make_node, wait_for, write_keys, write_prices
from redis_servers import Redis, SentinelSet
# a meter that is computed, and grams for each of its joules: so that there is energy to be booked
METER = ["--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100", "--power-signal", "fixed:pue=1.25,gco2=400"]


class Torture:
    def __init__(self, options, folder):
        self.o, self.folder = options, folder
        self.keys, self.prices, self.clients = (os.path.join(folder, name) for name in ("keys", "prices.yaml", "clients"))
        write_keys(self.keys, options.accounts)
        write_prices(self.prices)
        self.ledger, self.proxy = None, None
        self.numbers = {}

    # ---- the parts ----

    def start_ledger(self):
        if self.o.ledger == "redis":
            self.ledger = Redis(self.folder, fsync=self.o.fsync).start()
            self.proxy = FaultProxy(("127.0.0.1", self.ledger.port)).start()
            url = f"redis://127.0.0.1:{self.proxy.port}"
        elif self.o.ledger == "sentinel":
            self.ledger = SentinelSet(self.folder).start()
            url = self.ledger.url()
        else:
            return []
        books.init_ledger(self.ledger)
        return ["--redis", url, "--enforce", "off"]

    def make_nodes(self, ledger_options):
        options = ["--api-key-file", self.keys, "--prices", self.prices, "--journal-segment-bytes", self.o.segment, "--journal-mode", self.o.mode,
                   "--shutdown-timeout", self.o.shutdown_timeout, *ledger_options]
        if self.o.meter:
            options += METER
        command = ["serve", self.o.model, "--served-model-name", MODELS[0]] if self.o.model else MODELS
        return [make_node(self.o.server, f"node{i}", self.folder, options, {"NULL_STEP_US": self.o.step_us}, command)
                for i in range(self.o.nodes)]

    def harms(self):
        """(how often, what): each a thread of its own."""
        o = self.o
        harms = [(o.kills, kill_a_node(self.nodes, o.drain_percent / 100))]

        def kill_redis(rng):
            self.ledger.kill()
            if rng.random() < o.redis_cut_share:
                self.numbers["aof_bytes_cut"] = self.numbers.get("aof_bytes_cut", 0) + self.ledger.cut_tail(200000, rng)
            time.sleep(rng.uniform(0, 0.3))
            self.ledger.start()

        def fail_over(rng):
            thrown_away = self.ledger.fail_over(rng.uniform(0.3, 1.2), books.marks_of)
            self.numbers["records_thrown_away"] = self.numbers.get("records_thrown_away", 0) + thrown_away
            self.numbers["failovers"] = self.numbers.get("failovers", 0) + 1

        def disturb(rng):
            fault = rng.choice(("reset_down_at", "reset_up_at", "stall", "lose_down", "delay_s", "refuse", "kill"))
            if fault == "kill":
                self.proxy.kill()
            elif fault.endswith("_at"):
                self.proxy.set(**{fault: rng.randrange(1, 20000)})
            else:
                self.proxy.set(**{fault: 0.03 if fault == "delay_s" else True})
                time.sleep(rng.uniform(0.1, 2.5)) # a call's time-out is 2 s
                self.proxy.clear()

        if o.ledger == "redis":
            harms += [(o.net_faults, disturb)]
            harms += [(o.redis_kills, kill_redis), (o.redis_pauses, lambda rng: self.ledger.pause(rng.uniform(0.2, 3)))]
        if o.ledger == "sentinel":
            harms += [(o.failovers, fail_over)]
        return harms

    # ---- the run ----

    def run(self):
        o = self.o
        self.nodes = self.make_nodes(self.start_ledger())
        for node in self.nodes:
            node.start()
        started = time.monotonic()
        load = Load(o.load, [node.port for node in self.nodes], self.keys, self.clients, o.requests, o.clients, o.seed,
                    MODELS[:1] if o.model else MODELS, retry=o.retry, cut=o.cut, tokens_max=o.tokens_max, **({"text_only": None} if o.model else {}))
        chaos = [Chaos(load, o.requests, count, o.seed + i, harm) for i, (count, harm) in enumerate(self.harms()) if count]
        for one in chaos:
            one.start()

        def watch():
            for one in chaos:
                if one.failure:
                    raise one.failure
            load.hold(any(one.late() for one in chaos))

        try:
            self.numbers["load"] = load.wait(o.limit_s, watch)
            for one in chaos:
                one.end()
                assert one.done * 3 >= one.count or one.count < 3, f"the load ran away: {one.done} of {one.count} harms were done"
            if self.proxy:
                self.numbers["net_faults"] = dict(self.proxy.fired)
                self.proxy.clear()
            self.numbers["seconds"] = round(time.monotonic() - started, 1)
            self.settle()
        finally:
            if load.process.poll() is None:
                load.process.kill()
        return self.verdict()

    def settle(self):
        """Every node up, nothing unapplied, then a drain."""
        began = time.monotonic()
        for node in self.nodes:
            if not node.alive():
                node.start()
            wait_for(lambda: node.metric("mr_billing_unapplied_records") == 0, lambda: f"{node.name} has applied all: {node.log()[-800:]}", 60)
        self.numbers["applied_after_s"] = round(time.monotonic() - began, 1)
        for node in self.nodes:
            node.stop()

    # ---- the books ----

    def verdict(self):
        report = books.judge(self.nodes, self.clients, self.ledger, self.o.dump)
        del report["dump"]
        report.update(self.numbers, ledger=self.o.ledger, mode=self.o.mode, accounts=self.o.accounts, seed=self.o.seed)
        if self.o.meter: # kills take the energy of what had just ended, and no more
            report["clean"] = report["clean"] and report["energies"] * 2 > report["records"] and report["energy_uj"] > 0
        if self.o.bound >= 0:
            self.check_bound(report)
        if self.o.ledger == "redis":
            report.update(redis_kills=self.ledger.kills, redis_fixed=self.ledger.fixed, redis_pauses=self.o.redis_pauses)
        return report

    def check_bound(self, report):
        """At a pace that leaves the processor idle few cut answers are recorded more than `bound` STEPs beyond what arrived: a share, because a
        busy machine may hold any of them up."""
        seen = {key: n for key, n in report["steps_beyond"].items() if not key.startswith("lost_slow")}
        late = sum(n for key, n in seen.items() if int(key.split(":")[1]) > self.o.bound)
        report["beyond_bound"], report["bound"] = late, self.o.bound
        report["clean"] = report["clean"] and bool(seen) and late * 20 <= sum(seen.values())


def table(report):
    names = ("requests", "records", "opens", "charged", "waived", "exact", "retried", "energies", "energy_uj", "kills", "redis_kills", "aof_bytes_cut", "failovers",
             "records_thrown_away", "starts", "units", "bound", "beyond_bound", "lost",
             "double", "wrong", "foreign", "stuck", "ledger_faults_count", "applied_after_s", "seconds", "checked_in_s")
    print(f"{'ledger':>20} {report['ledger']}, {report['nodes']} nodes, mode {report['mode']}, seed {report['seed']}")
    for name in names:
        if name in report:
            print(f"{name:>20} {report[name]:,}")
    for name in ("outcomes", "causes", "steps_beyond_worst"):
        print(f"{name:>20} " + ", ".join(f"{k} {v:,}" for k, v in sorted(report[name].items())))
    for message in report["messages"] + report["ledger_faults"]:
        print("    " + message)
    print("clean" if report["clean"] else "NOT CLEAN", flush=True)


def arguments(argv):
    parser = argparse.ArgumentParser()
    for name in ("server", "load", "dump"):
        parser.add_argument("--" + name, required=True)
    for name, value in (("requests", 50000), ("clients", 128), ("nodes", 3), ("accounts", 200), ("kills", 20), ("redis-kills", 0), ("redis-pauses", 0), ("net-faults", 0),
                        ("failovers", 0), ("seed", 20261123), ("step-us", 300), ("retry", 0), ("cut", 80), ("tokens-max", 200),
                        ("bound", -1), ("drain-percent", 5), ("limit-s", 600)):
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--meter", action="store_true", help="with energy records")
    parser.add_argument("--redis-cut-share", type=float, default=0.5)
    parser.add_argument("--ledger", choices=("process", "redis", "sentinel"), default="process")
    parser.add_argument("--fsync", choices=("everysec", "always"), default="everysec")
    parser.add_argument("--model", help="a model file: --server is then the real binary")
    parser.add_argument("--mode", default="step")
    parser.add_argument("--shutdown-timeout", default="120", help="seconds that a drain gives to what runs")
    parser.add_argument("--segment", default="1Mi")
    parser.add_argument("--folder", help="where the run's folder is made")
    parser.add_argument("--json")
    return parser.parse_args(argv)


def main(argv):
    options, made_from = arguments(argv), commit()
    print("seed", options.seed, flush=True)
    with Folder("torture", options.folder) as folder:
        torture = Torture(options, folder)
        try:
            report = torture.run()
        finally:
            if torture.ledger:
                torture.ledger.end()
        table(report)
        if options.json:
            describe = {"date": time.strftime("%Y-%m-%d"), "commit": made_from, "machine": machine(), "command": "torture.py " + " ".join(shown(argv))}
            with open(options.json, "w") as file:
                json.dump({**describe, **report}, file, indent=1)
        assert report["clean"], "the books do not agree"
    return 0


def commit():
    done = subprocess.run(["git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() or "?"


def shown(argv):
    """The command as anybody could give it: programs by their names alone, no place to write to."""
    words = iter(argv)
    for word in words:
        if word in ("--json", "--folder"):
            next(words)
        else:
            yield os.path.basename(word) if "/" in word else word


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return f"{model}, {os.cpu_count()} logical CPUs"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
