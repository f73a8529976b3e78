#!/usr/bin/env python3
"""What a cut of 40 % of a node's watts does to interactive requests beside deferrable ones: the real engine, the simulated meter.

  ninja -C build/release millrace
  bench/bench_service.py [--seconds 120] [--rounds 3] [--out bench/results/FILE.json]        --quick: 20 s, two rounds

One server on a device said to draw 40 to 100 W (the meter is an estimate from the engine's work, server/power/power_loop.h).
Interactive requests (--tier default, 64 tokens in, 32 out, streamed) come at random moments, the same in every part, --rate a
second; --clients deferrable clients (tier batch, 300 in, 64 out) ask again as soon as they are answered and fill what is left.
Rounds of two parts of --seconds each: no limit, then a target of 60 % of the watts that the part before it drew.

  interactive    p50, p99 of the time to the first token and of the gaps between tokens: ratio to the part without a limit  goal 1.05
  cut            watts of the limited part against the other                                                              goal -40 %
  borne          share of the tokens lost (prompt and output) that were deferrable                                         goal 90 %
  dropped        requests of either kind that failed or ended short, after the limit is lifted and all have ended           goal 0

Requests belong to the part they were sent in; the first 3 s of a part are left out. Ratios are of the same run; the spread is
over rounds.
"""
import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import bench_power  # noqa: E402

CUT, SETTLE_S = 0.40, 3.0


def stream(server, tier, prompt, tokens, seed):
    """(moment sent, time to first token, [gaps], tokens that came)"""
    ids = [(seed * 131 + i * i) % 40000 + 100 for i in range(prompt)]
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/completions",
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {bench_power.KEY}"},
        data=json.dumps({"model": "m", "prompt": ids, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True,
                         "stream_options": {"include_usage": True}, "service_tier": tier}).encode())
    begun, moments, came = time.monotonic(), [], 0
    with urllib.request.urlopen(request, timeout=900) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices"):
                moments.append(time.monotonic())
            if event.get("usage"):
                came = event["usage"]["completion_tokens"]
    return begun, moments[0] - begun, [b - a for a, b in zip(moments, moments[1:])], came


class Mix:
    def __init__(self, server, options):
        self.server, self.options, self.over = server, options, False
        self.interactive, self.deferrable, self.failed = [], [], []
        self.lock, self.threads = threading.Lock(), []

    def one(self, kind, seed):
        prompt, tokens, tier = (64, 32, self.options.tier) if kind == "interactive" else (300, 64, "batch")
        try:
            result = stream(self.server, tier, prompt, tokens, seed)
            if result[3] != tokens:
                raise ValueError(f"{result[3]} of {tokens} tokens")
            with self.lock:
                getattr(self, kind).append((*result, time.monotonic()))
        except (OSError, ValueError, IndexError) as reason:
            if isinstance(reason, urllib.error.HTTPError):
                reason = f"{reason.code} {reason.read(300).decode(errors='replace')}"
            with self.lock:
                self.failed.append(f"{kind}: {reason}")

    def client(self, number):
        count = 0
        while not self.over:
            self.one("deferrable", 7919 * number + count)
            count += 1

    def start(self):
        self.threads = [threading.Thread(target=self.client, args=(i,)) for i in range(self.options.clients)]
        for thread in self.threads:
            thread.start()

    def part(self, seconds, seed):
        """Interactive requests for so long, at the moments of the seed. The time from which it counts, and its end."""
        rng, begun = random.Random(seed), time.monotonic()
        at, number, sent = begun, 0, []
        while True:
            at += rng.expovariate(self.options.rate)
            if at > begun + seconds:
                break
            time.sleep(max(0, at - time.monotonic()))
            thread = threading.Thread(target=self.one, args=("interactive", 1000 + number))
            thread.start()
            sent.append(thread)
            number += 1
        time.sleep(max(0, begun + seconds - time.monotonic()))
        self.threads += sent
        return begun + SETTLE_S, begun + seconds

    def stop(self):
        self.over = True
        for thread in self.threads:
            thread.join(900)


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * q))] if values else float("nan")


def meter(server):
    state = server.power()
    return state["meter_j"], state["meter_s"]


def run_part(server, mix, seconds, seed):
    marks = []

    def mark():
        time.sleep(SETTLE_S)
        marks.append(meter(server))

    marker = threading.Thread(target=mark)
    marker.start()
    begun, end = mix.part(seconds, seed)
    marker.join()
    joules, at = meter(server)
    return {"from": begun, "to": end, "watts": (joules - marks[0][0]) / (at - marks[0][1])}


