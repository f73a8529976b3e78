#!/bin/sh
# compare.sh [packages] ARGS...: compare.py (or compare_packages.py) under the interpreter that tests/run.sh has set up.
if [ -z "${MILLRACE_TEST_PYTHON:-}" ]; then
    echo "skipped: MILLRACE_TEST_PYTHON is not set (an interpreter with the packages of tests/requirements.txt)"
    exit 77
fi
script=compare.py
if [ "$1" = packages ]; then
    script=compare_packages.py
    shift
fi
exec "$MILLRACE_TEST_PYTHON" "$(dirname "$0")/$script" "$@"
