#!/bin/sh
# nvcc.sh NVCC ROOT SOURCE OBJECT: compiles one kernel file for all targets; OBJECT.ptxas holds what ptxas says, OBJECT.d
# the headers. sm_80 is Ampere, sm_90a Hopper, sm_100 Blackwell; PTX of compute_90 serves what comes later.
#
# Without exceptions, RTTI and guarded statics the objects need no C++ runtime: the binary links with gcc.
set -eu
nvcc=$1 root=$2 source=$3 object=$4
# ccache, where there is one, keeps what ptxas says too.
if ! $(command -v ccache) "$nvcc" -std=c++17 -O3 -I"$root" -MD -MF "$object.d" -MT "$object" \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_100,code=sm_100 \
    -gencode arch=compute_90,code=compute_90 -Xptxas -v \
    -Xcompiler -fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-fno-omit-frame-pointer,-fPIE \
    -c "$source" -o "$object" >"$object.ptxas" 2>&1; then
    grep -v '^ptxas info' "$object.ptxas" >&2
    exit 1
fi
grep -i 'warning' "$object.ptxas" >&2 && exit 1
exit 0
