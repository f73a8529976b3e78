#!/usr/bin/env python3
"""Three hubs behind one address: does work that can wait follow their green power, does the rest stay near, and what is lost when a
hub is killed or drained?

  ninja -C build/release millrace
  sudo bench/bench_hubs.py [--seconds 45] [--out bench/results/FILE.json]        --quick: 12 s each

A hub is a network namespace 5, 15 or 30 ms away (bench/hub_net.py) with a server (simulated meter, 40 to 100 W), a Redis and a
Sentinel; the ledger is the Redis of hub 1, those of the others follow it. HAProxy as docker/haproxy/haproxy.cfg has it, with a third
node; hub 1 is near: its weight is 100, the others' 10 (MILLRACE_WEIGHT_2, _3). Green power: a week of wind, of sun, and the wind of
half a week later (tests/support/traces), a sample of it each 1.5 s.

follow, even   two clients of deferrable requests (32 tokens) and an interactive one (16 tokens) twice a second. follow: by the weights
               of green surplus; even: round robin, all weights equal. green: mean over the deferrable tokens of the share of full
               work that green power paid for at that hub then; best: had each run where that share was highest. Placement
               alone: the nodes take all of it at once (the tier stands in the front's header, not in the body). near: share of
               interactive requests that hub 1 answered.
faults         the same by follow, and three clients of longer streams (64 tokens). All processes of hub 1 are killed, the ledger's master
               with them; then hub 3 is drained. broken: requests that the killed hub had, and that did not come whole. lost: any other.
               Then hub 1 starts again, and the ledger is held against the journals and against what clients saw.
While the ledger fails over, nodes give up to 20,000 tokens on credit (--on-outage continue): the lease of a hub is of what it used so far,
and those left get the load of the one that is gone. With the default, reject, they answer 503 for these seconds.
All hubs share the machine's cores: times are for comparison within a run.
"""
import argparse
import csv
import http.client
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import hub_net
from hub_net import Machine

ROOT = pathlib.Path(__file__).resolve().parent.parent
IDLE, FULL, SLOT_S, DELAYS_S = 40, 100, 1.5, (0.005, 0.015, 0.030)
LEDGER = "redis-sentinel://10.77.1.1:26379,10.77.2.1:26379,10.77.3.1:26379/m"
HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"never came: {what() if callable(what) else what}")
        time.sleep(0.02)


