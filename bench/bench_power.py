#!/usr/bin/env python3
"""How well a budget of watts is held and how fast it is followed: the real engine on the real model, the simulated meter.

  ninja -C build/release millrace
  bench/bench_power.py [--seconds 60] [--out bench/results/FILE.json]        --quick: 20 s each

The meter is an estimate from the work that the engine does (server/power/power_loop.h), on a device said to draw 40 to 100 W:
what is measured is the loop, its delays and the engine's steps, not a machine's watts. Load comes as storms of --storm seconds
by turns: prompts (--clients clients, 700 tokens in, 1 out) and decode (16 in, 200 out); both draw more than the budget.

hold    means of a second (sliding, a step each window of the meter, 3 s after the budget was set) against the budget:
        target  how far off at the 99th percentile            goal: 2 %
        cap     share of them above, and the worst            goal: 0.1 %
react   full power, then a target of 60 W: how long until the end of the first window of the meter from which on half a second
        is at it (+2 %), and the lowest mean of 0.5 s in the 3 s after   goals: 300 ms, 2 %
        "by one window": until one window of 100 ms is. That is the ripple's moment as well: a window at rest has two or three
        blocks of 16 prompt tokens here, and is 3 % above or below
shed    level 3 at full load: until the engine's order says so goal: 100 ms

A machine that is busy with other work stretches single steps, which the meter counts as work: say so beside the result.
"""
import argparse
import json
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
IDLE, FULL, BUDGET, KEY = 40.0, 100.0, 60.0, "bench"


class Server:
    def __init__(self, binary, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.NamedTemporaryFile(suffix=".log")
        self.process = subprocess.Popen([binary, "serve", model, "--served-model-name", "m", "--port", str(self.port),
                                         "--power-sensor", "simulated", "--power-idle", str(IDLE), "--power-full", str(FULL),
                                         "--no-enable-prefix-caching"],
                                        env=dict(os.environ, MILLRACE_ADMIN_KEY=KEY), stdout=self.log, stderr=self.log)
        for _ in range(300):
            try:
                self.call("/readyz")
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit("the server does not start")

    def call(self, path, body=None, timeout=120):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Content-Type": "application/json",
                                         "Authorization": f"Bearer {KEY}"}, data=None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()

    def power(self, body=None):
        return json.loads(self.call("/admin/power", body))

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


class Load:
    """Clients that each send their next request when the last has ended; what, the storm says."""

    def __init__(self, server, clients, storm_s):
        self.server, self.storm_s, self.over, self.only = server, storm_s, False, None
        self.begun, self.tokens = time.monotonic(), 0
        self.threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def storm(self):
        return self.only or ("prompts", "decode")[int((time.monotonic() - self.begun) / self.storm_s) % 2]

    def client(self, number):
        count = 0
        while not self.over:
            prompts = self.storm() == "prompts"
            ids = [(number * 131 + count * 17 + i * i) % 40000 + 100 for i in range(700 if prompts else 16)]
            count += 1
            try:
                self.server.call("/v1/completions", {"model": "m", "prompt": ids, "max_tokens": 1 if prompts else 200,
                                                     "ignore_eos": True, "temperature": 0})
            except OSError:
                if not self.over:
                    raise

    def stop(self):
        self.over = True
        for thread in self.threads:
            thread.join(60)


def watch(server, seconds, poll_s=0.03):
    """[(seconds of the meter, joules, moment)] each time the meter has moved."""
    readings, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        state = server.power()
        if not readings or state["meter_s"] != readings[-1][0]:
            readings.append((state["meter_s"], state["meter_j"], time.monotonic()))
        time.sleep(poll_s)
    return readings


def means(readings, length_s):
    """Watts over each stretch of at least that length that ends with a window."""
    watts, first = [], 0
    for last in range(len(readings)):
        while readings[last][0] - readings[first + 1][0] >= length_s - 0.001 if first + 1 < last else False:
            first += 1
        if readings[last][0] - readings[first][0] >= length_s - 0.001:
            watts.append((readings[last][1] - readings[first][1]) / (readings[last][0] - readings[first][0]))
    return watts


def lift(server):
    server.power({"cap_w": None, "target_w": None, "shed_level": 0})
    for _ in range(300):
        if server.power()["work_w"] is None:
            return
        time.sleep(0.05)


