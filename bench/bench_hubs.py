#!/usr/bin/env python3
"""Three hubs behind one address: does work that can wait follow their green power, and what is lost when a hub is killed or drained?

  ninja -C build/release millrace
  bench/bench_hubs.py [--seconds 45] [--out bench/results/FILE.json]        --quick: 12 s each

A hub is a server with the simulated meter (40 to 100 W) on an address of its own, behind a proxy that adds its distance (5, 15 and
30 ms each way); HAProxy as docker/haproxy/haproxy.cfg has it, with a third node; one ledger in Redis, found through Sentinel.
Green power: a week of wind, of sun, and the wind of half a week later (tests/support/traces), a sample of it each 1.5 s.

follow, even   two clients of deferrable requests (32 tokens) and an interactive one (16 tokens) twice a second. follow: by the weights
               of green surplus; even: round robin, all weights equal. green: mean over the deferrable tokens of the share of full
               work that green power paid for at that hub then; best: had each run where that share was highest. Placement
               alone: the nodes take all of it at once (the tier stands in the front's header, not in the body).
faults         the same by follow; hub 2 is killed, then hub 3 drained. broken: streams of the killed hub that were under way.
               lost: any other request that did not come whole. Then hub 2 starts again, and the ledger is held against the
               journals and against what clients saw.
Distances are added by a process of Python, and all hubs share the machine's cores: times are for comparison within a run.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
IDLE, FULL, SLOT_S, DELAYS_S = 40, 100, 1.5, (0.005, 0.015, 0.030)
HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")


def free_port(host="127.0.0.1"):
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"never came: {what}")
        time.sleep(0.02)


class Distance:
    """A proxy that holds each piece back for delay_s. vanish: from now on connections are refused, as by a machine whose
    server is gone; a proxy that accepts them would make a request look sent."""

    def __init__(self, host, port, delay_s):
        self.target, self.delay_s = (host, port), delay_s
        self.listener = socket.create_server((host, 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def vanish(self):
        self.listener.shutdown(socket.SHUT_RDWR)

    def serve(self, client):
        try:
            server = socket.create_connection(self.target, timeout=5)
            server.settimeout(None)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            return
        other = threading.Thread(target=self.copy, args=(client, server), daemon=True)
        other.start()
        self.copy(server, client)
        other.join()
        client.close()
        server.close()

    def copy(self, source, target):
        try:
            while piece := source.recv(65536):
                time.sleep(self.delay_s)
                target.sendall(piece)
        except OSError:
            pass
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Hub:
    def __init__(self, number, options, folder, ledger):
        self.number, self.options, self.folder, self.ledger = number, options, folder, ledger
        self.host, self.file = f"127.0.1.{number}", folder / f"power{number}.csv"
        self.port, self.agent, self.deferrable = (free_port(self.host) for _ in range(3))
        self.offer(FULL)
        self.start()
        self.distance = Distance(self.host, self.port, DELAYS_S[number - 1])

    def start(self):
        log = open(self.folder / f"hub{self.number}.log", "a")
        self.process = subprocess.Popen(
            [self.options.binary, "serve", self.options.model, "--served-model-name", "m", "--host", self.host, "--port", str(self.port),
             "--agent-host", self.host, "--agent-port", str(self.agent), "--agent-deferrable-port", str(self.deferrable),
             "--threads", "1", "--drain-delay", "2", "--journal", str(self.folder / f"journal{self.number}"), "--redis", self.ledger,
             "--enforce", "prepaid", "--power-sensor", "simulated", "--power-idle", str(IDLE), "--power-full", str(FULL),
             "--power-signal", f"file:{self.file}"], stdout=log, stderr=log)
        wait_for(lambda: self.line().startswith("ready up 100"), f"hub {self.number}")

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
        environment = {**os.environ, "MILLRACE_FRONT": f"127.0.0.1:{self.port}", "MILLRACE_SALT": "bench"}
        for hub in hubs:
            environment |= {f"MILLRACE_NODE_{hub.number}": f"{hub.host}:{hub.distance.port}", f"MILLRACE_AGENT_ADDR_{hub.number}": hub.host,
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

    def client(self, number):
        count = 0
        while not self.over:
            self.request("deferrable", 1000 * number + count, 32)
            count += 1

    def go(self, events=()):
        begun, events = time.monotonic(), list(events)
        threads = [threading.Thread(target=self.client, args=(i + 1,)) for i in range(2)]
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
    times = sorted(r["ttft"] for r in rows if r["kind"] == "interactive" and r["ttft"])
    return {"requests": len(rows), "not_whole": sum(not r["whole"] for r in rows), "deferrable_tokens": tokens,
            "green": sum(r["green"] for r in deferrable) / tokens, "best": sum(r["best"] for r in deferrable) / tokens,
            "by_hub": {h: sum(r["tokens"] for r in deferrable if r["hub"] == h) / tokens for h in ("node1", "node2", "node3")},
            "interactive_ttft_ms_p50": 1e3 * times[len(times) // 2], "interactive_ttft_ms_p95": 1e3 * times[int(len(times) * 0.95)]}


def bill(options, *arguments):
    return json.loads(subprocess.run([options.binary, "bill", *arguments, "--json"], capture_output=True, text=True, check=True).stdout)


def read_traces():
    def column(name):
        with open(ROOT / "tests/support/traces" / name) as file:
            return [float(row[1]) for row in list(csv.reader(file))[1:]]
    wind, sun = column("wind_week_simbench.csv"), column("solar_week_simbench.csv")
    return [wind, sun, wind[len(wind) // 2:] + wind[:len(wind) // 2]]


def start_redis(folder, started):
    ports = [free_port(), free_port()]
    settings = ["appendonly yes", "appendfsync always", "aof-load-truncated no", "maxmemory-policy noeviction", 'save ""']
    for name, port, lines in [("redis-server", ports[0], settings), ("redis-sentinel", ports[1], [f"sentinel monitor m 127.0.0.1 {ports[0]} 1"])]:
        (folder / name).mkdir()
        conf = folder / name / "conf"
        conf.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {folder / name}", *lines]) + "\n")
        started.append(subprocess.Popen([name, str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for(lambda: subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True).stdout == b"PONG\n", name)
    return f"redis-sentinel://127.0.0.1:{ports[1]}/m"


def faults(hubs, run, seconds):
    moments = {}

    def kill():
        hubs[1].distance.vanish()
        hubs[1].process.kill()
        hubs[1].process.wait()
        moments["killed"] = time.monotonic()

    def drain():
        moments["drained"] = time.monotonic()
        hubs[2].process.send_signal(signal.SIGTERM)

    rows = run.go([(seconds * 0.3, kill), (seconds * 0.6, drain)])
    killed = moments["killed"]
    broken = [r for r in rows if not r["whole"] and r["begun"] < killed and r["hub"] in (None, "node2")]
    after = [r for r in rows if r["begun"] >= killed and r["ttft"]]
    return {**summary(rows), "broken": len(broken), "lost": sum(not r["whole"] for r in rows) - len(broken),
            "first_tokens_after_kill_ms_max": 1e3 * max(r["ttft"] for r in after if r["begun"] < killed + 3),
            "drained_exit": hubs[2].process.wait(60)}


def audit(options, hubs, ledger, rows):
    """Every charge once: ledger = journals; and those of streams that came whole = what their usage said."""
    seen = sum(r["units"] for r in rows) * 1_000_000
    journals = lambda: sum(row["charged_units"] for hub in hubs for row in bill(
        options, "usage", str(hub.folder / f"journal{hub.number}"), "--by", "account,model")["data"])
    used = lambda: bill(options, "balance", "bench", "--redis", ledger)["used_units"]
    wait_for(lambda: used() == journals() >= seen, "a ledger that is what the journals are", 30)
    return {"ledger_tokens": used() // 1_000_000, "journal_tokens": journals() // 1_000_000, "seen_in_whole_answers": seen // 1_000_000}


def measure(options, folder, started):
    ledger = start_redis(folder, started)
    subprocess.run([options.binary, "bill", "init", "--redis", ledger], check=True, capture_output=True)
    subprocess.run([options.binary, "bill", "account", "create", "bench", "--redis", ledger], check=True, capture_output=True)
    key = bill(options, "key", "create", "--account", "bench", "--redis", ledger)["key"]
    subprocess.run([options.binary, "bill", "topup", "bench", "--tokens", "10000000", "--order", "1", "--redis", ledger], check=True, capture_output=True)
    hubs, result, rows, traces = [], {}, [], read_traces()
    for i in (1, 2, 3):
        hubs.append(Hub(i, options, folder, ledger))
        started.append(hubs[-1].process)
    for name in ("follow", "even", "faults"):
        front = Front(hubs, name != "even", folder)
        started.append(front.process)
        run = Run(front, hubs, key, traces, options.seconds)
        result[name] = faults(hubs, run, options.seconds) if name == "faults" else summary(run.go())
        rows += run.rows
        front.end()
        print(name, json.dumps(result[name]), flush=True)
    hubs[1].start()
    started.append(hubs[1].process)
    result["bill"] = audit(options, hubs, ledger, rows)
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
    started = []
    with tempfile.TemporaryDirectory(prefix="millrace-hubs-") as folder:
        try:
            result = measure(options, pathlib.Path(folder), started)
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()
    if options.out:
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        pathlib.Path(options.out).write_text(json.dumps({"commit": commit, "cores": os.cpu_count(), "machine": platform.processor() or platform.machine(),
                                                         "seconds": options.seconds, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
