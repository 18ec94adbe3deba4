#!/usr/bin/env bash
# Recipes on real weights (SmolLM2-135M-Instruct), 3 seeds each, 512 completions a run, on one GPU at the same time; then an export.
#   bash tests/gpu/smollm2.sh SMOLLM2_FOLDER OUT     (the folder: tests/gpu/make_smollm2.py)
# First the model is taught the demo's sums with answers in prose, for as long as leaves room above its accuracy. Then:
#   tutorial         run.sh's recipe: 128 steps of 1 prompt x 4, learning rate 5e-6
#   tutorialrewards  the improved recipe's flags with the tutorial's rewards
#   improved         the improved recipe: 16 steps of 4 prompts x 8, learning rate 1e-4 for this small model
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
base=$1 out=$2; mkdir -p "$out"
export OMP_NUM_THREADS=2
for steps in 15 25 40; do
    {
        python3 tests/make_demo_model.py --init "$base" --output-dir "$out/taught$steps" --steps $steps --bare-answers 0 --learning-rate 2e-4
        python3 evaluate.py --model "$out/taught$steps/model" --dataset "$out/taught$steps/train.jsonl" --adapter none --reasoning-tokens "<think>" "</think>" \
            --system-prompt boxed --output-dir "$out/taught$steps" --num-samples 100 --max-tokens 120 --no-fast-inference
    } > "$out/teach$steps.log" 2>&1 &
done
wait
demo=$(python3 - "$out" <<'P'
import json, sys
accuracy = {s: json.load(open(f"{sys.argv[1]}/taught{s}/eval-alone/results.json"))["base"]["accuracy"] for s in (15, 25, 40)}
print(accuracy, file=sys.stderr)
print(f"{sys.argv[1]}/taught" + str(min(accuracy, key=lambda s: abs(accuracy[s] - 0.6))))
P
)
echo "taking $demo"
run() {
    name=$1; shift
    for try in 1 2; do  # engines that start at the same time can disturb each other's count of free memory
        python3 train.py --engine trl --model "$demo/model" --dataset "$demo/train.jsonl" --eval-fraction 0.4 --reasoning-tokens "<think>" "</think>" \
            --max-seq-length 256 --gpu-memory-utilization 0.05 --report-to none --save-steps 100000 --output-dir "$out/$name" "$@" > "$out/$name.log" 2>&1 && break
        sleep 10
    done
    python3 evaluate.py --output-dir "$out/$name" --split held-out --num-samples 200 --max-tokens 120 --no-fast-inference > "$out/$name.eval.log" 2>&1
    echo "$name: $(grep -a "^steps" "$out/$name.log") $(grep -a "^seconds" "$out/$name.log" | head -n 1)"
}
improved=(--system-prompt boxed --mask-truncated-completions --loss-type dapo --beta 0 --epsilon-high 0.28 --min-p 0
    --num-generations 8 --per-device-train-batch-size 32 --max-steps 16 --learning-rate 1e-4)
for seed in 1 2 3; do
    run "tutorial-$seed" --seed $seed --system-prompt en --max-steps 128 &
    sleep "${STAGGER:-8}"
done
for seed in 1 2 3; do
    run "improved-$seed" --seed $seed "${improved[@]}" --rewards improved &
    sleep "${STAGGER:-8}"
    run "tutorialrewards-$seed" --seed $seed "${improved[@]}" --rewards tutorial &
    sleep "${STAGGER:-8}"
done
wait
python3 tests/compare.py "$out"/{tutorial,tutorialrewards,improved}-?
python3 export.py --output-dir "$out/improved-1" --format merged_16bit merged_4bit lora gguf --quantization q8_0 f16 q4_k_m q5_k_m
