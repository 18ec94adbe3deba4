#!/usr/bin/env bash
# A recipe on a real model with real problems, nothing taught beforehand: Qwen2.5-Coder-1.5B-Instruct
# (Apache-2.0), GSM8K, judged on problems that were never trained on. One GPU of 80 GB, one thing
# after another: processes take turns on a GPU, and one beside another ran out of memory.
#
#   bash tests/gpu/qwen15.sh MODEL TRAIN JUDGE OUT ARM...
#
# MODEL: Qwen/Qwen2.5-Coder-1.5B-Instruct or a local folder (our figures are from a 5-bit GGUF of
# it, dequantised). TRAIN, JUDGE: two .jsonl files of GSM8K rows that share no problem. SEEDS="1 2 3"
# and STEPS=60 can be set. Arms:
#   base        the model as it is, under each prompt
#   tutorial    the tutorial's rewards, flags and prompt with as many completions a step, and for
#               them the learning rate 5e-6 * sqrt(16), as in run.sh's fast
#   improved    the improved recipe; FLAGS (a variable) is appended, to try something
#   improved with one part off: boxed (another prompt), group (advantages divided by the group's
#               deviation), constant (learning rate), slow (learning rate 2e-5), tutorialrewards
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$1 train=$2 judge=$3 out=$4
shift 4
mkdir -p "$out"
export OMP_NUM_THREADS=4
steps=${STEPS:-60}
english='Think step by step, and check every calculation. Then give the final answer as \boxed{number}.'

run() {    # run NAME FLAGS...
    local name=$1 start=$SECONDS
    shift
    python3 train.py --engine trl --model "$model" --dataset "$train" --dataset-config main \
        --reasoning-tokens "<think>" "</think>" --max-seq-length 1024 --report-to none \
        --gpu-memory-utilization 0.2 --save-total-limit 20 --resume --output-dir "$out/$name" \
        "$@" > "$out/$name.log" 2>&1
    echo "$name: exit $?, $((SECONDS - start)) s"
    judge "$name" eval --output-dir "$out/$name"
    judge "$name" eval-no-system-prompt --output-dir "$out/$name" --system-prompt none
    if [ "$name" = improved-1 ]; then
        judge "$name" eval-curve --output-dir "$out/$name" \
            --adapter "$out/$name"/checkpoint-* "$out/$name/grpo_lora"
    fi
}

judge() {    # judge NAME EVALUATION FLAGS...
    local name=$1 evaluation=$2 start=$SECONDS
    shift 2
    python3 evaluate.py --dataset "$judge" --num-samples 300 --max-prompt-quantile 1 \
        --max-tokens 800 --gpu-memory-utilization 0.5 --name "$evaluation" "$@" \
        > "$out/$name.$evaluation.log" 2>&1
    echo "$name $evaluation: exit $?, $((SECONDS - start)) s"
    grep "^verdict" "$out/$name.$evaluation.log"
}

improved=(--rewards improved --mask-truncated-completions --loss-type dapo --beta 0 --min-p 0
    --num-generations 8 --per-device-train-batch-size 8 --gradient-accumulation-steps 8
    --stop-if-stuck 20 --max-steps "$steps" --learning-rate 1e-4 --system-prompt native
    --scale-rewards none ${FLAGS:-})
for arm in "$@"; do
    if [ "$arm" = base ]; then
        for prompt in ${PROMPTS:-native boxed en none english}; do
            judge base "$prompt" --model "$model" --adapter none --no-load-in-4bit \
                --output-dir "$out/base" --reasoning-tokens "<think>" "</think>" \
                --system-prompt "$([ $prompt = english ] && echo "$english" || echo $prompt)"
        done
        continue
    fi
    for seed in ${SEEDS:-1 2 3}; do
        own=(--seed "$seed")
        case $arm in
            improved) ;;
            boxed) own+=(--system-prompt boxed) ;;
            group) own+=(--scale-rewards group) ;;
            constant) own+=(--lr-scheduler-type constant_with_warmup) ;;
            slow) own+=(--learning-rate 2e-5) ;;
            tutorialrewards) own+=(--rewards tutorial) ;;
            tutorial)
                run "tutorial-$seed" --max-steps "$steps" --per-device-train-batch-size 8 \
                    --gradient-accumulation-steps 8 --learning-rate 2e-5 "${own[@]}"
                continue ;;
            *) echo "unknown arm $arm"; exit 2 ;;
        esac
        run "$arm-$seed" "${improved[@]}" "${own[@]}"
    done
done
