#!/bin/sh
# folder.sh PROGRAM: makes the BF16 folder of SmolLM2 below the directory in which it is called, and holds PROGRAM's tokens
# against the golden ones.
set -eu
here=$(dirname "$0")
model=${MILLRACE_TEST_MODEL:-$here/../../models/SmolLM2-135M-Instruct.Q4_1.gguf}
if [ -z "${MILLRACE_TEST_PYTHON:-}" ] || [ ! -r "$model" ]; then
    echo "skipped: needs MILLRACE_TEST_PYTHON (an interpreter with tests/requirements.txt) and MILLRACE_TEST_MODEL"
    exit 77
fi
"$MILLRACE_TEST_PYTHON" "$here/../golden/make_folder.py" "$model" SmolLM2-135M-Instruct
"$1" SmolLM2-135M-Instruct "$here/../golden/greedy_smollm2_folder.json"
