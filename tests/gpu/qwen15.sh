#!/usr/bin/env bash
# A recipe on a real model with real problems, nothing taught beforehand: Qwen2.5-Coder-1.5B-Instruct
# (Apache-2.0), GSM8K, judged on problems that were never trained on. One GPU of 80 GB, one thing
# after another: each run ends soonest so (three side by side by as_card.py 25 make 1.3 to 2 times
# the steps an hour, but took 16 s for each: RESULTS.md).
#
#   bash tests/gpu/qwen15.sh MODEL TRAIN JUDGE OUT ARM...
#
# MODEL: Qwen/Qwen2.5-Coder-1.5B-Instruct or a local folder (our figures are from a 5-bit GGUF of
# it, dequantised). TRAIN, JUDGE: two .jsonl files of GSM8K rows that share no problem. SEEDS="1 2 3"
# and STEPS=80 can be set. A run that is there already goes on or is kept. Each arm's seeds are then
# judged by one engine, with the arm's own system prompt and with none; so are checkpoints, of the
# first seed at the steps AT, of every seed at AT_ALL ("" for none). Arms:
#   base        the model as it is, under each of PROMPTS
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
steps=${STEPS:-80} seeds=${SEEDS:-1 2 3}
english='Think step by step, and check every calculation. Then give the final answer as \boxed{number}.'

run() {    # run NAME FLAGS...
    local name=$1 start=$SECONDS
    shift
    if [ ! -e "$out/$name/grpo_lora/adapter_model.safetensors" ]; then
        python3 train.py --engine trl --model "$model" --dataset "$train" --dataset-config main \
            --reasoning-tokens "<think>" "</think>" --max-seq-length 1024 --report-to none \
            --gpu-memory-utilization 0.2 --save-total-limit 20 --resume --output-dir "$out/$name" \
            "$@" >> "$out/$name.log" 2>&1
        echo "$name: exit $?, $((SECONDS - start)) s"
    fi
}

judge_seeds() {    # judge_seeds ARM: one engine for all seeds and checkpoints of an arm
    local arm=$1 folder=$out/$1 first=${seeds%% *} adapters=() finals=()
    mkdir -p "$folder"
    for step in ${AT-20 40}; do
        adapters+=("$(link "$arm-$first" "checkpoint-$step")")
    done
    for seed in $seeds; do
        [ -e "$out/$arm-$seed/grpo_lora" ] || continue    # a run that did not end
        for step in ${AT_ALL-60}; do
            adapters+=("$(link "$arm-$seed" "checkpoint-$step")")
        done
        finals+=("$(link "$arm-$seed" grpo_lora)")
    done
    judge "$arm" eval --output-dir "$out/$arm-$first" --adapter "${adapters[@]}" "${finals[@]}"
    judge "$arm" eval-no-system-prompt --output-dir "$out/$arm-$first" --system-prompt none \
        --adapter "${finals[@]}"
}

link() {    # link RUN ADAPTER: prints a path that names both
    ln -sfn "../$1/$2" "$folder/$1-$2"
    echo "$folder/$1-$2"
}

judge() {    # judge LOG EVALUATION FLAGS...
    local log=$out/$1.$2.log evaluation=$2 start=$SECONDS
    shift 2
    python3 evaluate.py --dataset "$judge" --num-samples 300 --max-prompt-quantile 1 \
        --max-tokens 800 --gpu-memory-utilization 0.5 --name "$evaluation" "$@" > "$log" 2>&1
    echo "$log: exit $?, $((SECONDS - start)) s"
    grep "^verdict" "$log"
}

micro=(--per-device-train-batch-size 8 --gradient-accumulation-steps 8)
improved=(--rewards improved --mask-truncated-completions --loss-type dapo --beta 0 --min-p 0
    --num-generations 8 "${micro[@]}" --stop-if-stuck 20 --max-steps "$steps" --learning-rate 1e-4
    --system-prompt native --scale-rewards none ${FLAGS:-})
for arm in "$@"; do
    if [ "$arm" = base ]; then
        for prompt in ${PROMPTS:-native boxed en none english}; do
            judge base "$prompt" --model "$model" --adapter none --no-load-in-4bit \
                --output-dir "$out/base" --reasoning-tokens "<think>" "</think>" \
                --system-prompt "$([ $prompt = english ] && echo "$english" || echo $prompt)"
        done
        continue
    fi
    flags=("${improved[@]}")
    case $arm in
        improved) ;;
        boxed) flags+=(--system-prompt boxed) ;;
        group) flags+=(--scale-rewards group) ;;
        constant) flags+=(--lr-scheduler-type constant_with_warmup) ;;
        slow) flags+=(--learning-rate 2e-5) ;;
        tutorialrewards) flags+=(--rewards tutorial) ;;
        tutorial) flags=(--learning-rate 2e-5 --max-steps "$steps" "${micro[@]}") ;;
        *) echo "unknown arm $arm"; exit 2 ;;
    esac
    for seed in $seeds; do
        run "$arm-$seed" "${flags[@]}" --seed "$seed"
    done
    judge_seeds "$arm"
done