def figures(mix, part):
    """After all requests have ended. Deferrable tokens count as far as their request's time lay in the part."""
    seconds = part["to"] - part["from"]
    mine = [r for r in mix.interactive if part["from"] <= r[0] < part["to"]]
    gaps = [g for r in mine for g in r[2]]
    rate = sum(r[3] + 64 for r in mine) / seconds
    deferrable = 0.0
    for begun, _, _, came, ended in mix.deferrable:
        inside = max(0, min(ended, part["to"]) - max(begun, part["from"]))
        deferrable += (came + 300) * inside / (ended - begun)
    return {"watts": part["watts"], "requests": len(mine), "ttft_p50": quantile([r[1] for r in mine], 0.5),
            "ttft_p99": quantile([r[1] for r in mine], 0.99), "gap_p50": quantile(gaps, 0.5), "gap_p99": quantile(gaps, 0.99),
            "interactive_tok_s": rate, "deferrable_tok_s": deferrable / seconds}


def compare(free, limited):
    lost = free["deferrable_tok_s"] - limited["deferrable_tok_s"]
    other = max(0.0, free["interactive_tok_s"] - limited["interactive_tok_s"])
    ratios = {key: limited[key] / free[key] for key in ("ttft_p50", "ttft_p99", "gap_p50", "gap_p99")}
    return ratios | {"cut": 1 - limited["watts"] / free["watts"], "borne": lost / (lost + other) if lost + other > 0 else 0.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/release/millrace")
    parser.add_argument("--model", default=bench_power.MODEL)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1.0, help="interactive requests a second")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--tier", default="default", help="of the interactive requests")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 20, 2
    os.chdir(bench_power.ROOT)
    server = bench_power.Server(options.binary, options.model)
    mix, parts = Mix(server, options), []
    try:
        mix.start()
        time.sleep(6)  # the models of costs settle
        for number in range(options.rounds):
            free = run_part(server, mix, options.seconds, number)
            server.power({"target_w": (1 - CUT) * free["watts"]})
            limited = run_part(server, mix, options.seconds, number)
            server.power({"target_w": None})
            bench_power.lift(server)
            parts.append((free, limited))
        mix.stop()
    finally:
        mix.over = True
        server.stop()
    rounds = []
    for free, limited in parts:
        one = {"free": figures(mix, free), "limited": figures(mix, limited)}
        rounds.append(one | {"ratio": compare(one["free"], one["limited"])})
    middle = {key: statistics.median(r["ratio"][key] for r in rounds) for key in rounds[0]["ratio"]}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {"rounds": rounds, "median": middle, "dropped": len(mix.failed), "why": mix.failed[:5], "commit": commit,
              "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "machine": platform.machine(),
              "load_average": os.getloadavg()[0], "note": options.note, "command": " ".join(sys.argv)}
    print(f"load average {result['load_average']:.1f} on {os.cpu_count()} cores; {options.rounds} rounds of 2 x {options.seconds:.0f} s")
    print(f"{'':24}{'no limit':>12}{'-40 %':>12}   ratio, median [lowest .. highest]")
    units = {"ttft_p50": 1000, "ttft_p99": 1000, "gap_p50": 1000, "gap_p99": 1000}
    for key, name in (("ttft_p50", "first token p50, ms"), ("ttft_p99", "first token p99, ms"), ("gap_p50", "token gap p50, ms"),
                      ("gap_p99", "token gap p99, ms"), ("watts", "watts"), ("interactive_tok_s", "interactive tok/s"),
                      ("deferrable_tok_s", "deferrable tok/s")):
        free, limited = ([r[part][key] * units.get(key, 1) for r in rounds] for part in ("free", "limited"))
        ratios = [b / a for a, b in zip(free, limited)]
        print(f"{name:24}{statistics.median(free):12.1f}{statistics.median(limited):12.1f}   {statistics.median(ratios):.3f} "
              f"[{min(ratios):.3f} .. {max(ratios):.3f}]")
    print(f"cut {100 * middle['cut']:.1f} % of the watts; deferrable requests bear {100 * middle['borne']:.1f} % of it; "
          f"dropped {len(mix.failed)} of {len(mix.interactive) + len(mix.deferrable) + len(mix.failed)}")
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
