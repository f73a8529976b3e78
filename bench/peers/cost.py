#!/usr/bin/env python3
"""What a million tokens cost on Millrace and on llama.cpp's server: the same requests, the same meter, the same money, in turn.

  bench/peers/setup_llama_cpp.sh; ninja -C build/release millrace
  bench/peers/cost.py [--llama FOLDER] [--peer-models A.gguf,B.gguf] [--out bench/results/FILE.json]       --quick: one round

The load is `millrace bench cost` itself: a closed loop of --clients, prompts of 128 random ids, 64 tokens out, greedy. Each round
starts a fresh server of each contender, sends it one request, and then measures.

Joules: with --meter rapl (or nvml) those of the machine, read alike for all. Without a meter they are an estimate, and said to be
one: base watts for the time, and from there to full watts by the share of the machine's processor time that the server's process
took (user and system, /proc/PID/stat). A processor second then draws the same whoever spends it; one spent spinning at a barrier
counts as one of arithmetic, and what memory traffic draws apart is not seen. Tokens, times and processor seconds are measured.

Cost: 1e6 * H / N as `bench cost --explain` writes it: the hardware's price over its years with interest, energy at the tariff.
"""
import argparse
import json
import os
import pathlib
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
SLOT = 256
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """Of the process and all its threads, and of children that have ended."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(f) for f in fields[11:15]) / TICKS


class Server:
    def __init__(self, command, port, env):
        self.port = port
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=ROOT, env=env)
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"{pathlib.Path(command[0]).name} ended with {self.process.returncode} before it was ready")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise SystemExit(f"{pathlib.Path(command[0]).name} was not ready in time")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(contender, clients, o):
    port, env = free_port(), dict(os.environ)
    if contender["engine"] == "millrace":
        return Server([o.binary, "serve", contender["model"], "--port", str(port), "--threads", str(o.threads), "--log-level", "error",
                       "--drain-delay", "0"], port, env)
    env["LD_LIBRARY_PATH"] = str(o.llama) + ":" + env.get("LD_LIBRARY_PATH", "")
    return Server([str(o.llama / "llama-server"), "-m", contender["model"], "--port", str(port), "-np", str(clients), "-c",
                   str(clients * SLOT), "--no-webui", "-cram", "0", "-t", str(o.threads), "-tb", str(o.threads), "-fa", "auto"], port, env)


def load(server, o, clients, requests, seed):
    command = [o.binary, "bench", "cost", "--server", f"http://127.0.0.1:{server.port}", "--clients", str(clients), "--requests",
               str(requests), "--tariff", str(o.tariff), "--seed", str(seed), "--no-split", "--json"]
    if o.meter:
        command += ["--meter", o.meter]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    if answer.returncode != 0:
        raise SystemExit(f"bench cost: {answer.stderr.strip()}")
    return json.loads(answer.stdout)


def measure(contender, clients, o, number):
    server = start(contender, clients, o)
    try:
        if o.meter is None:
            load(server, o, 1, 1, 9999)  # with a meter it would be too short to read
        before = cpu_seconds(server.process.pid)
        told = load(server, o, clients, clients * o.requests, number + 1)
        cpu = cpu_seconds(server.process.pid) - before
    finally:
        server.stop()
    if told["failed"] or told["answered"] != clients * o.requests:
        raise SystemExit(f"{contender['name']}: {told['answered']} of {clients * o.requests} requests were answered")
    seconds, tokens = told["seconds"], told["prompt_tokens"] + told["output_tokens"]
    if not o.meter:
        told["joules"] = o.idle * seconds + (o.full - o.idle) * min(cpu / os.cpu_count(), seconds)
    rate, years = tokens / seconds * 3600, o.years
    crf = o.interest * (1 + o.interest) ** years / ((1 + o.interest) ** years - 1) if o.interest > 0 else 1 / years
    energy = told["joules"] / seconds / 1000 * o.pue * o.tariff
    hardware = o.capex * crf / 8760
    return {"tok_s": tokens / seconds, "output_tok_s": told["output_tokens"] / seconds, "cpu_s": cpu, "cpu_share": cpu / seconds / os.cpu_count(),
            "seconds": seconds, "tokens": tokens, "joules": told["joules"], "j_token": told["joules"] / tokens, "watts": told["joules"] / seconds,
            "kwh_million": told["joules"] / tokens / 3.6, "cost_energy": 1e6 * energy / rate, "cost": 1e6 * (energy + hardware) / rate,
            "ttft_ms_p50": told["ttft_ms_p50"], "ttft_ms_p99": told["ttft_ms_p99"], "gap_ms_p50": told["gap_ms_p50"], "gap_ms_p99": told["gap_ms_p99"]}


FIGURES = (("tok_s", "tok/s in and out", 1), ("ttft_ms_p50", "first token p50, ms", 0), ("gap_ms_p50", "token gap p50, ms", 1),
           ("cpu_share", "processor share", 2), ("watts", "watts", 1), ("j_token", "J a token", 4), ("kwh_million", "kWh a million", 4),
           ("cost_energy", "energy, CNY a million", 4), ("cost", "all, CNY a million", 4))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/release/millrace")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--llama", type=pathlib.Path, default=ROOT / "build/peers/llama_cpp/build/bin", help="llama.cpp's binaries")
    parser.add_argument("--peer-models", help="the same weights in formats that suit the peer better, by commas; the same file is always in")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--requests", type=int, default=3, help="of each client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--meter", help="rapl, nvml or nvml+rapl: of this machine, in place of the estimate")
    parser.add_argument("--idle", type=float, default=40, help="watts of the estimate, without load")
    parser.add_argument("--full", type=float, default=100, help="and with all processors busy")
    parser.add_argument("--tariff", type=float, default=0.6)
    parser.add_argument("--pue", type=float, default=1.2)
    parser.add_argument("--capex", type=float, default=12000)
    parser.add_argument("--interest", type=float, default=0.06)
    parser.add_argument("--years", type=float, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of 8 clients")
    parser.add_argument("--seconds", type=float, help="stop beginning new rounds after so long")
    parser.add_argument("--out")
    parser.add_argument("--note", default="")
    o = parser.parse_args()
    if o.quick:
        o.rounds, o.clients = 1, "8"
    os.chdir(ROOT)
    o.binary, o.model, o.llama = str(pathlib.Path(o.binary).resolve()), str(pathlib.Path(o.model).resolve()), o.llama.resolve()
    peers = [o.model] + [str(pathlib.Path(p).resolve()) for p in (o.peer_models or "").split(",") if p]
    contenders = [{"engine": "millrace", "name": "millrace " + pathlib.Path(o.model).name, "model": o.model}]
    contenders += [{"engine": "llama.cpp", "name": "llama.cpp " + pathlib.Path(p).name, "model": p} for p in peers]
    results, begun = {}, time.monotonic()
    for number in range(o.rounds):
        if number and o.seconds and time.monotonic() - begun > o.seconds:
            break
        for clients in (int(c) for c in o.clients.split(",")):
            for contender in contenders if number % 2 == 0 else contenders[::-1]:
                results.setdefault(clients, {}).setdefault(contender["name"], []).append(measure(contender, clients, o, number))
    meter = o.meter or f"an estimate from processor time, {o.idle:.0f} to {o.full:.0f} W"
    print(f"joules: {meter}; tariff {o.tariff} CNY/kWh, PUE {o.pue}, hardware {o.capex:.0f} CNY over {o.years:.0f} years at "
          f"{100 * o.interest:.0f} %; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for clients, by_name in results.items():
        print(f"\n{clients} clients, 128 in, 64 out; median of {len(next(iter(by_name.values())))}, ratio ours / theirs [lowest .. highest]")
        mine = by_name[contenders[0]["name"]]
        for key, label, digits in FIGURES:
            line = f"{label:24}{statistics.median(r[key] for r in mine):>12.{digits}f}"
            for peer in contenders[1:]:
                theirs = by_name[peer["name"]]
                ratios = [a[key] / b[key] for a, b in zip(mine, theirs)]
                line += (f"{statistics.median(r[key] for r in theirs):>14.{digits}f}  {statistics.median(ratios):.3f} "
                         f"[{min(ratios):.3f} .. {max(ratios):.3f}]")
            print(line)
    print("columns: " + ", ".join(c["name"] for c in contenders))
    if o.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        names = {"command": " ".join(pathlib.Path(a).name if a.startswith("/") else a for a in sys.argv), "commit": commit,
                 "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "machine": platform.machine(), "note": o.note,
                 "load_average": os.getloadavg()[0], "meter": meter, "estimated": o.meter is None, "tariff": o.tariff, "pue": o.pue,
                 "capex": o.capex, "interest": o.interest, "years": o.years}
        pathlib.Path(o.out).write_text(json.dumps(names | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
