#!/bin/sh
# check.sh PROGRAM folder|gguf NAME: writes family NAME below the directory in which it is called, as a folder (twice: with the
# keys of transformers 5 and with those of vendors before it) or as a GGUF file, and holds PROGRAM's logits against golden ones.
set -eu
if [ -z "${MILLRACE_TEST_PYTHON:-}" ]; then
    echo "skipped: MILLRACE_TEST_PYTHON is not set (an interpreter with the packages of tests/requirements.txt)"
    exit 77
fi
here=$(dirname "$0")
mkdir -p families
case $2 in
folder)
    for style in "" --vendor; do
        "$MILLRACE_TEST_PYTHON" "$here/write_folder.py" "$3" "families/$3$style" $style
        "$1" "families/$3$style" "$here/golden/$3.bin" texts
    done
    ;;
gguf)
    "$MILLRACE_TEST_PYTHON" "$here/write_gguf.py" "$3" "families/$3.gguf"
    "$1" "families/$3.gguf" "$here/golden/$3.bin"
    ;;
esac