def hold(server, kind, seconds):
    server.power({f"{kind}_w": BUDGET})
    time.sleep(3)
    watts = means(watch(server, seconds), 1)
    lift(server)
    off = sorted(abs(w / BUDGET - 1) for w in watts)
    return {"means": len(watts), "mean_w": statistics.mean(watts), "off_p50": statistics.median(off),
            "off_p99": off[min(len(off) - 1, int(len(off) * 0.99))], "above_share": sum(w > BUDGET for w in watts) / len(watts),
            "worst_above": max(watts) / BUDGET - 1, "lowest": min(watts) / BUDGET - 1}


def react(server, times):
    results = []
    for _ in range(times):
        time.sleep(2)
        before = server.power()["watts"]
        begun = time.monotonic()
        server.power({"target_w": BUDGET})
        readings = watch(server, 4, 0.005)
        met = settled = None
        for i, (one, two) in enumerate(zip(readings, readings[1:])):
            if met is None and (two[1] - one[1]) / (two[0] - one[0]) <= BUDGET * 1.02:
                met = two[2] - begun
            if settled is None and means(readings[i:], 0.5)[0] <= BUDGET * 1.02:
                settled = two[2] - begun
        after = [r for r in readings if r[2] - begun > 0.3]
        lift(server)
        results.append({"from_w": before, "met_s": met, "settled_s": settled, "lowest": min(means(after, 0.5)) / BUDGET - 1})
    return {"runs": results, "met_s_worst": max(r["met_s"] or 99 for r in results),
            "settled_s_worst": max(r["settled_s"] or 99 for r in results), "lowest": min(r["lowest"] for r in results)}


def shed(server, times):
    waits = []
    for _ in range(times):
        time.sleep(1)
        begun = time.monotonic()
        floor = server.power({"shed_level": 3})["floor_w"]
        while server.power()["setpoint_w"] != floor:
            pass
        waits.append(time.monotonic() - begun)
        lift(server)
    return {"order_s": waits, "order_s_worst": max(waits)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/release/millrace")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--storm", type=float, default=3)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 20
    os.chdir(ROOT)
    server = Server(options.binary, options.model)
    load = Load(server, options.clients, options.storm)
    try:
        time.sleep(5) # the models of costs settle
        free = means(watch(server, 2 * options.storm), 1)
        result = {"unlimited_w": [min(free), max(free)]}
        for kind in ("target", "cap"):
            result[kind] = hold(server, kind, options.seconds)
        load.only = "prompts"
        result["react"] = react(server, 3 if options.quick else 8)
        result["shed"] = shed(server, 3 if options.quick else 8)
        metrics = server.call("/metrics").decode().splitlines()
        result["paced_s"] = sum(float(m.split()[-1]) for m in metrics if m.startswith("mr_engine_paced_seconds_total"))
        result["steps_lost"] = sum(float(m.split()[-1]) for m in metrics if m.startswith("mr_power_steps_lost_total"))
    finally:
        load.over = True
        server.stop()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result |= {"commit": commit, "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "machine": platform.machine(),
               "load_average": os.getloadavg()[0], "budget_w": BUDGET, "idle_w": IDLE, "full_w": FULL, "note": options.note,
               "command": " ".join(sys.argv)}
    print(f"unlimited: means of a second {result['unlimited_w'][0]:.1f} to {result['unlimited_w'][1]:.1f} W; load average "
          f"{result['load_average']:.1f} on {result['cores']} cores")
    for kind in ("target", "cap"):
        r = result[kind]
        print(f"{kind:7} {BUDGET:.0f} W: mean {r['mean_w']:.2f} W, off by {100 * r['off_p50']:.2f} % (p50), {100 * r['off_p99']:.2f} % (p99); "
              f"above {100 * r['above_share']:.2f} % of {r['means']} seconds, at most {100 * r['worst_above']:+.2f} %")
    r = result["react"]
    print(f"react   to {BUDGET:.0f} W in at most {1000 * r['settled_s_worst']:.0f} ms, by one window in {1000 * r['met_s_worst']:.0f} ms; lowest half second {100 * r['lowest']:+.2f} %")
    print(f"shed 3  ordered in at most {1000 * result['shed']['order_s_worst']:.0f} ms")
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
