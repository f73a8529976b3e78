#!/usr/bin/env bash
# run.sh [PRESET...]: installs what the tests need, builds, and runs every test. Default: asan, tsan, clang, release.
#
# Sanitizer presets leave out the suites with the label "release-only" (many seeds, the real model, Python clients): those run
# once. ThreadSanitizer leaves out "no-tsan" too: one thread, or code that other tests run there. Exit code 0 when all passed;
# the last lines are ctest's.
set -euo pipefail
cd "$(dirname "$0")/.."
presets=("$@")
[ ${#presets[@]} -gt 0 ] || presets=(asan tsan clang release)

bash server/setup.sh test-packages
bash server/setup.sh cuda
bash server/setup.sh model
bash server/setup.sh second-model
[ -x .venv/bin/python3 ] || python3 -m venv .venv
.venv/bin/python3 -m pip install -q --disable-pip-version-check -r tests/requirements.txt
export MILLRACE_TEST_PYTHON=$PWD/.venv/bin/python3
export MILLRACE_TEST_MODEL=$PWD/models/SmolLM2-135M-Instruct.Q4_1.gguf
export MILLRACE_TEST_MODEL2=$PWD/models/gemma-3-270m-q4_k_m.gguf

for preset in "${presets[@]}"; do
    echo "== $preset"
    cmake --preset "$preset" >/dev/null
    cmake --build --preset "$preset" -- -k 0
    case "$preset" in
    clang) continue ;; # the second compiler: that it builds without a warning is the test
    release | debug) labels=() ;;
    tsan) labels=(-LE 'release-only|no-tsan') ;;
    *) labels=(-LE release-only) ;;
    esac
    ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$(nproc)" "${labels[@]}"
    [ "$preset" = release ] || continue
    # What depends on the instruction set, once more as on lesser CPUs. On those themselves it is the same run again.
    echo "== $preset, AVX2 only"
    MILLRACE_TEST_CPU_MAX=avx2 ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$(nproc)" \
        -R '^test_kernels_|^test_exact_numerics$|^test_runtime_(device_cpu|sampler)$|^families_|^e2e_command_line$'
    echo "== $preset, plain C"
    MILLRACE_TEST_CPU_MAX=scalar ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$(nproc)" \
        -R '^test_kernels_|^test_runtime_(device_cpu|sampler)$'
done
