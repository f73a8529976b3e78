#!/usr/bin/env python3
"""mutate.py TEST=FILE[,FILE...] ...: breaks the real kernels in one place at a time; which preset's test notices?

    python3 tests/emulator/mutate.py test_cuda_add_rmsnorm=kernels/add_rmsnorm.cu,kernels/norm_row.cuh

By hand or at night, in a copy of the tree under build/mutants (ccache makes most of it free). Mutants come from patterns:
a barrier, fence or __syncwarp dropped; one copy group too few waited for; an atomic made plain; a comparison off by one; a
shuffle's distance or a mask halved. Each is built and run in the presets given by --presets (release,tsan): plain under
four schedules, the others once. Prints a line a mutant and exits 1 if one survives everywhere: either a test is missing,
or the mutant means the same, which a person must say.
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATTERNS = [
    (r"__syncthreads\(\);", ";", "barrier dropped"),
    (r"__syncwarp\(\);", ";", "__syncwarp dropped"),
    (r"__threadfence(_system)?\(\);", ";", "fence dropped"),
    (r"cp_async_wait<(\w+)>", r"cp_async_wait<\1 + 1>", "one copy group too few"),
    (r"bar_sync\((\w+), (\w+)\);", ";", "named barrier dropped"),
    (r"atomicAdd\(&?([^,;]+), ([^;]+?)\)( ==|;)", r"(*(&\1) += \2)\3", "atomic made plain"),
    (r"(?<=[\w\)\]]) < (?=[\w\(])", " <= ", "bound off by one"),
    (r"(?<=[\w\)\]]) >= (?=[\w\(])", " > ", "bound off by one"),
    (r"offset = 16;", "offset = 8;", "butterfly cut short"),
    (r"store_release_system\(([^,]+), ", r"atomicExch(\1, ", "release made plain"),
]
SCHEDULES = [{}, {"CUSIM_SEED": "-1"}, {"CUSIM_SEED": "3", "CUSIM_CPASYNC": "2"}, {"CUSIM_CPASYNC": "1", "CUSIM_STREAMS": "eager"}]


def mutants(text):
    """(text, what, line) of each; comments, templates and the loops of the host are left alone as far as a pattern can."""
    code = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.S)
    for pattern, new, what in PATTERNS:
        for match in re.finditer(pattern, code):
            line = code.count("\n", 0, match.start()) + 1
            if code.split("\n")[line - 1].lstrip().startswith(("template", "#", "static_assert")):
                continue
            yield text[:match.start()] + match.expand(new) + text[match.end():], what, line


def run(command, seconds, **environment):
    try:
        return subprocess.run(command, env=dict(os.environ, **environment), capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def verdict(tree, preset, test, seconds):
    built = run(["ninja", "-C", str(tree / "build" / preset), test], 900)
    if built is None or built.returncode:
        return "does not compile"
    program = str(tree / "build" / preset / "tests" / "emulator" / test)
    for schedule in SCHEDULES if preset in ("release", "clang") else SCHEDULES[:1]:
        done = run([program], seconds, TSAN_OPTIONS="halt_on_error=1", CUSIM_TIMEOUT="5", **schedule)
        if done is None:
            return "timeout"
        if done.returncode:
            error = done.stderr + done.stdout
            for word, name in ((b"cusim: error", "engine"), (b"ThreadSanitizer", "TSan"), (b"AddressSanitizer", "ASan"),
                               (b"runtime error", "UBSan")):
                if word in error:
                    return name
            return "wrong"
    return ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--presets", default="release,tsan")
    parser.add_argument("--seconds", type=int, default=300, help="of one run of a test")
    parser.add_argument("--limit", type=int, default=10**9, help="mutants of a file")
    options = parser.parse_args()
    tree = ROOT / "build" / "mutants"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        target = tree / name
        if (ROOT / name).is_file() and (not target.exists() or target.read_bytes() != (ROOT / name).read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    presets = options.presets.split(",")
    for preset in presets:
        subprocess.run(["cmake", "--preset", preset], cwd=tree, capture_output=True, check=True)
    survivors, total = [], 0
    for pair in options.pairs:
        test, names = pair.split("=")
        for name in names.split(","):
            original = (tree / name).read_text()
            for text, what, line in list(mutants(original))[:options.limit]:
                (tree / name).write_text(text)
                said = [verdict(tree, preset, test, options.seconds) for preset in presets]
                (tree / name).write_text(original)
                if "does not compile" in said:
                    continue
                total += 1
                print(f"{name}:{line}: {what}: " + ", ".join(f"{p} {s or '-'}" for p, s in zip(presets, said)), flush=True)
                if not any(said):
                    survivors.append(f"{name}:{line}: {what}")
    print(f"{total} mutants, {len(survivors)} survive")
    print("\n".join(survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
