#!/usr/bin/env python3
"""The house rules that a compiler does not check. Prints one line a finding and exits 1 if there is one.

Rules: no direct calls of what must go through a seam; a guard named after the path in every header; a comment at the head of
every file; sizes; includes from the root; unit suffixes of ambiguous names; TODO only with an issue number; words that do not
belong into the project. Exceptions stand in EXCEPTIONS with their reason; one that no longer applies is a finding itself.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = ["runtime", "kernels", "scheduler", "server"]

# Calls that only the named files may make: pattern -> files (relative to the root).
SEAMS = {
    r"\b(malloc|calloc|realloc|aligned_alloc|posix_memalign|free|strdup|strndup)\s*\(": {"runtime/base/mem.c"},
    r"\balloca\s*\(": set(),
    r"\b(exit|_exit|_Exit|quick_exit)\s*\(": {"server/main.c"},
    r"\babort\s*\(": {"runtime/base/check.c"},
    r"\bassert\s*\(": set(),
    r"(?<![\w.>])time\s*\(|\bgettimeofday\s*\(|\bclock_gettime\s*\(": {"runtime/base/clock.c"},
    r"(?<![\w.>])(rand|srand|random|drand48)\s*\(|\bgetrandom\s*\(": {"runtime/base/random.c"},
    r"\b(strcpy|strcat|sprintf|vsprintf|strtok|atoi|atol|atof|gets)\s*\(": set(),
    r"(?<![\w.>])printf\s*\(|\bputs\s*\(": {"server/main.c", "server/cmd_generate.c", "server/cmd_inspect.c", "server/cmd_serve.c",
                                             "server/cmd_bill.c"},
}
# Libraries that only one layer, or one file, may name.
LIBRARIES = {
    r"#include <uv\.h>": lambda p: p.startswith("server/"),
    r"#include <llhttp\.h>": lambda p: p.startswith("server/"),
    r"#include <jansson\.h>": lambda p: p == "runtime/base/json.c",
    r"#include <yaml\.h>": lambda p: p == "server/config_yaml.c",
    r"#include <openssl/": lambda p: p in ("runtime/base/hash.c", "server/billing/redis_wire.c"),
    r"#include <hiredis/": lambda p: p.startswith("server/billing/redis_"),
    r"#include <curl/": lambda p: p in ("server/http_call.c", "server/upstream/relay_link.c"),
    r"#include <xxhash\.h>": lambda p: p == "runtime/base/hash.c",
    r"#include <pcre2\.h>": lambda p: p == "runtime/text/regex.c",
    r"#include <utf8proc\.h>": lambda p: p.startswith("runtime/text/"),
    r"#include <immintrin\.h>": lambda p: p.startswith("kernels/"),
}
# What a kernel file (kernels/*.cu, *.cuh) may not contain: the rules E1, E3 and E4 of kernels/README.md, and PTX outside its
# two files. Names in comments and strings do not count.
KERNEL_WRAPPERS = {"kernels/warp.cuh", "kernels/vec.cuh"}
KERNEL_RULES = {
    r"\b__shared__\b": "E1: shared memory by KX_SHARED, KX_SHARED_DYN, kx::carve",
    r"<<<": "E1: launch by kx::launch",
    r"#include <(?!stdint\.h|stddef\.h|math\.h|float\.h|limits|type_traits)": "E1: include kernels/warp.cuh, kernels/vec.cuh",
    r"\b__activemask\b|\bcooperative_groups\b|(?<![\w.>])(printf|malloc|free)\s*\(|\b__managed__\b|\btex\w*<":
        "E3: not in a kernel",
    r"\bvolatile\b": "E4: flags by atomics and fences",
    r"\basm\b": "PTX in kernels/warp.cuh and kernels/vec.cuh only",
}
LINE_MAX, FUNCTION_MAX, FILE_MAX, HEADER_MAX = 130, 100, 1000, 260

# (file, rule): reason
EXCEPTIONS = {
    ("kernels/attention.cu", "function-size"): "one set of registers goes through all phases; parts would take all as parameters",
}

findings = []
used_exceptions = set()


def finding(path, line, rule, text):
    if (path, rule) in EXCEPTIONS:
        used_exceptions.add((path, rule))
        return
    findings.append(f"{path}:{line}: {rule}: {text}")


def strip_comments_and_strings(text):
    """The same text with comments and literals blanked, so that offsets and lines stay."""
    pattern = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def check_seams(path, code):
    for pattern, allowed in SEAMS.items():
        if path in allowed:
            continue
        for match in re.finditer(pattern, code):
            finding(path, code.count("\n", 0, match.start()) + 1, "seam", f"direct call of {match.group().strip('( ')}")


def check_functions(path, code):
    """Lengths of function bodies: from a line that starts with a brace in column 0 to the one that closes it."""
    start = None
    for number, line in enumerate(code.split("\n"), 1):
        if line.startswith("{"):
            start = number
        elif line.startswith("}") and start:
            if number - start > FUNCTION_MAX:
                finding(path, start, "function-size", f"{number - start} lines (aim 70, at most {FUNCTION_MAX})")
            start = None


def check_file(file):
    path = str(file.relative_to(ROOT))
    text = file.read_text()
    code = strip_comments_and_strings(text)
    lines = text.split("\n")
    in_layer = path.split("/")[0] in LAYERS
    if not text.lstrip().startswith("/*"):
        finding(path, 1, "head", "no comment says what this file is")
    limit = HEADER_MAX if path.endswith(".h") else FILE_MAX
    if len(lines) > limit and in_layer:
        finding(path, 1, "file-size", f"{len(lines)} lines (at most {limit})")
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_MAX:
            finding(path, number, "line-length", f"{len(line)} columns (at most {LINE_MAX})")
        if line != line.rstrip() or "\t" in line:
            finding(path, number, "space", "trailing space or tab")
        if re.search(r"\bFIXME\b|\bXXX\b", line) or re.search(r"\bTODO\b(?! #\d)", line):
            finding(path, number, "todo", "FIXME, XXX or a TODO without an issue number")
        if line.startswith("#include") and ".." in line:
            finding(path, number, "include", "include from the root, without ..")
    if path.endswith(".h"):
        guard = re.sub(r"[^A-Z0-9]", "_", path.upper())
        if f"#ifndef {guard}" not in text or f"#define {guard}" not in text:
            finding(path, 1, "guard", f"expected {guard}")
        if in_layer:
            for match in re.finditer(r"\b(timeout|latency|delay|interval)\s*[;,)]", code):
                finding(path, code.count("\n", 0, match.start()) + 1, "unit", f"{match.group(1)} has no unit")
    if in_layer:
        check_seams(path, code)
        check_functions(path, code)
        for pattern, allowed in LIBRARIES.items():
            match = re.search(pattern, text)
            if match and not allowed(path):
                finding(path, text.count("\n", 0, match.start()) + 1, "library", match.group())


def check_kernel(file):
    """A CUDA file: what holds for text of any language, and the rules for who writes kernels."""
    path = str(file.relative_to(ROOT))
    text = file.read_text()
    code = strip_comments_and_strings(text)
    if not text.lstrip().startswith("/*"):
        finding(path, 1, "head", "no comment says what this file is")
    if len(text.split("\n")) > FILE_MAX and path.startswith("kernels/"):
        finding(path, 1, "file-size", f"{len(text.splitlines())} lines (at most {FILE_MAX})")
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LINE_MAX:
            finding(path, number, "line-length", f"{len(line)} columns (at most {LINE_MAX})")
        if line != line.rstrip() or "\t" in line:
            finding(path, number, "space", "trailing space or tab")
        if re.search(r"\bFIXME\b|\bXXX\b", line) or re.search(r"\bTODO\b(?! #\d)", line):
            finding(path, number, "todo", "FIXME, XXX or a TODO without an issue number")
    check_functions(path, code)
    if not path.startswith("kernels/") or path in KERNEL_WRAPPERS:
        return
    for pattern, rule in KERNEL_RULES.items():
        for match in re.finditer(pattern, code):
            finding(path, code.count("\n", 0, match.start()) + 1, "kernel", f"{match.group().strip()}: {rule}")


def main():
    for folder in ["kernels", "tests/emulator", "tests/unit/cuda", "bench"]:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".cu", ".cuh", ".cpp"):
                check_kernel(file)
    for layer in LAYERS + ["tests", "bench"]:
        for file in sorted((ROOT / layer).rglob("*")):
            if file.suffix in (".c", ".h") and "build" not in file.parts:
                check_file(file)
    for exception in sorted(set(EXCEPTIONS) - used_exceptions):
        findings.append(f"tests/tidy.py: stale exception {exception}")
    print("\n".join(findings) if findings else "tidy: nothing to say")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
