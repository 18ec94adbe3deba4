#!/usr/bin/env bash
# Tutorial against improved on real weights (SmolLM2-135M-Instruct), 3 seeds each, on one GPU, all six at once.
#   bash tests/gpu/smollm2.sh SMOLLM2_FOLDER OUT     (the folder: tests/gpu/make_smollm2.py)
# The model is first taught the demo's sums, so that it knows the tags and has something to be right about.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
base=$1 out=$2; mkdir -p "$out"
python3 tests/make_demo_model.py --init "$base" --output-dir "$out/demo" --steps "${TEACH:-60}" --learning-rate 2e-4 > "$out/teach.log" 2>&1; grep -aE "^step" "$out/teach.log" | tail -n 1
common=(--engine trl --no-fast-inference --model "$out/demo/model" --dataset "$out/demo/train.jsonl" --eval-fraction 0.4 --reasoning-tokens "<think>" "</think>"
    --max-seq-length 256 --num-generations 8 --per-device-train-batch-size 32 --max-steps "${STEPS:-24}" --learning-rate 1e-4 --report-to none)
run() {
    name=$1; shift
    python3 train.py "${common[@]}" --output-dir "$out/$name" "$@" > "$out/$name.log" 2>&1
    python3 evaluate.py --output-dir "$out/$name" --split held-out --num-samples 200 --max-tokens 120 --no-fast-inference > "$out/$name.eval.log" 2>&1
}
for seed in 1 2 3; do
    OMP_NUM_THREADS=2 run "tutorial-$seed" --seed "$seed" --system-prompt en --rewards tutorial &
    OMP_NUM_THREADS=2 run "improved-$seed" --seed "$seed" --system-prompt boxed --rewards improved --mask-truncated-completions --loss-type dapo --beta 0 --epsilon-high 0.28 &
done
wait
python3 tests/compare.py "$out"/tutorial-? "$out"/improved-?
