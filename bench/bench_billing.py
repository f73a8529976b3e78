#!/usr/bin/env python3
"""What billing costs: the same work on the real model with billing off and in each mode, in turn, as ratios with their spread.

  ninja -C build/release millrace bench/bench_load
  bench/bench_billing.py --plan                                        what would run and about how long
  bench/bench_billing.py [--rounds 7] [--out bench/results/FILE.json]    on a quiet machine; --quick: fewer and shorter

Contenders (--modes): off, step, group:20, write; redis: step with a ledger in a Redis of our own (AOF, everysec); prepaid: step
with packages enforced in the process; prepaid-redis: both. A round runs them one after the other, every other round in reversed
order; each run is a fresh server with a fresh journal, so that neither its age nor the layout of one process favours anyone.

Two loads, made by bench_load:
  closed  32 clients, 128 tokens in, 64 out, each sending its next request when the last has ended: output tokens/s, gaps, and
          CPU time a token. Its time to first token is mostly queueing behind 31 prompts, and as uneven.
  probe   32 streams that last, and beside them requests of 16 tokens, one after the other: the time to first token that one
          waiting person sees. p99 is over the probes of all rounds together.

The rows "step / off" answer the goals: output_tok_s at least 0.99, probe_ttft_ms p99 at most 2 ms more. fdatasync times are the
server's own (mr_billing_fdatasync); they are the disk's, so the table names the file system of --folder.
"""
import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench/peers"))
import compare  # noqa: E402  the machine's description and shares, free ports

MODES = ["off", "step", "group:20", "write", "redis", "prepaid", "prepaid-redis"]
CLIENTS, IN, OUT, PROBE_IN = 32, 128, 64, 16
FIGURES = ["output_tok_s", "cpu_us_token", "ttft_ms_p50", "ttft_ms_p99", "gap_ms_p50", "gap_ms_p99", "probe_ttft_ms_p50",
           "probe_ttft_ms_p99", "fsync_ms_mean", "journal_bytes_request"]

options = None
children = []


def start(command, **more):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=more.pop("stderr", subprocess.DEVNULL), cwd=ROOT, **more)
    children.append(process)
    return process


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    children.remove(process)
    return process.returncode


