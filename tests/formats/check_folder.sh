#!/bin/sh
# check_folder.sh PROGRAM FAMILY FORMAT: a tiny model, quantised below the directory in which this is called, opened as a folder
# and held by PROGRAM against one that holds the same values plainly.
set -eu
if [ -z "${MILLRACE_TEST_PYTHON:-}" ]; then
    echo "skipped: MILLRACE_TEST_PYTHON is not set (an interpreter with the packages of tests/requirements.txt)"
    exit 77
fi
here=$(dirname "$0")
folder=formats/$2-$3
mkdir -p "$folder"
"$MILLRACE_TEST_PYTHON" "$here/quantise_folder.py" "$2" "$3" "$folder"
"$1" "$folder/quantised" "$folder/plain"
