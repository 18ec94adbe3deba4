#!/usr/bin/env bash
# The demo's comparisons, two runs at a time, one thread each: 11 to 45 minutes on 2 cores.
#
#   bash run.sh demo && bash tests/seeds.sh OUT
#
# 1. recipes: the tutorial's against the improved one, 3 seeds and 1,280 completions each, and the
#    ablations (demo/model)
# 2. rewards: the tutorial's against the improved ones with the same flags, 3 seeds and 1,920
#    completions each, on a model that answers in prose and is right in about 55 % of cases, so that
#    there is something to lose and to gain
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OUT=$1 PYTHON=${PYTHON:-.venv-cpu/bin/python} MODEL=${MODEL:-demo}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

run() {
    name=$1
    shift
    "$PYTHON" train.py --output-dir "$OUT/$name" --engine trl --model "$MODEL/model" \
        --dataset "$MODEL/train.jsonl" --eval-fraction 0.4 --max-seq-length 160 \
        --use-gradient-checkpointing false --report-to none --save-steps 10000 "$@" \
        > "$OUT/$name.log" 2>&1
    "$PYTHON" evaluate.py --output-dir "$OUT/$name" --split held-out --num-samples 200 \
        --max-tokens 100 > "$OUT/$name.eval.log" 2>&1
    echo "$name done"
}
export -f run
mkdir -p "$OUT"
if [ ! -e "$OUT/prose/train.jsonl" ]; then
    "$PYTHON" tests/make_demo_model.py --output-dir "$OUT/prose" --steps 320 --bare-answers 0
fi
# boxed: the demo model has never seen the Indonesian prompt
improved="--system-prompt boxed --rewards improved --scale-rewards none
    --mask-truncated-completions --loss-type dapo --beta 0 --min-p 0 --num-generations 8
    --per-device-train-batch-size 32 --max-steps 40 --learning-rate 1e-3"
prose="--model $OUT/prose/model --dataset $OUT/prose/train.jsonl"
{
    for seed in 1 2 3; do
        echo "run tutorial-$seed --seed $seed --max-steps 320"
        echo "run improved-$seed --seed $seed" $improved
        echo "run tutorialrewards-$seed --seed $seed" $improved --rewards tutorial
        echo "run noanswer-$seed --seed $seed" $improved --reward-weights 0 1 0.5
        echo "run nolanguage-$seed --seed $seed" $improved --reward-weights 2 0 0.5
        echo "run noformat-$seed --seed $seed" $improved --reward-weights 2 1 0
        echo "run group-$seed --seed $seed" $improved --scale-rewards group
    done
    echo "run german-1 --seed 1 --target-lang de" $improved
    improved="$prose $improved --max-steps 60"
    for seed in 1 2 3; do
        echo "run proseimproved-$seed --seed $seed" $improved
        echo "run prosetutorial-$seed --seed $seed" $improved --rewards tutorial
        echo "run prosenoanswer-$seed --seed $seed" $improved --reward-weights 0 1 0.5
    done
} | xargs -P 2 -I COMMAND bash -c COMMAND
"$PYTHON" tests/compare.py "$OUT"/*-[123]