def bill(*arguments):
    done = subprocess.run([str(options.binary), "bill", *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"millrace bill {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


class Redis:
    """A Redis as a ledger wants it, in the folder of the run."""

    def __init__(self, folder):
        port = compare.free_port()
        self.url = f"redis://127.0.0.1:{port}"
        self.process = start([options.redis, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes",
                              "--appendfsync", "everysec", "--aof-load-truncated", "no", "--maxmemory-policy", "noeviction",
                              "--save", ""])
        for _ in range(500):
            if subprocess.run([options.redis.replace("redis-server", "redis-cli"), "-p", str(port), "ping"],
                              capture_output=True).stdout == b"PONG\n":
                return
            time.sleep(0.01)
        raise RuntimeError("Redis did not answer in 5 s")


class Server:
    def __init__(self, mode, folder):
        self.port, self.redis, self.key = compare.free_port(), None, None
        journal = folder / "journal"
        command = [str(options.binary), "serve", str(options.model), "--port", str(self.port), "--served-model-name", "bench",
                   "--threads", str(options.threads), "--log-level", "error"]
        if mode != "off":
            command += ["--journal", str(journal), "--journal-mode", mode if mode in ("step", "group:20", "write") else "step"]
        if "redis" in mode:
            self.redis = Redis(folder)
            command += ["--redis", self.redis.url, "--enforce", "prepaid" if "prepaid" in mode else "off"]
            bill("init", "--redis", self.redis.url)
        if "prepaid" in mode:
            where = ["--redis", self.redis.url] if self.redis else ["--journal", str(journal)]
            if not self.redis:
                bill("init", *where)
                command += ["--enforce", "prepaid"]
            bill("account", "create", "bench", *where)
            bill("topup", "bench", "--tokens", "1G", "--order", "bench-1", *where)
            self.key = json.loads(bill("key", "create", "--account", "bench", "--json", *where))["key"]
        self.log = tempfile.TemporaryFile()
        self.process = start(command, stderr=self.log)
        for _ in range(3000):
            if self.process.poll() is not None:
                self.log.seek(0)
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.log.read().decode()[-500:]}")
            try:
                if urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status == 200:
                    return
            except OSError:
                time.sleep(0.01)
        raise RuntimeError("the server was not ready in 30 s")

    def load(self, *arguments):
        command = [str(options.load), "--port", str(self.port), "--json", "--model", "bench", *arguments]
        done = subprocess.run(command + (["--key", self.key] if self.key else []), capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"bench_load ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def metrics(self):
        """Sums of all samples by name, without labels."""
        sums = {}
        for line in urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10).read().decode().splitlines():
            match = re.match(r"([a-zA-Z_:]+)(?:\{.*\})? (\S+)$", line)
            if match:
                sums[match[1]] = sums.get(match[1], 0) + float(match[2])
        return sums

    def stop(self):
        code = stop(self.process)
        if self.redis:
            stop(self.redis.process)
        if code:
            raise RuntimeError(f"the server ended with {code}")


def growth(after, before, name):
    return after.get(name, 0) - before.get(name, 0)


def measure(mode, number):
    """One run: {figure: value}, and the probes' times."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=options.folder))
    seeds = [["--seed", str(1000 * number + part)] for part in (1, 2, 3)]  # the same work for all modes of a round
    begin = compare.jiffies()
    try:
        server = Server(mode, folder)
        try:
            server.load("--clients", "4", "--requests", "1", "--prompt-tokens", str(IN), "--output-tokens", "16", *seeds[0])
            before = server.metrics()
            closed, _ = server.load("--clients", str(CLIENTS), "--requests", str(options.requests), "--prompt-tokens", str(IN),
                                    "--output-tokens", str(OUT), "--metrics", *seeds[1])
            after = server.metrics()
            probe = server.load("--clients", str(CLIENTS), "--prompt-tokens", str(IN), "--output-tokens", "2000", "--long-prompts",
                                str(options.probes), "--long-tokens", str(PROBE_IN), "--long-pause-ms", "20", *seeds[2])[0]
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    requests = CLIENTS * options.requests
    figures = {key: closed[key] for key in ("output_tok_s", "ttft_ms_p50", "ttft_ms_p99", "gap_ms_p50", "gap_ms_p99")}
    figures["cpu_us_token"] = growth(after, before, "process_cpu_seconds_total") * 1e6 / (requests * OUT)
    if mode != "off":
        syncs = growth(after, before, "mr_billing_fdatasync_seconds_count")
        if syncs:
            figures["fsync_ms_mean"] = growth(after, before, "mr_billing_fdatasync_seconds_sum") * 1e3 / syncs
        figures["journal_bytes_request"] = growth(after, before, "mr_billing_journal_bytes_total") / requests
        if growth(after, before, "mr_billing_records_charged_total") != requests:
            raise RuntimeError(f"{mode}: {growth(after, before, 'mr_billing_records_charged_total')} records of {requests} requests")
    times = sorted(probe["long_ttft_ms"])
    figures["probe_ttft_ms_p50"], figures["probe_ttft_ms_p99"] = times[len(times) // 2], percentile(times, 0.99)
    return {"mode": mode, "round": number, "steal": compare.shares(begin)[1], "probe_ttft_ms": times, **figures}


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(p * len(values)))]


def spread(values, form="{:.2f}"):
    values = list(values)
    return "[".join([form.format(statistics.median(values)) + " ", form.format(min(values)) + ".." + form.format(max(values)) + "]"])


def table(rows):
    """Prints, and returns, each figure by mode: its values, ratios to `off` of the same round, differences of times."""
    entries = []
    print(f"\nmedian [lowest..highest] of {options.rounds} rounds; ratios and differences are to `off` in the same round")
    print(f"{'mode':<14} {'figure':<22} {'value':>28} {'/ off':>22} {'- off':>24}")
    off = {row["round"]: row for row in rows if row["mode"] == "off"}
    for mode in options.modes:
        mine = [row for row in rows if row["mode"] == mode]
        for figure in FIGURES:
            pairs = [(row[figure], off.get(row["round"], {}).get(figure)) for row in mine if figure in row]
            if not pairs:
                continue
            entry = {"mode": mode, "figure": figure, "values": [round(a, 3) for a, _ in pairs]}
            both = [(a, b) for a, b in pairs if b and mode != "off"]
            entry["ratios"], entry["differences"] = [round(a / b, 4) for a, b in both], [round(a - b, 3) for a, b in both]
            entries.append(entry)
            print(f"{mode:<14} {figure:<22} {spread(entry['values']):>28} "
                  f"{spread(entry['ratios'], '{:.3f}') if both else '':>22} {spread(entry['differences']) if both else '':>24}")
        times = [time for row in mine for time in row["probe_ttft_ms"]]
        if times:
            print(f"{mode:<14} probes of all rounds: {len(times)}, p50 {percentile(times, 0.5):.2f} ms, p99 "
                  f"{percentile(times, 0.99):.2f} ms, longest {max(times):.2f} ms")
    return entries


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/millrace")
    parser.add_argument("--load", type=pathlib.Path, default=ROOT / "build/release/bench/bench_load")
    parser.add_argument("--redis", default=shutil.which("redis-server") or "redis-server")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build", help="where journals are written: on the disk that counts")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=3, help="of each of the 32 clients")
    parser.add_argument("--probes", type=int, default=40, help="short requests beside 32 streams, each run")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="3 rounds, 2 requests, 15 probes, modes off and step")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    o = parser.parse_args()
    if o.quick:
        o.rounds, o.requests, o.probes, o.modes = 3, 2, 15, "off,step"
    o.modes = o.modes.split(",")
    unknown = [m for m in o.modes if m not in MODES]
    if unknown or "off" not in o.modes:
        parser.error(f"unknown mode {unknown[0]}" if unknown else "`off` must be one of --modes")
    o.folder.mkdir(parents=True, exist_ok=True)
    return o


def main():
    global options
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    seconds = len(options.modes) * options.rounds * (2 + CLIENTS * options.requests * OUT / 550 + 2 + options.probes * 0.35)
    print(f"{', '.join(options.modes)}; {options.rounds} rounds; about {seconds / 60:.0f} minutes on two quiet cores")
    if options.plan:
        return 0
    begin, clock = compare.jiffies(), time.monotonic()
    time.sleep(2)
    busy, steal = compare.shares(begin)
    disk = subprocess.run(["stat", "-f", "-c", "%T", str(options.folder)], capture_output=True, text=True).stdout.strip()
    print(f"{compare.machine()}; journals on {disk}; before the start others took {busy:.0%} of the processors, the host {steal:.0%}"
          + ("; THE MACHINE IS BUSY, figures mean little" if busy > 0.1 else ""), flush=True)
    rows = []
    try:
        for number in range(1, options.rounds + 1):
            for mode in options.modes if number % 2 else reversed(options.modes):
                rows.append(measure(mode, number))
                print(f"  {number} {mode:<14} {rows[-1]['output_tok_s']:.1f} tok/s, closed TTFT p99 {rows[-1]['ttft_ms_p99']:.0f} ms, "
                      f"probe TTFT p50 {rows[-1]['probe_ttft_ms_p50']:.1f} ms, p99 {rows[-1]['probe_ttft_ms_p99']:.1f} ms", flush=True)
    finally:
        for process in list(children):
            stop(process)
    entries = table(rows)
    busy, steal = compare.shares(begin)
    print(f"\n{(time.monotonic() - clock) / 60:.1f} minutes, the host took {steal:.1%}")
    if options.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        options.out.write_text(json.dumps({
            "date": datetime.date.today().isoformat(), "commit": commit, "machine": compare.machine(), "journals_on": disk,
            "steal": steal, "model": options.model.name, "clients": CLIENTS, "prompt_tokens": IN, "output_tokens": OUT,
            "requests_a_client": options.requests, "probes": options.probes, "rounds": options.rounds, "threads": options.threads,
            "table": entries, "raw": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