class Hub:
    port, agent, deferrable, redis, sentinel = 8000, 9001, 9011, 6379, 26379

    def __init__(self, number, options, folder):
        self.number, self.options, self.folder = number, options, folder / f"hub{number}"
        self.machine = Machine(number, DELAYS_S[number - 1])
        self.host, self.file, self.journal = self.machine.host, self.folder / "power.csv", self.folder / "journal"
        self.folder.mkdir()
        self.processes = []
        self.offer(FULL)
        self.write_redis()

    def write_redis(self):
        """Sentinel and failovers write on in these."""
        common = ["bind 0.0.0.0", "protected-mode no", f"dir {self.folder}"]
        follows = [] if self.number == 1 else [f"replicaof 10.77.1.1 {Hub.redis}"]
        self.redis_conf, self.sentinel_conf = self.folder / "redis.conf", self.folder / "sentinel.conf"
        self.redis_conf.write_text("\n".join([
            f"port {Hub.redis}", *common, "appendonly yes", "appendfsync always", "aof-load-truncated no", "maxmemory-policy noeviction",
            'save ""', "min-replicas-to-write 1", "repl-diskless-sync-delay 0", f"replica-announce-ip {self.host}", *follows]) + "\n")
        self.sentinel_conf.write_text("\n".join([
            f"port {Hub.sentinel}", *common, f"sentinel announce-ip {self.host}", f"sentinel monitor m 10.77.1.1 {Hub.redis} 2",
            "sentinel down-after-milliseconds m 1000", "sentinel failover-timeout m 2000"]) + "\n")

    def start_redis(self):
        for name, conf in (("redis-server", self.redis_conf), ("redis-sentinel", self.sentinel_conf)):
            self.processes.append(self.machine.run([name, str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def start(self):
        with open(self.folder / "log", "a") as log:
            self.process = self.machine.run(
                [self.options.binary, "serve", self.options.model, "--served-model-name", "m", "--host", self.host, "--port", str(self.port),
                 "--agent-host", self.host, "--agent-port", str(self.agent), "--agent-deferrable-port", str(self.deferrable),
                 "--threads", "1", "--drain-delay", "2", "--journal", str(self.journal), "--redis", LEDGER,
                 "--enforce", "prepaid", "--on-outage", "continue", "--outage-window", "20000", "--power-sensor", "simulated", "--power-idle", str(IDLE), "--power-full", str(FULL),
                 "--power-signal", f"file:{self.file}"], stdout=log, stderr=log)
        self.processes.append(self.process)
        wait_for(lambda: self.line().startswith("ready up 100"), f"hub {self.number}")

    def kill(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes = []

    def end(self):
        self.kill()
        self.machine.end()

    def line(self):
        try:
            with socket.create_connection((self.host, self.agent), timeout=2) as s:
                return s.recv(100).decode()
        except OSError:
            return ""

    def offer(self, green_w):
        self.green_w = green_w
        other = self.file.with_suffix(".new")
        other.write_text(f"green_w\n{green_w:.3f}\n")
        other.replace(self.file)

    def share(self):
        return max(0.0, min(1.0, (self.green_w - IDLE) / (FULL - IDLE)))


class Front:
    def __init__(self, hubs, follow, folder):
        self.port = free_port()
        text = (ROOT / "docker/haproxy/haproxy.cfg").read_text()
        third = lambda m: m[0] + m[0].replace("node2", "node3").replace("_2}", "_3}")
        text = re.sub(r"    server node2 .*\n", third, text)
        before, deferrable = text.split("\nbackend deferrable\n")
        if not follow:
            deferrable = re.sub(r"agent-(check|inter|addr|port)( \d+ms| \"[^\"]*\")?", "", deferrable)
        text = before.replace("    default_backend", "    http-response set-header x-hub %[srv_name]\n    default_backend") + "\nbackend deferrable\n" + deferrable
        path = folder / f"front{self.port}.cfg"
        path.write_text(text)
        environment = {**os.environ, "MILLRACE_FRONT": f"127.0.0.1:{self.port}", "MILLRACE_SALT": "bench",
                       "MILLRACE_WEIGHT_2": "10", "MILLRACE_WEIGHT_3": "10"}
        for hub in hubs:
            environment |= {f"MILLRACE_NODE_{hub.number}": f"{hub.host}:{hub.port}", f"MILLRACE_AGENT_ADDR_{hub.number}": hub.host,
                            f"MILLRACE_AGENT_{hub.number}": str(hub.agent), f"MILLRACE_DEFERRABLE_{hub.number}": str(hub.deferrable)}
        with open(folder / "front.log", "a") as log:
            self.process = subprocess.Popen([HAPROXY, "-db", "-f", str(path)], env=environment, stdout=log, stderr=log)
        time.sleep(2) # two rounds of checks

    def end(self):
        self.process.kill()
        self.process.wait()


class Run:
    """Load for so long, and what became of it."""

    def __init__(self, front, hubs, key, traces, seconds):
        self.front, self.hubs, self.key, self.traces, self.seconds = front, hubs, key, traces, seconds
        self.rows, self.lock, self.over = [], threading.Lock(), False

    def request(self, kind, number, tokens):
        begun, row = time.monotonic(), {"kind": kind, "begun": time.monotonic(), "whole": False, "tokens": 0, "ttft": None, "hub": None,
                                        "green": 0.0, "best": 0.0, "units": 0}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}", "x-conversation-id": f"c{number % 12}"}
        if kind == "deferrable":
            headers["x-service-tier"] = "flex"
        body = {"model": "m", "prompt": f"Story {number}: a mill", "max_tokens": tokens, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", self.front.port, timeout=60)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            row["status"], row["hub"] = answer.status, answer.headers.get("x-hub")
            for line in answer:
                if line.startswith(b"data: [DONE]"):
                    row["whole"] = True
                elif line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if event.get("choices"):
                        row["ttft"] = row["ttft"] or time.monotonic() - begun
                        row["tokens"] += 1
                        row["green"] += self.hubs[int(row["hub"][-1]) - 1].share()
                        row["best"] += max(h.share() for h in self.hubs)
                    if event.get("usage"):
                        row["units"] = event["usage"]["total_tokens"]
        except (OSError, http.client.HTTPException, ValueError) as reason:
            row["reason"] = type(reason).__name__
        connection.close()
        row["ended"] = time.monotonic()
        with self.lock:
            self.rows.append(row)

    def client(self, kind, number, tokens):
        count = 0
        while not self.over:
            self.request(kind, 1000 * number + count, tokens)
            count += 1

    def go(self, events=(), steady=False):
        begun, events = time.monotonic(), list(events)
        threads = [threading.Thread(target=self.client, args=("deferrable", i + 1, 32)) for i in range(2)]
        threads += [threading.Thread(target=self.client, args=("steady", i, 64)) for i in (3, 4, 5)] if steady else []
        for thread in threads:
            thread.start()
        slots, number = int(self.seconds / SLOT_S), 0
        while (passed := time.monotonic() - begun) < self.seconds:
            slot = int(passed / SLOT_S) * (len(self.traces[0]) // slots)
            for hub, trace in zip(self.hubs, self.traces):
                if (green_w := 1.5 * FULL * trace[min(slot, len(trace) - 1)]) != hub.green_w:
                    hub.offer(green_w)
            while events and passed >= events[0][0]:
                events.pop(0)[1]()
            thread = threading.Thread(target=self.request, args=("interactive", number, 16))
            thread.start()
            threads.append(thread)
            number += 1
            time.sleep(0.5)
        self.over = True
        for thread in threads:
            thread.join()
        return self.rows


def summary(rows):
    deferrable = [r for r in rows if r["kind"] == "deferrable"]
    tokens = sum(r["tokens"] for r in deferrable) or 1
    interactive = [r for r in rows if r["kind"] == "interactive"]
    times = sorted(r["ttft"] for r in rows if r["kind"] == "interactive" and r["ttft"])
    return {"requests": len(rows), "not_whole": sum(not r["whole"] for r in rows), "deferrable_tokens": tokens,
            "green": sum(r["green"] for r in deferrable) / tokens, "best": sum(r["best"] for r in deferrable) / tokens,
            "by_hub": {h: sum(r["tokens"] for r in deferrable if r["hub"] == h) / tokens for h in ("node1", "node2", "node3")},
            "near": sum(r["hub"] == "node1" for r in interactive) / len(interactive), "interactive_ttft_ms_p50": 1e3 * times[len(times) // 2], "interactive_ttft_ms_p95": 1e3 * times[int(len(times) * 0.95)]}


def bill(options, *arguments):
    return json.loads(subprocess.run([options.binary, "bill", *arguments, "--json"], capture_output=True, text=True, check=True).stdout)


def read_traces():
    def column(name):
        with open(ROOT / "tests/support/traces" / name) as file:
            return [float(row[1]) for row in list(csv.reader(file))[1:]]
    wind, sun = column("wind_week_simbench.csv"), column("solar_week_simbench.csv")
    return [wind, sun, wind[len(wind) // 2:] + wind[:len(wind) // 2]]


def ask_redis(host, port, *words):
    done = subprocess.run(["redis-cli", "-h", host, "-p", str(port), *words], capture_output=True, text=True, timeout=5)
    return done.stdout.split()


def start_ledger(hubs):
    for hub in hubs:
        hub.start_redis()
    near = hubs[0]
    wait_for(lambda: "connected_slaves:2" in ask_redis(near.host, Hub.redis, "info", "replication"), "two replicas")
    for hub in hubs:
        wait_for(lambda: "OK" in ask_redis(hub.host, Hub.sentinel, "sentinel", "ckquorum", "m"), "a quorum of sentinels")
        wait_for(lambda: (told := ask_redis(hub.host, Hub.sentinel, "sentinel", "master", "m")) and told[told.index("num-slaves") + 1] == "2",
                 "sentinels that know the replicas")


def faults(hubs, run, seconds):
    moments = {}

    def kill():
        moments["killed"] = time.monotonic()
        hubs[0].kill()
        moments["dead"] = time.monotonic()
        threading.Thread(target=failover).start()

    def failover():
        while ask_redis(hubs[1].host, Hub.sentinel, "sentinel", "get-master-addr-by-name", "m")[:1] == [hubs[0].host]:
            time.sleep(0.02)
        moments["failed_over"] = time.monotonic()

    def drain():
        moments["drained"] = time.monotonic()
        hubs[2].process.send_signal(signal.SIGTERM)

    rows = run.go([(seconds * 0.3, kill), (seconds * 0.6, drain)], steady=True)
    killed = moments["killed"]
    broken = [r for r in rows if not r["whole"] and r["begun"] < moments["dead"] and r["ended"] > killed and r["hub"] in (None, "node1")]
    after = [r for r in rows if r["begun"] >= moments["dead"]]
    others = [r for r in rows if r["begun"] < killed < r["ended"] and r["hub"] in ("node2", "node3")]
    wait_for(lambda: "failed_over" in moments, "a new master")
    return {**summary(rows), "broken": len(broken), "lost": sum(not r["whole"] for r in rows) - len(broken),
            "on_healthy_hubs_at_the_kill": len(others), "of_these_whole": sum(r["whole"] for r in others),
            "first_tokens_after_kill_ms_max": 1e3 * max(r["ttft"] or 60 for r in after if r["begun"] < killed + 3),
            "ledger_failover_s": moments["failed_over"] - killed, "drained_exit": hubs[2].process.wait(60)}


def audit(options, hubs, rows):
    """Every charge once: ledger = journals; and those of streams that came whole = what their usage said."""
    seen = sum(r["units"] for r in rows if r["whole"]) * 1_000_000
    journals = lambda: sum(row["charged_units"] for hub in hubs for row in bill(
        options, "usage", str(hub.journal), "--by", "account,model")["data"])
    used = lambda: bill(options, "balance", "bench", "--redis", LEDGER)["used_units"]
    wait_for(lambda: used() == journals() >= seen, lambda: f"a ledger ({used()}) that is what the journals are ({journals()}), and what was seen ({seen})", 30)
    proof = bill(options, "audit", *(str(hub.journal) for hub in hubs), "--redis", LEDGER)
    return {"verdict": proof["verdict"], "lost": proof["lost"], "double": proof["double"], "ledger_tokens": used() // 1_000_000, "journal_tokens": journals() // 1_000_000, "seen_in_whole_answers": seen // 1_000_000}


def measure(options, folder, started):
    hubs, result, rows, traces = [], {}, [], read_traces()
    for i in (1, 2, 3):
        hubs.append(Hub(i, options, folder))
        started.append(hubs[-1])
    start_ledger(hubs)
    bill(options, "init", "--redis", LEDGER)
    bill(options, "account", "create", "bench", "--redis", LEDGER)
    key = bill(options, "key", "create", "--account", "bench", "--redis", LEDGER)["key"]
    bill(options, "topup", "bench", "--tokens", "10000000", "--order", "1", "--redis", LEDGER)
    for hub in hubs:
        hub.start()
    for name in ("follow", "even", "faults"):
        front = Front(hubs, name != "even", folder)
        started.append(front)
        run = Run(front, hubs, key, traces, options.seconds)
        result[name] = faults(hubs, run, options.seconds) if name == "faults" else summary(run.go())
        rows += run.rows
        front.end()
        print(name, json.dumps(result[name]), flush=True)
    hubs[0].start_redis()
    hubs[0].start()
    bill(options, "replay", str(hubs[2].journal), "--redis", LEDGER)  # it may have ended while the ledger was away
    result["bill"] = audit(options, hubs, rows)
    print("bill", json.dumps(result["bill"]))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/release/millrace"))
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--seconds", type=float, default=45)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 12
    hub_net.enter()
    started = []
    with tempfile.TemporaryDirectory(prefix="millrace-hubs-") as folder:
        try:
            result = measure(options, pathlib.Path(folder), started)
        finally:
            for one in reversed(started):
                one.end()
    if options.out:
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        pathlib.Path(options.out).write_text(json.dumps({"commit": commit, "cores": os.cpu_count(), "machine": platform.processor() or platform.machine(),
                                                         "seconds": options.seconds, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
