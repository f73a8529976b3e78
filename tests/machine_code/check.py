#!/usr/bin/env python3
"""Gate on the machine code of the kernels: what the compiler made of the loops that take nearly all of a step.

    check.py [--loops] FILE...        libraries or object files; objdump (binutils) must be there, else exit 77

Always: no AVX outside of object files that are named for an instruction set, and none of AVX-512 in those for AVX2.
--loops: the inner loop of every instance of the AVX-512 matmul (one symbol a type and number of rows) holds no call, no
shuffle, no vpmaddubsw and no access to the stack, feeds every dot from memory by a broadcast operand, and needs no more
instructions a dot than LOOPS says. A source that still computes the right thing can lose a third of its speed here, by
one spilled register or a broadcast that is no longer folded; tests of results cannot see it, and timings cannot be a
test. The figures are those of GCC 12 at -O2; Clang 14 keeps the sums of the same source on the stack, so that --loops is
left out there.

An inner loop is a natural loop of the control flow with dots in it and no smaller such loop inside.
"""
import re
import shutil
import subprocess
import sys

ROWS = range(1, 17)
SLACK = 1.03  # above what was reached when a row was last written

# Instructions a dot that were reached, for 1..16 rows. A dot is one vpdpbusd, vdpbf16ps or FMA. What is not in the
# dots themselves is decoding the weights, once for all rows, and scaling: 2 or 3 instructions a row and 8 dots.
LOOPS = {
    "Q4_0": [3.88, 2.69, 2.48, 2.23, 2.11, 2.14, 2.04, 1.98, 1.85, 1.88, 1.81, 1.85, 1.88, 1.79, 1.73, 1.71],
    "Q4_1": [4.12, 2.91, 2.67, 2.44, 2.25, 2.15, 2.16, 2.17, 2.03, 2.08, 2.03, 1.99, 2.09, 2.04, 1.93, 1.97],
    "Q5_0": [5.88, 3.69, 3.19, 2.78, 2.54, 2.34, 2.34, 2.27, 2.08, 2.09, 2.01, 1.97, 1.97, 1.93, 1.89, 1.86],
    "Q5_1": [6.12, 3.91, 3.38, 2.97, 2.69, 2.55, 2.48, 2.46, 2.27, 2.24, 2.19, 2.22, 2.21, 2.07, 2.09, 2.05],
    "Q8_0": [2.88, 2.19, 1.96, 1.84, 2.01, 1.99, 1.97, 1.91, 1.78, 1.79, 1.86, 1.76, 1.70, 1.75, 1.75, 1.76],
    "Q4_K": [4.88, 3.56, 2.92, 2.73, 2.45, 2.32, 2.30, 2.30, 2.16, 2.14, 2.10, 2.15, 2.13, 1.98, 1.97, 2.02],
    "Q5_K": [6.94, 4.62, 3.62, 3.14, 2.88, 2.68, 2.62, 2.57, 2.38, 2.32, 2.35, 2.32, 2.14, 2.12, 2.12, 2.13],
    "Q6_K": [7.12, 4.94, 3.92, 3.45, 3.10, 2.91, 2.82, 2.70, 2.66, 2.49, 2.43, 2.47, 2.47, 2.51, 2.51, 2.53],
    "f32": [6.00, 4.00, 3.33, 2.25, 2.00, 1.83, 1.71, 1.62, 1.56, 1.50, 1.45, 1.42, 1.38, 1.36, 1.33, 1.31],
    "bf16_dot": [2.25, 1.62, 1.42, 1.31, 1.45, 1.38, 1.32, 1.28, 1.25, 1.23, 1.20, 1.19, 1.17, 1.16, 1.15, 1.14],
    "bf16_fma": [4.12, 3.34, 3.06, 2.95, 2.98, 2.90, 2.80, 2.77, 2.74, 2.71, 2.69, 2.68, 2.66, 2.65, 2.64, 2.64],
}
# Accesses to the stack in the loop that are known and put up with: type: {rows: number}. Q6_K wants 34 registers where there
# are 32: 8 of codes, 16 sums, 4 + 4 dots in flight, 2 scales. The others are a pointer or a scale, once a group of 64 inputs.
SPILLS = {
    "Q4_0": {13: 1},
    "Q4_1": {13: 1},
    "Q5_0": {13: 1},
    "Q5_1": {12: 1, 13: 1, 14: 2, 15: 2, 16: 4},
    "Q8_0": {13: 1},
    "Q5_K": {16: 9},
    "Q6_K": {13: 8, 14: 17, 15: 23, 16: 27},
}
# Up to so many rows activations are not broadcast by the dot itself: f32 waits for its chain of FMAs anyway, bf16_fma parts
# pairs before it can multiply.
UNFOLDED = {"f32": 3, "bf16_fma": 16}

