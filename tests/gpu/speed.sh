#!/usr/bin/env bash
# Time train.py on one GPU: bash tests/gpu/speed.sh MODEL DATA OUT NAME...   (names below; prints a table last)
# MODEL may have random weights of the 8B shape: every completion then runs to its limit, as in the tutorial's own log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$1 data=$2 out=$3; shift 3
common=(--model "$model" --dataset "$data" --system-prompt en --report-to none --save-steps 100000)
lora16=(--engine trl --no-load-in-4bit --num-generations 16)
for name in "$@"; do
    case $name in
        tutorial) flags=(--max-steps 10) ;;                                    # 4-bit, 1 prompt x 4 generations
        unsloth16) flags=(--max-steps 5 --no-load-in-4bit --num-generations 16) ;;
        unsloth64) flags=(--max-steps 5 --no-load-in-4bit --num-generations 16 --per-device-train-batch-size 16 --gradient-accumulation-steps 4) ;;
        trl16) flags=("${lora16[@]}" --max-steps 4 --gpu-memory-utilization 0.35 --beta 0) ;;
        trl64) flags=("${lora16[@]}" --max-steps 4 --gpu-memory-utilization 0.42 --beta 0 --per-device-train-batch-size 8 --gradient-accumulation-steps 8) ;;
        trl64-nockpt) flags=("${lora16[@]}" --max-steps 4 --gpu-memory-utilization 0.38 --beta 0 --per-device-train-batch-size 4 --gradient-accumulation-steps 16 --use-gradient-checkpointing false) ;;
        trl128-nockpt) flags=("${lora16[@]}" --max-steps 3 --gpu-memory-utilization 0.42 --beta 0 --per-device-train-batch-size 2 --gradient-accumulation-steps 64 --use-gradient-checkpointing false) ;;
        trl128) flags=("${lora16[@]}" --max-steps 3 --gpu-memory-utilization 0.45 --beta 0 --per-device-train-batch-size 8 --gradient-accumulation-steps 16) ;;
        *) echo "unknown run $name"; exit 2 ;;
    esac
    start=$(date +%s)
    timeout "${LIMIT:-400}" python3 train.py "${common[@]}" "${flags[@]}" --output-dir "$out/$name" > "$out/$name.log" 2>&1
    echo "$name: exit $?, $(($(date +%s) - start)) s; $(grep -aE 'Error|error:' "$out/$name.log" | tail -n 2 | cut -c1-300)"
done
python3 tests/gpu/table.py $(printf "$out/%s " "$@")
