#!/usr/bin/env python3
"""Two servers under the same load, in turn, several times: ratios with their spread, as a table and JSON.

  bench/compare_servers.py --model FILE.gguf --peer 'llama-server -m {model} --port {port} -np {clients} -c {context} -t 2' \\
      [--ours 'build/release/millrace serve {model} --port {port}'] [--clients 1,8,32] [--rounds 3] [--out results.json]

Each round starts one server, waits until it is healthy (that time is "ready"), runs build/release/bench_load on it (closed loop,
128 tokens in, 64 out by default), reads its resident memory, and ends it; then the other. Only one server runs at a time. The two
are compared pair by pair in the same round, because the speed of a shared machine drifts.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_healthy(port, process, seconds):
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.01)
    raise SystemExit("the server was not ready in time")


def resident_mib(pid, field="VmRSS"):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(command, clients, options):
    """One server, one load: the figures of bench_load, and ready_s and rss_mib."""
    port = free_port()
    context = clients * (options.prompt_tokens + options.output_tokens + 32)
    line = command.format(model=options.model, port=port, clients=clients, context=context)
    start = time.monotonic()
    process = subprocess.Popen(shlex.split(line), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        wait_healthy(port, process, 120)
        ready = time.monotonic() - start
        load = [str(ROOT / "build/release/bench/bench_load"), "--port", str(port), "--clients", str(clients), "--json",
                "--prompt-tokens", str(options.prompt_tokens), "--output-tokens", str(options.output_tokens),
                "--model", options.name]
        subprocess.run(load + ["--requests", "1", "--seed", "99"], capture_output=True, check=True)  # warm-up
        done = subprocess.run(load + ["--requests", str(options.requests)], capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout)
        figures["ready_s"] = ready
        figures["rss_mib"] = resident_mib(process.pid)
        return figures
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def summary(values):
    return f"{statistics.median(values):9.2f} [{min(values):.2f}..{max(values):.2f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", default="SmolLM2-135M-Instruct", help="the model's name in requests")
    parser.add_argument("--ours", default="build/release/millrace serve {model} --port {port} --served-model-name "
                        "SmolLM2-135M-Instruct --log-level error --drain-delay 0")
    parser.add_argument("--peer", required=True)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="requests a client")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--out")
    options = parser.parse_args()
    options.model = os.path.abspath(options.model)
    results = []
    print(f"{options.prompt_tokens} tokens in, {options.output_tokens} out, closed loop; median [min..max] of {options.rounds} rounds")
    print(f"{'clients':>7}  {'figure':<14} {'ours':>26} {'peer':>26} {'ratio ours/peer':>26}")
    for clients in (int(c) for c in options.clients.split(",")):
        ours, peer = [], []
        for _ in range(options.rounds):
            ours.append(measure(options.ours, clients, options))
            peer.append(measure(options.peer, clients, options))
        for figure in ("output_tok_s", "ttft_ms_p50", "gap_ms_p50", "gap_ms_p99", "ready_s", "rss_mib", "client_cpu_share"):
            a, b = [r[figure] for r in ours], [r[figure] for r in peer]
            ratios = [x / y if y else 0.0 for x, y in zip(a, b)]
            print(f"{clients:>7}  {figure:<14} {summary(a):>26} {summary(b):>26} {summary(ratios):>26}")
        sys.stdout.flush()
        results.append({"clients": clients, "ours": ours, "peer": peer})
    if options.out:
        cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        document = {"date": datetime.date.today().isoformat(), "commit": commit, "machine": f"{cpu}, {os.cpu_count()} cores, "
                    platform.system(), "ours": options.ours, "peer": re.sub(r"\S*/", "", options.peer),
                    "prompt_tokens": options.prompt_tokens, "output_tokens": options.output_tokens, "results": results}
        pathlib.Path(options.out).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
