#!/usr/bin/env python3
"""zoo.py TOOL=PROGRAM...: runs the planted bugs of test_bugs.cu, each also in its corrected form.

TOOL is plain, asan, tsan or msan, PROGRAM a test_bugs built with it (matrix.sh builds all four). A tool passes when it
catches every bug whose line in test_bugs.cu names it, and no corrected form. plain runs four schedules; one that notices
is enough. --table prints what each tool said, as the list in test_bugs.cu wants it.
"""
import concurrent.futures
import os
import subprocess
import sys

SCHEDULES = {
    "plain": [{}, {"CUSIM_SEED": "-1"}, {"CUSIM_SEED": "1"}, {"CUSIM_STREAMS": "eager", "CUSIM_CPASYNC": "1"}],
    "asan": [{}], "tsan": [{}], "msan": [{}],
}
OPTIONS = {
    "TSAN_OPTIONS": "exitcode=66 halt_on_error=1 report_bugs=1", "MSAN_OPTIONS": "exit_code=67",
    "ASAN_OPTIONS": "exitcode=68 detect_leaks=0 handle_abort=0", "UBSAN_OPTIONS": "halt_on_error=1",
}


def run(program, case, schedule, right):
    """What stopped or failed the program in one word; '' when it ended with the right output."""
    words = [program, case] + (["ok"] if right else [])
    patience = "60" if right else "1"  # the corrected form does not hang, however slow the machine
    environment = dict(os.environ, **OPTIONS, **schedule, CUSIM_TIMEOUT=patience)
    try:
        done = subprocess.run(words, env=environment, capture_output=True, timeout=90)
    except subprocess.TimeoutExpired:
        return "timeout"
    known = {0: "", 3: "wrong", 4: "call", 66: "TSan", 67: "MSan", 68: "ASan", 1: "UBSan", -6: "engine", -11: "guard"}
    if done.returncode == -6 and b"cusim: error" not in done.stderr:
        return "abort"
    return known.get(done.returncode, f"status {done.returncode}")


def case_result(tool, program, case):
    caught = [word for schedule in SCHEDULES[tool] if (word := run(program, case, schedule, False))]
    alarms = [word for schedule in SCHEDULES[tool] if (word := run(program, case, schedule, True))]
    return case, caught[0] if caught else "", alarms[0] if alarms else ""


def main():
    words = [word for word in sys.argv[1:] if word != "--table"]
    programs = dict(word.split("=", 1) for word in words)
    listing = subprocess.run([next(iter(programs.values()))], capture_output=True, text=True, check=True).stdout
    named = {line.split(": ")[0]: line.split(": ")[1].split() for line in listing.splitlines()}
    bad, table = [], {case: {} for case in named}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for tool, program in programs.items():
            for case, caught, alarm in pool.map(lambda c: case_result(tool, program, c), named):
                table[case][tool] = caught
                if alarm:
                    bad.append(f"{case}: {tool} objects to the corrected form: {alarm}")
                if not caught and tool in named[case]:
                    bad.append(f"{case}: {tool} did not catch it")
    for case, row in table.items():
        if "--table" in sys.argv:
            print(f'    CASE({case}, "{" ".join(tool for tool in row if row[tool])}"),')
        else:
            print(f"{case:20} " + " ".join(f"{row[tool] or '.':10}" for tool in programs))
    missed = [case for case in named if not any(table[case].values()) and len(programs) == 4]
    bad += [f"{case}: caught by no tool" for case in missed]
    print("\n".join(bad) if bad else f"{len(named)} bugs: all caught by the tools named for them, no false alarm")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
