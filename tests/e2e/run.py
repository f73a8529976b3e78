"""Runs one end-to-end suite (test_<name>.py, unittest) under the interpreter that has the client packages.

Exit 77 with the reason when the interpreter (MILLRACE_TEST_PYTHON) or the model is missing, so that ctest reports a skip.
"""
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def main():
    python = os.environ.get("MILLRACE_TEST_PYTHON")
    if not python:
        print("skipped: MILLRACE_TEST_PYTHON is not set (tests/run.sh sets it)")
        return 77
    model = os.environ.get("MILLRACE_TEST_MODEL", str(HERE.parent.parent / "models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not os.path.exists(model):
        print(f"skipped: no model at {model} (server/setup.sh model fetches it)")
        return 77
    environment = dict(os.environ, MILLRACE_TEST_MODEL=model, PYTHONDONTWRITEBYTECODE="1", LITELLM_LOCAL_MODEL_COST_MAP="True")
    return subprocess.run([python, "-m", "unittest", "-v", f"test_{sys.argv[1]}"], cwd=HERE, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
