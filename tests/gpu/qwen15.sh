#!/usr/bin/env bash
# A recipe on a real model with real problems, nothing taught beforehand: Qwen2.5-Coder-1.5B-Instruct
# (Apache-2.0), GSM8K, judged on problems that were never trained on. One GPU, one run after another:
# processes take turns on a GPU, so two at once are no faster.
#
#   bash tests/gpu/qwen15.sh MODEL TRAIN JUDGE OUT ARM...
#
# MODEL: Qwen/Qwen2.5-Coder-1.5B-Instruct or a local folder (our figures are from a 5-bit GGUF of
# it, dequantised). TRAIN, JUDGE: two .jsonl files of GSM8K rows that share no problem. SEEDS="1 2 3"
# and STEPS=60 can be set. Arms:
#   improved    the improved recipe; FLAGS (a variable) is appended, to try something
#   tutorial    the tutorial's rewards, flags and prompt, with as many completions
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$1 train=$2 judge=$3 out=$4
shift 4
mkdir -p "$out"
export OMP_NUM_THREADS=4
steps=${STEPS:-60}

run() {    # run NAME FLAGS...
    local name=$1 start=$SECONDS
    shift
    python3 train.py --engine trl --model "$model" --dataset "$train" --dataset-config main \
        --reasoning-tokens "<think>" "</think>" --max-seq-length 1024 --report-to none \
        --gpu-memory-utilization 0.4 --save-total-limit 20 --resume --output-dir "$out/$name" \
        "$@" > "$out/$name.log" 2>&1
    echo "$name: exit $?, $((SECONDS - start)) s"
    for prompt in own none; do
        local flags=()
        [ $prompt = none ] && flags=(--system-prompt none --name eval-no-system-prompt)
        python3 evaluate.py --output-dir "$out/$name" --dataset "$judge" --num-samples 300 \
            --max-tokens 800 "${flags[@]}" > "$out/$name.eval-$prompt.log" 2>&1
        tail -n 30 "$out/$name.eval-$prompt.log" | grep "^verdict"
    done
}

improved=(--rewards improved --mask-truncated-completions --loss-type dapo --beta 0 --min-p 0
    --num-generations 8 --per-device-train-batch-size 8 --gradient-accumulation-steps 8
    --stop-if-stuck 20 --max-steps "$steps")
for arm in "$@"; do
    for seed in ${SEEDS:-1 2 3}; do
        case $arm in
            improved)
                run "improved-$seed" "${improved[@]}" --system-prompt boxed --learning-rate 1e-4 \
                    --seed "$seed" ${FLAGS:-} ;;
            tutorial)
                run "tutorial-$seed" --max-steps $((steps * 16)) --save-steps 200 --seed "$seed" ;;
            *) echo "unknown arm $arm"; exit 2 ;;
        esac
    done
done
