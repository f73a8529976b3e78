#!/usr/bin/env python3
"""ptxas.py FOLDER [BUDGET]: holds what ptxas said of each kernel (FOLDER/*.o.ptxas) against kernels/budget.csv.

Prints a table: for each kernel entry and architecture its registers, static shared memory, stack, spills, and how many
blocks an SM holds, by registers (65,536, given in groups of 256 a warp), warps (64), blocks (32) and shared memory
(164 KiB on sm_80, 228 KiB on sm_90 and sm_100, of which each block costs 1 KiB more). Exits 1 when a kernel has no line
in the budget, needs more registers than it says, spills, uses local memory without a reason, or reaches fewer blocks an SM
than planned; and when a line of the budget belongs to no kernel. What a build folder still has of a kernel file that is gone
(no .cu beside the budget) counts for nothing. Source of the limits: CUDA C++ Programming Guide, "Technical Specifications
per Compute Capability".

budget.csv: kernel, threads of a block, dynamic shared bytes, registers at most, blocks an SM at least, local bytes allowed,
reason. kernel is the entry's name with or without template arguments; the longest that fits counts.
"""
import csv
import pathlib
import re
import subprocess
import sys

REGISTERS, WARPS, BLOCKS = 65536, 64, 32
SHARED = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024, "sm_100": 228 * 1024}


def entries(text):
    """(mangled name, architecture, numbers) of each entry in the output of ptxas -v."""
    for part in text.split("Compiling entry function ")[1:]:
        head = re.match(r"'(\w+)' for '(\w+)'", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if head and frame and used:
            stack, stores, loads = (int(n) for n in frame.groups())
            yield head[1], head[2], {"registers": int(used[1]), "stack": stack, "spill": stores + loads,
                                     "shared": int(shared[1]) if shared else 0}


def short(demangled):
    """'void (anonymous namespace)::decode<(int)64>(int*)' -> 'decode<64>'"""
    name = re.sub(r"\((anonymous namespace|int|bool|unsigned int)\)(::)?|_GLOBAL__N_\w+::|^void ", "", demangled)
    depth, end = 0, len(name)
    while end and name.endswith(")"):
        end -= 1
        depth += {")": 1, "(": -1}.get(name[end], 0)
        if depth == 0:
            return name[:end].strip()
    return name.strip()


def blocks_per_sm(arch, threads, registers, shared):
    warps = -(-threads // 32)
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    return min(by_registers, WARPS // warps, BLOCKS, SHARED[arch] // (shared + 1024))


def line_for(name, budget):
    """The budget's longest line for a kernel: its whole name, or the part before the template arguments."""
    fitting = [key for key in budget if name == key or name.split("<")[0] == key]
    return max(fitting, key=len) if fitting else None


def judge(name, arch, n, row, blocks):
    if n["registers"] > int(row["registers"]):
        yield f"{name} {arch}: {n['registers']} registers, the budget says {row['registers']}"
    if blocks < int(row["blocks"]):
        yield f"{name} {arch}: {blocks} blocks an SM, the budget says {row['blocks']}"
    local = max(n["stack"], n["spill"])
    if local > int(row["local"]):
        yield f"{name} {arch}: {n['stack']} bytes of stack, {n['spill']} of spills, the budget allows {row['local']}"


def main():
    folder = pathlib.Path(sys.argv[1])
    path = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(__file__).parent / "budget.csv"
    with open(path, newline="") as file:
        budget = {row["kernel"]: row for row in csv.DictReader(line for line in file if not line.startswith("#"))}
    findings = [f"{key}: local memory without a reason" for key, row in budget.items() if int(row["local"]) and not row["reason"]]
    used, table = set(), []
    for file in sorted(folder.glob("*.o.ptxas")):
        if not (path.parent / file.name.replace(".o.ptxas", ".cu")).exists():
            continue
        found = list(entries(file.read_text()))
        names = subprocess.run(["c++filt"], input="\n".join(e[0] for e in found), capture_output=True, text=True, check=True)
        for (_, arch, n), demangled in zip(found, names.stdout.split("\n")):
            name = short(demangled)
            key = line_for(name, budget)
            used.add(key)
            if key is None:
                findings.append(f"{name} {arch}: no line in {path.name} ({n['registers']} registers)")
                table.append((name, arch, n, "?", "?", "?"))
                continue
            threads, dynamic = int(budget[key]["threads"]), int(budget[key]["dynamic_shared"])
            blocks = blocks_per_sm(arch, threads, n["registers"], n["shared"] + dynamic)
            findings += judge(name, arch, n, budget[key], blocks)
            table.append((name, arch, n, threads, dynamic, blocks))
    if not table:
        findings.append(f"no output of ptxas in {folder}")
    findings += [f"{path.name}: {key} is no kernel" for key in sorted(set(budget) - used)]
    print(f"{'kernel':44} {'arch':7} {'threads':>7} {'regs':>5} {'static':>7} {'dynamic':>8} {'stack':>6} {'spill':>6} "
          f"{'blocks/SM':>9} {'warps':>6}")
    for name, arch, n, threads, dynamic, blocks in sorted(table, key=lambda t: (t[0], t[1])):
        warps = "?" if blocks == "?" else blocks * -(-threads // 32)
        print(f"{name[:44]:44} {arch:7} {threads:>7} {n['registers']:>5} {n['shared']:>7} {dynamic:>8} {n['stack']:>6} "
              f"{n['spill']:>6} {blocks:>9} {warps:>6}")
    print("\n".join(findings) if findings else f"{len(table)} entries within the budget")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
