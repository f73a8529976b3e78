#!/usr/bin/env bash
# matrix.sh [BUILD] [CUDA]: builds the zoo of planted bugs with each tool (plain, ASan with UBSan, TSan by g++; MSan by
# clang++, which then instruments the engine too) and runs it with all four. By hand, after changes of the engine: 3
# minutes. Every preset's own tool runs in ctest (test_emulator_bugs).
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build/matrix}
cuda=${2:-${CUDA_HOME:-/usr/local/cuda}}
base="-std=c++17 -march=x86-64-v3 -g1 -O1 -fno-omit-frame-pointer -ffp-contract=off -Wno-unknown-pragmas -I. -isystem $cuda/include"
mkdir -p "$build"

# one TOOL COMPILER KERNEL_FLAGS ENGINE_FLAGS
one() {
    for source in tests/emulator/*.cpp; do
        $2 $base -O2 $4 -c "$source" -o "$build/$1_$(basename "$source").o"
    done
    $2 -x c++ $base $3 -c tests/emulator/test_bugs.cu -o "$build/$1_bugs.o"
    $2 $3 -rdynamic "$build/$1"_*.o -o "$build/bugs_$1" -lpthread -ldl
}
one plain g++ "" ""
one asan g++ "-fsanitize=address,undefined -fno-sanitize-recover=all" ""
one tsan g++ "-fsanitize=thread" ""
one msan clang++ "-fsanitize=memory" "-fsanitize=memory"
python3 tests/emulator/zoo.py plain="$build/bugs_plain" asan="$build/bugs_asan" tsan="$build/bugs_tsan" msan="$build/bugs_msan" ${TABLE:-}
