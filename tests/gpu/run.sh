#!/usr/bin/env bash
# run.sh [OUT.json]: everything of the CUDA device on a machine with GPUs: the kernel and device tests as they also run
# under the emulator, the real model against the CPU device's words, compute-sanitizer where it is installed, and the
# kernel and engine benchmarks. Results: a table, and one JSON object in OUT (default: build/release/gpu.json).
#
# Needs a driver for CUDA 13; the rest it installs or fetches (server/setup.sh). Exit code 0: all tests passed.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-build/release/gpu.json}
if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "run.sh: nvidia-smi finds no GPU on this machine" >&2
    exit 1
fi
bash server/setup.sh test-packages
bash server/setup.sh cuda
bash server/setup.sh model
ldconfig -p | grep -q libcublasLt.so.13 || {
    bash server/setup.sh cuda-libraries
    export LD_LIBRARY_PATH=$PWD/.cuda/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}
export MILLRACE_TEST_MODEL=$PWD/models/SmolLM2-135M-Instruct.Q4_1.gguf
cmake --preset release -DMILLRACE_CUDA=ON >/dev/null
cmake --build --preset release

failed=() results=()
# check NAME COMMAND...: one test; 77 means skipped
check() {
    local name=$1 code=0
    shift
    "$@" >"build/release/gpu_$name.log" 2>&1 || code=$?
    case $code in
    0) word=passed ;;
    77) word=skipped ;;
    *) word=failed failed+=("$name") && tail -n 20 "build/release/gpu_$name.log" ;;
    esac
    printf '%-50s %s\n' "$name" "$word"
    results+=("\"$name\":\"$word\"")
}
for program in $(find build/release/tests -type f -perm -u+x -name 'gpu_test_*' | sort); do
    check "$(basename "$program")" "$program"
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck synccheck; do
            check "$(basename "$program")_$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 "$program"
        done
    fi
done
# The words of the real model: greedy, on the GPU and on the CPU with exact numerics, in one piece and graph by graph.
prompt="The mill race carries water to the wheel, and the wheel"
words() { build/release/millrace generate "$MILLRACE_TEST_MODEL" -p "$prompt" -n 48 --temperature 0 "$@" 2>/dev/null; }
words --device cpu --numerics exact >build/release/gpu_words_cpu
for options in "--device cuda" "--device cuda --enforce-eager" "--device cuda --dtype bf16" "--device cuda --deterministic"; do
    # shellcheck disable=SC2086
    words $options >build/release/gpu_words || true
    check "words ${options#--device cuda}" cmp build/release/gpu_words_cpu build/release/gpu_words
done
bench=null
if build/release/bench/bench_cuda --out build/release/gpu_bench.json; then
    bench=$(cat build/release/gpu_bench.json)
else
    failed+=(bench_cuda)
fi
printf '{"date":"%s","commit":"%s","gpus":"%s","tests":{%s},"bench":%s}\n' "$(date -u +%FT%TZ)" "$(git rev-parse --short HEAD)" \
    "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | paste -sd ';')" \
    "$(IFS=,; echo "${results[*]}")" "$bench" >"$out"
echo "results: $out; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
