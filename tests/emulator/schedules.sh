#!/usr/bin/env bash
# schedules.sh PROGRAM: runs one program over the emulator's schedules: order of lanes, warps, blocks and graph nodes
# (CUSIM_SEED), time of stream work (CUSIM_STREAMS), landing of asynchronous copies (CUSIM_CPASYNC). Stops at the first
# that fails and says how to repeat it.
#
# All 36 where that fits SCHEDULES_SECONDS (6); else those that did, in an order that meets every value early.
set -u
program=$1
limit=${SCHEDULES_SECONDS:-6}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
done_count=0
SECONDS=0
for step in 0 1 2 3 4 5 6 7 8; do
    for seed in 0 -1 1 2; do
        # A walk over streams x cp.async that differs for each seed, so that an early stop still mixes them.
        index=$(((step + seed + 1) % 9))
        streams=(lazy eager rand)
        export CUSIM_SEED=$seed CUSIM_STREAMS=${streams[$((index % 3))]} CUSIM_CPASYNC=$((index / 3))
        "$program" >"$log" 2>&1
        code=$?
        if [ $code -eq 77 ]; then
            cat "$log"
            exit 77
        fi
        if [ $code -ne 0 ]; then
            cat "$log"
            echo "failed: CUSIM_SEED=$CUSIM_SEED CUSIM_STREAMS=$CUSIM_STREAMS CUSIM_CPASYNC=$CUSIM_CPASYNC $program"
            exit 1
        fi
        done_count=$((done_count + 1))
        if [ $SECONDS -ge "$limit" ]; then
            echo "$done_count of 36 schedules passed in $SECONDS s"
            exit 0
        fi
    done
done
echo "all $done_count schedules passed in $SECONDS s"
