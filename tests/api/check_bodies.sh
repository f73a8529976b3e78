#!/bin/sh
# check_bodies.sh PROGRAM: runs check_bodies.py with the Python that has the client packages, else the system's.
exec "${MILLRACE_TEST_PYTHON:-python3}" "$(dirname "$0")/check_bodies.py" "$1"
