#!/usr/bin/env bash
# Builds llama.cpp as a peer, natively and with all its CPU options on, from the source package of llama-cpp-python (PyPI),
# which carries it: llama-server, llama-bench, llama-batched-bench and llama-perplexity, under build/peers/llama_cpp.
#
#   bench/peers/setup_llama_cpp.sh [FOLDER]       20 to 40 minutes of processor time; needs cmake, ninja, a C++ compiler
set -eu
version=${LLAMA_CPP_PYTHON_VERSION:-0.3.36}
cd "$(dirname "$0")/../.."
folder=${1:-build/peers/llama_cpp}
mkdir -p "$folder"
if [ ! -d "$folder/source" ]; then
    python3 -m pip --disable-pip-version-check download -q --no-deps --no-binary llama-cpp-python -d "$folder" \
        "llama-cpp-python==$version"
    mkdir "$folder/source.partial"
    tar xzf "$folder/llama_cpp_python-$version.tar.gz" -C "$folder/source.partial" --strip-components=1
    mv "$folder/source.partial" "$folder/source"
fi
cmake -G Ninja -S "$folder/source/vendor/llama.cpp" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >"$folder/cmake.log"
ninja -C "$folder/build" ${JOBS:+-j "$JOBS"} llama-server llama-bench llama-batched-bench llama-perplexity
echo "llama.cpp: $folder/build/bin"