CALL = re.compile(r"call")
SHUFFLE = re.compile(r"v?p?(perm|shuf|unpck|align|pack|insert|extract|compress|expand|movddup|movs[hl]dup)|vinsert|vextract|vperm")
BROADCAST = re.compile(r"vp?broadcast")
STACK = re.compile(r"\(.*%[re][sb]p")
AVX = re.compile(r"v(?!err|erw|mcall|mlaunch|mresume|mxoff)")
VEX_SCALAR = re.compile(r"(andn|bextr|blsi|blsr|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx)[lq]?$")
MASK = re.compile(r"k(mov|and|andn|or|xor|xnor|not|add|test|ortest|shiftl|shiftr|unpck)[bwdq]+$")
EVEX = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]|\{1to")


def parse(listing):
    """objdump -d to {object file: {symbol: [(address, mnemonic, operands)]}}."""
    objects, functions, body = {}, {}, []
    for line in listing.split("\n"):
        if match := re.match(r"(\S+):\s+file format", line):
            functions = objects.setdefault(match[1].rsplit("/", 1)[-1], {})
        elif match := re.match(r"[0-9a-f]+ <([^>]+)>:", line):
            body = functions.setdefault(match[1], [])
        elif match := re.match(r"\s*([0-9a-f]+):\t(?:\{[a-z]+\} )?(\S+)\s*(.*)", line):
            body.append((int(match[1], 16), match[2], match[3].split("#")[0].strip()))
    return objects


def target_of(instruction):
    _, mnemonic, operands = instruction
    match = re.match(r"([0-9a-f]+)( |$)", operands)
    return int(match[1], 16) if mnemonic.startswith("j") and match else None


def natural_loops(body):
    """Sets of positions in body, one a loop header: what reaches the jump back without passing the header."""
    place = {instruction[0]: i for i, instruction in enumerate(body)}
    before = [set() for _ in body]
    jumps = []
    for i, instruction in enumerate(body):
        target = place.get(target_of(instruction))
        if target is not None:
            before[target].add(i)
            jumps.append((i, target))
        if not re.match(r"(jmp|ret)", instruction[1]) and i + 1 < len(body):
            before[i + 1].add(i)
    loops = {}
    for latch, header in jumps:
        inside, left = {header, latch}, [latch]
        while left:
            at = left.pop()
            if at == header:
                continue
            for i in before[at] - inside:
                inside.add(i)
                left.append(i)
        if header == 0 or 0 not in inside:  # else the header does not stand on every way to the jump: no loop of it
            loops[header] = loops.get(header, set()) | inside
    return list(loops.values())


def inner_loops(body, is_dot):
    """Instructions of the loops with dots in them that hold no smaller loop with dots."""
    hot = [loop for loop in natural_loops(body) if any(is_dot(body[i]) for i in loop)]
    return [[body[i] for i in sorted(loop)] for loop in hot if not any(other < loop for other in hot)]


def is_dot_of(kind):
    fma = r"vfmadd\d+ps"
    pattern = {"f32": fma, "bf16_fma": fma, "bf16_dot": "vdpbf16ps"}.get(kind, r"vpdpbusds?$")
    return lambda instruction: re.match(pattern, instruction[1]) is not None


def loop_figures(kind, body):
    """Instructions a dot of the inner loop, and the most accesses to the stack. Of several loops, as unrolling leaves, the
    one with most dots counts: the other does the rest."""
    is_dot = is_dot_of(kind)
    loops = inner_loops(body, is_dot)
    hot = max(loops, key=lambda loop: sum(map(is_dot, loop)))
    return len(hot) / sum(map(is_dot, hot)), max(sum(bool(STACK.search(i[2])) for i in loop) for loop in loops)


def check_instance(name, kind, rows, body):
    """Findings about one instance."""
    is_dot = is_dot_of(kind)
    loops = inner_loops(body, is_dot)
    if not loops:
        return [f"{name}: no loop with dots in it"]
    findings = []
    for loop in loops:
        for address, mnemonic, operands in loop:
            where = f"{name}: {address:x}: {mnemonic} {operands}"
            if CALL.match(mnemonic):
                findings.append(f"{where}: a call in the loop")
            if SHUFFLE.match(mnemonic) or (BROADCAST.match(mnemonic) and "(" not in operands):
                findings.append(f"{where}: a shuffle in the loop")
            if mnemonic.startswith("vpmaddubsw"):
                findings.append(f"{where}: not a dot of VNNI")
            folded = rows > UNFOLDED.get(kind, 0)
            if folded and is_dot((address, mnemonic, operands)) and "{1to" not in operands:
                findings.append(f"{where}: a dot without a broadcast memory operand")
    a_dot, spills = loop_figures(kind, body)
    if a_dot > LOOPS[kind][rows - 1] * SLACK:
        findings.append(f"{name}: {a_dot:.3f} instructions a dot, {LOOPS[kind][rows - 1]:.3f} were reached")
    if spills > SPILLS.get(kind, {}).get(rows, 0):
        findings.append(f"{name}: {spills} accesses to the stack in the loop, {SPILLS.get(kind, {}).get(rows, 0)} are known")
    return findings


def check_loops(objects):
    """Findings about all instances; one that is missing from the table or from the code is a finding too."""
    findings, seen = [], set()
    for file, functions in objects.items():
        if not file.endswith("_avx512.c.o"):
            continue
        for symbol, body in functions.items():
            match = re.fullmatch(r"matmul_(\w+)_(\d+)", symbol)
            if not match:
                continue
            kind, rows = match[1], int(match[2])
            if kind not in LOOPS or rows not in ROWS:
                findings.append(f"{symbol}: an instance without a row in LOOPS")
                continue
            seen.add((kind, rows))
            findings += check_instance(symbol, kind, rows, body)
    return findings + [f"matmul_{kind}_{rows}: not found" for kind in LOOPS for rows in ROWS if (kind, rows) not in seen]


def check_instruction_sets(objects):
    """Findings about instructions in object files that a CPU without them would reach."""
    findings = []
    for file, functions in objects.items():
        if file.endswith("_avx512.c.o"):
            continue
        narrow = file.endswith(("_avx2.c.o", "_avxvnni.c.o"))
        for symbol, body in functions.items():
            for address, mnemonic, operands in body:
                if narrow:
                    foreign = EVEX.search(operands)
                else:
                    foreign = any(p.match(mnemonic) for p in (AVX, VEX_SCALAR, MASK)) or re.search(r"%[yz]mm", operands)
                if foreign:
                    findings.append(f"{file}: {symbol}: {address:x}: {mnemonic} {operands}: not for every CPU of this file")
                    break  # one a function is enough
    return findings


def disassemble(files):
    return parse(subprocess.run(["objdump", "-d", "--no-show-raw-insn", *files], capture_output=True, text=True, check=True).stdout)


def main():
    arguments = sys.argv[1:]
    flags = {a for a in arguments if a.startswith("--")}
    if not shutil.which("objdump"):
        print("skipped: there is no objdump")
        return 77
    objects = disassemble([a for a in arguments if a not in flags])
    if "--figures" in flags:  # a table to put in LOOPS and SPILLS
        for kind in LOOPS:
            symbols = {r: f[f"matmul_{kind}_{r}"] for f in objects.values() for r in ROWS if f"matmul_{kind}_{r}" in f}
            figures = [loop_figures(kind, symbols[r]) for r in ROWS]
            print(f'    "{kind}": [' + ", ".join(f"{f[0]:.2f}" for f in figures) + "],", [(r, f[1]) for r, f in zip(ROWS, figures) if f[1]])
        return 0
    findings = check_instruction_sets(objects) + (check_loops(objects) if "--loops" in flags else [])
    for text in findings:
        print(text)
    print(f"{len(objects)} object files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
