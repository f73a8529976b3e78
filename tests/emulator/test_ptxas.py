#!/usr/bin/env python3
"""test_ptxas.py JUDGE: kernels/ptxas.py on planted output: it must pass what fits the budget and object to each excess."""
import pathlib
import subprocess
import sys
import tempfile

OUTPUT = """ptxas info    : Compiling entry function '_Z6decodeILi64EEvPi' for 'sm_90a'
ptxas info    : Function properties for _Z6decodeILi64EEvPi
    {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem
"""
HEAD = "kernel,threads,dynamic_shared,registers,blocks,local,reason\n"
FITS = {"stack": 0, "spill": 0, "registers": 64, "shared": 1024}
#   name, what ptxas says, the budget's lines, words of the objection ('' = none)
CASES = [
    ("fits", {}, "decode,128,0,64,8,0,\n", ""),
    ("longest line counts", {}, "decode,128,0,32,8,0,\ndecode<64>,128,0,64,8,0,\n", "decode is no kernel"),
    ("no line", {}, "", "no line in"),
    ("registers", {"registers": 65}, "decode,128,0,64,1,0,\n", "65 registers, the budget says 64"),
    ("spill", {"spill": 8}, "decode,128,0,64,8,0,\n", "8 of spills"),
    ("stack", {"stack": 16}, "decode,128,0,64,8,0,\n", "16 bytes of stack"),
    ("spill with a reason", {"spill": 8, "stack": 8}, "decode,128,0,64,8,8,because\n", ""),
    ("spill beyond what is allowed", {"spill": 16}, "decode,128,0,64,8,8,because\n", "16 of spills"),
    ("no reason", {"spill": 8}, "decode,128,0,64,8,8,\n", "without a reason"),
    ("blocks by registers", {}, "decode,128,0,64,9,0,\n", "8 blocks an SM, the budget says 9"),
    ("blocks by warps", {"registers": 16}, "decode,1024,0,64,3,0,\n", "2 blocks an SM"),
    ("blocks by shared memory", {"shared": 100 * 1024}, "decode,128,13312,64,3,0,\n", "2 blocks an SM"),
    ("stale line", {}, "decode,128,0,64,8,0,\ngone,128,0,64,8,0,\n", "gone is no kernel"),
]


def main():
    bad = []
    for name, changes, lines, words in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            (path / "x.o.ptxas").write_text(OUTPUT.format(**{**FITS, **changes}))
            (path / "x.cu").touch()
            (path / "removed.o.ptxas").write_text(OUTPUT.format(**{**FITS, "spill": 4000}))  # its .cu is gone
            (path / "budget.csv").write_text(HEAD + lines)
            done = subprocess.run([sys.executable, sys.argv[1], folder, str(path / "budget.csv")], capture_output=True, text=True)
        if (done.returncode != 0) != bool(words) or words not in done.stdout:
            bad.append(f"{name}: status {done.returncode}\n{done.stdout}{done.stderr}")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, sys.argv[1], folder], capture_output=True, text=True)
        if done.returncode == 0:
            bad.append("an empty folder passes")
        (pathlib.Path(folder) / "removed.o.ptxas").write_text(OUTPUT.format(**FITS))
        (pathlib.Path(folder) / "budget.csv").write_text(HEAD)
        done = subprocess.run([sys.executable, sys.argv[1], folder, folder + "/budget.csv"], capture_output=True, text=True)
        if done.returncode == 0:
            bad.append("a folder of nothing but what is gone passes")
    print("\n".join(bad) if bad else f"{len(CASES) + 2} cases")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
