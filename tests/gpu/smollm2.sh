#!/usr/bin/env bash
# Recipes on real weights (SmolLM2-135M-Instruct), 3 seeds each with the same number of completions, all on one GPU at the same time.
#   bash tests/gpu/smollm2.sh SMOLLM2_FOLDER OUT [ARM...]     (the folder: tests/gpu/make_smollm2.py)
# The model is first taught the demo's sums with answers in prose, for as few steps as leave room above its accuracy. Arms:
#   tutorial         run.sh's recipe: steps of 1 prompt x 4, learning rate 5e-6
#   improved         the improved recipe: steps of 2 prompts x 8, learning rate 2e-4 for this small model
#   tutorialrewards  the improved recipe's flags with the tutorial's rewards
# Generation is by transformers: many vLLM engines on one GPU disturb each other's count of free memory, and TRL merges the adapter
# into 16-bit weights for vLLM, which drops the smallest changes (RESULTS.md).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
base=$1 out=$2; shift 2; mkdir -p "$out"
export OMP_NUM_THREADS=2
completions=${COMPLETIONS:-640} demo=$out/demo
[ -e "$demo/train.jsonl" ] || python3 tests/make_demo_model.py --init "$base" --output-dir "$demo" --steps 25 --bare-answers 0 --learning-rate 2e-4 > "$out/teach.log" 2>&1
run() {
    name=$1; shift
    python3 train.py --engine trl --no-fast-inference --model "$demo/model" --dataset "$demo/train.jsonl" --eval-fraction 0.4 \
        --reasoning-tokens "<think>" "</think>" --max-seq-length 256 --report-to none --save-steps 100000 --output-dir "$out/$name" "$@" > "$out/$name.log" 2>&1
    python3 evaluate.py --output-dir "$out/$name" --split held-out --num-samples 200 --max-tokens 120 --no-fast-inference > "$out/$name.eval.log" 2>&1
    echo "$name: $(grep -a "^steps\|^seconds" "$out/$name.log" | head -n 2 | tr "\n" " ")"
}
improved=(--system-prompt boxed --mask-truncated-completions --loss-type dapo --beta 0 --epsilon-high 0.28 --min-p 0
    --num-generations 8 --per-device-train-batch-size 16 --max-steps $((completions / 16)) --learning-rate 2e-4)
[ $# = 0 ] && set -- tutorial improved tutorialrewards
for arm in "$@"; do
    for seed in 1 2 3; do
        case $arm in
            tutorial) run "$arm-$seed" --seed $seed --system-prompt en --max-steps $((completions / 4)) & ;;
            improved) run "$arm-$seed" --seed $seed "${improved[@]}" --rewards improved & ;;
            tutorialrewards) run "$arm-$seed" --seed $seed "${improved[@]}" --rewards tutorial & ;;
        esac
    done
done
wait
python3 tests/compare.py "$out"/*-[123]
